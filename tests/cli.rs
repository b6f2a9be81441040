//! The command from data to a classifier, and everything a person can get wrong on the way.

#[path = "cli/features.rs"]
mod features;
#[path = "cli/image_text.rs"]
mod image_text;
#[path = "cli/objects.rs"]
mod objects;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/self_distillation.rs"]
mod self_distillation;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ocellus::checkpoint::{StateDict, safetensors};
use support::{Place, fail, files, logged, names, ocellus, succeed};

/// The files of a finished pre-training run.
fn complete(run: &Path) {
    let expected = [
        "config.json",
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
        "pictures/reconstruction_denormalised.png",
    ];
    for file in expected.into_iter().chain(["upstream.safetensors", "checkpoints/latest"]) {
        assert!(fs::metadata(run.join(file)).is_ok_and(|f| f.len() > 0), "{file}");
    }
    assert!(!files(&run.join("checkpoints"), ".safetensors").is_empty());
    let events = fs::read_dir(run.join("tensorboard")).unwrap().next().unwrap().unwrap();
    assert!(events.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert!(events.metadata().unwrap().len() > 1000); // numbers and a picture
    let picture = ocellus::data::decode::open(run.join("pictures/reconstruction_denormalised.png")).unwrap();
    assert!(picture.width > 4 * 16 && picture.height > picture.width);
}

#[test]
fn from_images_to_a_classifier() {
    let place = Place::new();
    let (train, val, run) = (place.text("data/train"), place.text("data/val"), place.text("run"));
    let (out, _) = succeed(place.pretrain("run", &["--epochs", "2", "--knn", &val]));
    names(
        &out,
        &[
            "model.safetensors",
            "upstream.safetensors",
            "pictures/reconstruction_denormalised.png",
            "k-NN accuracy",
            "random weights",
        ],
    );
    complete(&place.path("run"));
    assert_eq!(logged(&place.path("run"), "train"), (1..=8).collect::<Vec<_>>());

    names(&succeed(ocellus(&["eval", "knn", &run, &train, &val, "-k", "5"])).0, &["k-NN (k = 5): top-1 ", "top-5 "]);
    let head = place.text("head.safetensors");
    let probe = ["eval", "linear", &run, &train, &val, "--epochs", "2", "--batch-size", "16"];
    for optimizer in ["lars", "sgd", "adamw"] {
        let more = ["--optimizer", optimizer, "--out", &head];
        let (out, _) = succeed(ocellus(&[&probe[..], &more].concat()));
        names(&out, &["linear probe: top-1 ", "top-5 ", "loss "]);
        assert_eq!(safetensors::read(&head).unwrap().require("head.1.weight").unwrap().shape().to_vec(), [8, 96]);
        fs::remove_file(&head).unwrap();
    }

    let embed = |out: &str, more: &[&str]| {
        succeed(ocellus(&[&["embed", &run, &train, "--out", &place.text(out)], more].concat()));
    };
    embed("features", &[]);
    embed("again", &["--threads", "2", "--batch-size", "5"]);
    embed("arrays", &["--npy"]);
    embed("tokens", &["--tokens"]);
    let read = |file: &str| fs::read(place.path(file)).unwrap();
    assert!(read("features/features.safetensors") == read("again/features.safetensors"));
    let list = String::from_utf8(read("features/files.txt")).unwrap();
    assert_eq!(list.lines().count(), 32);
    assert!(list.lines().all(|file| place.path("data/train").join(file).is_file()), "{list}");
    let features = safetensors::read(place.path("features/features.safetensors")).unwrap();
    assert_eq!(features.require("features").unwrap().shape().to_vec(), [32, 96]);
    assert_eq!(features.require("labels").unwrap().to_vec::<i32>().unwrap()[..5], [0, 0, 0, 0, 1]);
    let files: Vec<String> = serde_json::from_str(&features.metadata["files"]).unwrap();
    assert_eq!(files, list.lines().collect::<Vec<_>>());
    let tokens = safetensors::read(place.path("tokens/features.safetensors")).unwrap();
    let tokens = tokens.require("features").unwrap();
    assert_eq!(tokens.shape().to_vec(), [32, 17, 96]);
    let pooled = features.require("features").unwrap().to_vec::<f32>().unwrap();
    assert!(tokens.to_vec::<f32>().unwrap().chunks(17 * 96).zip(pooled.chunks(96)).all(|(all, one)| all[..96] == *one));
    assert!(read("arrays/features.npy").starts_with(b"\x93NUMPY") && read("arrays/labels.npy").len() > 32 * 4);
    assert!(read("arrays/features.npy").len() > 32 * 96 * 4);

    // All three forms of the same weights draw the same picture.
    for (picture, model) in [("a.png", ""), ("b.png", "/upstream.safetensors"), ("c.png", "/checkpoint-less")] {
        let model = if picture == "c.png" { copy_of_hub_files(&place) } else { format!("{run}{model}") };
        let (out, _) = succeed(ocellus(&["visualize", "mae", &model, &val, "--out", &place.text(picture)]));
        names(&out, &[picture]);
        assert!(read(picture) == read("a.png"), "{picture}");
    }

    let finetune = ["finetune", &run, &train, &val, "--out", &place.text("classifier"), "--epochs", "1"];
    let (out, _) = succeed(ocellus(&[&finetune[..], &["--batch-size", "8", "--log-every", "1"]].concat()));
    names(&out, &["validation top-1: ", "top-5 ", "loss ", "upstream.safetensors"]);
    assert_eq!(logged(&place.path("classifier"), "eval"), [4]);
    assert!(safetensors::read(place.path("classifier/upstream.safetensors")).unwrap().contains("head.weight"));
    let classifier = place.text("classifier");
    succeed(ocellus(&["eval", "knn", &classifier, &train, &val, "-k", "5"]));
    // It was trained with the mean of the patches: the norm of the class token is not in it.
    let message = fail(ocellus(&["eval", "knn", &classifier, &train, &val, "-k", "5", "--pool", "cls"]));
    names(&message, &["classifier/upstream.safetensors", "norm.weight"]);
}

/// Only what the Hugging Face hub has of a run.
fn copy_of_hub_files(place: &Place) -> String {
    fs::create_dir_all(place.path("hub")).unwrap();
    for file in ["model.safetensors", "config.json"] {
        fs::copy(place.path("run").join(file), place.path("hub").join(file)).unwrap();
    }
    place.text("hub")
}

#[test]
fn a_run_begins_with_given_weights() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let hub = copy_of_hub_files(&place);
    for (out, init) in [("a", place.text("run/upstream.safetensors")), ("b", hub), ("c", place.text("run"))] {
        succeed(place.pretrain(out, &["--init", &init]));
        assert!(place.weights(out) == place.weights("a"), "{init}");
    }
    assert!(place.weights("a") != place.weights("run"));

    let encoder = encoder_only(&place);
    let (_, err) = succeed(place.pretrain("d", &["--init", &encoder]));
    names(&err, &["left as initialised", "mask_token"]);

    // What cannot be used is refused before there is a run folder.
    succeed(place.pretrain("other", &["--patch-size", "8"]));
    let message = fail(place.pretrain("e", &["--init", &place.text("other")]));
    names(&message, &["other", "[96, 3, 8, 8]", "[96, 3, 4, 4]"]);
    for (name, path) in damaged(&place) {
        names(&fail(place.pretrain("e", &["--init", &path])), &[name]);
    }
    let mut strange = StateDict::new();
    strange
        .insert("strange", ocellus::Tensor::zeros([2], ocellus::DType::F32, &ocellus::Device::Cpu).unwrap())
        .unwrap();
    safetensors::write(place.path("strange.safetensors"), &strange).unwrap();
    names(&fail(place.pretrain("e", &["--init", &place.text("strange.safetensors")])), &["strange.safetensors"]);
    assert!(!place.path("e").exists());
}

/// The finished weights of `run` without their decoder.
fn encoder_only(place: &Place) -> String {
    let whole = safetensors::read(place.path("run/upstream.safetensors")).unwrap();
    let mut encoder = StateDict::new();
    encoder.metadata = whole.metadata.clone();
    for (name, tensor) in whole.iter().filter(|(name, _)| !name.starts_with("decoder") && *name != "mask_token") {
        encoder.insert(name, tensor.clone()).unwrap();
    }
    safetensors::write(place.path("encoder.safetensors"), &encoder).unwrap();
    place.text("encoder.safetensors")
}

/// Files that are no weights, by name and path.
fn damaged(place: &Place) -> Vec<(&'static str, String)> {
    let whole = place.weights("run");
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let write = |name: &'static str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        (name, place.text(name))
    };
    vec![
        write("cut.safetensors", &whole[..whole.len() / 2]),
        write("noise.safetensors", &noise),
        write("noise.pth", &noise),
        write("empty.safetensors", &[]),
        write("weights.txt", &whole),
        ("missing.safetensors", place.text("missing.safetensors")),
        ("data", place.text("data")),
    ]
}

#[test]
fn unusable_weights_are_named() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let (train, val) = (place.text("data/train"), place.text("data/val"));
    for (name, path) in damaged(&place) {
        names(&fail(ocellus(&["visualize", "mae", &path, &val, "--out", &place.text("p.png")])), &[name]);
        names(&fail(ocellus(&["eval", "knn", &path, &train, &val])), &[name]);
        names(
            &fail(ocellus(&["finetune", &path, &train, &val, "--batch-size", "8", "--out", &place.text("f")])),
            &[name],
        );
    }
    let message = fail(ocellus(&["visualize", "mae", &encoder_only(&place), &val, "--out", &place.text("p.png")]));
    names(&message, &["encoder.safetensors", "encoder only", "decoder"]);
    assert!(!place.path("p.png").exists() && !place.path("f").exists());
}

#[test]
fn unusable_data_is_named_and_no_run_is_left() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    let pretrain = |data: &str| ocellus(&["pretrain", "mae", &place.text(data), "--out", &place.text("run")]);
    names(&fail(pretrain("empty")), &["empty", "no images"]);
    names(&fail(pretrain("missing")), &["missing", "No such file"]);
    let message = fail(place.pretrain("run", &["--knn", &place.text("missing")]));
    names(&message, &["missing"]);

    // 5 % of the images are cut, 5 % are something else.
    let all: Vec<_> = (0..4).flat_map(|class| files_of_class(&place, class)).collect();
    fs::create_dir(place.path("mixed")).unwrap();
    for i in 0..40 {
        let (bytes, file) = (fs::read(&all[i % all.len()]).unwrap(), |name: String| place.path("mixed").join(name));
        match i {
            12 | 29 => fs::write(file(format!("{i:02}.png")), &bytes[..bytes.len() / 2]),
            5 | 20 => fs::write(file(format!("text{i:02}.jpg")), "no image"),
            _ => fs::write(file(format!("{i:02}.png")), &bytes),
        }
        .unwrap();
    }
    let flags = ["--preset", "micro", "--image-size", "16", "--batch-size", "8", "--epochs", "2"];
    let mut strict = pretrain("mixed");
    strict.args(flags).arg("--strict");
    names(&fail(strict), &["mixed/", "not a readable image"]);
    assert!(!place.path("run").exists(), "a run that did nothing blocks the next");
    let mut lenient = pretrain("mixed");
    lenient.args(flags);
    let (_, err) = succeed(lenient);
    for bad in ["12.png", "29.png", "text05.jpg", "text20.jpg"] {
        assert_eq!(err.lines().filter(|line| line.contains(&format!("mixed/{bad}"))).count(), 1, "{bad}: {err}");
    }
    names(&err, &["4 unreadable images"]);
    complete(&place.path("run"));
}

fn files_of_class(place: &Place, class: usize) -> Vec<std::path::PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(place.path("data/train")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    files(&folders[class], ".png").into_iter().map(|name| folders[class].join(name)).collect()
}

#[test]
fn unusable_settings_are_named_and_no_run_is_left() {
    let place = Place::new();
    for (flags, parts) in [
        (&["--batch-size", "33"][..], &["`batch_size` is 33", "32 images"][..]),
        (&["--batch-size", "0"], &["`batch_size` is 0", "at least 1"]),
        (&["--accum-iter", "5"], &["`accum_iter` is 5", "4 batches"]),
        (&["--patch-size", "5"], &["`image_size` is 16x16", "patch size 5"]),
        (&["--patch-size", "0"], &["patch size 0"]),
        (&["--preset", "giant"], &["`preset` is giant", "micro, tiny, small, base, large, huge"]),
        (&["--mask-ratio", "0"], &["`mask_ratio` is 0", "16 patches"]),
        (&["--mask-ratio", "1"], &["`mask_ratio` is 1"]),
        (&["--mask-ratio", "1.5"], &["`mask_ratio` is 1.5", "0 to 1"]),
        (&["--lr", "NaN"], &["`lr` is NaN"]),
        (&["--epochs", "0"], &["`epochs` is 0"]),
        (&["--crop-min", "0"], &["`crop_min` is 0"]),
        (&["--device", "cuda:99"], &["cuda:99"]),
        (&["--device", "tpu"], &["`device` is tpu", "cpu, emulated, cuda"]),
        (&["--dtype", "f16"], &["`dtype` is f16", "bf16", "loss scaling"]),
        (&["--dtype", "f8"], &["`dtype` is f8", "f32, bf16 or f16"]),
        (&["--threads", "0"], &["`threads` is 0", "at least 1"]),
        (&["--epochs", "ten"], &["ten", "--epochs"]),
        (&["--colour", "red"], &["--colour"]),
    ] {
        let message = fail(overridden(&place, flags));
        names(&message, parts);
        assert!(!place.path("run").exists(), "{flags:?}");
    }
    succeed(overridden(&place, &["--epochs", "1"])); // nothing is in the way
    let message = fail(overridden(&place, &[]));
    names(&message, &[&place.text("run"), "holds a run already", "--resume", "--out"]);
}

/// A short run whose flags may be given again.
fn overridden(place: &Place, flags: &[&str]) -> Command {
    let usual = [
        ("--out", place.text("run")),
        ("--preset", "micro".into()),
        ("--image-size", "16".into()),
        ("--batch-size", "8".into()),
        ("--epochs", "1".into()),
    ];
    let mut command = ocellus(&[&["pretrain", "mae", &place.text("data/train")], flags].concat());
    for (key, value) in usual.iter().filter(|(key, _)| !flags.contains(key)) {
        command.args([key, value.as_str()]);
    }
    command
}

#[test]
fn what_cannot_be_resumed_is_named() {
    let place = Place::new();
    let resume = |out: &str| place.resume(&["pretrain", "mae"], out);
    names(&fail(resume("missing")), &["missing", "holds no run"]);
    names(&fail(resume("data")), &["data", "holds no run"]);
    names(&fail(ocellus(&["pretrain", "mae"])), &["required arguments were not provided"]);
    succeed(place.pretrain("run", &[]));
    let with_flags = |flags: &[&str]| {
        let mut command = resume("run");
        command.args(flags);
        fail(command)
    };
    names(&with_flags(&["--epochs", "3"]), &["'--resume <RUN>' cannot be used with"]);
    names(&with_flags(&[&place.text("data/train")]), &["'--resume <RUN>' cannot be used with"]);
    succeed(resume("run")); // finished: nothing left to do, no error
    names(&fail(place.resume(&["finetune"], "run")), &["config.toml", "`model`"]);
    let config = place.path("run/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    names(&text, &["dtype = \"f32\"", "mask_ratio = 0.75", &place.text("data/train")]);
    for (bad, part) in [
        (text.replace("epochs = 1", "epochs = \"many\""), "invalid type"),
        (text.replace("preset = \"micro\"", "preset = \"giant\""), "giant"),
        (text[..text.len() / 2].replace("seed", "sea"), "config.toml"),
        ("\u{0}\u{1}\u{2}".into(), "config.toml"),
        (text.replace("mask_ratio = 0.75", "mask_ratio = 2.0"), "`mask_ratio` is 2"),
    ] {
        fs::write(&config, bad).unwrap();
        names(&fail(resume("run")), &[part]);
    }
}

#[test]
fn unusable_evaluations_are_named() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    let knn =
        |train: &str, val: &str, flags: &[&str]| fail(ocellus(&[&["eval", "knn", &run, train, val], flags].concat()));
    names(&knn(&train, &val, &["-k", "33"]), &["`k` is 33", "32 training samples"]);
    names(&knn(&train, &val, &["-k", "0"]), &["`k` is 0"]);
    names(&knn(&train, &val, &["-k", "3", "--temperature", "0"]), &["`temperature` is 0"]);
    let probe = ["eval", "linear", &run, &train, &val, "--batch-size", "64"];
    names(&fail(ocellus(&probe)), &["64", "32 "]);
    for (flags, part) in [(["--epochs", "0"], "`epochs` is 0"), (["--blr", "NaN"], "`blr` is NaN")] {
        names(&fail(ocellus(&[&probe[..5], &flags].concat())), &[part]);
    }
    let visualize = |flags: &[&str]| {
        fail(ocellus(&[&["visualize", "mae", &run, &val, "--out", &place.text("p.png")], flags].concat()))
    };
    names(&visualize(&["--mask-ratio", "2"]), &["2", "0 to 1"]);
    names(&visualize(&["--count", "0"]), &["`count` is 0"]);
    let unwritable = ["visualize", "mae", &run, &val, "--out", &place.text("no/such/folder.png")];
    names(&fail(ocellus(&unwritable)), &["no/such/folder.png"]);
    names(&fail(ocellus(&["embed", &run, &place.text("run/checkpoints")])), &["checkpoints", "no images"]);
    names(&fail(ocellus(&["data", "synth", &place.text("data")])), &["data", "not empty"]);
    names(&fail(ocellus(&["data", "synth", &place.text("d"), "--size", "4"])), &["`size` is 4"]);

    // Class folders that differ between training and test.
    let class = place.path("data/val/circle");
    fs::rename(&class, place.path("data/val/other")).unwrap();
    names(&knn(&train, &val, &["-k", "3"]), &["data/val", "circle", "other"]);
    names(
        &fail(ocellus(&["eval", "linear", &run, &train, &val, "--batch-size", "8"])),
        &["data/val", "circle", "other"],
    );
    let finetune = ["finetune", &run, &train, &val, "--out", &place.text("f"), "--batch-size", "8"];
    names(&fail(ocellus(&finetune)), &["data/val", "circle", "other"]);
    fs::rename(place.path("data/val/other"), class).unwrap();
    for (flags, part) in [
        (["--rand-augment", "rand-x"], "rand"),
        (["--batch-size", "64"], "`batch_size` is 64"),
        (["--drop-path", "1"], "`drop_path` is 1"),
        (["--image-size", "18"], "18x18"),
        (["--accum-iter", "40"], "`accum_iter` is 40"),
    ] {
        let mut command = ocellus(&finetune[..finetune.len() - 2]);
        command.args(flags).args(if flags[0] == "--batch-size" { &[][..] } else { &["--batch-size", "8"] });
        names(&fail(command), &[part]);
        assert!(!place.path("f").exists(), "{flags:?}");
    }
}

#[test]
fn help_explains_every_flag() {
    let all: &[&[&str]] = &[
        &["pretrain", "mae"],
        &["finetune"],
        &["eval", "knn"],
        &["eval", "linear"],
        &["eval", "zero-shot"],
        &["eval", "retrieval"],
        &["embed"],
        &["visualize", "mae"],
        &["visualize", "siglip"],
        &["data", "synth"],
        &["bench"],
        &["info"],
    ];
    for command in all {
        let (help, _) = succeed(ocellus(&[*command, &["--help"]].concat()));
        let lines: Vec<&str> = help.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('-') && !line.starts_with("- "))
        {
            let same_line = line.rsplit("  ").next().filter(|text| text.trim() != *line);
            let explained = same_line.or(lines.get(at + 1).copied()).unwrap_or_default();
            assert!(explained.trim().len() > 8, "{command:?}: {line}\n{help}");
        }
        names(&help, &["--device <DEVICE>", "--dtype <DTYPE>", "--threads <THREADS>", "[default: cpu]"]);
    }
    let (help, _) = succeed(ocellus(&["pretrain", "mae", "--help"]));
    for default in ["0.75", "800", "64", "0.00015", "0.05", "0.95", "base", "runs/mae", "500"] {
        names(&help, &[&format!("[default: {default}]")]);
    }
    names(&help, &["Image side in pixels", "Steps between checkpoints", "--resume <RUN>", "[DATA]"]);
    names(&succeed(ocellus(&["--help"])).0, &["Examples:", "pretrain", "finetune", "visualize"]);
    assert!(fail(ocellus(&["pretrain", "mea"])).contains("mea"));
}

#[test]
fn nobody_has_to_listen() {
    let place = Place::new();
    for mut command in [ocellus(&["info"]), place.pretrain("run", &["--epochs", "2"])] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert!(child.wait().unwrap().success(), "{command:?}");
    }
    complete(&place.path("run"));
}

#[test]
fn info_and_generated_data() {
    let (out, _) = succeed(ocellus(&["info"]));
    names(&out, &["ocellus ", "cpu ", "emulated ", "cuda:0 ", "compiled kernels"]);
    let place = Place::new();
    let clips = ["data", "synth", &place.text("clips"), "--video", "--train", "2", "--val", "1", "--frames", "3"];
    let (out, _) = succeed(ocellus(&[&clips[..], &["--size", "24"]].concat()));
    names(&out, &["9 images"]);
    assert!(place.path("clips/train/frames/00001/00002.png").is_file());
    assert!(place.path("clips/val/masks/00000/00000.png").is_file());
    let again =
        ["data", "synth", &place.text("again"), "--train", "32", "--val", "16", "--size", "16", "--threads", "2"];
    succeed(ocellus(&again));
    let captions = |set: &str| fs::read(place.path(set).join("captions.jsonl")).unwrap();
    assert_eq!(captions("data"), captions("again"));
}

#[test]
fn bench_prints_a_table_and_figures() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.jsonl");
    let (out, _) = succeed(ocellus(&["bench", "mean_pool", "--json", json.to_str().unwrap()]));
    names(&out, &["copy", "matrix product", "operation", "of floor", "mean_pool", "GB/s"]);
    let figures = std::fs::read_to_string(&json).unwrap();
    let row: serde_json::Value = serde_json::from_str(figures.lines().next().unwrap()).unwrap();
    assert!(row["op"] == "mean_pool" && row["forward"].as_f64().unwrap() > 0.0);
    assert!(fail(ocellus(&["bench", "mean_poll"])).contains("operations: adafactor"));
}
