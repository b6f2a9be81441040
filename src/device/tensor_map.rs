//! Tensor maps: what a bulk copy (TMA) of a Hopper kernel moves between global and shared memory.
//!
//! A kernel takes a [`TensorMap`] as a member of its argument struct, which then is aligned to 64 bytes, and uses it
//! through `tensor_load` and `tensor_store` of `kernels/ptx_sm90.cuh`:
//!
//! ```
//! use bytemuck::{Pod, Zeroable};
//! use ocellus::device::{TensorBox, TensorMap};
//! use ocellus::{DType, Device};
//!
//! /// `struct Args { TensorMap x; unsigned rows; unsigned pad[15]; };`
//! #[repr(C)]
//! #[derive(Clone, Copy, Debug, Pod, Zeroable)]
//! struct Args {
//!     x: TensorMap,
//!     rows: u32,
//!     pad: [u32; 15],
//! }
//!
//! // Boxes of 64 x 64 of a [100, 200] matrix, in shared memory as wgmma reads them.
//! let spec = TensorBox { dtype: DType::BF16, shape: &[100, 200], strides: &[200], tile: &[64, 64], swizzle: 128 };
//! # let address = 0x1000;
//! # if let Ok(device) = Device::emulated() {
//! let args = Args { x: device.tensor_map(address, &spec)?, rows: 100, pad: [0; 15] };
//! # }
//! # Ok::<(), ocellus::Error>(())
//! ```

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::Device;
use crate::{DType, Error, Result};

/// A tensor in global memory and the box that one copy moves, in the form of the device it was made for.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct TensorMap {
    words: [u64; 16],
}

impl fmt::Debug for TensorMap {
    /// The tensor's address, as other pointers of an argument struct appear.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words[0].fmt(f)
    }
}

/// What a [`TensorMap`] is made from. Dimensions are ordered as in shapes, the contiguous one last.
#[derive(Clone, Copy, Debug)]
pub struct TensorBox<'a> {
    /// Element type: f32, bf16 or f16.
    pub dtype: DType,
    /// Shape of the tensor, two to four dimensions.
    pub shape: &'a [usize],
    /// Elements from one index to the next in every dimension but the last.
    pub strides: &'a [usize],
    /// Shape of the box that one copy moves. What of it lies outside the tensor is loaded as zero and not stored.
    pub tile: &'a [usize],
    /// Bytes of the pattern in which the box lies in shared memory: 0, or a row of the box, which is 32, 64 or 128.
    pub swizzle: usize,
}

impl TensorBox<'_> {
    /// The instructions' conditions; `address`: of the tensor's first element.
    fn check(&self, address: u64) -> Result<()> {
        const OP: &str = "tensor_map";
        let rank = self.shape.len();
        if !matches!(self.dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::argument(OP, "dtype", "dtype", self.dtype.name(), "f32, bf16 or f16"));
        }
        if !(2..=4).contains(&rank) || self.shape.iter().any(|size| *size == 0 || *size > u32::MAX as usize) {
            return Err(Error::shape(OP, "shape", self.shape, "two to four dimensions of 1 to 4294967295"));
        }
        if !address.is_multiple_of(16) {
            return Err(Error::value(OP, "address", format!("{address:#x}"), "a multiple of 16"));
        }
        let bytes = |elements: usize| elements.saturating_mul(self.dtype.size());
        let fits = |stride: &usize| bytes(*stride).is_multiple_of(16) && (16..1 << 40).contains(&bytes(*stride));
        if self.strides.len() != rank - 1 || !self.strides.iter().all(fits) {
            let expected = format!("{} strides of a multiple of 16 bytes below 2^40", rank - 1);
            return Err(Error::argument(OP, "strides", "value", format!("{:?}", self.strides), expected));
        }
        let row = bytes(*self.tile.last().unwrap_or(&0));
        if self.tile.len() != rank || self.tile.iter().any(|size| !(1..=256).contains(size)) || !row.is_multiple_of(16)
        {
            let expected = format!("{rank} dimensions of 1 to 256, rows of a multiple of 16 bytes");
            return Err(Error::shape(OP, "tile", self.tile, expected));
        }
        if self.swizzle != 0 && (!matches!(self.swizzle, 32 | 64 | 128) || self.swizzle != row) {
            return Err(Error::value(
                OP,
                "swizzle",
                self.swizzle,
                format!("0, or a row of the box ({row} bytes) if 32, 64 or 128"),
            ));
        }
        Ok(())
    }

    /// `struct EmuTensorMap` of `kernels/emulator/emu_api.h`.
    #[cfg(feature = "emulator")]
    fn for_emulator(&self, address: u64) -> TensorMap {
        const MARK: u64 = 0x000c_e105;
        let rank = self.shape.len();
        let mut words = [0; 16];
        words[0] = address;
        words[1] = MARK | (rank as u64) << 32 | (self.dtype.size() as u64) << 40 | (self.swizzle as u64) << 48;
        for (at, (size, tile)) in self.shape.iter().zip(self.tile).rev().enumerate() {
            (words[2 + at], words[9 + at]) = (*size as u64, *tile as u64);
        }
        for (at, stride) in self.strides.iter().rev().enumerate() {
            words[6 + at] = (stride * self.dtype.size()) as u64;
        }
        TensorMap { words }
    }
}

impl Device {
    /// A map of the tensor at `address` on this device, for kernels of Hopper GPUs.
    ///
    /// # Errors
    /// [`Error::Argument`] if the copy engine cannot move such boxes; [`Error::Driver`] if the driver refuses;
    /// [`Error::DeviceUnavailable`] on [`Device::Cpu`], which has no kernels.
    pub fn tensor_map(&self, address: u64, spec: &TensorBox) -> Result<TensorMap> {
        spec.check(address)?;
        match self {
            #[cfg(feature = "emulator")]
            Self::Emulated => Ok(spec.for_emulator(address)),
            #[cfg(not(feature = "emulator"))]
            Self::Emulated => Err(Self::no_emulator()),
            Self::Cpu => Err(Error::DeviceUnavailable {
                device: self.name(),
                cause: "tensor maps are for kernels, and the CPU runs references".into(),
            }),
            #[cfg(feature = "cuda")]
            Self::Cuda(d) => d.tensor_map(address, spec),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(d) => match **d {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: TensorBox =
        TensorBox { dtype: DType::BF16, shape: &[100, 200], strides: &[200], tile: &[64, 64], swizzle: 128 };

    fn refusal(address: u64, spec: &TensorBox) -> String {
        spec.check(address).unwrap_err().to_string()
    }

    #[test]
    fn what_the_copy_engine_cannot_move_is_refused() {
        SPEC.check(0x1000).unwrap();
        TensorBox { tile: &[256, 8], swizzle: 0, ..SPEC }.check(0x1000).unwrap();
        assert_eq!(refusal(0x1008, &SPEC), "tensor_map: `address` has value 0x1008, expected a multiple of 16");
        for (spec, argument) in [
            (TensorBox { dtype: DType::F64, ..SPEC }, "`dtype` has dtype f64"),
            (TensorBox { shape: &[100], ..SPEC }, "`shape` has shape [100]"),
            (TensorBox { shape: &[100, 0], ..SPEC }, "`shape` has shape [100, 0]"),
            (TensorBox { strides: &[204], ..SPEC }, "`strides` has value [204]"),
            (TensorBox { strides: &[], ..SPEC }, "`strides` has value []"),
            (TensorBox { tile: &[257, 64], ..SPEC }, "`tile` has shape [257, 64]"),
            (TensorBox { tile: &[64, 60], swizzle: 0, ..SPEC }, "`tile` has shape [64, 60]"),
            (TensorBox { tile: &[64], ..SPEC }, "`tile` has shape [64]"),
            (TensorBox { tile: &[64, 128], ..SPEC }, "`swizzle` has value 128"),
            (TensorBox { tile: &[64, 32], ..SPEC }, "`swizzle` has value 128"),
            (TensorBox { tile: &[64, 8], swizzle: 16, ..SPEC }, "`swizzle` has value 16"),
        ] {
            let text = refusal(0x1000, &spec);
            assert!(text.contains(argument), "{text}");
        }
    }

    #[test]
    fn it_fits_an_argument_struct() {
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
        assert!(Device::Cpu.tensor_map(0x1000, &SPEC).is_err());
    }
}
