use super::clip::{Clip, Need};
use super::{Features, Label, Mode, Options, Points, Preset, Prompt, Sam2, Sizes, Video, VideoOptions};
use crate::nn::{Builder, Module};
use crate::ops::mask_loss::Weights;
use crate::random::{normal, stream};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

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
    assert_eq!(together, [follow(&[a]), follow(&[b])].concat());
    assert_ne!(together[0], together[1]);
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

/// What a clip does not use has no gradient, and all of that is what a step may leave out.
#[test]
fn clips_reach_the_parameters_that_they_use() {
    let mut model = model(DType::F32);
    model.no_mem_pos_enc.trainable = false;
    let images: Vec<f32> = frames(2, DType::F32).iter().flat_map(|frame| frame.to_vec::<f32>().unwrap()).collect();
    let rules = super::pretrain::rules(0.1, 0.2, 0.9, 7);
    let unreached = |prompted: &[usize], corrected: &[usize], by_points: bool| {
        let inside: Vec<u8> = (0..32 * 32).map(|i| u8::from(i % 32 < 11)).collect();
        let targets = [(); 2].map(|()| Tensor::from_slice(&inside, [1, 32 * 32], &Device::Cpu).unwrap());
        let clip = Clip {
            images: Tensor::from_slice(&images, [2, 32, 32, 3], &Device::Cpu).unwrap(),
            targets: targets.into(),
            prompted: prompted.into(),
            corrected: corrected.into(),
            by_points,
            corrections: 1,
            corrected_as_prompted: true,
        };
        let (tape, mut grads, mut points) = (Tape::new(), Grads::new(), |_: Need| Ok(click(5.0, 6.0)));
        let found = model.clip_loss(&tape, &clip, &Weights::default(), 1.0, &[], &mut points).unwrap();
        tape.backward_scaled(&found.loss, 1.0, &mut grads).unwrap();
        let missing = model.params().into_iter().filter(|p| p.trainable && grads.get(p).is_none());
        let names: Vec<String> = missing.map(|p| p.name().to_string()).collect();
        assert!(names.iter().all(|name| rules.is_optional(name)), "{names:?}");
        let parts = names.iter().map(|name| name.split('.').next().unwrap_or_default().to_string());
        parts.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(unreached(&[0], &[0], true), "mask_downsample");
    assert_eq!(unreached(&[0], &[], true), "mask_downsample sam_prompt_encoder");
    assert_eq!(unreached(&[0], &[], false), "no_mem_embed");
    let memory = "memory_attention memory_encoder no_obj_embed_spatial no_obj_ptr obj_ptr_proj obj_ptr_tpos_proj";
    assert_eq!(unreached(&[0, 1], &[1], true), format!("mask_downsample maskmem_tpos_enc {memory}"));
}
