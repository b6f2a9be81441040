//! The state of an optimizer: tensors by parameter name, and how they are saved and read.

use std::collections::{BTreeMap, BTreeSet};

use super::common::unshare;
use crate::{Device, Error, Param, Result, Shape, Tensor};

/// Name of the step count in a saved state.
const STEP: &str = "step";

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

    /// Whether there is one of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// `<kind>.<name>` and tensor of each.
    pub fn save(&self, kind: &str) -> impl Iterator<Item = (String, Tensor)> {
        self.tensors.iter().map(move |(name, t)| (format!("{kind}.{name}"), t.clone()))
    }
}

/// The step count as a tensor.
pub(super) fn save_step(steps: u64) -> Result<(String, Tensor)> {
    save_count(STEP.into(), steps)
}

/// A count as a tensor.
pub(super) fn save_count(name: String, count: u64) -> Result<(String, Tensor)> {
    let value = i32::try_from(count).map_err(|_| Error::value("optimizer", name.clone(), count, "below 2^31"))?;
    Ok((name, Tensor::from_slice(&[value], Shape::default(), &Device::Cpu)?))
}

/// What [`save_count`] saved.
pub(super) fn count(op: &'static str, name: &str, saved: Option<&Tensor>) -> Result<u64> {
    let value = saved.map(Tensor::item).transpose()?;
    match value.filter(|x| *x >= 0.0 && x.fract() == 0.0) {
        Some(count) => Ok(count as u64),
        None => Err(Error::value(op, name, value.map_or("missing".into(), |x| x.to_string()), "a whole number")),
    }
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
            steps = Some(tensor);
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
    let steps = count(op, STEP, steps.as_ref())?;
    for (kind, other) in kinds.iter().zip(&named).skip(1) {
        let differs = named[0].tensors.keys().zip(other.tensors.keys()).find(|(a, b)| a != b);
        if differs.is_some() || named[0].tensors.len() != other.tensors.len() {
            let expected = format!("the names of {}", kinds[0]);
            return Err(Error::value(op, "state", format!("other names of {kind}"), expected));
        }
    }
    Ok((named, steps))
}
