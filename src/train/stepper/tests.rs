use clap::{Args, FromArgMatches};

use super::*;
use crate::DType;
use crate::checkpoint::StateDict;
use crate::data::Batch;
use crate::nn::Module;
use crate::ops::adamw::Hyper;
use crate::ops::lion;
use crate::optim::{AdamW, Lion, Rules};
use crate::recipes::mae::{Config, Pretrain, Sizes};
use crate::testing::devices;

/// A model of a few hundred weights.
fn sizes() -> Sizes {
    Sizes {
        image_size: [8, 12],
        patch_size: 4,
        in_chans: 3,
        embed_dim: 16,
        depth: 1,
        num_heads: 2,
        hidden: 24,
        decoder_embed_dim: 8,
        decoder_depth: 1,
        decoder_num_heads: 1,
        decoder_hidden: 16,
        eps: 1e-6,
    }
}

fn batch(step: u64, count: usize) -> Batch<u8> {
    let images = (0..count as u64 * 3 * 8 * 12).map(|i| ((i * 37 + step * 101) % 251) as u8).collect();
    let (labels, indices) = (vec![0; count], vec![0; count]);
    Batch { images, labels, captions: vec![], indices, epoch: 0, step_in_epoch: step }
}

pub(in crate::train) fn task(dtype: DType, device: &Device) -> Pretrain {
    let flags = Config::augment_args(clap::Command::new("pretrain").arg(clap::Arg::new("resume").long("resume")))
        .get_matches_from(["pretrain", "images"]);
    let config = Config::from_arg_matches(&flags).unwrap();
    Pretrain::new(&config, sizes(), device, dtype, vec![]).unwrap()
}

/// Reads a value back in every micro-step from the given one on, which nobody can record.
struct ReadsBack(Pretrain, u64);

impl Task for ReadsBack {
    type Value = u8;
    type Inputs = <Pretrain as Task>::Inputs;

    fn module(&mut self) -> &mut dyn Module {
        self.0.module()
    }

    fn weights(&self) -> Result<StateDict> {
        self.0.weights()
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<Self::Inputs> {
        self.0.inputs(batch)
    }

    fn micro_step(&mut self, inputs: &Self::Inputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let found = self.0.micro_step(inputs, scale, grads)?;
        self.1 = self.1.saturating_sub(1);
        if self.1 == 0 {
            assert!(found.loss.item()?.is_finite());
        }
        Ok(found)
    }
}

/// AdamW with a last layer that rests, and Lion, whose decay is in the tables of its launches.
fn adamw() -> Box<dyn Optimizer> {
    let rules = Rules { last_layer: Some("decoder_pred.*"), ..Rules::pretraining(0.05) };
    Box::new(AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, rules))
}

fn lion() -> Box<dyn Optimizer> {
    Box::new(Lion::new(lion::Hyper { beta1: 0.9, beta2: 0.99 }, Rules::pretraining(0.05)))
}

/// Some updates.
#[derive(Clone, Copy)]
struct Run {
    /// Micro-steps of an update.
    accum: u64,
    /// Whether clones of the weights are held during one of them.
    keep: bool,
    /// Micro-step from which on there is one image less.
    smaller_from: u64,
    optimizer: fn() -> Box<dyn Optimizer>,
}

impl Run {
    fn new(accum: u64, keep: bool) -> Self {
        Self { accum, keep, smaller_from: u64::MAX, optimizer: adamw }
    }

    /// Losses, norms and weights; every rate changes from update to update.
    fn train<T: Task<Value = u8>>(&self, mut task: T, mode: Mode) -> (Vec<u64>, Vec<f64>, Mode) {
        let device = task.module().params()[0].master.device().clone();
        let mut optimizer = (self.optimizer)();
        let mut stepper = Stepper::new(&device, 1.0 / self.accum as f64, Some(0.1));
        stepper.mode = mode;
        let (mut numbers, mut held) = (vec![], None);
        for step in 0..6 {
            stepper.begin(&mut task);
            for i in 0..self.accum {
                let at = step * self.accum + i;
                let inputs = task.inputs(&batch(at, if at < self.smaller_from { 2 } else { 1 })).unwrap();
                numbers.push(stepper.micro_step(&mut task, inputs, i).unwrap().loss.to_bits());
            }
            let x = (step + 1) as f64;
            let rates = Rates { lr: 1e-2 * x, decay: 0.5 * x, momentum: 1.0, freeze_last_layer: step < 3 };
            let stats = stepper.update(&mut task, optimizer.as_mut(), &rates).unwrap();
            numbers.push(stats.grad_norm.to_bits());
            held = (self.keep && step == 3).then(|| task.weights().unwrap());
        }
        drop(held);
        let weights = task.weights().unwrap().iter().flat_map(|(_, t)| t.to_f64().unwrap()).collect();
        (numbers, weights, stepper.mode)
    }
}

#[test]
fn a_recorded_step_is_the_step() {
    let by_lion = Run { optimizer: lion, ..Run::new(1, false) };
    let cases = [
        (DType::F32, Run::new(1, false)),
        (DType::BF16, Run::new(3, false)),
        (DType::F32, Run::new(2, true)),
        (DType::F32, by_lion),
    ];
    for (device, (dtype, run)) in devices().iter().flat_map(|device| cases.map(|case| (device, case))) {
        let (numbers, weights, mode) = run.train(task(dtype, device), Mode::Warm);
        let (expected, eager, _) = run.train(task(dtype, device), Mode::Eager);
        assert_eq!(mode, Mode::Graph);
        assert_eq!(numbers, expected);
        assert!(weights == eager);
    }
}

#[test]
fn what_cannot_be_recorded_runs_launch_by_launch() {
    let run = Run::new(2, true);
    // From the first micro-step on, and from the second of the update that is recorded.
    for (device, from) in devices().iter().flat_map(|device| [1, 4].map(|from| (device, from))) {
        let (numbers, weights, mode) = run.train(ReadsBack(task(DType::F32, device), from), Mode::Warm);
        let (expected, eager, _) = run.train(task(DType::F32, device), Mode::Eager);
        assert_eq!(mode, Mode::Eager);
        assert_eq!(numbers, expected);
        assert!(weights == eager);
    }
}

#[test]
fn inputs_of_other_shapes_run_launch_by_launch() {
    // From the first micro-step of an update on, from the second, and from that of the update that is recorded.
    for (device, from) in devices().iter().flat_map(|device| [6, 7, 3].map(|from| (device, from))) {
        let run = Run { smaller_from: from, ..Run::new(2, false) };
        let (numbers, weights, mode) = run.train(task(DType::F32, device), Mode::Warm);
        let (expected, eager, _) = run.train(task(DType::F32, device), Mode::Eager);
        assert_eq!(mode, Mode::Eager);
        assert_eq!(numbers, expected);
        assert!(weights == eager);
    }
}
