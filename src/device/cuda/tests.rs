//! The GPU device: what holds without a GPU, and, where there is one, memory, launches and matrix products.

use std::sync::Arc;

use super::probe::{fits, runs_on};
use super::{CudaBuffer, CudaDevice, KERNELS};
use crate::DType::{self, BF16, F16, F32};
use crate::Error;
use crate::device::gemm::{GemmSpec, Layout, Offsets, gemm, gemm_part};
use crate::device::{Device, Storage, host};

#[test]
fn code_runs_where_the_programming_guide_says() {
    for (arch, chip, runs) in [
        ("sm_80", (8, 0), true),
        ("sm_80", (8, 9), true),
        ("sm_89", (8, 0), false),
        ("sm_80", (9, 0), false),
        ("sm_90a", (9, 0), true),
        ("sm_90a", (10, 0), false),
        ("ptx_90", (9, 0), true),
        ("ptx_90", (12, 0), true),
        ("ptx_90", (8, 9), false),
        ("sm_120", (12, 1), true),
        ("cubin", (9, 0), false),
    ] {
        assert_eq!(runs_on(arch, chip), runs, "{arch} on {chip:?}");
    }
}

#[test]
fn a_chip_without_code_is_named_with_the_remedy() {
    let kernels: &[(&str, &[u8], &[&str])] = &[("copy", &[], &["sm_80", "ptx_90"]), ("norm", &[], &["sm_80"])];
    assert_eq!(fits((8, 6), kernels), Ok(()));
    let cause = fits((9, 0), kernels).expect_err("norm has no code for 9.0");
    assert!(cause.contains("kernels/norm.cu was compiled for sm_80"), "{cause}");
    assert!(cause.contains("OCELLUS_CUDA_ARCHS=sm_90"), "{cause}");
    assert!(fits((7, 5), &[]).expect_err("Turing").contains("compute capability 7.5, expected 8.0"));
}

#[test]
fn a_build_with_nvcc_embeds_every_kernel_file() {
    if KERNELS.is_empty() {
        return; // built without nvcc
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let files = std::fs::read_dir(folder).expect("the sources are beside the test").flatten().map(|entry| entry.path());
    let mut stems: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_string()))
        .collect();
    if cfg!(feature = "emulator") {
        stems.extend(["ptx", "ptx_sm90", "gemm_sm90"].map(String::from)); // probes that run on both sides
    }
    stems.sort();
    let mut embedded: Vec<_> = KERNELS
        .iter()
        .map(|(stem, fatbin, archs)| {
            assert!(!fatbin.is_empty() && !archs.is_empty(), "{stem}");
            stem.to_string()
        })
        .collect();
    embedded.sort();
    assert_eq!(embedded, stems);
}

/// The first GPU; tests that need one pass without it.
fn gpu() -> Option<Arc<CudaDevice>> {
    match CudaDevice::new(0) {
        Ok(device) => Some(device),
        Err(Error::DeviceUnavailable { .. }) => None,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn memory_is_written_filled_copied_and_counted() {
    let Some(device) = gpu() else { return };
    let bytes: Vec<u8> = (0..100_003u32).map(|i| (i * 7 % 251) as u8).collect();
    let read = |buffer: &CudaBuffer| {
        let mut out = vec![1; bytes.len()];
        buffer.download(&mut out).expect("download");
        out
    };
    let mut a = device.alloc(bytes.len()).expect("allocation");
    let mut b = device.alloc(bytes.len()).expect("allocation");
    assert!(device.usage().expect("usage").0 >= 2 * bytes.len());
    a.upload(&bytes).expect("upload");
    b.fill([0; 4]).expect("fill");
    assert!(read(&b).iter().all(|&x| x == 0));
    b.copy_from(&a).expect("copy");
    drop(a);
    assert_eq!(read(&b), bytes);
    assert!(b.upload(&bytes[1..]).is_err());
    let poisoned = host::with_poison(|| device.alloc(bytes.len())).expect("allocation");
    assert!(read(&poisoned).iter().all(|&x| x == 0xff));
    device.alloc(0).expect("an empty allocation");
    assert!(matches!(device.alloc(1 << 50), Err(Error::OutOfMemory { bytes, .. }) if bytes == 1 << 50));
}

#[test]
fn a_write_past_the_end_of_poisoned_memory_is_found() {
    let Some(device) = gpu() else { return };
    for bytes in [0, 1, 100_003] {
        let mut buffer = host::with_poison(|| device.alloc(bytes)).expect("allocation");
        let mut out = vec![0; bytes];
        buffer.download(&mut out).expect("nothing was written yet");
        buffer.set_guard(0).expect("write");
        let error = buffer.download(&mut out).expect_err("the guard is gone").to_string();
        assert!(error.contains(&format!("byte 0 behind an allocation of {bytes} bytes was written")), "{error}");
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(buffer)));
        assert!(dropped.is_err());
    }
}

#[test]
fn a_launch_that_cannot_be_says_why() {
    let Some(device) = gpu() else { return };
    let launch = |kernel, stem, block: u32, shared, args: &[u8]| {
        // SAFETY: every call is refused before the kernel starts.
        unsafe { device.launch(kernel, stem, [1; 3], [block, 1, 1], shared, args) }.expect_err("refused").to_string()
    };
    let no_file = launch("layer_norm_fwd_f32", "no_such_file", 32, 0, &[]);
    assert!(no_file.contains("this binary holds no kernels/no_such_file.cu"), "{no_file}");
    let no_kernel = launch("layer_norm_sideways_f32", "layer_norm", 32, 0, &[]);
    assert!(no_kernel.contains("kernels/layer_norm.cu does not define it"), "{no_kernel}");
    let short = launch("layer_norm_fwd_f32", "layer_norm", 32, 0, &[0; 4]);
    assert!(short.contains("the argument struct has 4 bytes, the kernel expects"), "{short}");
    let much = launch("layer_norm_fwd_f32", "layer_norm", 32, 1 << 20, &[0; 4]);
    assert!(much.contains("1048576 bytes of dynamic shared memory"), "{much}");
}

#[test]
fn time_between_marks_passes() {
    let Some(device) = gpu() else { return };
    let mut buffer = device.alloc(64 << 20).expect("allocation");
    let from = device.mark().expect("mark");
    buffer.fill([1; 4]).expect("fill");
    let to = device.mark().expect("mark");
    assert!(device.elapsed_ms(&from, &to).expect("elapsed") > 0.0);
}

/// Operands of small integers, so that every sum is exact in every type and both sides agree bit for bit.
#[test]
fn matrix_products_equal_the_host() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let integers = |n: usize, seed: usize| -> Vec<f64> {
        (0..n).map(|i| ((i * 2_654_435_761 + seed * 40_503) >> 7) as f64 % 3.0 - 1.0).collect()
    };
    let storage = |values: &[f64], dtype: DType, device: &Device| {
        let bytes: Vec<u8> = match dtype {
            F32 => values.iter().flat_map(|&x| (x as f32).to_ne_bytes()).collect(),
            BF16 => values.iter().flat_map(|&x| half::bf16::from_f64(x).to_ne_bytes()).collect(),
            _ => values.iter().flat_map(|&x| half::f16::from_f64(x).to_ne_bytes()).collect(),
        };
        let mut storage = Storage::alloc(device, bytes.len()).expect("allocation");
        storage.upload(&bytes).expect("upload");
        storage
    };
    for (m, n, k) in [(1, 1, 1), (7, 33, 65), (64, 128, 32), (129, 8, 100), (50, 1, 17), (16, 16, 0)] {
        for (input, output) in [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)] {
            for variant in 0..16 {
                let [trans_a, trans_b, add, with_bias] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
                if with_bias && (input != output || k == 0) {
                    continue;
                }
                let layout = Layout { m, n, k, trans_a, trans_b, input, output };
                let spec =
                    GemmSpec { layout, alpha: if k == 0 { 1.0 } else { 2.0 }, beta: if add { 1.0 } else { 0.0 } };
                let run = |device: &Device| {
                    let [a, b] =
                        [(m * k, 1), (k * n, 2)].map(|(len, seed)| storage(&integers(len, seed), input, device));
                    let bias = with_bias.then(|| storage(&integers(n, 3), input, device));
                    let mut d = storage(&integers(m * n, 4), output, device);
                    gemm(&spec, &a, &b, bias.as_ref(), &mut d).expect("product");
                    let mut bytes = vec![0; d.bytes()];
                    d.download(&mut bytes).expect("download");
                    bytes
                };
                assert_eq!(run(&device), run(&Device::Cpu), "{spec:?}, bias {with_bias}");
            }
        }
    }
}

/// Rows of larger matrices, at offsets that leave operands aligned to one element.
#[test]
fn products_of_parts_equal_the_host() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let values: Vec<f32> = (0..4000).map(|i| (i * 7 % 5) as f32 - 2.0).collect();
    for dtype in [F32, BF16, F16] {
        for (trans_a, at) in
            [(false, Offsets { a: 3 * 33, b: 17, d: 5 * 17 }), (true, Offsets { a: 9, b: 2 * 17, d: 17 })]
        {
            let layout = Layout { m: 20, n: 17, k: 33, trans_a, trans_b: false, input: dtype, output: F32 };
            let spec = GemmSpec { layout, alpha: 1.0, beta: 1.0 };
            let run = |device: &Device| {
                let tensor = |dtype| {
                    let t = crate::Tensor::from_slice(&values, [values.len()], &Device::Cpu).expect("values");
                    let t = t.cast(dtype).and_then(|t| t.to_device(device)).and_then(|t| t.deep_clone());
                    t.expect("tensor")
                };
                let (a, b, mut d) = (tensor(dtype), tensor(dtype), tensor(F32));
                gemm_part(&spec, at, a.storage(), b.storage(), d.storage_mut("test").expect("own")).expect("product");
                d.to_vec::<f32>().expect("download")
            };
            assert_eq!(run(&device), run(&Device::Cpu), "{dtype}, {at:?}");
        }
    }
}

#[test]
fn f32_products_are_not_rounded_to_tf32_by_default() {
    let Some(device) = gpu() else { return };
    let (m, n, k) = (64, 64, 64);
    let fine = 1.0f32 + 1.0 / 65536.0; // 16 bits of mantissa: TF32 keeps 10
    let full = |value: f32| {
        let mut buffer = device.alloc(m * n * 4).expect("allocation");
        buffer.upload(bytemuck::cast_slice(&vec![value; m * n])).expect("upload");
        buffer
    };
    let (a, b, d) = (full(fine), full(1.0), full(0.0));
    let layout = Layout { m, n, k, trans_a: false, trans_b: false, input: F32, output: F32 };
    let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
    // SAFETY: three allocations of the 64 x 64 floats that the layout states.
    unsafe { device.gemm(&spec, a.ptr(), b.ptr(), None, d.ptr()) }.expect("product");
    let mut out = vec![0.0f32; m * n];
    d.download(bytemuck::cast_slice_mut(&mut out)).expect("download");
    assert!(out.iter().all(|&x| x == 64.0 * fine), "{}", out[0]);
}
