//! What the optimizers share: the checks before a step, tensors by parameter name, the norm of the gradients.

use std::collections::{BTreeMap, BTreeSet};

use crate::ops::grad_norm::grad_norm;
use crate::ops::multi_tensor::Workspace;
use crate::{DType, Device, Error, Grads, Param, Result, Shape, Tensor};

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Factor the gradients were scaled by; 1 where nothing was clipped.
    pub clip_factor: f64,
}

/// Name of the step count in a saved state.
const STEP: &str = "step";

/// The gradients of `params`, in their order.
///
/// # Errors
/// [`Error::MissingGradients`] with the names of those that have none.
pub(super) fn gradients<'a>(params: &[&mut Param], grads: &'a Grads) -> Result<Vec<&'a Tensor>> {
    grads.check_complete(params.iter().map(|p| &**p))?;
    Ok(params.iter().filter_map(|p| grads.get(p)).collect())
}

/// Norm and clip factor of the gradients, on their device.
#[derive(Default)]
pub(super) struct Norm {
    out: Option<Tensor>,
    work: Workspace,
}

impl Norm {
    /// Starts the computation; nothing waits for it.
    pub fn launch(&mut self, grads: &[&Tensor], clip: Option<f64>, dtype: DType, device: &Device) -> Result<&Tensor> {
        let held = self.out.take().filter(|t| t.dtype() == dtype && t.device() == device);
        let mut out = held.map_or_else(|| Tensor::uninit([2], dtype, device), Ok)?;
        grad_norm(grads, clip, &mut out, &mut self.work)?;
        Ok(self.out.insert(out))
    }

    /// Ends a step. The device has checked the norm itself, so it is read only now that the update is under way.
    pub fn finish(&self, steps: &mut u64, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        let params = trainable(params)?;
        if params.is_empty() {
            return Ok(StepStats { grad_norm: 0.0, clip_factor: 1.0 });
        }
        let stats = self.read(*steps + 1, &params, &gradients(&params, grads)?)?;
        *steps += 1;
        Ok(stats)
    }

    /// Waits for the values. A norm that is not finite is an error that names the tensor at fault; kernels that were
    /// given the tensor of [`launch`](Self::launch) have changed nothing then.
    fn read(&self, step: u64, params: &[&mut Param], grads: &[&Tensor]) -> Result<StepStats> {
        let values = self.out.as_ref().map_or_else(|| Ok(vec![0.0, 1.0]), Tensor::to_f64)?;
        if values[0].is_finite() {
            return Ok(StepStats { grad_norm: values[0], clip_factor: values[1] });
        }
        for (p, g) in params.iter().zip(grads) {
            if let Some(x) = g.to_f64()?.into_iter().find(|x| !x.is_finite()) {
                return Err(non_finite(step, format!("gradient of {}", p.name()), x));
            }
        }
        Err(non_finite(step, "gradient norm".into(), values[0]))
    }
}

fn non_finite(step: u64, tensor: String, value: f64) -> Error {
    let hint = "nothing was changed; try a lower learning rate, a longer warm-up or gradient clipping".into();
    Error::NonFinite { step, tensor, value: value.to_string(), hint }
}

/// Tensors of one kind by parameter name: the first moments, say.
#[derive(Clone, Default)]
pub(super) struct Named {
    tensors: BTreeMap<String, Tensor>,
}

impl Named {
    /// Makes the names those of `params`: zeros before the first step, afterwards (`steps` > 0) they have to be there.
    pub fn prepare(&mut self, op: &'static str, kind: &'static str, params: &[&mut Param], steps: u64) -> Result<()> {
        self.prepare_shaped(op, kind, params, steps, |p| p.master.shape().clone())
    }

    /// The same for tensors of other shapes than the parameters'.
    pub fn prepare_shaped(
        &mut self,
        op: &'static str,
        kind: &'static str,
        params: &[&mut Param],
        steps: u64,
        shape: impl Fn(&Param) -> Shape,
    ) -> Result<()> {
        let names: BTreeSet<&str> = params.iter().map(|p| p.name()).collect();
        if names.len() != params.len() {
            let twice = params.iter().map(|p| p.name()).find(|n| params.iter().filter(|p| p.name() == *n).count() > 1);
            return Err(Error::value(op, "params", format!("`{}` twice", twice.unwrap_or_default()), "one per name"));
        }
        if let Some(name) = self.tensors.keys().find(|name| !names.contains(name.as_str())) {
            return Err(Error::value(
                op,
                "params",
                format!("no trainable `{name}`"),
                "the parameters of the saved state",
            ));
        }
        for p in params {
            let (shape, dtype, device) = (shape(p), p.master.dtype(), p.master.device());
            match self.tensors.get_mut(p.name()) {
                None if steps == 0 => {
                    self.tensors.insert(p.name().into(), Tensor::zeros(shape, dtype, device)?);
                }
                None => {
                    let given = format!("{steps} steps without `{kind}.{}`", p.name());
                    return Err(Error::value(op, "state", given, "one for every trainable parameter"));
                }
                Some(held) if *held.shape() != shape => {
                    return Err(Error::shape(op, format!("{kind}.{}", p.name()), held.shape(), format!("{shape}")));
                }
                Some(held) => {
                    *held = held.to_device(device)?.cast(dtype)?;
                    unshare(held)?;
                }
            }
        }
        Ok(())
    }

    /// The tensors of `params`, which [`prepare`](Self::prepare) has seen, in the order of their names.
    pub fn by_name(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.tensors.values_mut()
    }

    /// `<kind>.<name>` and tensor of each.
    pub fn save(&self, kind: &str) -> impl Iterator<Item = (String, Tensor)> {
        self.tensors.iter().map(move |(name, t)| (format!("{kind}.{name}"), t.clone()))
    }
}

/// Copies a tensor that others hold, so that it can be written and theirs stays as it is.
pub(super) fn unshare(t: &mut Tensor) -> Result<()> {
    if t.storage_mut("optimizer").is_err() {
        t.device().refuse_recording("copies a shared tensor before it changes it")?; // a replay would undo the change
        *t = t.deep_clone()?;
    }
    Ok(())
}

/// The parameters that are trained, writable, ordered by name.
pub(super) fn trainable<'a>(params: &'a mut [&mut Param]) -> Result<Vec<&'a mut Param>> {
    let mut chosen: Vec<&mut Param> = params.iter_mut().map(|p| &mut **p).filter(|p| p.trainable).collect();
    chosen.sort_by(|a, b| a.name().cmp(b.name()));
    for p in &mut chosen {
        unshare(&mut p.master)?;
        p.compute.as_mut().map_or(Ok(()), unshare)?;
    }
    Ok(chosen)
}

/// The step count as a tensor.
pub(super) fn save_step(steps: u64) -> Result<(String, Tensor)> {
    let count = i32::try_from(steps).map_err(|_| Error::value("optimizer", "step", steps, "below 2^31"))?;
    Ok((STEP.into(), Tensor::from_slice(&[count], Shape::default(), &Device::Cpu)?))
}

/// Sorts a saved state into its kinds: `<kind>.<name>` for each of `kinds`, and the step count.
///
/// # Errors
/// For a name of no kind, a missing step count, kinds that do not have the same names, and types other than f32.
pub(super) fn load<const N: usize>(
    op: &'static str,
    kinds: [&'static str; N],
    state: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<([Named; N], u64)> {
    let mut named: [Named; N] = std::array::from_fn(|_| Named::default());
    let mut steps = None;
    for (full, tensor) in state {
        if full == STEP {
            steps = Some(tensor.item()?);
            continue;
        }
        let found = kinds.iter().zip(&mut named).find_map(|(kind, named)| {
            let name = full.strip_prefix(kind)?.strip_prefix('.')?.to_string();
            Some((named, name))
        });
        let Some((named, name)) = found else {
            return Err(Error::value(op, "state", full, format!("{STEP} or {} and a name", kinds.join(", "))));
        };
        if !tensor.dtype().is_float() || tensor.dtype() != tensor.dtype().accumulate() {
            return Err(Error::argument(op, full, "dtype", tensor.dtype().name(), "f32"));
        }
        named.tensors.insert(name, tensor);
    }
    let whole = |x: &f64| *x >= 0.0 && x.fract() == 0.0;
    let Some(steps) = steps.filter(whole) else {
        return Err(Error::value(op, STEP, steps.map_or("missing".into(), |x: f64| x.to_string()), "a whole number"));
    };
    for (kind, other) in kinds.iter().zip(&named).skip(1) {
        let differs = named[0].tensors.keys().zip(other.tensors.keys()).find(|(a, b)| a != b);
        if differs.is_some() || named[0].tensors.len() != other.tensors.len() {
            let expected = format!("the names of {}", kinds[0]);
            return Err(Error::value(op, "state", format!("other names of {kind}"), expected));
        }
    }
    Ok((named, steps as u64))
}
