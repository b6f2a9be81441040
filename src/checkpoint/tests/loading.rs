//! Putting dictionaries into parameters.

use super::super::{LoadOptions, StateDict, load_into};
use super::{tensor, upstream};
use crate::nn::pos_embed::resize;
use crate::{DType, Device, Error, Param, Tensor};

/// Parameters of the same names and shapes, all zero.
fn zeroed(dict: &StateDict, compute: DType) -> Vec<Param> {
    let zero = |t: &Tensor| Tensor::zeros(t.shape().clone(), DType::F32, &Device::Cpu).unwrap();
    dict.iter().map(|(name, t)| Param::new(name, zero(t), compute).unwrap()).collect()
}

fn load(params: &mut [Param], dict: &StateDict, options: &LoadOptions) -> crate::Result<super::super::LoadReport> {
    let mut params: Vec<&mut Param> = params.iter_mut().collect();
    load_into(&mut params, dict, options)
}

fn value(params: &[Param], name: &str) -> Tensor {
    params.iter().find(|p| p.name() == name).unwrap().master.clone()
}

#[test]
fn everything_is_set_and_the_compute_copy_follows() {
    let dict = upstream(8, 1, 4, 1, 4);
    let mut params = zeroed(&dict, DType::BF16);
    let report = load(&mut params, &dict, &LoadOptions::default()).unwrap();
    assert_eq!(report.loaded.len(), dict.len());
    assert!(report.missing.is_empty() && report.unexpected.is_empty() && report.resized.is_empty());
    report.require(|_| true).unwrap();
    for p in &params {
        let given = dict.require(p.name()).unwrap();
        assert_eq!(p.master.to_vec::<f32>().unwrap(), given.to_vec::<f32>().unwrap());
        assert_eq!(p.value().to_f64().unwrap(), given.cast(DType::BF16).unwrap().to_f64().unwrap());
    }
    assert_eq!(StateDict::from_params(&params).unwrap().names().collect::<Vec<_>>(), dict.names().collect::<Vec<_>>());
}

#[test]
fn half_precision_files_are_widened() {
    let mut dict = StateDict::new();
    dict.insert("norm.weight", tensor(&[3], 0).cast(DType::F16).unwrap()).unwrap();
    let mut params = zeroed(&dict, DType::F32);
    load(&mut params, &dict, &LoadOptions::default()).unwrap();
    assert_eq!(value(&params, "norm.weight").dtype(), DType::F32);
    assert_eq!(value(&params, "norm.weight").to_f64().unwrap(), dict.require("norm.weight").unwrap().to_f64().unwrap());
}

#[test]
fn an_encoder_only_file_says_so() {
    let full = upstream(8, 1, 4, 1, 4);
    let mut encoder = StateDict::new();
    for (name, t) in full.iter().filter(|(n, _)| !n.starts_with("decoder") && *n != "mask_token") {
        encoder.insert(name, t.clone()).unwrap();
    }
    encoder.insert("head.weight", tensor(&[10, 8], 0)).unwrap();
    let mut params = zeroed(&full, DType::F32);
    let report = load(&mut params, &encoder, &LoadOptions::default()).unwrap();
    assert_eq!(report.unexpected, ["head.weight"]);
    assert_eq!(report.missing.len() + report.loaded.len(), full.len());
    let text = report.to_string();
    assert!(
        text.contains("left as initialised: mask_token") && text.contains("1 not used by the model: head.weight"),
        "{text}"
    );
    let error = report.require(|_| true).unwrap_err().to_string();
    assert!(error.contains("encoder-only") && error.contains("mask_token") && error.contains("more"), "{error}");
    report.require(|n| !n.starts_with("decoder") && n != "mask_token").unwrap();
    assert_eq!(value(&params, "mask_token").to_f64().unwrap(), [0.0; 4]);
}

#[test]
fn another_shape_is_an_error_and_nothing_is_set() {
    let file = upstream(8, 2, 4, 1, 4);
    let mut params = zeroed(&upstream(12, 2, 4, 1, 4), DType::F32);
    let error = load(&mut params, &file, &LoadOptions::default()).unwrap_err().to_string();
    let expected = "tensor `cls_token` has shape [1, 1, 8], expected [1, 1, 12]; the file looks like width 8, 2 blocks, \
                    patches of 2, a decoder of width 4 with 1 blocks";
    assert!(error.ends_with(expected), "{error}");

    let mut last = upstream(8, 2, 4, 1, 4);
    last.insert("head.bias", tensor(&[3], 0)).unwrap();
    let mut params = zeroed(&last, DType::F32);
    params.last_mut().unwrap().master = Tensor::zeros([4], DType::F32, &Device::Cpu).unwrap();
    assert!(load(&mut params, &last, &LoadOptions::default()).is_err());
    assert!(params.iter().all(|p| p.master.to_f64().unwrap().iter().all(|x| *x == 0.0)));
}

#[test]
fn the_geometry_of_the_file_is_named() {
    let mut file = StateDict::new();
    file.insert("patch_embed.proj.weight", Tensor::zeros([1024, 3, 16, 16], DType::F32, &Device::Cpu).unwrap())
        .unwrap();
    file.insert("blocks.23.norm1.bias", Tensor::zeros([1024], DType::F32, &Device::Cpu).unwrap()).unwrap();
    let mut param = [Param::new("blocks.23.norm1.bias", tensor(&[768], 0), DType::F32).unwrap()];
    let error = load(&mut param, &file, &LoadOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("[1024], expected [768]; the file looks like width 1024, 24 blocks, patches of 16, no decoder"),
        "{error}"
    );
}

#[test]
fn integers_are_no_weights() {
    let mut file = StateDict::new();
    file.insert("x", Tensor::from_slice(&[1i32], [1], &Device::Cpu).unwrap()).unwrap();
    let mut param = [Param::new("x", tensor(&[1], 0), DType::F32).unwrap()];
    let error = load(&mut param, &file, &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { cause, .. } if cause.contains("dtype i32")), "{error}");
}

#[test]
fn position_tables_of_another_grid_are_resized() {
    let file = upstream(8, 1, 4, 1, 16);
    let mut params = zeroed(&upstream(8, 1, 4, 1, 9), DType::F32);
    let report = load(&mut params, &file, &LoadOptions::default()).unwrap();
    let resized = [("pos_embed", (4, 4), (3, 3)), ("decoder_pos_embed", (4, 4), (3, 3))];
    assert_eq!(report.resized, resized.map(|(n, a, b)| (n.to_string(), a, b)));
    assert!(report.to_string().contains("pos_embed resized from 4 x 4 to 3 x 3 patches"));
    let expected = resize(file.require("pos_embed").unwrap(), (4, 4), (3, 3)).unwrap();
    assert_eq!(value(&params, "pos_embed").to_f64().unwrap(), expected.to_f64().unwrap());

    // The same number of patches in another arrangement is another grid.
    let mut params = zeroed(&file, DType::F32);
    let options = LoadOptions { model_grid: Some((2, 8)), ..LoadOptions::default() };
    let report = load(&mut params, &file, &options).unwrap();
    assert_eq!(report.resized.len(), 2);
    let expected = resize(file.require("pos_embed").unwrap(), (4, 4), (2, 8)).unwrap();
    assert_eq!(value(&params, "pos_embed").to_f64().unwrap(), expected.to_f64().unwrap());

    // A rectangle has to be stated: 12 patches are no square.
    let file = upstream(8, 1, 4, 1, 12);
    let mut params = zeroed(&upstream(8, 1, 4, 1, 9), DType::F32);
    assert!(
        load(&mut params, &file, &LoadOptions::default()).unwrap_err().to_string().contains("`pos_embed` has shape")
    );
    let options = LoadOptions { file_grid: Some((3, 4)), ..LoadOptions::default() };
    assert_eq!(load(&mut params, &file, &options).unwrap().resized[0].1, (3, 4));
}
