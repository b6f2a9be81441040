//! Self-distillation in a loop of one's own, on the images of a folder: `cargo run --release --example self_distillation -- FOLDER`

use std::path::Path;
use std::sync::Arc;

use ocellus::data::loader::Options;
use ocellus::data::multi_crop::MultiCrop;
use ocellus::data::{Folder, Image, Loader, Stream};
use ocellus::nn::{Builder, Module};
use ocellus::ops::adamw::Hyper;
use ocellus::optim::{AdamW, Optimizer, Rates, Rules};
use ocellus::recipes::dinov2::{FfnKind, HeadSizes, LossSettings, Network, Sizes, Ssl, Start, Views};
use ocellus::recipes::mae::imagenet_norm;
use ocellus::{DType, Device, Grads, Result, Tape, Tensor};

const SIZES: Sizes = Sizes {
    image_size: 32,
    patch_size: 4,
    embed_dim: 96,
    depth: 6,
    num_heads: 3,
    ffn: FfnKind::Mlp,
    hidden: 384,
    registers: 0,
    interpolate_offset: 0.1,
    interpolate_antialias: false,
};
const HEAD: HeadSizes = HeadSizes { hidden: 256, bottleneck: 64, prototypes: 64, layers: 3 };

fn main() -> Result<()> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: self_distillation FOLDER");
        std::process::exit(2);
    };
    let (device, images, updates) = (Device::Cpu, 16, 20);
    let builder = Builder::new(&device, DType::F32, 0);
    let student = Network::new(&builder.pp("student"), &SIZES, &Start::SMALL, &HEAD, None)?;
    let mut teacher = Network::new(&builder.pp("teacher"), &SIZES, &Start::SMALL, &HEAD, None)?;
    for (to, from) in teacher.params_mut().into_iter().zip(student.params()) {
        to.set(&from.master)?; // the average begins at what it is the average of
    }
    let mut model = Ssl::new(student, teacher, None, LossSettings::default())?;
    model.student.backbone.mask_token.trainable = false; // nothing is hidden here, see Views::masks
    let mut adamw =
        AdamW::new(Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, Rules::self_supervised(0.04, 1.0, 6, 1.0));

    let crops = MultiCrop { global_size: 32, local_size: 16, locals: 2, ..MultiCrop::dinov2(16) };
    let views = move |image: &Image, rng: &mut Stream| crops.apply(image, rng);
    let loader = Loader::new(Arc::new(Folder::open(Path::new(&folder))?), views, Options::training(images, 0))?;
    let (norm, mut grads) = (imagenet_norm(&device)?, Grads::new());
    for (step, batch) in loader.take(updates).enumerate() {
        let batch = batch?;
        // The first view of all images, then the second, and so on.
        let all = |first: usize, side: usize| {
            let view = |k: usize| {
                batch
                    .images
                    .chunks(crops.bytes())
                    .flat_map(move |v| &v[first + k * 3 * side * side..][..3 * side * side])
            };
            let pixels: Vec<u8> = (0..2).flat_map(view).copied().collect();
            Tensor::from_slice(&pixels, [2 * batch.labels.len(), 3, side, side], &device)
        };
        let (global, local) = (all(0, 32)?, Some(all(2 * 3 * 32 * 32, 16)?));
        let views =
            Views { global, local, masks: None, teacher_temp: Tensor::full([1], 0.04f32, &device)?, drops: vec![] };
        let tape = Tape::new();
        let (loss, _) = model.loss(&tape, &views, Some(&norm), false)?;
        grads.clear();
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let rates = Rates { momentum: 0.99, ..Rates::new(1e-4) };
        let stats = adamw.step(&mut model.params_mut(), &grads, &rates, Some(3.0))?;
        println!("{step}: loss {:.4}, gradient norm {:.3}", loss.value().item()?, stats.grad_norm);
    }
    Ok(())
}
