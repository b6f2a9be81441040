//! Adafactor over the parameters of a model.

use super::common::{Common, StepStats, gradients, trainable};
use super::state::{Named, load, save_step};
use super::{Group, Optimizer, Rates, Rules};
use crate::ops::adafactor::{Hyper, Item, Second, View, adafactor, scalars};
use crate::ops::multi_tensor::Workspace;
use crate::{Grads, Param, Result, Shape, Tensor};

const OP: &str = "adafactor";
const KINDS: [&str; 3] = ["exp_avg", "exp_avg_sq_row", "exp_avg_sq_col"];

/// Which axes of a parameter's second moment are factored; `None` to keep all of it.
pub type Views = Box<dyn Fn(&str, &[usize]) -> Option<View> + Send>;

/// Adafactor with the state of each trainable parameter by name. The equations are in
/// [`ops::adafactor`](crate::ops::adafactor).
pub struct Adafactor {
    hyper: Hyper,
    common: Common,
    views: Views,
    exp_avg: Named,
    rows: Named,
    cols: Named,
    work: Workspace,
}

impl Adafactor {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay, `views`
    /// its matrices.
    pub fn new(hyper: Hyper, rules: Rules, views: Views) -> Self {
        let [exp_avg, rows, cols] = std::array::from_fn(|_| Named::default());
        Self { hyper, common: Common::new(OP, rules), views, exp_avg, rows, cols, work: Workspace::new() }
    }
}

impl Optimizer for Adafactor {
    fn prepare(&mut self, params: &mut [&mut Param], rates: &Rates) -> Result<bool> {
        self.common.refuse_groups()?;
        let (params, steps) = (trainable(params)?, self.common.steps);
        let view = |p: &Param| (self.views)(p.name(), p.master.shape());
        self.exp_avg.prepare(OP, KINDS[0], &params, steps)?;
        // Without a view the rows are the whole second moment, and there are no columns.
        let rows = |p: &Param| view(p).map_or_else(|| p.master.shape().clone(), |v| [v.groups, v.rows].into());
        self.rows.prepare_shaped(OP, KINDS[1], &params, steps, rows)?;
        let cols = |p: &Param| view(p).map_or_else(|| Shape::from([0]), |v| [v.groups, v.cols].into());
        self.cols.prepare_shaped(OP, KINDS[2], &params, steps, cols)?;
        let numbers = scalars(self.hyper, rates.lr, steps + 1);
        self.common.prepare(&params, &numbers, rates.decay, rates.freeze_last_layer)
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let mut params = trainable(params)?;
        let gradients = gradients(&params, grads)?;
        if params.is_empty() {
            return Ok(());
        }
        self.common.launch_norm(&params, &gradients, clip)?;
        let state = self.exp_avg.by_name().zip(self.rows.by_name().zip(self.cols.by_name()));
        let mut items = Vec::with_capacity(params.len());
        for ((p, g), (m, (rows, cols))) in params.iter_mut().zip(gradients).zip(state) {
            let Group { lr_scale, weight_decay } = self.common.group(p);
            let second = match (self.views)(p.name(), p.master.shape()) {
                Some(view) => Second::Factored { rows, cols, view },
                None => Second::Full(rows),
            };
            let Param { master: w, compute, .. } = &mut **p;
            items.push(Item { w, m, second, g, compute: compute.as_mut(), lr_scale, weight_decay });
        }
        adafactor(&mut items, self.hyper, self.common.scalars()?, self.common.norm(), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.common.finish(params, grads)
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let kinds = self.exp_avg.save(KINDS[0]).chain(self.rows.save(KINDS[1])).chain(self.cols.save(KINDS[2]));
        Ok(kinds.chain([save_step(self.common.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([exp_avg, rows, cols], steps) = load(OP, KINDS, state)?;
        (self.exp_avg, self.rows, self.cols, self.common.steps) = (exp_avg, rows, cols, steps);
        Ok(())
    }
}
