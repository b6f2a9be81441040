//! Training steps of self-distillation at several rates of stochastic depth: `cargo bench --bench dinov2`.
//!
//! A branch of a block is computed for the kept sequences alone, so a step at rate p saves the share p of what the student's
//! blocks take; teacher, heads, embedding and update cost the same.

use std::hint::black_box;

use clap::Parser;
use criterion::{Criterion, Throughput};
use ocellus::data::{Batch, Purpose, Stream};
use ocellus::nn::Builder;
use ocellus::optim::{AdamW, Optimizer};
use ocellus::recipes::Task;
use ocellus::recipes::dinov2::load::NetworkSizes;
use ocellus::recipes::dinov2::{Config, Pretrain, Ssl};
use ocellus::{DType, Device, Grads, Result};

/// A run's flags.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A run on one batch that stays where it is: no data loading in the figures.
struct Step {
    task: Pretrain,
    batch: Batch<u8>,
    optimizer: AdamW,
    clip: f64,
    grads: Grads,
    device: Device,
}

impl Step {
    fn new(preset: &str, images: usize, drop_path: f64, device: &Device, dtype: DType) -> Result<Self> {
        let (images, drop_path) = (images.to_string(), drop_path.to_string());
        let line = Line::parse_from([
            "dinov2",
            "none",
            "--preset",
            preset,
            "--batch-size",
            &images,
            "--drop-path",
            &drop_path,
        ]);
        let config = line.config;
        let (dino_head, ibot_head) = config.heads();
        let sizes = NetworkSizes { backbone: config.sizes(), dino_head, ibot_head };
        let builder = Builder::new(device, dtype, config.seed);
        let [student, teacher] = ["student", "teacher"].map(|name| sizes.network(&builder.pp(name), &config.start()));
        let model = Ssl::new(student?, teacher?, None, config.loss())?;
        let optimizer = AdamW::new(config.hyper(), config.rules(model.student.backbone.blocks.len()));
        let mut rng = Stream::new(0, Purpose::AUGMENT, 0, 0);
        let count = config.batch_size;
        let batch = Batch {
            images: (0..count * config.multi_crop().bytes()).map(|_| rng.bits() as u8).collect(),
            labels: vec![-1; count],
            captions: vec![],
            indices: vec![0; count],
            epoch: 0,
            step_in_epoch: 10, // of 1000: prototypes rest in the first updates
        };
        let task = Pretrain::new(&config, model, 1000, 1000)?;
        Ok(Self { task, batch, optimizer, clip: config.clip_grad, grads: Grads::new(), device: device.clone() })
    }

    /// Forward, backward and update.
    fn train(&mut self) -> Result<f64> {
        let inputs = self.task.inputs(&self.batch)?;
        self.grads.clear();
        let loss = self.task.micro_step(&inputs, 1.0, &mut self.grads)?.loss.item()?;
        let rates = self.task.rates(self.batch.step_in_epoch, 0.0);
        self.optimizer.step(&mut self.task.module().params_mut(), &self.grads, &rates, Some(self.clip))?;
        self.device.synchronize()?;
        Ok(loss)
    }
}

fn benches(c: &mut Criterion) {
    let mut settings = vec![("tiny", 2, Device::Cpu, DType::F32)];
    if let Ok(device) = Device::cuda(0) {
        settings.push(("large", 32, device, DType::BF16));
    }
    let mut group = c.benchmark_group("dinov2");
    group.sample_size(10);
    for (preset, images, device, dtype) in settings {
        group.throughput(Throughput::Elements(images as u64)); // images, ten crops each
        for drop_path in [0.0, 0.3, 0.6] {
            let mut step = Step::new(preset, images, drop_path, &device, dtype).unwrap();
            let id = format!("{device}/{dtype}/{preset}/b{images}/drop_path_{drop_path}");
            // As the training loop runs its steps: on a thread of the pool.
            group.bench_function(id, |b| b.iter(|| black_box(rayon::scope(|_| step.train()).unwrap())));
        }
    }
    group.finish();
}

criterion::criterion_group!(dinov2, benches);
criterion::criterion_main!(dinov2);
