//! Tests of reading, writing, naming and loading.

mod archives;
mod format;
mod loading;
mod naming;
mod runs;
mod sam2;
mod siglip;
mod tables;

use super::{StateDict, safetensors};
use crate::random::{normal, stream};
use crate::{DType, Device, Tensor};

/// Random values that depend on `seed` alone.
fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let values: Vec<f32> = normal(&mut stream(seed, 7), shape.iter().product()).into_iter().map(|x| x as f32).collect();
    Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

/// Upstream names and shapes of a small MAE.
fn upstream(width: usize, depth: usize, decoder: usize, decoder_depth: usize, patches: usize) -> StateDict {
    let mut dict = StateDict::new();
    let mut put = |name: String, shape: &[usize]| {
        let seed = dict.len() as u64;
        dict.insert(name, tensor(shape, seed)).unwrap();
    };
    put("cls_token".into(), &[1, 1, width]);
    put("pos_embed".into(), &[1, patches + 1, width]);
    put("mask_token".into(), &[1, 1, decoder]);
    put("decoder_pos_embed".into(), &[1, patches + 1, decoder]);
    put("patch_embed.proj.weight".into(), &[width, 3, 2, 2]);
    put("patch_embed.proj.bias".into(), &[width]);
    for (stack, depth, d) in [("blocks", depth, width), ("decoder_blocks", decoder_depth, decoder)] {
        for i in 0..depth {
            for (module, out, into) in
                [("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d)]
            {
                put(format!("{stack}.{i}.{module}.weight"), &[out, into]);
                put(format!("{stack}.{i}.{module}.bias"), &[out]);
            }
            for module in ["norm1", "norm2"] {
                put(format!("{stack}.{i}.{module}.weight"), &[d]);
                put(format!("{stack}.{i}.{module}.bias"), &[d]);
            }
        }
    }
    for (module, out, into) in [("decoder_embed", decoder, width), ("decoder_pred", 12, decoder)] {
        put(format!("{module}.weight"), &[out, into]);
        put(format!("{module}.bias"), &[out]);
    }
    for (module, d) in [("norm", width), ("decoder_norm", decoder)] {
        put(format!("{module}.weight"), &[d]);
        put(format!("{module}.bias"), &[d]);
    }
    dict
}

/// The same names with the same bytes, in any order.
fn assert_same(a: &StateDict, b: &StateDict) {
    let sorted = |d: &StateDict| {
        let mut names: Vec<String> = d.names().map(String::from).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(a), sorted(b));
    for (name, x) in a.iter() {
        let y = b.get(name).unwrap();
        assert_eq!((x.shape(), x.dtype()), (y.shape(), y.dtype()), "{name}");
        assert_eq!(StateDict::bytes_of(x).unwrap(), StateDict::bytes_of(y).unwrap(), "{name}");
    }
}

/// One tensor of every dtype, an empty one and a scalar, with metadata.
fn mixed() -> StateDict {
    let mut dict = StateDict::new();
    dict.insert("bytes", Tensor::from_slice(&[1u8, 2, 3], [3], &Device::Cpu).unwrap()).unwrap();
    let x = tensor(&[3, 5], 1);
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        dict.insert(format!("float.{dtype}"), x.cast(dtype).unwrap()).unwrap();
    }
    dict.insert("ints", Tensor::from_slice(&[-1i32, i32::MAX], [2, 1], &Device::Cpu).unwrap()).unwrap();
    dict.insert("empty", Tensor::from_slice::<f32>(&[], [0, 4], &Device::Cpu).unwrap()).unwrap();
    dict.insert("scalar", Tensor::from_slice(&[2.5f32], [], &Device::Cpu).unwrap()).unwrap();
    dict.insert("a \"quoted\" \u{e9}\n name", tensor(&[2], 2)).unwrap();
    dict.metadata.insert("config".into(), "{\"x\": 1}".into());
    dict.metadata.insert("format".into(), "pt".into());
    dict
}
