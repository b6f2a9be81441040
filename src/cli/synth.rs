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
    /// Training images
    #[arg(long, default_value_t = 2000)]
    train: usize,
    /// Validation images
    #[arg(long, default_value_t = 500)]
    val: usize,
    /// Image side in pixels
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Classes, 2 to 12
    #[arg(long, default_value_t = 8)]
    classes: usize,
    /// Largest angle in degrees by which the shape that gives the class is turned
    #[arg(long, default_value_t = 30)]
    turn: u32,
    /// One seed, one data set
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Short clips of moving objects with instance masks instead of single images
    #[arg(long)]
    video: bool,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    frames: usize,
}

/// Generates.
pub fn synth(flags: &Flags) -> Result<()> {
    let config = synth::Config {
        seed: flags.seed,
        train: flags.train,
        val: flags.val,
        size: flags.size,
        classes: flags.classes,
        turn: flags.turn,
        frames: flags.video.then_some(flags.frames),
    };
    let total = (flags.train + flags.val) as u64;
    let progress = Mutex::new(Progress::new("synth", total, 0, 1.0, if flags.video { "clips" } else { "images" }));
    let report = synth::generate(&config, &flags.out, &|_| {
        if let Ok(mut progress) = progress.lock() {
            progress.step("");
        }
    })?;
    say!("{} images of {} classes in {}", report.images, report.classes.len(), report.root.display());
    Ok(())
}
