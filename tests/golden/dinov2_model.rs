//! DINOv2's block and Vision Transformer.

use ocellus::checkpoint::dinov2;
use ocellus::nn::pos_embed::{self, Resample};
use ocellus::nn::{Builder, Sequences};
use ocellus::recipes::dinov2::block::swiglu_hidden;
use ocellus::recipes::dinov2::load::from_hf;
use ocellus::recipes::dinov2::{Backbone, Block, Crops, Drops, FfnKind, Kept, Sizes, Start};
use ocellus::{DType, Device, Grads, Param, Tape, Tensor, Var};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report, gradient, load};

fn ffn(g: &Golden) -> (FfnKind, usize) {
    let hidden = (g.f64("mlp_ratio") * g.usize("dim") as f64) as usize;
    match g.config["ffn"].as_str() {
        Some("mlp") => (FfnKind::Mlp, hidden),
        _ => (FfnKind::SwiGlu, swiglu_hidden(hidden)),
    }
}

fn a_block(g: &Golden, device: &Device) -> Result<Block, Box<dyn std::error::Error>> {
    let (ffn, hidden) = ffn(g);
    let hidden = g.config["ffn_hidden"].as_u64().map_or(hidden, |h| h as usize);
    let b = Builder::new(device, DType::F32, 0);
    let mut block = Block::new(&b, g.usize("dim"), g.usize("heads"), ffn, hidden, 1e-6, &Start::OFFICIAL)?;
    load(&mut block, &g.dict("param"))?;
    Ok(block)
}

/// Sum of the products of a value and its cotangent.
fn against(y: &Tensor, cotangent: &Tensor) -> f64 {
    y.to_f64().unwrap().iter().zip(cotangent.to_f64().unwrap()).map(|(y, c)| y * c).sum()
}

pub fn block(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let block = a_block(g, device)?;
    let (batch, tokens, dim) = (g.usize("batch"), g.usize("tokens"), g.usize("dim"));
    let flat = |name: &str| g.tensor(name, device).reshape([batch * tokens, dim]);
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(flat("input.x")?);
    let y = block.forward(&tape, &x, &Sequences::uniform(batch, tokens, device)?, &Drops::default())?;
    report.tensor(g, "output.y", y.value());
    let cotangent = flat("input.cotangent")?;
    report.compare(g, "output.loss", &[against(y.value(), &cotangent)]);
    tape.backward(&y, cotangent, &mut grads)?;
    report.tensor(g, "grad_input.x", &grads.take(&x).ok_or("no gradient")?);
    report.params(g, "grad", gradient(&block, &grads));
    Ok(())
}

/// Values of several tensors, one after the other, as rows of `cols`.
fn stacked(g: &Golden, names: &[String], cols: usize, device: &Device) -> ocellus::Result<Tensor> {
    let values: Vec<f32> = names.iter().flat_map(|n| g.floats(n)).collect();
    Tensor::from_slice(&values, [values.len() / cols, cols], device)
}

fn counts(value: &Value) -> Vec<usize> {
    value.as_array().into_iter().flatten().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn indices(g: &Golden, name: &str) -> Vec<usize> {
    g.ints(name).into_iter().map(|i| i as usize).collect()
}

pub fn block_drop_path_packed(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (block, dim) = (a_block(g, device)?, g.usize("dim"));
    let (batches, tokens) = (counts(&g.config["batches"]), counts(&g.config["tokens"]));
    let mut cu = vec![0i32];
    for (&count, &len) in batches.iter().zip(&tokens) {
        cu.extend((0..count).map(|_| len as i32).scan(cu[cu.len() - 1], |at, len| {
            *at += len;
            Some(*at)
        }));
    }
    let kept = |branch: &str| {
        let lists: Vec<_> = (0..batches.len()).map(|j| indices(g, &format!("input.keep_{branch}_{j}"))).collect();
        Kept::new(&cu, &batches, &lists, device).map(Some)
    };
    for (j, &count) in batches.iter().enumerate() {
        for branch in ["attn", "ffn"] {
            let keep = indices(g, &format!("input.keep_{branch}_{j}")).len();
            if Kept::count(count, g.f64("drop_path")) != keep {
                report.fail(format!("{count} sequences: {keep} are kept upstream"));
            }
        }
    }
    let drops = Drops { attn: kept("attn")?, ffn: kept("ffn")? };
    let names = |what: &str| (0..batches.len()).map(|j| format!("input.{what}_{j}")).collect::<Vec<_>>();
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(stacked(g, &names("x"), dim, device)?);
    let max = tokens.iter().copied().max().unwrap_or(0);
    let seqs = Sequences { cu_seqlens: Tensor::from_slice(&cu, [cu.len()], device)?, max };
    let y = block.forward(&tape, &x, &seqs, &drops)?;
    let cotangent = stacked(g, &names("cotangent"), dim, device)?;
    report.compare(g, "output.loss", &[against(y.value(), &cotangent)]);
    let values = y.value().to_f64()?;
    tape.backward(&y, cotangent, &mut grads)?;
    let dx = grads.take(&x).ok_or("no gradient")?.to_f64()?;
    let mut first = 0;
    for (j, (&count, &len)) in batches.iter().zip(&tokens).enumerate() {
        let part = first..first + count * len * dim;
        report.compare(g, &format!("output.y_{j}"), &values[part.clone()]);
        report.compare(g, &format!("grad_input.x_{j}"), &dx[part.clone()]);
        first = part.end;
    }
    report.params(g, "grad", gradient(&block, &grads));
    Ok(())
}

pub fn pos_embed_interpolation(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    for (i, case) in g.config["cases"].as_array().ok_or("no cases")?.iter().enumerate() {
        let native = case["native"].as_u64().ok_or("no native")? as usize;
        let target = counts(&case["target"]);
        let how = Resample::Scaled {
            offset: case["offset"].as_f64().ok_or("no offset")?,
            antialias: case["antialias"].as_bool().ok_or("no antialias")?,
        };
        let table = g.tensor(&format!("input.pos_embed_{i}"), device);
        let table = Param::new("pos_embed", table, DType::F32)?;
        let (old, new) = ((native, native), (target[0], target[1]));
        let matrix = pos_embed::matrix(old, new, how, DType::F32, device)?;
        let y = pos_embed::resampled(&Tape::no_grad(), &table, &matrix, DType::F32)?;
        report.tensor(g, &format!("output.pos_{i}"), y.value());
    }
    Ok(())
}

/// The sizes in the config of a file of the whole model.
pub fn sizes(g: &Golden) -> Sizes {
    let (ffn, hidden) = ffn(g);
    let image = g.config["img_size"].as_u64().or(g.config["global"].as_u64()).expect("img_size or global");
    Sizes {
        image_size: image as usize,
        patch_size: g.usize("patch"),
        embed_dim: g.usize("dim"),
        depth: g.usize("depth"),
        num_heads: g.usize("heads"),
        ffn,
        hidden,
        registers: g.usize("registers"),
        interpolate_offset: g.f64("offset"),
        interpolate_antialias: g.bool("antialias"),
    }
}

fn backbone(g: &Golden, device: &Device) -> Result<Backbone, Box<dyn std::error::Error>> {
    let mut model = Backbone::new(&Builder::new(device, DType::F32, 0), &sizes(g), &Start::OFFICIAL)?;
    load(&mut model, &dinov2::to_upstream(&g.dict("param"))?)?;
    Ok(model)
}

/// Rows of a packed batch by where they belong.
fn rows(x: &Tensor, rows: impl IntoIterator<Item = i32>) -> Vec<f64> {
    let (values, cols) = (x.to_f64().unwrap(), x.shape()[1]);
    rows.into_iter().flat_map(|r| values[r as usize * cols..][..cols].to_vec()).collect()
}

pub fn vit_masked(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = backbone(g, device)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(g.tensor("input.x", device));
    let masks = g.indices("input.masks", device);
    let crops = [Crops { images: &x, masks: Some(&masks) }];
    let layout = model.layout_of(&crops)?;
    report.tensor(g, "output.tokens_after_embed", model.embed(&Tape::no_grad(), &crops, None)?.value());
    let before = model.forward(&tape, &crops, None, &[])?;
    report.tensor(g, "output.prenorm", before.value());
    let y = model.norm.forward(&tape, &before)?;
    let (batch, len, registers) = (layout.lists[0], layout.patches(0), g.usize("registers"));
    let classes: Vec<i32> = layout.class_rows(0).collect();
    let extra: Vec<i32> = classes.iter().flat_map(|c| (1..=registers as i32).map(move |r| c + r)).collect();
    let patches: Vec<i32> = (0..batch * len).map(|i| layout.patch_row(0, i)).collect();
    let mut seed = vec![0f32; y.value().numel()];
    let parts = [("cls", "cot_cls", &classes), ("reg", "cot_reg", &extra), ("patch", "cot_patch", &patches)];
    for (what, cotangent, at) in parts {
        report.compare(g, &format!("output.{what}"), &rows(y.value(), at.iter().copied()));
        if at.is_empty() {
            continue;
        }
        let given = g.floats(&format!("input.{cotangent}"));
        let cols = given.len() / at.len();
        at.iter().zip(given.chunks(cols)).for_each(|(&r, c)| seed[r as usize * cols..][..cols].copy_from_slice(c));
    }
    let seed = Tensor::from_slice(&seed, y.value().shape().clone(), device)?;
    report.compare(g, "output.loss", &[against(y.value(), &seed)]);
    tape.backward(&y, seed, &mut grads)?;
    report.tensor(g, "grad_input.x", &grads.take(&x).ok_or("no gradient")?);
    let mut of = gradient(&model, &grads);
    report.params(g, "grad", |name| of(&dinov2::plain(name)));

    let (plain, mut given) = (Tape::no_grad(), vec![]);
    let crops = [Crops { images: &x, masks: None }];
    model.forward_each(&plain, &crops, None, &[], &mut |_, x| {
        given.push(model.norm.forward(&plain, x)?);
        Ok(())
    })?;
    let asked = (0..).take_while(|i| g.tensors.contains_key(&format!("output.intermediate_cls_{i}"))).count();
    for (i, x) in given[given.len() - asked..].iter().enumerate() {
        report.compare(g, &format!("output.intermediate_cls_{i}"), &rows(x.value(), classes.iter().copied()));
        report.compare(g, &format!("output.intermediate_patch_{i}"), &rows(x.value(), patches.iter().copied()));
    }
    Ok(())
}

pub fn vit_packed(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = backbone(g, device)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let count = g.config["resolutions"].as_array().ok_or("no resolutions")?.len();
    let images: Vec<Var> = (0..count).map(|j| Var::constant(g.tensor(&format!("input.x_{j}"), device))).collect();
    let masks: Vec<Option<Tensor>> = (0..count)
        .map(|j| format!("input.masks_{j}"))
        .map(|name| g.tensors.contains_key(&name).then(|| g.indices(&name, device)))
        .collect();
    let crops: Vec<Crops> =
        images.iter().zip(&masks).map(|(images, masks)| Crops { images, masks: masks.as_ref() }).collect();
    let layout = model.layout_of(&crops)?;
    let y = model.norm.forward(&tape, &model.forward(&tape, &crops, None, &[])?)?;
    let mut seed = vec![0f32; y.value().numel()];
    let cols = g.usize("dim");
    for j in 0..count {
        let len = layout.patches(j);
        let at: Vec<i32> = layout
            .class_rows(j)
            .enumerate()
            .flat_map(|(i, c)| {
                std::iter::once(c).chain((0..len).map(|l| layout.patch_row(j, i * len + l)).collect::<Vec<_>>())
            })
            .collect();
        report.compare(g, &format!("output.tokens_{j}"), &rows(y.value(), at.iter().copied()));
        let given = g.floats(&format!("input.cot_{j}"));
        at.iter().zip(given.chunks(cols)).for_each(|(&r, c)| seed[r as usize * cols..][..cols].copy_from_slice(c));
    }
    let seed = Tensor::from_slice(&seed, y.value().shape().clone(), device)?;
    report.compare(g, "output.loss", &[against(y.value(), &seed)]);
    tape.backward(&y, seed, &mut grads)?;
    let mut of = gradient(&model, &grads);
    report.params(g, "grad", |name| of(&dinov2::plain(name)));
    // The same in separate forwards.
    for (j, crops) in crops.iter().enumerate() {
        let alone = model.norm.forward(&Tape::no_grad(), &model.forward(&Tape::no_grad(), &[*crops], None, &[])?)?;
        let first = layout.class_rows(j).next().unwrap_or(0);
        let together = rows(y.value(), first..first + alone.value().shape()[0] as i32);
        let largest = together.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let off = alone.value().to_f64()?.iter().zip(&together).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        if off > 1e-5 * largest {
            report.fail(format!("crops {j} alone are {off:.1e} off"));
        }
    }
    Ok(())
}

/// `Dinov2Model` and `Dinov2WithRegistersModel` on several grids.
pub fn hf(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut config: dinov2::Dinov2Config = serde_json::from_value(g.config.clone())?;
    if g.kind.ends_with("_with_registers") {
        config.model_type = "dinov2_with_registers".into();
    }
    let given = g.dict("param");
    let dict = dinov2::to_upstream(&given)?;
    let sizes = from_hf(&config, &dict)?;
    let mut model = Backbone::new(&Builder::new(device, DType::F32, 0), &sizes, &Start::OFFICIAL)?;
    load(&mut model, &dict)?;
    let plain = Tape::no_grad();
    for (i, _) in g.config["inputs_hw"].as_array().ok_or("no inputs_hw")?.iter().enumerate() {
        let x = Var::constant(g.tensor(&format!("input.pixel_values_{i}"), device));
        let name = format!("input.bool_masked_pos_{i}");
        let masks = g.tensors.contains_key(&name).then(|| {
            let flat = g.ints(&name);
            let batch = x.value().shape()[0];
            Tensor::from_slice(&flat, [batch, flat.len() / batch], device).unwrap()
        });
        let crops = [Crops { images: &x, masks: masks.as_ref() }];
        report.tensor(g, &format!("output.embeddings_{i}"), model.embed(&plain, &crops, None)?.value());
        let y = model.norm.forward(&plain, &model.forward(&plain, &crops, None, &[])?)?;
        report.tensor(g, &format!("output.last_hidden_state_{i}"), y.value());
        let classes = model.layout_of(&crops)?;
        report.compare(g, &format!("output.pooler_output_{i}"), &rows(y.value(), classes.class_rows(0)));
    }
    // What is written is what was read.
    let back = dinov2::to_hf(&dict)?;
    if back.len() != given.len()
        || !given.iter().all(|(n, t)| back.get(n).is_some_and(|b| b.to_f64().ok() == t.to_f64().ok()))
    {
        report.fail("names or values differ after a round trip".into());
    }
    Ok(())
}
