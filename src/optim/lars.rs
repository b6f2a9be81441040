//! LARS, or gradient descent with momentum, over the parameters of a model.

use super::momentum::{Item, Momentum, Rule};
use crate::ops::lars::{self, Hyper, lars};
use crate::ops::multi_tensor::Workspace;
use crate::{Result, Tensor};

/// LARS with the momentum of each trainable parameter by name. The equations are in [`ops::lars`](crate::ops::lars).
pub type Lars = Momentum<Hyper>;

impl Rule for Hyper {
    const OP: &'static str = "lars";
    const KIND: &'static str = "mu";

    fn step(self, items: Vec<Item>, lr: &Tensor, norm: Option<&Tensor>, work: &mut Workspace) -> Result<()> {
        let item = |Item { w, m: mu, g, compute, lr_scale, weight_decay }| lars::Item {
            w,
            mu,
            g,
            compute,
            lr_scale,
            weight_decay,
        };
        lars(&mut items.into_iter().map(item).collect::<Vec<_>>(), self, lr, norm, work)
    }
}
