//! Properties of the layers, in f64 on the CPU.

use super::vit::{PatchIds, Vit, VitConfig};
use super::{Block, Builder, Drops, LayerNorm, Module, Sequences, Style};
use crate::random::{normal, stream};
use crate::{DType, Device, Grads, Param, Result, Tape, Tensor, Var};

fn builder() -> Builder {
    Builder::new(&Device::Cpu, DType::F64, 5)
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_slice(&normal(&mut stream(seed, 1), shape.iter().product()), shape.to_vec(), &Device::Cpu).unwrap()
}

/// Values that no initialisation gives, so that no term of a layer is zero.
fn shake(model: &mut dyn Module) {
    for (i, p) in model.params_mut().into_iter().enumerate() {
        let values = random(p.master.shape(), i as u64).to_f64().unwrap();
        let values: Vec<f64> = values.iter().zip(p.master.to_f64().unwrap()).map(|(r, old)| 0.2 * r + old).collect();
        p.set(&Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap()).unwrap();
    }
}

fn block() -> Block {
    let mut block = Block::new(&builder(), 12, 3, 20, 1e-6, &Style::VIT).unwrap();
    shake(&mut block);
    block
}

fn vit() -> (Vit, LayerNorm) {
    let config = VitConfig { image: [6, 9], patch: 3, channels: 2, dim: 8, depth: 2, heads: 2, hidden: 12, eps: 1e-6 };
    let (mut vit, mut norm) = (Vit::new(&builder(), &config).unwrap(), LayerNorm::new(&builder(), 8, 1e-6).unwrap());
    shake(&mut vit);
    shake(&mut norm);
    (vit, norm)
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
    // f64 rounding of sums of a few hundred terms.
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * largest), "{a:?}\n{b:?}");
}

fn factors(values: &[f64]) -> Option<Tensor> {
    Some(Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap())
}

#[test]
fn parameters_have_the_names_and_initial_values_of_upstream() {
    let config = VitConfig { image: [8, 8], patch: 4, channels: 3, dim: 16, depth: 1, heads: 2, hidden: 64, eps: 1e-6 };
    let vit = Vit::new(&Builder::new(&Device::Cpu, DType::F32, 0), &config).unwrap();
    let names: Vec<&str> = vit.params().iter().map(|p| p.name()).collect();
    let both = |module: &str| [format!("{module}.weight"), format!("{module}.bias")];
    let inner =
        ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"].map(|m| both(&format!("blocks.0.{m}")));
    let outer = [vec!["cls_token".to_string(), "pos_embed".into()], both("patch_embed.proj").to_vec()];
    assert_eq!(names, [outer.concat(), inner.concat()].concat());

    let largest = |name: &str| {
        let p = vit.params().into_iter().find(|p| p.name() == name).unwrap();
        p.master.to_f64().unwrap().into_iter().fold(0f64, |m, x| m.max(x.abs()))
    };
    // Of hundreds of uniform values the largest comes near the bound and never over it.
    for (name, bound) in [
        ("blocks.0.attn.qkv.weight", (6.0f64 / (4.0 * 16.0)).sqrt()), // the fused layer counts as [3 D, D]
        ("blocks.0.attn.proj.weight", (6.0f64 / (2.0 * 16.0)).sqrt()),
        ("blocks.0.mlp.fc1.weight", (6.0f64 / (16.0 + 64.0)).sqrt()),
        ("patch_embed.proj.weight", (6.0f64 / (48.0 + 16.0)).sqrt()),
    ] {
        assert!((0.95 * bound..=bound).contains(&largest(name)), "{name}: {} of {bound}", largest(name));
    }
    let patch_bias = largest("patch_embed.proj.bias"); // 16 values of torch's default for a convolution
    assert!(patch_bias > 0.5 * 48f64.powf(-0.5) && patch_bias <= 48f64.powf(-0.5), "{patch_bias}");
    assert!((0.01..0.1).contains(&largest("cls_token")));
    for zero in ["blocks.0.attn.qkv.bias", "blocks.0.mlp.fc2.bias", "blocks.0.norm1.bias"] {
        assert_eq!(largest(zero), 0.0, "{zero}");
    }
    assert!(vit.params().iter().all(|p| p.trainable == (p.name() != "pos_embed")));
    assert_eq!(vit.trainable(), vit.params().iter().filter(|p| p.trainable).map(|p| p.master.numel()).sum::<usize>());
}

#[test]
fn initial_values_depend_on_seed_and_name_only() {
    let value = |seed: u64, path: &str| {
        let b = Builder::new(&Device::Cpu, DType::F32, seed).pp(path);
        b.param("weight", [7], super::Init::Normal(1.0)).unwrap().master.to_f64().unwrap()
    };
    assert_eq!(value(1, "a"), value(1, "a"));
    assert_ne!(value(1, "a"), value(2, "a"));
    assert_ne!(value(1, "a"), value(1, "b"));
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (block, tape) = (block(), Tape::no_grad());
    let x = random(&[7, 12], 40).to_f64().unwrap();
    let run = |rows: std::ops::Range<usize>, starts: &[i32], max: usize| {
        let rows = Tensor::from_slice(&x[rows.start * 12..rows.end * 12], [rows.len(), 12], &Device::Cpu).unwrap();
        let starts = Tensor::from_slice(starts, [starts.len()], &Device::Cpu).unwrap();
        let seqs = Sequences { cu_seqlens: starts, max };
        block.forward(&tape, &Var::constant(rows), &seqs, &Drops::default()).unwrap().value().to_f64().unwrap()
    };
    let apart = [run(0..2, &[0, 2], 2), run(2..7, &[0, 5], 5)].concat();
    assert_close(&run(0..7, &[0, 2, 7], 5), &apart);
}

#[test]
fn dropped_branches_leave_the_input_and_kept_ones_are_scaled() -> Result<()> {
    let (block, tape) = (block(), Tape::no_grad());
    let (seqs, x) = (Sequences::uniform(2, 3, &Device::Cpu)?, Var::constant(random(&[6, 12], 41)));
    let run = |attn: Option<Tensor>, mlp: Option<Tensor>| {
        block.forward(&tape, &x, &seqs, &Drops { attn, mlp }).unwrap().value().to_f64().unwrap()
    };
    let (zero, one, rest) = (|| factors(&[0.0, 0.0]), || factors(&[1.0, 1.0]), x.value().to_f64()?);
    assert_eq!(run(zero(), zero()), rest);
    assert_close(&run(one(), one()), &run(None, None));
    // Without the other branch the output is linear in the factor, sequence by sequence.
    let (once, mixed) = (run(one(), zero()), run(factors(&[2.0, 0.0]), zero()));
    let expected = rest.iter().zip(&once).enumerate().map(|(i, (x, y))| if i < 36 { 2.0 * y - x } else { *x });
    assert_close(&mixed, &expected.collect::<Vec<_>>());
    Ok(())
}

#[test]
fn recomputed_blocks_have_the_same_gradients() -> Result<()> {
    let (block, seqs) = (block(), Sequences::uniform(2, 3, &Device::Cpu)?);
    let drops = Drops { attn: factors(&[1.25, 0.0]), mlp: factors(&[0.0, 1.25]) };
    let run = |recompute: bool| -> Result<Vec<Vec<f64>>> {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = tape.leaf(random(&[6, 12], 42));
        let y = match recompute {
            true => block.recomputed(&tape, &x, &seqs, &drops)?,
            false => block.forward(&tape, &x, &seqs, &drops)?,
        };
        let value = y.value().to_f64()?;
        tape.backward(&y, random(&[6, 12], 43), &mut grads)?;
        let of = |p: &Param| grads.get(p).unwrap().to_f64();
        let mut all: Vec<Vec<f64>> = block.params().into_iter().map(of).collect::<Result<_>>()?;
        all.extend([value, grads.take(&x).unwrap().to_f64()?]);
        Ok(all)
    };
    assert_eq!(run(true)?, run(false)?);
    Ok(())
}

#[test]
fn features_are_in_raster_order() -> Result<()> {
    let ((vit, norm), images) = (vit(), random(&[2, 2, 6, 9], 44));
    let tokens = |ids: &PatchIds| -> Result<Vec<f64>> {
        let tape = Tape::no_grad();
        let x = vit.embed(&tape, &Var::constant(images.clone()), None, ids)?;
        let x = vit.run(&tape, x, &Sequences::uniform(2, 7, &Device::Cpu)?, &[])?;
        norm.forward(&tape, &x)?.value().to_f64()
    };
    let given = tokens(&PatchIds::all(2, 6, &Device::Cpu)?)?;
    // The same tokens in another order: attention does not mind.
    let order = [3usize, 0, 5, 1, 4, 2];
    let rank = |patch: usize| order.iter().position(|&p| p == patch).unwrap() as i32;
    let keep: Vec<i32> = order.iter().chain(&order).map(|&p| p as i32).collect();
    let restore: Vec<i32> = (0..12).map(|i| rank(i % 6)).collect();
    let ids = |v: &[i32]| Tensor::from_slice(v, [2, 6], &Device::Cpu);
    let shuffled = tokens(&PatchIds { keep: ids(&keep)?, restore: ids(&restore)? })?;
    let row = |image: usize, at: usize| &shuffled[(image * 7 + at) * 8..][..8];
    let raster: Vec<f64> = (0..2)
        .flat_map(|image| {
            let patches = (0..6).map(move |patch| 1 + rank(patch) as usize);
            std::iter::once(0).chain(patches).flat_map(move |at| row(image, at).to_vec())
        })
        .collect();
    assert_close(&given, &raster);
    Ok(())
}

#[test]
fn impossible_sizes_are_errors() {
    let error = |change: fn(&mut VitConfig)| {
        let mut c = vit().0.config;
        change(&mut c);
        Vit::new(&builder(), &c).unwrap_err().to_string()
    };
    assert!(error(|c| c.image = [6, 8]).contains("6x8"));
    assert!(error(|c| c.patch = 0).contains("patch size 0"));
    assert!(error(|c| c.dim = 6).contains("`embed_dim` is 6"));
    assert!(error(|c| c.heads = 3).contains("`num_heads` is 3"));
    assert!(error(|c| c.heads = 0).contains("`num_heads` is 0"));
}

#[test]
fn images_of_another_size_or_channels_are_refused() {
    let (vit, _) = vit();
    let embed = |shape: [usize; 4]| {
        let ids = PatchIds::all(shape[0], 6, &Device::Cpu)?;
        vit.embed(&Tape::no_grad(), &Var::constant(random(&shape, 45)), None, &ids)
    };
    assert_eq!(embed([3, 2, 6, 9]).unwrap().value().shape().to_vec(), [3 * 7, 8]);
    for shape in [[3, 2, 9, 9], [3, 2, 9, 6], [3, 3, 6, 9]] {
        let error = embed(shape).unwrap_err().to_string();
        assert!(error.contains(&format!("{shape:?}")) && error.contains("[3, 2, 6, 9]"), "{error}");
    }
}
