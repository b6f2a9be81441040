use clap::{Args, FromArgMatches};

use super::*;
use crate::data::text::{self, Settings, Training};
use crate::nn::Builder;
use crate::recipes::siglip::{Tower, factor};
use crate::{DType, ops::gelu::Form};

const CAPTIONS: [&str; 13] = [
    "a large red circle",
    "a small blue square",
    "two green triangles",
    "a star",
    "a red star and a blue star",
    "stripes",
    "a yellow ring on a blue ground",
    "a small circle",
    "a large square at the top",
    "nothing",
    "five crosses",
    "a cross",
    "a red red red circle",
];

fn tokenizer(len: usize) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let (path, settings) = (folder.path().join("tokenizer.json"), Settings { max_len: len, ..Settings::siglip() });
    text::train(CAPTIONS, &settings, &Training { vocab: 300, min_count: 1 }, &path).unwrap();
    Tokenizer::open(&path, settings).unwrap()
}

fn sizes(tokenizer: &Tokenizer) -> Sizes {
    let tower = |width, depth, heads, hidden| Tower { width, depth, heads, hidden, gelu: Form::Tanh };
    Sizes {
        image_size: [8, 8],
        patch_size: 4,
        in_chans: 3,
        vision: tower(8, 1, 2, 12),
        text: tower(12, 2, 3, 16),
        vocab_size: tokenizer.vocab(),
        context_len: 6,
        embed_dim: 8,
        vision_head: false,
        eps: 1e-6,
    }
}

/// The defaults with some flags.
pub(crate) fn config(flags: &[&str]) -> Config {
    let command = Config::augment_args(clap::Command::new("pretrain").arg(clap::Arg::new("resume").long("resume")));
    let given = ["pretrain", "pairs", "--tokenizer", "x"].into_iter().chain(flags.iter().copied());
    Config::from_arg_matches(&command.get_matches_from(given)).unwrap()
}

/// A small task on a device, and whether its image tower is frozen.
pub(crate) fn task(flags: &[&str], dtype: DType, device: &Device, frozen: bool) -> Pretrain {
    let tokenizer = tokenizer(6);
    let sizes = sizes(&tokenizer);
    let mut model = Siglip::starting_at(&Builder::new(device, dtype, 3), &sizes, 1.0, -1.0).unwrap();
    freeze(&mut model, |_| frozen);
    Pretrain::new(&config(flags), model, sizes, tokenizer).unwrap()
}

/// Pairs `from..to` of an endless row of them.
pub(crate) fn batch(from: usize, to: usize) -> Batch<u8> {
    let count = to - from;
    let images = (from * 192..to * 192).map(|i| ((i * 37 + i / 192 * 101) % 251) as u8).collect();
    let captions = (from..to).map(|i| CAPTIONS[i % CAPTIONS.len()].to_string()).collect();
    Batch { images, labels: vec![-1; count], captions, indices: vec![0; count], epoch: 0, step_in_epoch: 0 }
}

/// Loss, statistics and gradients by name of one update of 13 pairs, in micro-batches of these sizes.
fn update(task: &mut Pretrain, parts: &[usize]) -> (Vec<f64>, Vec<(String, Vec<f64>)>) {
    let starts = parts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n)));
    let batches: Vec<Batch<u8>> = starts.zip(parts).map(|(at, n)| batch(at, at + n)).collect();
    let mut grads = Grads::new();
    let found = match &batches[..] {
        [whole] => {
            let inputs = task.inputs(whole).unwrap();
            task.micro_step(&inputs, 1.0, &mut grads).unwrap()
        }
        parts => {
            let found = task.measure(parts).unwrap();
            for (index, part) in parts.iter().enumerate() {
                let inputs = task.share(part, index).unwrap();
                let repeated = task.micro_step(&inputs, 1.0, &mut grads).unwrap();
                assert_eq!(repeated.loss.item().unwrap(), found.loss.item().unwrap());
            }
            assert!(task.share(&parts[0], 0).is_err(), "a share is given once");
            found
        }
    };
    let mut numbers = vec![found.loss.item().unwrap()];
    numbers.extend(found.statistics.unwrap().to_f64().unwrap());
    grads.check_complete(task.model.params()).unwrap();
    let of = |p: &&Param| grads.get(p).map(|g| (p.name().to_string(), g.to_f64().unwrap()));
    (numbers, task.model.params().iter().filter_map(of).collect())
}

/// The gradient of a batch in parts is that of the batch, for every parameter, log scale and bias among them.
#[test]
fn every_split_of_a_batch_has_its_gradient() {
    let splits: [&[usize]; 4] = [&[6, 7], &[4, 4, 5], &[1, 5, 3, 4], &[2, 2, 2, 2, 2, 2, 1]];
    for (flags, frozen) in [(&[][..], false), (&["--loss", "softmax"], false), (&[], true), (&["--recompute"], false)] {
        let mut task = task(flags, DType::F64, &Device::Cpu, frozen);
        let (expected, gradients) = update(&mut task, &[13]);
        assert!(expected[0] > 0.1 && gradients.iter().all(|(_, g)| g.iter().any(|g| *g != 0.0)));
        for parts in splits {
            let (numbers, got) = update(&mut task, parts);
            for (a, b) in numbers.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-12 * b.abs().max(1.0), "{parts:?}: {numbers:?}, expected {expected:?}");
            }
            assert_eq!(got.len(), gradients.len());
            for ((name, a), (other, b)) in got.iter().zip(&gradients) {
                let largest = b.iter().fold(1e-6, |m: f64, x| m.max(x.abs()));
                let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(name == other && far < 1e-11 * largest, "{name} of {parts:?}: {far:.1e} of {largest:.1e}");
            }
        }
    }
}

#[test]
fn what_is_frozen_is_known_from_the_weights() {
    let frozen = task(&[], DType::F32, &Device::Cpu, true);
    let mut fresh = task(&[], DType::F32, &Device::Cpu, false);
    let nothing = fresh.weights().unwrap();
    freeze_marked(&mut fresh.model, &nothing);
    assert!(fresh.model.params().iter().all(|p| p.trainable), "nothing was frozen");
    freeze_marked(&mut fresh.model, &frozen.weights().unwrap());
    let trainable = |task: &Pretrain| task.model.params().iter().map(|p| p.trainable).collect::<Vec<_>>();
    assert_eq!(trainable(&fresh), trainable(&frozen));
    assert!(fresh.model.vision.params().iter().all(|p| !p.trainable) && fresh.model.logit_scale.trainable);
}

#[test]
fn notes_are_of_the_loss_at_hand() {
    let names = |flags: &[&str]| {
        let notes = task(flags, DType::F32, &Device::Cpu, false).notes(&[1.0, f64::NAN, 3.0]).unwrap();
        notes.into_iter().map(|n| n.0).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["positive_logit", "largest_negative_logit", "logit_scale", "logit_bias"]);
    assert_eq!(names(&["--loss", "softmax"]), ["positive_logit", "largest_negative_logit", "logit_scale"]);
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let tokenizer = tokenizer(6);
    let sizes = Sizes { vocab_size: 40, ..sizes(&tokenizer) };
    let model = Siglip::new(&Builder::new(&Device::Cpu, DType::F32, 3), &sizes).unwrap();
    let error = Pretrain::new(&config(&[]), model, sizes, tokenizer).err().unwrap().to_string();
    assert!(error.contains("the model has embeddings for 40"), "{error}");
}

#[test]
fn flags_have_the_values_of_the_paper() {
    let c = config(&[]);
    assert_eq!((c.learning_rate(), c.weight_decay(), c.beta1, c.beta2(), c.clip_grad), (1e-3, 0.1, 0.9, 0.95, 1.0));
    assert_eq!((c.scale(), c.bias_init.value(64)), (10.0, -10.0));
    assert!(c.check().is_ok());
    let lion = config(&["--optimizer", "lion"]);
    assert_eq!((lion.learning_rate(), lion.weight_decay(), lion.beta2()), (1e-4, 1e-3, 0.99));
    let auto = config(&["--bias-init", "auto", "--accum-iter", "4"]);
    let p: f64 = 1.0 / 256.0;
    assert!((auto.bias_init.value(auto.effective_batch()) - (p / (1.0 - p)).ln()).abs() < 1e-12);
    assert!((config(&["--loss", "softmax"]).scale() - 1.0 / 0.07).abs() < 1e-12);
    assert_eq!([10, 1000, 100_000].map(|total| c.warmup(total)), [5, 100, 3000]);
    for (flags, key) in [
        (&["--freeze-image"][..], "freeze_image"),
        (&["--mirror", "0.5"], "mirror"),
        (&["--batch-size", "0"], "batch_size"),
        (&["--clip-grad", "0"], "clip_grad"),
        (&["--image-size", "64x32"], "image_size"),
        (&["--scale-init", "0"], "scale_init"),
    ] {
        let error = config(flags).check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("config: `{key}`")), "{error}");
    }
    let text = toml::to_string(&auto).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap().bias_init, auto.bias_init);
}

/// Adafactor's views cover every parameter of a model.
#[test]
fn every_parameter_has_a_view_or_none() {
    let tower = |width, depth, heads, hidden| Tower { width, depth, heads, hidden, gelu: Form::Tanh };
    let sizes = Sizes {
        vision: tower(64, 1, 2, 96),
        text: tower(64, 1, 2, 96),
        vocab_size: 61,
        embed_dim: 64,
        ..sizes(&tokenizer(6))
    };
    let model = Siglip::new(&Builder::new(&Device::Cpu, DType::F32, 0), &sizes).unwrap();
    let views = factor::views(&sizes);
    let mut factored = 0;
    for p in model.params() {
        if let Some(view) = views(p.name(), p.master.shape()) {
            assert_eq!(view.groups * view.rows * view.cols, p.master.numel(), "{}", p.name());
            assert!(view.rows >= 32 && view.cols >= 32, "{}: {view:?}", p.name());
            factored += 1;
        }
    }
    // Of each tower qkv, out, fc1, fc2; of the pooling q, kv, out, fc1, fc2; the token table and the text's head.
    assert_eq!(factored, 2 * 4 + 5 + 2);
}
