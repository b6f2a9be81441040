//! DINOv2 from images to a small student, and what stops it.

use std::fs;

use ocellus::checkpoint::{self, safetensors};

use crate::support::{Place, SMALL_DINOV2, fail, logged, names, ocellus, succeed};

fn distill(place: &Place, teacher: &str, out: &str, flags: &[&str]) -> std::process::Command {
    let (teacher, data, out) = (place.text(teacher), place.text("data/train"), place.text(out));
    let mut command = ocellus(&["pretrain", "distill", &teacher, &data, "--out", &out, "--preset", "micro"]);
    // The student has the prototypes of the teacher.
    let usual = SMALL_DINOV2.chunks(2).filter(|pair| pair[0] != "--prototypes").flatten();
    command.args(usual).args(["--batch-size", "8", "--epochs", "1"]).args(flags);
    command
}

#[test]
fn from_images_to_a_small_student() {
    let place = Place::new();
    let test = place.text("data/val");
    let (out, err) = succeed(place.dinov2("run", &["--registers", "2", "--knn", &test]));
    names(&out, &["model.safetensors", "teacher.safetensors", "run/pictures/features.png", "k-NN accuracy on"]);
    // 48 prototypes for 32 images, and for batches of 16 class tokens.
    names(&err, &["48 prototypes for 32 images"]);
    assert_eq!(logged(&place.path("run"), "train"), [1, 2, 3, 4]);
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    for key in ["local_loss", "global_loss", "koleo_loss", "ibot_loss", "teacher_entropy", "teacher_information"] {
        assert!(first[key].is_f64(), "no {key} in {first}");
    }
    for key in ["prototype_usage", "feature_spread", "feature_rank", "grad_norm_backbone", "grad_norm_ibot_head"] {
        assert!(first[key].is_f64(), "no {key} in {first}");
    }
    let config = fs::read_to_string(place.path("run/config.json")).unwrap();
    names(&config, &["dinov2_with_registers", "\"num_register_tokens\": 2"]);

    // Every file of it is a model, the official flat one among them.
    for model in ["run", "run/upstream.safetensors", "run/model.safetensors", "run/teacher.safetensors"] {
        let features = place.text("features");
        let (out, _) = succeed(ocellus(&["embed", &place.text(model), &test, "--out", &features]));
        names(&out, &["[16, 96]"]);
    }
    let (_, err) =
        succeed(place.dinov2("large", &["--registers", "2", "--init", &place.text("run"), "--image-size", "24"]));
    names(&err, &["student.backbone.pos_embed resized from 4 x 4 to 6 x 6 patches"]);
    assert!(!err.contains("begins anew"), "{err}");

    let (_, err) = succeed(distill(&place, "run", "student", &[])); // without registers
    assert!(!err.contains("prototypes for"), "{err}");
    let (out, _) = succeed(ocellus(&["embed", &place.text("student"), &test, "--out", &place.text("features")]));
    names(&out, &["[16, 96]"]);
    let error = fail(distill(&place, "run/upstream.safetensors", "other", &[]));
    names(&error, &["a backbone without heads"]);
    let error = fail(distill(&place, "run", "other", &["--prototypes", "8"]));
    names(&error, &["config: `prototypes` is given, expected not given: the student has the teacher's"]);

    // A student that begins from weights with heads has the teacher's prototypes too.
    let init = ["--init", &place.text("run"), "--ibot-bottleneck", "24"];
    let (_, err) = succeed(distill(&place, "run", "further", &init));
    names(&err, &["no ibot_head of these sizes: it begins anew"]);
    assert!(!err.contains("no dino_head"), "{err}");

    // The names of upstream's teacher checkpoints, and nothing else: heads are found by their shapes.
    let mut dict = checkpoint::read(place.path("run/teacher.safetensors")).unwrap();
    dict.metadata.clear();
    safetensors::write(place.path("teacher_checkpoint.safetensors"), &dict).unwrap();
    succeed(distill(&place, "teacher_checkpoint.safetensors", "again", &[]));
    let weights = |out: &str| fs::read(place.path(out).join("upstream.safetensors")).unwrap();
    assert_eq!(weights("again"), weights("student"));
}

/// What begins from other weights has their sizes, and what fits of their heads.
#[test]
fn a_run_begins_with_what_fits() {
    let place = Place::new();
    succeed(place.dinov2("run", &["--registers", "2", "--head-layers", "1"]));
    let run = place.text("run");
    let (data, out) = (place.text("data/train"), place.text("more"));
    let flags = ["--image-size", "16", "--local-size", "8", "--local-crops", "1", "--batch-size", "8", "--epochs", "1"];
    let begin = |more: &[&str]| {
        let mut command = ocellus(&["pretrain", "dinov2", &data, "--out", &out, "--init", &run]);
        command.args(flags).args(more);
        command
    };
    // The preset is base: the sizes are those of the weights all the same, heads and prototypes too.
    let (_, err) = succeed(begin(&[]));
    assert!(!err.contains("begins anew"), "{err}");
    names(&err, &["48 prototypes for 32 images"]);
    let config = fs::read_to_string(place.path("more/config.json")).unwrap();
    names(&config, &["\"hidden_size\": 96", "\"num_register_tokens\": 2", "\"patch_size\": 4"]);
    for (flags, expected) in [
        (["--patch-size", "8"], "config: `patch_size` is 8, expected 4, as "),
        (["--registers", "4"], "config: `registers` is 4, expected 2, as "),
    ] {
        fs::remove_dir_all(&out).unwrap_or_default();
        names(&fail(begin(&flags)), &[expected]);
    }
    // One head alone begins anew.
    let (_, err) = succeed(begin(&["--ibot-bottleneck", "16"]));
    names(&err, &["no ibot_head of these sizes: it begins anew"]);
    assert!(!err.contains("no dino_head"), "{err}");
}

/// The weights are finished all the same.
#[test]
fn a_picture_that_cannot_be_drawn_is_not_named() {
    let place = Place::new();
    succeed(place.dinov2("run", &[]));
    fs::remove_dir_all(place.path("run/pictures")).unwrap();
    fs::write(place.path("run/pictures"), "no folder").unwrap();
    let (out, err) = succeed(place.resume(&["pretrain", "dinov2"], "run"));
    names(&err, &["no picture: "]);
    assert!(out.contains("weights: ") && !out.contains("picture"), "{out}");
}

/// Batches that nothing is balanced over stay finite.
#[test]
fn a_batch_of_one_image_trains() {
    let place = Place::new();
    let (_, err) = succeed(place.dinov2("run", &["--batch-size", "1", "--freeze-last-layer", "0"]));
    names(&err, &["a batch of 1 has nothing to spread"]);
    assert_eq!(logged(&place.path("run"), "train").len(), 32);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let place = Place::new();
    for (flags, expected) in [
        (&["--local-size", "9"][..], "config: `local_size` is 9, expected a multiple of the patch size 4"),
        (&["--mask-min", "0.6"], "config: `mask_max` is 0.5, expected 0.6 to 1"),
        (&["--dino-weight", "0"], "config: `dino_weight` is 0, expected above 0"),
        (&["--prototypes", "0"], "config: `prototypes` is 0, expected at least 1"),
        (&["--batch-size", "1", "--mask-probability", "0.4"], "config: `mask_probability` is 0.4"),
        (&["--teacher-temp", "0"], "config: `teacher_temp` is 0"),
    ] {
        // A flag given twice would be refused by the parser: the last of the usual ones is left out.
        let data = place.text("data/train");
        let mut command = ocellus(&["pretrain", "dinov2", &data, "--out", &place.text("bad"), "--preset", "micro"]);
        let usual = SMALL_DINOV2.chunks(2).filter(|pair| !flags.contains(&pair[0])).flatten();
        command.args(usual).args(flags);
        let error = fail(command);
        names(&error, &[expected]);
        assert!(!place.path("bad").exists(), "{flags:?} left a folder");
    }
}
