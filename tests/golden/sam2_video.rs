//! SAM-2's video predictor, and a training step on a clip.

use std::collections::BTreeMap;

use ocellus::data::binary_mask::BinaryMask;
use ocellus::ops::mask_loss::{Weights, best_masks, mask_loss};
use ocellus::recipes::sam2::clip::{Clip, Need};
use ocellus::recipes::sam2::transforms::mask_of_frame;
use ocellus::recipes::sam2::{Label, Points, Sam2, Video, VideoOptions};
use ocellus::{Device, Grads, Tape, Tensor, Var};

use serde_json::Value;

use crate::reader::{Golden, Outcome, Report, gradient};
use crate::sam2_model::{Fallible, model};
use crate::sam2_parts::{compare_map, map};

/// Frame `[1, S, S, 3]` of a video `[T, S, S, 3]`.
fn frame(video: &Tensor, at: usize) -> Fallible<Tensor> {
    let [_, h, w, c] = video.shape()[..] else { panic!() };
    let values = video.to_vec::<f32>()?;
    Ok(Tensor::from_slice(&values[at * h * w * c..][..h * w * c], [1, h, w, c], video.device())?)
}

/// Rows and columns that the outputs of a file have.
fn output_size(g: &Golden) -> Fallible<[usize; 2]> {
    let name = g.tensors.keys().find(|n| n.ends_with("video_res_masks")).ok_or("no masks at the video's size")?;
    let shape = &g.get(name).shape;
    Ok([shape[2], shape[3]])
}

fn compare_frame(g: &Golden, report: &mut Report, video: &Video, prefix: &str, at: usize) -> Outcome {
    for (i, object) in video.objects().into_iter().enumerate() {
        let answer = video.answer(object, at as i64).ok_or("no answer about an object")?;
        let name = |part: &str| format!("output.{prefix}f{at}.o{i}.{part}");
        report.tensor(g, &name("pred_masks"), &answer.masks);
        report.tensor(g, &name("obj_ptr"), &answer.pointer);
        report.tensor(g, &name("score"), &answer.score);
        if let Some(memory) = &answer.memory {
            compare_map(g, report, &name("maskmem_bf16"), memory);
        }
    }
    Ok(())
}

/// A click for the first object, a box for the second, then all frames in order.
pub fn video_predictor(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let (images, size) = (map(g, "input.video", device), output_size(g)?);
    let frames = images.shape()[0];
    let mut video = Video::new(&model, size, Some(frames), VideoOptions::default());
    let to_model = |x: f32, extent: usize| x / extent as f32 * model.sizes().image_size as f32;
    let scaled = |p: &[f32]| [to_model(p[0], size[1]), to_model(p[1], size[0])];
    let first = frame(&images, 0)?;
    for object in 1.. {
        let (clicks, corners) = (format!("input.points_obj{object}"), format!("input.box_obj{object}"));
        let points = if g.tensors.contains_key(&clicks) {
            let at: Vec<[f32; 2]> = g.floats(&clicks).chunks_exact(2).map(scaled).collect();
            let labels = format!("input.labels_obj{object}");
            let labels = match g.tensors.contains_key(&labels) {
                true => g.ints(&labels).into_iter().map(|l| Label::new(l.into())).collect::<ocellus::Result<_>>()?,
                false => vec![Label::Positive; at.len()],
            };
            Points::new(at, labels, 1)?
        } else if g.tensors.contains_key(&corners) {
            let b = g.floats(&corners);
            let ([x0, y0], [x1, y1]) = (scaled(&b[..2]), scaled(&b[2..]));
            Points::boxes(&[[x0, y0, x1, y1]])
        } else {
            break;
        };
        let masks = video.add_points(0, &first, object, &points, true)?;
        report.tensor(g, &format!("output.prompt{object}"), &masks.masks);
    }
    for at in 0..frames {
        let masks = video.step(at as i64, &frame(&images, at)?, false)?;
        report.tensor(g, &format!("output.f{at}.video_res_masks"), &masks.masks);
        compare_frame(g, report, &video, "", at)?;
    }
    Ok(())
}

/// `[T, O, S, S]` of a file as bytes of each frame.
fn targets(g: &Golden, device: &Device) -> Fallible<Vec<Tensor>> {
    let shape = g.get("input.masks").shape.clone();
    let [_, objects, h, w] = shape[..] else { panic!("{shape:?}") };
    let bytes: Vec<u8> = g.get("input.masks").values.iter().map(|&x| u8::from(x != 0.0)).collect();
    let frame = |part: &[u8]| Tensor::from_slice(part, [objects, h * w], device);
    Ok(bytes.chunks_exact(objects * h * w).map(frame).collect::<ocellus::Result<_>>()?)
}

fn frames_of(g: &Golden, name: &str) -> Vec<usize> {
    if g.tensors.contains_key(name) { g.ints(name).into_iter().map(|f| f as usize).collect() } else { vec![] }
}

/// Column `step` of a frame's clicks `[O, N, 2]`.
fn clicks(g: &Golden, frame: usize, step: usize) -> Fallible<Points> {
    let (coords, labels) = (format!("input.f{frame}.point_coords"), format!("input.f{frame}.point_labels"));
    let [objects, count, _] = g.get(&coords).shape[..] else { panic!() };
    // The first step has all that is left over for it: two corners of a box, say.
    let corrected = frames_of(g, "input.correction_frames").contains(&frame);
    let first = if corrected { count.saturating_sub(corrections(g)) } else { count };
    let range = if step == 0 { 0..first } else { first + step - 1..first + step };
    let (at, labels) = (g.floats(&coords), g.ints(&labels));
    let mut points = (Vec::new(), Vec::new());
    for o in 0..objects {
        for i in range.clone() {
            points.0.push([at[2 * (o * count + i)], at[2 * (o * count + i) + 1]]);
            points.1.push(Label::new(labels[o * count + i].into())?);
        }
    }
    Ok(Points::new(points.0, points.1, objects)?)
}

fn corrections(g: &Golden) -> usize {
    g.config["sam2_base_kwargs"]["num_correction_pt_per_frame"].as_u64().unwrap_or(7) as usize
}

/// The clip of a file, and its loss on a tape.
pub fn clip_loss(
    g: &Golden,
    model: &Sam2,
    tape: &Tape,
    device: &Device,
) -> Fallible<ocellus::recipes::sam2::clip::Outcome> {
    let shape = g.get("input.images").shape.clone(); // [T, B, 3, S, S], one video
    let [frames, videos, c, h, w] = shape[..] else { panic!("{shape:?}") };
    if videos != 1 {
        return Err("several videos in one step".into());
    }
    let values = g.floats("input.images");
    let mut pixels = Vec::with_capacity(values.len());
    for image in values.chunks_exact(c * h * w) {
        (0..h * w).for_each(|t| pixels.extend((0..c).map(|c| image[c * h * w + t])));
    }
    let targets = targets(g, device)?;
    let objects = targets[0].shape()[0];
    let clip = Clip {
        images: Tensor::from_slice(&pixels, [frames, h, w, c], device)?,
        targets,
        prompted: frames_of(g, "input.init_cond_frames"),
        corrected: frames_of(g, "input.correction_frames"),
        by_points: g.get("input.use_point_input").values[0] != 0.0,
        corrections: corrections(g),
        corrected_as_prompted: g.config["sam2_base_kwargs"]["add_all_frames_to_correct_as_cond"].as_bool()
            == Some(true),
    };
    let mut points = |need: Need| {
        clicks(g, need.frame, need.step)
            .map_err(|e| ocellus::Error::value("golden", "clicks", format!("frame {}", need.frame), e.to_string()))
    };
    Ok(model.clip_loss(tape, &clip, &Weights::default(), objects as f64, &[], &mut points)?)
}

pub fn train_step(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let tape = Tape::new();
    let outcome = clip_loss(g, &model, &tape, device)?;
    report.tensor(g, "output.loss", outcome.loss.value());
    let mut sums = [0.0; 4];
    for terms in &outcome.terms {
        sums.iter_mut().zip(terms.to_f64()?).for_each(|(sum, x)| *sum += x);
    }
    for (name, sum) in ["mask", "dice", "iou", "class"].iter().zip(sums) {
        report.compare(g, &format!("output.loss_{name}"), &[sum]);
    }
    for (frame, answers) in &outcome.answers {
        let counts: Vec<f64> = answers.iter().map(|a| a.all.ious.value().shape()[1] as f64).collect();
        report.compare(g, &format!("output.f{frame}.n_steps"), &counts);
        for (step, answer) in answers.iter().enumerate() {
            report.tensor(g, &format!("output.f{frame}.s{step}.ious"), answer.all.ious.value());
            report.tensor(g, &format!("output.f{frame}.s{step}.obj"), answer.object_scores.value());
        }
        let last = answers.last().ok_or("a frame without an answer")?;
        report.tensor(g, &format!("output.f{frame}.pred_masks"), last.low_res_masks.value());
    }
    let mut grads = Grads::new();
    tape.backward_scaled(&outcome.loss, 1.0, &mut grads)?;
    report.params(g, "grad", gradient(&model, &grads));
    let mut of = gradient(&model, &grads);
    let mut norms = Vec::new();
    for name in g.config["grad_norm_names"].as_array().ok_or("no names of gradients")? {
        let name = name.as_str().unwrap_or_default();
        let values = of(name).ok_or_else(|| format!("no gradient of {name}"))?;
        norms.push(values.iter().map(|x| x * x).sum::<f64>().sqrt());
    }
    report.compare(g, "output.grad_norms", &norms);
    let none: BTreeMap<&str, bool> = g.config["no_grad_names"]
        .as_array()
        .map(|names| names.iter().filter_map(|n| n.as_str()).map(|n| (n, of(n).is_some())).collect())
        .unwrap_or_default();
    for (name, _) in none.into_iter().filter(|(_, has)| *has) {
        report.fail(format!("{name} has a gradient, which upstream's has not"));
    }
    Ok(())
}

/// Focal and dice loss of logits, plainly, and the error of a predicted IoU.
fn plain_losses(x: &[f64], t: &[f64], iou: f64, w: &Weights) -> [f64; 3] {
    let (alpha, gamma, n) = (f64::from(w.focal_alpha), f64::from(w.focal_gamma), x.len() as f64);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (mut focal, mut both, mut either, mut inside, mut union) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (&x, &t) in x.iter().zip(t) {
        let z = if t > 0.0 { x } else { -x };
        let entropy = (-z).max(0.0) + (-z.abs()).exp().ln_1p();
        let weight = if alpha < 0.0 { 1.0 } else { alpha * t + (1.0 - alpha) * (1.0 - t) };
        focal += weight * (1.0 - sigmoid(z)).powf(gamma) * entropy;
        both += sigmoid(x) * t;
        either += sigmoid(x) + t;
        inside += f64::from(u8::from(x > 0.0 && t > 0.0));
        union += f64::from(u8::from(x > 0.0 || t > 0.0));
    }
    let error = iou - inside / f64::max(union, 1.0);
    let error = if w.iou_l1 { error.abs() } else { error * error };
    [focal / n, 1.0 - (2.0 * both + 1.0) / (either + 1.0), error]
}

/// The same by the operation, for a mask alone.
fn one_mask(x: &[f64], t: &[f64], iou: f64, weights: &Weights, objects: f64, device: &Device) -> Fallible<[f64; 3]> {
    let logits: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let bytes: Vec<u8> = t.iter().map(|&t| u8::from(t != 0.0)).collect();
    let constant = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, device).map(Var::constant);
    let masks = constant(&logits, &[1, 1, x.len()])?;
    let (ious, scores) = (constant(&[iou as f32], &[1, 1])?, constant(&[0.0], &[1])?);
    let targets = Tensor::from_slice(&bytes, [1, t.len()], device)?;
    let (_, terms) = mask_loss(&Tape::no_grad(), &masks, &ious, &scores, &targets, weights, objects)?;
    let terms = terms.to_f64()?;
    Ok([terms[0], terms[1], terms[2]])
}

pub fn losses(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    if g.config.get("variants").is_some_and(|v| !v.is_null()) {
        return variants(g, device, report);
    }
    one_loss(g, device, report, &g.config, "")
}

/// Several configurations in one file, told apart by the first part of their outputs' names.
fn variants(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let variants = g.config["variants"].as_object().ok_or("variants that are no table")?;
    for (name, own) in variants {
        let mut config = g.config.clone();
        for (key, value) in own.as_object().ok_or("a variant that is no table")? {
            config[key] = value.clone();
        }
        one_loss(g, device, report, &config, &format!("{name}."))?;
    }
    Ok(())
}

fn one_loss(g: &Golden, device: &Device, report: &mut Report, config: &Value, prefix: &str) -> Outcome {
    let number = |value: &Value, or: f64| value.as_f64().unwrap_or(or) as f32;
    let standard = Weights::default();
    let weights = Weights {
        mask: number(&config["weights"]["mask"], 20.0),
        dice: number(&config["weights"]["dice"], 1.0),
        iou: number(&config["weights"]["iou"], 1.0),
        class: number(&config["weights"]["cls"], 1.0),
        focal_alpha: number(&config["focal_alpha"], 0.25),
        focal_gamma: number(&config["focal_gamma"], 2.0),
        iou_l1: config["iou_l1"].as_bool().unwrap_or(standard.iou_l1),
        supervise_all_iou: config["supervise_all_iou"].as_bool().unwrap_or(standard.supervise_all_iou),
        obj_focal_alpha: number(&config["obj_focal_alpha"], -1.0),
        obj_focal_gamma: number(&config["obj_focal_gamma"], 0.0),
    };
    let objects = config["num_objects"].as_f64().ok_or("no num_objects")?;
    let shape = g.get("input.targets").shape.clone(); // [F, O, H, W]
    let [frames, count, h, w] = shape[..] else { panic!("{shape:?}") };
    let all = &g.get("input.targets").values;
    let tape = Tape::new();
    let (mut loss, mut sums, mut leaves) = (None, [0.0; 4], Vec::new());
    for frame in 0..frames {
        let target = &all[frame * count * h * w..][..count * h * w];
        let bytes: Vec<u8> = target.iter().map(|&x| u8::from(x != 0.0)).collect();
        let targets = Tensor::from_slice(&bytes, [count, h * w], device)?;
        for step in 0.. {
            let of = |part: &str| format!("f{frame}.s{step}.{part}");
            let name = format!("input.{}", of("masks"));
            if !g.tensors.contains_key(&name) {
                break;
            }
            let leaf = |part: &str| tape.leaf(g.tensor(&format!("input.{}", of(part)), device));
            let (masks, ious, scores) = (leaf("masks"), leaf("ious"), leaf("obj"));
            let several = ious.value().shape()[1];
            let flat = masks.reshape([count, several, h * w])?;
            let (total, terms) = mask_loss(&tape, &flat, &ious, &scores, &targets, &weights, objects)?;
            sums.iter_mut().zip(terms.to_f64()?).for_each(|(sum, x)| *sum += x);
            loss = Some(match loss {
                None => total,
                Some(sum) => ocellus::ops::add::add(&tape, &sum, &total)?,
            });
            let best = best_masks(flat.value(), &targets, &weights)?;
            report.tensor(g, &format!("output.{prefix}f{frame}s{step}_best"), &best);
            let (x, u) = (masks.value().to_f64()?, ious.value().to_f64()?);
            let each = (0..count * several)
                .map(|i| {
                    let (t, x) = (&target[i / several * h * w..][..h * w], &x[i * h * w..][..h * w]);
                    let plain = plain_losses(x, t, u[i], &weights).map(|l| l / objects);
                    // The operation has no loss of masks of an object that is not there.
                    if t.iter().all(|&t| t == 0.0) {
                        Ok(plain)
                    } else {
                        one_mask(x, t, u[i], &weights, objects, device)
                    }
                })
                .collect::<Fallible<Vec<[f64; 3]>>>()?;
            let iou = if weights.iou_l1 { "iou_l1" } else { "iou_l2" };
            for (k, part) in ["focal", "dice", iou].into_iter().enumerate() {
                let values: Vec<f64> = each.iter().map(|l| l[k]).collect();
                report.compare(g, &format!("output.{prefix}f{frame}s{step}_{part}"), &values);
            }
            leaves.push((of("masks"), masks));
            leaves.push((of("ious"), ious));
            leaves.push((of("obj"), scores));
        }
    }
    let loss = loss.ok_or("no step")?;
    report.tensor(g, &format!("output.{prefix}loss"), loss.value());
    for (name, sum) in ["mask", "dice", "iou", "class"].iter().zip(sums) {
        report.compare(g, &format!("output.{prefix}loss_{name}"), &[sum]);
    }
    let mut grads = Grads::new();
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    for (name, leaf) in &leaves {
        let grad = grads.take(leaf).ok_or("no gradient of an input")?;
        report.tensor(g, &format!("grad_input.{prefix}{name}"), &grad);
    }
    Ok(())
}

/// Masks of all objects in one frame, then forwards to the last frame of the file and backwards to the first.
pub fn video_reverse_mask_prompt(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let model = model(g, device)?;
    let (images, size) = (map(g, "input.video", device), output_size(g)?);
    let frames_in = |prefix: &str| -> Vec<usize> {
        let of = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse().ok();
        let mut all: Vec<usize> = g.tensors.keys().filter_map(of).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let (forwards, mut backwards) = (frames_in("output.fwd.f"), frames_in("output.rev.f"));
    let start = *forwards.first().ok_or("no frame forwards")?;
    backwards.reverse();
    let mut video = Video::new(&model, size, Some(images.shape()[0]), VideoOptions::default());
    let (side, first) = (model.sizes().image_size, frame(&images, start)?);
    for object in 0.. {
        let name = format!("input.mask_obj{object}");
        if !g.tensors.contains_key(&name) {
            if object < 2 {
                continue; // counted from 0 or from 1
            }
            break;
        }
        let shape = &g.get(&name).shape;
        let [h, w] = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let inside = g.get(&name).values.iter().map(|&x| x != 0.0).collect();
        let mask = mask_of_frame(&BinaryMask::new(w, h, inside)?, side)?;
        let values: Vec<f32> = mask.pixels().iter().map(|&p| f32::from(u8::from(p))).collect();
        let resized: Vec<f64> = values.iter().map(|&x| x.into()).collect();
        report.compare(g, &format!("output.resized_mask_obj{object}"), &resized);
        let mask = Tensor::from_slice(&values, [1, side, side, 1], device)?;
        let masks = video.add_mask(start as i64, &first, object, &mask)?;
        report.tensor(g, "output.prompt", &masks.masks); // the last one holds
    }
    for (prefix, reverse, frames) in [("fwd.", false, forwards), ("rev.", true, backwards)] {
        for at in frames {
            let masks = video.step(at as i64, &frame(&images, at)?, reverse)?;
            report.tensor(g, &format!("output.{prefix}f{at}.video_res_masks"), &masks.masks);
            compare_frame(g, report, &video, prefix, at)?;
        }
    }
    Ok(())
}
