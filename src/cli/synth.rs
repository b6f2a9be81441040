//! `ocellus data synth`.

use std::path::PathBuf;
use std::sync::Mutex;

use ocellus::Result;
use ocellus::data::synth;
use ocellus::train::Progress;

/// Flags of `data synth`.
#[derive(clap::Args)]
pub struct Flags {
    /// Folder to write
    out: PathBuf,
    /// Training images [default: 2000, with --captions 20000]
    #[arg(long)]
    train: Option<usize>,
    /// Validation images [default: 500, with --captions 1000]
    #[arg(long)]
    val: Option<usize>,
    /// Image side in pixels [default: 64, with --captions 32]
    #[arg(long)]
    size: Option<usize>,
    /// Shapes, 2 to 12: the classes of labelled images [default: 8, with --captions 6]
    #[arg(long)]
    classes: Option<usize>,
    /// Largest angle in degrees by which shapes are turned [default: 30, with --captions 12]
    #[arg(long)]
    turn: Option<u32>,
    /// One seed, one data set
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Short clips of moving objects with instance masks instead of single images
    #[arg(long)]
    video: bool,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    frames: usize,
    /// The class of each pixel beside the images: train/images and train/masks, and the same of val
    #[arg(long, conflicts_with_all = ["video", "captions"])]
    masks: bool,
    /// Image-text pairs instead: clear images with several captions each as tar shards, combinations of colour and shape
    /// held out of training for validation, class folders for zero-shot classification
    #[arg(long, conflicts_with = "video")]
    captions: bool,
}

/// Generates.
pub fn synth(flags: &Flags) -> Result<()> {
    let usual = if flags.captions {
        synth::Config::pairs()
    } else {
        synth::Config { train: 2000, val: 500, ..synth::Config::default() }
    };
    let config = synth::Config {
        seed: flags.seed,
        train: flags.train.unwrap_or(usual.train),
        val: flags.val.unwrap_or(usual.val),
        size: flags.size.unwrap_or(usual.size),
        classes: flags.classes.unwrap_or(usual.classes),
        turn: flags.turn.unwrap_or(usual.turn),
        content: match (flags.video, flags.masks) {
            (true, _) => synth::Content::Clips { frames: flags.frames },
            (_, true) => synth::Content::Masks,
            _ => usual.content,
        },
    };
    let unit = if flags.video { "clips" } else { "images" };
    let progress = Mutex::new(Progress::new("synth", config.pictures(), 0, 1.0, unit));
    let report = synth::generate(&config, &flags.out, &|_| {
        if let Ok(mut progress) = progress.lock() {
            progress.step("");
        }
    })?;
    say!("{} images of {} classes in {}", report.images, report.classes.len(), report.root.display());
    Ok(())
}
