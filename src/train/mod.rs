//! The one training loop: data, step, log, checkpoint. Recipes bring a [`Task`].

mod begin;
mod dinov2;
pub mod interrupt;
mod mae;
mod metrics;
pub mod progress;
mod run_dir;
mod sam2;
mod siglip;
mod skips;
mod spikes;
mod stepper;
mod tensorboard;

pub use dinov2::pretrain as pretrain_dinov2;
pub use mae::{finetune, pretrain};
pub use metrics::Metrics;
pub use progress::Progress;
pub use run_dir::RunDir;
pub use sam2::pretrain as pretrain_sam2;
pub use siglip::pretrain as pretrain_siglip;

use crate::data::{Batch, Loader};
use crate::optim::Optimizer;
use crate::optim::schedule::Cosine;
use crate::recipes::{Numbers, Task};
use crate::{Device, Error, Result};
use skips::Skips;
use spikes::Spikes;
use stepper::{Measured, Stepper};

/// What the numbers of a schedule count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Passes over the data, in fractions: of an update, that at its first micro-batch.
    Epochs,
    /// Updates, from 0.
    Updates,
}

/// The numbers of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Passes over the data.
    pub epochs: u64,
    /// Micro-batches per update.
    pub accum_iter: u64,
    /// Samples per micro-batch.
    pub batch_size: usize,
    /// What the samples are, in words: images, pairs.
    pub unit: &'static str,
    /// Learning rate by the clock.
    pub schedule: Cosine,
    /// What the schedule counts.
    pub clock: Clock,
    /// Largest gradient norm.
    pub clip_grad: Option<f64>,
    /// Consecutive updates that may be skipped because the loss or a gradient is not finite.
    pub skip_non_finite: u64,
    /// Updates between checkpoints.
    pub save_every: u64,
    /// Updates between log lines.
    pub log_every: u64,
    /// Decides the order of the data.
    pub seed: u64,
    /// Whether an unreadable sample ends the run.
    pub strict: bool,
}

impl Plan {
    /// Updates per epoch of so many samples; refuses batches that they cannot fill.
    pub fn check(&self, samples: usize) -> Result<u64> {
        if self.batch_size > samples {
            let expected = format!("at most the {samples} {} of the data set", self.unit);
            return Err(Error::config("batch_size", self.batch_size, expected));
        }
        self.steps_per_epoch((samples / self.batch_size) as u64)
    }

    /// Updates per epoch; micro-batches that do not fill one are left out. Refuses epochs of more updates than f64 counts.
    pub fn steps_per_epoch(&self, micro_batches: u64) -> Result<u64> {
        let steps = micro_batches / self.accum_iter;
        if steps == 0 {
            let expected = format!("at most the {micro_batches} batches of an epoch");
            return Err(Error::config("accum_iter", self.accum_iter, expected));
        }
        if self.epochs > (1 << 53) / steps {
            return Err(Error::config("epochs", self.epochs, format!("at most {}: 2^53 updates", (1 << 53) / steps)));
        }
        Ok(steps)
    }

    /// Learning rate of an update.
    pub fn lr(&self, step: u64, micro_batches: u64) -> f64 {
        if self.clock == Clock::Updates {
            return self.schedule.at(step as f64);
        }
        let per_epoch = (micro_batches / self.accum_iter).max(1);
        let inside = (step % per_epoch * self.accum_iter) as f64 / micro_batches as f64;
        let epoch = (step / per_epoch) as f64 + inside;
        self.schedule.at(epoch)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs done.
    Finished,
    /// Ctrl-C: saved, to be resumed.
    Interrupted,
}

/// What is measured at the end of each epoch, which is counted from 1.
pub type Evaluate<'a, T> = &'a mut dyn FnMut(&mut T, u64) -> Result<Numbers>;

/// Trains from update `start` (0, or what [`RunDir::resume`] gave) to the end or to Ctrl-C.
///
/// # Errors
/// [`Error::NonFinite`] when the loss or a gradient is not finite, more often in a row than may be skipped: the weights are
/// still those of the step before. Errors of `evaluate`, after a checkpoint; a run continued from it evaluates first.
pub fn run<T: Task>(
    task: &mut T,
    optimizer: &mut dyn Optimizer,
    loader: &mut Loader<T::Value>,
    plan: &Plan,
    folder: &RunDir,
    start: u64,
    evaluate: Evaluate<T>,
) -> Result<Outcome> {
    let micro_batches = loader.steps_per_epoch();
    let per_epoch = plan.steps_per_epoch(micro_batches)?;
    let total = per_epoch * plan.epochs;
    let mut metrics = Metrics::open(folder.path(), start)?;
    let samples = (plan.batch_size as u64 * plan.accum_iter) as f64;
    let mut progress = Progress::new(folder.name(), total, start, samples, plan.unit);
    let device = task.module().params().first().map_or(Device::Cpu, |p| p.master.device().clone());
    let scale = if task.joint().is_some() { 1.0 } else { 1.0 / plan.accum_iter as f64 };
    let mut stepper = Stepper::new(&device, scale, plan.clip_grad);
    let (mut spikes, mut skips) = (Spikes::default(), Skips::default());
    let mut measure = |task: &mut T, epoch: u64, metrics: &mut Metrics, progress: &Progress| {
        let numbers = evaluate(task, epoch)?;
        if !numbers.is_empty() {
            progress.note(&format!("epoch {epoch}: {}", describe(&numbers)));
            metrics.log("eval", epoch * per_epoch, epoch as f64, &numbers)?;
        }
        Ok(())
    };
    if start > 0 && start.is_multiple_of(per_epoch) && !metrics.has("eval", start)? {
        measure(task, start / per_epoch, &mut metrics, &progress)?;
    }
    interrupt::listen();
    for step in start..total {
        let rates = task.rates(step, plan.lr(step, micro_batches));
        let (lr, waited) = (rates.lr, loader.stats().total_wait);
        // On a thread of the pool: from any other, each parallel part of the step would have to wake all of them.
        let updated = rayon::scope(|_| {
            stepper.begin(task);
            let measured = gradient(task, &mut stepper, plan.accum_iter, &mut || next(loader))?;
            if !measured.loss.is_finite() {
                return Err(not_finite(step, "loss", measured.loss));
            }
            Ok((measured, stepper.update(task, optimizer, &rates)?))
        });
        let done = step + 1;
        let updated = skips.pass(updated, done, plan.skip_non_finite)?;
        let logs = done.is_multiple_of(plan.log_every) || done == total;
        let mut numbers = vec![("lr", lr)];
        if let Some((Measured { loss, statistics }, stats)) = &updated {
            numbers.insert(0, ("loss", *loss));
            numbers.push(("grad_norm", stats.grad_norm));
            numbers.extend(&stats.groups);
            let spike = spikes.look(*loss);
            if spike.is_some() || logs {
                numbers.extend(task.notes(statistics)?);
            }
            if let Some(median) = spike {
                let notes = describe(&numbers[1..]);
                tracing::warn!("step {done}: the loss is {loss:.4}, of the last steps it was {median:.4} ({notes})");
            }
        }
        let epoch = done as f64 / per_epoch as f64;
        let loss = updated.map_or(f64::NAN, |(measured, _)| measured.loss);
        progress.step(&format!("epoch {epoch:.2} loss {loss:.4} lr {lr:.2e}"));
        if logs {
            let wait = (loader.stats().total_wait - waited).as_secs_f64();
            if plan.skip_non_finite > 0 {
                numbers.push(("skipped_steps", skips.all as f64));
            }
            numbers.extend([
                ("images_per_second", progress.rate()),
                ("data_wait_seconds", wait),
                ("skipped_images", loader.failures().len() as f64), // named by the loader
            ]);
            metrics.log("train", done, epoch, &numbers)?;
        }
        if done.is_multiple_of(per_epoch) {
            for _ in 0..micro_batches % plan.accum_iter {
                next(loader)?; // a group that is not full is not used
            }
            if let Err(error) = measure(task, done / per_epoch, &mut metrics, &progress) {
                // What was learned is not lost with it; a run that is continued from here begins with what failed.
                folder.save(done, &task.weights()?, optimizer).unwrap_or_else(|e| tracing::warn!("not saved: {e}"));
                return Err(error);
            }
        }
        let stop = interrupt::asked() && done < total;
        let periodic = done.is_multiple_of(plan.save_every) && task.healthy();
        if periodic || done == total || stop {
            // The picture first: a run that is continued from its last checkpoint has nothing left to draw.
            if let Some((name, image)) = task.picture()? {
                metrics.picture(done, name, &image, &folder.picture(name)?)?;
            }
            folder.save(done, &task.weights()?, optimizer)?;
        }
        if stop {
            progress.finish();
            return Ok(Outcome::Interrupted);
        }
    }
    progress.finish();
    Ok(Outcome::Finished)
}

/// Loss and gradient of one update's micro-batches.
fn gradient<T: Task>(
    task: &mut T,
    stepper: &mut Stepper<T::Inputs>,
    accum_iter: u64,
    next: &mut dyn FnMut() -> Result<Batch<T::Value>>,
) -> Result<Measured> {
    if accum_iter > 1
        && let Some(joint) = task.joint()
    {
        let batches = (0..accum_iter).map(|_| next()).collect::<Result<Vec<_>>>()?;
        let measured = Measured::read(&joint.measure(&batches)?)?;
        for (index, batch) in batches.iter().enumerate() {
            let Some(joint) = task.joint() else { break };
            let inputs = joint.share(batch, index)?;
            stepper.micro_step(task, inputs, index as u64)?;
        }
        return Ok(measured);
    }
    let mut sum = Measured { loss: 0.0, statistics: vec![] };
    for index in 0..accum_iter {
        let inputs = task.inputs(&next()?)?;
        let Measured { loss, statistics } = stepper.micro_step(task, inputs, index)?;
        sum = Measured { loss: sum.loss + loss / accum_iter as f64, statistics };
    }
    Ok(sum)
}

fn next<V: Copy + Send + 'static>(loader: &mut Loader<V>) -> Result<Batch<V>> {
    loader.next().unwrap_or_else(|| Err(Error::Training("the data ended before the last epoch".into())))
}

fn describe(numbers: &[(&str, f64)]) -> String {
    numbers.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join(", ")
}

fn not_finite(step: u64, tensor: &str, value: f64) -> Error {
    let hint = "try a lower learning rate, a longer warm-up, gradient clipping or, in bf16, f32; the last checkpoint is \
                from before this step";
    Error::NonFinite { step, tensor: tensor.into(), value: value.to_string(), hint: hint.into() }
}
