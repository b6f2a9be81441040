//! A sequence of launches recorded once and started again as a whole: the same kernels on the same addresses.
//!
//! [`Device::record`] runs a closure whose launches, matrix products, copies and fills are noted instead of executed;
//! [`Graph::replay`] executes them. On a GPU that is a CUDA graph: one call of the driver instead of some thousand. The
//! emulated device keeps a list, so that all of this is tested without a GPU. The CPU has nothing to gain and refuses.
//!
//! What changes from one replay to the next lives in device memory that the recorded work reads: inputs are copied
//! there, and so are step-dependent numbers ([`Scalars`](crate::ops::multi_tensor::Scalars)). Hence a closure that
//! uploads, reads back or waits cannot be recorded and gets an [`Error::Recording`].
//!
//! Memory that the closure allocates belongs to the graph: its addresses stay, and within the recording a freed block is
//! handed to the next allocation of the same size. Memory from outside that is used and later freed makes the graph
//! stale: it refuses to run.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gemm::{self, GemmSpec};
use super::{Device, Memory};
use crate::{Error, Result};

/// Recorded work, ready to run again.
pub struct Graph {
    work: Work,
    owner: Owner,
}

enum Work {
    Host(Vec<HostWork>),
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::CudaGraph),
}

/// One step of a host device. Addresses are those of live allocations, see [`Graph::replay`].
pub(super) enum HostWork {
    Launch { kernel: String, grid: [u32; 3], block: [u32; 3], shared: u32, args: Vec<u8> },
    Gemm { spec: GemmSpec, a: Bytes, b: Bytes, bias: Option<Bytes>, d: Bytes },
    Copy { from: Bytes, to: Bytes },
    Fill { to: Bytes, pattern: [u8; 4] },
}

/// A range of host memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub address: u64,
    pub len: usize,
}

/// The memory of a graph and whether what it uses from elsewhere is still there.
#[derive(Clone, Default)]
pub(super) struct Owner {
    arena: Arc<Arena>,
    stale: Arc<AtomicBool>,
}

/// Blocks of a recording that are free at the moment, by size.
#[derive(Default)]
pub(super) struct Arena(Mutex<HashMap<usize, Vec<Memory>>>);

impl Arena {
    fn take(&self, bytes: usize) -> Option<Memory> {
        lock(&self.0).get_mut(&bytes).and_then(Vec::pop)
    }

    pub(super) fn give_back(&self, bytes: usize, memory: Memory) {
        lock(&self.0).entry(bytes).or_default().push(memory);
    }
}

/// What a storage knows of the graphs that use it: told when it is freed.
#[derive(Default)]
pub(super) struct Users(Mutex<Vec<Arc<AtomicBool>>>);

impl Drop for Users {
    fn drop(&mut self) {
        for stale in self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            stale.store(true, Ordering::Relaxed);
        }
    }
}

struct Recording {
    device: Device,
    owner: Owner,
    work: Vec<HostWork>,
}

thread_local! {
    /// Whether [`RECORDING`] holds something: cheap enough for every launch.
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // the maps are whole between statements
}

/// Runs `f` on what this thread records on `device`, if it does.
fn with<R>(device: &Device, f: impl FnOnce(&mut Recording) -> R) -> Option<R> {
    if !ACTIVE.get() {
        return None;
    }
    RECORDING.with_borrow_mut(|recording| recording.as_mut().filter(|r| r.device == *device).map(f))
}

/// Notes work of a host device; `false` if this thread records nothing, so that the caller runs it. On a GPU the
/// stream records by itself.
pub(super) fn note(device: &Device, work: impl FnOnce() -> HostWork) -> bool {
    // Outside the borrow: asking for an address comes back here to `touch`.
    let work = with(device, |_| ()).map(|()| work());
    work.is_some_and(|work| with(device, |recording| recording.work.push(work)).is_some())
}

/// A block for an allocation inside a recording, with the arena it goes back to.
pub(super) fn alloc(device: &Device, bytes: usize) -> Option<(Arc<Arena>, Option<Memory>)> {
    with(device, |recording| {
        let arena = recording.owner.arena.clone();
        let block = arena.take(bytes);
        (arena, block)
    })
}

/// Remembers that the recording uses a storage, unless it is one of its own.
pub(super) fn touch(device: &Device, arena: Option<&Arc<Arena>>, users: &Users) {
    with(device, |recording| {
        if arena.is_some_and(|arena| Arc::ptr_eq(arena, &recording.owner.arena)) {
            return;
        }
        let (stale, mut users) = (&recording.owner.stale, lock(&users.0));
        if users.last().is_none_or(|last| !Arc::ptr_eq(last, stale)) {
            users.push(stale.clone());
        }
    });
}

impl Device {
    /// An error if this thread records on this device: "it `what`" cannot be part of a recording.
    pub(crate) fn refuse_recording(&self, what: &str) -> Result<()> {
        match with(self, |_| ()) {
            None => Ok(()),
            Some(()) => Err(Error::Recording { cause: format!("it {what}") }),
        }
    }

    /// Records what `f` starts on this device on this thread, without running any of it, and gives what `f` returned:
    /// tensors in it have contents after the first [`replay`](Graph::replay). Run the same work once before, so that
    /// kernels are loaded and products planned. On a GPU nothing else may use the device meanwhile: it has one stream, and
    /// what other threads start on it would become part of the recording.
    ///
    /// # Errors
    /// [`Error::Recording`] for work that cannot be recorded, and on the CPU; the error of `f`, if it has one.
    pub fn record<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<(R, Graph)> {
        /// Ends the recording of this thread whatever happens inside.
        struct Stop;
        impl Drop for Stop {
            fn drop(&mut self) {
                ACTIVE.set(false);
                RECORDING.take();
            }
        }
        if !self.records() {
            return Err(Error::Recording { cause: "the cpu runs operations, not launches".into() });
        }
        if ACTIVE.get() {
            return Err(Error::Recording { cause: "another recording of this thread is under way".into() });
        }
        let owner = Owner::default();
        let recording = Recording { device: self.clone(), owner: owner.clone(), work: vec![] };
        let (value, work) = match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => {
                let (value, graph) = d.record(|| {
                    let stop = start(recording, Stop);
                    let value = f();
                    drop(stop);
                    value
                })?;
                (value, Work::Cuda(graph))
            }
            _ => {
                let stop = start(recording, Stop);
                let value = f()?;
                let noted = RECORDING.take();
                drop(stop);
                (value, Work::Host(noted.map(|r| r.work).unwrap_or_default()))
            }
        };
        Ok((value, Graph { work, owner }))
    }
}

fn start<S>(recording: Recording, stop: S) -> S {
    RECORDING.set(Some(recording));
    ACTIVE.set(true);
    stop
}

/// Whether this thread records on a GPU: memory freed now may not be freed in stream order.
#[cfg(feature = "cuda")]
pub(super) fn recording_on_a_gpu() -> bool {
    ACTIVE.get() && RECORDING.with_borrow(|r| r.as_ref().is_some_and(|r| matches!(r.device, Device::Cuda(_))))
}

impl Graph {
    /// Whether a tensor that the work uses was freed since, so that it can no longer run.
    pub fn is_stale(&self) -> bool {
        self.owner.stale.load(Ordering::Relaxed)
    }

    /// Runs the recorded work again, in order, on the contents that memory has now. Waits for nothing on a GPU.
    ///
    /// # Errors
    /// [`Error::Recording`] if a tensor that the work uses was freed since; otherwise what the work itself meets.
    pub fn replay(&mut self) -> Result<()> {
        if self.is_stale() {
            return Err(Error::Recording { cause: "a tensor that the recorded work uses was freed".into() });
        }
        match &mut self.work {
            // SAFETY: `run` needs live memory. Blocks of the recording are the arena's or belong to a storage that gives
            // them back to it, and `self` holds the arena; every other storage whose address was asked for during the
            // recording has `stale` among its users, which is not set. Slices of emulated tensors are held by tests and by
            // host checks within one call, neither of which calls this.
            Work::Host(work) => work.iter().try_for_each(|work| unsafe { work.run() }),
            #[cfg(feature = "cuda")]
            Work::Cuda(graph) => graph.launch(),
        }
    }
}

impl HostWork {
    /// # Safety
    /// Every range in it is live, and nobody else reads or writes what it writes.
    unsafe fn run(&self) -> Result<()> {
        match self {
            Self::Launch { kernel, grid, block, shared, args } => {
                Device::emulate(kernel, super::Launch { grid: *grid, block: *block, shared: *shared }, args)
            }
            Self::Gemm { spec, a, b, bias, d } => {
                // SAFETY: passed on from the caller.
                let (a, b, bias, d) = unsafe { (a.get(), b.get(), bias.map(|x| x.get()), d.get_mut()) };
                gemm::on_host(spec, a, b, bias, d)
            }
            Self::Copy { from, to } => {
                // SAFETY: passed on from the caller.
                unsafe { to.get_mut().copy_from_slice(from.get()) };
                Ok(())
            }
            Self::Fill { to, pattern } => {
                // SAFETY: passed on from the caller.
                fill(unsafe { to.get_mut() }, *pattern);
                Ok(())
            }
        }
    }
}

/// Repeats `pattern` over `bytes`.
pub(super) fn fill(bytes: &mut [u8], pattern: [u8; 4]) {
    bytes.chunks_mut(4).for_each(|chunk| chunk.copy_from_slice(&pattern[..chunk.len()]));
}

impl Bytes {
    /// # Safety
    /// The range is live and initialised, and nobody writes it meanwhile.
    unsafe fn get<'a>(self) -> &'a [u8] {
        let start = std::ptr::with_exposed_provenance(self.address as usize);
        // SAFETY: passed on from the caller.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }

    /// # Safety
    /// As for [`get`](Self::get), and nobody reads it meanwhile.
    unsafe fn get_mut<'a>(self) -> &'a mut [u8] {
        #[cfg(feature = "emulator")]
        super::emulated::mark_written(self.address, self.len);
        let start = std::ptr::with_exposed_provenance_mut(self.address as usize);
        // SAFETY: passed on from the caller.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{add, scale};
    use crate::testing::devices;
    use crate::{DType, Tensor};

    fn tensor(values: &[f32], device: &Device) -> Tensor {
        Tensor::from_slice(values, [values.len()], device).unwrap()
    }

    #[test]
    fn a_replay_reads_what_memory_holds_then() {
        for device in &devices() {
            let mut x = tensor(&[1.0, 2.0, 3.0], device);
            let run = || {
                let double = scale::forward(&x, 2.0)?;
                add::forward(&double, &Tensor::full([3], 0.5f32, device)?)
            };
            let (y, mut graph) = device.record(run).unwrap();
            graph.replay().unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [2.5, 4.5, 6.5]);
            x.copy_from(&tensor(&[-1.0, 0.0, 8.0], device)).unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [2.5, 4.5, 6.5]);
            graph.replay().unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [-1.5, 0.5, 16.5]);
        }
    }

    #[test]
    fn what_cannot_be_recorded_is_named() {
        for device in &devices() {
            let x = tensor(&[1.0], device);
            let refused = |f: &dyn Fn() -> Result<()>| device.record(f).map(|_| ()).unwrap_err().to_string();
            let upload = refused(&|| Tensor::from_slice(&[1.0f32], [1], device).map(|_| ()));
            assert_eq!(upload, "the step cannot be recorded: it copies values to the device");
            let read = refused(&|| x.to_vec::<f32>().map(|_| ()));
            assert_eq!(read, "the step cannot be recorded: it reads values back from the device");
            let nested = refused(&|| device.record(|| Ok(())).map(|_| ()));
            assert_eq!(nested, "the step cannot be recorded: another recording of this thread is under way");
            assert!(Device::Cpu.record(|| Ok(())).is_err());
            // Nothing is left of a recording that failed.
            assert_eq!(x.to_vec::<f32>().unwrap(), [1.0]);
        }
    }

    #[test]
    fn a_graph_refuses_freed_memory_and_keeps_its_own() {
        for device in &devices() {
            let x = tensor(&[1.0, 2.0], device);
            let (y, mut graph) = device.record(|| scale::forward(&scale::forward(&x, 3.0)?, 2.0)).unwrap();
            graph.replay().unwrap();
            drop(y); // its own
            graph.replay().unwrap();
            drop(x);
            let error = graph.replay().unwrap_err().to_string();
            assert_eq!(error, "the step cannot be recorded: a tensor that the recorded work uses was freed");
        }
    }

    #[test]
    fn blocks_are_used_again_within_a_recording() {
        for device in &devices() {
            let x = Tensor::zeros([1000], DType::F32, device).unwrap();
            let run = || {
                let mut y = scale::forward(&x, 2.0)?;
                for _ in 0..10 {
                    y = scale::forward(&y, 2.0)?;
                }
                Ok(y)
            };
            let one = || Tensor::uninit_like(&x).unwrap();
            let (_, block) = device.peak_bytes(one).unwrap(); // a GPU rounds up
            let (recorded, bytes) = device.peak_bytes(|| device.record(run).unwrap()).unwrap();
            assert_eq!(bytes, 2 * block);
            drop(recorded);
        }
    }
}
