//! Where tensors live and kernels run. Three devices, one launch seam: [`Device::launch`].
//!
//! | | memory | kernels | GEMM |
//! |---|---|---|---|
//! | [`Device::Cpu`] | host pool | the plain Rust references | the `gemm` crate |
//! | [`Device::Emulated`] | host pool, registered with the emulator | `kernels/*.cu` as C++ with checks | the `gemm` crate |
//! | [`Device::Cuda`] | stream-ordered CUDA pool | `kernels/*.cu` as fatbins | cuBLASLt |
#![allow(unsafe_code)] // memory and launches are this layer's business; everything above is safe

#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulator")]
pub mod emulated;
pub mod gemm;
pub mod graph;
pub mod host;
pub mod small_gemm;
pub mod tensor_map;
pub mod window;

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

#[cfg(feature = "cuda")]
pub use cuda::CudaDevice;
use host::HostBuffer;
pub use tensor_map::{TensorBox, TensorMap};

use crate::{DType, Error, Result};

/// A GPU of a build without the feature `cuda`: has no values.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum CudaDevice {}

/// Where a tensor lives.
#[derive(Clone)]
pub enum Device {
    /// Host memory, plain Rust references, all cores.
    Cpu,
    /// Host memory, the CUDA kernels run by the checking emulator (feature `emulator`).
    Emulated,
    /// An NVIDIA GPU.
    Cuda(Arc<CudaDevice>),
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) | (Self::Emulated, Self::Emulated) => true,
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Grid of a kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads in one dimension, no dynamic shared memory.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 }
    }

    /// One warp for each of `rows` rows, `warps` of them to a block.
    pub const fn warp_per_row(rows: u32, warps: u32) -> Self {
        Self::linear(rows.div_ceil(warps), warps * 32)
    }
}

impl Device {
    /// The GPU with this ordinal.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] names what is missing: the feature, nvcc at build time, the driver or the GPU.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::Cuda(CudaDevice::new(ordinal)?));
        #[cfg(not(feature = "cuda"))]
        return Err(Error::DeviceUnavailable {
            device: format!("cuda:{ordinal}"),
            cause: "this build has no feature `cuda`; rebuild with it".into(),
        });
    }

    /// The emulator.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] in a build without the feature `emulator`.
    pub fn emulated() -> Result<Self> {
        if cfg!(feature = "emulator") { Ok(Self::Emulated) } else { Err(Self::no_emulator()) }
    }

    /// Parses `cpu`, `emulated`, `cuda` or `cuda:N`.
    pub fn parse(name: &str) -> Result<Self> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", _) => Ok(Self::Cpu),
            ("emulated", _) => Self::emulated(),
            ("cuda", n) if n.parse::<usize>().is_ok() => Self::cuda(n.parse().unwrap_or(0)),
            _ => Err(Error::config("device", name, "cpu, emulated, cuda or cuda:N")),
        }
    }

    /// `cpu`, `emulated`, `cuda:0`.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".into(),
            Self::Emulated => "emulated".into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => format!("cuda:{}", d.ordinal()),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }

    /// What a person would call it: the GPU's name and compute capability.
    pub fn description(&self) -> String {
        match self {
            Self::Cpu | Self::Emulated => self.name(),
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => format!("{d:?}"),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }

    /// Whether tensors of this device are ordinary host memory.
    pub fn is_host(&self) -> bool {
        !matches!(self, Self::Cuda(_))
    }

    /// Whether work on this device can be [recorded](Self::record): what a batch leads to should then not depend on it in
    /// its shapes.
    pub fn records(&self) -> bool {
        *self != Self::Cpu
    }

    /// Waits until everything launched so far is done.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu | Self::Emulated => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => {
                self.refuse_recording("waits for the device")?;
                d.synchronize()
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }

    /// Runs `f` and says how many bytes it held on this device at most, beyond what was there before it: on a host
    /// device in buffers that the calling thread made, on a GPU in the whole pool.
    ///
    /// # Errors
    /// [`Error::Driver`] if the pool's counters cannot be read.
    pub fn peak_bytes<R>(&self, f: impl FnOnce() -> R) -> Result<(R, usize)> {
        match self {
            Self::Cpu | Self::Emulated => Ok(host::peak_bytes(f)),
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => {
                d.synchronize()?;
                d.reset_peak()?;
                let before = d.usage()?.0;
                let result = f();
                d.synchronize()?;
                Ok((result, d.usage()?.1.saturating_sub(before)))
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }

    /// Bytes of shared memory, dynamic and static together, that a block of a kernel may have.
    pub fn shared_limit(&self) -> usize {
        match self {
            Self::Cpu => 0,
            #[cfg(feature = "emulator")]
            Self::Emulated => emulated::options().shared_limit as usize,
            #[cfg(not(feature = "emulator"))]
            Self::Emulated => 0,
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => d.shared_limit(),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }

    fn no_emulator() -> Error {
        Error::DeviceUnavailable {
            device: "emulated".into(),
            cause: "this build has no feature `emulator`; rebuild with `--features emulator` and a C++ compiler".into(),
        }
    }

    /// Launches `<kernel>_<dtype>` of `kernels/<stem>.cu` with one argument struct. [`Device::Cpu`] has no kernels.
    ///
    /// # Safety
    /// Every pointer inside `args` must be valid on this device for the extent the kernel's struct states, until the
    /// launch has run; outputs must not alias other arguments unless the kernel says so.
    pub unsafe fn launch<A: bytemuck::Pod + fmt::Debug>(
        &self,
        stem: &'static str,
        kernel: &'static str,
        dtype: DType,
        launch: Launch,
        args: &A,
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(()); // nothing to do: an empty grid is not a legal launch
        }
        let name = format!("{kernel}_{dtype}");
        #[cfg(feature = "emulator")]
        if *self == Self::Emulated {
            emulated::name_pointers(args);
        }
        let args = bytemuck::bytes_of(args);
        match self {
            Self::Cpu => Err(Error::Launch {
                kernel: name,
                device: self.name(),
                grid: launch.grid,
                block: launch.block,
                cause: "the CPU runs references, not kernels".into(),
            }),
            Self::Emulated => {
                let _ = stem; // the emulated build knows kernels by name alone
                let Launch { grid, block, shared } = launch;
                let work =
                    || graph::HostWork::Launch { kernel: name.clone(), grid, block, shared, args: args.to_vec() };
                if graph::note(self, work) { Ok(()) } else { Self::emulate(&name, launch, args) }
            }
            // SAFETY: passed on from the caller.
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => unsafe { d.launch(&name, stem, launch.grid, launch.block, launch.shared, args) },
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => {
                let _ = stem;
                match **d {}
            }
        }
    }
}

impl Device {
    /// Runs a kernel on the emulator, which checks its accesses against the registered memory.
    #[cfg_attr(not(feature = "emulator"), allow(unused_variables))]
    fn emulate(kernel: &str, launch: Launch, args: &[u8]) -> Result<()> {
        #[cfg(feature = "emulator")]
        return emulated::launch(kernel, launch.grid, launch.block, launch.shared, args).map_err(|cause| {
            Error::Launch {
                kernel: kernel.into(),
                device: Self::Emulated.name(),
                grid: launch.grid,
                block: launch.block,
                cause,
            }
        });
        #[cfg(not(feature = "emulator"))]
        Err(Self::no_emulator())
    }
}

/// Kernel files compiled for GPUs into this binary, with their architectures.
pub fn compiled_kernels() -> Vec<(&'static str, &'static [&'static str])> {
    #[cfg(feature = "cuda")]
    return cuda::compiled();
    #[cfg(not(feature = "cuda"))]
    return vec![];
}

/// Number of kernels the emulator knows.
pub fn emulated_kernels() -> usize {
    #[cfg(feature = "emulator")]
    return emulated::kernels().len();
    #[cfg(not(feature = "emulator"))]
    return 0;
}

enum Memory {
    Host(HostBuffer),
    #[cfg(feature = "cuda")]
    Cuda(cuda::CudaBuffer),
}

/// An allocation on a device.
pub struct Storage {
    device: Device,
    bytes: usize,
    memory: ManuallyDrop<Memory>,
    /// Of the recording that made it: the block goes back there.
    arena: Option<Arc<graph::Arena>>,
    users: graph::Users,
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: taken once, here; nothing reads the field afterwards.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        if let Some(arena) = self.arena.take() {
            arena.give_back(self.bytes, memory);
        }
    }
}

impl Storage {
    /// Allocates; contents are arbitrary but initialised on the host.
    pub fn alloc(device: &Device, bytes: usize) -> Result<Self> {
        let (arena, free) = graph::alloc(device, bytes).map_or((None, None), |(arena, free)| (Some(arena), free));
        let memory = match (free, device) {
            (Some(memory), _) => memory,
            (None, Device::Cpu) => Memory::Host(HostBuffer::alloc(bytes, false)?),
            (None, Device::Emulated) if cfg!(feature = "emulator") => Memory::Host(HostBuffer::alloc(bytes, true)?),
            (None, Device::Emulated) => return Err(Device::no_emulator()),
            #[cfg(feature = "cuda")]
            (None, Device::Cuda(d)) => Memory::Cuda(d.alloc(bytes)?),
            #[cfg(not(feature = "cuda"))]
            (None, Device::Cuda(d)) => match **d {},
        };
        let (memory, users) = (ManuallyDrop::new(memory), graph::Users::default());
        Ok(Self { device: device.clone(), bytes, memory, arena, users })
    }

    /// Device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address for kernels that read.
    pub fn ptr(&self) -> u64 {
        graph::touch(&self.device, self.arena.as_ref(), &self.users);
        match &*self.memory {
            Memory::Host(b) => b.ptr(),
            #[cfg(feature = "cuda")]
            Memory::Cuda(b) => b.ptr(),
        }
    }

    /// Contents, when this is host memory.
    pub fn host(&self) -> Option<&[u8]> {
        match &*self.memory {
            Memory::Host(b) => Some(b.bytes()),
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => None,
        }
    }

    /// Contents for writing, when this is host memory.
    pub fn host_mut(&mut self) -> Option<&mut [u8]> {
        match &mut *self.memory {
            Memory::Host(b) => Some(b.bytes_mut()),
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => None,
        }
    }

    /// Copies host bytes in; the lengths are equal.
    pub fn upload(&mut self, from: &[u8]) -> Result<()> {
        debug_assert_eq!(from.len(), self.bytes);
        self.device.refuse_recording("copies values to the device")?;
        match &mut *self.memory {
            Memory::Host(b) => b.bytes_mut().copy_from_slice(from),
            #[cfg(feature = "cuda")]
            Memory::Cuda(b) => b.upload(from)?,
        }
        Ok(())
    }

    /// Copies out to host bytes; the lengths are equal. Waits for the device.
    pub fn download(&self, to: &mut [u8]) -> Result<()> {
        debug_assert_eq!(to.len(), self.bytes);
        self.device.refuse_recording("reads values back from the device")?;
        match &*self.memory {
            Memory::Host(b) => to.copy_from_slice(b.bytes()),
            #[cfg(feature = "cuda")]
            Memory::Cuda(b) => b.download(to)?,
        }
        Ok(())
    }

    /// Sets every byte to zero.
    pub fn zero(&mut self) -> Result<()> {
        self.fill([0; 4])
    }

    /// Repeats the bytes of `pattern`; a size that is no multiple of four ends within it.
    pub fn fill(&mut self, pattern: [u8; 4]) -> Result<()> {
        let (device, to) = (self.device.clone(), self.range());
        match &mut *self.memory {
            Memory::Host(_) if graph::note(&device, || graph::HostWork::Fill { to, pattern }) => {}
            Memory::Host(b) => graph::fill(b.bytes_mut(), pattern),
            #[cfg(feature = "cuda")]
            Memory::Cuda(b) => b.fill(pattern)?,
        }
        Ok(())
    }

    fn range(&self) -> graph::Bytes {
        graph::Bytes { address: self.ptr(), len: self.bytes }
    }

    /// Copies from an allocation of the same size on the same device.
    pub fn copy_from(&mut self, from: &Storage) -> Result<()> {
        if self.device != from.device {
            self.device.refuse_recording("copies from another device")?;
            from.device.refuse_recording("copies to another device")?;
        }
        let (device, source, target) = (self.device.clone(), from.range(), self.range());
        match (&mut *self.memory, &*from.memory) {
            (Memory::Host(_), Memory::Host(_))
                if graph::note(&device, || graph::HostWork::Copy { from: source, to: target }) => {}
            (Memory::Host(to), Memory::Host(from)) => to.bytes_mut().copy_from_slice(from.bytes()),
            #[cfg(feature = "cuda")]
            (Memory::Cuda(to), Memory::Cuda(from)) => to.copy_from(from)?,
            #[cfg(feature = "cuda")]
            (Memory::Cuda(to), Memory::Host(from)) => to.upload(from.bytes())?,
            #[cfg(feature = "cuda")]
            (Memory::Host(to), Memory::Cuda(from)) => from.download(to.bytes_mut())?,
        }
        Ok(())
    }
}
