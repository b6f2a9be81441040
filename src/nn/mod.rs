//! Layers: parameters with the names they have in upstream checkpoints, and forwards made of [`ops`](crate::ops).

mod block;
mod builder;
mod conv;
pub mod hiera;
mod layers;
pub mod pos_embed;
#[cfg(test)]
mod tests;
pub mod vit;

pub use block::{Attention, Block, Drops, Mlp, PerSize, Sequences, Style, UniformSequences};
pub use builder::{Builder, Init};
pub use conv::{Activation, Conv2d, ConvTranspose2d, Perceptron};
pub use layers::{LayerNorm, Linear};

use crate::Param;

/// Anything that holds parameters.
pub trait Module {
    /// Calls `f` for each parameter, in a fixed order.
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param));
    /// Calls `f` for each parameter for writing, in the same order.
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param));

    /// All parameters.
    fn params(&self) -> Vec<&Param> {
        let mut all = Vec::new();
        self.visit(&mut |p| all.push(p));
        all
    }

    /// All parameters for writing.
    fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut all = Vec::new();
        self.visit_mut(&mut |p| all.push(p));
        all
    }

    /// Number of trainable values.
    fn trainable(&self) -> usize {
        let mut count = 0;
        self.visit(&mut |p| count += if p.trainable { p.master.numel() } else { 0 });
        count
    }
}

impl Module for Param {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        f(self);
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        f(self);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        self.iter().for_each(|m| m.visit(f));
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        self.iter_mut().for_each(|m| m.visit_mut(f));
    }
}

impl<M: Module> Module for Option<M> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        self.iter().for_each(|m| m.visit(f));
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        self.iter_mut().for_each(|m| m.visit_mut(f));
    }
}

/// Implements [`Module`] for a struct by visiting the listed fields in order.
#[macro_export]
#[doc(hidden)]
macro_rules! module {
    ($t:ty { $($field:ident),* $(,)? }) => {
        impl $crate::nn::Module for $t {
            fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a $crate::Param)) {
                $( $crate::nn::Module::visit(&self.$field, f); )*
            }
            fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut $crate::Param)) {
                $( $crate::nn::Module::visit_mut(&mut self.$field, f); )*
            }
        }
    };
}
