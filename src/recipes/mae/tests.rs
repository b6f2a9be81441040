//! Properties of the recipe, in f64 on the CPU.

use super::classifier::{Classifier, Pool, drop_rates, drops};
use super::{Mae, MaskIds, Sizes};
use crate::data::masks::{Masking, random_masking};
use crate::nn::{Builder, Drops, Module};
use crate::ops::adamw::Hyper;
use crate::ops::cross_entropy::{Targets, cross_entropy};
use crate::optim::schedule::Cosine;
use crate::optim::{AdamW, Optimizer, Rates, Rules};
use crate::random::{normal, stream};
use crate::{DType, Device, Grads, Param, Result, Tape, Tensor, Var};

/// 2 x 3 patches of 4 x 4 pixels.
const LEN: usize = 6;

fn sizes() -> Sizes {
    Sizes {
        image_size: [8, 12],
        patch_size: 4,
        in_chans: 2,
        embed_dim: 12,
        depth: 2,
        num_heads: 3,
        hidden: 20,
        decoder_embed_dim: 8,
        decoder_depth: 1,
        decoder_num_heads: 2,
        decoder_hidden: 16,
        eps: 1e-6,
    }
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_slice(&normal(&mut stream(seed, 1), shape.iter().product()), shape.to_vec(), &Device::Cpu).unwrap()
}

fn images(batch: usize, seed: u64) -> Tensor {
    random(&[batch, 2, 8, 12], seed)
}

/// Values that no initialisation gives, so that no term is zero.
fn shake(model: &mut dyn Module) {
    for (i, p) in model.params_mut().into_iter().enumerate() {
        let values = random(p.master.shape(), i as u64).to_f64().unwrap();
        let values: Vec<f64> = values.iter().zip(p.master.to_f64().unwrap()).map(|(r, old)| 0.2 * r + old).collect();
        p.set(&Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap()).unwrap();
    }
}

fn model() -> Mae {
    let mut model = Mae::new(&Builder::new(&Device::Cpu, DType::F64, 3), &sizes(), true).unwrap();
    shake(&mut model);
    model
}

fn classifier(pool: Pool, dtype: DType) -> Classifier {
    let mut model = Classifier::new(&Builder::new(&Device::Cpu, dtype, 3), &sizes(), 4, pool).unwrap();
    shake(&mut model);
    model
}

fn masking(noise: &[f32], ratio: f64) -> Masking {
    random_masking(noise, noise.len() / LEN, LEN, ratio).unwrap()
}

fn ids(masking: &Masking) -> MaskIds {
    MaskIds::new(masking, masking.ids_restore.len() / LEN, &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
    // f64 rounding of sums of a few hundred terms.
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * largest), "{a:?}\n{b:?}");
}

/// Loss of a batch and the gradients `scale` times the loss has; later calls add to them.
fn learn(model: &Mae, images: &Tensor, ids: &MaskIds, scale: f64, grads: &mut Grads) -> Result<f64> {
    let tape = Tape::new();
    let loss = model.loss(&tape, &Var::constant(images.clone()), None, ids)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, scale, grads)?;
    Ok(value)
}

fn gradients(model: &dyn Module, grads: &Grads) -> Vec<Vec<f64>> {
    let trained = model.params().into_iter().filter(|p| p.trainable);
    trained.map(|p| grads.get(p).unwrap_or_else(|| panic!("{}", p.name())).to_f64().unwrap()).collect()
}

fn bytes(p: &Param) -> Vec<u64> {
    p.master.to_f64().unwrap().into_iter().map(f64::to_bits).collect()
}

const NOISE: [f32; 12] = [0.4, 0.9, 0.1, 0.7, 0.3, 0.6, 0.8, 0.2, 0.5, 0.15, 0.95, 0.35];

/// Whether the pixel at `at` of images `[B, 2, 8, 12]` belongs to a removed patch.
fn removed(masking: &Masking, at: usize) -> bool {
    let (image, y, x) = (at / 192, at / 12 % 8, at % 12);
    masking.mask[image * LEN + y / 4 * 3 + x / 4] == 1.0
}

#[test]
fn the_latent_does_not_depend_on_removed_pixels() -> Result<()> {
    let (model, masking) = (model(), masking(&NOISE, 0.6));
    let kept = ids(&masking).kept;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(images(2, 50));
    let latent = model.encode(&tape, &x, None, &kept)?;
    let before = latent.value().to_f64()?;
    tape.backward(&latent, random(latent.value().shape(), 51), &mut grads)?;
    let dx = grads.take(&x).unwrap().to_f64()?;
    for (at, dx) in dx.iter().enumerate() {
        assert_eq!(*dx == 0.0, removed(&masking, at), "pixel {at}: {dx}");
    }
    let other = images(2, 52).to_f64()?;
    let mixed: Vec<f64> = images(2, 50)
        .to_f64()?
        .into_iter()
        .zip(other)
        .enumerate()
        .map(|(at, (old, new))| if removed(&masking, at) { new } else { old })
        .collect();
    let mixed = Var::constant(Tensor::from_slice(&mixed, [2, 2, 8, 12], &Device::Cpu)?);
    assert_eq!(model.encode(&Tape::no_grad(), &mixed, None, &kept)?.value().to_f64()?, before);
    Ok(())
}

#[test]
fn the_order_of_kept_tokens_does_not_matter() -> Result<()> {
    let (model, images) = (model(), Var::constant(images(1, 53)));
    // Patches 2, 4, 0 are kept in this order, then in the order 0, 2, 4.
    let (a, b) = (masking(&NOISE[..6], 0.5), masking(&[0.1, 0.9, 0.3, 0.7, 0.4, 0.6], 0.5));
    assert_eq!((&a.ids_keep[..], &b.ids_keep[..]), (&[2, 4, 0][..], &[0, 2, 4][..]));
    let tape = Tape::no_grad();
    let latent = |m: &Masking| model.encode(&tape, &images, None, &ids(m).kept);
    let (x, y) = (latent(&a)?, latent(&b)?);
    let rows =
        |v: &Var| -> Result<Vec<Vec<f64>>> { Ok(v.value().to_f64()?.chunks_exact(12).map(<[f64]>::to_vec).collect()) };
    let (in_a, in_b) = (rows(&x)?, rows(&y)?);
    for (row_a, row_b) in [(0, 0), (1, 2), (2, 3), (3, 1)] {
        assert_close(&in_a[row_a], &in_b[row_b]);
    }
    let pred = |m: &Masking, x: &Var| model.predict_all(&tape, x, &ids(m).kept.restore)?.value().to_f64();
    assert_close(&pred(&a, &x)?, &pred(&b, &y)?);
    let loss = |m: &Masking| model.loss(&tape, &images, None, &ids(m))?.value().to_f64();
    assert_close(&loss(&a)?, &loss(&b)?);
    Ok(())
}

#[test]
fn the_mask_token_collects_the_gradient_of_removed_rows() -> Result<()> {
    let mut model = model();
    model.decoder_pos_embed.trainable = true; // its gradient is the one that enters the decoder, row by row
    for ratio in [0.6, 0.0] {
        let masking = masking(&NOISE[..6], ratio);
        let kept = ids(&masking).kept;
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let latent = model.encode(&tape, &Var::constant(images(1, 54)), None, &kept)?;
        let pred = model.predict_all(&tape, &latent, &kept.restore)?;
        tape.backward(&pred, random(pred.value().shape(), 55), &mut grads)?;
        let rows = grads.get(&model.decoder_pos_embed).unwrap().to_f64()?;
        let mut sum = vec![0.0; 8];
        for (patch, row) in rows.chunks_exact(8).skip(1).enumerate().filter(|(patch, _)| masking.mask[*patch] == 1.0) {
            assert!(row.iter().any(|x| *x != 0.0), "patch {patch}");
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        assert_close(&grads.get(&model.mask_token).unwrap().to_f64()?, &sum);
    }
    Ok(())
}

#[test]
fn every_patch_is_predicted_however_many_are_kept() -> Result<()> {
    let (model, images, tape) = (model(), Var::constant(images(2, 56)), Tape::no_grad());
    let values = 4 * 4 * 2;
    for ratio in [0.0, 0.2, 0.5, 0.7, 0.8] {
        let masking = masking(&NOISE, ratio);
        let ids = ids(&masking);
        let latent = model.encode(&tape, &images, None, &ids.kept)?;
        let all = model.predict_all(&tape, &latent, &ids.kept.restore)?.value().clone();
        assert_eq!(all.shape().rows_cols(), (2 * LEN, values), "ratio {ratio}");
        // Rows that are asked for are those of all.
        let some = model.predict(&tape, &latent, &ids.kept.restore, &ids.rows)?.value().to_f64()?;
        let all = all.to_f64()?;
        let expected: Vec<f64> = masking
            .mask
            .iter()
            .zip(all.chunks_exact(values))
            .filter(|(m, _)| **m == 1.0)
            .flat_map(|(_, row)| row.to_vec())
            .collect();
        assert_close(&some, &expected);
    }
    Ok(())
}

#[test]
fn tables_change_in_fine_tuning_only() -> Result<()> {
    let mut model = model();
    let tables = |m: &Mae| [bytes(&m.encoder.pos_embed), bytes(&m.decoder_pos_embed)];
    let (before, kernel) = (tables(&model), bytes(&model.encoder.patch_embed.weight));
    let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05));
    for step in 0..3 {
        let mut grads = Grads::new();
        learn(&model, &images(2, 60 + step), &ids(&masking(&NOISE, 0.6)), 1.0, &mut grads)?;
        adamw.step(&mut model.params_mut(), &grads, &Rates::new(0.1), None)?;
    }
    assert_eq!(tables(&model), before);
    assert_ne!(bytes(&model.encoder.patch_embed.weight), kernel);

    for pool in [Pool::Mean, Pool::Cls] {
        let mut model = classifier(pool, DType::F64);
        let before = bytes(&model.trunk.pos_embed);
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let logits = model.forward(&tape, &Var::constant(images(2, 63)), None, &[])?;
        let classes = Tensor::from_slice(&[1i32, 3], [2], &Device::Cpu)?;
        let loss = cross_entropy(&tape, &logits, Targets::Classes(&classes), 0.1)?;
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, Rules::finetuning(0.05, 0.75, 2));
        adamw.step(&mut model.params_mut(), &grads, &Rates::new(0.1), None)?;
        let after = bytes(&model.trunk.pos_embed);
        assert!(before.iter().zip(&after).all(|(a, b)| a != b), "{pool:?}: every row takes part in attention");
    }
    Ok(())
}

#[test]
fn accumulated_batches_are_one_large_batch() -> Result<()> {
    let (model, all) = (model(), images(4, 64));
    let noise: Vec<f32> = NOISE.iter().chain(&[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]).chain(&NOISE[6..]).copied().collect();
    let mut whole = Grads::new();
    let large = learn(&model, &all, &ids(&masking(&noise, 0.6)), 1.0, &mut whole)?;
    let (mut parts, mut mean) = (Grads::new(), 0.0);
    for micro in 0..2 {
        let values = &all.to_f64()?[micro * 384..(micro + 1) * 384];
        let images = Tensor::from_slice(values, [2, 2, 8, 12], &Device::Cpu)?;
        let ids = ids(&masking(&noise[micro * 12..(micro + 1) * 12], 0.6));
        mean += 0.5 * learn(&model, &images, &ids, 0.5, &mut parts)?;
    }
    assert_close(&[mean], &[large]);
    let largest = gradients(&model, &whole).concat().into_iter().fold(0f64, |m, x| m.max(x.abs()));
    for (part, whole) in gradients(&model, &parts).iter().zip(gradients(&model, &whole)) {
        // Relative to the largest gradient of all: those of the key biases are 0 but for rounding.
        assert!(part.iter().zip(whole).all(|(a, b)| (a - b).abs() <= 1e-12 * largest));
    }
    Ok(())
}

#[test]
fn the_first_step_of_a_warm_up_changes_no_weight() -> Result<()> {
    let mut model = model();
    let state = |m: &Mae| m.params().into_iter().map(bytes).collect::<Vec<_>>();
    let before = state(&model);
    let schedule = Cosine { lr: 1e-3, min_lr: 0.0, warmup_epochs: 1.0, epochs: 4.0 };
    let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05));
    let mut grads = Grads::new();
    learn(&model, &images(2, 65), &ids(&masking(&NOISE, 0.6)), 1.0, &mut grads)?;
    adamw.step(&mut model.params_mut(), &grads, &Rates::new(schedule.at(0.0)), None)?;
    assert_eq!(state(&model), before);
    let moments = adamw.state()?;
    let moving = moments.iter().filter(|(name, _)| name.starts_with("exp_avg."));
    assert!(moving.map(|(_, m)| m.to_f64().unwrap()).all(|m| m.iter().any(|x| *x != 0.0)));
    Ok(())
}

#[test]
fn stochastic_depth_keeps_the_mean() -> Result<()> {
    assert_eq!(drop_rates(0.3, 4).iter().map(|r| (r * 10.0).round() as i32).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((drop_rates(0.3, 1), drop_rates(0.0, 3)), (vec![0.0], vec![0.0; 3]));
    let rates = [0.0, 0.2];
    let values = |u: f32| -> Vec<f64> {
        let made = drops(&rates, &Device::Cpu, |_, _| vec![u; 3]).unwrap();
        assert!(made[0].attn.is_none() && made[0].mlp.is_none(), "a block of rate 0 draws nothing");
        [&made[1].attn, &made[1].mlp].into_iter().flat_map(|t| t.as_ref().unwrap().to_f64().unwrap()).collect()
    };
    assert_close(&values(0.0), &[0.0; 6]);
    let kept = values(1.0 - f32::EPSILON);
    assert!(kept.iter().all(|f| (f - 1.25).abs() < 1e-6), "{kept:?}");
    // Over an even grid of numbers the mean of the factors is 1.
    let grid: Vec<f32> = (0..1000).map(|i| (i as f32 + 0.5) / 1000.0).collect();
    let made = drops(&rates, &Device::Cpu, |_, _| grid.clone())?;
    let factors = made[1].attn.as_ref().unwrap().to_f64()?;
    assert!((factors.iter().sum::<f64>() / 1000.0 - 1.0).abs() < 2e-3);
    assert!(drops(&[1.0], &Device::Cpu, |_, _| vec![0.5]).unwrap_err().to_string().contains("`drop_path` is 1"));

    // In the model, in f32 as factors are: without a rate nothing is drawn; dropping all leaves the embedding.
    let (model, tape) = (classifier(Pool::Mean, DType::F32), Tape::no_grad());
    let images = Var::constant(images(2, 66).cast(DType::F32)?);
    let features = |model: &Classifier, drawn: &[Drops]| model.features(&tape, &images, None, drawn)?.value().to_f64();
    let drawn = |u: f32, rate: f64| drops(&[rate, rate], &Device::Cpu, |_, _| vec![u; 2]);
    let plain = features(&model, &[])?;
    assert_eq!(features(&model, &drawn(0.5, 0.0)?)?, plain);
    assert_ne!(features(&model, &drawn(0.9, 0.5)?)?, plain);
    let mut none = model.clone();
    none.trunk.blocks.clear();
    assert_eq!(features(&model, &drawn(0.0, 0.5)?)?, features(&none, &[])?);
    Ok(())
}
