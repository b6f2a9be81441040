use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::checkpoint::StateDict;
use crate::data::loader::{Loader, Options};
use crate::data::{Batch, Image, Source};
use crate::nn::Module;
use crate::ops::adamw::Hyper;
use crate::optim::schedule::Cosine;
use crate::optim::{AdamW, Rules};
use crate::recipes::mae::Pretrain;
use crate::recipes::{Found, Task};
use crate::train::stepper::tests::task;
use crate::train::{Clock, Metrics, Outcome, Plan, RunDir, run};
use crate::{DType, Device, Grads, Tape, Tensor};

fn bad() -> Result<u8> {
    Err(Error::NonFinite { step: 0, tensor: "loss".into(), value: "NaN".into(), hint: String::new() })
}

#[test]
fn so_many_in_a_row_and_then_the_error() {
    let mut skips = Skips::default();
    let mut pass = |updated| skips.pass(updated, 1, 2);
    assert_eq!(pass(Ok(7)).unwrap(), Some(7));
    assert_eq!(pass(bad()).unwrap(), None);
    assert_eq!(pass(bad()).unwrap(), None);
    assert_eq!(pass(Ok(8)).unwrap(), Some(8));
    assert_eq!(pass(bad()).unwrap(), None);
    assert_eq!(pass(bad()).unwrap(), None);
    assert!(matches!(pass(bad()), Err(Error::NonFinite { .. })));
    assert_eq!(skips.all, 4);
}

#[test]
fn other_errors_and_runs_that_allow_none_are_not_touched() {
    let mut skips = Skips::default();
    assert!(matches!(skips.pass(bad(), 1, 0), Err(Error::NonFinite { .. })));
    let other: Result<u8> = Err(Error::Training("odd".into()));
    assert_eq!(skips.pass(other, 1, 5).unwrap_err().to_string(), Error::Training("odd".into()).to_string());
    assert_eq!(skips.all, 0);
}

/// Twelve images of one colour each.
struct Colours;

impl Source for Colours {
    fn len(&self) -> usize {
        12
    }

    fn label(&self, _: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        format!("{index}").into()
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        Ok(Arc::new(Image::filled(12, 8, [20 * index as u8, 7, 99])))
    }
}

/// Steps in which the loss, and in which a gradient is not finite.
struct Spoiled {
    task: Pretrain,
    loss: &'static [usize],
    gradient: &'static [usize],
    /// Weights before each step.
    seen: Vec<Vec<f64>>,
}

impl Task for Spoiled {
    type Value = u8;
    type Inputs = <Pretrain as Task>::Inputs;

    fn module(&mut self) -> &mut dyn Module {
        self.task.module()
    }

    fn weights(&self) -> Result<StateDict> {
        self.task.weights()
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<Self::Inputs> {
        self.task.inputs(batch)
    }

    fn micro_step(&mut self, inputs: &Self::Inputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let at = self.seen.len();
        self.seen.push(self.weights()?.iter().flat_map(|(_, t)| t.to_f64().unwrap()).collect());
        let found = self.task.micro_step(inputs, scale, grads)?;
        if self.gradient.contains(&at) {
            let p = self.task.module().params().into_iter().find(|p| p.name() == "cls_token").unwrap();
            let bad = Tensor::full(p.master.shape().clone(), f32::INFINITY, &Device::Cpu)?;
            grads.add(Tape::new().param(p).slot(), bad)?;
        }
        let nan = Tensor::full([1], f32::NAN, &Device::Cpu)?;
        Ok(if self.loss.contains(&at) { nan.into() } else { found })
    }
}

/// An epoch of six steps on the CPU: what became of it, weights before each step, steps of the optimizer, the log.
fn epoch(
    loss: &'static [usize],
    gradient: &'static [usize],
    skip_non_finite: u64,
) -> (Result<Outcome>, Vec<Vec<f64>>, u64, Vec<serde_json::Value>) {
    let plan = Plan {
        epochs: 1,
        accum_iter: 1,
        batch_size: 2,
        unit: "images",
        schedule: Cosine { lr: 1e-2, min_lr: 0.0, warmup_epochs: 0.0, epochs: 1.0 },
        clock: Clock::Epochs,
        clip_grad: None,
        skip_non_finite,
        save_every: 100,
        log_every: 1,
        seed: 0,
        strict: true,
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let run_dir =
        RunDir::create(&out, &std::collections::BTreeMap::<String, String>::new(), "colours".into(), 1).unwrap();
    let transform = |image: &Image, _: &mut crate::data::Stream| Ok(image.to_planes());
    let mut loader = Loader::new(Arc::new(Colours), transform, Options::training(2, 0)).unwrap();
    let mut spoiled = Spoiled { task: task(DType::F32, &Device::Cpu), loss, gradient, seen: vec![] };
    let mut optimizer = AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05));
    let outcome = run(&mut spoiled, &mut optimizer, &mut loader, &plan, &run_dir, 0, &mut |_, _| Ok(vec![]));
    let log = std::fs::read_to_string(out.join(Metrics::FILE)).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (outcome, spoiled.seen, optimizer.steps(), lines)
}

#[test]
fn skipped_updates_change_nothing_and_are_counted() {
    let (outcome, weights, steps, log) = epoch(&[1], &[2, 4], 2);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(steps, 3);
    let kept: Vec<bool> = weights.windows(2).map(|w| w[0] == w[1]).collect();
    assert_eq!(kept, [false, true, true, false, true]);
    let skipped: Vec<f64> = log.iter().map(|line| line["skipped_steps"].as_f64().unwrap()).collect();
    assert_eq!(skipped, [0.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    let losses: Vec<bool> = log.iter().map(|line| line["loss"].is_f64()).collect();
    assert_eq!(losses, [true, false, false, true, false, true]);
}

#[test]
fn too_many_in_a_row_end_the_run() {
    let (outcome, weights, steps, log) = epoch(&[1, 3], &[2], 2);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 3, tensor, .. } if tensor == "loss"), "{error}");
    assert_eq!((weights.len(), steps, log.len()), (4, 1, 3));
    let (outcome, _, _, log) = epoch(&[], &[1], 0);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("gradient of cls_token is inf"), "{error}");
    assert!(log[0].get("skipped_steps").is_none(), "a run that allows none does not count them");
}
