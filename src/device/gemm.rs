//! Matrix products: cuBLASLt on a GPU, the `gemm` crate on the host (for both host devices).

use gemm::Parallelism;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Device, Storage, graph};
use crate::dtype::Float;
use crate::{DType, Error, Result};

/// `D = alpha · op(A) · op(B) + beta · D (+ bias)`, all row-major and contiguous.
///
/// `A` is `[m, k]` (`[k, m]` if `trans_a`), `B` is `[k, n]` (`[n, k]` if `trans_b`), `D` is `[m, n]`, `bias` is `[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of `D`.
    pub m: usize,
    /// Columns of `D`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether `A` is stored transposed.
    pub trans_a: bool,
    /// Whether `B` is stored transposed.
    pub trans_b: bool,
    /// Type of `A`, `B` and the bias.
    pub input: DType,
    /// Type of `D`: the input's, or f32 for weight gradients.
    pub output: DType,
}

/// A product with its factors.
#[derive(Clone, Copy, Debug)]
pub struct GemmSpec {
    /// Shapes and types: the key of plan caches.
    pub layout: Layout,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what `D` holds; 0 never reads it.
    pub beta: f32,
}

/// Runs one product on the device of `d`.
pub fn gemm(spec: &GemmSpec, a: &Storage, b: &Storage, bias: Option<&Storage>, d: &mut Storage) -> Result<()> {
    let Layout { m, n, k, input, output, .. } = spec.layout;
    let check = |arg: &'static str, s: &Storage, len: usize, dtype: DType| {
        if s.bytes() != len * dtype.size() {
            return Err(length(arg, s.bytes(), (len * dtype.size()).to_string()));
        }
        Ok(())
    };
    check("a", a, m * k, input)?;
    check("b", b, k * n, input)?;
    check("d", d, m * n, output)?;
    if let Some(bias) = bias {
        check("bias", bias, n, input)?;
    }
    run(spec, Offsets::default(), a, b, bias, d)
}

/// Where the matrices of a product begin in their storages, in elements: at some row of a larger matrix, say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offsets {
    /// Of `A`.
    pub a: usize,
    /// Of `B`.
    pub b: usize,
    /// Of `D`.
    pub d: usize,
}

/// [`gemm()`] on parts of storages. Elements of `d` outside its part are left alone.
///
/// # Errors
/// When a part reaches beyond its storage.
pub fn gemm_part(spec: &GemmSpec, at: Offsets, a: &Storage, b: &Storage, d: &mut Storage) -> Result<()> {
    let Layout { m, n, k, input, output, .. } = spec.layout;
    for (arg, s, first, len, dtype) in
        [("a", a, at.a, m * k, input), ("b", b, at.b, k * n, input), ("d", &*d, at.d, m * n, output)]
    {
        let end = first.checked_add(len).and_then(|end| end.checked_mul(dtype.size()));
        if end.is_none_or(|end| end > s.bytes()) {
            let expected = format!("{len} elements of {dtype} from element {first} on");
            return Err(length(arg, s.bytes(), expected));
        }
    }
    run(spec, at, a, b, None, d)
}

fn length(arg: &'static str, bytes: usize, expected: String) -> Error {
    Error::argument("gemm", arg, "length", bytes.to_string(), expected)
}

/// The product, once the lengths are checked.
fn run(spec: &GemmSpec, at: Offsets, a: &Storage, b: &Storage, bias: Option<&Storage>, d: &mut Storage) -> Result<()> {
    let Layout { m, n, k, input, output, .. } = spec.layout;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let [from_a, from_b, from_d] =
        [(at.a, input), (at.b, input), (at.d, output)].map(|(first, dtype)| first * dtype.size());
    if let Device::Cuda(device) = d.device().clone() {
        #[cfg(feature = "cuda")]
        {
            if [Some(a), Some(b), bias].into_iter().flatten().any(|operand| operand.device() != d.device()) {
                return Err(mixed());
            }
            let (a, b, d) = (a.ptr() + from_a as u64, b.ptr() + from_b as u64, d.ptr() + from_d as u64);
            // SAFETY: the callers checked that each part lies in its allocation, and the devices were checked just above;
            // all four allocations outlive the call, and frees are ordered behind it on the same stream.
            return unsafe { device.gemm(spec, a, b, bias.map(Storage::ptr), d) };
        }
        #[cfg(not(feature = "cuda"))]
        match *device {}
    }
    let (Some(_), Some(_), true) = (a.host(), b.host(), bias.is_none_or(|x| x.host().is_some())) else {
        return Err(mixed());
    };
    let part = |s: &Storage, from: usize, len: usize| graph::Bytes { address: s.ptr() + from as u64, len };
    let work = || graph::HostWork::Gemm {
        spec: *spec,
        a: part(a, from_a, m * k * input.size()),
        b: part(b, from_b, k * n * input.size()),
        bias: bias.map(|bias| part(bias, 0, n * input.size())),
        d: part(d, from_d, m * n * output.size()),
    };
    if graph::note(&d.device().clone(), work) {
        return Ok(());
    }
    #[cfg(feature = "emulator")]
    if *d.device() == Device::Emulated && super::emulated::dry() {
        return Ok(());
    }
    let (Some(a), Some(b)) = (a.host(), b.host()) else { return Err(mixed()) };
    let bias = bias.map(|x| x.host().ok_or_else(mixed)).transpose()?;
    let Some(d) = d.host_mut() else { return Err(mixed()) };
    let (a, b) = (&a[from_a..][..m * k * input.size()], &b[from_b..][..k * n * input.size()]);
    on_host(spec, a, b, bias, &mut d[from_d..][..m * n * output.size()])
}

/// [`run`] on host memory.
pub(super) fn on_host(spec: &GemmSpec, a: &[u8], b: &[u8], bias: Option<&[u8]>, d: &mut [u8]) -> Result<()> {
    match (spec.layout.input, spec.layout.output) {
        (DType::F32, DType::F32) => host::<f32>(spec, cast(a), cast(b), bias.map(cast), cast_mut(d)),
        (DType::F64, DType::F64) => host::<f64>(spec, cast(a), cast(b), bias.map(cast), cast_mut(d)),
        (DType::BF16, DType::BF16 | DType::F32) => narrow::<bf16>(spec, a, b, bias, d),
        (DType::F16, DType::F16 | DType::F32) => narrow::<f16>(spec, a, b, bias, d),
        (input, output) => {
            let expected = if input.size() == 2 { format!("{input} or f32") } else { input.to_string() };
            return Err(Error::argument("gemm", "d", "dtype", output.name(), expected));
        }
    }
    Ok(())
}

fn mixed() -> Error {
    Error::argument("gemm", "d", "device", "another", "the device of `a` and `b`")
}

fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

fn cast_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}

/// 16-bit inputs: products and sums in f32, one rounding at the end.
fn narrow<T: Float<Acc = f32>>(spec: &GemmSpec, a: &[u8], b: &[u8], bias: Option<&[u8]>, d: &mut [u8]) {
    let wide = |x: &[u8]| cast::<T>(x).par_iter().map(|v| v.get()).collect::<Vec<f32>>();
    let (a, b, bias) = (wide(a), wide(b), bias.map(wide));
    if spec.layout.output == DType::F32 {
        return host::<f32>(spec, &a, &b, bias.as_deref(), cast_mut(d));
    }
    let mut wide_d = if spec.beta == 0.0 { vec![0.0; spec.layout.m * spec.layout.n] } else { wide(d) };
    host::<f32>(spec, &a, &b, bias.as_deref(), &mut wide_d);
    cast_mut::<T>(d).par_iter_mut().zip(&wide_d).for_each(|(d, &x)| *d = T::put(x));
}

/// The longer side of `D` is cut into this many pieces, each a product of its own that lays the bias into its part of
/// `D` first. The number is fixed, since the order of the library's sums depends on the shape it is given, and results
/// must not depend on the number of threads. More pieces would pack the shared operand more often.
const PIECES: usize = 2;
/// Multiples that pieces start at: a row and a column tile of the library's micro-kernels.
const TILE: [usize; 2] = [6, 64];
/// Below this many multiplications waking another thread costs more than it brings.
const SERIAL: usize = 1 << 16;

fn host<T: Float<Acc = T> + crate::dtype::Real>(spec: &GemmSpec, a: &[T], b: &[T], bias: Option<&[T]>, d: &mut [T]) {
    let Layout { m, n, k, .. } = spec.layout;
    if m * n * k < SERIAL {
        return Piece { spec, a, b, bias, d: d.as_mut_ptr(), rows: 0..m, cols: 0..n }.run(Parallelism::None);
    }
    let (side, tile) = if m >= n { (m, TILE[0]) } else { (n, TILE[1]) };
    let length = side.div_ceil(PIECES).next_multiple_of(tile);
    let piece = |start: usize| {
        let part = start..side.min(start + length);
        let (rows, cols) = if m >= n { (part, 0..n) } else { (0..m, part) };
        Piece { spec, a, b, bias, d: d.as_mut_ptr(), rows, cols }
    };
    let pieces: Vec<_> = (0..side).step_by(length).map(piece).collect();
    let threads = rayon::current_num_threads() / pieces.len();
    let inner = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    pieces.into_par_iter().for_each(|piece| piece.run(inner));
}

/// Rows and columns of `D`.
struct Piece<'a, T> {
    spec: &'a GemmSpec,
    a: &'a [T],
    b: &'a [T],
    bias: Option<&'a [T]>,
    /// All of `D`, borrowed uniquely by [`host`].
    d: *mut T,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
}

// SAFETY: `d` is what is not Send by itself; pieces write disjoint parts of it, while its unique borrow lasts.
unsafe impl<T: Sync> Send for Piece<'_, T> {}

impl<T: Float<Acc = T> + crate::dtype::Real> Piece<'_, T> {
    fn run(self, parallelism: Parallelism) {
        let Self { spec, a, b, bias, d, rows, cols } = self;
        let Layout { m, n, k, trans_a, trans_b, .. } = spec.layout;
        let mut beta = T::of(spec.beta.into());
        if let Some(bias) = bias {
            for row in rows.clone() {
                // SAFETY: `run` cut D to [m, n]; these are the piece's own elements of it.
                let row = unsafe { std::slice::from_raw_parts_mut(d.add(row * n + cols.start), cols.len()) };
                for (d, &x) in row.iter_mut().zip(&bias[cols.clone()]) {
                    *d = if beta == T::ZERO { x } else { beta * *d + x };
                }
            }
            beta = T::ONE;
        }
        let (a_cs, a_rs) = if trans_a { (m, 1) } else { (1, k) };
        let (b_cs, b_rs) = if trans_b { (k, 1) } else { (1, n) };
        // An operand of no elements has no part to point into, and is not read.
        let (a, b) = (a.get(rows.start * a_rs..).unwrap_or(&[]), b.get(cols.start * b_cs..).unwrap_or(&[]));
        // SAFETY: `run` cut a, b and d to m·k, k·n and m·n elements; the offsets and strides above stay
        // inside them, and nobody else writes these rows and columns of d.
        unsafe {
            gemm::gemm(
                rows.len(),
                cols.len(),
                k,
                d.add(rows.start * n + cols.start),
                1,
                n as isize,
                beta != T::ZERO,
                a.as_ptr(),
                a_cs as isize,
                a_rs as isize,
                b.as_ptr(),
                b_cs as isize,
                b_rs as isize,
                beta,
                T::of(spec.alpha.into()),
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_of_the_inputs_type_or_f32() {
        let run = |input: DType, output: DType| {
            let layout = Layout { m: 2, n: 2, k: 2, trans_a: false, trans_b: false, input, output };
            let storage = |dtype: DType| Storage::alloc(&Device::Cpu, 4 * dtype.size()).unwrap();
            let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
            gemm(&spec, &storage(input), &storage(input), None, &mut storage(output)).map_err(|e| e.to_string())
        };
        for (input, output) in [(DType::BF16, DType::F32), (DType::F16, DType::F16), (DType::F64, DType::F64)] {
            run(input, output).unwrap();
        }
        assert_eq!(run(DType::BF16, DType::F16).unwrap_err(), "gemm: `d` has dtype f16, expected bf16 or f32");
        assert_eq!(run(DType::F16, DType::F64).unwrap_err(), "gemm: `d` has dtype f64, expected f16 or f32");
        assert_eq!(run(DType::F32, DType::BF16).unwrap_err(), "gemm: `d` has dtype bf16, expected f32");
    }

    /// Rows 1 and 2 of `[4, 3]` times the last two columns' worth of a longer buffer, into the middle of `d`.
    #[test]
    fn parts_are_the_rows_they_name() {
        let storage = |dtype: DType, values: &[f32]| {
            let t = crate::Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap().cast(dtype).unwrap();
            t.deep_clone().unwrap()
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let a = storage(dtype, &(0..12).map(|i| i as f32).collect::<Vec<_>>());
            let b = storage(dtype, &[9.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
            let mut d = storage(DType::F32, &[5.0; 7]);
            let layout = Layout { m: 2, n: 2, k: 3, trans_a: false, trans_b: false, input: dtype, output: DType::F32 };
            let spec = GemmSpec { layout, alpha: 1.0, beta: 1.0 };
            let at = Offsets { a: 3, b: 1, d: 2 };
            gemm_part(&spec, at, a.storage(), b.storage(), d.storage_mut("test").unwrap()).unwrap();
            // [3 4 5; 6 7 8] · [1 0; 0 1; 1 1] = [8 9; 14 15], added to 5.
            assert_eq!(d.to_vec::<f32>().unwrap(), [5.0, 5.0, 13.0, 14.0, 19.0, 20.0, 5.0], "{dtype}");
        }
    }

    #[test]
    fn parts_beyond_a_storage_are_refused() {
        let layout =
            Layout { m: 2, n: 2, k: 3, trans_a: false, trans_b: false, input: DType::BF16, output: DType::F32 };
        let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
        let run = |at: Offsets| {
            let storage = |bytes| Storage::alloc(&Device::Cpu, bytes).unwrap();
            gemm_part(&spec, at, &storage(16), &storage(12), &mut storage(20)).map_err(|e| e.to_string())
        };
        run(Offsets { a: 2, b: 0, d: 1 }).unwrap();
        let message = |at| run(at).unwrap_err();
        assert_eq!(
            message(Offsets { a: 3, ..Offsets::default() }),
            "gemm: `a` has length 16, expected 6 elements of bf16 from element 3 on"
        );
        assert_eq!(
            message(Offsets { b: usize::MAX, ..Offsets::default() }),
            format!("gemm: `b` has length 12, expected 6 elements of bf16 from element {} on", usize::MAX)
        );
        assert_eq!(
            message(Offsets { d: 2, ..Offsets::default() }),
            "gemm: `d` has length 20, expected 4 elements of f32 from element 2 on"
        );
    }
}
