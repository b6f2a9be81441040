//! The options of the command that change how it computes: each is used once, from data to a result.

use ocellus::Device;
use ocellus::checkpoint::{StateDict, safetensors};

use crate::support::{Place, fail, logged, names, ocellus, succeed, texts};

/// Largest difference between the finished weights of two runs.
fn distance(place: &Place, a: &str, b: &str) -> f64 {
    let read = |run: &str| safetensors::read(place.path(run).join("upstream.safetensors")).unwrap();
    let (a, b) = (read(a), read(b));
    assert_eq!(a.names().collect::<Vec<_>>(), b.names().collect::<Vec<_>>());
    let values = |d: &StateDict| d.iter().flat_map(|(_, t)| t.to_f64().unwrap()).collect::<Vec<f64>>();
    values(&a).iter().zip(values(&b)).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn pre_training_has_options() {
    let place = Place::new();
    succeed(place.pretrain("plain", &[]));
    // Four steps of at most 1e-3 each: no two runs can be further apart than twice their sum.
    let near = |run: &str| {
        assert_eq!(logged(&place.path(run), "train"), [1, 2, 3, 4], "{run}");
        let d = distance(&place, run, "plain");
        assert!(d < 8e-3, "{run}: {d}");
        d
    };
    succeed(place.pretrain("recompute", &["--recompute"]));
    assert_eq!(near("recompute"), 0.0, "the same numbers, computed twice");
    succeed(place.pretrain("bf16", &["--dtype", "bf16"]));
    assert!(near("bf16") > 0.0);
    let (out, _) = succeed(place.pretrain("raw", &["--raw-pixels"]));
    names(&out, &["raw/pictures/reconstruction.png"]);
    assert!(near("raw") > 0.0);
    // A finished run has nothing left to draw, and does not name what is gone.
    std::fs::remove_dir_all(place.path("raw/pictures")).unwrap();
    let (out, _) = succeed(place.resume(&["pretrain", "mae"], "raw"));
    assert!(out.contains("weights: ") && !out.contains("picture"), "{out}");
    let config = |run: &str| std::fs::read_to_string(place.path(run).join("config.json")).unwrap();
    let norm_pix =
        |run: &str| serde_json::from_str::<serde_json::Value>(&config(run)).unwrap()["norm_pix_loss"].clone();
    assert_eq!((norm_pix("plain"), norm_pix("raw")), (true.into(), false.into()));

    let mut emulated = place.pretrain("emulated", &["--device", "emulated"]);
    if Device::emulated().is_ok() {
        succeed(emulated);
        near("emulated");
    } else {
        let output = emulated.output().unwrap();
        assert!(!output.status.success() && texts(&output).1.contains("emulated"), "{output:?}");
    }
}

#[test]
fn classifiers_have_options() {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    let finetune = |out: &str, flags: &[&str]| {
        let usual = ["finetune", &run, &train, &val, "--out", &place.text(out), "--epochs", "1", "--batch-size", "8"];
        let (text, _) = succeed(ocellus(&[&usual[..], flags].concat()));
        assert!(text.contains("validation top-1: "), "{text}");
        safetensors::read(place.path(out).join("upstream.safetensors")).unwrap()
    };
    let class = finetune("class", &["--pool", "cls"]);
    assert!(class.contains("norm.weight") && !class.contains("fc_norm.weight"));
    let mean = finetune("mean", &["--recompute"]);
    assert!(mean.contains("fc_norm.weight") && !mean.contains("norm.weight"));
    // A class-token classifier has the norm that evaluation by class token needs.
    succeed(ocellus(&["eval", "knn", &place.text("class"), &train, &val, "-k", "5"]));
    let sweep = |run: &str| {
        let rest = ["--protocol", "dinov2", "--no-augment", "--epochs", "1"];
        ocellus(&[&["eval", "linear", &place.text(run), &train, &val], &rest[..]].concat())
    };
    succeed(sweep("class"));
    names(
        &fail(sweep("mean")),
        &["mean", "fine-tuned on the mean of the patches, there is no norm of the class token"],
    );

    let probe = |flags: &[&str]| {
        let usual = ["eval", "linear", &run, &train, &val, "--epochs", "2", "--batch-size", "16"];
        let (text, _) = succeed(ocellus(&[&usual[..], flags].concat()));
        assert!(text.contains("linear probe: top-1 "), "{text}");
        text
    };
    probe(&["--optimizer", "sgd", "--pool", "mean"]);
    probe(&["--dtype", "bf16"]);
}
