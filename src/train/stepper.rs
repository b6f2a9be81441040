//! One update: launched piece by piece, or recorded once and run again.

use crate::device::graph::Graph;
use crate::optim::{Optimizer, StepStats};
use crate::recipes::{Found, Inputs, Task};
use crate::{Device, Error, Grads, Param, Result, Tensor};

/// Runs the micro-steps and updates of a task. On the CPU launch by launch. On the other devices the first update runs
/// so (kernels are loaded, products planned, buffers made), the second is recorded, later ones replay the recording
/// with other inputs. What cannot be recorded goes on launch by launch, and the log says why.
pub(super) struct Stepper<I> {
    device: Device,
    /// Of the gradient of each micro-step; recorded with it.
    scale: f64,
    /// Largest gradient norm; recorded with the update.
    clip: Option<f64>,
    mode: Mode,
    grads: Grads,
    /// A micro-step that begins a gradient, and one that adds to it: other kernels.
    micro: [Option<Micro<I>>; 2],
    update: Option<Graph>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Launch by launch for good.
    Eager,
    /// Launch by launch once, to be recorded after that.
    Warm,
    /// Recorded, or to be recorded now.
    Graph,
}

/// A recorded micro-step. The inputs are those it reads, what it finds is where it writes it.
struct Micro<I> {
    graph: Graph,
    inputs: I,
    found: Found,
}

/// What a micro-step found, read back.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub loss: f64,
    pub statistics: Vec<f64>,
}

impl Measured {
    pub fn read(found: &Found) -> Result<Self> {
        let statistics = found.statistics.as_ref().map_or(Ok(vec![]), Tensor::to_f64)?;
        Ok(Self { loss: found.loss.item()?, statistics })
    }
}

impl<I: Inputs> Stepper<I> {
    pub fn new(device: &Device, scale: f64, clip: Option<f64>) -> Self {
        let mode = if *device == Device::Cpu { Mode::Eager } else { Mode::Warm };
        Self { device: device.clone(), scale, clip, mode, grads: Grads::new(), micro: [None, None], update: None }
    }

    /// Launch by launch for good.
    #[cfg(test)]
    pub fn eager(self) -> Self {
        Self { mode: Mode::Eager, ..self }
    }

    /// Whether steps are recorded.
    #[cfg(test)]
    pub fn records(&self) -> bool {
        self.mode == Mode::Graph
    }

    /// Before the first micro-step of an update.
    pub fn begin<T: Task<Inputs = I>>(&mut self, task: &mut T) {
        let shared = |p: &&Param| p.master.is_shared() || p.compute.as_ref().is_some_and(Tensor::is_shared);
        let stale = self.micro.iter().flatten().map(|m| &m.graph).chain(&self.update).any(Graph::is_stale);
        // Of a shared weight the update writes a copy, at another address.
        if self.mode == Mode::Graph && (stale || task.module().params().iter().any(shared)) {
            (self.micro, self.update, self.mode) = ([None, None], None, Mode::Warm);
        }
        if self.micro[0].is_none() {
            self.grads.clear();
        }
    }

    /// Forward and backward of micro-batch `index` of an update.
    pub fn micro_step<T: Task<Inputs = I>>(&mut self, task: &mut T, mut inputs: I, index: u64) -> Result<Measured> {
        let which = usize::from(index > 0);
        if let Some(recorded) = &mut self.micro[which] {
            for (held, new) in recorded.inputs.tensors().into_iter().zip(inputs.tensors()) {
                held.copy_from(new)?;
            }
            recorded.graph.replay()?;
            return Measured::read(&recorded.found);
        }
        if self.mode == Mode::Graph {
            let (scale, grads) = (self.scale, &mut self.grads);
            match usable(self.device.record(|| task.micro_step(&inputs, scale, grads))) {
                Ok((found, mut graph)) => {
                    graph.replay()?;
                    return Measured::read(&self.micro[which].insert(Micro { graph, inputs, found }).found);
                }
                Err(error) => {
                    self.give_up(error)?;
                    if index == 0 {
                        self.grads.clear();
                    }
                }
            }
        }
        Measured::read(&task.micro_step(&inputs, self.scale, &mut self.grads)?)
    }

    /// Ends an update.
    pub fn update<T: Task<Inputs = I>>(
        &mut self,
        task: &mut T,
        optimizer: &mut dyn Optimizer,
        lr: f64,
    ) -> Result<StepStats> {
        let mut params = task.module().params_mut();
        optimizer.prepare(&mut params, lr)?;
        if self.mode == Mode::Graph && self.update.is_none() {
            match usable(self.device.record(|| optimizer.launch(&mut params, &self.grads, self.clip))) {
                Ok(((), graph)) => self.update = Some(graph),
                Err(error) => self.give_up(error)?,
            }
        }
        match &mut self.update {
            Some(graph) => graph.replay()?,
            None => optimizer.launch(&mut params, &self.grads, self.clip)?,
        }
        if self.mode == Mode::Warm {
            self.mode = Mode::Graph;
        }
        let stats = optimizer.finish(&mut params, &self.grads)?;
        task.updated()?;
        Ok(stats)
    }

    /// Launch by launch from now on, if recording is what failed. The gradients of this update stay.
    fn give_up(&mut self, error: Error) -> Result<()> {
        use Error::{Driver, Launch, OutOfMemory, Recording};
        let (Recording { .. } | Driver { .. } | Launch { .. } | OutOfMemory { .. }) = &error else { return Err(error) };
        tracing::warn!("steps run launch by launch, not as one graph: {error}");
        (self.micro, self.update, self.mode) = ([None, None], None, Mode::Eager);
        Ok(())
    }
}

/// Refuses a recording that used and freed a tensor from outside: it could not run even once.
fn usable<R>(recorded: Result<(R, Graph)>) -> Result<(R, Graph)> {
    recorded.and_then(|(value, graph)| match graph.is_stale() {
        true => Err(Error::Recording { cause: "it frees a tensor that it did not make".into() }),
        false => Ok((value, graph)),
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::DType;
    use crate::checkpoint::StateDict;
    use crate::data::Batch;
    use crate::nn::Module;
    use crate::ops::adamw::Hyper;
    use crate::optim::{AdamW, Rules};
    use crate::recipes::mae::{Config, Pretrain, Sizes};
    use crate::testing::devices;

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

    fn batch(step: u64) -> Batch<u8> {
        let images = (0..2 * 3 * 8 * 12).map(|i: u64| ((i * 37 + step * 101) % 251) as u8).collect();
        Batch { images, labels: vec![0; 2], captions: vec![], indices: vec![0; 2], epoch: 0, step_in_epoch: step }
    }

    fn task(dtype: DType, device: &Device) -> Pretrain {
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

    /// Losses, norms and weights of some updates; `keep` holds clones of the weights during one of them.
    fn train<T: Task<Value = u8>>(mut task: T, mode: Mode, accum: u64, keep: bool) -> (Vec<u64>, Vec<f64>, Mode) {
        let device = task.module().params()[0].master.device().clone();
        let mut optimizer = AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05));
        let mut stepper = Stepper::new(&device, 1.0 / accum as f64, Some(0.1));
        stepper.mode = mode;
        let (mut numbers, mut held) = (vec![], None);
        for step in 0..6 {
            stepper.begin(&mut task);
            for i in 0..accum {
                let inputs = task.inputs(&batch(step * accum + i)).unwrap();
                numbers.push(stepper.micro_step(&mut task, inputs, i).unwrap().loss.to_bits());
            }
            let stats = stepper.update(&mut task, &mut optimizer, 1e-2 * (step + 1) as f64).unwrap();
            numbers.push(stats.grad_norm.to_bits());
            held = (keep && step == 3).then(|| task.weights().unwrap());
        }
        drop(held);
        let weights = task.weights().unwrap().iter().flat_map(|(_, t)| t.to_f64().unwrap()).collect();
        (numbers, weights, stepper.mode)
    }

    #[test]
    fn a_recorded_step_is_the_step() {
        let cases = [(DType::F32, 1, false), (DType::BF16, 3, false), (DType::F32, 2, true)];
        for (device, (dtype, accum, keep)) in devices().iter().flat_map(|device| cases.map(|case| (device, case))) {
            let (numbers, weights, mode) = train(task(dtype, device), Mode::Warm, accum, keep);
            let (expected, eager, _) = train(task(dtype, device), Mode::Eager, accum, keep);
            assert_eq!(mode, Mode::Graph);
            assert_eq!(numbers, expected);
            assert!(weights == eager);
        }
    }

    #[test]
    fn what_cannot_be_recorded_runs_launch_by_launch() {
        // From the first micro-step on, and from the second of the update that is recorded.
        for (device, from) in devices().iter().flat_map(|device| [1, 4].map(|from| (device, from))) {
            let (numbers, weights, mode) = train(ReadsBack(task(DType::F32, device), from), Mode::Warm, 2, true);
            let (expected, eager, _) = train(task(DType::F32, device), Mode::Eager, 2, true);
            assert_eq!(mode, Mode::Eager);
            assert_eq!(numbers, expected);
            assert!(weights == eager);
        }
    }
}
