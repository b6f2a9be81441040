//! `ocellus pretrain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ocellus::recipes::siglip::flags::Loss;
use ocellus::recipes::{mae, siglip};
use ocellus::train::{self, Outcome, RunDir};
use ocellus::{Error, Result, eval};

use super::{Machine, absolute};

/// What de-normalised pictures show.
pub const NOTE: &str = "the weights predict normalised patches; each patch's mean and contrast come from the original";

/// Flags of `pretrain mae`.
#[derive(clap::Args)]
pub struct Mae {
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with = "Config")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<mae::Config>,
}

/// Flags of `pretrain siglip`.
#[derive(clap::Args)]
pub struct Siglip {
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with = "Config")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<siglip::Config>,
}

/// The configuration of a new run, or that of the run to be continued.
pub fn resumed<C: Clone>(
    resume: &Option<PathBuf>,
    config: &Option<C>,
    read: impl FnOnce(&Path) -> Result<C>,
) -> Result<(C, bool)> {
    match (resume, config) {
        (Some(run), _) => Ok((read(run)?, true)), // the parser refuses other flags of the run beside it
        (None, Some(config)) => Ok((config.clone(), false)),
        (None, None) => Err(Error::config("arguments", "missing", "those of a new run, or --resume RUN; see --help")),
    }
}

/// What is said of a run that Ctrl-C ended.
fn interrupted(recipe: &str, out: &Path) -> ExitCode {
    say_err!("stopped and saved; continue with: ocellus pretrain {recipe} --resume {}", out.display());
    ExitCode::from(130)
}

/// Trains or resumes.
pub fn siglip(flags: &Siglip, machine: &Machine) -> Result<ExitCode> {
    let device = machine.device()?;
    let (mut config, resume) = resumed(&flags.resume, &flags.config, |run| {
        Ok(siglip::Config { out: run.to_path_buf(), ..RunDir::read_config(run)? })
    })?;
    let dtype = machine.dtype_of_run(&device, config.dtype.as_deref())?;
    if !resume {
        config.data = absolute(&config.data)?;
        config.tokenizer = absolute(&config.tokenizer)?;
        for path in [
            &mut config.images,
            &mut config.init,
            &mut config.init_image,
            &mut config.zero_shot,
            &mut config.classes,
            &mut config.retrieval,
        ] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
        config.dtype = Some(dtype.name().into());
    }
    let (outcome, task) = train::pretrain_siglip(&config, &device, dtype, resume)?;
    if outcome == Outcome::Interrupted {
        return Ok(interrupted("siglip", &config.out));
    }
    say!("weights: {}/model.safetensors (Hugging Face)", config.out.display());
    let number = |p: &ocellus::Param| p.master.item();
    let (scale, bias) = (number(&task.model.logit_scale)?.exp(), number(&task.model.logit_bias)?);
    say!(
        "logits: {scale:.2} times the similarity{}",
        if config.loss == Loss::Sigmoid { format!(" {bias:+.2}") } else { String::new() }
    );
    Ok(ExitCode::SUCCESS)
}

/// Trains or resumes.
pub fn mae(flags: &Mae, machine: &Machine) -> Result<ExitCode> {
    let device = machine.device()?;
    let (mut config, resume) = resumed(&flags.resume, &flags.config, |run| {
        Ok(mae::Config { out: run.to_path_buf(), ..RunDir::read_config(run)? })
    })?;
    let dtype = machine.dtype_of_run(&device, config.dtype.as_deref())?;
    if !resume {
        config.data = absolute(&config.data)?;
        for path in [&mut config.init, &mut config.knn] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
        config.dtype = Some(dtype.name().into());
    }
    let (outcome, task) = train::pretrain(&config, &device, dtype, resume)?;
    let out = config.out.display();
    if outcome == Outcome::Interrupted {
        return Ok(interrupted("mae", &config.out));
    }
    say!("weights: {out}/model.safetensors (Hugging Face), {out}/upstream.safetensors (official names)");
    if task.model.norm_pix_loss {
        say!("picture: {out}/pictures/reconstruction_denormalised.png ({NOTE})");
    } else {
        say!("picture: {out}/pictures/reconstruction.png");
    }
    if let Some(test) = &config.knn {
        let compared = eval::compare_with_random(&config.out, &config.data, test, &device, dtype, config.seed)?;
        let percent = |top1: f64| 100.0 * top1;
        say!(
            "k-NN accuracy on {}: pretrained {:.1} %, random weights {:.1} %",
            test.display(),
            percent(compared.pretrained.top1),
            percent(compared.random.top1)
        );
    }
    Ok(ExitCode::SUCCESS)
}
