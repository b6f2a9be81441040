//! Gradients: what is computed once, last, or again gives those of the plain way. What runs and folders are read from.

use std::collections::BTreeSet;

use super::*;
use crate::nn::hiera::HieraSizes;
use crate::ops::attention::{KeyValues, Packing, cross_attention};
use crate::ops::mask_loss::Weights;
use crate::recipes::sam2::attention::{Attention, AttentionSizes, for_each};
use crate::recipes::sam2::clip::{Clip, Need};
use crate::recipes::sam2::load;
use crate::recipes::sam2::memory_attention::Memory;
use crate::recipes::sam2::pretrain::{Config, rules};
use crate::{Grads, Param, Result};

/// Features for all objects give what a copy for each gives, and the sum of its gradients.
#[test]
fn what_does_not_depend_on_the_object_is_computed_once() {
    let model = model(DType::F32);
    let (dim, mem_dim) = (model.sizes().hidden_dim, model.sizes().mem_dim);
    let tensor = |seed: u64, shape: [usize; 3]| {
        let values = normal(&mut stream(3, seed), shape.iter().product());
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
    };
    let run = |apart: bool| {
        let tape = Tape::new();
        let (x, tokens) = (tape.leaf(tensor(1, [1, 4, dim])), tape.leaf(tensor(2, [3, 9, mem_dim])));
        let positions = Var::constant(tensor(3, [3, 9, mem_dim]));
        let memory = Memory { tokens: tokens.clone(), positions, pointer_tokens: 1 };
        let given = if apart { for_each(&tape, &x, 3).unwrap() } else { x.clone() };
        let of_x = Var::constant(tensor(4, [1, 4, dim]).reshape([4, dim]).unwrap());
        let y = model.memory_attention.forward(&tape, &given, &of_x, &memory, [2, 2]).unwrap();
        let mut all = vec![y.value().to_f64().unwrap()];
        let mut grads = Grads::new();
        tape.backward(&y, tensor(5, [3, 4, dim]), &mut grads).unwrap();
        all.extend([&x, &tokens].map(|leaf| grads.take(leaf).unwrap().to_f64().unwrap()));
        let mut used = 0;
        model.memory_attention.visit(&mut |p| {
            if let Some(g) = grads.get(p) {
                used += 1;
                all.push(g.to_f64().unwrap());
            }
        });
        (used, all)
    };
    let ((used, once), (_, each)) = (run(false), run(true));
    assert_eq!(used, model.memory_attention.params().len());
    for (i, (a, b)) in once.iter().zip(&each).enumerate() {
        let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
        assert!(distance(a, b).0 <= 1e-5 * largest, "{i}: {:e} of {largest}", distance(a, b).0);
    }
}

/// What is computed again is what was computed, and the tape keeps less meanwhile.
#[test]
fn recomputed_parts_have_the_same_gradients() {
    let images: Vec<f32> = frames(3, DType::F32).iter().flat_map(|f| f.to_vec::<f32>().unwrap()).collect();
    let square =
        |from: usize| (0..32 * 32).map(|i| u8::from((from..from + 12).contains(&(i % 32)))).collect::<Vec<_>>();
    let target = |frame: usize| {
        let both = [square(2 + 3 * frame), square(18 - frame)].concat();
        Tensor::from_slice(&both, [2, 32 * 32], &Device::Cpu).unwrap()
    };
    let clip = Clip {
        images: Tensor::from_slice(&images, [3, 32, 32, 3], &Device::Cpu).unwrap(),
        targets: (0..3).map(target).collect(),
        prompted: vec![0],
        corrected: vec![0, 2],
        by_points: true,
        corrections: 2,
        corrected_as_prompted: true,
    };
    let run = |recompute: bool| {
        let mut model = model(DType::F32);
        model.set_recompute(recompute);
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let mut points =
            |need: Need| Points::new(vec![[5.0, 9.0 + need.step as f32], [20.0, 7.0]], vec![Label::Positive; 2], 2);
        let found = model.clip_loss(&tape, &clip, &Weights::default(), 2.0, &[], &mut points).unwrap();
        let saved: usize = tape.saved().iter().map(|(_, bytes)| bytes).sum();
        let terms: Vec<f64> = found.terms.iter().flat_map(|t| t.to_f64().unwrap()).collect();
        tape.backward_scaled(&found.loss, 1.0, &mut grads).unwrap();
        let of = |p: &&Param| Some((p.name().to_string(), grads.get(p)?.to_f64().unwrap()));
        (saved, terms, model.params().iter().filter_map(of).collect::<Vec<_>>())
    };
    let ((all, terms, gradients), (less, again, recomputed)) = (run(false), run(true));
    assert!(4 * less < all, "{less} of {all} bytes");
    assert_eq!(terms, again);
    assert_eq!(gradients.len(), recomputed.len());
    for ((name, a), (_, b)) in gradients.iter().zip(&recomputed) {
        // Gradients of what is used twice are added in another order: one rounding in each of some thirty layers.
        let largest = a.iter().fold(0f64, |m, x| m.max(x.abs()));
        let error = a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= 32.0 * f64::from(f32::EPSILON) * largest, "{name}: {error} of {largest}");
    }
}

/// Narrow values are projected after the sum over keys: the same as before it, gradients included.
#[test]
fn narrow_values_are_projected_last() {
    let sizes = AttentionSizes { dim: 16, kv_dim: 4, inner: 16, heads: 1 };
    let layer = Attention::new(&Builder::new(&Device::Cpu, DType::F32, 3), sizes).unwrap();
    let random = |seed, shape: [usize; 3]| {
        let values: Vec<f32> = normal(&mut stream(seed, 0), shape.iter().product()).iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
    };
    let (q, k, v) = (random(1, [1, 5, 16]), random(2, [1, 9, 4]), random(3, [1, 9, 4]));
    let projected_first = |tape: &Tape, v: &Var| -> Result<Var> {
        let offsets = |rows: i32| Tensor::from_slice(&[0, rows], [2], &Device::Cpu);
        let (of_q, of_k) = (offsets(5)?, offsets(9)?);
        let pack = |cu_seqlens, max_seqlen| Packing { cu_seqlens, max_seqlen };
        let q = layer.q_proj.forward(tape, &Var::constant(q.clone()), None)?.reshape([5, 1, 16])?;
        let k = layer.k_proj.forward(tape, &Var::constant(k.clone()), None)?.reshape([9, 1, 16])?;
        let v = layer.v_proj.forward(tape, v, None)?.reshape([9, 1, 16])?;
        let y = cross_attention(tape, &q, KeyValues::Apart(&k, &v), pack(&of_q, 5), pack(&of_k, 9), 0.25)?;
        layer.out_proj.forward(tape, &y, None)
    };
    let projected_last =
        |tape: &Tape, v: &Var| layer.forward(tape, &Var::constant(q.clone()), &Var::constant(k.clone()), v, None);
    let run = |f: &dyn Fn(&Tape, &Var) -> Result<Var>| {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let v = tape.leaf(v.clone());
        let y = f(&tape, &v).unwrap();
        assert_eq!(y.value().numel(), 5 * 16);
        tape.backward(&y, random(4, [1, 5, 16]), &mut grads).unwrap();
        let params =
            [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(|layer| [&layer.weight, layer.bias.as_ref().unwrap()]);
        let of_params = params.as_flattened().iter().map(|p| grads.get(p).unwrap().to_f64().unwrap());
        let of_params: Vec<Vec<f64>> = of_params.collect();
        [vec![y.value().to_f64().unwrap(), grads.take(&v).unwrap().to_f64().unwrap()], of_params].concat()
    };
    for (at, (last, first)) in run(&projected_last).iter().zip(run(&projected_first)).enumerate() {
        assert!(last.iter().any(|x| *x != 0.0));
        // Sums of up to some hundred products of values below 16, in another order.
        let worst = last.iter().zip(&first).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(last.len() == first.len() && worst < 128.0 * crate::testing::ulp(DType::F32, 8.0), "{at}: {worst:e}");
    }
    // Without keys rows of P sum to 0, and the bias would stay.
    let nothing = Var::constant(Tensor::zeros([1, 0, 4], DType::F32, &Device::Cpu).unwrap());
    let error = layer.forward(&Tape::no_grad(), &Var::constant(q.clone()), &nothing, &nothing, None).unwrap_err();
    assert_eq!(error.to_string(), "attention: `k` has shape [1, 0, 4], expected [B, M, 4] with M at least 1");
}

/// What a clip does not use has no gradient, and all of that is what a step may leave out.
#[test]
fn clips_reach_the_parameters_that_they_use() {
    let mut model = model(DType::F32);
    model.no_mem_pos_enc.trainable = false;
    let images: Vec<f32> = frames(2, DType::F32).iter().flat_map(|frame| frame.to_vec::<f32>().unwrap()).collect();
    let rules = rules(0.1, 0.2, 0.9, 7);
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
        parts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(unreached(&[0], &[0], true), "mask_downsample");
    assert_eq!(unreached(&[0], &[], true), "mask_downsample sam_prompt_encoder");
    assert_eq!(unreached(&[0], &[], false), "no_mem_embed");
    let memory = "memory_attention memory_encoder no_obj_embed_spatial no_obj_ptr obj_ptr_proj obj_ptr_tpos_proj";
    assert_eq!(unreached(&[0, 1], &[1], true), format!("mask_downsample maskmem_tpos_enc {memory}"));
}

/// Runs that began before there was a choice go on.
#[test]
fn configurations_of_older_runs_are_read() {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        config: Config,
        #[arg(long)]
        resume: bool, // which `data` names
    }
    let flags = <Flags as clap::Parser>::parse_from(["pretrain", "clips"]);
    assert!(!flags.resume);
    let text = toml::to_string(&flags.config).unwrap();
    let old: Vec<&str> = text.lines().filter(|line| !line.starts_with("recompute ")).collect();
    assert_eq!(old.len() + 1, text.lines().count());
    assert_eq!(toml::to_string(&toml::from_str::<Config>(&old.join("\n")).unwrap()).unwrap(), text);
}

#[test]
fn a_folder_has_the_sizes_and_options_it_was_written_with() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        Options { iou_prediction_use_sigmoid: false, use_multimask_token_for_obj_ptr: false, ..Options::default() };
    let model = Sam2::new(&Builder::new(&Device::Cpu, DType::F32, 0), &sizes(), &options).unwrap();
    load::save(folder.path(), &model).unwrap();
    let read = || load::model(folder.path(), &Device::Cpu, DType::F32, None, load::Use::Benchmark);
    let back = read().unwrap();
    assert_eq!((back.sizes(), back.options()), (model.sizes(), model.options()));
    // Sizes that are not those of the weights, before a model of these sizes is made.
    let file = folder.path().join("model.safetensors");
    let mut dict = crate::checkpoint::read(&file).unwrap();
    let wide = Sizes { trunk: HieraSizes { embed_dim: 1 << 40, ..sizes().trunk }, ..sizes() };
    dict.metadata.insert("sam2_sizes".into(), serde_json::to_string(&wide).unwrap());
    crate::checkpoint::safetensors::write(&file, &dict).unwrap();
    assert!(read().unwrap_err().to_string().contains("a trunk of width and blocks (Some(24), 7)"));
}
