//! What the optimizers have beside their state: rules and rates, the parameters of a step, the norm of the gradients.

use std::collections::HashMap;

use super::{Group, Rules};
use crate::ops::grad_norm::{grad_norm, grad_norms};
use crate::ops::multi_tensor::{Scalars, Workspace};
use crate::{Error, Grads, Param, Result, Tensor};

/// What a step found.
#[derive(Clone, Debug, PartialEq)]
pub struct StepStats {
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Smallest factor that gradients were scaled by; 1 where nothing was clipped.
    pub clip_factor: f64,
    /// Norms of the [groups](Rules::clip_groups) that were clipped each on its own, under the names for the log. Those
    /// without a parameter are left out.
    pub groups: Vec<(&'static str, f64)>,
}

/// The part of an optimizer that does not depend on its equations.
pub(super) struct Common {
    op: &'static str,
    pub rules: Rules,
    /// Steps done.
    pub steps: u64,
    /// Factor of the decay and frozen last layer, as the tables of the launches have them.
    tables: (f64, bool),
    scalars: Scalars,
    norm: Option<Tensor>,
    work: Workspace,
}

impl Common {
    pub fn new(op: &'static str, rules: Rules) -> Self {
        let (scalars, work) = (Scalars::new(), Workspace::new());
        Self { op, rules, steps: 0, tables: (1.0, false), scalars, norm: None, work }
    }

    /// An error if the rules ask for clipping by group, averages, or steps that leave parameters out.
    pub fn refuse_groups(&self) -> Result<()> {
        let rules = &self.rules;
        let unknown = |field, given: String| Err(Error::value(self.op, field, given, "none, which is for adamw"));
        match (rules.clip_groups.first(), rules.average, rules.optional.first()) {
            (Some((start, _)), _, _) => unknown("rules.clip_groups", format!("`{start}`")),
            (_, Some((_, start)), _) => unknown("rules.average", format!("`{start}`")),
            (_, _, Some(pattern)) => unknown("rules.optional", format!("`{pattern}`")),
            _ => Ok(()),
        }
    }

    /// The gradients of `params`, in their order; `None` for those that this step leaves out.
    ///
    /// # Errors
    /// [`Error::MissingGradients`] with the names of those that the [rules](Rules::optional) do not let a step leave
    /// out; of all, if none has a gradient.
    pub fn gradients<'a>(&self, params: &[&mut Param], grads: &'a Grads) -> Result<Vec<Option<&'a Tensor>>> {
        let found: Vec<Option<&Tensor>> = params.iter().map(|p| grads.get(p)).collect();
        let none = found.iter().all(Option::is_none);
        grads.check_complete(params.iter().map(|p| &**p).filter(|p| none || !self.rules.is_optional(p.name())))?;
        Ok(found)
    }

    /// The numbers of a step on the device of `params`: `scalars` are read from there, `decay` and a frozen last layer are
    /// in the tables of the launches. Gives whether those are as before.
    pub fn prepare(&mut self, params: &[&mut Param], scalars: &[f64], decay: f64, frozen: bool) -> Result<bool> {
        if let Some(first) = params.first() {
            self.scalars.set(scalars, first.master.dtype(), first.master.device())?;
        }
        Ok(std::mem::replace(&mut self.tables, (decay, frozen)) == (decay, frozen))
    }

    /// Numbers of this step, as they were set last.
    pub fn scalars(&self) -> Result<&Tensor> {
        self.scalars.get(self.op)
    }

    /// Factors of a parameter in this step.
    pub fn group(&self, p: &Param) -> Group {
        let ((decay, frozen), group) = (self.tables, self.rules.group(p.name(), p.master.shape()));
        let lr_scale = if frozen && self.rules.is_last_layer(p.name()) { 0.0 } else { group.lr_scale };
        Group { lr_scale, weight_decay: group.weight_decay * decay }
    }

    /// Starts the computation of the norms; nothing waits for them.
    pub fn launch_norm(&mut self, params: &[&mut Param], grads: &[&Tensor], clip: Option<f64>) -> Result<()> {
        let Some(Param { master, .. }) = params.first() else { return Ok(()) };
        let (dtype, device) = (master.dtype(), master.device());
        let groups = self.rules.clip_groups.len();
        let held = self.norm.take().filter(|t| t.dtype() == dtype && t.device() == device);
        let out = match (held, groups) {
            (Some(out), _) => Ok(out),
            (None, 0) => Tensor::uninit([2], dtype, device),
            (None, _) => Tensor::uninit([groups + 1, 2], dtype, device), // the last is of those in none
        };
        let out = self.norm.insert(out?);
        if groups == 0 {
            return grad_norm(grads, clip, out, &mut self.work);
        }
        let groups: Vec<usize> = params.iter().map(|p| self.rules.clip_group(p.name())).collect();
        grad_norms(grads, &groups, clip, out, &mut self.work)
    }

    /// Norms and factors of this step.
    pub fn norm(&self) -> Option<&Tensor> {
        self.norm.as_ref()
    }

    /// Ends a step: waits for the norms. One that is not finite is an error that names the tensor at fault; kernels that
    /// were given the [norms](Self::norm) have checked them and changed nothing then.
    pub fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        let params = trainable(params)?;
        let grads = self.gradients(&params, grads)?;
        let values = match (&self.norm, params.is_empty()) {
            (Some(norm), false) => norm.to_f64()?,
            _ => return Ok(StepStats { grad_norm: 0.0, clip_factor: 1.0, groups: vec![] }),
        };
        let norms: Vec<f64> = values.iter().step_by(2).copied().collect();
        // The root of the square of a single one could differ from it.
        let grad_norm = if let [norm] = norms[..] { norm } else { norms.iter().map(|x| x * x).sum::<f64>().sqrt() };
        if !norms.iter().all(|x| x.is_finite()) {
            return Err(at_fault(self.steps + 1, &params, &grads)?
                .unwrap_or_else(|| non_finite(self.steps + 1, "gradient norm".into(), grad_norm)));
        }
        self.steps += 1;
        let used = |start: &str| params.iter().any(|p| p.name().starts_with(start));
        let groups = self.rules.clip_groups.iter().zip(norms).filter(|((start, _), _)| used(start));
        let groups = groups.map(|(&(_, name), norm)| (name, norm)).collect();
        let clip_factor = values.iter().skip(1).step_by(2).fold(1.0, |least: f64, &factor| least.min(factor));
        Ok(StepStats { grad_norm, clip_factor, groups })
    }
}

/// The first gradient that is not finite.
fn at_fault(step: u64, params: &[&mut Param], grads: &[Option<&Tensor>]) -> Result<Option<Error>> {
    for (p, g) in params.iter().zip(grads).filter_map(|(p, g)| Some((p, (*g)?))) {
        if let Some(x) = g.to_f64()?.into_iter().find(|x| !x.is_finite()) {
            return Ok(Some(non_finite(step, format!("gradient of {}", p.name()), x)));
        }
    }
    Ok(None)
}

fn non_finite(step: u64, tensor: String, value: f64) -> Error {
    let hint = "nothing was changed; try a lower learning rate, a longer warm-up or gradient clipping".into();
    Error::NonFinite { step, tensor, value: value.to_string(), hint }
}

/// The gradients of `params`, in their order.
///
/// # Errors
/// [`Error::MissingGradients`] with the names of those that have none.
pub(super) fn gradients<'a>(params: &[&mut Param], grads: &'a Grads) -> Result<Vec<&'a Tensor>> {
    grads.check_complete(params.iter().map(|p| &**p))?;
    Ok(params.iter().filter_map(|p| grads.get(p)).collect())
}

/// Copies a tensor that others hold, so that it can be written and theirs stays as it is.
pub(super) fn unshare(t: &mut Tensor) -> Result<()> {
    if t.storage_mut("optimizer").is_err() {
        t.device().refuse_recording("copies a shared tensor before it changes it")?; // a replay would undo the change
        *t = t.deep_clone()?;
    }
    Ok(())
}

fn unshare_param(p: &mut Param) -> Result<()> {
    unshare(&mut p.master)?;
    p.compute.as_mut().map_or(Ok(()), unshare)
}

/// The parameters that are trained, writable, ordered by name.
pub(super) fn trainable<'a>(params: &'a mut [&mut Param]) -> Result<Vec<&'a mut Param>> {
    Ok(with_averages("optimizer", params, None)?.0)
}

/// Parameters, and of each the one that follows it, if any does.
pub(super) type Pairs<'a> = (Vec<&'a mut Param>, Vec<Option<&'a mut Param>>);

/// The parameters that are trained, writable, ordered by name, with the ones that follow them by the
/// [rule](Rules::average).
///
/// # Errors
/// When one that should follow is missing, trained itself, or of another shape.
pub(super) fn with_averages<'a>(
    op: &'static str,
    params: &'a mut [&mut Param],
    average: Option<(&str, &str)>,
) -> Result<Pairs<'a>> {
    let (mut chosen, fixed): (Vec<&mut Param>, Vec<&mut Param>) =
        params.iter_mut().map(|p| &mut **p).partition(|p| p.trainable);
    chosen.sort_by(|a, b| a.name().cmp(b.name()));
    let mut fixed: HashMap<String, &mut Param> = fixed.into_iter().map(|p| (p.name().to_string(), p)).collect();
    let mut averages = Vec::with_capacity(chosen.len());
    for p in &mut chosen {
        unshare_param(p)?;
        let name = average.and_then(|(from, to)| Some(format!("{to}{}", p.name().strip_prefix(from)?)));
        let Some(name) = name else {
            averages.push(None);
            continue;
        };
        let Some(follower) = fixed.remove(&name) else {
            let expected = format!("one that is not trained, as average of `{}`", p.name());
            return Err(Error::value(op, "params", format!("no `{name}`"), expected));
        };
        if follower.master.shape() != p.master.shape() {
            return Err(Error::shape(op, name, follower.master.shape(), format!("{}", p.master.shape())));
        }
        unshare_param(follower)?;
        averages.push(Some(follower));
    }
    Ok((chosen, averages))
}
