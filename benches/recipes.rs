//! Training steps of whole recipes: `cargo bench --bench recipes`.
//!
//! With `--serve [PRESET BATCH DEVICE DTYPE]` the program reads a number of steps per line of standard input and answers
//! with one line of JSON: the driver `benches/compare.py` lets it alternate with its peers that way.

use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use ocellus::data::masks::random_masking;
use ocellus::data::{Purpose, Stream};
use ocellus::nn::{Builder, Module};
use ocellus::ops::adamw::Hyper;
use ocellus::optim::{AdamW, Optimizer, Rates, Rules};
use ocellus::recipes::mae::{Mae, MaskIds, Preset, imagenet_norm};
use ocellus::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

/// What is trained where: the arguments after `--serve`, in this order.
struct Setting {
    preset: String,
    batch: usize,
    device: Device,
    dtype: DType,
}

impl Setting {
    /// The setting of docs/performance.md on the CPU.
    fn cpu() -> Self {
        Self { preset: "tiny".into(), batch: 8, device: Device::Cpu, dtype: DType::F32 }
    }

    fn parse(args: &[String]) -> Result<Self> {
        let [preset, batch, device, dtype] = args else { return Ok(Self::cpu()) };
        let batch = batch.parse().map_err(|_| Error::config("batch", batch, "a number"))?;
        let dtype = match dtype.as_str() {
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            _ => DType::F32,
        };
        Ok(Self { preset: preset.clone(), batch, device: Device::parse(device)?, dtype })
    }
}

/// MAE pre-training on one batch that stays where it is: no data loading in the figures.
struct Step {
    model: Mae,
    images: Var,
    norm: Tensor,
    ids: MaskIds,
    grads: Grads,
    optimizer: AdamW,
}

impl Step {
    fn new(setting: &Setting) -> Result<Self> {
        let (device, batch) = (&setting.device, setting.batch);
        let sizes = setting.preset.parse::<Preset>()?.sizes(None, None);
        let model = Mae::new(&Builder::new(device, setting.dtype, 0), &sizes, true)?;
        let [h, w] = sizes.image_size;
        let len = sizes.vit().patches()?;
        let mut rng = Stream::new(0, Purpose::MASK, 0, 0);
        let pixels: Vec<u8> = (0..batch * 3 * h * w).map(|_| rng.bits() as u8).collect();
        let noise: Vec<f32> = (0..batch * len).map(|_| rng.unit_f32()).collect();
        let ids = MaskIds::new(&random_masking(&noise, batch, len, 0.75)?, batch, device)?;
        let images = Var::constant(Tensor::from_slice(&pixels, [batch, 3, h, w], device)?);
        let hyper = Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
        let optimizer = AdamW::new(hyper, Rules::pretraining(0.05));
        Ok(Self { model, images, norm: imagenet_norm(device)?, ids, grads: Grads::new(), optimizer })
    }

    /// The loss alone, nothing recorded.
    fn forward(&self) -> Result<f64> {
        self.model.loss(&Tape::no_grad(), &self.images, Some(&self.norm), &self.ids)?.value().item()
    }

    /// Forward, backward and update: the loss and the seconds until each was done.
    fn train(&mut self) -> Result<(f64, [f64; 3])> {
        let start = Instant::now();
        let tape = Tape::new();
        let loss = self.model.loss(&tape, &self.images, Some(&self.norm), &self.ids)?;
        let value = loss.value().item()?;
        let forward = start.elapsed();
        self.grads.clear();
        tape.backward_scaled(&loss, 1.0, &mut self.grads)?;
        let backward = start.elapsed();
        self.optimizer.step(&mut self.model.params_mut(), &self.grads, &Rates::new(1.5e-4), None)?;
        self.images.value().device().synchronize()?;
        Ok((value, [forward, backward, start.elapsed()].map(|t| t.as_secs_f64())))
    }
}

fn benches(c: &mut Criterion) {
    let mut settings = vec![Setting::cpu()];
    if let Ok(device) = Device::cuda(0) {
        let on =
            |preset: &str| Setting { preset: preset.into(), batch: 256, device: device.clone(), dtype: DType::BF16 };
        settings.extend(["base", "large"].map(on));
    }
    let mut group = c.benchmark_group("mae");
    group.sample_size(20);
    for setting in settings {
        let Setting { preset, batch, device, dtype } = &setting;
        let mut step = Step::new(&setting).unwrap();
        let id = format!("{device}/{dtype}/{preset}/b{batch}");
        group.throughput(Throughput::Elements(*batch as u64)); // images
        group.bench_function(format!("{id}/forward"), |b| b.iter(|| black_box(step.forward().unwrap())));
        group.bench_function(id, |b| b.iter(|| black_box(threaded(|| step.train()).unwrap())));
    }
    group.finish();
}

/// As the training loop runs its steps: on a thread of the pool, which need not be woken for each parallel part.
fn threaded<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Processor time of this process in milliseconds, all threads.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|x| x.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) * 10.0 // user and system time in hundredths of a second
}

fn serve(setting: &Setting) -> Result<()> {
    let mut step = Step::new(setting)?;
    for line in std::io::stdin().lock().lines() {
        let steps: usize = line.unwrap_or_default().trim().parse().unwrap_or(1);
        let cpu = cpu_ms();
        let done = threaded(|| (0..steps).map(|_| step.train()).collect::<Result<Vec<_>>>())?;
        let cpu = (cpu_ms() - cpu) / steps as f64;
        let times = |i: usize| done.iter().map(|(_, t)| 1e3 * t[i]).collect::<Vec<f64>>();
        let loss = done.last().map_or(f64::NAN, |(loss, _)| *loss);
        let (forward, backward, all) = (times(0), times(1), times(2));
        println!(
            "{{\"ms\":{all:?},\"forward_ms\":{forward:?},\"backward_ms\":{backward:?},\"cpu_ms\":{cpu},\"loss\":{loss}}}"
        );
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|a| a == "--serve") {
        return Setting::parse(&args[at + 1..]).and_then(|setting| serve(&setting)).unwrap();
    }
    let mut criterion = Criterion::default().configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
}
