//! What the tests of this module share: noise images, a checksum, the golden files.

use std::path::PathBuf;

use super::image::Image;

/// An image of pseudo-random bytes (a linear congruential generator from 1, high bytes), so that another program
/// can make the same one.
pub fn noise(width: usize, height: usize) -> Image {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Image::new(width, height, (0..width * height * 3).map(|_| byte()).collect()).unwrap()
}

/// 64-bit FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Bytes of a golden file of the MAE set, from the folder in `OCELLUS_GOLDENS` or else `../shared/goldens`; `None`
/// where there is none.
pub fn golden(name: &str) -> Option<Vec<u8>> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens");
    let root = std::env::var_os("OCELLUS_GOLDENS").map_or_else(default, PathBuf::from);
    std::fs::read(root.join("mae").join(name)).ok()
}

/// An i64 tensor.
pub fn ints_of(file: &safetensors::SafeTensors, name: &str) -> Vec<i64> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::I64);
    tensor.data().chunks_exact(8).map(|v| i64::from_le_bytes(v.try_into().unwrap())).collect()
}

/// An i64 tensor of small values as bytes.
pub fn bytes_of(file: &safetensors::SafeTensors, name: &str) -> Vec<u8> {
    ints_of(file, name).into_iter().map(|v| u8::try_from(v).unwrap()).collect()
}

/// An f32 tensor.
pub fn floats_of(file: &safetensors::SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    tensor.data().chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect()
}

/// The configuration that a golden file carries.
pub fn config_of(bytes: &[u8], key: &str) -> serde_json::Value {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}
