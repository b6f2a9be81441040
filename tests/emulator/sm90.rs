//! The instructions of `kernels/ptx_sm90.cuh`, bit for bit against Rust: on the emulator in every schedule, and on a
//! Hopper GPU if there is one. Then all of them together in a matrix product, and what the emulator says of its faults.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use ocellus::DType;
use ocellus::device::{TensorBox, TensorMap};

use super::*;

const GEMM: &str = include_str!("../../kernels/emulator/tests/gemm_sm90.cu");

/// `struct BulkProbe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BulkProbe {
    from: TensorMap,
    to: TensorMap,
    x: u64,
    y: u64,
    at: [i32; 4],
    to_at: [i32; 4],
    bytes: u32,
    pad: [u32; 3],
}

/// `struct ProductProbe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ProductProbe {
    x: u64,
    y: u64,
    bytes: u32,
    form: u32,
    b: u32,
    swizzle_a: u32,
    swizzle_b: u32,
    leading_a: u32,
    stride_a: u32,
    leading_b: u32,
    stride_b: u32,
    step_a: u32,
    step_b: u32,
    pad: u32,
}

/// `struct GemmSm90`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GemmSm90 {
    a: TensorMap,
    b: TensorMap,
    c: TensorMap,
    k: u32,
    fault: u32,
    pad: [u32; 14],
}

fn upload<T: Pod>(device: &Device, values: &[T]) -> Storage {
    let mut storage = Storage::alloc(device, size_of_val(values)).unwrap();
    storage.upload(bytemuck::cast_slice(values)).unwrap();
    storage
}

fn download<T: Pod>(storage: &Storage) -> Vec<T> {
    let mut bytes = vec![0; storage.bytes()];
    storage.download(&mut bytes).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

/// The Hopper GPU, if there is one; code for sm_90a runs on no other.
fn hopper() -> Option<Device> {
    let gpu = Device::cuda(0).ok()?;
    let hopper = gpu.description().contains("compute capability 9.0");
    if !hopper {
        eprintln!("{} is not used: these kernels need compute capability 9.0", gpu.description());
    }
    hopper.then_some(gpu)
}

/// The same result on every device and schedule.
fn everywhere<T: PartialEq + std::fmt::Debug>(on: impl Fn(&Device) -> T) -> T {
    let expected = on(&Device::Emulated);
    in_every_order(|options| assert_eq!(on(&Device::Emulated), expected, "{options:?}"));
    if let Some(gpu) = hopper() {
        assert_eq!(on(&gpu), expected, "on {gpu}");
    }
    expected
}

/// Byte address as a swizzle of that many bytes exchanges it.
fn swizzled(x: usize, swizzle: usize) -> usize {
    if swizzle == 0 { x } else { x ^ (x >> 3 & (swizzle - 16)) }
}

fn no_map(device: &Device) -> TensorMap {
    let spec = TensorBox { dtype: DType::BF16, shape: &[8, 8], strides: &[8], tile: &[8, 8], swizzle: 0 };
    device.tensor_map(0x1000, &spec).unwrap()
}

#[test]
fn contiguous_bulk_copies() {
    let x: Vec<u32> = (0..64).map(|i| i * 0x0101_0203 + 7).collect();
    let y = everywhere(|device| {
        let (x, y) = (upload(device, &x), upload(device, &[0u32; 128]));
        let map = no_map(device);
        let (x, out) = (x.ptr(), &y);
        let args = BulkProbe { from: map, to: map, x, y: out.ptr(), at: [0; 4], to_at: [0; 4], bytes: 0, pad: [0; 3] };
        let shape = Launch { shared: 1024, ..Launch::linear(1, 32) };
        // SAFETY: x holds 64 words and y 128, as the kernel's comment states; both outlive the download.
        unsafe { device.launch("ptx_sm90", "probe_bulk_copy", DType::BF16, shape, &args) }.unwrap();
        download::<u32>(out)
    });
    let expected: Vec<u32> = x.iter().map(|x| x + 1).chain(x.iter().copied()).collect();
    assert_eq!(y, expected);
}

/// The box of a [.., columns] tensor at `at`, as it lies in shared memory, and the same box stored at `to_at` of a tensor
/// of ones, of which one is `(image, target)`.
struct BoxCase {
    kernel: &'static str,
    dtype: DType,
    shape: &'static [usize],
    tile: &'static [usize],
    swizzle: usize,
    at: [i32; 4],
    to_at: [i32; 4],
}

impl BoxCase {
    /// Place of the element of the box with this number in the tensor, none outside.
    fn place(&self, at: &[i32; 4], number: usize) -> Option<usize> {
        let mut rest = number;
        let mut index = vec![0; self.tile.len()];
        for (i, size) in self.tile.iter().enumerate().rev() {
            (index[i], rest) = (rest % size, rest / size);
        }
        let mut place = 0;
        for (i, size) in self.shape.iter().enumerate() {
            let at = usize::try_from(at[i] + index[i] as i32).ok().filter(|at| at < size)?;
            place = place * size + at;
        }
        Some(place)
    }

    fn check(&self) {
        let (count, elements) = (self.shape.iter().product::<usize>(), self.tile.iter().product::<usize>());
        let size = self.dtype.size();
        let x: Vec<u8> = (0..count * size).map(|i| (i * 31 + i / 251 + 1) as u8).collect();
        let strides: Vec<usize> = (1..self.shape.len()).map(|i| self.shape[i..].iter().product()).collect();
        let spec = TensorBox {
            dtype: self.dtype,
            shape: self.shape,
            strides: &strides,
            tile: self.tile,
            swizzle: self.swizzle,
        };
        let (image, target) = everywhere(|device| {
            let (from, to) = (upload(device, &x), upload(device, &vec![1u8; count * size]));
            let y = upload(device, &vec![0u8; elements * size]);
            let args = BulkProbe {
                from: device.tensor_map(from.ptr(), &spec).unwrap(),
                to: device.tensor_map(to.ptr(), &spec).unwrap(),
                x: from.ptr(),
                y: y.ptr(),
                at: self.at,
                to_at: self.to_at,
                bytes: (elements * size) as u32,
                pad: [0; 3],
            };
            let shape = Launch { shared: (elements * size) as u32, ..Launch::linear(1, 32) };
            // SAFETY: the maps name live tensors of this shape, y holds the box; all outlive the downloads.
            unsafe { device.launch("ptx_sm90", self.kernel, DType::BF16, shape, &args) }.unwrap();
            (download::<u8>(&y), download::<u8>(&to))
        });
        let mut expected_target = vec![1u8; count * size];
        for number in 0..elements {
            let value = self.place(&self.at, number).map_or(&[0u8; 4][..size], |at| &x[at * size..][..size]);
            let byte = swizzled(number * size, self.swizzle);
            assert_eq!(&image[byte..byte + size], value, "{}: element {number}", self.kernel);
            if let Some(at) = self.place(&self.to_at, number) {
                expected_target[at * size..][..size].copy_from_slice(value);
            }
        }
        assert!(target == expected_target, "{}: stored at {:?}", self.kernel, self.to_at);
    }
}

#[test]
fn boxes_of_matrices() {
    for (swizzle, columns) in [(0, 24), (32, 16), (64, 32), (128, 64)] {
        let tile: &[usize] = match columns {
            24 => &[20, 24],
            16 => &[20, 16],
            32 => &[20, 32],
            _ => &[20, 64],
        };
        for (at, to_at) in [([0, 0], [0, 0]), ([-3, 90], [30, -7]), ([30, -5], [-19, 104 - 1]), ([40, 0], [0, 200])] {
            BoxCase {
                kernel: "probe_tensor_2d",
                dtype: DType::BF16,
                shape: &[37, 104],
                tile,
                swizzle,
                at: [at[0], at[1], 0, 0],
                to_at: [to_at[0], to_at[1], 0, 0],
            }
            .check();
        }
    }
}

#[test]
fn boxes_of_more_dimensions() {
    BoxCase {
        kernel: "probe_tensor_3d",
        dtype: DType::F32,
        shape: &[3, 5, 12],
        tile: &[2, 4, 8],
        swizzle: 32,
        at: [2, -1, 6, 0],
        to_at: [-1, 3, 1, 0],
    }
    .check();
    BoxCase {
        kernel: "probe_tensor_4d",
        dtype: DType::F16,
        shape: &[2, 3, 5, 40],
        tile: &[2, 2, 3, 32],
        swizzle: 64,
        at: [0, 2, -2, 16],
        to_at: [1, -1, 4, -3],
    }
    .check();
}

/// How a matrix of 16-bit elements lies in shared memory for wgmma.
#[derive(Clone, Copy, Debug)]
struct Layout {
    swizzle: usize,
    k_major: bool,
    leading: usize,
    stride: usize,
    step: usize,
    bytes: usize,
}

impl Layout {
    /// Of `mn` rows or columns and 32 k.
    fn new(mn: usize, swizzle: usize, k_major: bool) -> Self {
        let blocks = mn.div_ceil(8);
        let (leading, stride, step, bytes) = match (swizzle, k_major) {
            (0, true) => (128, 512, 256, blocks * 512), // pieces of 8 x 8, four along k
            (0, false) => (blocks * 128, 128, 2 * blocks * 128, 4 * blocks * 128),
            // Rows of the swizzle's width: 16 k to a row of 32 bytes, so the second 16 k are a matrix of their own.
            (32, true) => (0, 256, blocks * 256, 2 * blocks * 256),
            (_, true) => (0, 8 * swizzle, 32, blocks * 8 * swizzle),
            (_, false) => (32 * swizzle, 8 * swizzle, 16 * swizzle, mn.div_ceil(swizzle / 2) * 32 * swizzle),
        };
        Self { swizzle, k_major, leading, stride, step, bytes: bytes.next_multiple_of(1024) }
    }

    /// Byte of element (`mn`, `k`), in a tile that begins at a multiple of 1024.
    fn byte(&self, mn: usize, k: usize) -> usize {
        let (step, k) = (k / 16 * self.step, k % 16);
        let at = match (self.swizzle, self.k_major) {
            (0, true) => mn / 8 * self.stride + k / 8 * self.leading + mn % 8 * 16 + k % 8 * 2,
            (0, false) => mn / 8 * self.stride + k / 8 * self.leading + k % 8 * 16 + mn % 8 * 2,
            (swizzle, true) => mn / 8 * self.stride + mn % 8 * swizzle + 2 * k,
            (swizzle, false) => {
                let across = swizzle / 2;
                mn / across * self.leading + k / 8 * self.stride + k % 8 * swizzle + mn % across * 2
            }
        };
        swizzled(step + at, self.swizzle)
    }

    fn fill(&self, image: &mut [u8], mn: usize, element: impl Fn(usize, usize) -> u16) {
        for (mn, k) in (0..mn).flat_map(|mn| (0..32).map(move |k| (mn, k))) {
            let byte = self.byte(mn, k);
            image[byte..byte + 2].copy_from_slice(&element(mn, k).to_le_bytes());
        }
    }
}

/// Small whole numbers, so that sums are exact in any order.
fn whole(i: usize, seed: usize) -> f32 {
    ((i * 37 + seed * 11 + i / 7) % 17) as f32 - 8.0
}

/// `form` as the kernel counts them.
fn product(kernel: &'static str, dtype: DType, n: usize, form: u32, swizzle_a: usize, swizzle_b: usize) {
    let bits = |x: f32| if dtype == DType::F16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
    let (a, b) = (|row: usize, k: usize| whole(row * 32 + k, 1), |column: usize, k: usize| whole(column * 32 + k, 2));
    let (major_a, major_b) = if form < 4 { (form % 2, form / 2) } else { (0, form - 4) };
    let (of_a, of_b) = (Layout::new(64, swizzle_a, major_a == 0), Layout::new(n, swizzle_b, major_b == 0));
    let mut image = vec![0u8; of_a.bytes + of_b.bytes];
    of_a.fill(&mut image, 64, |row, k| bits(a(row, k)));
    of_b.fill(&mut image[of_a.bytes..], n, |column, k| bits(b(column, k)));
    let rows: Vec<u16> = (0..64 * 32).map(|i| bits(a(i / 32, i % 32))).collect();
    let x: Vec<u8> = image.iter().copied().chain(bytemuck::cast_slice(&rows).iter().copied()).collect();
    let y = everywhere(|device| {
        let (x, y) = (upload(device, &x), upload(device, &vec![0f32; 64 * n]));
        let args = ProductProbe {
            x: x.ptr(),
            y: y.ptr(),
            bytes: image.len() as u32,
            form,
            b: of_a.bytes as u32,
            swizzle_a: swizzle_a as u32,
            swizzle_b: swizzle_b as u32,
            leading_a: of_a.leading as u32,
            stride_a: of_a.stride as u32,
            leading_b: of_b.leading as u32,
            stride_b: of_b.stride as u32,
            step_a: of_a.step as u32,
            step_b: of_b.step as u32,
            pad: 0,
        };
        let shape = Launch { shared: image.len() as u32, ..Launch::linear(1, 128) };
        // SAFETY: x holds the image and a behind it, y the product, as the kernel's comment states.
        unsafe { device.launch("ptx_sm90", kernel, dtype, shape, &args) }.unwrap();
        download::<u32>(&y)
    });
    for (at, y) in y.iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let sum: f32 = (0..32).map(|k| a(row, k) * b(column, k)).sum();
        let case = format!("{kernel}_{dtype}, form {form}, swizzles {swizzle_a} and {swizzle_b}");
        assert_eq!(f32::from_bits(*y), sum, "{case}: row {row}, column {column}");
    }
}

#[test]
fn warpgroup_products_of_all_layouts() {
    for form in 0..6 {
        for (swizzle_a, swizzle_b) in [(0, 0), (32, 32), (64, 64), (128, 128), (128, 32), (0, 64)] {
            product("probe_wgmma_n64", DType::BF16, 64, form, swizzle_a, swizzle_b);
        }
        product("probe_wgmma_n64", DType::F16, 64, form, 128, 128);
        product("probe_wgmma_n128", DType::BF16, 128, form, 128, 128);
    }
}

#[test]
fn warpgroup_products_of_all_widths() {
    for (kernel, n) in [
        ("probe_wgmma_n8", 8),
        ("probe_wgmma_n16", 16),
        ("probe_wgmma_n32", 32),
        ("probe_wgmma_n96", 96),
        ("probe_wgmma_n192", 192),
        ("probe_wgmma_n256", 256),
    ] {
        product(kernel, DType::BF16, n, 0, 128, 128);
        product(kernel, DType::BF16, n, 4, 128, 128);
    }
    product("probe_wgmma_n256", DType::F16, 256, 4, 128, 64);
}

// ---- a matrix product ----

const M: usize = 100;
const N: usize = 136;
const K: usize = 200;

/// c = a · b, b being [n, k] or [k, n]; `fault`: see the kernel.
fn gemm(device: &Device, kernel: &'static str, b_rows: bool, fault: u32) -> ocellus::Result<Vec<f32>> {
    let bits =
        |count: usize, seed| (0..count).map(move |i| bf16::from_f32(whole(i, seed)).to_bits()).collect::<Vec<_>>();
    let (a, b) = (upload(device, &bits(M * K, 1)), upload(device, &bits(N * K, 2)));
    let c = upload(device, &vec![0f32; M * N]);
    let map = |storage: &Storage, dtype, shape: &[usize], swizzle| {
        let spec = TensorBox { dtype, shape, strides: &shape[1..], tile: &[64, 64], swizzle };
        device.tensor_map(storage.ptr(), &spec)
    };
    let args = GemmSm90 {
        a: map(&a, DType::BF16, &[M, K], 128)?,
        b: map(&b, DType::BF16, &if b_rows { [K, N] } else { [N, K] }, 128)?,
        c: map(&c, DType::F32, &[M, N], 0)?,
        k: K as u32,
        fault,
        pad: [0; 14],
    };
    let grid = [N.div_ceil(64) as u32, M.div_ceil(64) as u32, 1];
    let shape = Launch { grid, block: [160, 1, 1], shared: 3 * 2 * 8192 + 16384 };
    // SAFETY: the maps name live matrices of these shapes, which outlive the download.
    unsafe { device.launch("gemm_sm90", kernel, DType::BF16, shape, &args) }?;
    Ok(download(&c))
}

fn expected(b_rows: bool) -> Vec<f32> {
    let b = |n: usize, k: usize| whole(if b_rows { k * N + n } else { n * K + k }, 2);
    let row = |m: usize| (0..N).map(move |n| (0..K).map(|k| whole(m * K + k, 1) * b(n, k)).sum());
    (0..M).flat_map(row).collect()
}

#[test]
fn a_matrix_product_through_a_ring_of_tiles() {
    for (kernel, b_rows) in [("probe_gemm_columns", false), ("probe_gemm_rows", true)] {
        let c = everywhere(|device| gemm(device, kernel, b_rows, 0).unwrap());
        assert!(c == expected(b_rows), "{kernel}");
    }
    let faulty = gemm(&Device::Emulated, "probe_gemm_faulty", false, 0).unwrap();
    assert!(faulty == expected(false), "the kernel with faults, none chosen");
}

#[test]
fn faults_of_the_matrix_product() {
    let waits = ["wait for an empty tile", "wait for a full tile"];
    let loads = ["load of a", "load of b"];
    let cases: [(u32, &[&str], &[&str]); 11] = [
        (1, &["too many arrivals", "shared race", "under way"], &["announcement", "load of a", "product"]),
        (
            2,
            &["nobody has waited", "uninitialised", "shared race", "has still to read"],
            &["product", loads[0], loads[1]],
        ),
        (3, &["shared race", "has still to read", "under way"], &["product", loads[0], loads[1]]),
        (4, &["deadlock"], &waits),
        (5, &["nobody has waited", "shared race"], &["product"]),
        (6, &["too many arrivals"], &["arrival too many"]),
        (7, &["missing fence_async"], &["store"]),
        (8, &["missing wgmma_fence"], &["product"]),
        (10, &["a bulk store that it has not waited for"], &["store"]),
        (11, &["missing fence_async", "shared race", "uninitialised"], &["store", "result"]),
        (12, &["misaligned"], &["product"]),
    ];
    for (fault, causes, marks) in cases {
        in_every_order(|options| {
            let case = format!("fault {fault}, {options:?}");
            let report = gemm(&Device::Emulated, "probe_gemm_faulty", false, fault).expect_err(&case).to_string();
            assert!(causes.iter().any(|cause| report.contains(cause)), "{case}: {report}");
            let named = |mark: &&str| report.contains(&format!("gemm_sm90.cu:{}", line_of(GEMM, mark)));
            assert!(marks.iter().any(named), "{case}: another line than {marks:?}: {report}");
        });
    }
    in_every_order(|options| {
        let early = gemm(&Device::Emulated, "probe_gemm_faulty", false, 9).unwrap();
        assert!(early.iter().all(|c| c.is_nan()), "{options:?}");
    });
}
