//! What is not as the examples have it: weights of unfinished runs and of other programs, images that are not square, files
//! that are damaged, disks that are full, data that changes under a run.

mod support;

use std::fs;
use std::process::Stdio;

use ocellus::checkpoint::safetensors;
use support::{Disk, Place, fail, files, names, ocellus, succeed};

/// A run that was killed after its first checkpoint.
fn unfinished(place: &Place, mut command: std::process::Command, out: &str) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = std::time::Instant::now();
    while !place.path(out).join("checkpoints/latest").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended before");
        assert!(began.elapsed().as_secs() < 120, "the command hangs");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_run_can_be_looked_at_before_it_has_finished() {
    let place = Place::new();
    unfinished(&place, place.pretrain("run", &["--epochs", "500", "--save-every", "2"]), "run");
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    let newest = files(&place.path("run/checkpoints"), ".safetensors").pop().unwrap();
    let state = format!("{run}/checkpoints/{newest}");
    for (model, picture) in [(&run, "a.png"), (&state, "b.png")] {
        succeed(ocellus(&["visualize", "mae", model, &val, "--out", &place.text(picture)]));
        let (_, err) = succeed(ocellus(&["eval", "knn", model, &train, &val, "-k", "5"]));
        names(&err, &[&newest, "tensors loaded"]);
    }
    assert!(fs::read(place.path("a.png")).unwrap() == fs::read(place.path("b.png")).unwrap());
}

#[test]
fn images_need_not_be_square() {
    let place = Place::new();
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    succeed(place.pretrain("run", &["--image-size", "16x32", "--save-every", "2"]));
    succeed(place.resume(&["pretrain", "mae"], "run"));
    succeed(ocellus(&["visualize", "mae", &run, &val, "--out", &place.text("p.png"), "--count", "2"]));
    let picture = ocellus::data::decode::open(place.path("p.png")).unwrap();
    assert_eq!((picture.width, picture.height), (4 * (96 + 4) + 4, 2 * (48 + 4) + 4));
    succeed(ocellus(&["eval", "knn", &run, &train, &val, "-k", "5"]));
    succeed(ocellus(&["eval", "linear", &run, &train, &val, "--epochs", "1", "--batch-size", "16"]));
    let finetune = ["finetune", &run, &train, &val, "--epochs", "1", "--batch-size", "8", "--out", &place.text("f")];
    let (_, err) = succeed(ocellus(&[&finetune[..], &["--image-size", "24x16"]].concat()));
    names(&err, &["pos_embed resized from 4 x 8 to 6 x 4 patches", "effective batch 8"]);
    let (_, err) = succeed(place.pretrain("square", &["--init", &run]));
    names(&err, &["decoder_pos_embed resized from 4 x 8 to 4 x 4 patches"]);

    // As another program would state it: the file's own word for its size is that of config.json.
    let tokens = |out: &str, model: &str| {
        succeed(ocellus(&["embed", model, &val, "--tokens", "--out", &place.text(out)]));
        safetensors::read(place.path(out).join("features.safetensors")).unwrap().require("features").unwrap().clone()
    };
    let before = tokens("before", &place.text("run/model.safetensors"));
    assert_eq!(before.shape().to_vec(), [16, 33, 96]);
    let config = place.path("run/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let edited = |key: &str, value: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        fs::write(&config, json.to_string()).unwrap();
        place.text("run/model.safetensors")
    };
    let tall = tokens("tall", &edited("image_size", [32, 16].into()));
    assert_eq!(tall.shape().to_vec(), [16, 33, 96]);
    assert!(tall.to_vec::<f32>().unwrap() != before.to_vec::<f32>().unwrap());
    let refused = |model: String, parts: &[&str]| {
        names(&fail(ocellus(&["embed", &model, &val, "--out", &place.text("none")])), parts);
        assert!(!place.path("none").exists());
    };
    refused(edited("num_channels", 1.into()), &["model.safetensors", "1 channels", "expected 3"]);
    refused(edited("qkv_bias", false.into()), &["config.json", "`qkv_bias` is false"]);
    let other_heads = edited("num_attention_heads", 6.into());
    let message = fail(place.pretrain("none", &["--image-size", "16x32", "--init", &other_heads]));
    names(&message, &["6 attention heads", "expected 3"]);
    // The eps that weights were trained with stays with them.
    let other_eps = edited("layer_norm_eps", 1e-12.into());
    succeed(place.pretrain("eps", &["--image-size", "16x32", "--init", &other_eps]));
    names(&fs::read_to_string(place.path("eps/config.json")).unwrap(), &["\"layer_norm_eps\": 1e-12"]);
    names(&text, &["\"layer_norm_eps\": 1e-6"]);
}

#[test]
fn a_file_that_does_not_say_what_it_predicts_is_drawn_with_a_warning() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let mut weights = safetensors::read(place.path("run/upstream.safetensors")).unwrap();
    weights.metadata.clear();
    safetensors::write(place.path("full.safetensors"), &weights).unwrap();
    let draw = |more: &[&str]| {
        let (model, val, out) = (place.text("full.safetensors"), place.text("data/val"), place.text("p.png"));
        succeed(ocellus(&[&["visualize", "mae", &model, &val, "--out", &out], more].concat())).1
    };
    names(&draw(&[]), &["WARN", "full.safetensors", "--norm-pix true"]);
    assert!(!draw(&["--norm-pix", "true"]).contains("WARN"));
}

#[test]
fn damaged_images_are_left_out_and_named_in_every_evaluation() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    let mut damaged = vec![];
    for part in ["train", "val"] {
        let class = place.path("data").join(part).join("circle");
        let file = class.join(files(&class, ".png").remove(0));
        fs::write(&file, &fs::read(&file).unwrap()[..60]).unwrap();
        damaged.push(file.strip_prefix(place.path("data")).unwrap().display().to_string());
    }
    let both: Vec<&str> = damaged.iter().map(String::as_str).collect();
    names(&succeed(ocellus(&["eval", "knn", &run, &train, &val, "-k", "5"])).1, &both);
    let probe = ["eval", "linear", &run, &train, &val, "--epochs", "1", "--batch-size", "16"];
    names(&succeed(ocellus(&probe)).1, &both);
    names(&fail(ocellus(&[&probe[..], &["--strict"]].concat())), &["train/circle", "not a readable image"]);
    let out = place.text("f");
    let finetune = ["finetune", &run, &train, &val, "--epochs", "1", "--batch-size", "8", "--out", &out];
    names(&fail(ocellus(&[&finetune[..], &["--strict"]].concat())), &["train/circle", "not a readable image"]);
    names(&succeed(ocellus(&finetune)).1, &both);
    let (_, err) = succeed(ocellus(&["embed", &run, &train, "--out", &place.text("e")]));
    names(&err, &[both[0], "1 unreadable images"]);
    let list = fs::read_to_string(place.path("e/files.txt")).unwrap();
    assert!(list.lines().count() == 31 && !list.contains(both[0].trim_start_matches("train/")), "{list}");
}

#[test]
fn a_run_continues_with_what_it_began_with_or_not_at_all() {
    let place = Place::new();
    let train = ["--epochs", "500", "--save-every", "2"];
    unfinished(&place, place.pretrain("run", &train), "run");
    let resume = || place.resume(&["pretrain", "mae"], "run");
    let class = place.path("data/train/circle");
    let added = class.join("one_more.png");
    fs::copy(class.join(files(&class, ".png").remove(0)), &added).unwrap();
    names(&fail(resume()), &["33 images", "expected 32 images"]);
    fs::remove_file(&added).unwrap();
    let (config, text) = (place.path("run/config.toml"), fs::read_to_string(place.path("run/config.toml")).unwrap());
    for (key, old, new) in [("seed", "0", "1"), ("batch_size", "8", "4"), ("epochs", "500", "2")] {
        fs::write(&config, text.replace(&format!("\n{key} = {old}"), &format!("\n{key} = {new}"))).unwrap();
        names(&fail(resume()), &[&format!("`{key}` is {new}"), &format!("expected {old}")]);
    }
    fs::write(&config, text).unwrap();

    // The weights that fine-tuning began from may be gone by then.
    succeed(place.pretrain("source", &[]));
    let (source, train, val) = (place.text("source"), place.text("data/train"), place.text("data/val"));
    let finetune = ["finetune", &source, &train, &val, "--epochs", "4", "--batch-size", "8", "--save-every", "2"];
    unfinished(&place, ocellus(&[&finetune[..], &["--out", &place.text("f")]].concat()), "f");
    fs::rename(place.path("source"), place.path("moved")).unwrap();
    succeed(place.resume(&["finetune"], "f"));
}

#[test]
fn a_full_disk_costs_no_checkpoint() {
    let place = Place::new();
    let flags = ["--epochs", "2", "--save-every", "2"];
    succeed(place.pretrain("whole", &flags));
    let size = fs::metadata(place.path("whole/checkpoints/step-00000008.safetensors")).unwrap().len();
    let Some(disk) = Disk::mount(&place.path("disk"), &format!("size={}", size * 3 / 2)) else { return };
    let message = fail(place.pretrain("disk/run", &flags));
    names(&message, &["disk/run/checkpoints/step-00000004.safetensors", "No space left"]);
    assert_eq!(files(&place.path("disk/run/checkpoints"), ""), ["latest", "step-00000002.safetensors"]);
    disk.resize(size * 20);
    succeed(place.resume(&["pretrain", "mae"], "disk/run"));
    assert!(place.weights("disk/run") == place.weights("whole"));
}

#[test]
fn a_full_disk_costs_no_finished_work() {
    let place = Place::new();
    let flags = ["--epochs", "2", "--save-every", "1000"];
    succeed(place.pretrain("whole", &flags));
    let size = fs::metadata(place.path("whole/checkpoints/step-00000008.safetensors")).unwrap().len();
    let Some(disk) = Disk::mount(&place.path("disk"), &format!("size={}", size * 11 / 10)) else { return };

    // The last checkpoint fits, the weights do not.
    names(&fail(place.pretrain("disk/run", &flags)), &["disk/run/upstream.safetensors", "No space left"]);
    disk.resize(size * 20);
    succeed(place.resume(&["pretrain", "mae"], "disk/run"));
    assert!(place.weights("disk/run") == place.weights("whole"));

    // Not one byte is left for the logs.
    unfinished(&place, place.pretrain("disk/other", &["--epochs", "50", "--save-every", "2"]), "disk/other");
    let filler = disk.fill();
    names(&fail(place.resume(&["pretrain", "mae"], "disk/other")), &["disk/other", "No space left"]);
    let embed = ["embed", &place.text("whole"), &place.text("data/val"), "--out", &place.text("disk/e")];
    names(&fail(ocellus(&embed)), &["disk/e/features.safetensors", "No space left"]);
    assert_eq!(files(&place.path("disk/e"), ""), [""; 0]);
    fs::remove_file(filler).unwrap();
    succeed(ocellus(&embed));
    succeed(place.resume(&["pretrain", "mae"], "disk/other"));
}

#[test]
fn image_text_runs_name_what_does_not_fit() {
    let place = Place::new();
    succeed(place.siglip("run", &[]));
    succeed(place.pretrain("mae", &["--patch-size", "8"]));
    let tokens = place.text("other.json");
    let captions = place.text("data/captions.tsv");
    succeed(ocellus(&["tokenizer", "train", &captions, "--out", &tokens, "--vocab", "350"]));
    let (run, mae, val) = (place.text("run"), place.text("mae"), place.text("data/val"));
    for (flags, parts) in [
        (&["--init", &run, "--tokenizer", &tokens][..], &["other.json", "350 ids", "embeddings for 400"][..]),
        (&["--init", &run, "--pad", "0"], &["'--init <INIT>' cannot be used with '--pad <PAD>'"]),
        (&["--init", &run, "--image-size", "16x32"], &["`image_size`", "a square"]),
        (&["--tokenizer", &place.text("none.json")], &["none.json"]),
        (&["--tokenizer", &captions], &["captions.tsv"]),
        (&["--init-image", &mae, "--patch-size", "4"], &["image tower has 8 pixels to a patch side, expected 4"]),
        (&["--init-image", &val], &["neither SigLIP's"]),
        (&["--freeze-image"], &["`freeze_image`", "--init-image"]),
        (&["--batch-size", "49"], &["`batch_size` is 49", "48 pairs"]),
        (&["--accum-iter", "7"], &["`accum_iter` is 7", "6 batches"]),
        (&["--image-size", "16x32"], &["`image_size`", "a square"]),
        (&["--zero-shot", &captions], &["captions.tsv"]),
        (&["--retrieval", &place.text("nowhere")], &["nowhere"]),
    ] {
        names(&fail(place.siglip("refused", flags)), parts);
        assert!(!place.path("refused").exists(), "{flags:?}");
    }
    // What the run began with is its own: neither tokenizer nor first weights are needed to go on.
    fs::rename(place.path("tokenizer.json"), place.path("elsewhere.json")).unwrap();
    fs::remove_file(place.path("run/model.safetensors")).unwrap();
    succeed(place.resume(&["pretrain", "siglip"], "run"));
    fs::rename(place.path("elsewhere.json"), place.path("tokenizer.json")).unwrap();
    let (_, err) = succeed(place.siglip("tuned", &["--init", &run, "--image-size", "24", "--zero-shot", &val]));
    names(&err, &["resized from 2 x 2 to 3 x 3", "zero_shot_top1"]);
    let refused = place.siglip("run", &[]);
    names(&fail(refused), &["holds a run already"]);
}
