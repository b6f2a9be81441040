//! Matrix products by cuBLASLt, with a cache of plans.
//!
//! cuBLASLt thinks in column-major matrices. A row-major `[m, n]` matrix is a column-major `[n, m]` one in the same
//! memory, so the product is asked for as `Dᵀ = op(B)ᵀ · op(A)ᵀ`: operands change places and nothing is copied. The
//! library's bias runs down a column of `Dᵀ`, which is a row of `D`: one value per output feature, as wanted.
//!
//! Sums are in f32 for every input type; partial sums of a split `k` are kept and added in f32 too. f32 inputs are not
//! rounded to TF32. The plan of a shape is the first one the library's heuristic proposes, which
//! is a function of shape, chip and library version: timing candidates against each other would pick different sums in
//! different runs.
//!
//! No activation is fused: the library's GELU is the tanh form (measured on an H100, CUDA 13.0, f32, inputs N(0, 4):
//! 5.2e-6 at most from the tanh form, 4.7e-4 from the erf form), and the recipes' GELU is the erf form.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaContext, result as driver, sys as driver_sys};

use super::gemm::{GemmSpec, Layout};
use crate::{DType, Error, Result};

/// Scratch memory offered to every product: what NVIDIA advises for Hopper; less shuts out some of its kernels.
const WORKSPACE: usize = 32 << 20;
/// Where an operation's descriptor keeps the address of the bias.
const BIAS: sys::cublasLtMatmulDescAttributes_t =
    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;

/// The library's handle, its scratch memory and the plans found so far.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: driver_sys::CUdeviceptr,
    plans: HashMap<Key, Plan>,
    context: Arc<CudaContext>,
    device: String,
}

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    layout: Layout,
    bias: bool,
    /// The largest power of two up to 256 that divides each of the addresses of `A`, `B`, `D` and the bias.
    aligned: [u32; 4],
}

/// Descriptors of one product and the algorithm chosen for it, in the library's operand order: first our `B`.
struct Plan {
    operation: Operation,
    first: Matrix,
    second: Matrix,
    output: Matrix,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

// Descriptors, each freed on drop.
struct Operation(sys::cublasLtMatmulDesc_t);
struct Matrix(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl CublasLt {
    /// A handle in the current context.
    pub(super) fn new(context: &Arc<CudaContext>, ordinal: usize) -> Result<Self> {
        let device = format!("cuda:{ordinal}");
        let fail = |call: &str, cause: String| Error::Driver { device: device.clone(), call: call.into(), cause };
        context.bind_to_thread().map_err(|e| fail("make the context current", e.to_string()))?;
        // SAFETY: allocates; nothing reads it but the library, which treats it as scratch.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) };
        let workspace = workspace.map_err(|e| fail("allocate cuBLASLt's workspace", e.to_string()))?;
        match result::create_handle() {
            Ok(handle) => {
                let (plans, context) = (HashMap::new(), context.clone());
                Ok(Self { handle, workspace, plans, context, device })
            }
            Err(e) => {
                // SAFETY: allocated just above and used by nobody.
                let _ = unsafe { driver::free_sync(workspace) };
                Err(fail("start cuBLASLt", e.to_string()))
            }
        }
    }

    /// Puts one product on `stream`. Neither waits nor allocates device memory.
    ///
    /// # Safety
    /// The context is current; the addresses are live allocations of its device of at least the lengths that `spec`
    /// states; `d` overlaps none of the others.
    pub(super) unsafe fn gemm(
        &mut self,
        spec: &GemmSpec,
        a: u64,
        b: u64,
        bias: Option<u64>,
        d: u64,
        stream: driver_sys::CUstream,
    ) -> Result<()> {
        let Layout { m, n, k, input, output, .. } = spec.layout;
        if m == 0 || n == 0 {
            return Ok(());
        }
        if bias.is_some() && input != output {
            return Err(Error::argument("gemm", "bias", "dtype", input.name(), format!("{}, as `d`", output.name())));
        }
        if k == 0 {
            // SAFETY: `d` holds m · n elements of the output type.
            return unsafe { self.empty_sums(spec, bias.is_some(), d, stream) };
        }
        let aligned = [a, b, d, bias.unwrap_or(0)].map(|address| 1 << address.trailing_zeros().min(8));
        let key = Key { layout: spec.layout, bias: bias.is_some(), aligned };
        let fail = |e: CublasError| Error::Driver {
            device: self.device.clone(),
            call: format!("gemm {m} x {n} x {k}, {} to {}", input.name(), output.name()),
            cause: format!("cuBLASLt: {e}"),
        };
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Plan::new(self.handle, &key, types(&key)?, bias).map_err(fail)?)
            }
        };
        if let Some(bias) = bias {
            plan.operation.set(BIAS, &bias).map_err(fail)?;
        }
        let (alpha, beta) = (&raw const spec.alpha, &raw const spec.beta);
        // SAFETY: the descriptors belong to the plan of exactly this shape, and the caller vouches for the addresses.
        // Factors are read before the call returns. `C` is `D`, which the library allows when their layouts agree. The
        // workspace is large enough, and only used by work on this one stream, so in turns.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation.0,
                alpha.cast(),
                beta.cast(),
                b as *const c_void,
                plan.first.0,
                a as *const c_void,
                plan.second.0,
                d as *const c_void,
                plan.output.0,
                d as *mut c_void,
                plan.output.0,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                plan.workspace,
                stream.cast(),
            )
        }
        .map_err(fail)
    }

    /// `D = beta · D`, which the library refuses to compute as a product.
    ///
    /// # Safety
    /// As for [`Self::gemm`].
    unsafe fn empty_sums(&self, spec: &GemmSpec, bias: bool, d: u64, stream: driver_sys::CUstream) -> Result<()> {
        if bias || ![0.0, 1.0].contains(&spec.beta) {
            return Err(Error::value("gemm", "k", 0, "at least 1 with a bias or a `beta` other than 0 and 1"));
        }
        if spec.beta == 1.0 {
            return Ok(());
        }
        let bytes = spec.layout.m * spec.layout.n * spec.layout.output.size();
        // SAFETY: the caller's promise.
        unsafe { driver::memset_d8_async(d, 0, bytes, stream) }.map_err(|e| Error::Driver {
            device: self.device.clone(),
            call: "fill".into(),
            cause: e.to_string(),
        })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // Nothing can be reported from here; what fails is released with the context.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: created in `new`; freeing memory waits for the work that uses it.
            unsafe {
                let _ = driver::free_sync(self.workspace);
                let _ = result::destroy_handle(self.handle);
            }
        }
    }
}

/// Types of the inputs, of the output, and of the arithmetic.
type Types = (sys::cudaDataType, sys::cudaDataType, sys::cublasComputeType_t);

fn types(key: &Key) -> Result<Types> {
    use sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let data = |arg: &str, dtype: DType| match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        _ => Err(Error::argument("gemm", arg, "dtype", dtype.name(), "f32, bf16 or f16")),
    };
    let Layout { input, output, .. } = key.layout;
    if output != input && output != DType::F32 {
        return Err(Error::argument("gemm", "d", "dtype", output.name(), format!("{} or f32", input.name())));
    }
    Ok((data("a", input)?, data("d", output)?, CUBLAS_COMPUTE_32F))
}

/// The library's rows and columns of an operand that is `[rows, columns]` once its transpose is undone: the columns and
/// rows of the row-major matrix in memory.
fn stored(rows: usize, columns: usize, transposed: bool) -> (usize, usize) {
    if transposed { (rows, columns) } else { (columns, rows) }
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        key: &Key,
        (input, output, compute): Types,
        bias: Option<u64>,
    ) -> std::result::Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let Layout { m, n, k, trans_a, trans_b, .. } = key.layout;
        let op = |transposed| i32::from(transposed); // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1

        let operation = Operation(result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?);
        operation.set(D::CUBLASLT_MATMUL_DESC_TRANSA, &op(trans_b))?;
        operation.set(D::CUBLASLT_MATMUL_DESC_TRANSB, &op(trans_a))?;
        if let Some(bias) = bias {
            operation.set(D::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            operation.set(BIAS, &bias)?; // the search looks at its alignment
        }
        let first = Matrix::new(input, stored(k, n, trans_b))?; // [k, n]
        let second = Matrix::new(input, stored(m, k, trans_a))?; // [m, k]
        let output = Matrix::new(output, stored(m, n, false))?;

        let preference = Preference(result::create_matmul_pref()?);
        preference.set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        preference.set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &in_f32)?;
        let [a, b, d, _] = key.aligned;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d)?;

        // SAFETY: every descriptor was created above and is freed after the call.
        let found = unsafe {
            result::get_matmul_algo_heuristic(handle, operation.0, first.0, second.0, output.0, output.0, preference.0)
        }?;
        Ok(Self { operation, first, second, output, algorithm: found.algo, workspace: found.workspaceSize })
    }
}

impl Operation {
    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: the descriptor is alive; the library checks the value's size against the attribute's and copies it.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Preference {
    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: as for `Operation::set`.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Matrix {
    /// A dense matrix of `rows` x `columns` in the library's column-major order.
    fn new(dtype: sys::cudaDataType, (rows, columns): (usize, usize)) -> std::result::Result<Self, CublasError> {
        Ok(Self(result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64)?))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created once, freed once; a failure would leak a few bytes of host memory.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: as for `Operation`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as for `Operation`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
