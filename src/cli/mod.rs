//! Subcommands: each reads its flags, calls the library and prints what a person wants to know.

/// Prints a line to stdout. That nobody reads it any more, `head` being done, is no reason to fail.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// The same to stderr: a run outlives the terminal it was started from.
macro_rules! say_err {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod bench;
mod curate;
mod eval;
mod finetune;
mod info;
mod masks;
mod pretrain;
mod retrieval;
mod segmentation;
mod siglip;
mod synth;
mod tokenizer;
mod visualize;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ocellus::{DType, Device, Error, Result};
use tracing_subscriber::EnvFilter;

/// Vision pre-training on hand-written CUDA kernels, and on any CPU
#[derive(Parser)]
#[command(name = "ocellus", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    machine: Machine,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ocellus data synth scenes                                labelled images to try things on
  ocellus pretrain mae scenes/train --preset tiny --epochs 50 --out runs/scenes
  ocellus pretrain mae --resume runs/scenes                goes on where it stopped
  ocellus eval knn runs/scenes scenes/train scenes/val     how good the features are
  ocellus finetune runs/scenes scenes/train scenes/val     a classifier from them
  ocellus visualize mae runs/scenes scenes/val             original | masked | reconstruction | pasted
  ocellus visualize pca runs/scenes scenes/val             patches in the colours of their components
  ocellus pretrain dinov2 scenes/train --preset micro --image-size 64 --local-size 32 --patch-size 8 --out runs/dino
  ocellus pretrain distill runs/dino scenes/train --preset micro --image-size 64 --local-size 32 --patch-size 8
  ocellus curate photos --evaluation scenes/val            without copies of one another and of these
  ocellus data synth pairs --captions                      image-text pairs to try things on
  ocellus tokenizer train pairs/train --vocab 512
  ocellus pretrain siglip pairs/train --tokenizer tokenizer.json --preset micro --patch-size 8 --out runs/pairs
  ocellus eval zero-shot runs/pairs pairs/unseen           classes known by name only
  ocellus visualize siglip runs/pairs pairs/val            images against captions
  ocellus data synth clips --video --size 96               clips of moving objects with masks
  ocellus pretrain sam2 clips/train --preset micro --val clips/val --out runs/objects
  ocellus segment video runs/objects clips/val/frames/00000 --masks clips/val/masks/00000/00000.png
  ocellus bench layer_norm                                 kernels beside the floor
  ocellus info                                             devices, kernels, what is missing";

#[derive(Subcommand)]
enum Command {
    /// Train weights from images without labels, or with captions
    #[command(subcommand)]
    Pretrain(Pretrain),
    /// Train pre-trained weights as a classifier
    Finetune(Box<finetune::Flags>),
    /// Measure frozen features
    #[command(subcommand)]
    Eval(Eval),
    /// Write the features of a folder of images, or of captions
    Embed(eval::Embed),
    /// Choose images from a pool: drop near-duplicates and copies of evaluation images, retrieve what is like curated ones
    Curate(Box<ocellus::curate::Config>),
    /// Masks of objects in an image or a video, from points, boxes or masks
    #[command(subcommand)]
    Segment(Segment),
    /// Draw what a model does
    #[command(subcommand)]
    Visualize(Visualize),
    /// Make data
    #[command(subcommand)]
    Data(Data),
    /// Make a tokenizer
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Time the operations at the recipes' shapes, beside what the device can do at most
    Bench(bench::Flags),
    /// Show devices, compiled kernels and what is missing
    Info,
}

#[derive(Subcommand)]
enum Pretrain {
    /// Masked autoencoder (He et al. 2021)
    Mae(Box<pretrain::Mae>),
    /// Self-distillation with prototypes and hidden patches (Oquab et al. 2023)
    Dinov2(Box<pretrain::Dinov2>),
    /// A smaller DINOv2 model from a trained one
    Distill(Box<pretrain::Distill>),
    /// Image and text towers from image-caption pairs, sigmoid loss (Zhai et al. 2023) or softmax
    Siglip(Box<pretrain::Siglip>),
    /// Objects in images and videos from clicks, boxes and masks (Ravi et al. 2024)
    Sam2(Box<pretrain::Sam2>),
}

#[derive(Subcommand)]
enum Segment {
    /// What a point or a box means, or everything in the picture
    Image(masks::ImageFlags),
    /// Objects of one frame in all others
    Video(masks::VideoFlags),
}

#[derive(Subcommand)]
enum Eval {
    /// Accuracy of a vote of the nearest neighbours
    Knn(eval::Knn),
    /// Accuracy of a linear layer trained on the features, or of the best of many
    Linear(Box<eval::Linear>),
    /// Accuracy of an image-text model that knows the classes by name only
    ZeroShot(siglip::ZeroShot),
    /// How often an image finds its caption and a caption its image; or, by images alone, others of its class
    Retrieval(Box<retrieval::Flags>),
    /// Label every pixel by a linear layer trained on the patches
    Segmentation(Box<segmentation::Flags>),
    /// J & F of following objects through videos from their first masks
    Video(masks::EvalFlags),
}

#[derive(Subcommand)]
enum Visualize {
    /// Original | masked | reconstruction | pasted, for a folder of images
    Mae(visualize::Flags),
    /// Images against captions with probabilities, and the nearest of each
    Siglip(siglip::Visualize),
    /// Patches in the colours of their principal components, background black, beside each image
    Pca(visualize::Pca),
    /// What the class token attends to in the last block: image | mean of the heads | each head
    Attention(visualize::Attention),
    /// Images and their nearest neighbours in a folder
    Neighbours(visualize::Neighbours),
}

#[derive(Subcommand)]
enum Tokenizer {
    /// Find the pieces of captions (byte-pair encoding with byte fallback)
    Train(tokenizer::Flags),
}

#[derive(Subcommand)]
enum Data {
    /// Draw labelled images of cluttered scenes, with captions; or short videos with masks; or image-text pairs
    Synth(synth::Flags),
    /// Draw a pool of images with planted copies, to measure `curate` on
    Planted(curate::PlantedFlags),
}

/// Where and how to compute: options of every subcommand.
#[derive(Args)]
struct Machine {
    /// cpu, cuda, cuda:N or emulated (the CUDA kernels, checked, on the CPU: slow)
    #[arg(long, global = true, default_value = "cpu")]
    device: String,
    /// Type kernels compute in: f32, bf16, f16; weights stay f32 [default: bf16 on cuda, f32 elsewhere]
    #[arg(long, global = true)]
    dtype: Option<String>,
    /// CPU threads [default: one per core]
    #[arg(long, global = true)]
    threads: Option<usize>,
}

impl Machine {
    fn device(&self) -> Result<Device> {
        Device::parse(&self.device)
    }

    fn dtype(&self, device: &Device) -> Result<DType> {
        self.dtype_of_run(device, None)
    }

    /// `of_run` is what a run that is continued began with.
    fn dtype_of_run(&self, device: &Device, of_run: Option<&str>) -> Result<DType> {
        match self.dtype.as_deref().or(of_run) {
            None if matches!(device, Device::Cuda(_)) => Ok(DType::BF16),
            None | Some("f32") => Ok(DType::F32),
            Some("bf16") => Ok(DType::BF16),
            Some("f16") => Ok(DType::F16),
            Some(other) => Err(Error::config("dtype", other, "f32, bf16 or f16")),
        }
    }

    fn set_threads(&self) -> Result<()> {
        let Some(threads) = self.threads else { return Ok(()) };
        if threads == 0 {
            return Err(Error::config("threads", threads, "at least 1"));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::config("threads", threads, e.to_string()))
    }
}

/// A path that means the same when a run is continued from another folder.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path))
}

/// Runs the command line; exit code 0, 1 for an error, 130 after Ctrl-C.
pub fn run() -> ExitCode {
    let filter = EnvFilter::try_from_env("OCELLUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .without_time()
        .with_target(false)
        .log_internal_errors(false) // of a stderr that is gone
        .init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // help or what is wrong with the arguments; nothing is left to do if nobody can read it
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(&cli) {
        Ok(code) => code,
        Err(e) => {
            say_err!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    cli.machine.set_threads()?;
    match &cli.command {
        Command::Pretrain(Pretrain::Mae(flags)) => return pretrain::mae(flags, &cli.machine),
        Command::Pretrain(Pretrain::Dinov2(flags)) => return pretrain::dinov2(flags, &cli.machine),
        Command::Pretrain(Pretrain::Distill(flags)) => return pretrain::distill(flags, &cli.machine),
        Command::Pretrain(Pretrain::Siglip(flags)) => return pretrain::siglip(flags, &cli.machine),
        Command::Pretrain(Pretrain::Sam2(flags)) => return pretrain::sam2(flags, &cli.machine),
        Command::Finetune(flags) => return finetune::finetune(flags, &cli.machine),
        Command::Eval(Eval::Knn(flags)) => eval::knn(flags, &cli.machine)?,
        Command::Eval(Eval::Linear(flags)) => eval::linear(flags, &cli.machine)?,
        Command::Eval(Eval::ZeroShot(flags)) => siglip::zero_shot(flags, &cli.machine)?,
        Command::Eval(Eval::Retrieval(flags)) => retrieval::retrieval(flags, &cli.machine)?,
        Command::Eval(Eval::Segmentation(flags)) => segmentation::segmentation(flags, &cli.machine)?,
        Command::Eval(Eval::Video(flags)) => masks::eval(flags, &cli.machine)?,
        Command::Segment(Segment::Image(flags)) => masks::image(flags, &cli.machine)?,
        Command::Segment(Segment::Video(flags)) => masks::video(flags, &cli.machine)?,
        Command::Curate(config) => return curate::curate(config, &cli.machine),
        Command::Embed(flags) => eval::embed(flags, &cli.machine)?,
        Command::Visualize(Visualize::Mae(flags)) => visualize::mae(flags, &cli.machine)?,
        Command::Visualize(Visualize::Siglip(flags)) => siglip::visualize(flags, &cli.machine)?,
        Command::Visualize(Visualize::Pca(flags)) => visualize::pca(flags, &cli.machine)?,
        Command::Visualize(Visualize::Attention(flags)) => visualize::attention(flags, &cli.machine)?,
        Command::Visualize(Visualize::Neighbours(flags)) => visualize::neighbours(flags, &cli.machine)?,
        Command::Data(Data::Synth(flags)) => synth::synth(flags)?,
        Command::Data(Data::Planted(flags)) => curate::planted(flags)?,
        Command::Tokenizer(Tokenizer::Train(flags)) => tokenizer::run(flags)?,
        Command::Bench(flags) => return bench::bench(flags, &cli.machine),
        Command::Info => info::info(),
    }
    Ok(ExitCode::SUCCESS)
}
