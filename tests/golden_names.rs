//! What the golden runner reads from the names and the metadata of files whose schema is known in part.

#[path = "golden/reader.rs"]
#[expect(dead_code, reason = "the runner of goldens uses all of it")]
mod reader;
#[path = "golden/sam2_names.rs"]
mod sam2_names;

use std::collections::BTreeMap;

use reader::{Golden, Report, Stored};
use sam2_names::{Optim, parse, table};
use serde_json::{Value, json};

#[test]
fn steps_and_fields_of_names() {
    for (name, step, field) in [
        ("images", None, "images"),
        ("step1.images", Some(1), "images"),
        ("s2.masks", Some(2), "masks"),
        ("images.0", Some(0), "images"),
        ("images_3", Some(3), "images"),
        ("use_point_input", None, "use_point_input"),
        ("f0.point_coords", None, "f0.point_coords"),
        ("step1.f2.point_labels", Some(1), "f2.point_labels"),
        ("f2.point_labels.1", Some(1), "f2.point_labels"),
        ("frame2.point_labels", None, "f2.point_labels"),
        ("f0.s1.ious", None, "f0.s1.ious"),
        ("step2.f0.s1.ious", Some(2), "f0.s1.ious"),
        ("losses", None, "loss"),
        ("grad_norms", None, "grad_norm"),
        ("lr", None, "lr"),
        ("step0.loss_mask", Some(0), "loss_mask"),
        ("never_heard_of", None, "never_heard_of"),
    ] {
        assert_eq!(parse(name), (step, field.to_string()), "{name}");
    }
}

#[test]
fn tables_of_rates_and_decays() {
    let expected = BTreeMap::from([("a.b".to_string(), [0.5, 0.1]), ("c".to_string(), [0.25, 0.0])]);
    for given in [
        json!({"a.b": [0.5, 0.1], "c": [0.25, 0.0]}),
        json!({"a.b": {"lr": 0.5, "weight_decay": 0.1}, "c": {"lr0": 0.25, "wd": 0}}),
        json!([["a.b", 0.5, 0.1], ["c", 0.25, 0.0]]),
        json!([{"name": "a.b", "lr": 0.5, "wd": 0.1}, {"names": ["c"], "lr": 0.25, "wd": 0.0}]),
    ] {
        assert_eq!(table(&given).unwrap(), expected, "{given}");
    }
    assert!(table(&json!({"a": "?"})).unwrap_err().to_string().contains("`a` is"));
    assert!(table(&Value::Null).is_err());
}

fn golden(optim: Value, outputs: &[(&str, &[f64])]) -> Golden {
    let stored = |values: &[f64]| Stored { shape: vec![values.len()], values: values.to_vec(), integer: false };
    Golden {
        path: Default::default(),
        kind: "sam2/train_trajectory".into(),
        config: json!({ "optim": optim }),
        metadata: Default::default(),
        tensors: outputs.iter().map(|(name, values)| (format!("output.{name}"), stored(values))).collect(),
    }
}

fn read(optim: Value, outputs: &[(&str, &[f64])]) -> Optim {
    let rates = table(&json!({
        "sam_mask_decoder.x": [0.01, 0.1], "image_encoder.neck.x": [0.005, 0.1],
        "image_encoder.trunk.blocks.0.x": [0.002, 0.1], "image_encoder.trunk.blocks.1.x": [0.0025, 0.0],
    }));
    Optim::read(&golden(optim, outputs), 0, &rates.unwrap(), &mut Report::default()).unwrap()
}

fn near(got: &[f64], expected: &[f64]) {
    let far = got.iter().zip(expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(got.len() == expected.len() && far < 1e-12, "{got:?}, expected {expected:?}");
}

#[test]
fn optimizers_and_schedules() {
    let all = read(
        json!({"base_lr": 0.01, "vision_lr": 0.005, "layer_decay": 0.8, "wd": 0.1, "betas": [0.8, 0.9], "eps": 1e-6,
            "gradient_clip": {"max_norm": 0.5}, "steps": 2, "schedule": "cosine", "end_value": 0.002}),
        &[],
    );
    near(&[all.lr, all.vision_lr, all.layer_decay, all.weight_decay], &[0.01, 0.005, 0.8, 0.1]);
    near(&[all.hyper.beta1, all.hyper.beta2, all.hyper.eps, all.clip.unwrap()], &[0.8, 0.9, 1e-6, 0.5]);
    near(&all.factors, &[1.0, 0.6]); // a cosine to a fifth
    near(&all.wheres, &[0.0, 0.5]);
    // What is not said is in the rates of the first step.
    let none = read(json!({}), &[("losses", &[3.0, 2.0, 1.0])]);
    near(&[none.lr, none.vision_lr, none.layer_decay, none.weight_decay], &[0.01, 0.005, 0.8, 0.1]);
    near(&none.factors, &[1.0; 3]);
    assert_eq!((none.hyper.beta2, none.clip), (0.999, None));
    // Rates that are written out say which schedule it is, or are the schedule.
    let ends = read(json!({"steps": 3, "schedule": "cosine"}), &[("lr", &[0.01, 0.0055, 0.001])]);
    near(&ends.wheres, &[0.0, 0.5, 1.0]);
    near(&ends.factors, &[1.0, 0.55, 0.1]);
    near(&read(json!({"steps": 3}), &[("lr", &[0.01, 0.007, 0.001])]).factors, &[1.0, 0.7, 0.1]);
    // Words that mean something else than the rates.
    near(&[read(json!({"lr": 7.0, "steps": 1}), &[]).lr], &[0.01]);
}
