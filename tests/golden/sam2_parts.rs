//! Parts of SAM-2: blocks, trunk and neck, attention, prompts, decoder, memory.

use ocellus::nn::hiera::{BlockSizes, Hiera, HieraBlock, HieraSizes};
use ocellus::nn::{Builder, Drops, Module};
use ocellus::ops::sigmoid::sigmoid;
use ocellus::ops::unfold::Window;
use ocellus::recipes::sam2::attention::{Attention, AttentionSizes, Rotation};
use ocellus::recipes::sam2::decoder::{DecoderSizes, MaskDecoder, Query, Stability, stability};
use ocellus::recipes::sam2::image_encoder::FpnNeck;
use ocellus::recipes::sam2::memory_attention::{Memory, MemoryAttention, MemoryAttentionSizes};
use ocellus::recipes::sam2::memory_encoder::{MemoryEncoder, MemoryEncoderSizes};
use ocellus::recipes::sam2::model::TEMPERATURE;
use ocellus::recipes::sam2::position::sine_2d;
use ocellus::recipes::sam2::prompt::{PromptEncoder, PromptSizes};
use ocellus::recipes::sam2::two_way::{TwoWaySizes, TwoWayTransformer};
use ocellus::recipes::sam2::{Label, Points};
use ocellus::{DType, Device, Grads, Tape, Tensor, Var, module};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report, gradient, load};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

pub fn builder(device: &Device) -> Builder {
    Builder::new(device, DType::F32, 0)
}

fn turned<T: Copy>(values: &[T], outer: usize, rows: usize, cols: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for part in 0..outer {
        let part = &values[part * rows * cols..][..rows * cols];
        (0..cols).for_each(|c| out.extend((0..rows).map(|r| part[r * cols + c])));
    }
    out
}

/// `[B, C, H, W]` of a file as `[B, H, W, C]`.
pub fn map(g: &Golden, name: &str, device: &Device) -> Tensor {
    let shape = g.get(name).shape.clone();
    let [b, c, h, w] = shape[..] else { panic!("{name} has shape {shape:?}") };
    Tensor::from_slice(&turned(&g.floats(name), b, c, h * w), [b, h, w, c], device).unwrap()
}

/// Compares a map `[B, H, W, C]` with a file's `[B, C, H, W]`.
pub fn compare_map(g: &Golden, report: &mut Report, name: &str, t: &Tensor) {
    let [b, h, w, c] = t.shape()[..] else { panic!("{name} has shape {:?}", t.shape()) };
    report.compare(g, name, &turned(&t.to_f64().unwrap(), b, h * w, c));
}

/// `[N, B, C]` of a file as `[B, N, C]`.
fn tokens(g: &Golden, name: &str, device: &Device) -> Tensor {
    let shape = g.get(name).shape.clone();
    let [n, b, c] = shape[..] else { panic!("{name} has shape {shape:?}") };
    let values = g.floats(name);
    let row = |at: usize| values[at * c..][..c].to_vec();
    let all: Vec<f32> = (0..b).flat_map(|b_| (0..n).flat_map(move |n_| [n_ * b + b_])).flat_map(row).collect();
    Tensor::from_slice(&all, [b, n, c], device).unwrap()
}

/// Compares tokens `[B, N, C]` with a file's `[N, B, C]`.
pub fn compare_tokens(g: &Golden, report: &mut Report, name: &str, t: &Tensor) {
    let [b, n, c] = t.shape()[..] else { panic!("{name} has shape {:?}", t.shape()) };
    let values = t.to_f64().unwrap();
    let row = |at: usize| values[at * c..][..c].to_vec();
    let all: Vec<f64> = (0..n).flat_map(|n_| (0..b).flat_map(move |b_| [b_ * n + n_])).flat_map(row).collect();
    report.compare(g, name, &all);
}

/// `Σ probe · output` over all outputs, with its gradient.
pub fn probe_loss(tape: &Tape, outputs: &[(Var, Tensor)]) -> Var {
    let sum = |(y, p): &(Var, Tensor)| -> f64 {
        y.value().to_f64().unwrap().iter().zip(p.to_f64().unwrap()).map(|(y, p)| y * p).sum()
    };
    let device = outputs[0].0.value().device().clone();
    let loss = Tensor::from_slice(&[outputs.iter().map(sum).sum::<f64>() as f32], [1], &device).unwrap();
    let slots: Vec<_> =
        outputs.iter().map(|(y, p)| (y.slot(), p.reshape(y.value().shape().clone()).unwrap())).collect();
    let inputs: Vec<&Var> = outputs.iter().map(|(y, _)| y).collect();
    tape.record("probe", loss, &inputs, [], move |_, [], grads| {
        slots.into_iter().try_for_each(|(slot, probe)| grads.add(slot, probe))
    })
}

/// Sweeps from the probes' loss and compares it and all gradients of parameters.
fn sweep(
    g: &Golden,
    report: &mut Report,
    tape: Tape,
    outputs: &[(Var, Tensor)],
    model: &dyn Module,
) -> Fallible<Grads> {
    let loss = probe_loss(&tape, outputs);
    report.tensor(g, "output.loss", loss.value());
    let mut grads = Grads::new();
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    report.params(g, "grad", gradient(model, &grads));
    Ok(grads)
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

pub fn hiera_block(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = BlockSizes {
        dim: g.usize("dim"),
        dim_out: g.usize("dim_out"),
        heads: g.usize("num_heads"),
        window: g.usize("window_size"),
        pool: !g.config["q_stride"].is_null(),
        mlp_ratio: g.f64("mlp_ratio") as usize,
    };
    let mut block = HieraBlock::new(&builder(device), sizes)?;
    load(&mut block, &g.dict("param"))?;
    let tape = Tape::new();
    let x = tape.leaf(g.tensor("input.x", device));
    let y = block.forward(&tape, &x, &Drops::default())?;
    report.tensor(g, "output.y", y.value());
    let mut grads = sweep(g, report, tape, &[(y, g.tensor("input.probe.y", device))], &block)?;
    report.tensor(g, "grad_input.x", &grads.take(&x).ok_or("no gradient of x")?);
    Ok(())
}

struct TrunkAndNeck {
    trunk: Hiera,
    neck: FpnNeck,
}
module!(TrunkAndNeck { trunk, neck });

/// Sizes of a trunk under the names of the files.
pub fn trunk_sizes(config: &Value) -> HieraSizes {
    let background = numbers(&config["bkg"]);
    HieraSizes {
        embed_dim: config["embed_dim"].as_u64().unwrap() as usize,
        num_heads: config["num_heads"].as_u64().unwrap() as usize,
        stages: numbers(&config["stages"]),
        q_pool: config.get("q_pool").and_then(Value::as_u64).unwrap_or(3) as usize,
        window_spec: numbers(&config["window_spec"]),
        global_att_blocks: numbers(&config["global_att_blocks"]),
        window_pos_embed_bkg_spatial_size: [background[0], background[1]],
    }
}

pub fn hiera_trunk_fpn(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (sizes, dim) = (trunk_sizes(&g.config), g.usize("d_model"));
    let b = builder(device);
    let mut model = TrunkAndNeck {
        trunk: Hiera::new(&b.pp("trunk"), &sizes)?,
        neck: FpnNeck::new(&b.pp("neck"), &sizes.channels(), dim, &numbers(&g.config["fpn_top_down_levels"]))?,
    };
    load(&mut model, &g.dict("param"))?;
    let tape = Tape::new();
    let images = Var::constant(map(g, "input.image", device));
    let stages = model.trunk.forward(&tape, &images, &[])?;
    for (i, stage) in stages.iter().enumerate() {
        compare_map(g, report, &format!("output.stage{i}"), stage.value());
    }
    let size = [stages[0].value().shape()[1], stages[0].value().shape()[2]];
    report.tensor(g, "output.abs_pos", model.trunk.positions(&Tape::no_grad(), size)?.value());
    let levels = model.neck.forward(&tape, &stages)?;
    let mut outputs = Vec::new();
    for (i, level) in levels.iter().take(levels.len() - g.usize("scalp")).enumerate() {
        compare_map(g, report, &format!("output.fpn{i}"), level.value());
        let [_, h, w, _] = level.value().shape()[..] else { panic!() };
        let sine = Tensor::from_slice(&sine_2d(dim, [h, w], TEMPERATURE)?, [1, h, w, dim], &Device::Cpu)?;
        compare_map(g, report, &format!("output.pos{i}"), &sine);
        outputs.push((level.clone(), map(g, &format!("input.probe.fpn{i}"), device)));
    }
    sweep(g, report, tape, &outputs, &model)?;
    Ok(())
}

pub fn rope_attention(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let dim = g.usize("embedding_dim");
    let kv_dim = g.config["kv_in_dim"].as_u64().map_or(dim, |x| x as usize);
    let sizes = AttentionSizes { dim, kv_dim, inner: dim, heads: g.usize("num_heads") };
    let mut layer = Attention::new(&builder(device), sizes)?;
    load(&mut layer, &g.dict("param"))?;
    let grid = numbers(&g.config["grid"]);
    let rotation =
        Rotation { grid: [grid[0], grid[1]], excluded: g.usize("num_k_exclude_rope"), theta: g.f64("rope_theta") };
    let tape = Tape::new();
    let inputs = ["q", "k", "v"].map(|name| tape.leaf(g.tensor(&format!("input.{name}"), device)));
    let y = layer.forward(&tape, &inputs[0], &inputs[1], &inputs[2], Some(rotation))?;
    report.tensor(g, "output.y", y.value());
    let mut grads = sweep(g, report, tape, &[(y, g.tensor("input.probe.y", device))], &layer)?;
    for (name, input) in ["q", "k", "v"].iter().zip(&inputs) {
        report.tensor(g, &format!("grad_input.{name}"), &grads.take(input).ok_or("no gradient of an input")?);
    }
    Ok(())
}

pub fn two_way_transformer(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = TwoWaySizes {
        depth: g.usize("depth"),
        dim: g.usize("embedding_dim"),
        heads: g.usize("num_heads"),
        mlp_dim: g.usize("mlp_dim"),
        downsample: g.usize("attention_downsample_rate"),
    };
    let mut model = TwoWayTransformer::new(&builder(device), sizes)?;
    load(&mut model, &g.dict("param"))?;
    let tape = Tape::new();
    let image = tape.leaf(map(g, "input.image_embedding", device));
    let [b, h, w, c] = image.value().shape()[..] else { panic!() };
    let points = tape.leaf(g.tensor("input.point_embedding", device));
    // Positions are the same for all images in every use; the file has one for each.
    let pe = Var::constant(map(g, "input.image_pe", device).reshape([b, h * w, c])?);
    let (queries, keys) = model.forward(&tape, &image.reshape([b, h * w, c])?, &pe, &points)?;
    report.tensor(g, "output.queries", queries.value());
    report.tensor(g, "output.keys", keys.value());
    let outputs = [(queries, g.tensor("input.probe.queries", device)), (keys, g.tensor("input.probe.keys", device))];
    let mut grads = sweep(g, report, tape, &outputs, &model)?;
    compare_map(g, report, "grad_input.image_embedding", &grads.take(&image).ok_or("no gradient of the image")?);
    report.tensor(g, "grad_input.point_embedding", &grads.take(&points).ok_or("no gradient of the points")?);
    Ok(())
}

pub fn memory_attention(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = MemoryAttentionSizes {
        dim: g.usize("d_model"),
        mem_dim: g.usize("mem_dim"),
        layers: g.usize("num_layers"),
        hidden: g.usize("ffn"),
        heads: g.usize("heads"),
    };
    let mut model = MemoryAttention::new(&builder(device), sizes)?;
    load(&mut model, &g.dict("param"))?;
    let tape = Tape::new();
    let (x, memory) = (tape.leaf(tokens(g, "input.curr", device)), tape.leaf(tokens(g, "input.memory", device)));
    let positions = Var::constant(tokens(g, "input.curr_pos", device));
    let read = Memory {
        tokens: memory.clone(),
        positions: Var::constant(tokens(g, "input.memory_pos", device)),
        pointer_tokens: g.usize("num_obj_ptr_tokens"),
    };
    let grid = numbers(&g.config["grid"]);
    let y = model.forward(&tape, &x, &positions, &read, [grid[0], grid[1]])?;
    compare_tokens(g, report, "output.y", y.value());
    let mut grads = sweep(g, report, tape, &[(y, tokens(g, "input.probe.y", device))], &model)?;
    compare_tokens(g, report, "grad_input.curr", &grads.take(&x).ok_or("no gradient of the features")?);
    compare_tokens(g, report, "grad_input.memory", &grads.take(&memory).ok_or("no gradient of the memory")?);
    Ok(())
}

pub fn memory_encoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let window = Window { kernel: g.usize("kernel"), stride: g.usize("stride"), padding: g.usize("padding") };
    let sizes = MemoryEncoderSizes {
        dim: g.usize("in_dim"),
        out_dim: g.usize("out_dim"),
        total_stride: g.usize("total_stride"),
        window,
        fuser_layers: g.usize("fuser_layers"),
        fuser_kernel: g.usize("dw_kernel"),
    };
    if g.config.get("fuser_input_projection").and_then(Value::as_bool) == Some(true) {
        return Err("a projection before the fuser, which no released model has".into());
    }
    let mut model = MemoryEncoder::new(&builder(device), sizes)?;
    load(&mut model, &g.dict("param"))?;
    let tape = Tape::new();
    let features = tape.leaf(map(g, "input.pix_feat", device));
    let logits = tape.leaf(map(g, "input.mask_logits", device));
    let plain = sigmoid(&tape, &logits, 1.0, 0.0)?;
    compare_map(g, report, "output.features_plain_sigmoid", model.forward(&tape, &features, &plain)?.value());
    let mask = sigmoid(&tape, &logits, g.f64("sigmoid_scale") as f32, g.f64("sigmoid_bias") as f32)?;
    let y = model.forward(&tape, &features, &mask)?;
    compare_map(g, report, "output.features", y.value());
    let [_, h, w, _] = y.value().shape()[..] else { panic!() };
    let sine = sine_2d(g.usize("pos_dim"), [h, w], TEMPERATURE)?;
    let sine = Tensor::from_slice(&sine, [1, h, w, g.usize("pos_dim")], &Device::Cpu)?;
    compare_map(g, report, "output.pos", &sine);
    let mut grads = sweep(g, report, tape, &[(y, map(g, "input.probe.features", device))], &model)?;
    compare_map(g, report, "grad_input.pix_feat", &grads.take(&features).ok_or("no gradient of the features")?);
    compare_map(g, report, "grad_input.mask_logits", &grads.take(&logits).ok_or("no gradient of the mask")?);
    Ok(())
}

/// Points `<coords> [B, N, 2]` with `<labels> [B, N]`.
pub fn points(g: &Golden, coords: &str, labels: &str) -> Fallible<Points> {
    let at: Vec<[f32; 2]> = g.floats(coords).chunks_exact(2).map(|p| [p[0], p[1]]).collect();
    let labels = g.ints(labels).into_iter().map(|l| Label::new(l.into())).collect::<ocellus::Result<_>>()?;
    Ok(Points::new(at, labels, g.get(coords).shape[0])?)
}

pub fn prompt_encoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let pair = |key: &str| {
        let n = numbers(&g.config[key]);
        [n[0], n[1]]
    };
    let sizes = PromptSizes {
        embed_dim: g.usize("embed_dim"),
        image_embedding_size: pair("image_embedding_size"),
        input_image_size: pair("input_image_size"),
        mask_in_chans: g.usize("mask_in_chans"),
    };
    let mut model = PromptEncoder::new(&builder(device), sizes)?;
    load(&mut model, &g.dict("param"))?;
    let tape = Tape::new();
    let given = points(g, "input.points", "input.labels")?;
    let corners: Vec<[f32; 4]> = g.floats("input.boxes").chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let boxes = Points::boxes(&corners);
    // Boxes come with as many of the prompts' points as there are boxes.
    let first = boxes.prompts.min(given.prompts) * given.count();
    let some = Points::new(given.coords[..first].to_vec(), given.labels[..first].to_vec(), boxes.prompts)?;
    let sparse = [
        ("points_sparse", model.points(&tape, &given, true)?),
        ("boxes_sparse", model.points(&tape, &boxes, false)?),
        ("both_sparse", model.points(&tape, &some.then(&boxes)?, false)?),
    ];
    let mut outputs = Vec::new();
    for (name, y) in sparse {
        report.tensor(g, &format!("output.{name}"), y.value());
        outputs.push((y, g.tensor(&format!("input.probe.{name}"), device)));
    }
    let masks = tape.leaf(map(g, "input.masks", device));
    let dense = model.mask(&tape, &masks)?;
    compare_map(g, report, "output.mask_dense", dense.value());
    outputs.push((dense, map(g, "input.probe.mask_dense", device)));
    let [h, w] = sizes.image_embedding_size;
    let row = model.no_mask(&tape)?;
    let shape = g.get("output.nomask_dense").shape.clone();
    let values = row.value().to_f64()?;
    let broadcast: Vec<f64> =
        (0..shape[0]).flat_map(|_| values.iter().flat_map(|&v| std::iter::repeat_n(v, h * w))).collect();
    report.compare(g, "output.nomask_dense", &broadcast);
    // One row stands for all positions: so does the sum of the probe.
    let probe = g.floats("input.probe.nomask_dense");
    let mut sums = vec![0f32; values.len()];
    probe.chunks_exact(h * w).enumerate().for_each(|(i, c)| sums[i % values.len()] += c.iter().sum::<f32>());
    outputs.push((row, Tensor::from_slice(&sums, [sums.len()], device)?));
    let pe = model.dense_pe()?.reshape([1, h, w, sizes.embed_dim])?;
    compare_map(g, report, "output.dense_pe", &pe);
    let mut grads = sweep(g, report, tape, &outputs, &model)?;
    compare_map(g, report, "grad_input.masks", &grads.take(&masks).ok_or("no gradient of the masks")?);
    Ok(())
}

fn decoder(g: &Golden, device: &Device) -> Fallible<MaskDecoder> {
    let usize_or = |key: &str, other: u64| g.config.get(key).and_then(Value::as_u64).unwrap_or(other) as usize;
    let bool_or = |key: &str| g.config.get(key).and_then(Value::as_bool).unwrap_or(true);
    if !bool_or("high_res") || !bool_or("pred_obj_scores") {
        return Err("a decoder without fine features or object scores, which no released model has".into());
    }
    let sizes = DecoderSizes {
        transformer_dim: g.usize("transformer_dim"),
        num_heads: g.usize("num_heads"),
        mlp_dim: g.usize("mlp_dim"),
        num_multimask_outputs: usize_or("num_multimask_outputs", 3),
        iou_head_hidden_dim: g.usize("iou_head_hidden_dim"),
        iou_head_depth: usize_or("iou_head_depth", 3),
        sigmoid_iou: bool_or("sigmoid_iou"),
        obj_scores_mlp: bool_or("obj_scores_mlp"),
    };
    let mut model = MaskDecoder::new(&builder(device), sizes)?;
    load(&mut model, &g.dict("param"))?;
    Ok(model)
}

/// Positions of one image, `[h, w, C]`.
fn image_pe(g: &Golden, device: &Device) -> Fallible<Tensor> {
    let pe = map(g, "input.image_pe", device);
    let [_, h, w, c] = pe.shape()[..] else { panic!() };
    Ok(pe.reshape([h, w, c])?)
}

pub fn mask_decoder(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = decoder(g, device)?;
    let tape = Tape::new();
    let leaf = |name: &str| tape.leaf(map(g, &format!("input.{name}"), device));
    let (image, dense) = (leaf("image_embeddings"), leaf("dense"));
    let high_res = [leaf("feat_s0"), leaf("feat_s1")];
    let sparse = tape.leaf(g.tensor("input.sparse", device));
    let pe = image_pe(g, device)?;
    let query =
        Query { image: &image, image_pe: &pe, sparse: &sparse, dense: &dense, high_res: [&high_res[0], &high_res[1]] };
    let all = model.forward(&tape, query)?;
    let (single, several) = (all.single(&tape)?, all.several(&tape)?);
    let raw = Var::constant(map(g, "input.raw_for_conv_s", device));
    let convs = [model.conv_s0.forward(&tape, &raw, None)?, model.conv_s1.forward(&tape, &raw, None)?];
    let mut outputs = Vec::new();
    for (i, y) in convs.into_iter().enumerate() {
        compare_map(g, report, &format!("output.conv_s{i}"), y.value());
        outputs.push((y, map(g, &format!("input.probe.conv_s{i}"), device)));
    }
    report.tensor(g, "output.single_tokens", single.tokens.value());
    let named = [
        ("single_masks", single.masks),
        ("single_ious", single.ious),
        ("multi_masks", several.masks),
        ("multi_ious", several.ious),
        ("multi_tokens", several.tokens),
        ("obj_scores", all.object_scores),
    ];
    for (name, y) in named {
        report.tensor(g, &format!("output.{name}"), y.value());
        outputs.push((y, g.tensor(&format!("input.probe.{name}"), device)));
    }
    let mut grads = sweep(g, report, tape, &outputs, &model)?;
    let maps = [("image_embeddings", &image), ("dense", &dense), ("feat_s0", &high_res[0]), ("feat_s1", &high_res[1])];
    for (name, input) in maps {
        compare_map(g, report, &format!("grad_input.{name}"), &grads.take(input).ok_or("no gradient of a map")?);
    }
    report.tensor(g, "grad_input.sparse", &grads.take(&sparse).ok_or("no gradient of the prompts")?);
    Ok(())
}

pub fn mask_decoder_dynamic(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = decoder(g, device)?;
    let tape = Tape::no_grad();
    let constant = |name: &str| Var::constant(map(g, &format!("input.{name}"), device));
    let (image, dense, pe) = (constant("image_embeddings"), constant("dense"), image_pe(g, device)?);
    let high_res = [constant("feat_s0"), constant("feat_s1")];
    let sparse = Var::constant(g.tensor("input.sparse", device));
    let prompts = sparse.value().shape()[0];
    let query =
        Query { image: &image, image_pe: &pe, sparse: &sparse, dense: &dense, high_res: [&high_res[0], &high_res[1]] };
    let all = model.forward(&tape, query)?;
    let limits = Stability { delta: g.f64("stability_delta") as f32, thresh: g.f64("stability_thresh") as f32 };
    let (stable, single, several) = (all.stable(&tape, limits)?, all.single(&tape)?, all.several(&tape)?);
    report.tensor(g, "output.dynamic_masks", stable.masks.value());
    report.tensor(g, "output.dynamic_ious", stable.ious.value());
    report.tensor(g, "output.dynamic_tokens", stable.tokens.value());
    report.tensor(g, "output.multi_masks", several.masks.value());
    report.tensor(g, "output.multi_ious", several.ious.value());
    report.tensor(g, "output.obj_scores", all.object_scores.value());
    let logits = single.masks.value().to_vec::<f32>()?;
    let shares: Vec<f32> =
        logits.chunks_exact(logits.len() / prompts).map(|mask| stability(mask, limits.delta)).collect();
    report.compare(g, "output.stability", &shares.iter().map(|&s| f64::from(s)).collect::<Vec<_>>());
    let is_stable: Vec<f64> = shares.iter().map(|&s| f64::from(u8::from(s >= limits.thresh))).collect();
    report.compare(g, "output.is_stable", &is_stable);
    Ok(())
}
