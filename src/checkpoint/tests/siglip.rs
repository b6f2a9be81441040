//! SigLIP's names in all layouts: translations are exact and go back; archives of NumPy.

use std::io::Write;

use super::super::arrange::{join, permuted, split};
use super::super::siglip::{HfConfig, Layout, detect, heads, is_naflex, to_big_vision, to_hf, to_ours};
use super::super::{StateDict, npz, read, safetensors};
use super::{assert_same, tensor};
use crate::{DType, Device, Tensor};

/// Width, heads, hidden units and blocks of image and text tower.
const TOWERS: [[usize; 4]; 2] = [[6, 3, 10, 2], [4, 2, 5, 1]];
const HEADS: [usize; 2] = [3, 2];

/// This crate's names and shapes of a small model.
fn ours() -> StateDict {
    let mut dict = StateDict::new();
    let mut put = |name: String, shape: &[usize]| {
        let seed = dict.len() as u64;
        dict.insert(name, tensor(shape, seed)).unwrap();
    };
    for (model, [d, _, hidden, depth]) in ["vision_model", "text_model"].into_iter().zip(TOWERS) {
        for i in 0..depth {
            let block = format!("{model}.encoder.layers.{i}");
            for (module, out, into) in [
                ("self_attn.qkv_proj", 3 * d, d),
                ("self_attn.out_proj", d, d),
                ("mlp.fc1", hidden, d),
                ("mlp.fc2", d, hidden),
            ] {
                put(format!("{block}.{module}.weight"), &[out, into]);
                put(format!("{block}.{module}.bias"), &[out]);
            }
            for norm in ["layer_norm1", "layer_norm2"] {
                put(format!("{block}.{norm}.weight"), &[d]);
                put(format!("{block}.{norm}.bias"), &[d]);
            }
        }
    }
    let ([d, _, hidden, _], [t, ..]) = (TOWERS[0], TOWERS[1]);
    let vision = |rest: &str| format!("vision_model.{rest}");
    for (module, out, into) in [
        ("attention.q_proj", d, d),
        ("attention.kv_proj", 2 * d, d),
        ("attention.out_proj", d, d),
        ("mlp.fc1", hidden, d),
        ("mlp.fc2", d, hidden),
    ] {
        put(vision(&format!("head.{module}.weight")), &[out, into]);
        put(vision(&format!("head.{module}.bias")), &[out]);
    }
    for (norm, width) in
        [("vision_model.head.layernorm", d), ("vision_model.post_layernorm", d), ("text_model.final_layer_norm", t)]
    {
        put(format!("{norm}.weight"), &[width]);
        put(format!("{norm}.bias"), &[width]);
    }
    put(vision("head.probe"), &[1, 1, d]);
    put(vision("embeddings.patch_embedding.weight"), &[d, 3, 2, 2]);
    put(vision("embeddings.patch_embedding.bias"), &[d]);
    put(vision("embeddings.position_embedding.weight"), &[4, d]);
    put("text_model.embeddings.token_embedding.weight".into(), &[9, t]);
    put("text_model.embeddings.position_embedding.weight".into(), &[5, t]);
    put("text_model.head.weight".into(), &[d, t]);
    put("text_model.head.bias".into(), &[d]);
    put("logit_scale".into(), &[1]);
    put("logit_bias".into(), &[1]);
    dict
}

fn mapped(dict: &StateDict, f: impl Fn(&str, &Tensor) -> Option<(String, Tensor)>) -> StateDict {
    let mut out = StateDict::new();
    for (name, t) in dict.iter() {
        if let Some((name, t)) = f(name, t) {
            out.insert(name, t).unwrap();
        }
    }
    out
}

#[test]
fn translations_go_back_to_the_bit() {
    let ours = ours();
    let hub = to_hf(&ours).unwrap();
    assert_eq!(detect(&ours).unwrap(), Layout::HuggingFace);
    assert_eq!(hub.len(), ours.len() + 3 * 2 * 2 - 2);
    assert_eq!(hub.require("vision_model.head.attention.in_proj_weight").unwrap().shape()[..], [18, 6]);
    assert_same(&to_ours(&hub).unwrap(), &ours);
    assert_same(&to_hf(&to_ours(&hub).unwrap()).unwrap(), &hub);
    assert_same(&to_ours(&ours).unwrap(), &ours);
    let bv = to_big_vision(&ours, HEADS).unwrap();
    assert_eq!((detect(&bv).unwrap(), heads(&bv)), (Layout::BigVision, Some(HEADS)));
    assert_eq!(heads(&hub), None);
    assert_same(&to_ours(&bv).unwrap(), &ours);
    // From big_vision to transformers and back.
    let through = to_ours(&to_hf(&to_ours(&bv).unwrap()).unwrap()).unwrap();
    assert_same(&to_big_vision(&through, HEADS).unwrap(), &bv);
}

/// The numbers of tensors of the published files.
#[test]
fn published_files_have_the_published_number_of_tensors() {
    let hub = to_hf(&ours()).unwrap();
    let blocks = hub.names().filter(|n| n.contains(".encoder.layers.")).count();
    for (depth, expected) in [(12, 408), (24, 792), (27, 888)] {
        assert_eq!(hub.len() - blocks + 2 * depth * (blocks / 3), expected);
    }
}

/// Elements where flax has them: kernels `[in, out]`, heads as an axis, convolutions with channels last.
#[test]
fn layouts_of_flax_are_turned() {
    let (ours, bv) = (ours(), to_big_vision(&ours(), HEADS).unwrap());
    let pair = |name: &str, theirs: &str| {
        let value = |dict: &StateDict, name: &str| dict.require(name).unwrap().to_vec::<f32>().unwrap();
        (value(&ours, name), value(&bv, theirs))
    };
    let block = "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0";
    let (fused, key) = pair("vision_model.encoder.layers.1.self_attn.qkv_proj.weight", &format!("{block}/key/kernel"));
    let (input, head, unit) = (4, 2, 1); // [6, 3, 2]
    assert_eq!(key[(input * 3 + head) * 2 + unit], fused[(6 + head * 2 + unit) * 6 + input]);
    let (proj, out) = pair("vision_model.encoder.layers.1.self_attn.out_proj.weight", &format!("{block}/out/kernel"));
    assert_eq!(out[(head * 2 + unit) * 6 + 5], proj[5 * 6 + head * 2 + unit]);
    let (conv, kernel) = pair("vision_model.embeddings.patch_embedding.weight", "img/embedding/kernel");
    let (d, c, py, px) = (5, 2, 1, 0);
    assert_eq!(kernel[((py * 2 + px) * 3 + c) * 6 + d], conv[((d * 3 + c) * 2 + py) * 2 + px]);
    assert_eq!(bv.require("img/pos_embedding").unwrap().shape()[..], [1, 4, 6]);
    assert_eq!(bv.require(&format!("{block}/value/bias")).unwrap().shape()[..], [3, 2]);
}

/// Files saved from a scan over the blocks, with the prefix of newer ones and the second text table of older ones.
#[test]
fn other_files_of_big_vision_are_read() {
    let ours = ours();
    let bv = to_big_vision(&ours, HEADS).unwrap();
    let stacked = |name: &str| {
        let (stack, inside) = name.split_once("encoderblock_")?;
        let (at, inside) = inside.split_once('/')?;
        Some((format!("{stack}encoderblock/{inside}"), at.parse::<usize>().ok()?))
    };
    let mut scanned = StateDict::new();
    for (name, t) in bv.iter() {
        match stacked(name) {
            None => scanned.insert(format!("params/{name}"), t.clone()).unwrap(),
            Some((all, 0)) => {
                let depth = if name.starts_with("img/") { 2 } else { 1 };
                let row = |i: usize| {
                    let block = bv.require(&name.replace("encoderblock_0", &format!("encoderblock_{i}"))).unwrap();
                    block.reshape([&[1], &block.shape()[..]].concat()).unwrap()
                };
                let rows: Vec<Tensor> = (0..depth).map(row).collect();
                scanned.insert(format!("params/{all}"), join(&rows.iter().collect::<Vec<_>>()).unwrap()).unwrap();
            }
            Some(_) => {}
        }
    }
    assert_eq!((detect(&scanned).unwrap(), heads(&scanned)), (Layout::BigVision, Some(HEADS)));
    assert_same(&to_ours(&scanned).unwrap(), &ours);

    let mut old = mapped(&bv, |name, t| Some((name.to_string(), t.clone())));
    let second = tensor(&[1, 5, 4], 99);
    old.insert("txt/Encoder_0/pos_embedding", second.clone()).unwrap();
    let table = "text_model.embeddings.position_embedding.weight";
    let sum = to_ours(&old).unwrap().require(table).unwrap().to_vec::<f32>().unwrap();
    let (first, second) = (ours.require(table).unwrap().to_vec::<f32>().unwrap(), second.to_vec::<f32>().unwrap());
    assert!(sum.iter().zip(first.iter().zip(second)).all(|(s, (a, b))| (s - (a + b)).abs() <= 1e-6));
    assert_eq!(to_ours(&old).unwrap().len(), ours.len());
}

/// open_clip's spelling of the same model: fused in both towers, scalars without an axis.
#[test]
fn open_clip_is_read() {
    let pairs = [
        ("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
        ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
        ("vision_model.post_layernorm", "visual.trunk.norm"),
        ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
        ("vision_model.head.attention.q_proj", "visual.trunk.attn_pool.q"),
        ("vision_model.head.attention.kv_proj", "visual.trunk.attn_pool.kv"),
        ("vision_model.head.attention.out_proj", "visual.trunk.attn_pool.proj"),
        ("vision_model.head.layernorm", "visual.trunk.attn_pool.norm"),
        ("vision_model.head.mlp", "visual.trunk.attn_pool.mlp"),
        ("vision_model.encoder.layers", "visual.trunk.blocks"),
        ("text_model.embeddings.token_embedding", "text.token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
        ("text_model.encoder.layers", "text.transformer.resblocks"),
        ("text_model.final_layer_norm", "text.ln_final"),
        ("text_model.head", "text.text_projection"),
    ];
    let image = [("layer_norm", "norm"), ("self_attn.qkv_proj", "attn.qkv"), ("self_attn.out_proj", "attn.proj")];
    let text = [
        ("layer_norm", "ln_"),
        ("self_attn.qkv_proj.", "attn.in_proj_"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    let ours = ours();
    let clip = mapped(&ours, |name, t| {
        let outer = pairs.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        let renamed = outer.unwrap_or_else(|| name.to_string());
        let inner: &[(&str, &str)] = if name.starts_with("text_model.encoder") { &text } else { &image };
        let renamed = match name.contains(".encoder.") {
            true => inner.iter().fold(renamed, |n, (from, to)| n.replace(from, to)),
            false => renamed,
        };
        let t = match name {
            "logit_scale" | "logit_bias" => t.reshape([]).unwrap(),
            "vision_model.embeddings.position_embedding.weight" => t.reshape([1, 4, 6]).unwrap(),
            _ => t.clone(),
        };
        Some((renamed, t))
    });
    assert!(clip.contains("text.transformer.resblocks.0.attn.in_proj_weight"));
    assert!(clip.contains("visual.trunk.blocks.1.attn.qkv.bias"));
    assert_eq!(detect(&clip).unwrap(), Layout::OpenClip);
    assert_same(&to_ours(&clip).unwrap(), &ours);
}

#[test]
fn faults_are_named() {
    let hub = to_hf(&ours()).unwrap();
    let error = |dict: &StateDict| to_ours(dict).unwrap_err().to_string();
    let key = "text_model.encoder.layers.0.self_attn.k_proj.weight";
    let without = mapped(&hub, |n, t| (n != key).then(|| (n.to_string(), t.clone())));
    assert!(error(&without).contains(&format!("`{key}` is missing")));
    let wrong = mapped(&hub, |n, t| Some((n.to_string(), if n == key { tensor(&[4, 5], 0) } else { t.clone() })));
    assert!(error(&wrong).contains("expected equal ones"), "{}", error(&wrong));
    let stacked = "vision_model.head.attention.in_proj_bias";
    let uneven = mapped(&hub, |n, t| Some((n.to_string(), if n == stacked { tensor(&[17], 0) } else { t.clone() })));
    assert!(error(&uneven).contains("[17], expected the rows of 3 equal parts"), "{}", error(&uneven));
    let mut two = mapped(&hub, |n, t| Some((n.to_string(), t.clone())));
    two.insert("img/embedding/bias", tensor(&[6], 0)).unwrap();
    assert!(error(&two).contains("different layouts"));
    let mut none = StateDict::new();
    none.insert("cls_token", tensor(&[1, 1, 2], 0)).unwrap();
    assert!(error(&none).contains("no SigLIP model") && error(&none).contains("`cls_token`"));
    assert!(to_big_vision(&ours(), [4, 2]).unwrap_err().to_string().contains("a multiple of 4 heads"));
    let mut more = ours();
    more.insert("visual_projection.weight", tensor(&[6, 6], 0)).unwrap();
    assert!(to_hf(&more).unwrap_err().to_string().contains("no place"));
    assert!(to_big_vision(&more, HEADS).unwrap().contains("img/head/kernel"));
}

/// The linear patch embedding of NaFlex reads channels last.
#[test]
fn naflex_becomes_a_convolution() {
    let (ours, hub) = (ours(), to_hf(&ours()).unwrap());
    let patches = "vision_model.embeddings.patch_embedding.weight";
    let linear = mapped(&hub, |n, t| {
        let t = if n == patches { permuted(t, &[0, 2, 3, 1]).unwrap().reshape([6, 12]).unwrap() } else { t.clone() };
        Some((n.to_string(), t))
    });
    assert!(is_naflex(&linear) && !is_naflex(&hub));
    assert_same(&to_ours(&linear).unwrap(), &ours);
    let wrong =
        mapped(&linear, |n, t| Some((n.to_string(), if n == patches { tensor(&[6, 13], 0) } else { t.clone() })));
    assert!(to_ours(&wrong).unwrap_err().to_string().contains("[6, 13], expected square patches"));
}

fn archive(members: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".npz").tempfile().unwrap();
    let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    file
}

fn npy(t: &Tensor) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    super::super::npy::write(file.path(), t).unwrap();
    std::fs::read(file.path()).unwrap()
}

#[test]
fn archives_of_numpy_are_read() {
    let bv = to_big_vision(&ours(), HEADS).unwrap();
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let members: Vec<(String, Vec<u8>)> = bv.iter().map(|(n, t)| (format!("{n}.npy"), npy(t))).collect();
        let members: Vec<(&str, Vec<u8>)> = members.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        let file = archive(&members, method);
        assert_same(&read(file.path()).unwrap(), &bv);
        // Every cut of the file is an error, never a panic and never fewer tensors.
        let bytes = std::fs::read(file.path()).unwrap();
        for cut in 0..20 {
            std::fs::write(file.path(), &bytes[..bytes.len() * cut / 20]).unwrap();
            assert!(npz::read(file.path()).is_err());
        }
    }
    let x = npy(&tensor(&[4], 0));
    let error = |name: &str, bytes: &[u8]| {
        let file = archive(&[(name, bytes.to_vec())], zip::CompressionMethod::Stored);
        npz::read(file.path()).unwrap_err().to_string()
    };
    assert!(error("a.txt", &x).contains("`a.txt` is no .npy array"));
    assert!(error("a.npy", &x[..x.len() - 1]).contains("member `a.npy`: 15 bytes of data"));
    assert!(error("a.npy", b"text").contains("member `a.npy`: truncated"));
}

#[test]
fn configurations_have_the_defaults_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let config = |text: &str| {
        std::fs::write(&path, text).unwrap();
        HfConfig::read(folder.path())
    };
    let published = r#"{"model_type": "siglip", "initializer_factor": 1.0, "text_config": {"vocab_size": 32000},
        "vision_config": {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304}}"#;
    let read = config(published).unwrap();
    assert_eq!((read.text_config.max_position_embeddings, read.text_config.projection_size), (64, None));
    assert_eq!((read.vision_config.image_size, read.vision_config.num_hidden_layers), ([384, 384], 12));
    assert_eq!(read.other["initializer_factor"], 1.0);
    let text = serde_json::to_string(&read).unwrap();
    assert_eq!(config(&text).unwrap(), read);
    assert_eq!(read.image_size(), [384, 384]);
    assert_eq!(config(r#"{"model_type": "siglip2"}"#).unwrap().image_size(), [256, 256]);
    assert_eq!(config(r#"{"vision_config": {"num_patches": 9}}"#).unwrap().image_size(), [48, 48]);
    assert_eq!(config("{}").unwrap().text_config.hidden_act, "gelu_pytorch_tanh");
    for (text, message) in [
        (r#"{"model_type": "clip"}"#, "`model_type` is clip, expected siglip"),
        (r#"{"text_config": {"hidden_act": "relu"}}"#, "`text_config.hidden_act` is relu"),
        (r#"{"vision_config": {"layer_norm_eps": 1e-5}}"#, "expected one positive number"),
        (r#"{"vision_config": {"patch_size": [4, 5]}}"#, "expected square ones"),
    ] {
        let error = config(text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// What is kept in files is what a run writes: this crate's names in a safetensors file.
#[test]
fn files_keep_names_and_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let ours = ours();
    safetensors::write(&path, &ours).unwrap();
    assert_same(&super::super::siglip::read(&path).unwrap(), &ours);
    let half = mapped(&ours, |n, t| Some((n.to_string(), t.cast(DType::BF16).unwrap())));
    assert_same(&to_ours(&to_hf(&half).unwrap()).unwrap(), &half);
    assert_eq!(split(&tensor(&[2], 0), 2).unwrap()[0].device(), &Device::Cpu);
}
