//! `ocellus eval segmentation`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ocellus::checkpoint::{StateDict, safetensors};
use ocellus::eval::segmentation::{self, Config, Scenes};
use ocellus::nn::Module;
use ocellus::recipes::encoder;
use ocellus::recipes::mae::Pool;
use ocellus::recipes::mae::config::parse_size;
use ocellus::{Error, Result};

use super::Machine;
use super::eval::Stages;

/// Flags of `eval segmentation`.
#[derive(clap::Args)]
pub struct Flags {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    model: PathBuf,
    /// Training images: a folder with images/ (or frames/) and masks/, .png label maps of the same names; 255 is no label
    train: PathBuf,
    /// Images that are labelled, laid out alike
    val: PathBuf,
    #[command(flatten)]
    config: Config,
    /// Labels other than 0 and 255 are one class: for masks that number things, as those of clips
    #[arg(long)]
    foreground: bool,
    /// Image side in pixels, or height x width as in 64x32; the position table is resized [default: the weights']
    #[arg(long, value_parser = parse_size)]
    image_size: Option<[usize; 2]>,
    /// Norm of the tokens: that of the class token, or none [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// File to write the trained head to, .safetensors
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Folder to write predicted label maps to
    #[arg(long, value_name = "FOLDER")]
    predictions: Option<PathBuf>,
}

/// Trains and scores.
pub fn segmentation(flags: &Flags, machine: &Machine) -> Result<()> {
    flags.config.check()?;
    let open = |path| {
        let stages = Mutex::new(Stages::new(1));
        let scenes = Scenes::open(path, flags.foreground, &|total| {
            if let Ok(mut stages) = stages.lock() {
                stages.step("masks", total, None);
            }
        })?;
        if let Ok(mut stages) = stages.lock() {
            stages.finish();
        }
        Ok::<_, Error>(Arc::new(scenes))
    };
    let (train, val) = (open(&flags.train)?, open(&flags.val)?);
    let classes = train.classes().max(val.classes());
    let device = machine.device()?;
    let model = encoder::load(&flags.model, &device, machine.dtype(&device)?, flags.pool, flags.image_size)?;
    let mut stages = Stages::new(flags.config.batch_size);
    let head =
        flags.config.train(model.as_ref(), &train, classes, |what, _, total, loss| stages.step(what, total, loss))?;
    let found = segmentation::evaluate(model.as_ref(), &head, &val, flags.predictions.as_deref(), |_, total| {
        stages.step("labelling", total, None);
    })?;
    stages.finish();
    say!(
        "segmentation: mIoU {:.2} %, pixel accuracy {:.2} % of {} pixels, {classes} classes",
        100.0 * found.mean_iou(),
        100.0 * found.accuracy(),
        found.pixels()
    );
    let iou = |(class, iou): (usize, Option<f64>)| match iou {
        Some(iou) => format!("{class}: {:.1} %", 100.0 * iou),
        None => format!("{class}: absent"),
    };
    say!("IoU by class: {}", found.ious().into_iter().enumerate().map(iou).collect::<Vec<_>>().join(", "));
    if let Some(out) = &flags.out {
        safetensors::write(out, &StateDict::from_params(head.params())?)?;
        say!("head: {}", out.display());
    }
    if let Some(folder) = &flags.predictions {
        say!("predicted labels: {}", folder.display());
    }
    Ok(())
}
