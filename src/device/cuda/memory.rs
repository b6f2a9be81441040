//! Memory of a GPU, allocated and freed in stream order from the driver's pool.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaStream, sys};

use super::CudaDevice;
use crate::device::{graph, host};
use crate::{Error, Result};

/// The device's default pool, told to keep what is freed: by default it returns memory to the system at every
/// synchronisation, and a training step would map all its activations anew.
pub(super) fn keep_freed(context: &CudaContext) -> std::result::Result<sys::CUmemoryPool, DriverError> {
    let mut keep = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is the context's; the attribute's value is a 64-bit integer, which `keep` is.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()).result()?;
        Ok(pool)
    }
}

/// Bytes behind a poisoned allocation that no kernel may write: nothing else finds a write past the end on a GPU.
const GUARD: usize = 256;
/// What they hold.
const GUARD_BYTE: u8 = 0xa5;

/// An allocation on a GPU. Freed in stream order: work started before the drop still finds it.
pub struct CudaBuffer {
    device: Arc<CudaDevice>,
    ptr: sys::CUdeviceptr,
    bytes: usize,
    /// Whether [`GUARD`] bytes follow.
    guarded: bool,
}

impl CudaDevice {
    /// Allocates `bytes` bytes with arbitrary contents. Under [`host::with_poison`] they are all ones, and a write past
    /// the end makes the next download fail, or without one the drop panic.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<CudaBuffer> {
        self.bind()?;
        let (stream, recording) = self.memory_stream();
        let guarded = host::poisoned() && !recording; // filling it would be recorded
        // The driver refuses empty allocations; a tensor may be empty.
        let size = bytes.max(1) + if guarded { GUARD } else { 0 };
        // SAFETY: the stream is alive; nobody reads the contents before writing them.
        let alloc = || unsafe { result::malloc_async(stream.cu_stream(), size) };
        let out_of_memory = DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let mut ptr = alloc();
        if ptr == Err(out_of_memory) {
            // Pieces between live blocks may add up: hand them back to the system and ask for one block.
            stream.synchronize().map_err(self.failed("wait for the stream"))?;
            // SAFETY: the pool is the device's default pool.
            unsafe { sys::cuMemPoolTrimTo(self.pool, 0) }.result().map_err(self.failed("trim the memory pool"))?;
            ptr = alloc();
        }
        match ptr {
            Ok(ptr) => {
                if recording {
                    stream.synchronize().map_err(self.failed("wait for an allocation"))?;
                }
                let mut buffer = CudaBuffer { device: self.clone(), ptr, bytes, guarded };
                if guarded {
                    buffer.set_guard(GUARD_BYTE)?;
                    buffer.fill([0xff; 4])?;
                }
                Ok(buffer)
            }
            Err(e) if e == out_of_memory => Err(Error::OutOfMemory { device: format!("cuda:{}", self.ordinal), bytes }),
            Err(e) => Err(self.failed("allocate")(e)),
        }
    }

    /// The stream on which memory is allocated and freed, and whether this thread records. What is done on the device's
    /// own stream is recorded then instead of done, so a second stream does it; [`record`](Self::record) has waited for
    /// everything before, so nothing can overtake.
    fn memory_stream(&self) -> (&CudaStream, bool) {
        let recording = graph::recording_on_a_gpu();
        (if recording { &self.apart } else { &self.stream }, recording)
    }

    /// Bytes in live allocations now and at most since the last [`Self::reset_peak`].
    pub fn usage(&self) -> Result<(usize, usize)> {
        use sys::CUmemPool_attribute as A;
        let read = |attribute| {
            let mut value = 0u64;
            // SAFETY: both attributes asked for are 64-bit integers.
            unsafe { sys::cuMemPoolGetAttribute(self.pool, attribute, (&raw mut value).cast()) }
                .result()
                .map_err(self.failed("read the memory pool's counters"))?;
            Ok(value as usize)
        };
        Ok((read(A::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?, read(A::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?))
    }

    /// Starts a new peak measurement.
    pub fn reset_peak(&self) -> Result<()> {
        let mut zero = 0u64;
        let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        // SAFETY: the attribute is a 64-bit integer, and 0 the value that resets it.
        unsafe { sys::cuMemPoolSetAttribute(self.pool, high, (&raw mut zero).cast()) }
            .result()
            .map_err(self.failed("reset the memory pool's peak"))
    }

    /// Free and total memory of the GPU in bytes, other processes counted.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(self.failed("read the free memory"))
    }
}

impl CudaBuffer {
    /// Address for kernels.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Copies host bytes in; the lengths are equal. Waits for the copy, so `from` is free afterwards.
    pub fn upload(&mut self, from: &[u8]) -> Result<()> {
        self.same_length(from.len(), "upload")?;
        self.device.bind()?;
        // SAFETY: the lengths are equal; both sides outlive the copy, since it is waited for below.
        unsafe { result::memcpy_htod_async(self.ptr, from, self.device.stream.cu_stream()) }
            .map_err(self.device.failed("copy to the device"))?;
        self.device.synchronize()
    }

    /// Copies out to host bytes; the lengths are equal. Waits for everything started before it.
    pub fn download(&self, to: &mut [u8]) -> Result<()> {
        self.same_length(to.len(), "download")?;
        self.device.bind()?;
        // SAFETY: the lengths are equal; both sides outlive the copy, since it is waited for below.
        let copied = unsafe { result::memcpy_dtoh_async(to, self.ptr, self.device.stream.cu_stream()) };
        copied.map_err(self.device.failed("copy from the device"))?;
        self.check_guard()?;
        self.device.synchronize()
    }

    /// Sets the bytes behind the contents, of an allocation that has them.
    pub(super) fn set_guard(&mut self, byte: u8) -> Result<()> {
        let (end, stream) = (self.ptr + self.bytes as u64, self.device.stream.cu_stream());
        debug_assert!(self.guarded);
        // SAFETY: `alloc` made a guarded allocation GUARD bytes longer than its contents.
        unsafe { result::memset_d8_async(end, byte, GUARD, stream) }.map_err(self.device.failed("fill the guard"))
    }

    /// Fails if something was written behind the contents. Waits for everything started before it.
    fn check_guard(&self) -> Result<()> {
        if !self.guarded {
            return Ok(());
        }
        let (mut guard, end) = ([0; GUARD], self.ptr + self.bytes as u64);
        // SAFETY: as in `set_guard`; `guard` outlives the copy, since it is waited for below.
        let copied = unsafe { result::memcpy_dtoh_async(&mut guard, end, self.device.stream.cu_stream()) };
        copied.map_err(self.device.failed("copy the guard from the device"))?;
        self.device.synchronize()?;
        match guard.iter().position(|&byte| byte != GUARD_BYTE) {
            None => Ok(()),
            Some(at) => Err(Error::Driver {
                device: format!("cuda:{}", self.device.ordinal),
                call: "check the guard".into(),
                cause: format!("byte {at} behind an allocation of {} bytes was written", self.bytes),
            }),
        }
    }

    /// Repeats `pattern`; a size that is no multiple of four ends within it.
    pub fn fill(&mut self, pattern: [u8; 4]) -> Result<()> {
        self.device.bind()?;
        let stream = self.device.stream.cu_stream();
        let (words, rest) = (self.bytes / 4, self.bytes % 4);
        if words > 0 {
            // SAFETY: the allocation holds `bytes` bytes and is borrowed uniquely.
            let filled = unsafe { sys::cuMemsetD32Async(self.ptr, u32::from_ne_bytes(pattern), words, stream) };
            filled.result().map_err(self.device.failed("fill"))?;
        }
        for (i, byte) in pattern.into_iter().take(rest).enumerate() {
            let at = self.ptr + (4 * words + i) as u64;
            // SAFETY: `at` is one of the last bytes of the allocation.
            unsafe { result::memset_d8_async(at, byte, 1, stream) }.map_err(self.device.failed("fill"))?;
        }
        Ok(())
    }

    /// Copies from an allocation of the same size on the same GPU.
    pub fn copy_from(&mut self, from: &Self) -> Result<()> {
        self.same_length(from.bytes, "copy")?;
        if !Arc::ptr_eq(&self.device, &from.device) {
            let (given, expected) = (from.device.ordinal, self.device.ordinal);
            return Err(Error::argument("copy", "from", "device", format!("cuda:{given}"), format!("cuda:{expected}")));
        }
        if self.bytes == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: both allocations hold `bytes` bytes; a later free of either is ordered behind the copy.
        unsafe { result::memcpy_dtod_async(self.ptr, from.ptr, self.bytes, self.device.stream.cu_stream()) }
            .map_err(self.device.failed("copy on the device"))
    }

    fn same_length(&self, given: usize, op: &'static str) -> Result<()> {
        if given == self.bytes {
            return Ok(());
        }
        Err(Error::argument(op, "bytes", "length", given.to_string(), self.bytes.to_string()))
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        // A failure here cannot be reported; the driver repeats a lasting one at the next call.
        if self.device.bind().is_ok() {
            let (stream, recording) = self.device.memory_stream();
            let guard = if recording { Ok(()) } else { self.check_guard() };
            // SAFETY: allocated in `alloc`, freed once; the work that uses it is ordered before, see `memory_stream`.
            let _ = unsafe { result::free_async(self.ptr, stream.cu_stream()) };
            if let (Err(overrun), false) = (guard, std::thread::panicking()) {
                panic!("{overrun}"); // only tests poison
            }
        }
    }
}
