//! The GPU device as far as this machine has one. Without a GPU: opening it fails with an error that names the cause
//! and does not panic. With one: memory, launches' errors and matrix products against the host.

use ocellus::{Device, Error};

/// The GPU, or the reason for its absence after checking that it is a good one.
fn gpu() -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(Error::DeviceUnavailable { device, cause }) => {
            assert_eq!(device, "cuda:0");
            let causes = ["no feature `cuda`", "nvcc was missing", "NVIDIA driver", "cuBLASLt", "compute capability"];
            assert!(causes.iter().any(|known| cause.contains(known)), "unknown cause: {cause}");
            None
        }
        Err(other) => panic!("expected DeviceUnavailable, got {other}"),
    }
}

#[test]
fn a_missing_gpu_is_a_typed_error() {
    if gpu().is_some() {
        let error = Device::cuda(4096).expect_err("no machine has so many");
        assert!(error.to_string().contains("ordinal below"), "{error}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn one_ordinal_is_one_device() {
    let Some(device) = gpu() else { return };
    assert!(device == Device::cuda(0).expect("opened a moment ago"));
}
