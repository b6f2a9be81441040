//! Blocks, halves and the whole masked autoencoder.

use ocellus::checkpoint::to_upstream;
use ocellus::data::masks::random_masking;
use ocellus::nn::{Block, Builder, Drops, Module, Sequences, Style, pos_embed};
use ocellus::ops::adamw::Hyper;
use ocellus::optim::schedule::Cosine;
use ocellus::optim::{AdamW, Optimizer, Rates, Rules};
use ocellus::recipes::mae::{Mae, MaskIds, Sizes, picture};
use ocellus::{DType, Device, Grads, Tape, Tensor, Var, ops};

use crate::data::three;
use crate::reader::{Golden, Outcome, Report, gradient, load, value};

fn builder(device: &Device) -> Builder {
    Builder::new(device, DType::F32, 0)
}

/// Height and width: a number stands for both.
fn pair(g: &Golden, key: &str) -> [usize; 2] {
    let one =
        |v: &serde_json::Value| v.as_u64().unwrap_or_else(|| panic!("config `{key}` is {}", g.config[key])) as usize;
    let value = &g.config[key];
    value.as_array().map_or_else(|| [one(value), one(value)], |a| [one(&a[0]), one(&a[1])])
}

/// Image channels, which not every config states, from the weights that read or predict pixels.
fn channels(g: &Golden, patch: usize) -> usize {
    match g.tensors.get("param.patch_embed.proj.weight") {
        Some(kernel) => kernel.shape[1],
        None => g.get("param.decoder_pred.weight").shape[0] / (patch * patch),
    }
}

/// Sizes from the config keys of the upstream kinds.
pub fn sizes(g: &Golden) -> Sizes {
    let or = |key: &str, default: usize| g.config[key].as_u64().map_or(default, |v| v as usize);
    let (dim, ratio, patch) = (g.usize("embed_dim"), g.f64("mlp_ratio"), pair(g, "patch_size")[0]);
    let decoder = or("decoder_embed_dim", 4);
    Sizes {
        image_size: pair(g, "img_size"),
        patch_size: patch,
        in_chans: channels(g, patch),
        embed_dim: dim,
        depth: g.usize("depth"),
        num_heads: g.usize("num_heads"),
        hidden: (dim as f64 * ratio) as usize,
        decoder_embed_dim: decoder,
        decoder_depth: or("decoder_depth", 0),
        decoder_num_heads: or("decoder_num_heads", 1),
        decoder_hidden: (decoder as f64 * ratio) as usize,
        eps: g.f64("ln_eps") as f32,
    }
}

/// Refuses an option of upstream that this crate does not have; a config need not state it.
fn only(g: &Golden, key: &str, known: impl Into<serde_json::Value>) -> Outcome {
    let (value, known) = (&g.config[key], known.into());
    if value.is_null() || *value == known {
        Ok(())
    } else {
        Err(format!("config `{key}` is {value}, only {known} is there").into())
    }
}

fn norm_pix(g: &Golden) -> bool {
    g.config["norm_pix_loss"].as_bool().unwrap_or(false)
}

/// Loads the parameters that a file of one half of the model has; the others keep their initial values.
fn load_part(model: &mut Mae, g: &Golden) -> Outcome {
    let dict = g.dict("param");
    let mut used = 0;
    for p in model.params_mut() {
        if let Some(t) = dict.get(p.name()) {
            p.set(t)?;
            used += 1;
        }
    }
    if used == dict.len() { Ok(()) } else { Err(format!("{} of {} params have a place", used, dict.len()).into()) }
}

/// The loss of half a model, `Σ y · probe` or a multiple of its mean, and the seed that belongs to it. Which one a file
/// means only its notes say, in words: of the forms in use the one nearest to its loss is taken, and judged.
fn probe(g: &Golden, report: &mut Report, y: &Tensor, device: &Device) -> Result<Tensor, ocellus::Error> {
    let probe = g.get("input.probe");
    let sum: f64 = y.to_f64()?.iter().zip(&probe.values).map(|(y, p)| y * p).sum();
    let truth = g.get("output.loss").values[0];
    let n = y.numel() as f64;
    let factor =
        [1.0, 1.0 / n, 10.0 / n].into_iter().min_by(|a, b| (a * sum - truth).abs().total_cmp(&(b * sum - truth).abs()));
    let factor = factor.unwrap_or(1.0);
    report.compare(g, "output.loss", &[sum * factor]);
    let seed: Vec<f32> = probe.values.iter().map(|p| (p * factor) as f32).collect();
    Tensor::from_slice(&seed, y.shape().clone(), device)
}

fn masks(g: &Golden, noise: &str, len: usize, ratio: f64, device: &Device) -> Result<MaskIds, ocellus::Error> {
    let batch = g.get(noise).shape[0];
    MaskIds::new(&random_masking(&g.floats(noise), batch, len, ratio)?, batch, device)
}

fn compare_masks(g: &Golden, report: &mut Report, noise: &str, len: usize, ratio: f64) -> Outcome {
    let masking = random_masking(&g.floats(noise), g.get(noise).shape[0], len, ratio)?;
    let wide = |v: &[i32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    report.compare(g, "output.ids_restore", &wide(&masking.ids_restore));
    report.compare(g, "output.mask", &masking.mask.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    Ok(())
}

pub fn block(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (batch, tokens, dim) = (g.usize("batch"), g.usize("tokens"), g.usize("dim"));
    let hidden = (dim as f64 * g.f64("mlp_ratio")) as usize;
    only(g, "gelu", "erf")?;
    let mut block = Block::new(&builder(device), dim, g.usize("heads"), hidden, g.f64("ln_eps") as f32, &Style::VIT)?;
    load(&mut block, &g.dict("param"))?;
    let seqs = Sequences::uniform(batch, tokens, device)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(g.tensor("input.x", device).reshape([batch * tokens, dim])?);
    let y = block.forward(&tape, &x, &seqs, &Drops::default())?;
    report.tensor(g, "output.y", y.value());
    let none = Tape::no_grad();
    let normed = block.norm1.forward(&none, &x)?;
    let attn = block.attn.forward(&none, &normed, &seqs, None)?;
    report.tensor(g, "output.attn_out", attn.value());
    report.tensor(g, "output.attn_probs", &block.attn.probabilities(normed.value(), &seqs)?);
    let x1 = block.attn.forward(&none, &normed, &seqs, Some(&x))?;
    let hidden = block.mlp.fc1.forward(&none, &block.norm2.forward(&none, &x1)?, None)?;
    report.tensor(g, "output.fc1_out", hidden.value());
    let seed = probe(g, report, y.value(), device)?;
    tape.backward(&y, seed, &mut grads)?;
    report.tensor(g, "grad_input.x", &grads.take(&x).ok_or("no input gradient")?);
    report.params(g, "grad", gradient(&block, &grads));
    Ok(())
}

pub fn encoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &sizes(g), false)?;
    load_part(&mut model, g)?;
    let (len, ratio) = (model.encoder.config.patches()?, g.f64("mask_ratio"));
    compare_masks(g, report, "input.noise", len, ratio)?;
    let ids = masks(g, "input.noise", len, ratio, device)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let images = tape.leaf(g.tensor("input.imgs", device));
    let latent = model.encode(&tape, &images, None, &ids.kept)?;
    report.tensor(g, "output.latent", latent.value());
    let seed = probe(g, report, latent.value(), device)?;
    tape.backward(&latent, seed, &mut grads)?;
    report.tensor(g, "grad_input.imgs", &grads.take(&images).ok_or("no pixel gradient")?);
    report.params(g, "grad", gradient(&model, &grads));
    Ok(())
}

pub fn decoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &sizes(g), false)?;
    load_part(&mut model, g)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let latent = g.tensor("input.latent", device);
    let [batch, rows, dim] = latent.dims("decoder", "latent")?;
    let latent = tape.leaf(latent.reshape([batch * rows, dim])?);
    let pred = model.predict_all(&tape, &latent, &g.indices("input.ids_restore", device))?;
    report.tensor(g, "output.pred", pred.value());
    let seed = probe(g, report, pred.value(), device)?;
    tape.backward(&pred, seed, &mut grads)?;
    report.tensor(g, "grad_input.latent", &grads.take(&latent).ok_or("no latent gradient")?);
    report.params(g, "grad", gradient(&model, &grads));
    Ok(())
}

/// Latent, predictions of all patches, loss and its gradients.
fn whole(g: &Golden, model: &Mae, images: &str, report: &mut Report, pred_name: &str) -> Result<Grads, ocellus::Error> {
    let device = model.norm.weight.master.device();
    let (len, ratio) = (model.encoder.config.patches()?, g.f64("mask_ratio"));
    let ids = masks(g, "input.noise", len, ratio, device)?;
    let images = Var::constant(g.tensor(images, device));
    let none = Tape::no_grad();
    let latent = model.encode(&none, &images, None, &ids.kept)?;
    report.tensor(g, "output.latent", latent.value());
    let pred = model.predict_all(&none, &latent, &ids.kept.restore)?;
    report.tensor(g, pred_name, pred.value());
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let loss = model.loss(&tape, &images, None, &ids)?;
    report.tensor(g, "output.loss", loss.value());
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    grads.check_complete(model.params())?;
    Ok(grads)
}

pub fn pretrain_forward(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &sizes(g), norm_pix(g))?;
    load(&mut model, &g.dict("param"))?;
    compare_masks(g, report, "input.noise", model.encoder.config.patches()?, g.f64("mask_ratio"))?;
    let grads = whole(g, &model, "input.imgs", report, "output.pred")?;
    report.params(g, "grad", gradient(&model, &grads));
    Ok(())
}

fn hf_sizes(g: &Golden) -> Result<Sizes, Box<dyn std::error::Error>> {
    only(g, "hidden_act", "gelu")?;
    only(g, "qkv_bias", true)?;
    Ok(Sizes {
        image_size: pair(g, "image_size"),
        patch_size: pair(g, "patch_size")[0],
        in_chans: g.usize("num_channels"),
        embed_dim: g.usize("hidden_size"),
        depth: g.usize("num_hidden_layers"),
        num_heads: g.usize("num_attention_heads"),
        hidden: g.usize("intermediate_size"),
        decoder_embed_dim: g.config["decoder_hidden_size"].as_u64().unwrap_or(4) as usize,
        decoder_depth: g.config["decoder_num_hidden_layers"].as_u64().unwrap_or(0) as usize,
        decoder_num_heads: g.config["decoder_num_attention_heads"].as_u64().unwrap_or(1) as usize,
        decoder_hidden: g.config["decoder_intermediate_size"].as_u64().unwrap_or(4) as usize,
        eps: g.f64("layer_norm_eps") as f32,
    })
}

pub fn hf_pretraining(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &hf_sizes(g)?, norm_pix(g))?;
    load(&mut model, &to_upstream(g.dict("param"))?)?;
    compare_masks(g, report, "input.noise", model.encoder.config.patches()?, g.f64("mask_ratio"))?;
    let grads = whole(g, &model, "input.pixel_values", report, "output.logits")?;
    report.params_hf(g, "grad", gradient(&model, &grads))
}

/// The Hugging Face encoder on images of another size than its position table.
pub fn hf_encoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut sizes = hf_sizes(g)?;
    let patch = sizes.patch_size;
    let old = (sizes.image_size[0] / patch, sizes.image_size[1] / patch);
    sizes.image_size = [g.usize("height"), g.usize("width")];
    let new = (sizes.image_size[0] / patch, sizes.image_size[1] / patch);
    let dict = to_upstream(g.dict("param"))?;
    let table = pos_embed::resize(dict.require("pos_embed")?, old, new)?;
    report.tensor(g, "output.pos_embed", &table);
    let mut model = Mae::new(&builder(device), &sizes, norm_pix(g))?;
    for p in model.params_mut() {
        match if p.name() == "pos_embed" { Some(&table) } else { dict.get(p.name()) } {
            Some(t) if t.shape() == p.master.shape() => p.set(t)?,
            Some(_) if p.name().starts_with("decoder_") => {} // the decoder's own table keeps its grid; it is not run
            None if p.name().starts_with("decoder_") || p.name() == "mask_token" => {}
            other => return Err(format!("param.{}: {other:?} for {}", p.name(), p.master.shape()).into()),
        }
    }
    let (len, ratio) = (model.encoder.config.patches()?, g.f64("mask_ratio"));
    compare_masks(g, report, "input.noise", len, ratio)?;
    let ids = masks(g, "input.noise", len, ratio, device)?;
    let images = g.tensor("input.pixel_values", device);
    report.tensor(g, "output.patches", &ops::patchify::patchify(&images, patch)?);
    report.tensor(g, "output.imgs", &ops::patchify::unpatchify(&g.tensor("input.patches", device), patch, new)?);
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let latent = model.encode(&tape, &Var::constant(images), None, &ids.kept)?;
    report.tensor(g, "output.latent", latent.value());
    let seed = probe(g, report, latent.value(), device)?;
    tape.backward(&latent, seed, &mut grads)?;
    report.params_hf(g, "grad", gradient(&model, &grads))
}

/// The learning rate of a trajectory.
pub fn schedule(g: &Golden) -> Cosine {
    let [lr, min_lr, warmup_epochs, epochs] = ["lr", "min_lr", "warmup_epochs", "epochs"].map(|k| g.f64(k));
    Cosine { lr, min_lr, warmup_epochs, epochs }
}

/// The constants of a trajectory's AdamW.
pub fn hyper(g: &Golden) -> Hyper {
    let beta =
        |i: usize| g.config["betas"][i].as_f64().unwrap_or_else(|| panic!("config `betas` is {}", g.config["betas"]));
    Hyper { beta1: beta(0), beta2: beta(1), eps: g.f64("adam_eps") }
}

/// Compares the lists `decay` and `no_decay` with the rules, both ways.
fn decay_split(g: &Golden, model: &Mae, report: &mut Report) -> Outcome {
    let rules = Rules::pretraining(1.0);
    let trained = model.params().into_iter().filter(|p| p.trainable);
    let (decay, no_decay): (Vec<_>, Vec<_>) =
        trained.partition(|p| rules.group(p.name(), p.master.shape()).weight_decay > 0.0);
    for (key, params) in [("decay", decay), ("no_decay", no_decay)] {
        let listed = g.metadata.get(key).and_then(|v| v.as_array()).ok_or_else(|| format!("no metadata `{key}`"))?;
        let mut listed: Vec<&str> = listed.iter().filter_map(|v| v.as_str()).collect();
        let mut ours: Vec<&str> = params.iter().map(|p| p.name()).collect();
        listed.sort_unstable();
        ours.sort_unstable();
        if listed != ours {
            report.fail(format!("{key}: {ours:?}, expected {listed:?}"));
        }
    }
    Ok(())
}

pub fn pretrain_trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &sizes(g), norm_pix(g))?;
    load(&mut model, &g.dict("param"))?;
    let (steps, accum) = (g.usize("steps"), g.usize("accum_iter"));
    let (len, ratio, iters) = (model.encoder.config.patches()?, g.f64("mask_ratio"), g.f64("iters_per_epoch"));
    decay_split(g, &model, report)?;
    let mut adamw = AdamW::new(hyper(g), Rules::pretraining(g.f64("weight_decay")));
    let (mut losses, mut lrs, mut norms) = (vec![], vec![], vec![]);
    for step in 0..steps {
        let epoch = (step * accum) as f64 / iters;
        let lr = schedule(g).at(epoch);
        let mut grads = Grads::new();
        for micro in step * accum..(step + 1) * accum {
            let ids = masks(g, &format!("input.noise.{micro}"), len, ratio, device)?;
            let tape = Tape::new();
            let images = Var::constant(g.tensor(&format!("input.imgs.{micro}"), device));
            let loss = model.loss(&tape, &images, None, &ids)?;
            losses.push(loss.value().item()?);
            tape.backward_scaled(&loss, 1.0 / accum as f64, &mut grads)?;
        }
        let stats = adamw.step(&mut model.params_mut(), &grads, &Rates::new(lr), None)?;
        lrs.push(lr);
        norms.push(stats.grad_norm);
    }
    report.compare(g, "output.losses", &losses);
    report.compare(g, "output.lr", &lrs);
    report.compare(g, "output.grad_norm", &norms);
    after(g, report, &model, &adamw)
}

/// `after.<parameter>`, `after.exp_avg.<parameter>`, `after.exp_avg_sq.<parameter>`.
pub fn after(g: &Golden, report: &mut Report, model: &dyn Module, adamw: &AdamW) -> Outcome {
    let state = adamw.state()?;
    let mut weights = value(model);
    report.params(g, "after", |name| match name.starts_with("exp_avg") {
        true => state.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64().ok()),
        false => weights(name),
    });
    Ok(())
}

pub fn visualise(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = Mae::new(&builder(device), &sizes(g), false)?;
    load(&mut model, &g.dict("param"))?;
    let image = g.get("input.img_hwc");
    let [h, w, c] = [image.shape[0], image.shape[1], image.shape[2]];
    let chw: Vec<f32> =
        (0..c).flat_map(|c_| (0..h * w).map(move |i| (i, c_))).map(|(i, c_)| image.values[i * c + c_] as f32).collect();
    let ratio = g.f64("mask_ratio");
    let drawn = picture::reconstruct(&model, &chw, [1, c, h, w], &g.floats("input.noise"), ratio)?;
    let (p, mean, std) = (&drawn[0], three(&g.config["mean"]), three(&g.config["std"]));
    let forms = [
        ("original", &p.original),
        ("masked", &p.masked),
        ("reconstruction", &p.reconstruction),
        ("pasted", &p.pasted),
    ];
    for (name, values) in forms {
        let hwc: Vec<f64> = (0..h * w).flat_map(|i| (0..c).map(move |c_| f64::from(values[c_ * h * w + i]))).collect();
        report.compare(g, &format!("output.{name}"), &hwc);
        let bytes: Vec<f64> =
            picture::to_image(values, [h, w], mean, std)?.data.iter().map(|&x| f64::from(x)).collect();
        report.compare(g, &format!("output.u8_{name}"), &bytes);
    }
    Ok(())
}
