//! AdamW over the parameters of a model.

use std::collections::BTreeMap;

use super::common::{Common, StepStats, trainable, with_averages};
use super::state::{Named, count, load, save_count, save_step};
use super::{Group, Optimizer, Rates, Rules};
use crate::ops::adamw::{Hyper, Item, Step, Teacher, adamw, correction, scalars};
use crate::ops::multi_tensor::Workspace;
use crate::{Error, Grads, Param, Result, Tensor};

const OP: &str = "adamw";
const KINDS: [&str; 2] = ["exp_avg", "exp_avg_sq"];
/// What the counts of steps without a parameter are called in a saved state.
const MISSED: &str = "missed.";

/// AdamW with the state of each trainable parameter by name, and averages of the weights where the rules have them. The
/// equations are in [`ops::adamw`](crate::ops::adamw).
pub struct AdamW {
    hyper: Hyper,
    common: Common,
    exp_avg: Named,
    exp_avg_sq: Named,
    /// Steps that left a parameter out, by its name; of the others there is nothing here.
    missed: BTreeMap<String, u64>,
    work: Workspace,
}

impl AdamW {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(hyper: Hyper, rules: Rules) -> Self {
        let [exp_avg, exp_avg_sq] = std::array::from_fn(|_| Named::default());
        Self {
            hyper,
            common: Common::new(OP, rules),
            exp_avg,
            exp_avg_sq,
            missed: BTreeMap::new(),
            work: Workspace::new(),
        }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.common.steps
    }
}

fn teacher(Param { master: average, compute, .. }: &mut Param) -> Teacher<'_> {
    Teacher { average, compute: compute.as_mut() }
}

impl Optimizer for AdamW {
    fn prepare(&mut self, params: &mut [&mut Param], rates: &Rates) -> Result<bool> {
        if let (Some(pattern), Some(_)) = (self.common.rules.optional.first(), self.common.rules.average) {
            // An average would have to follow what is left out, too.
            return Err(Error::value(OP, "rules.optional", format!("`{pattern}`"), "none beside rules.average"));
        }
        let (params, _) = with_averages(OP, params, self.common.rules.average)?;
        let t = self.common.steps + 1;
        self.exp_avg.prepare(OP, KINDS[0], &params, self.common.steps)?;
        self.exp_avg_sq.prepare(OP, KINDS[1], &params, self.common.steps)?;
        let &Rates { lr, decay, momentum, freeze_last_layer } = rates;
        let numbers = scalars(self.hyper, Step { lr, t, decay, momentum });
        let same = self.common.prepare(&params, &numbers, 1.0, freeze_last_layer)?;
        // Which gradients there are, and the corrections of what was left out before, are in the tables of the
        // launches.
        Ok(same && self.common.rules.optional.is_empty())
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let (params, averages) = with_averages(OP, params, self.common.rules.average)?;
        let gradients = self.common.gradients(&params, grads)?;
        if params.is_empty() {
            return Ok(());
        }
        let state = self.exp_avg.by_name().zip(self.exp_avg_sq.by_name());
        let rest = gradients.into_iter().zip(averages).zip(state);
        let present =
            params.into_iter().zip(rest).filter_map(|(p, ((g, average), state))| Some((p, (g?, average, state))));
        let (mut params, rest): (Vec<_>, Vec<_>) = present.unzip();
        let gradients: Vec<&Tensor> = rest.iter().map(|(g, ..)| *g).collect();
        self.common.launch_norm(&params, &gradients, clip)?;
        let (t, mut items) = (self.common.steps + 1, Vec::with_capacity(params.len()));
        for (p, (g, average, (m, v))) in params.iter_mut().zip(rest) {
            let Group { lr_scale, weight_decay } = self.common.group(p);
            let group = self.common.rules.clip_group(p.name());
            let missed = self.missed.get(p.name());
            let correction = missed.map_or([1.0; 2], |missed| correction(self.hyper, t, t - missed));
            let Param { master: w, compute, .. } = &mut **p;
            let (compute, teacher) = (compute.as_mut(), average.map(teacher));
            items.push(Item { w, m, v, g, compute, lr_scale, weight_decay, teacher, group, correction });
        }
        adamw(&mut items, self.hyper, self.common.scalars()?, self.common.norm(), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        let stats = self.common.finish(params, grads)?;
        for p in trainable(params)?.iter().filter(|p| grads.get(p).is_none()) {
            *self.missed.entry(p.name().into()).or_default() += 1;
        }
        Ok(stats)
    }

    /// The state as named tensors: `exp_avg.<name>`, `exp_avg_sq.<name>`, `step`, and `missed.<name>`, the number of
    /// steps that left a parameter out, if any did.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let moments = self.exp_avg.save(KINDS[0]).chain(self.exp_avg_sq.save(KINDS[1]));
        let missed = self.missed.iter().map(|(name, missed)| save_count(format!("{MISSED}{name}"), *missed));
        Ok(moments.chain(missed.collect::<Result<Vec<_>>>()?).chain([save_step(self.common.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let (counts, state): (Vec<_>, Vec<_>) = state.into_iter().partition(|(name, _)| name.starts_with(MISSED));
        let ([exp_avg, exp_avg_sq], steps) = load(OP, KINDS, state)?;
        let mut missed = BTreeMap::new();
        for (full, tensor) in counts {
            let (number, name) = (count(OP, &full, Some(&tensor))?, &full[MISSED.len()..]);
            if number > steps || !exp_avg.has(name) {
                let expected = format!("at most {steps}, of a parameter with moments");
                return Err(Error::value(OP, full.clone(), number, expected));
            }
            missed.insert(name.to_string(), number);
        }
        (self.exp_avg, self.exp_avg_sq, self.missed, self.common.steps) = (exp_avg, exp_avg_sq, missed, steps);
        Ok(())
    }
}
