//! `ocellus pretrain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ocellus::nn::Builder;
use ocellus::recipes::siglip::flags::Loss;
use ocellus::recipes::{dinov2, encoder, mae, sam2, siglip};
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

/// Flags of `pretrain dinov2`.
#[derive(clap::Args)]
pub struct Dinov2 {
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with = "Config")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<dinov2::Config>,
}

/// Flags of `pretrain distill`.
#[derive(clap::Args)]
pub struct Distill {
    /// Run of `pretrain dinov2` whose teacher is distilled
    #[arg(required_unless_present = "resume")]
    teacher: Option<PathBuf>,
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with_all = ["Config", "teacher"])]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<dinov2::Config>,
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

/// Flags of `pretrain sam2`.
#[derive(clap::Args)]
pub struct Sam2 {
    /// Continue the run in this folder with its own configuration; no other flag of the run may be given
    #[arg(long, value_name = "RUN", conflicts_with = "Config")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    config: Option<sam2::Config>,
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

/// Names a picture of a run that is there: one that could not be drawn was warned of.
fn say_picture(out: &Path, name: &str, note: &str) {
    let path = out.join("pictures").join(name);
    if path.is_file() {
        say!("picture: {}{note}", path.display());
    }
}

/// Trains or resumes.
pub fn dinov2(flags: &Dinov2, machine: &Machine) -> Result<ExitCode> {
    self_distil(&flags.resume, &flags.config, None, machine)
}

/// Trains or resumes.
pub fn distill(flags: &Distill, machine: &Machine) -> Result<ExitCode> {
    self_distil(&flags.resume, &flags.config, flags.teacher.as_deref(), machine)
}

fn self_distil(
    resume: &Option<PathBuf>,
    config: &Option<dinov2::Config>,
    teacher: Option<&Path>,
    machine: &Machine,
) -> Result<ExitCode> {
    let device = machine.device()?;
    let (mut config, resume) =
        resumed(resume, config, |run| Ok(dinov2::Config { out: run.to_path_buf(), ..RunDir::read_config(run)? }))?;
    let dtype = machine.dtype_of_run(&device, config.dtype.as_deref())?;
    if !resume {
        config.data = absolute(&config.data)?;
        config.teacher = teacher.map(absolute).transpose()?;
        for path in [&mut config.init, &mut config.knn] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
        config.dtype = Some(dtype.name().into());
    }
    let (outcome, task) = train::pretrain_dinov2(&config, &device, dtype, resume)?;
    let out = config.out.display();
    if outcome == Outcome::Interrupted {
        return Ok(interrupted(if config.teacher.is_some() { "distill" } else { "dinov2" }, &config.out));
    }
    say!("weights: {out}/model.safetensors (Hugging Face), {out}/upstream.safetensors (official names)");
    say!("with heads, to go on from: {out}/{}", dinov2::load::TEACHER);
    say_picture(&config.out, "features.png", "");
    if let Some(test) = &config.knn {
        let sizes = &task.model.student.backbone.sizes;
        let pretrained = encoder::load(&config.out, &device, dtype, None, None)?;
        // LayerScale at 1: with the first values of training the class tokens of all images would be the same.
        let start = dinov2::Start { gamma: 1.0, ..config.start() };
        let random = dinov2::Backbone::new(&Builder::new(&device, dtype, config.seed), sizes, &start)?;
        let random = dinov2::Features::new(random, None)?;
        let compared = eval::compare(pretrained.as_ref(), &random, &config.data, test)?;
        compared_accuracy(test, &compared);
    }
    Ok(ExitCode::SUCCESS)
}

fn compared_accuracy(test: &Path, compared: &eval::Compared) {
    let percent = |top1: f64| 100.0 * top1;
    say!(
        "k-NN accuracy on {}: pretrained {:.1} %, random weights {:.1} %",
        test.display(),
        percent(compared.pretrained.top1),
        percent(compared.random.top1)
    );
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
pub fn sam2(flags: &Sam2, machine: &Machine) -> Result<ExitCode> {
    let device = machine.device()?;
    let (mut config, resume) = resumed(&flags.resume, &flags.config, |run| {
        Ok(sam2::Config { out: run.to_path_buf(), ..RunDir::read_config(run)? })
    })?;
    let dtype = machine.dtype_of_run(&device, config.dtype.as_deref())?;
    if !resume {
        config.data = absolute(&config.data)?;
        for path in [&mut config.init, &mut config.val] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
        config.dtype = Some(dtype.name().into());
    }
    let (outcome, task) = train::pretrain_sam2(&config, &device, dtype, resume)?;
    if outcome == Outcome::Interrupted {
        return Ok(interrupted("sam2", &config.out));
    }
    let out = config.out.display();
    say!("weights: {out}/model.safetensors (Hugging Face), {out}/upstream.safetensors (official names)");
    say_picture(&config.out, "masks.png", "");
    if let Some(val) = &config.val {
        let videos = ocellus::data::videos::Videos::open(val, true)?;
        let options = sam2::VideoOptions { non_overlap_masks: true, ..Default::default() };
        let scores = eval::video_objects::evaluate_all(&task.model, &videos, options)?;
        if let Some(scores) = eval::video_objects::mean(&scores) {
            let [j, f] = [scores.j, scores.f].map(|x| 100.0 * x);
            say!("J&F on {}: {:.1} % (J {j:.1} %, F {f:.1} %)", val.display(), 100.0 * scores.j_and_f());
        }
    }
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
        say_picture(&config.out, "reconstruction_denormalised.png", &format!(" ({NOTE})"));
    } else {
        say_picture(&config.out, "reconstruction.png", "");
    }
    if let Some(test) = &config.knn {
        let compared = eval::compare_with_random(&config.out, &config.data, test, &device, dtype, config.seed)?;
        compared_accuracy(test, &compared);
    }
    Ok(ExitCode::SUCCESS)
}
