//! `ocellus finetune`.

use std::path::PathBuf;
use std::process::ExitCode;

use ocellus::Result;
use ocellus::recipes::mae::FinetuneConfig;
use ocellus::train::{self, Outcome, RunDir};

use super::{Machine, absolute, pretrain::resumed};

/// Flags of `finetune`.
#[derive(clap::Args)]
pub struct Flags {
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with = "FinetuneConfig")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<FinetuneConfig>,
}

/// Trains or resumes.
pub fn finetune(flags: &Flags, machine: &Machine) -> Result<ExitCode> {
    let device = machine.device()?;
    let (mut config, resume) = resumed(&flags.resume, &flags.config, |run| {
        Ok(FinetuneConfig { out: run.to_path_buf(), ..RunDir::read_config(run)? })
    })?;
    let dtype = machine.dtype_of_run(&device, config.dtype.as_deref())?;
    if !resume {
        for path in [&mut config.model, &mut config.train, &mut config.val] {
            *path = absolute(path)?;
        }
        config.dtype = Some(dtype.name().into());
    }
    let (outcome, mut task) = train::finetune(&config, &device, dtype, resume)?;
    let out = config.out.display();
    if outcome == Outcome::Interrupted {
        say_err!("stopped and saved; continue with: ocellus finetune --resume {out}");
        return Ok(ExitCode::from(130));
    }
    let score = task.validation()?;
    say!("validation top-1: {:.2} %, top-5 {:.2} %, loss {:.4}", 100.0 * score.top1, 100.0 * score.top5, score.loss);
    say!("weights: {out}/upstream.safetensors (official names)");
    Ok(ExitCode::SUCCESS)
}
