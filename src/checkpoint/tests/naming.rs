//! Names of the two layouts: bijection, spellings, exact splitting and joining; folders of Hugging Face.

use proptest::prelude::*;

use super::super::names::{Layout, detect};
use super::super::{HfConfig, StateDict, hf, to_hf, to_upstream};
use super::{assert_same, tensor, upstream};
use crate::Error;

fn renamed(dict: &StateDict, f: impl Fn(&str) -> Option<String>) -> StateDict {
    let mut out = StateDict::new();
    for (name, t) in dict.iter() {
        if let Some(name) = f(name) {
            out.insert(name, t.clone()).unwrap();
        }
    }
    out
}

/// The names of the newer modules, for decoders written either way.
fn modern(name: &str, decoder: &str) -> String {
    let pairs = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("vit.encoder.layer.", "vit.layers."),
        ("decoder.decoder_layers.", decoder),
    ];
    pairs.iter().fold(name.to_string(), |n, (from, to)| n.replace(from, to))
}

#[test]
fn upstream_to_hub_and_back_is_exact() {
    let ours = upstream(8, 3, 4, 2, 4);
    let hub = to_hf(&ours).unwrap();
    assert_eq!(detect(&ours).unwrap(), Layout::Upstream);
    assert_eq!(detect(&hub).unwrap(), Layout::HuggingFace);
    assert_eq!(hub.len(), ours.len() + 2 * 2 * 5, "each qkv weight and bias becomes three");
    assert_eq!(hub.require("vit.encoder.layer.2.attention.attention.key.weight").unwrap().shape()[..], [8, 8]);
    assert_same(&to_upstream(hub.clone()).unwrap(), &ours);
    assert_same(&to_hf(&to_upstream(hub.clone()).unwrap()).unwrap(), &hub);
    assert_same(&to_upstream(ours.clone()).unwrap(), &ours);
}

#[test]
fn the_published_sizes_have_the_published_number_of_tensors() {
    for (depth, ours, hub) in [(12, 254, 334), (24, 398, 526), (32, 494, 654)] {
        let dict = upstream(4, depth, 4, 8, 1);
        assert_eq!(dict.len(), ours);
        assert_eq!(to_hf(&dict).unwrap().len(), hub);
    }
}

#[test]
fn every_spelling_is_read() {
    let ours = upstream(8, 2, 4, 2, 4);
    let hub = to_hf(&ours).unwrap();
    for decoder in ["decoder.decoder_layers.", "decoder.decoder_encoder.layer."] {
        let module_names = renamed(&hub, |n| Some(modern(n, decoder)));
        assert!(module_names.contains("vit.layers.1.attention.o_proj.weight"));
        assert_same(&to_upstream(module_names).unwrap(), &ours);
        let outer_only = renamed(&hub, |n| Some(n.replace("decoder.decoder_layers.", decoder)));
        assert_same(&to_upstream(outer_only).unwrap(), &ours);
    }
    let encoder = renamed(&ours, |n| (!n.starts_with("decoder") && n != "mask_token").then(|| n.to_string()));
    let bare = renamed(&hub, |n| n.strip_prefix("vit.").map(String::from));
    assert_same(&to_upstream(bare.clone()).unwrap(), &encoder);
    assert_same(
        &to_upstream(renamed(&bare, |n| Some(modern(&format!("vit.{n}"), "")[4..].to_string()))).unwrap(),
        &encoder,
    );
}

#[test]
fn the_fused_rows_are_query_key_value() {
    let ours = upstream(4, 1, 4, 0, 1);
    let hub = to_hf(&ours).unwrap();
    let fused = ours.require("blocks.0.attn.qkv.weight").unwrap().to_vec::<f32>().unwrap();
    for (i, name) in ["query", "key", "value"].into_iter().enumerate() {
        let part = hub.require(&format!("vit.encoder.layer.0.attention.attention.{name}.weight")).unwrap();
        assert_eq!(part.to_vec::<f32>().unwrap(), fused[i * 16..(i + 1) * 16]);
    }
}

#[test]
fn faults_are_named() {
    let hub = to_hf(&upstream(4, 1, 4, 1, 1)).unwrap();
    let key = "vit.encoder.layer.0.attention.attention.key.weight";
    let cause = |dict: StateDict| match to_upstream(dict) {
        Err(Error::Checkpoint { cause, .. }) => cause,
        other => panic!("expected a checkpoint error, got {other:?}"),
    };
    assert_eq!(cause(renamed(&hub, |n| (n != key).then(|| n.into()))), "`blocks.0.attn.qkv.weight` lacks its key");
    let mut odd = renamed(&hub, |n| (n != key).then(|| n.into()));
    odd.insert(key, tensor(&[5, 4], 0)).unwrap();
    assert!(cause(odd).contains("expected equal ones"));
    let mut twice = hub.clone();
    twice.insert("vit.layers.0.layernorm_before.bias", tensor(&[4], 0)).unwrap();
    assert!(cause(twice).contains("`blocks.0.norm1.bias` occurs twice"));
    let mut twice = hub.clone();
    twice.insert("vit.layers.0.attention.k_proj.weight", tensor(&[4, 4], 0)).unwrap();
    assert!(cause(twice).contains("occurs twice in different spellings"));
    let mut both = hub.clone();
    both.insert("blocks.0.norm1.bias", tensor(&[4], 0)).unwrap();
    assert!(cause(both).contains("expected one layout"));
    assert_eq!(cause(StateDict::new()), "holds no tensors");
    let mut foreign = StateDict::new();
    foreign.insert("features.0.weight", tensor(&[1], 0)).unwrap();
    assert!(cause(foreign).contains("`features.0.weight`"));

    let mut head = upstream(4, 1, 4, 1, 1);
    head.insert("head.weight", tensor(&[10, 4], 0)).unwrap();
    assert!(to_hf(&head).unwrap_err().to_string().contains("`head.weight` has no place"));
    let mut odd = StateDict::new();
    odd.insert("blocks.0.attn.qkv.weight", tensor(&[4, 4], 0)).unwrap();
    assert!(to_hf(&odd).unwrap_err().to_string().contains("expected rows of query, key and value"));
}

#[test]
fn tensors_that_nobody_knows_are_kept() {
    let mut hub = to_hf(&upstream(4, 1, 4, 1, 1)).unwrap();
    for name in ["classifier.weight", "vit.encoder.layer.00.layernorm_before.bias", "vit.encoder.layer.0.gamma"] {
        hub.insert(name, tensor(&[4], 0)).unwrap();
    }
    let ours = to_upstream(hub).unwrap();
    assert!(ours.contains("classifier.weight") && ours.contains("vit.encoder.layer.00.layernorm_before.bias"));
}

#[test]
fn the_golden_name_map_agrees() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/hf_pretraining.safetensors");
    let golden = super::safetensors::read(file).unwrap();
    let map: serde_json::Map<_, _> = serde_json::from_str(&golden.metadata["name_map"]).unwrap();
    let hub = golden.strip_prefix("param.");
    assert_eq!(map.len(), hub.len());
    let ours = to_upstream(hub.clone()).unwrap();
    for (theirs, expected) in &map {
        let expected = expected.as_str().unwrap();
        let (name, rows) = expected.split_once('[').unwrap_or((expected, ""));
        let whole = StateDict::bytes_of(ours.get(name).unwrap_or_else(|| panic!("{name}"))).unwrap();
        let third = whole.len() / 3;
        let at = match rows {
            "" => 0..whole.len(),
            "0:D]" => 0..third,
            "D:2D]" => third..2 * third,
            "2D:3D]" => 2 * third..whole.len(),
            other => panic!("rows {other}"),
        };
        assert_eq!(&whole[at], StateDict::bytes_of(hub.require(theirs).unwrap()).unwrap(), "{theirs}");
    }
    assert_same(&to_hf(&ours).unwrap(), &hub);
    let config: HfConfig = serde_json::from_str(&golden.metadata["config"]).unwrap();
    assert_eq!((config.hidden_size, config.intermediate_size, config.decoder_intermediate_size), (36, 80, 60));
    assert_eq!((config.image_size, config.grid(), config.layer_norm_eps), ([30, 30], (5, 5), 1e-12));
}

/// Configuration and weights, these under upstream names.
fn read_folder(folder: &std::path::Path) -> crate::Result<(HfConfig, StateDict)> {
    Ok((HfConfig::read(folder)?, to_upstream(crate::checkpoint::read(folder)?)?))
}

#[test]
fn folders_survive() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("model");
    let weights = upstream(8, 2, 4, 1, 4);
    let config = HfConfig { image_size: [32, 64], norm_pix_loss: true, ..HfConfig::default() };
    hf::save(&at, &config, &weights).unwrap();
    let (back, loaded) = read_folder(&at).unwrap();
    assert_eq!(back, config);
    assert_same(&loaded, &weights);
    assert_same(&crate::checkpoint::read(&at).unwrap(), &to_hf(&weights).unwrap());
    assert_eq!(loaded.metadata["format"], "pt");
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 2);
    std::fs::remove_file(at.join("model.safetensors")).unwrap();
    assert!(read_folder(&at).unwrap_err().to_string().contains("no weights in this folder"));
}

/// Files that `transformers` wrote (`tests/data/hf/make.py`).
#[test]
fn a_folder_of_transformers_is_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf");
    let (config, weights) = read_folder(&folder).unwrap();
    assert_eq!((config.hidden_size, config.decoder_intermediate_size, config.grid()), (8, 12, (2, 2)));
    assert_eq!((config.layer_norm_eps, config.mask_ratio, config.norm_pix_loss), (1e-6, 0.5, true));
    assert_eq!(detect(&weights).unwrap(), Layout::Upstream);
    assert_eq!(weights.len(), 6 + 12 * 3 + 8, "tokens, tables, patches; three blocks; norms, embedding, prediction");
    assert!(weights.names().all(|n| !n.contains("layer") && !n.starts_with("vit.")));
    let modules = super::safetensors::read(folder.join("module_names.safetensors")).unwrap();
    assert!(modules.contains("vit.layers.0.attention.q_proj.weight"));
    assert_same(&to_upstream(modules).unwrap(), &weights);
}

#[test]
fn configurations_are_checked_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        HfConfig::read(folder.path())
    };
    let config = read(r#"{"model_type":"vit_mae","image_size":[96],"patch_size":[16,16],"initializer_range":0.02}"#);
    assert!(config.unwrap_err().to_string().contains("expected one number or two"));
    let config = read(r#"{"image_size":[96,64],"patch_size":[16,16],"initializer_range":0.02}"#).unwrap();
    assert_eq!((config.image_size, config.patch_size, config.hidden_size), ([96, 64], 16, 768));
    let text = serde_json::to_value(&config).unwrap();
    assert_eq!((&text["initializer_range"], &text["image_size"]), (&0.02.into(), &vec![96, 64].into()));
    for (text, message) in [
        ("{", "EOF"),
        (r#"{"model_type":"bert"}"#, "`model_type` is bert"),
        (r#"{"hidden_act":"relu"}"#, "`hidden_act` is relu"),
        (r#"{"patch_size":[16,8]}"#, "patches of 16 x 8"),
        (r#"{"patch_size":0}"#, "multiples of `patch_size`"),
        (r#"{"image_size":225}"#, "`image_size` is 225 x 225"),
        (r#"{"num_attention_heads":7}"#, "`hidden_size` is 768, expected a multiple of 7"),
        (r#"{"decoder_num_attention_heads":0}"#, "`decoder_hidden_size` is 512"),
        (r#"{"layer_norm_eps":0}"#, "`layer_norm_eps` is 0"),
        (r#"{"mask_ratio":1.0}"#, "`mask_ratio` is 1"),
        (r#"{"hidden_size":-5}"#, "config.json"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn names_are_a_bijection(width in 1usize..4, depth in 0usize..12, decoder in 1usize..4, decoder_depth in 0usize..4) {
        let ours = upstream(4 * width, depth, 4 * decoder, decoder_depth, 4);
        let hub = to_hf(&ours).unwrap();
        prop_assert!(hub.names().all(|n| !ours.contains(n)));
        assert_same(&to_upstream(hub).unwrap(), &ours);
    }
}
