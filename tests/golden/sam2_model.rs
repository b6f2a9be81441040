//! The whole of SAM-2: one image, and videos frame by frame.

use ocellus::data::augment::Normalise;
use ocellus::data::image::Image;
use ocellus::nn::Module;
use ocellus::recipes::sam2::bank::{Bank, Kept};
use ocellus::recipes::sam2::decoder::Stability;
use ocellus::recipes::sam2::frames::Now;
use ocellus::recipes::sam2::image::{ImagePredictor, ImagePrompt, Prediction};
use ocellus::recipes::sam2::regions::Repair;
use ocellus::recipes::sam2::transforms;
use ocellus::recipes::sam2::{Answer, Features, Label, Mode, Options, Points, Prompt, Sam2, Sizes};
use ocellus::{Device, Grads, Tape, Tensor, Var};
use serde_json::{Value, json};

use crate::reader::{Golden, Outcome, Report, gradient};
use crate::sam2_parts::{builder, compare_map, compare_tokens, map, points, probe_loss, trunk_sizes};

pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What upstream's `SAM2Base` assumes where a file says nothing.
fn defaults() -> Value {
    json!({
        "sigmoid_scale_for_mem_enc": 1.0, "sigmoid_bias_for_mem_enc": 0.0, "binarize_mask_from_pts_for_mem_enc": false,
        "max_cond_frames_in_attn": -1, "multimask_output_in_sam": false, "multimask_min_pt_num": 1,
        "multimask_max_pt_num": 1, "multimask_output_for_tracking": false, "use_multimask_token_for_obj_ptr": false,
        "iou_prediction_use_sigmoid": false, "memory_temporal_stride_for_eval": 1, "max_obj_ptrs_in_encoder": 16,
        "add_tpos_enc_to_obj_ptrs": true, "use_signed_tpos_enc_to_obj_ptrs": false,
        "only_obj_ptrs_in_the_past_for_eval": false
    })
}

/// Switches that every released model has on, and those it has off.
const ON: [&str; 7] = [
    "use_mask_input_as_output_without_sam",
    "directly_add_no_mem_embed",
    "use_high_res_features_in_sam",
    "use_obj_ptrs_in_encoder",
    "pred_obj_scores",
    "pred_obj_scores_mlp",
    "use_mlp_for_obj_ptr_proj",
];

fn options(kwargs: &Value) -> Fallible<Options> {
    for key in ON {
        if kwargs.get(key).and_then(Value::as_bool) != Some(true) {
            return Err(format!("a model without `{key}`, which no released one is").into());
        }
    }
    let mut all = defaults();
    for (key, value) in all.as_object_mut().unwrap() {
        if let Some(given) = kwargs.get(key) {
            *value = given.clone();
        }
    }
    let limit = all["max_cond_frames_in_attn"].as_i64().filter(|&n| n >= 0);
    all["max_cond_frames_in_attn"] = json!(limit);
    let extra = &kwargs["sam_mask_decoder_extra_args"];
    let stable = extra["dynamic_multimask_via_stability"].as_bool() == Some(true);
    let stability = stable.then(|| Stability {
        delta: extra["dynamic_multimask_stability_delta"].as_f64().unwrap_or(0.05) as f32,
        thresh: extra["dynamic_multimask_stability_thresh"].as_f64().unwrap_or(0.98) as f32,
    });
    all["stability"] = json!(stability);
    Ok(serde_json::from_value(all)?)
}

/// The model of a file: weights of `tiny_model_weights` beside it, and its own over them.
pub fn model(g: &Golden, device: &Device) -> Fallible<Sam2> {
    let kwargs = &g.config["sam2_base_kwargs"];
    let on = |key: &str| kwargs.get(key).and_then(Value::as_bool) == Some(true);
    let sizes = Sizes {
        image_size: g.usize("image_size"),
        trunk: trunk_sizes(&g.config),
        hidden_dim: g.usize("d_model"),
        mem_dim: g.usize("mem_dim"),
        memory_layers: g.usize("ma_layers"),
        memory_hidden: g.usize("ma_ffn"),
        memory_heads: g.usize("ma_heads"),
        decoder_heads: g.usize("two_way_heads"),
        decoder_mlp_dim: g.usize("two_way_mlp"),
        iou_head_hidden_dim: g.usize("iou_head_hidden_dim"),
        num_maskmem: g.usize("num_maskmem"),
        occlusion_embedding: on("no_obj_embed_spatial"),
        project_pointer_time: on("proj_tpos_enc_in_obj_ptrs"),
    };
    let mut model = Sam2::new(&builder(device), &sizes, &options(kwargs)?)?;
    let shared = g.path.with_file_name("tiny_model_weights.safetensors");
    let shared = if shared.is_file() { Some(Golden::read(&shared)?.dict("param")) } else { None };
    let own = g.dict("param");
    for p in model.params_mut() {
        let name = p.name().to_string();
        let value = own.get(&name).or_else(|| shared.as_ref().and_then(|dict| dict.get(&name)));
        p.set(value.ok_or_else(|| format!("no param.{name}"))?)?;
    }
    Ok(model)
}

/// The weights alone: every one fits the model, and the model needs no other.
pub fn tiny_model_weights(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let mut names: Vec<String> = g.tensors.keys().filter_map(|n| n.strip_prefix("param.")).map(String::from).collect();
    for p in model.params() {
        let at = names.iter().position(|n| n == p.name()).ok_or_else(|| format!("no param.{}", p.name()))?;
        names.swap_remove(at);
        report.tensor(g, &format!("param.{}", p.name()), &p.master);
    }
    if !names.is_empty() {
        report.fail(format!("not in the model: {}", names.join(", ")));
    }
    Ok(())
}

/// Masks `[O, M, h, w]` of a file.
fn compare_answer(g: &Golden, report: &mut Report, at: &str, answer: &Answer) {
    report.tensor(g, &format!("output.{at}.pred_masks"), answer.low_res_masks.value());
    report.tensor(g, &format!("output.{at}.pred_masks_high_res"), answer.high_res_masks.value());
    report.tensor(g, &format!("output.{at}.obj_ptr"), answer.obj_ptr.value());
    report.tensor(g, &format!("output.{at}.object_score_logits"), answer.object_scores.value());
}

pub fn image_forward(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let tape = Tape::new();
    let features = model.encode(&tape, &Var::constant(map(g, "input.image", device)), &[])?;
    for (i, y) in features.high_res.iter().enumerate() {
        compare_map(g, report, &format!("output.feat_s{i}"), y.value());
    }
    let image = model.without_memory(&tape, &features)?;
    compare_map(g, report, "output.image_embed", image.value());
    let prompt =
        Prompt { points: Some(points(g, "input.point_coords", "input.point_labels")?), mask: None, bare: false };
    let objects = image.value().shape()[0];
    let answer = model.answer(&tape, &image, &features.high_res, &prompt, objects, true, Mode::Evaluate)?;
    report.tensor(g, "output.low_res_multimasks", answer.all.masks.value());
    report.tensor(g, "output.ious", answer.all.ious.value());
    report.tensor(g, "output.object_score_logits", answer.object_scores.value());
    report.tensor(g, "output.low_res_masks", answer.low_res_masks.value());
    report.tensor(g, "output.high_res_masks", answer.high_res_masks.value());
    report.tensor(g, "output.obj_ptr", answer.obj_ptr.value());
    let chosen = answer.chosen.as_ref().ok_or("no choice")?.to_vec::<i32>()?;
    let masks = answer.all.ious.value().shape()[1] as i32;
    report.compare(g, "output.best", &chosen.iter().map(|id| f64::from(id % masks)).collect::<Vec<_>>());
    let probe = |name: &str| g.tensor(&format!("input.probe.{name}"), device);
    let outputs = [
        (answer.all.masks, probe("low_res_multimasks")),
        (answer.all.ious, probe("ious")),
        (answer.obj_ptr, probe("obj_ptr")),
        (answer.object_scores, probe("object_score_logits")),
    ];
    let loss = probe_loss(&tape, &outputs);
    report.tensor(g, "output.loss", loss.value());
    let mut grads = Grads::new();
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    report.params(g, "grad", gradient(&model, &grads));
    Ok(())
}

/// A video of a file as features of its frames.
fn video(g: &Golden, model: &Sam2, tape: &Tape, device: &Device) -> Fallible<Vec<Features>> {
    let all = model.encode(tape, &Var::constant(map(g, "input.video", device)), &[])?;
    (0..g.get("input.video").shape[0]).map(|frame| Ok(all.of(tape, frame)?)).collect()
}

/// What the model says of a frame, and what is kept of it.
struct Step {
    answer: Answer,
    memory: Var,
    /// Features after looking at the memory, and the memory.
    seen: Option<(Var, ocellus::recipes::sam2::memory_attention::Memory)>,
}

/// One frame of a video: with a prompt and no memory, or with what the bank holds.
fn step(
    model: &Sam2,
    features: &Features,
    bank: &mut Bank,
    now: Now,
    prompt: Option<&Points>,
    objects: usize,
) -> Fallible<Step> {
    let (tape, mode) = (Tape::no_grad(), Mode::Evaluate);
    let (image, seen) = match prompt {
        Some(_) => (model.without_memory(&tape, features)?, None),
        None => {
            let memory = model.recall(&tape, bank, now, mode)?;
            let image = model.with_memory(&tape, features, &memory, objects)?;
            (image.clone(), Some((image, memory)))
        }
    };
    let several = model.options().several(prompt.is_some(), prompt.map_or(0, Points::count));
    let given = Prompt { points: prompt.cloned(), mask: None, bare: false };
    let answer = model.answer(&tape, &image, &features.high_res, &given, objects, several, mode)?;
    let (masks, scores) = (&answer.high_res_masks, &answer.object_scores);
    let memory = model.remember(&tape, features, masks, scores, prompt.is_some(), mode)?;
    let kept = Kept { memory: Some(memory.clone()), obj_ptr: answer.obj_ptr.clone() };
    match prompt {
        Some(_) => bank.condition(now.frame, kept),
        None => bank.track(now.frame, kept),
    }
    Ok(Step { answer, memory, seen })
}

/// Frames in order, those with a prompt first: `prompts` has the frames and their points.
fn track(g: &Golden, device: &Device, report: &mut Report, prompts: &[(usize, Points)]) -> Outcome {
    let model = model(g, device)?;
    let frames = video(g, &model, &Tape::no_grad(), device)?;
    let (mut bank, mut lengths) = (Bank::default(), Vec::new());
    let objects = prompts[0].1.prompts;
    let rest = (0..frames.len()).filter(|f| prompts.iter().all(|(at, _)| at != f));
    let order = prompts.iter().map(|(at, points)| (*at, Some(points))).chain(rest.map(|f| (f, None)));
    for (frame, prompt) in order {
        let now = Now { frame: frame as i64, video: Some(frames.len()), reverse: false };
        let step = step(&model, &frames[frame], &mut bank, now, prompt, objects)?;
        compare_answer(g, report, &format!("f{frame}"), &step.answer);
        compare_map(g, report, &format!("output.f{frame}.maskmem_features"), step.memory.value());
        if let Some((image, memory)) = step.seen {
            let [o, h, w, c] = image.value().shape()[..] else { panic!() };
            compare_tokens(g, report, &format!("output.f{frame}.mem_attn"), &image.value().reshape([o, h * w, c])?);
            compare_tokens(g, report, &format!("output.f{frame}.memory"), memory.tokens.value());
            let positions = &memory.positions;
            let [tokens, width] = positions.value().shape()[..] else { panic!() };
            let all = ocellus::ops::repeat::repeat(&Tape::no_grad(), positions, objects)?;
            compare_tokens(
                g,
                report,
                &format!("output.f{frame}.memory_pos"),
                &all.value().reshape([objects, tokens, width])?,
            );
            lengths.extend([frame as f64, tokens as f64, memory.pointer_tokens as f64]);
        }
    }
    report.compare(g, "output.mem_lengths", &lengths);
    if g.tensors.contains_key("output.maskmem_pos_enc") {
        let (side, width) = (model.side(), model.sizes().mem_dim);
        let sine = ocellus::recipes::sam2::position::sine_2d(width, [side, side], 10000.0)?;
        let sine = Tensor::from_slice(&sine, [1, side, side, width], &Device::Cpu)?;
        compare_map(g, report, "output.maskmem_pos_enc", &sine);
    }
    Ok(())
}

/// Frame 0 has a click for each object, the others nothing.
pub fn video_track_step(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let prompt = points(g, "input.point_coords", "input.point_labels")?;
    track(g, device, report, &[(0, prompt)])
}

/// Several frames have a point for each object: `input.point_f<frame>`.
pub fn video_multi_cond_stride(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let number = |name: &String| name.strip_prefix("input.point_f")?.parse::<usize>().ok();
    let mut frames: Vec<usize> = g.tensors.keys().filter_map(number).collect();
    frames.sort_unstable();
    let objects = g.get("output.f0.obj_ptr").shape[0];
    let mut prompts = Vec::new();
    for frame in frames {
        let at: Vec<[f32; 2]> =
            g.floats(&format!("input.point_f{frame}")).chunks_exact(2).map(|p| [p[0], p[1]]).collect();
        let labels = vec![Label::Positive; at.len()];
        prompts.push((frame, Points::new(at, labels, objects)?));
    }
    track(g, device, report, &prompts)
}

/// Points and their best mask, boxes, and a box with points, on one image.
pub fn image_predictor(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let named = |start: &str| g.tensors.keys().find(|n| n.starts_with(start)).cloned();
    let name = named("input.image_u").ok_or("no image")?;
    let [h, w, _] = g.get(&name).shape[..] else { panic!("{:?}", g.get(&name).shape) };
    let data = g.get(&name).values.iter().map(|&x| x as u8).collect();
    let normalise = Normalise::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])?;
    let image = Image { width: w, height: h, data };
    let predictor = ImagePredictor::new(&model, &image, &normalise, Repair::image(0.0, 0, 0))?;
    compare_map(g, report, "output.image_embed", predictor.image_embedding());
    let pairs: Vec<[f32; 2]> = g.floats("input.points").chunks_exact(2).map(|p| [p[0], p[1]]).collect();
    let labels = match g.tensors.contains_key("input.labels") {
        true => g.ints("input.labels").into_iter().map(|l| Label::new(l.into())).collect::<ocellus::Result<_>>()?,
        false => vec![Label::Positive; pairs.len()],
    };
    let points = Points::new(pairs, labels, 1)?;
    let boxes = named("input.boxes").ok_or("no boxes")?;
    let boxes: Vec<[f32; 4]> = g.floats(&boxes).chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let compare = |report: &mut Report, step: &str, p: &Prediction| {
        report.tensor(g, &format!("output.{step}.ious"), &p.ious);
        report.tensor(g, &format!("output.{step}.low_res"), &p.low_res);
        let name = format!("output.{step}.masks");
        let Some(stored) = g.tensors.get(&name) else { return };
        let logits = p.masks.to_f64().unwrap();
        let inside = stored.integer;
        let values: Vec<f64> = logits.iter().map(|&x| if inside { f64::from(u8::from(x > 0.0)) } else { x }).collect();
        report.compare(g, &name, &values);
    };
    let ask = ImagePrompt { points: Some(points.clone()), ..ImagePrompt::default() };
    let first = predictor.predict(&ask, true)?;
    compare(report, "step1", &first);
    let ious = first.ious.to_f64()?;
    let best = (1..ious.len()).fold(0, |best, m| if ious[m] > ious[best] { m } else { best });
    report.compare(g, "output.step1.best", &[best as f64]);
    let low = first.low_res.to_vec::<f32>()?;
    let side = first.low_res.shape()[3];
    let mask = Tensor::from_slice(&low[best * side * side..][..side * side], [1, side, side], &Device::Cpu)?;
    compare(report, "step2", &predictor.predict(&ImagePrompt { mask: Some(mask), ..ask.clone() }, false)?);
    compare(
        report,
        "boxes3",
        &predictor.predict(&ImagePrompt { boxes: boxes.clone(), ..ImagePrompt::default() }, false)?,
    );
    compare(report, "box_point", &predictor.predict(&ImagePrompt { boxes: boxes[..1].to_vec(), ..ask }, false)?);
    Ok(())
}

fn list(value: &Value) -> Vec<usize> {
    value.as_array().map(|all| all.iter().filter_map(Value::as_u64).map(|x| x as usize).collect()).unwrap_or_default()
}

/// The image part under the names of transformers.
pub fn hf_sam2_model(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let dict = g.dict("param");
    let extent = |name: &str, axis: usize| -> Fallible<usize> { Ok(dict.require(name)?.shape()[axis]) };
    let heads = &g.config["decoder"];
    let heads = ["num_attention_heads", "heads", "num_heads"].iter().find_map(|key| heads.get(key)).unwrap_or(heads);
    let background = list(&g.config["background"]);
    let preset = ocellus::recipes::sam2::Preset::Tiny.sizes();
    let image_size = g.config["image_size"].as_u64().or(g.config["image_size"][0].as_u64()).ok_or("no image_size")?;
    let sizes = Sizes {
        image_size: image_size as usize,
        trunk: ocellus::nn::hiera::HieraSizes {
            embed_dim: g.usize("hidden_size"),
            num_heads: g.config["heads"].as_u64().or(g.config["heads"][0].as_u64()).ok_or("no heads")? as usize,
            stages: list(&g.config["blocks"]),
            q_pool: 3,
            window_spec: list(&g.config["windows"]),
            global_att_blocks: list(&g.config["global_attention_blocks"]),
            window_pos_embed_bkg_spatial_size: [background[0], background[1]],
        },
        hidden_dim: g.usize("fpn_hidden_size"),
        mem_dim: g.usize("fpn_hidden_size") / 4,
        decoder_heads: heads.as_u64().unwrap_or(8) as usize,
        decoder_mlp_dim: extent("mask_decoder.transformer.layers.0.mlp.proj_in.weight", 0)?,
        iou_head_hidden_dim: extent("mask_decoder.iou_prediction_head.proj_in.weight", 0)?,
        ..preset
    };
    let mut model = Sam2::new(&builder(device), &sizes, &Options::default())?;
    let names: Vec<String> = model.params().iter().map(|p| p.name().to_string()).collect();
    let weights = ocellus::checkpoint::sam2::to_upstream(&dict, names.iter().map(String::as_str))?;
    for p in model.params_mut() {
        let name = p.name().to_string();
        let of_images = ["image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder."];
        match weights.get(&name) {
            Some(value) => p.set(value)?,
            None if of_images.iter().any(|part| name.starts_with(part)) || name == "no_mem_embed" => {
                return Err(format!("no weight for {name}").into());
            }
            None => {}
        }
    }
    let tape = Tape::no_grad();
    let features = model.encode(&tape, &Var::constant(map(g, "input.pixel_values", device)), &[])?;
    let image = model.without_memory(&tape, &features)?;
    for (i, level) in [features.high_res[0].value(), features.high_res[1].value(), image.value()].iter().enumerate() {
        compare_map(g, report, &format!("output.image_embedding{i}"), level);
    }
    // [images, prompts, points, 2] and [images, prompts, 4]: each image has prompts of its own.
    let images = image.value().shape()[0];
    let (coords, labels, corners) = (g.floats("input.points"), g.ints("input.labels"), g.floats("input.boxes"));
    let masks = g.get("input.masks").shape.clone();
    for (step, boxed, masked) in [("points", false, false), ("boxes", true, false), ("points_mask", false, true)] {
        let (mut logits, mut ious, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..images {
            let own = features.of(&tape, at)?;
            let seen = model.without_memory(&tape, &own)?;
            let part = |n: usize| at * n / images..(at + 1) * n / images;
            let points = if boxed {
                let boxes = &corners[part(corners.len())];
                Points::boxes(&boxes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect::<Vec<_>>())
            } else {
                let pairs = coords[part(coords.len())].chunks_exact(2).map(|p| [p[0], p[1]]).collect();
                let labels = labels[part(labels.len())].iter().map(|&l| Label::new(l.into()));
                Points::new(pairs, labels.collect::<ocellus::Result<_>>()?, g.get("input.points").shape[1])?
            };
            let mask = if masked {
                let values = g.floats("input.masks");
                let (h, w) = (masks[masks.len() - 2], masks[masks.len() - 1]);
                let side = sizes.image_size / 4;
                let values = transforms::mask_prompts(&values[part(values.len())], [h, w], [side, side])?;
                let count = values.len() / side / side;
                Some(Var::constant(Tensor::from_slice(&values, [count, side, side, 1], device)?))
            } else {
                None
            };
            let objects = points.prompts;
            let prompt = Prompt { points: Some(points), mask, bare: false };
            let decoded = model.decode(&tape, &seen, &own.high_res, &prompt, objects)?.several(&tape)?;
            logits.extend(decoded.masks.value().to_f64()?);
            ious.extend(decoded.ious.value().to_f64()?);
            scores.extend(decoded.object_scores.value().to_f64()?);
        }
        report.compare(g, &format!("output.{step}.pred_masks"), &logits);
        report.compare(g, &format!("output.{step}.iou_scores"), &ious);
        report.compare(g, &format!("output.{step}.object_score_logits"), &scores);
    }
    Ok(())
}
