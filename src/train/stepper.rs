//! One update: launched piece by piece, or recorded once and run again.

use crate::device::graph::Graph;
use crate::optim::{Optimizer, Rates, StepStats};
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
        let mode = if device.records() { Mode::Warm } else { Mode::Eager };
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
        if !task.records() {
            self.mode = Mode::Eager;
        }
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
        let other_shapes = |recorded: &mut Micro<I>| {
            recorded.inputs.tensors().iter().zip(inputs.tensors()).any(|(held, new)| held.shape() != new.shape())
        };
        if self.micro[which].as_mut().is_some_and(other_shapes) {
            self.give_up(Error::Recording { cause: "its inputs change their shapes".into() })?;
            if index == 0 {
                self.grads.clear();
            }
        }
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
        rates: &Rates,
    ) -> Result<StepStats> {
        let mut params = task.module().params_mut();
        let as_before = optimizer.prepare(&mut params, rates)?;
        if self.mode == Mode::Graph && self.update.is_none() && as_before {
            match usable(self.device.record(|| optimizer.launch(&mut params, &self.grads, self.clip))) {
                Ok(((), graph)) => self.update = Some(graph),
                Err(error) => self.give_up(error)?,
            }
        }
        match &mut self.update {
            Some(graph) if as_before => graph.replay()?,
            _ => optimizer.launch(&mut params, &self.grads, self.clip)?,
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
pub(super) mod tests;
