//! Host memory: a pool that hands freed blocks out again, so that a training step that repeats its shapes takes no
//! page faults, and the SIMD dispatch of the CPU references.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock};

use crate::{Error, Result};

/// Like cudaMalloc; vector loads and the emulator's sector counts rely on it.
const ALIGN: usize = 256;
/// Freed blocks kept for reuse, in bytes, at most; on a machine with less than four times as much memory, a quarter of
/// that memory. Beyond it memory goes back to the system.
const KEEP: usize = 8 << 30;

/// Elements per parallel task of an elementwise loop: 64 KiB of f32, a few microseconds of work.
pub const CHUNK: usize = 1 << 14;

#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<usize>>,
    kept: usize,
}

impl Pool {
    /// Gives every free block back to the system.
    fn empty(&mut self) {
        self.kept = 0;
        for (class, blocks) in self.free.drain() {
            let Ok(layout) = Layout::from_size_align(class, ALIGN) else { continue };
            for address in blocks {
                // SAFETY: allocated in `HostBuffer::alloc` with this very layout, and in no other list.
                unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout) }
            }
        }
    }
}

/// Bytes of freed blocks that this machine may keep.
fn keep() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total =
            info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB")?.trim().parse().ok());
        total.map_or(KEEP, |kib: usize| KEEP.min(kib * 1024 / 4))
    })
}

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    POOL.get_or_init(Default::default).lock().unwrap_or_else(|e| e.into_inner())
}

thread_local! {
    static POISON: Cell<bool> = const { Cell::new(false) };
    /// Bytes this thread allocated less those it freed, and the most that was ever so.
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Runs `f` and says how many bytes of buffers it held at most, beyond what was there before it. Counts what this
/// thread allocates, as the steps of training do; rounding up to classes of the pool is left out.
pub(super) fn peak_bytes<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let (live, peak) = LIVE.get();
    LIVE.set((live, live));
    let result = f();
    let (now, highest) = LIVE.get();
    LIVE.set((now, peak.max(highest)));
    (result, (highest - live) as usize)
}

fn count(bytes: isize) {
    let (live, peak) = LIVE.get();
    LIVE.set((live + bytes, peak.max(live + bytes)));
}

/// Runs `f` with every allocation of this thread filled with all-ones bytes (NaN in every float type), so that an
/// output element nobody wrote shows.
pub fn with_poison<R>(f: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            POISON.set(self.0);
        }
    }
    let _reset = Reset(POISON.replace(true));
    f()
}

/// Whether allocations of this thread are to be filled with all-ones bytes.
#[cfg(feature = "cuda")]
pub(super) fn poisoned() -> bool {
    POISON.get()
}

/// Block size for a request: multiples of 1/8 of the next power of two, so reuse wastes at most an eighth.
fn class_of(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 8).max(ALIGN);
    bytes.div_ceil(step) * step
}

/// A block of host memory, always initialised.
pub struct HostBuffer {
    ptr: NonNull<u8>,
    bytes: usize,
    class: usize,
    emulated: bool,
}

// SAFETY: the block is owned by this value alone; access goes through `&self` and `&mut self`.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; `&self` only reads.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// A block of `bytes` bytes; `emulated` ones are known to the emulator's bounds and initialisation checks.
    pub fn alloc(bytes: usize, emulated: bool) -> Result<Self> {
        let oom = || Error::OutOfMemory { device: "cpu".into(), bytes };
        if bytes > isize::MAX as usize / 2 {
            return Err(oom());
        }
        let class = class_of(bytes);
        let reused = {
            let mut pool = pool();
            let block = pool.free.get_mut(&class).and_then(Vec::pop);
            if block.is_some() {
                pool.kept -= class;
            }
            block
        };
        let ptr = match reused {
            Some(address) => NonNull::new(std::ptr::with_exposed_provenance_mut(address)),
            None => {
                let layout = Layout::from_size_align(class, ALIGN).map_err(|_| oom())?;
                // SAFETY: `class` is at least ALIGN, so the layout is not empty.
                let fresh = || NonNull::new(unsafe { alloc_zeroed(layout) });
                fresh().or_else(|| {
                    pool().empty(); // blocks of other sizes may be what is missing
                    fresh()
                })
            }
        };
        let ptr = ptr.ok_or_else(oom)?;
        count(bytes as isize);
        let mut buffer = Self { ptr, bytes, class, emulated };
        if POISON.get() {
            buffer.raw_mut().fill(0xff);
        }
        #[cfg(feature = "emulator")]
        if emulated {
            super::emulated::register(buffer.ptr(), bytes);
        }
        Ok(buffer)
    }

    /// Address for kernels.
    pub fn ptr(&self) -> u64 {
        self.ptr.as_ptr().expose_provenance() as u64
    }

    /// Contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is `class >= bytes` long, initialised since `alloc_zeroed`, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// Contents for writing by the host.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        #[cfg(feature = "emulator")]
        if self.emulated {
            super::emulated::mark_written(self.ptr(), self.bytes);
        }
        self.raw_mut()
    }

    fn raw_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        count(-(self.bytes as isize));
        #[cfg(feature = "emulator")]
        if self.emulated {
            super::emulated::unregister(self.ptr());
        }
        let _ = self.emulated;
        let mut pool = pool();
        if pool.kept + self.class <= keep() {
            pool.kept += self.class;
            let address = self.ptr.as_ptr().expose_provenance();
            pool.free.entry(self.class).or_default().push(address);
            return;
        }
        drop(pool);
        if let Ok(layout) = Layout::from_size_align(self.class, ALIGN) {
            // SAFETY: allocated in `alloc` with this very layout, and not in the pool's list.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

/// Runs `f` compiled for the widest vector unit of this machine. Only code inlined into the closure profits: mark the
/// functions it calls `#[inline(always)]`.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Call<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}

/// Vector instructions the references use on this machine.
pub fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "baseline vector instructions"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_lived_at_once() {
        let before = HostBuffer::alloc(1000, false).unwrap();
        let (kept, peak) = peak_bytes(|| {
            drop(HostBuffer::alloc(5000, false).unwrap());
            let kept = HostBuffer::alloc(3000, false).unwrap();
            let (_, inner) = peak_bytes(|| HostBuffer::alloc(7000, false).unwrap());
            assert_eq!(inner, 7000);
            kept
        });
        drop((before, kept));
        assert_eq!(peak, 10_000);
        assert_eq!(peak_bytes(|| ()).1, 0);
    }

    #[test]
    fn an_emptied_pool_hands_out_working_memory() {
        drop(HostBuffer::alloc(100_000, false).unwrap());
        pool().empty();
        let mut buffer = HostBuffer::alloc(100_000, false).unwrap();
        buffer.bytes_mut().fill(7);
        assert!(buffer.bytes().iter().all(|&x| x == 7));
        assert!(matches!(HostBuffer::alloc(1 << 60, false), Err(Error::OutOfMemory { .. })));
    }
}
