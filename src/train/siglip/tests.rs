use clap::Args;

use super::super::gradient;
use super::super::stepper::Stepper;
use super::*;
use crate::data::text::{Lower, Settings};
use crate::data::{Batch, synth};
use crate::optim::Rates;
use crate::recipes::Task;
use crate::recipes::siglip::step::tests::{batch, config, task};
use crate::testing::devices;

/// Losses, norms and weights of some updates.
fn run(flags: &[&str], device: &Device, dtype: DType, accum: u64, eager: bool) -> (Vec<u64>, Vec<f64>, bool) {
    let config = config(flags);
    let mut task = task(flags, dtype, device, false);
    let mut optimizer = optimizer(&config, &task.sizes);
    let mut stepper = Stepper::new(device, 1.0, Some(1.0));
    if eager {
        stepper = stepper.eager();
    }
    let mut at = 0;
    let mut next = || -> Result<Batch<u8>> {
        at += 3;
        Ok(batch(at - 3, at))
    };
    let mut numbers = vec![];
    for step in 0..5 {
        stepper.begin(&mut task);
        let measured = gradient(&mut task, &mut stepper, accum, &mut next).unwrap();
        numbers.push(measured.loss.to_bits());
        numbers.extend(measured.statistics.iter().map(|x| x.to_bits()));
        let stats = stepper.update(&mut task, optimizer.as_mut(), &Rates::new(1e-2 * f64::from(step))).unwrap();
        numbers.push(stats.grad_norm.to_bits());
    }
    let weights = task.module().params().iter().flat_map(|p| p.master.to_f64().unwrap()).collect();
    (numbers, weights, stepper.records())
}

/// Recorded micro-steps are the micro-steps, also of an update in parts.
#[test]
fn a_recorded_step_is_the_step() {
    for device in devices() {
        for (flags, dtype, accum) in [
            (&[][..], DType::F32, 1),
            (&[], DType::BF16, 3),
            (&["--loss", "softmax"], DType::F32, 3),
            (&["--optimizer", "adafactor"], DType::F32, 2),
            (&["--optimizer", "lion"], DType::BF16, 1),
        ] {
            let (numbers, weights, recorded) = run(flags, &device, dtype, accum, false);
            let (expected, eager, _) = run(flags, &device, dtype, accum, true);
            assert!(recorded, "{flags:?} in {accum} parts on {device}");
            assert_eq!(numbers, expected, "{flags:?} in {accum} parts on {device}");
            assert!(weights == eager, "{flags:?} in {accum} parts on {device}");
        }
    }
}

/// Three micro-batches of 3 pairs make the updates of one of 9.
#[test]
fn updates_in_parts_are_the_updates() {
    let mut parts = task(&[], DType::F64, &Device::Cpu, false);
    let mut whole = task(&[], DType::F64, &Device::Cpu, false);
    for (task, size) in [(&mut parts, 3), (&mut whole, 9)] {
        let mut optimizer = optimizer(&config(&[]), &task.sizes);
        let mut stepper = Stepper::new(&Device::Cpu, 1.0, Some(1.0));
        let mut at = 0;
        for step in 0..3 {
            stepper.begin(task);
            let mut next = || -> Result<Batch<u8>> {
                at += size;
                Ok(batch(at - size, at))
            };
            gradient(task, &mut stepper, 9 / size as u64, &mut next).unwrap();
            stepper.update(task, optimizer.as_mut(), &Rates::new(1e-3 * f64::from(step))).unwrap();
        }
    }
    // The gradient of a key's bias is zero but for rounding, and AdamW makes steps of any gradient.
    let third = |name: &str, values: Vec<f64>| match name.contains("qkv_proj.bias") {
        true => [&values[..values.len() / 3], &values[2 * values.len() / 3..]].concat(),
        false if name.contains("kv_proj.bias") => values[values.len() / 2..].to_vec(),
        false => values,
    };
    let values = |task: &mut Pretrain| -> Vec<f64> {
        let of = |p: &&crate::Param| third(p.name(), p.master.to_f64().unwrap());
        task.module().params().iter().flat_map(of).collect()
    };
    let far = values(&mut parts).iter().zip(values(&mut whole)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far < 1e-9, "{far}");
}

#[test]
fn the_schedule_counts_updates_and_the_first_rate_is_zero() {
    let plan = plan(&config(&["--batch-size", "4", "--epochs", "10", "--warmup-steps", "4"]), 21).unwrap();
    let rate = |step| plan.lr(step, 5);
    assert_eq!([rate(0), rate(1), rate(4)], [0.0, 0.25e-3, 1e-3]);
    let cosine = |step: f64| 0.5e-3 * (1.0 + (std::f64::consts::PI * (step - 4.0) / 46.0).cos());
    assert!((rate(27) - cosine(27.0)).abs() < 1e-15 && (rate(49) - cosine(49.0)).abs() < 1e-15);
}

/// A folder with pairs to learn from and, made from flags, all that a run of 2 epochs of 2 updates has.
fn place() -> (tempfile::TempDir, Plan, Arc<Pairs>) {
    let place = tempfile::tempdir().unwrap();
    let pairs = synth::Config { train: 8, val: 4, size: 16, ..synth::Config::pairs() };
    synth::generate(&pairs, place.path().join("pairs"), &|_| ()).unwrap();
    let data = Arc::new(Pairs::open(place.path().join("pairs/train"), &Default::default()).unwrap());
    let flags = ["--batch-size", "4", "--epochs", "2", "--log-every", "1", "--save-every", "1000"];
    let plan = plan(&config(&flags), data.len()).unwrap();
    (place, plan, data)
}

/// What was learned until an evaluation fails is kept, and the run that is continued owes the evaluation.
#[test]
fn an_evaluation_that_fails_loses_nothing() {
    let (place, plan, data) = place();
    let run = |out: &str, resume: bool, fails: u64| {
        let (flags, out) = (config(&[]), place.path().join(out));
        let mut task = task(&[], DType::F32, &Device::Cpu, false);
        let mut optimizer = optimizer(&flags, &task.sizes);
        let found = find(resume, || RunDir::resume(&out, &flags, data.identity(), 2)).unwrap();
        let create = || RunDir::create(&out, &flags, data.identity(), 2);
        let transform = transforms::squash([8, 8], flags.interpolation).unwrap();
        let mut evaluate = |_: &mut Pretrain, epoch| match epoch == fails {
            true => Err(Error::Training("no evaluation".into())),
            false => Ok(vec![("measured", epoch as f64)]),
        };
        let ended = train(&mut task, optimizer.as_mut(), data.clone(), transform, &plan, found, create, &mut evaluate);
        let weights: Vec<f64> = task.module().params().iter().flat_map(|p| p.master.to_f64().unwrap()).collect();
        let log = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let lines: Vec<_> =
            lines.map(|l| (l["kind"].to_string(), l["step"].as_u64(), l["measured"].as_f64())).collect();
        (ended.map(|_| ()), weights, lines)
    };
    let (ended, weights, lines) = run("whole", false, 0);
    ended.unwrap();
    assert_eq!(lines.len(), 4 + 2);
    for (fails, logged) in [(1, 2), (2, 5)] {
        let out = format!("run{fails}");
        let (ended, _, some) = run(&out, false, fails);
        assert!(ended.unwrap_err().to_string().contains("no evaluation"));
        assert_eq!(some, lines[..logged]);
        let (_, state) = RunDir::resume(&place.path().join(&out), &config(&[]), data.identity(), 2).unwrap();
        assert_eq!(state.unwrap().progress.step, 2 * fails);
        assert!(run(&out, true, fails).0.is_err(), "the evaluation is owed");
        let (ended, continued, all) = run(&out, true, 0);
        ended.unwrap();
        assert_eq!(all, lines);
        assert!(continued == weights);
    }
}

/// What is evaluated is looked at before the first step.
#[test]
fn evaluation_sets_are_checked_at_the_beginning() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, image: &[u8]| {
        let folder = place.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("0.png"), image).unwrap();
    };
    let png = place.path().join("0.png");
    Image::filled(8, 8, [9; 3]).save_png(&png).unwrap();
    let png = std::fs::read(png).unwrap();
    write("good/cat", &png);
    write("nameless/cat", &png);
    write("nameless/!!!", &png);
    write("torn/cat", &png[..20]);
    std::fs::write(place.path().join("torn/pairs.tsv"), "filepath\ttitle\ncat/0.png\ta cat\n").unwrap();
    let open = |flag: &str, path: &str| {
        let path = place.path().join(path);
        Checks::open(&config(&[flag, path.to_str().unwrap()])).map(|_| ())
    };
    open("--zero-shot", "good").unwrap();
    for (flag, path, cause) in [
        ("--zero-shot", "nameless", "!!!"),
        ("--zero-shot", "torn", "no readable image"),
        ("--retrieval", "torn/pairs.tsv", "no readable image"),
    ] {
        let error = open(flag, path).unwrap_err().to_string();
        assert!(error.contains(cause), "{flag} {path}: {error}");
    }
}

#[test]
fn more_updates_than_can_be_counted_are_refused() {
    let of = |epochs: u64| plan(&config(&["--batch-size", "4", "--epochs", &epochs.to_string()]), 21);
    for epochs in [u64::MAX, u64::MAX / 5, (1 << 53) / 5 + 1] {
        let error = of(epochs).unwrap_err().to_string();
        assert!(error.starts_with("config: `epochs`"), "{error}");
    }
    assert_eq!(of((1 << 53) / 5).unwrap().schedule.epochs, ((1u64 << 53) / 5 * 5) as f64);
}

/// A run that starts from weights treats texts as they were trained with, and has their sizes.
#[test]
fn weights_to_start_from_bring_sizes_and_settings() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("tokenizer.json");
    let own = task(&[], DType::F32, &Device::Cpu, false);
    let begun = |settings: Option<Settings>| {
        let folder = place.path().join(if settings.is_some() { "run" } else { "published" });
        own.tokenizer().save(place.path()).unwrap();
        load::save(&folder, &own.model, &own.sizes).unwrap();
        if let Some(settings) = settings {
            Tokenizer::open(&file, settings).unwrap().save(&folder).unwrap();
        }
        let (folder, file) = (folder.to_str().unwrap(), file.to_str().unwrap());
        let mut config = config(&["--init", folder, "--image-size", "12"]);
        config.tokenizer = file.into();
        config.check().unwrap();
        let (_, sizes, tokenizer) = begin(&config, &Builder::new(&Device::Cpu, DType::F32, 0), false).unwrap();
        assert_eq!(sizes, Sizes { image_size: [12, 12], ..own.sizes.clone() });
        tokenizer.settings().clone()
    };
    let settings = Settings { max_len: 6, lower: Lower::Unicode, pad: 0, ..Settings::siglip2() };
    assert_eq!(begun(Some(settings.clone())), settings);
    assert_eq!(begun(None), Settings { max_len: 6, ..Settings::siglip_hf() });
    let command = Config::augment_args(clap::Command::new("pretrain").arg(clap::Arg::new("resume").long("resume")));
    for flag in [
        "preset=tiny",
        "patch-size=8",
        "context-len=8",
        "lower=none",
        "punctuation=strip",
        "pad=0",
        "scale-init=5",
        "bias-init=auto",
    ] {
        let flag = format!("--{flag}");
        let given = ["pretrain", "pairs", "--tokenizer", "x", "--init", "run", &flag];
        let error = command.clone().try_get_matches_from(given).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{flag}: {error}");
    }
}

/// CLIP's scale stays between 1 and 100, also in recorded steps; SigLIP's is free.
#[test]
fn the_scale_of_the_softmax_loss_stays_in_its_range() {
    for device in devices() {
        for (loss, start, expected) in
            [("softmax", 5.0, Some(100f64.ln())), ("softmax", -1.0, Some(0.0)), ("sigmoid", 5.0, None)]
        {
            let flags = ["--loss", loss];
            let (config, mut task) = (config(&flags), task(&flags, DType::F32, &device, false));
            task.model
                .logit_scale
                .set(&crate::Tensor::from_slice(&[start as f32], [1], &Device::Cpu).unwrap())
                .unwrap();
            let mut optimizer = optimizer(&config, &task.sizes);
            let mut stepper = Stepper::new(&device, 1.0, Some(1.0));
            for step in 0..4 {
                stepper.begin(&mut task);
                gradient(&mut task, &mut stepper, 1, &mut || Ok(batch(3 * step, 3 * step + 3))).unwrap();
                stepper.update(&mut task, optimizer.as_mut(), &Rates::new(1e-6)).unwrap();
                let found = task.model.logit_scale.master.item().unwrap();
                // A step is at most about the learning rate.
                assert!((found - expected.unwrap_or(start)).abs() < 1e-5, "{loss} from {start}: {found}");
            }
        }
    }
}
