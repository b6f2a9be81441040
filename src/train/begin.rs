//! From a configuration to the loop and back: what the runs of all recipes share.

use std::sync::Arc;

use super::{Evaluate, Outcome, Plan, RunDir};
use crate::checkpoint::run_state::RunState;
use crate::checkpoint::{LoadOptions, load_into};
use crate::data::loader::{Options, Position, Unreadable};
use crate::data::{Image, Loader, Source, Stream};
use crate::optim::Optimizer;
use crate::recipes::Task;
use crate::{DType, Error, Result};

/// A run that is continued, with its newest state if it has one.
pub(super) type Found = Option<(RunDir, Option<RunState>)>;

/// f16 gradients fall below its smallest number without loss scaling, which does not exist here.
pub(super) fn check_dtype(dtype: DType) -> Result<()> {
    match dtype {
        DType::F16 => Err(Error::config("dtype", dtype, "bf16 or f32 in training: f16 would need loss scaling")),
        _ => Ok(()),
    }
}

/// The run to be continued.
pub(super) fn find(resume: bool, read: impl FnOnce() -> Result<(RunDir, Option<RunState>)>) -> Result<Found> {
    resume.then(read).transpose()
}

/// The newest state; `None` also for a run that was stopped before its first checkpoint: it begins again.
pub(super) fn state(found: &Found) -> Option<&RunState> {
    found.as_ref()?.1.as_ref()
}

/// Trains from where the run stands to its end.
pub(super) fn train<T: Task>(
    task: &mut T,
    optimizer: &mut dyn Optimizer,
    data: Arc<dyn Source>,
    transform: impl Fn(&Image, &mut Stream) -> Result<Vec<T::Value>> + Send + Sync + 'static,
    plan: &Plan,
    found: Found,
    create: impl FnOnce() -> Result<RunDir>,
    evaluate: Evaluate<T>,
) -> Result<(Outcome, RunDir)> {
    let per_epoch = plan.check(data.len())?;
    let start = state(&found).map_or(Ok(0), |state| restore(task, optimizer, state))?;
    let run = found.map_or_else(create, |(run, _)| Ok(run))?;
    tracing::info!(
        "{} trainable parameters, {} {}, effective batch {}, learning rate {:.3e}",
        task.module().trainable(),
        data.len(),
        plan.unit,
        plan.batch_size as u64 * plan.accum_iter,
        plan.schedule.lr
    );
    let options = Options {
        unreadable: if plan.strict { Unreadable::Fail } else { Unreadable::Replace },
        start: Position { epoch: start / per_epoch, step: start % per_epoch * plan.accum_iter },
        ..Options::training(plan.batch_size, plan.seed)
    };
    let outcome = Loader::new(data, transform, options).and_then(|mut loader| {
        let outcome = super::run(task, optimizer, &mut loader, plan, &run, start, evaluate);
        let failures = loader.failures().len();
        if failures > 0 {
            tracing::warn!("{failures} unreadable {} were skipped; they are named above", plan.unit);
        }
        outcome
    });
    let outcome = run.settle(outcome)?;
    Ok((outcome, run))
}

fn restore<T: Task>(task: &mut T, optimizer: &mut dyn Optimizer, state: &RunState) -> Result<u64> {
    let report = load_into(&mut task.module().params_mut(), &state.model, &LoadOptions::default())?;
    report.require(|_| true)?;
    optimizer.load_state(state.optimizer.iter().map(|(name, t)| (name.to_string(), t.clone())).collect())?;
    Ok(state.progress.step)
}
