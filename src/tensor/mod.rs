//! Tensors: contiguous, row-major, reference-counted storage of a run-time dtype on a device.

mod convert;
mod launch;
pub mod random;

use std::fmt;
use std::sync::Arc;

pub(crate) use launch::elementwise;

use crate::device::{Device, Storage};
use crate::dtype::Element;
use crate::{DType, Error, Result, Shape};

/// A contiguous row-major array on a device. Cloning shares the storage; only an unshared tensor can be written.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    shape: Shape,
    dtype: DType,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.shape, self.device())
    }
}

impl Tensor {
    /// A tensor with arbitrary contents, to be written by an operation.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into();
        if dtype == DType::F64 && *device != Device::Cpu {
            return Err(Error::argument("tensor", "dtype", "dtype", "f64", format!("f32, bf16 or f16 on {device}")));
        }
        let storage = Storage::alloc(device, shape.numel() * dtype.size())?;
        Ok(Self { storage: Arc::new(storage), shape, dtype })
    }

    /// A tensor of the same shape, dtype and device with arbitrary contents.
    pub fn uninit_like(other: &Self) -> Result<Self> {
        Self::uninit(other.shape.clone(), other.dtype, other.device())
    }

    /// All zeros.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let mut t = Self::uninit(shape, dtype, device)?;
        t.storage_mut("zeros")?.zero()?;
        Ok(t)
    }

    /// Every element `value`.
    pub fn full<T: Element>(shape: impl Into<Shape>, value: T, device: &Device) -> Result<Self> {
        let bytes = bytemuck::bytes_of(&value);
        let Some(at) = bytes.len().checked_sub(1).filter(|at| *at < 4) else {
            let shape = shape.into(); // eight bytes: f64, on the CPU alone
            return Self::from_slice(&vec![value; shape.numel()], shape, device);
        };
        let mut t = Self::uninit(shape, T::DTYPE, device)?;
        t.storage_mut("full")?.fill(std::array::from_fn(|i| bytes[i & at]))?;
        Ok(t)
    }

    /// Copies host values to a device.
    ///
    /// # Errors
    /// When `values` does not have as many elements as `shape`.
    pub fn from_slice<T: Element>(values: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        if values.len() != shape.numel() {
            return Err(Error::argument(
                "from_slice",
                "values",
                "length",
                values.len().to_string(),
                format!("{} for shape {shape}", shape.numel()),
            ));
        }
        let mut t = Self::uninit(shape, T::DTYPE, device)?;
        t.storage_mut("from_slice")?.upload(bytemuck::cast_slice(values))?;
        Ok(t)
    }

    /// Copies raw bytes of `dtype` to a device.
    pub fn from_bytes(bytes: &[u8], shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let mut t = Self::uninit(shape, dtype, device)?;
        if bytes.len() != t.bytes() {
            let expected = format!("{} for shape {} of {dtype}", t.bytes(), t.shape);
            return Err(Error::argument("from_bytes", "bytes", "length", bytes.len().to_string(), expected));
        }
        t.storage_mut("from_bytes")?.upload(bytes)?;
        Ok(t)
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Extents as a fixed-size array, for `let [b, n, d] = x.dims("op", "x")?`.
    pub fn dims<const N: usize>(&self, op: &'static str, arg: &'static str) -> Result<[usize; N]> {
        let dims: &[usize] = &self.shape;
        dims.try_into().map_err(|_| Error::shape(op, arg, dims, format!("{N} axes")))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device it is on.
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.numel() != self.numel() {
            return Err(Error::shape(
                "reshape",
                "shape",
                &shape,
                format!("{} elements as {}", self.numel(), self.shape),
            ));
        }
        Ok(Self { storage: self.storage.clone(), shape, dtype: self.dtype })
    }

    /// The underlying allocation.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The underlying allocation for writing.
    ///
    /// # Errors
    /// [`Error::SharedTensor`] when a clone of this tensor exists.
    pub fn storage_mut(&mut self, op: &'static str) -> Result<&mut Storage> {
        Arc::get_mut(&mut self.storage).ok_or(Error::SharedTensor { op })
    }

    /// Whether a clone of this tensor exists, so that it cannot be written.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.storage) > 1
    }

    /// Address for kernels that read.
    pub fn ptr(&self) -> u64 {
        self.storage.ptr()
    }

    /// Address for kernels that write.
    pub fn ptr_mut(&mut self, op: &'static str) -> Result<u64> {
        Ok(self.storage_mut(op)?.ptr())
    }

    fn check_dtype<T: Element>(&self, op: &'static str) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Error::argument(op, "self", "dtype", self.dtype.name(), T::DTYPE.name()))
    }

    /// Elements in place; host devices only.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_dtype::<T>("as_slice")?;
        let bytes = self.storage.host().ok_or_else(|| self.not_host("as_slice"))?;
        Ok(bytemuck::cast_slice(bytes))
    }

    /// Elements in place for writing; host devices and unshared storage only.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check_dtype::<T>("as_mut_slice")?;
        let missing = self.not_host("as_mut_slice");
        let bytes = self.storage_mut("as_mut_slice")?.host_mut().ok_or(missing)?;
        Ok(bytemuck::cast_slice_mut(bytes))
    }

    fn not_host(&self, op: &'static str) -> Error {
        Error::argument(op, "self", "device", self.device().name(), "cpu or emulated")
    }

    /// Elements as a vector; waits for the device.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.check_dtype::<T>("to_vec")?;
        let mut out = vec![T::zeroed(); self.numel()];
        self.storage.download(bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// The single element of a scalar as f64, whatever its float type; waits for the device.
    pub fn item(&self) -> Result<f64> {
        match self.to_f64()?.as_slice() {
            [x] => Ok(*x),
            _ => Err(Error::shape("item", "self", &self.shape, "one element")),
        }
    }

    /// A copy that shares nothing.
    pub fn deep_clone(&self) -> Result<Self> {
        let mut t = Self::uninit_like(self)?;
        t.storage_mut("deep_clone")?.copy_from(&self.storage)?;
        Ok(t)
    }

    /// The same values on another device; no copy if they are there already.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let mut bytes = vec![0; self.bytes()];
        self.storage.download(&mut bytes)?;
        Self::from_bytes(&bytes, self.shape.clone(), self.dtype, device)
    }

    /// Overwrites with the values of a tensor of the same shape and dtype.
    pub fn copy_from(&mut self, from: &Self) -> Result<()> {
        if self.shape != from.shape || self.dtype != from.dtype {
            let expected = format!("{} of {}", self.shape, self.dtype);
            let given = format!("{} of {}", from.shape, from.dtype);
            return Err(Error::argument("copy_from", "from", "shape", given, expected));
        }
        let from = from.to_device(self.device())?;
        self.storage_mut("copy_from")?.copy_from(&from.storage)
    }
}
