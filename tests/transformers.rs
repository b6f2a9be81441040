//! Folders of weights in the hands of `transformers` itself: it loads what this crate writes, computes the same, and what it
//! writes is read back.
//!
//! `OCELLUS_PYTHON` names a Python with `torch` and `transformers`; without it `python3` is tried, and where that lacks them
//! the test says so and is not run.

use std::path::Path;
use std::process::Command;

use ocellus::checkpoint::{StateDict, safetensors};
use ocellus::nn::{Builder, Module};
use ocellus::ops::gelu::Form;
use ocellus::recipes::siglip::{Siglip, Sizes, TokenIds, Tower, load};
use ocellus::{DType, Device, Tape, Tensor, Var};

const SCRIPT: &str = r#"
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import SiglipModel
folder, inputs, outputs, again = sys.argv[1:]
model, info = SiglipModel.from_pretrained(folder, output_loading_info=True)
wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
assert not wrong, f"not everything was loaded: {wrong}"
x = load_file(inputs)
with torch.no_grad():
    y = model.eval()(input_ids=x["input_ids"].long(), pixel_values=x["pixel_values"])
names = ["logits_per_image", "image_embeds", "text_embeds"]
save_file({n: getattr(y, n).contiguous() for n in names}, outputs)
model.save_pretrained(again)
"#;

/// A Python that has what the script imports. Without `OCELLUS_PYTHON`, none is no failure.
fn python() -> Option<String> {
    let named = std::env::var("OCELLUS_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let has = Command::new(&python).args(["-c", "import torch, transformers, safetensors.torch"]).output();
    let has = has.is_ok_and(|output| output.status.success());
    assert!(has || named.is_none(), "OCELLUS_PYTHON={python} cannot import torch, transformers and safetensors");
    has.then_some(python)
}

fn values(shape: &[usize], salt: usize) -> Tensor {
    let wave = |i: usize| ((i * 37 + salt * 101) % 97) as f32 / 48.0 - 1.0;
    let all: Vec<f32> = (0..shape.iter().product()).map(wave).collect();
    Tensor::from_slice(&all, shape, &Device::Cpu).unwrap()
}

fn normalised(x: &Var, count: usize) -> Vec<f64> {
    let x = x.value().to_f64().unwrap();
    let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.chunks(x.len() / count).flat_map(|row| row.iter().map(|x| x / length(row)).collect::<Vec<_>>()).collect()
}

#[test]
fn transformers_loads_what_is_written_and_computes_the_same() {
    let Some(python) = python() else {
        eprintln!("not run: no Python with torch and transformers");
        return;
    };
    for (image, patch, gelu) in [(24, 8, Form::Tanh), (26, 6, Form::Erf)] {
        let tower = |width, depth, heads, hidden| Tower { width, depth, heads, hidden, gelu };
        let sizes = Sizes {
            image_size: [image; 2],
            patch_size: patch,
            in_chans: 3,
            vision: tower(24, 2, 3, 40),
            text: tower(16, 2, 2, 28),
            vocab_size: 31,
            context_len: 7,
            embed_dim: 24,
            vision_head: false,
            eps: 1e-6,
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut model = Siglip::new(&Builder::new(&Device::Cpu, DType::F32, 3), &sizes).unwrap();
        for (salt, p) in model.params_mut().into_iter().enumerate().filter(|(_, p)| p.name().ends_with("bias")) {
            p.set(&values(p.master.shape(), salt)).unwrap();
        }
        load::save(&at("ours"), &model, &sizes).unwrap();
        let ids: Vec<i32> = (0..21).map(|i| i * i % 31).collect();
        let mut inputs = StateDict::new();
        inputs.insert("pixel_values", values(&sizes.images(3), 7)).unwrap();
        inputs.insert("input_ids", Tensor::from_slice(&ids, [3, 7], &Device::Cpu).unwrap()).unwrap();
        safetensors::write(at("inputs.safetensors"), &inputs).unwrap();

        let paths = ["ours", "inputs.safetensors", "outputs.safetensors", "theirs"].map(at);
        let output = Command::new(&python).args(["-c", SCRIPT]).args(&paths).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let none = Tape::no_grad();
        let images = Var::constant(inputs.require("pixel_values").unwrap().clone());
        let x = normalised(&model.vision.forward(&none, &images, None).unwrap(), 3);
        let ids = TokenIds::new(&ids, 7, 31, &Device::Cpu).unwrap();
        let y = normalised(&model.text.forward(&none, &ids).unwrap(), 3);
        let theirs = safetensors::read(&paths[2]).unwrap();
        let close = |name: &str, ours: &[f64], bound: f64| {
            let theirs = theirs.require(name).unwrap().to_f64().unwrap();
            let worst = ours.iter().zip(&theirs).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(ours.len() == theirs.len() && worst < bound, "{name}: {worst:.1e}");
        };
        close("image_embeds", &x, 2e-6);
        close("text_embeds", &y, 2e-6);
        let (scale, bias) = (model.logit_scale.master.item().unwrap().exp(), model.logit_bias.master.item().unwrap());
        let dot = |i: usize, j: usize| (0..24).map(|d| x[i * 24 + d] * y[j * 24 + d]).sum::<f64>();
        let logits: Vec<f64> = (0..9).map(|at| scale * dot(at / 3, at % 3) + bias).collect();
        close("logits_per_image", &logits, 1e-4);
        same(&model, &sizes, &paths[3]);
    }
}

/// What `transformers` saved is the same model.
fn same(model: &Siglip, sizes: &Sizes, folder: &Path) {
    let (back, found) = load::model(folder, &Device::Cpu, DType::F32, None).unwrap();
    assert_eq!(&found, sizes);
    for (a, b) in model.params().into_iter().zip(back.params()) {
        assert_eq!((a.name(), a.master.to_f64().unwrap()), (b.name(), b.master.to_f64().unwrap()));
    }
}
