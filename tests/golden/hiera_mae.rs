//! The masked autoencoder on Hiera, in the two forms of the files, and the order of its tokens.

use ocellus::data::masks::random_masking;
use ocellus::nn::Module;
use ocellus::ops::max_pool2d::max_pool2d;
use ocellus::ops::patchify::patchify;
use ocellus::recipes::mae::hiera::{HieraMae, HieraMaeSizes, UnitIds, VisibleUnits, to_upstream};
use ocellus::{Device, Grads, Tape, Tensor, Var};

use crate::reader::{Golden, Outcome, Report};
use crate::sam2_parts::{builder, map};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn numbers(g: &Golden, key: &str) -> Vec<usize> {
    g.config[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

fn sizes(g: &Golden) -> HieraMaeSizes {
    let input = numbers(g, "input_size");
    HieraMaeSizes {
        input_size: [input[0], input[1]],
        embed_dim: g.usize("embed_dim"),
        num_heads: g.usize("num_heads"),
        stages: numbers(g, "stages"),
        q_pool: g.usize("q_pool"),
        decoder_embed_dim: g.usize("decoder_embed_dim"),
        decoder_depth: g.usize("decoder_depth"),
        decoder_num_heads: g.usize("decoder_num_heads"),
    }
}

/// Targets of the removed patches, each normalised, order (c, py, px).
fn targets(images: &Tensor, ids: &UnitIds, patch: usize) -> Fallible<Vec<f64>> {
    let all = patchify(images, patch)?; // [B, L, (py, px, c)]
    let [_, len, values] = all.shape()[..] else { panic!() };
    let (all, removed) = (all.to_f64()?, ids.masked.to_vec::<i32>()?);
    let per_image = ids.masked.shape()[1];
    let mut out = Vec::new();
    for (i, at) in removed.iter().enumerate() {
        let row = &all[(i / per_image * len + *at as usize) * values..][..values];
        let mean = row.iter().sum::<f64>() / values as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values - 1) as f64;
        let scaled = |x: f64| (x - mean) / (variance + 1e-6).sqrt();
        (0..3).for_each(|c| out.extend((0..values / 3).map(|t| scaled(row[3 * t + c]))));
    }
    Ok(out)
}

/// Names of outputs in one of the two forms.
struct Names {
    images: &'static str,
    pred: &'static str,
    label: &'static str,
}

fn whole(g: &Golden, device: &Device, report: &mut Report, visible: &[bool], names: Names) -> Outcome {
    let sizes = sizes(g);
    let mut model = HieraMae::new(&builder(device), &sizes)?;
    let dict = g.dict("param");
    for p in model.params_mut() {
        let name = to_upstream(p.name());
        p.set(dict.get(&name).ok_or_else(|| format!("no param.{name}"))?)?;
    }
    let ids = UnitIds::new(&VisibleUnits::new(visible, sizes.units()?)?, &sizes, device)?;
    let (tape, images) = (Tape::new(), g.tensor(names.images, device));
    let pixels = Var::constant(map(g, names.images, device));
    let fused = model.fused(&tape, &pixels, &ids, &[])?;
    report.tensor(g, "output.fused", fused.value());
    let latent = model.encoder_norm.forward(&tape, &fused)?;
    report.tensor(g, "output.latent", latent.value());
    let pred = model.predict(&tape, &latent, &ids)?;
    report.tensor(g, names.pred, pred.value());
    let all = model.predict_all(&Tape::no_grad(), &latent, &ids)?;
    report.tensor(g, "output.pred_all", all.value());
    report.compare(g, names.label, &targets(&images, &ids, sizes.patch())?);
    let loss = model.loss(&tape, &pred, &images, None, &ids)?;
    report.tensor(g, "output.loss", loss.value());
    let mut grads = Grads::new();
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    grads.check_complete(model.params())?;
    let params = model.params();
    report.params(g, "grad", |name| {
        let p = params.iter().find(|p| to_upstream(p.name()) == name)?;
        grads.get(p)?.to_f64().ok()
    });
    Ok(())
}

/// With the mask itself.
pub fn by_mask(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let visible: Vec<bool> = g.ints("input.visible_mask").iter().map(|&x| x != 0).collect();
    let unit = numbers(g, "mask_unit_size");
    if unit != [8, 8] || g.f64("norm_pix_eps") != 1e-6 {
        return Err(format!("units of {unit:?} tokens, targets normalised with {}", g.f64("norm_pix_eps")).into());
    }
    whole(
        g,
        device,
        report,
        &visible,
        Names { images: "input.image", pred: "output.pred_masked", label: "output.label_masked" },
    )
}

/// With the noise that makes the mask.
pub fn by_noise(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let [batch, units] = g.get("input.noise").shape[..] else { panic!() };
    let masking = random_masking(&g.floats("input.noise"), batch, units, g.f64("mask_ratio"))?;
    let visible: Vec<bool> = masking.mask.iter().map(|&removed| removed == 0.0).collect();
    report.compare(g, "output.mask", &visible.iter().map(|&v| f64::from(u8::from(v))).collect::<Vec<_>>());
    whole(g, device, report, &visible, Names { images: "input.imgs", pred: "output.pred", label: "output.label" })
}

/// Upstream keeps tokens so that pooling is a maximum over the first quarter; here they are maps. The orders are told apart by
/// the values that pooling leaves.
pub fn unroll(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (batch, dim, q_pool) = (g.usize("batch"), g.usize("dim"), g.usize("q_pool"));
    let (input, stride) = (numbers(g, "input_size"), numbers(g, "patch_stride"));
    if numbers(g, "q_stride") != [2, 2] {
        return Err("pooling by other than 2 x 2".into());
    }
    let (h, w) = (input[0] / stride[0], input[1] / stride[1]);
    let tape = Tape::no_grad();
    let mut x = Var::constant(g.tensor("input.x", device).reshape([batch, h, w, dim])?);
    report.compare(g, "output.unrolled", &unrolled(x.value(), q_pool_levels(g))?);
    for stage in 0..numbers(g, "stages").len() {
        if (1..=q_pool).contains(&stage) {
            x = max_pool2d(&tape, &x)?;
        }
        report.tensor(g, &format!("output.reroll_stage{stage}"), x.value());
        let left = q_pool_levels(g) - stage.min(q_pool);
        report.compare(g, &format!("output.pooled_tokens_stage{stage}"), &unrolled(x.value(), left)?);
    }
    Ok(())
}

/// Borders of stages, at each of which upstream's order has a factor of four, pooled or not.
fn q_pool_levels(g: &Golden) -> usize {
    numbers(g, "stages").len() - 1
}

/// `[B, H, W, C]` in upstream's order: the lowest bits of row and column slowest, the place of the unit fastest.
fn unrolled(x: &Tensor, levels: usize) -> Fallible<Vec<f64>> {
    let [batch, h, w, c] = x.shape()[..] else { panic!() };
    let (values, unit) = (x.to_f64()?, 1 << levels);
    let (rows, cols) = (h / unit, w / unit);
    let mut out = Vec::with_capacity(values.len());
    for b in 0..batch {
        for inside in 0..unit * unit {
            let (mut y, mut x) = (0, 0);
            for level in 0..levels {
                // The first factor, the slowest, is of the lowest bits.
                let bits = inside >> (2 * (levels - 1 - level));
                y |= (bits >> 1 & 1) << level;
                x |= (bits & 1) << level;
            }
            for at in 0..rows * cols {
                let (row, col) = (at / cols * unit + y, at % cols * unit + x);
                out.extend_from_slice(&values[((b * h + row) * w + col) * c..][..c]);
            }
        }
    }
    Ok(out)
}
