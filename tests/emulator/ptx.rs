//! The instructions of `kernels/ptx.cuh`, bit for bit against Rust: on the emulator in every schedule, and on a GPU if
//! there is one, so that what the emulator takes for an instruction is what the instruction does.

use half::{bf16, f16};
use ocellus::DType;

use super::*;

/// `struct PtxProbe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct PtxProbe {
    x: u64,
    c: u64,
    y: u64,
}

/// Runs `kernel` in one warp on every device and schedule; all give the same `words` words.
fn run(kernel: &'static str, dtype: DType, x: &[u16], c: &[u32], words: usize) -> Vec<u32> {
    let on = |device: &Device| {
        let upload = |bytes: &[u8]| {
            let mut storage = Storage::alloc(device, bytes.len().max(16)).unwrap();
            storage.upload(&[bytes, &vec![0; 16usize.saturating_sub(bytes.len())]].concat()).unwrap();
            storage
        };
        let (x, c) = (upload(bytemuck::cast_slice(x)), upload(bytemuck::cast_slice(c)));
        let y = Storage::alloc(device, 4 * words).unwrap();
        let args = PtxProbe { x: x.ptr(), c: c.ptr(), y: y.ptr() };
        // SAFETY: the buffers have the extents that the kernel's comment states and outlive the download below.
        unsafe { device.launch("ptx", kernel, dtype, Launch::linear(1, 32), &args) }.unwrap();
        let mut out = vec![0u32; words];
        y.download(bytemuck::cast_slice_mut(&mut out)).unwrap();
        out
    };
    let expected = on(&Device::Emulated);
    in_every_order(|options| assert_eq!(on(&Device::Emulated), expected, "{kernel}, {options:?}"));
    if let Ok(gpu) = Device::cuda(0) {
        assert_eq!(on(&gpu), expected, "{kernel} on {gpu}");
    }
    expected
}

/// Small whole numbers, so that sums are exact in any order.
fn whole(count: usize, seed: usize) -> impl Iterator<Item = f32> {
    (0..count).map(move |i| ((i * 37 + seed * 11 + i / 7) % 17) as f32 - 8.0)
}

fn product(dtype: DType, bits: fn(f32) -> u16) {
    let [a, b, c] = [(256, 1), (128, 2), (128, 3)].map(|(count, seed)| whole(count, seed).collect::<Vec<f32>>());
    let x: Vec<u16> = a.iter().chain(&b).map(|v| bits(*v)).collect();
    let words: Vec<u32> = c.iter().map(|v| v.to_bits()).collect();
    let y = run("probe_mma", dtype, &x, &words, 128);
    for (at, y) in y.iter().enumerate() {
        let (row, col) = (at / 8, at % 8);
        let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[col * 16 + k]).sum();
        assert_eq!(f32::from_bits(*y), sum + c[at], "row {row}, column {col}");
    }
}

#[test]
fn matrix_products() {
    product(DType::BF16, |v| bf16::from_f32(v).to_bits());
    product(DType::F16, |v| f16::from_f32(v).to_bits());
}

/// Register `i` of `lane`: elements `minor`, `minor + 1` of row (of column, if transposed) `lane / 4` of matrix `i`.
fn places(i: usize, lane: usize, transposed: bool) -> [usize; 2] {
    [0, 1].map(|e| {
        let (major, minor) = (lane / 4, 2 * (lane % 4) + e);
        let (row, col) = if transposed { (minor, major) } else { (major, minor) };
        64 * i + 8 * row + col
    })
}

#[test]
fn matrices_from_shared_memory() {
    let x: Vec<u16> = (0..256u16).map(|i| i.wrapping_mul(259)).collect();
    let y = run("probe_ldmatrix", DType::BF16, &x, &[], 14 * 32);
    let mut rows = y.chunks(32);
    for transposed in [false, true] {
        for i in [0..1, 0..2, 0..4].into_iter().flatten() {
            for (lane, got) in rows.next().unwrap().iter().enumerate() {
                let [low, high] = places(i, lane, transposed).map(|at| u32::from(x[at]));
                assert_eq!(*got, low | high << 16, "matrix {i}, lane {lane}, transposed: {transposed}");
            }
        }
    }
}

#[test]
fn matrices_to_shared_memory() {
    let words: Vec<u32> = (0..128).map(|i| i * 0x0101_0203 + 7).collect();
    let y = run("probe_stmatrix", DType::BF16, &[], &words, 6 * 128);
    for (image, (transposed, count)) in
        y.chunks(128).zip([false, true].into_iter().flat_map(|t| [1, 2, 4].map(|n| (t, n))))
    {
        let mut expected = [0u16; 256];
        for (i, lane) in (0..count).flat_map(|i| (0..32).map(move |lane| (i, lane))) {
            let [low, high] = places(i, lane, transposed);
            (expected[low], expected[high]) = (words[32 * i + lane] as u16, (words[32 * i + lane] >> 16) as u16);
        }
        assert_eq!(bytemuck::cast_slice::<u32, u16>(image), expected, "{count}, transposed: {transposed}");
    }
}

#[test]
fn asynchronous_copies() {
    let x: Vec<u16> = (1..257).collect();
    let y = run("probe_cp_async", DType::BF16, &x, &[], 256);
    let (x, y) = (bytemuck::cast_slice::<u16, u8>(&x), bytemuck::cast_slice::<u32, u8>(&y));
    for (r, row) in y[..512].chunks(16).enumerate() {
        let from = (r + 1) % 32;
        let mut expected = [0; 16];
        expected[..from % 17].copy_from_slice(&x[16 * from..][..from % 17]);
        assert_eq!(row, expected, "{} bytes", from % 17);
    }
    for (r, row) in y[512..].chunks(16).enumerate() {
        assert_eq!(row, &x[16 * (31 - r)..][..16]);
    }
}

#[test]
fn pairs_of_rounded_values() {
    // Ties, subnormals and overflow; powers of whole numbers are exact.
    let low: Vec<f32> = (0..32).map(|i| i as f32 - 20.0).collect();
    let high: Vec<f32> = (0..32).map(|i| f32::from_bits(0x3f80_8000 + i * 0x0173_4fff)).collect();
    let words: Vec<u32> = low.iter().chain(&high).map(|v| v.to_bits()).collect();
    let y = run("probe_pack", DType::BF16, &[], &words, 96);
    for lane in 0..32 {
        let pair = |bits: fn(f32) -> u16| u32::from(bits(low[lane])) | u32::from(bits(high[lane])) << 16;
        assert_eq!(y[lane], pair(|v| bf16::from_f32(v).to_bits()));
        assert_eq!(y[32 + lane], pair(|v| f16::from_f32(v).to_bits()));
        assert_eq!(f32::from_bits(y[64 + lane]), low[lane].exp2());
    }
}
