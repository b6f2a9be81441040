//! NVIDIA GPUs through the driver API: memory, kernels and timing of one GPU on one stream.
//!
//! Everything a [`CudaDevice`] starts is ordered on its stream, frees included, so callers on several threads need no
//! further ordering. Launches and matrix products neither allocate nor wait once a kernel and a shape were seen, so a
//! step can be captured into a CUDA graph after one run of it.
//!
//! The driver and cuBLASLt are loaded at run time. Errors of a kernel that is already running surface in a later call;
//! with `CUDA_LAUNCH_BLOCKING=1` in the environment they surface in its own launch.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, sys};

use super::cublaslt::CublasLt;
use super::gemm::GemmSpec;
use crate::{Error, Result};

mod graph;
mod memory;
mod probe;
mod tensor_map;
#[cfg(test)]
mod tests;

pub use graph::CudaGraph;
pub use memory::CudaBuffer;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use embedded::KERNELS;

/// Stems and architectures of the embedded kernel files.
pub(super) fn compiled() -> Vec<(&'static str, &'static [&'static str])> {
    KERNELS.iter().map(|(stem, _, architectures)| (*stem, *architectures)).collect()
}

/// One GPU: its context, its stream, the kernels loaded so far, and cuBLASLt's plans.
pub struct CudaDevice {
    ordinal: usize,
    name: String,
    capability: (u32, u32),
    shared_limit: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// For memory while `stream` records.
    apart: Arc<CudaStream>,
    pool: sys::CUmemoryPool,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    functions: Mutex<HashMap<String, Function>>,
    lt: Mutex<CublasLt>,
}

// SAFETY: driver handles may be used on any thread on which the context is current; every method makes it so first.
// What changes after construction is behind a mutex.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

/// A kernel ready to launch.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Size of its one argument struct.
    args: usize,
    /// Dynamic shared memory it may ask for so far.
    shared: u32,
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "cuda:{} ({}, compute capability {major}.{minor})", self.ordinal, self.name)
    }
}

// ---- opening ----

impl CudaDevice {
    /// The GPU with this ordinal; the same value for everyone who holds it at the same time.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] says what is missing: kernels in this binary, the driver, cuBLASLt, a GPU, or one
    /// that the kernels in this binary run on.
    pub fn new(ordinal: usize) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<(usize, Weak<CudaDevice>)>> = Mutex::new(Vec::new());
        let mut open = lock(&OPEN);
        if let Some(device) = open.iter().find(|(at, _)| *at == ordinal).and_then(|(_, device)| device.upgrade()) {
            return Ok(device);
        }
        let device = Arc::new(Self::open(ordinal)?);
        open.retain(|(_, device)| device.strong_count() > 0);
        open.push((ordinal, Arc::downgrade(&device)));
        Ok(device)
    }

    fn open(ordinal: usize) -> Result<Self> {
        let unavailable = |cause: String| Error::DeviceUnavailable { device: format!("cuda:{ordinal}"), cause };
        probe::missing(ordinal).map_err(unavailable)?;
        let failed = |call: &'static str| {
            move |e: DriverError| Error::Driver { device: format!("cuda:{ordinal}"), call: call.into(), cause: say(e) }
        };
        let context = CudaContext::new(ordinal).map_err(failed("retain the primary context"))?;
        let name = context.name().map_err(failed("read the device's name"))?;
        let (major, minor) = context.compute_capability().map_err(failed("read the compute capability"))?;
        let capability = (major as u32, minor as u32);
        probe::fits(capability, KERNELS).map_err(|cause| unavailable(format!("{name}: {cause}")))?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_limit = context.attribute(attribute).map_err(failed("read the shared memory of a block"))? as usize;
        let stream = context.new_stream().map_err(failed("create a stream"))?;
        let apart = context.new_stream().map_err(failed("create a stream"))?;
        let pool = memory::keep_freed(&context).map_err(failed("set up the memory pool"))?;
        let lt = CublasLt::new(&context, ordinal)?;
        let (modules, functions) = (Mutex::default(), Mutex::default());
        let lt = Mutex::new(lt);
        Ok(Self { ordinal, name, capability, shared_limit, context, stream, apart, pool, modules, functions, lt })
    }

    /// Number of the GPU.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Name of the product.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, e.g. `(9, 0)`.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Bytes of shared memory that a block may have.
    pub fn shared_limit(&self) -> usize {
        self.shared_limit
    }

    /// Waits until everything started so far is done.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(self.failed("wait for the stream"))
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(self.failed("make the context current"))
    }

    fn failed(&self, call: &str) -> impl FnOnce(DriverError) -> Error {
        move |e| Error::Driver { device: format!("cuda:{}", self.ordinal), call: call.into(), cause: say(e) }
    }
}

/// Name and text of a driver error. Faults of a running kernel stay with the context, so the hint belongs to them.
fn say(e: DriverError) -> String {
    let text = e.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let hint = match e.0 {
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | sys::CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED => {
            "; raised by an earlier launch, CUDA_LAUNCH_BLOCKING=1 in the environment finds which"
        }
        _ => "",
    };
    format!("{:?}: {text}{hint}", e.0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values are whole between statements: a panic elsewhere leaves them usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- kernels ----

impl CudaDevice {
    /// Launches `kernel` of `kernels/<stem>.cu` with `args`, the bytes of its one argument struct.
    ///
    /// # Safety
    /// Every pointer in `args` is valid on this device for what the kernel reads and writes, until the launch has run.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        stem: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[u8],
    ) -> Result<()> {
        let failed = |cause| Error::Launch {
            kernel: kernel.into(),
            device: format!("cuda:{}", self.ordinal),
            grid,
            block,
            cause,
        };
        self.bind()?;
        let function = self.function(kernel, stem, shared).map_err(failed)?;
        if function.args != args.len() {
            let (given, expected) = (args.len(), function.args);
            return Err(failed(format!("the argument struct has {given} bytes, the kernel expects {expected}")));
        }
        let mut params = [args.as_ptr().cast_mut().cast()];
        // SAFETY: the function belongs to a module that lives as long as `self`; it takes one parameter of
        // `args.len()` bytes, which the driver copies before it returns; the pointers inside are the caller's promise.
        let launched = unsafe {
            let (grid, block) = (grid.into(), block.into());
            result::launch_kernel(function.handle, grid, block, shared, self.stream.cu_stream(), &mut params)
        };
        launched.map_err(|e| failed(format!("{}{}", say(e), limits(function.handle))))
    }

    /// Looks a kernel up, loading its file first if need be, and lets it use `shared` bytes of dynamic shared memory.
    fn function(&self, kernel: &str, stem: &'static str, shared: u32) -> std::result::Result<Function, String> {
        let mut functions = lock(&self.functions);
        let function = match functions.get_mut(kernel) {
            Some(function) => function,
            None => {
                let module = self.module(stem)?;
                let name = CString::new(kernel).map_err(|e| e.to_string())?;
                // SAFETY: `module` stays loaded as long as `self`.
                let handle = unsafe { result::module::get_function(module, name) }
                    .map_err(|e| format!("kernels/{stem}.cu does not define it: {}", say(e)))?;
                let args = argument_size(handle)?;
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: `handle` was returned just above.
                let shared = unsafe { result::function::get_function_attribute(handle, attribute) }.map_err(say)?;
                functions.entry(kernel.into()).or_insert(Function { handle, args, shared: shared as u32 })
            }
        };
        if shared > function.shared {
            // Beyond 48 KiB, static memory included, the driver wants to be asked.
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle's module is loaded.
            unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) }
                .map_err(|e| format!("{shared} bytes of dynamic shared memory: {}", say(e)))?;
            function.shared = shared;
        }
        Ok(*function)
    }

    fn module(&self, stem: &'static str) -> std::result::Result<sys::CUmodule, String> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(stem) {
            return Ok(*module);
        }
        let found = KERNELS.iter().find(|(name, _, _)| *name == stem);
        let (_, fatbin, archs) = found.ok_or_else(|| format!("this binary holds no kernels/{stem}.cu"))?;
        // The driver reads the image in words: an aligned copy, which it copies in turn.
        let mut image = vec![0u64; fatbin.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut image)[..fatbin.len()].copy_from_slice(fatbin);
        // SAFETY: `image` is a whole fatbin, which states its own length, and lives until the call returns.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|e| format!("kernels/{stem}.cu, compiled for {}: {}", archs.join(", "), say(e)))?;
        modules.insert(stem, module);
        Ok(module)
    }
}

/// Size of a kernel's parameter, after checking that it has exactly one.
fn argument_size(function: sys::CUfunction) -> std::result::Result<usize, String> {
    let param = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is valid; both outputs are plain integers.
        unsafe { sys::cuFuncGetParamInfo(function, index, &raw mut offset, &raw mut size) }.result().map(|()| size)
    };
    match (param(0), param(1)) {
        (Ok(size), Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE))) => Ok(size),
        (Ok(_), Ok(_)) => Err("the kernel has several parameters, expected one struct".into()),
        (Err(e), _) | (_, Err(e)) => Err(format!("the kernel's parameters: {}", say(e))),
    }
}

/// What a kernel needs and allows, for the message of a refused launch. Empty where the driver does not say.
fn limits(function: sys::CUfunction) -> String {
    use sys::CUfunction_attribute as A;
    // SAFETY: the function was just launched, so it is valid.
    let read = |attribute| unsafe { result::function::get_function_attribute(function, attribute) };
    let threads = read(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    let (registers, shared) = (read(A::CU_FUNC_ATTRIBUTE_NUM_REGS), read(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES));
    match (threads, registers, shared) {
        (Ok(threads), Ok(registers), Ok(shared)) => format!(
            " (at most {threads} threads per block at {registers} registers; {shared} bytes of static shared memory)"
        ),
        _ => String::new(),
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Nothing can be reported from here; what fails is released with the context.
        if self.bind().is_ok() && self.synchronize().is_ok() {
            for (_, module) in lock(&self.modules).drain() {
                // SAFETY: loaded once, its launches have run, and `functions` is not used any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

// ---- matrix products ----

impl CudaDevice {
    /// `D = alpha · op(A) · op(B) + beta · D (+ bias)` on the stream; see [`GemmSpec`] for shapes and types.
    ///
    /// # Safety
    /// The addresses are allocations of this device of at least the lengths that `spec` states; `d` overlaps none of
    /// the others.
    pub unsafe fn gemm(&self, spec: &GemmSpec, a: u64, b: u64, bias: Option<u64>, d: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: passed on from the caller; the stream is this device's, as the handle is.
        unsafe { lock(&self.lt).gemm(spec, a, b, bias, d, self.stream.cu_stream()) }
    }
}

// ---- timing ----

/// A moment in the stream's work.
pub struct Mark(CudaEvent);

impl CudaDevice {
    /// Marks the moment at which everything started so far is done.
    pub fn mark(&self) -> Result<Mark> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT; // timing is on by default in the driver, off in `new_event`
        let event = self.context.new_event(Some(flags)).map_err(self.failed("create an event"))?;
        event.record(&self.stream).map_err(self.failed("record an event"))?;
        Ok(Mark(event))
    }

    /// Milliseconds from one mark to a later one, by the GPU's clock. Waits for the later one.
    pub fn elapsed_ms(&self, from: &Mark, to: &Mark) -> Result<f32> {
        from.0.elapsed_ms(&to.0).map_err(self.failed("read the time between two events"))
    }
}
