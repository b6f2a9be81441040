//! The towers, their pooling and both together, under the names of transformers and of big_vision.

use ocellus::checkpoint::{StateDict, siglip};
use ocellus::nn::pos_embed::{Grid, Resample, weights};
use ocellus::nn::{Builder, Module, Sequences};
use ocellus::ops::attention::{KeyValues, Packing, cross_attention};
use ocellus::ops::embedding::{Lookup, embedding};
use ocellus::ops::gather_rows::gather_rows;
use ocellus::ops::gelu::Form;
use ocellus::ops::l2_normalize::l2_normalize;
use ocellus::ops::sigmoid_pair_loss::{Block, sigmoid_pair_loss};
use ocellus::recipes::siglip::{MapHead, Queries, Shapes, Siglip, Sizes, TextTower, TokenIds, Tower, load};
use ocellus::{DType, Device, Grads, Tape, Tensor, Var};
use serde_json::{Value, json};

use crate::reader::{Golden, Outcome, Report, load as load_all};
use crate::siglip::logits;

pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn builder(device: &Device) -> Builder {
    Builder::new(device, DType::F32, 0)
}

/// Sizes of a model of transformers from the arguments of its two configurations.
pub fn hf_sizes(text: &Value, vision: &Value) -> Fallible<Sizes> {
    let config = serde_json::from_value(json!({ "text_config": text, "vision_config": vision }))?;
    Ok(load::from_hf(&config)?)
}

/// Gradients under this crate's names.
fn gradients(model: &dyn Module, grads: &Grads) -> Fallible<StateDict> {
    let mut dict = StateDict::new();
    for p in model.params() {
        dict.insert(p.name(), grads.get(p).ok_or_else(|| format!("no gradient of {}", p.name()))?.clone())?;
    }
    Ok(dict)
}

/// Compares every `grad.*` of the file with gradients under the file's names.
fn compare_gradients(g: &Golden, report: &mut Report, got: &StateDict) -> Outcome {
    let names: Vec<&str> = g.tensors.keys().filter_map(|n| n.strip_prefix("grad.")).collect();
    if names.len() != got.len() {
        report.fail(format!("{} gradients in the file, {} here", names.len(), got.len()));
    }
    for name in names {
        report.tensor(g, &format!("grad.{name}"), got.require(name)?);
    }
    Ok(())
}

/// `Σ pooled · cotangent`, and the seed that belongs to it.
fn cotangent(g: &Golden, report: &mut Report, pooled: &Var) -> Tensor {
    let seed = g.tensor("input.cotangent", pooled.value().device());
    let terms = pooled.value().to_f64().unwrap().into_iter().zip(&g.get("input.cotangent").values);
    report.compare(g, "output.loss", &[terms.map(|(y, c)| y * c).sum()]);
    seed
}

pub fn map_head(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (count, len, width) = (g.usize("n"), g.usize("L"), g.usize("width"));
    let tower = Tower { width, depth: 0, heads: g.usize("heads"), hidden: g.usize("mlp"), gelu: Form::Tanh };
    let mut head = MapHead::new(&builder(device).pp("vision_model.head"), &tower, 1e-6)?;
    load_all(&mut head, &siglip::to_ours(&g.dict("param"))?)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(g.tensor("input.hidden_state", device).reshape([count * len, width])?);
    let (seqs, queries) = (Sequences::uniform(count, len, device)?, Queries::new(count, device)?);
    let y = head.forward(&tape, &x, &seqs, &queries)?;
    report.tensor(g, "output.pooled", y.value());
    let seed = cotangent(g, report, &y);
    tape.backward(&y, seed, &mut grads)?;
    report.tensor(g, "grad_input.hidden_state", &grads.take(&x).ok_or("no gradient of the tokens")?);
    compare_gradients(g, report, &siglip::to_hf(&gradients(&head, &grads)?)?)
}

/// What both towers and the loss give.
struct Whole {
    /// Tokens and embeddings of images, then of texts.
    tokens: [Tensor; 2],
    pooled: [Tensor; 2],
    embeds: [Tensor; 2],
    loss: f64,
    grads: Grads,
    dimages: Tensor,
}

fn whole(model: &Siglip, images: Tensor, ids: &TokenIds) -> Fallible<Whole> {
    let none = Tape::no_grad();
    let tokens = [model.vision.encode(&none, &Var::constant(images.clone()), None)?, model.text.encode(&none, ids)?];
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let images = tape.leaf(images);
    let pooled = [model.vision.forward(&tape, &images, None)?, model.text.forward(&tape, ids)?];
    let embeds = [l2_normalize(&tape, &pooled[0])?, l2_normalize(&tape, &pooled[1])?];
    let (scale, bias) = (tape.param(&model.logit_scale), tape.param(&model.logit_bias));
    let block = Block::whole(ids.batch());
    let (loss, _) = sigmoid_pair_loss(&tape, &embeds[0], &embeds[1], &scale, &bias, block)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    grads.check_complete(model.params())?;
    let dimages = grads.take(&images).ok_or("no gradient of the images")?;
    let values = |vars: [Var; 2]| vars.map(|v| v.value().clone());
    let (tokens, pooled, embeds) = (values(tokens), values(pooled), values(embeds));
    Ok(Whole { tokens, pooled, embeds, loss: value, grads, dimages })
}

/// Scale and bias of the logits.
fn numbers(model: &Siglip) -> Fallible<[f64; 2]> {
    Ok([model.logit_scale.master.item()?.exp(), model.logit_bias.master.item()?])
}

fn ids(g: &Golden, name: &str, len: usize, vocab: usize, device: &Device) -> Fallible<TokenIds> {
    Ok(TokenIds::new(&g.ints(name), len, vocab, device)?)
}

/// `[rows, columns]` turned.
fn transposed(values: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| values.iter().skip(j).step_by(columns).copied()).collect()
}

pub fn hf_siglip(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let own = hf_sizes(&g.config["text"], &g.config["vision"])?;
    // Images of another size take resampled positions.
    let images = g.tensor("input.pixel_values", device);
    let sizes = Sizes { image_size: [images.shape()[2], images.shape()[3]], ..own.clone() };
    let grids = [&own, &sizes].map(|s| s.grid().map(|[h, w]| (h, w)));
    let [old, new] = grids.map(Result::unwrap);
    let mut model = Siglip::new(&builder(device), &sizes)?;
    let weights = load::Weights { dict: siglip::to_ours(&g.dict("param"))?, sizes: own, resample: Resample::Bicubic };
    load::initialise(&mut model, &sizes, &weights)?;
    let ids = ids(g, "input.input_ids", g.usize("len"), sizes.vocab_size, device)?;
    let out = whole(&model, images, &ids)?;
    report.tensor(g, "output.vision_last_hidden_state", &out.tokens[0]);
    report.tensor(g, "output.text_last_hidden_state", &out.tokens[1]);
    report.tensor(g, "output.vision_pooler_output", &out.pooled[0]);
    report.tensor(g, "output.text_pooler_output", &out.pooled[1]);
    report.tensor(g, "output.image_embeds", &out.embeds[0]);
    report.tensor(g, "output.text_embeds", &out.embeds[1]);
    let per_image = logits(numbers(&model)?, &out.embeds[0], &out.embeds[1])?;
    report.compare(g, "output.logits_per_text", &transposed(&per_image, ids.batch()));
    report.compare(g, "output.logits_per_image", &per_image);
    report.compare(g, "output.loss", &[out.loss]);
    report.tensor(g, "grad_input.pixel_values", &out.dimages);
    let mut grads = StateDict::new();
    for (name, grad) in siglip::to_hf(&gradients(&model, &out.grads)?)?.iter() {
        let back = name == siglip::POSITIONS && old != new;
        grads.insert(name, if back { before_resampling(grad, old, new)? } else { grad.clone() })?;
    }
    compare_gradients(g, report, &grads)
}

/// Gradient by a table from that by the resampled one.
fn before_resampling(grad: &Tensor, old: Grid, new: Grid) -> Fallible<Tensor> {
    let (width, grad) = (grad.shape()[1], grad.to_f64()?);
    let mut sums = vec![0.0; old.0 * old.1 * width];
    for (grad, read) in grad.chunks(width).zip(weights(old, new, Resample::Bicubic)) {
        for (at, weight) in read {
            sums[at * width..][..width].iter_mut().zip(grad).for_each(|(sum, g)| *sum += weight * g);
        }
    }
    let sums: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
    Ok(Tensor::from_slice(&sums, [old.0 * old.1, width], &Device::Cpu)?)
}

/// Pixels of a patch with their channels last, to the order of a convolution kernel, or back.
fn patch_order(values: &[f32], patch: usize, back: bool) -> Vec<f32> {
    let channels = values.len() / (patch * patch);
    let mut out = vec![0.0; values.len()];
    for pixel in 0..patch * patch {
        for c in 0..channels {
            let (last, first) = (pixel * channels + c, c * patch * patch + pixel);
            let (to, from) = if back { (last, first) } else { (first, last) };
            out[to] = values[from];
        }
    }
    out
}

pub fn hf_siglip2(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = hf_sizes(&g.config["text"], &g.config["vision"])?;
    let mut model = Siglip::new(&builder(device), &sizes)?;
    load_all(&mut model, &siglip::to_ours(&g.dict("param"))?)?;
    let ids = ids(g, "input.input_ids", g.usize("len"), sizes.vocab_size, device)?;
    let (patch, width) = (sizes.patch_size, g.get("input.pixel_values").shape[2]);
    let shown: Vec<usize> =
        g.ints("input.pixel_attention_mask").iter().enumerate().filter(|(_, m)| **m != 0).map(|(at, _)| at).collect();
    let pixels = g.floats("input.pixel_values");
    let rows: Vec<f32> =
        shown.iter().flat_map(|at| patch_order(&pixels[at * width..][..width], patch, false)).collect();
    let grids: Vec<Grid> =
        g.ints("input.spatial_shapes").chunks(2).map(|hw| (hw[0] as usize, hw[1] as usize)).collect();
    let [h, w] = sizes.grid()?;
    let shapes = Shapes::new(&grids, (h, w), device)?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let patches = tape.leaf(Tensor::from_slice(&rows, [shown.len(), width], device)?);
    let x = l2_normalize(&tape, &model.vision.forward_shapes(&tape, &patches, &shapes)?)?;
    let y = l2_normalize(&tape, &model.text.forward(&tape, &ids)?)?;
    report.tensor(g, "output.image_embeds", x.value());
    report.tensor(g, "output.text_embeds", y.value());
    report.compare(g, "output.logits_per_image", &logits(numbers(&model)?, x.value(), y.value())?);
    let (scale, bias) = (tape.param(&model.logit_scale), tape.param(&model.logit_bias));
    let (loss, _) = sigmoid_pair_loss(&tape, &x, &y, &scale, &bias, Block::whole(grids.len()))?;
    report.tensor(g, "output.loss", loss.value());
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    let dpatches = grads.take(&patches).ok_or("no gradient of the patches")?.to_vec::<f32>()?;
    let mut dpixels = vec![0.0; pixels.len()];
    for (at, row) in shown.iter().zip(dpatches.chunks(width)) {
        let row = patch_order(row, patch, true).into_iter().map(f64::from);
        dpixels[at * width..][..width].iter_mut().zip(row).for_each(|(to, x)| *to = x);
    }
    report.compare(g, "grad_input.pixel_values", &dpixels);
    let mut named = StateDict::new();
    for (name, grad) in siglip::to_hf(&gradients(&model, &grads)?)?.iter() {
        let grad = match name {
            "vision_model.embeddings.patch_embedding.weight" => {
                let rows: Vec<f32> =
                    grad.to_vec::<f32>()?.chunks(width).flat_map(|row| patch_order(row, patch, true)).collect();
                Tensor::from_slice(&rows, [rows.len() / width, width], &Device::Cpu)?
            }
            _ => grad.clone(),
        };
        named.insert(name, grad)?;
    }
    compare_gradients(g, report, &named)
}

pub fn hf_text(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let text = &g.config["text"];
    // Nothing is made of the image tower; its width has to be that of the embeddings.
    let width = if text["projection_size"].is_null() { &text["hidden_size"] } else { &text["projection_size"] };
    let sizes = hf_sizes(text, &json!({ "hidden_size": width }))?;
    let (len, short) = (g.usize("len"), g.usize("short"));
    let mut tower = TextTower::new(&builder(device), &sizes)?;
    load_all(&mut tower, &siglip::to_ours(&g.dict("param"))?)?;
    let texts = ids(g, "input.input_ids", len, sizes.vocab_size, device)?;
    let none = Tape::no_grad();
    report.tensor(g, "output.last_hidden_state", tower.encode(&none, &texts)?.value());
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let pooled = tower.forward(&tape, &texts)?;
    report.tensor(g, "output.pooler_output", pooled.value());
    let seed = cotangent(g, report, &pooled);
    tape.backward(&pooled, seed, &mut grads)?;
    compare_gradients(g, report, &siglip::to_hf(&gradients(&tower, &grads)?)?)?;

    let cut: Vec<i32> = g.ints("input.input_ids").chunks(len).skip(1).flat_map(|row| row[..short].to_vec()).collect();
    let cut = TokenIds::new(&cut, short, sizes.vocab_size, device)?;
    report.tensor(g, "output.short_pooler_output", tower.forward(&none, &cut)?.value());

    let (tokens, pooled) = masked(g, &tower, &sizes, device)?;
    report.tensor(g, "output.masked_last_hidden_state", &tokens);
    report.tensor(g, "output.masked_pooler_output", &pooled);
    Ok(())
}

/// The tower as transformers runs it when it is given a mask, as no text was in training: all tokens attend to those of their
/// text that the mask shows, which are keys and values of sequences of their own lengths.
fn masked(g: &Golden, tower: &TextTower, sizes: &Sizes, device: &Device) -> Fallible<(Tensor, Tensor)> {
    let (len, tape) = (g.usize("len"), Tape::no_grad());
    let tokens = g.ints("input.input_ids");
    let count = tokens.len() / len;
    let shown: Vec<i32> =
        g.ints("input.attention_mask").iter().enumerate().filter(|(_, m)| **m != 0).map(|(at, _)| at as i32).collect();
    let starts: Vec<i32> =
        (0..=count).map(|text| shown.partition_point(|&at| (at as usize) < text * len) as i32).collect();
    let ints = |v: &[i32]| Tensor::from_slice(v, [v.len()], device);
    let (queries, keys) = (Sequences::uniform(count, len, device)?, ints(&starts)?);
    let third = |of: &[i32], part: i32| ints(&of.iter().map(|at| 3 * at + part).collect::<Vec<_>>());
    let all: Vec<i32> = (0..tokens.len() as i32).collect();
    let parts = [third(&all, 0)?, third(&shown, 1)?, third(&shown, 2)?];
    let positions: Vec<i32> = all.iter().map(|at| at % len as i32).collect();
    let look = |table: &Tensor, ids: &[i32], x: Option<&Var>| -> Fallible<Var> {
        let lookup = Lookup::new(ids, table.shape()[0], device)?;
        Ok(embedding(&tape, &Var::constant(table.clone()), &lookup, x)?)
    };
    let x = look(tower.token_embedding.value(), &tokens, None)?;
    let mut x = look(tower.position_embedding.value(), &positions, Some(&x))?;
    let (width, heads) = (sizes.text.width, sizes.text.heads);
    for block in &tower.layers {
        let qkv = block.attn.qkv.forward(&tape, &block.norm1.forward(&tape, &x)?, None)?;
        let rows = qkv.reshape([3 * tokens.len(), width])?;
        let pick = |ids: &Tensor| gather_rows(&tape, &rows, ids)?.reshape([ids.numel(), heads, width / heads]);
        let [q, k, v] = [pick(&parts[0])?, pick(&parts[1])?, pick(&parts[2])?];
        let of_q = Packing { cu_seqlens: &queries.cu_seqlens, max_seqlen: len };
        let of_k = Packing { cu_seqlens: &keys, max_seqlen: len };
        let scale = ((width / heads) as f32).powf(-0.5);
        let y = cross_attention(&tape, &q, KeyValues::Apart(&k, &v), of_q, of_k, scale)?;
        x = block.attn.proj.forward(&tape, &y, Some(&x))?;
        x = block.mlp.forward(&tape, &block.norm2.forward(&tape, &x)?, Some(&x))?;
    }
    let x = tower.final_layer_norm.forward(&tape, &x)?;
    let last: Vec<i32> = (1..=count).map(|text| (text * len) as i32 - 1).collect();
    let pooled = tower.head.forward(&tape, &gather_rows(&tape, &x, &ints(&last)?)?, None)?;
    Ok((x.value().clone(), pooled.value().clone()))
}

/// Sizes from the config of the big_vision kinds.
pub fn bv_sizes(g: &Golden) -> Sizes {
    let pair = |key: &str| [0, 1].map(|i| g.config[key][i].as_u64().unwrap_or(0) as usize);
    let tower = |prefix: &str| {
        let of = |key: &str| g.config[format!("{prefix}{key}")].as_u64().map(|n| n as usize);
        let width = of("w").unwrap_or(0);
        let hidden = of("mlp").unwrap_or(4 * width);
        Tower { width, depth: of("depth").unwrap_or(0), heads: of("heads").unwrap_or(0), hidden, gelu: Form::Tanh }
    };
    Sizes {
        image_size: pair("image"),
        patch_size: pair("patch")[0],
        in_chans: g.get("param.img/embedding/kernel").shape[2],
        vision: tower("i"),
        text: tower("t"),
        vocab_size: g.usize("vocab"),
        context_len: g.usize("len"),
        embed_dim: g.get("param.txt/head/kernel").shape[1],
        vision_head: g.tensors.contains_key("param.img/head/kernel"),
        eps: 1e-6,
    }
}

/// Channels last to channels first, or back.
pub fn axes(t: &Tensor, order: [usize; 4]) -> Fallible<Tensor> {
    let old = t.shape().clone();
    let values = t.to_vec::<f32>()?;
    let new = order.map(|axis| old[axis]);
    let stride = |axis: usize| old[axis + 1..].iter().product::<usize>();
    let from = |at: usize| {
        let mut rest = at;
        let place = |i: usize| {
            let index = rest % new[i];
            rest /= new[i];
            index * stride(order[i])
        };
        values[(0..4).rev().map(place).sum::<usize>()]
    };
    let values: Vec<f32> = (0..values.len()).map(from).collect();
    Ok(Tensor::from_slice(&values, new, t.device())?)
}

pub fn bv_two_towers(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = bv_sizes(g);
    let given = g.dict("param");
    let ours = siglip::to_ours(&given)?;
    let mut model = Siglip::new(&builder(device), &sizes)?;
    load_all(&mut model, &ours)?;
    let images = axes(&g.tensor("input.image", device), [0, 3, 1, 2])?;
    let ids = ids(g, "input.labels", g.usize("len"), sizes.vocab_size, device)?;
    let out = whole(&model, images, &ids)?;
    report.tensor(g, "output.img_encoded", &out.tokens[0]);
    report.tensor(g, "output.txt_transformed", &out.tokens[1]);
    report.tensor(g, "output.img_prenorm", &out.pooled[0]);
    report.tensor(g, "output.txt_prenorm", &out.pooled[1]);
    report.tensor(g, "output.zimg", &out.embeds[0]);
    report.tensor(g, "output.ztxt", &out.embeds[1]);
    report.compare(g, "output.logits", &logits(numbers(&model)?, &out.embeds[0], &out.embeds[1])?);
    report.compare(g, "output.loss", &[out.loss]);
    report.tensor(g, "grad_input.image", &axes(&out.dimages, [0, 2, 3, 1])?);
    let heads = [sizes.vision.heads, sizes.text.heads];
    compare_gradients(g, report, &siglip::to_big_vision(&gradients(&model, &out.grads)?, heads)?)?;

    // The maps: to the names of transformers and back, to the bit.
    let same = |what: &str, a: &StateDict, b: &StateDict, report: &mut Report| -> Outcome {
        let differ = |(name, t): (&str, &Tensor)| {
            let other = b.get(name);
            other.is_none_or(|o| o.shape() != t.shape() || o.to_vec::<f32>().ok() != t.to_vec::<f32>().ok())
        };
        let wrong: Vec<&str> = a.iter().filter(|x| differ(*x)).map(|(name, _)| name).collect();
        if a.len() != b.len() || !wrong.is_empty() {
            report.fail(format!("{what}: {} and {} tensors, different are {wrong:?}", a.len(), b.len()));
        }
        Ok(())
    };
    same("back to big_vision", &given, &siglip::to_big_vision(&ours, heads)?, report)?;
    let hf = g.dict("state.hf");
    if !hf.is_empty() {
        same("to transformers", &hf, &siglip::to_hf(&ours)?, report)?;
        same("from transformers", &ours, &siglip::to_ours(&hf)?, report)?;
    }
    Ok(())
}
