mod training;

use std::collections::BTreeMap;

use super::group::MAX_BATCH;
use super::{Features, Label, Mode, Options, Points, Preset, Prompt, Sam2, Sizes, Video, VideoOptions};
use crate::nn::{Builder, Module};
use crate::random::{normal, stream};
use crate::testing::distance;
use crate::{DType, Device, Tape, Tensor, Var};

/// The smallest model that has every part.
fn sizes() -> Sizes {
    Sizes { image_size: 32, num_maskmem: 3, ..Preset::Micro.sizes() }
}

fn model(dtype: DType) -> Sam2 {
    let options = Options { max_obj_ptrs_in_encoder: 4, ..Options::default() };
    let mut model = Sam2::new(&Builder::new(&Device::Cpu, dtype, 5), &sizes(), &options).unwrap();
    // Embeddings of some size, so that memories and times matter, and objects that are there.
    for p in model.params_mut() {
        let values = match p.name() {
            "maskmem_tpos_enc" | "no_mem_embed" => normal(&mut stream(1, 1), p.master.numel()),
            "sam_mask_decoder.pred_obj_score_head.layers.2.bias" => vec![6.0],
            _ => continue,
        };
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        let value = Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap();
        p.set(&value).unwrap();
    }
    model
}

fn frames(count: usize, dtype: DType) -> Vec<Tensor> {
    let frame = |at: usize| {
        let values: Vec<f32> = normal(&mut stream(2, at as u64), 32 * 32 * 3).into_iter().map(|x| x as f32).collect();
        Tensor::from_slice(&values, [1, 32, 32, 3], &Device::Cpu).unwrap().cast(dtype).unwrap()
    };
    (0..count).map(frame).collect()
}

fn click(x: f32, y: f32) -> Points {
    Points::new(vec![[x, y]], vec![Label::Positive], 1).unwrap()
}

/// Rounding of an f32 pass over objects together or alone, of the largest logit: a memory's bf16 may round the other
/// way.
const NEAR: f64 = 1e-4;

/// Largest difference to the largest value.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let [a, b] = [a, b].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    distance(&a, &b).0 / b.iter().fold(0f64, |m, x| m.max(x.abs()))
}

/// A mask of the smallest model's input that covers some of its rows.
fn mask(rows: std::ops::Range<usize>, dtype: DType) -> Tensor {
    let values: Vec<f32> = (0..32 * 32).map(|i| f32::from(u8::from(rows.contains(&(i / 32))))).collect();
    Tensor::from_slice(&values, [1, 32, 32, 1], &Device::Cpu).unwrap().cast(dtype).unwrap()
}

#[test]
fn memory_does_not_grow_with_the_video() {
    let (model, frames) = (model(DType::F32), frames(30, DType::F32));
    let mut video = Video::new(&model, [32, 32], None, VideoOptions::default());
    video.add_points(0, &frames[0], 1, &click(9.0, 9.0), true).unwrap();
    let mut kept = Vec::new();
    for (at, frame) in frames.iter().enumerate() {
        video.step(at as i64, frame, false).unwrap();
        kept.push(video.kept());
    }
    // The frames that may be read from here and those near the prompt, four on each side.
    assert_eq!(kept[..4], [1, 2, 3, 4]);
    assert_eq!(kept[12..], [10; 18]);
}

#[test]
fn objects_do_not_see_each_other() {
    let (model, frames) = (model(DType::F32), frames(4, DType::F32));
    let follow = |prompts: &[(i64, Points)]| {
        let mut video = Video::new(&model, [20, 28], Some(4), VideoOptions::default());
        for (object, points) in prompts {
            video.add_points(0, &frames[0], *object, points, true).unwrap();
        }
        (0..4).for_each(|at| drop(video.step(at, &frames[at as usize], false).unwrap()));
        let last = |object: i64| video.answer(object, 3).unwrap().masks.to_vec::<f32>().unwrap();
        prompts.iter().map(|(object, _)| last(*object)).collect::<Vec<_>>()
    };
    let (a, b) = ((1, click(5.0, 6.0)), (2, click(20.0, 25.0)));
    let together = follow(&[a.clone(), b.clone()]);
    let alone = [follow(&[a]), follow(&[b])].concat();
    (0..2).for_each(|i| assert!(apart(&together[i], &alone[i]) < NEAR));
    assert!(apart(&together[0], &together[1]) > 5.0 * NEAR);
}

/// Logits by step and object.
type MasksByStep = BTreeMap<(usize, i64), Vec<f32>>;

/// Objects that begin in different frames by clicks, a box and a mask, of which one is corrected and one is removed,
/// forwards and backwards: the masks of `ids` by step and object, and the passes of each step.
fn busy_video(ids: &[i64]) -> (MasksByStep, Vec<usize>) {
    let (model, frames) = (model(DType::F32), frames(8, DType::F32));
    let options = VideoOptions { fill_hole_area: 8, ..VideoOptions::default() };
    let mut video = Video::new(&model, [20, 28], Some(8), options);
    let (mut masks, mut passes) = (BTreeMap::new(), Vec::new());
    let steps = (0..8).map(|at| (at, false)).chain((2..7).rev().map(|at| (at, true)));
    for (step, (at, reverse)) in steps.enumerate() {
        let image = &frames[at];
        let mut click = |frame: usize, object: i64, points: &Points, replace: bool| {
            if ids.contains(&object) {
                video.add_points(frame as i64, &frames[frame], object, points, replace).unwrap();
            }
        };
        match step {
            0 => {
                click(0, 1, &self::click(5.0, 6.0), true);
                click(0, 2, &Points::boxes(&[[4.0, 9.0, 20.0, 30.0]]), true);
            }
            2 => click(2, 4, &self::click(20.0, 25.0), true),
            3 => click(3, 5, &self::click(11.0, 30.0), true),
            4 => click(3, 1, &self::click(7.0, 9.0), false), // in a frame that was tracked
            _ => {}
        }
        if step == 0 && ids.contains(&3) {
            video.add_mask(0, image, 3, &mask(3..20, DType::F32)).unwrap();
        }
        if step == 4 && ids.contains(&2) {
            video.remove(2).unwrap();
        }
        let found = video.step(at as i64, image, reverse).unwrap();
        passes.push(found.passes);
        let all = found.masks.to_vec::<f32>().unwrap();
        masks.extend(found.objects.iter().zip(all.chunks(20 * 28)).map(|(&id, mask)| ((step, id), mask.to_vec())));
    }
    (masks, passes)
}

#[test]
fn objects_together_are_objects_alone() {
    let (together, passes) = busy_video(&[1, 2, 3, 4, 5]);
    // Three begin in frame 0, one each in 2 and 3; from frame 7 on all banks are full. Backwards 3 and 2 have prompts
    // again.
    assert_eq!(passes, [0, 1, 1, 2, 3, 3, 2, 1, 1, 1, 1, 1, 2]);
    let mut alone = BTreeMap::new();
    for id in 1..=5 {
        let (masks, passes) = busy_video(&[id]);
        assert!(passes.iter().all(|&passes| passes <= 1));
        alone.extend(masks);
    }
    assert_eq!(together.len(), 3 + 3 + 4 + 5 + 9 * 4);
    assert_eq!(together.keys().collect::<Vec<_>>(), alone.keys().collect::<Vec<_>>());
    for (at, masks) in &together {
        let error = apart(masks, &alone[at]);
        assert!(error < NEAR, "step and object {at:?}: {error:e}");
        let others = together.iter().filter(|(other, _)| other.0 == at.0 && other.1 != at.1);
        others.for_each(|(_, theirs)| assert!(apart(masks, theirs) > 10.0 * NEAR));
    }
}

#[test]
fn many_objects_are_computed_in_bounded_passes() {
    let (model, frames) = (model(DType::F32), frames(2, DType::F32));
    let mut video = Video::new(&model, [8, 8], Some(2), VideoOptions::default());
    for object in 0..=MAX_BATCH as i64 {
        video.add_points(0, &frames[0], object, &click(object as f32, 9.0), true).unwrap();
    }
    assert_eq!(video.step(0, &frames[0], false).unwrap().passes, 0);
    let found = video.step(1, &frames[1], false).unwrap();
    assert_eq!((found.passes, found.masks.shape()[0], video.kept()), (2, MAX_BATCH + 1, 2 * (MAX_BATCH + 1)));
}

#[test]
fn a_prompt_that_fails_leaves_the_video_as_it_was() {
    let (model, frames) = (model(DType::F32), frames(2, DType::F32));
    let mut video = Video::new(&model, [32, 32], Some(2), VideoOptions::default());
    // Of the right size, but of a type that the model's convolution refuses.
    let wrong = mask(0..9, DType::BF16);
    assert!(video.add_mask(0, &frames[0], 1, &wrong).is_err());
    assert_eq!(video.objects(), [0i64; 0]);
    video.add_points(0, &frames[0], 1, &click(9.0, 9.0), true).unwrap();
    assert!(video.add_mask(0, &frames[0], 2, &wrong).is_err());
    assert!(video.add_mask(0, &frames[0], 1, &wrong).is_err());
    assert_eq!(video.objects(), [1]);
    // The click is still there: another one is added to it.
    let more = video.add_points(0, &frames[0], 1, &click(20.0, 9.0), false).unwrap().masks.to_vec::<f32>().unwrap();
    let mut anew = Video::new(&model, [32, 32], Some(2), VideoOptions::default());
    anew.add_points(0, &frames[0], 1, &click(9.0, 9.0), true).unwrap();
    let both = anew.add_points(0, &frames[0], 1, &click(20.0, 9.0), false).unwrap();
    assert_eq!(more, both.masks.to_vec::<f32>().unwrap());
    video.step(0, &frames[0], false).unwrap();
    video.step(1, &frames[1], false).unwrap();
    // Masks that cannot be made: a video without pixels.
    let options = VideoOptions { non_overlap_masks: true, ..VideoOptions::default() };
    let mut nothing = Video::new(&model, [0, 0], Some(2), options);
    assert!(nothing.add_points(0, &frames[0], 1, &click(9.0, 9.0), true).is_err());
    assert!(nothing.objects().is_empty() && nothing.answer(1, 0).is_none());
}

#[test]
fn another_image_of_a_frame_is_looked_at() {
    let (model, frames) = (model(DType::F32), frames(2, DType::F32));
    let run = |first: &Tensor, second: &Tensor| {
        let mut video = Video::new(&model, [32, 32], Some(3), VideoOptions::default());
        video.add_points(0, first, 1, &click(9.0, 9.0), true).unwrap();
        video.add_points(0, second, 2, &click(9.0, 9.0), true).unwrap();
        let [a, b] = [1, 2].map(|object| video.answer(object, 0).unwrap().masks.to_vec::<f32>().unwrap());
        video.step(0, second, false).unwrap();
        (a, b, video.step(1, &frames[1], false).unwrap().masks.to_vec::<f32>().unwrap())
    };
    let (a, b, same) = run(&frames[0], &frames[0]);
    assert_eq!(a, b);
    let copy = run(&frames[0], &frames[0].deep_clone().unwrap());
    assert_eq!((&copy.1, &copy.2), (&b, &same));
    let other = run(&frames[0], &frames[1]);
    assert_ne!(other.1, b);
    assert_eq!(other.1, run(&frames[1], &frames[1]).1);
    // Both memories are of the image that was given last.
    assert_ne!(other.2, same);
}

#[test]
fn backwards_is_forwards_in_the_reversed_video() {
    let (model, frames) = (model(DType::F32), frames(6, DType::F32));
    let mut forwards = Video::new(&model, [32, 32], Some(6), VideoOptions::default());
    let mut backwards = Video::new(&model, [32, 32], Some(6), VideoOptions::default());
    forwards.add_points(0, &frames[5], 1, &click(12.0, 8.0), true).unwrap();
    backwards.add_points(5, &frames[5], 1, &click(12.0, 8.0), true).unwrap();
    for at in 0..6i64 {
        let frame = &frames[5 - at as usize];
        let a = forwards.step(at, frame, false).unwrap().masks.to_vec::<f32>().unwrap();
        let b = backwards.step(5 - at, frame, true).unwrap().masks.to_vec::<f32>().unwrap();
        assert_eq!(a, b, "frame {at}");
    }
}

#[test]
fn an_absent_object_is_hidden_and_marked() {
    let mut model = model(DType::F32);
    let frame = &frames(1, DType::F32)[0];
    for p in model.params_mut() {
        if p.name() == "sam_mask_decoder.pred_obj_score_head.layers.2.bias" {
            p.set(&Tensor::full([1], -60f32, &Device::Cpu).unwrap()).unwrap();
        }
    }
    let tape = Tape::no_grad();
    let features = model.encode(&tape, &Var::constant(frame.clone()), &[]).unwrap();
    let image = model.without_memory(&tape, &features).unwrap();
    let prompt = Prompt { points: Some(click(3.0, 3.0)), mask: None, bare: false };
    let answer = model.answer(&tape, &image, &features.high_res, &prompt, 1, true, Mode::Evaluate).unwrap();
    assert!(answer.high_res_masks.value().to_vec::<f32>().unwrap().iter().all(|&x| x == -1024.0));
    let pointer = answer.obj_ptr.value().to_vec::<f32>().unwrap();
    assert_eq!(pointer, model.no_obj_ptr.master.to_vec::<f32>().unwrap());
    let present = Var::constant(Tensor::full([1, 1], 1f32, &Device::Cpu).unwrap());
    let remember = |scores: &Var| {
        let kept = model.remember(&tape, &features, &answer.high_res_masks, scores, false, Mode::Evaluate);
        kept.unwrap().value().to_vec::<f32>().unwrap()
    };
    let (absent, present) = (remember(&answer.object_scores), remember(&present));
    let mark = model.no_obj_embed_spatial.as_ref().unwrap().master.to_vec::<f32>().unwrap();
    for (at, (a, b)) in absent.iter().zip(&present).enumerate() {
        assert!((a - b - mark[at % mark.len()]).abs() < 1e-6);
    }
}

/// Half precision goes through every part, and is near full precision.
#[test]
fn half_precision_is_near() {
    let run = |dtype: DType| {
        let (model, frames) = (model(dtype), frames(3, dtype));
        let mut video = Video::new(&model, [32, 32], Some(3), VideoOptions::default());
        video.add_points(0, &frames[0], 1, &click(9.0, 20.0), true).unwrap();
        video.add_mask(0, &frames[0], 2, &mask(5..30, dtype)).unwrap();
        let masks = |at: usize, video: &mut Video| video.step(at as i64, &frames[at], false).unwrap();
        let last = (0..3).map(|at| masks(at, &mut video)).last().unwrap();
        last.masks.to_vec::<f32>().unwrap()
    };
    let (full, half) = (run(DType::F32), run(DType::BF16));
    let largest = full.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = full.iter().zip(&half).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    // Some thirty layers of 8 bits each: 2^-8 · √30 of the largest.
    assert!(error < 0.0214 * largest.max(1.0), "{error} of {largest}");
}

#[test]
fn wrong_arguments_are_named() {
    let (model, frames) = (model(DType::F32), frames(2, DType::F32));
    let mut video = Video::new(&model, [32, 32], Some(2), VideoOptions::default());
    let says = |error: crate::Error, text: &str| assert!(error.to_string().contains(text), "{error}");
    let nothing = video.step(0, &frames[0], false).unwrap();
    assert_eq!(**nothing.masks.shape(), [0, 1, 32, 32]);
    says(video.add_points(2, &frames[0], 1, &click(1.0, 1.0), true).unwrap_err(), "from 0 to 1");
    let large = Tensor::zeros([1, 64, 64, 3], DType::F32, &Device::Cpu).unwrap();
    says(video.add_points(1, &large, 1, &click(1.0, 1.0), true).unwrap_err(), "[B, 32, 32, 3]");
    let mask = Tensor::zeros([1, 16, 16, 1], DType::F32, &Device::Cpu).unwrap();
    says(video.add_mask(0, &frames[0], 1, &mask).unwrap_err(), "[1, 32, 32, 1]");
    assert_eq!(video.objects(), [0i64; 0]); // nothing is left of prompts that failed
    says(video.remove(7).unwrap_err(), "`object` has value 7");
    for (changed, key) in [
        (Sizes { image_size: 40, ..sizes() }, "image_size"),
        (Sizes { mem_dim: 7, ..sizes() }, "mem_dim"),
        (Sizes { decoder_heads: 5, ..sizes() }, "num_heads"),
    ] {
        let made = Sam2::new(&Builder::new(&Device::Cpu, DType::F32, 0), &changed, &Options::default());
        says(made.unwrap_err(), key);
    }
    let tape = Tape::no_grad();
    let Features { image, high_res } = model.encode(&tape, &Var::constant(frames[0].clone()), &[]).unwrap();
    let prompt = Prompt { points: Some(click(1.0, 1.0)), mask: None, bare: false };
    let answer = model.answer(&tape, &image, &high_res, &prompt, 2, true, Mode::Evaluate);
    says(answer.unwrap_err(), "prompts for 2 objects");
}

/// A mask alone is a prompt too: without any token, where padding points would be two.
#[test]
fn a_mask_is_a_prompt_of_its_own() {
    let (model, frame) = (model(DType::F32), &frames(1, DType::F32)[0]);
    let tape = Tape::no_grad();
    let Features { image, high_res } = model.encode(&tape, &Var::constant(frame.clone()), &[]).unwrap();
    let ask = |bare: bool| {
        let mask = Some(Var::constant(Tensor::full([1, 8, 8, 1], 3f32, &Device::Cpu).unwrap()));
        let decoded = model.decode(&tape, &image, &high_res, &Prompt { points: None, mask, bare }, 1).unwrap();
        decoded.ious.value().to_vec::<f32>().unwrap()
    };
    assert!(ask(true).iter().all(|x| x.is_finite()));
    assert_ne!(ask(true), ask(false));
}
