//! Lion over the parameters of a model.

use super::momentum::{Item, Momentum, Rule};
use crate::ops::lion::{self, Hyper, lion};
use crate::ops::multi_tensor::Workspace;
use crate::{Result, Tensor};

/// Lion with the mean gradient of each trainable parameter by name. The equations are in [`ops::lion`](crate::ops::lion).
pub type Lion = Momentum<Hyper>;

impl Rule for Hyper {
    const OP: &'static str = "lion";
    const KIND: &'static str = "exp_avg";

    fn step(self, items: Vec<Item>, lr: &Tensor, norm: Option<&Tensor>, work: &mut Workspace) -> Result<()> {
        let item =
            |Item { w, m, g, compute, lr_scale, weight_decay }| lion::Item { w, m, g, compute, lr_scale, weight_decay };
        lion(&mut items.into_iter().map(item).collect::<Vec<_>>(), self, lr, norm, work)
    }
}
