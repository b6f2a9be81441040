//! Casts between float types and in-place accumulation: what gradients need below the level of operations.

use rayon::prelude::*;

use super::{Tensor, launch};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{DType, Device, Error, Result, with_float};

impl Tensor {
    /// The same values in another float type, rounded to nearest even; no copy if the type is the same.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let mut y = Self::uninit(self.shape().clone(), dtype, self.device())?;
        match self.device() {
            Device::Cpu => with_float!("cast", "x", self.dtype(), S => with_float!("cast", "dtype", dtype, T => {
                let (x, y) = (self.as_slice::<S>()?, y.as_mut_slice::<T>()?);
                y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| cast_slice(x, y));
                Ok::<(), Error>(())
            }))?,
            _ => launch::cast(self, &mut y)?,
        }
        Ok(y)
    }

    /// Elements widened to f64; waits for the device.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match self.dtype() {
            DType::I32 => Ok(self.to_vec::<i32>()?.into_iter().map(f64::from).collect()),
            DType::U8 => Ok(self.to_vec::<u8>()?.into_iter().map(f64::from).collect()),
            float => with_float!("to_f64", "self", float, T => {
                Ok(self.to_vec::<T>()?.into_iter().map(|x| x.get().f64()).collect())
            }),
        }
    }

    /// `self += x` in place, in the dtype of `self`.
    pub fn accumulate(&mut self, x: &Self) -> Result<()> {
        if self.shape().numel() != x.shape().numel() {
            return Err(Error::shape("accumulate", "x", x.shape(), format!("{}", self.shape())));
        }
        if self.device() != x.device() {
            return Err(Error::argument("accumulate", "x", "device", x.device().name(), self.device().name()));
        }
        match self.device() {
            Device::Cpu => {
                with_float!("accumulate", "x", x.dtype(), S => with_float!("accumulate", "self", self.dtype(), T => {
                    let (x, y) = (x.as_slice::<S>()?, self.as_mut_slice::<T>()?);
                    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| accumulate_slice(x, y));
                    Ok::<(), Error>(())
                }))
            }
            _ => launch::accumulate(self, &x.cast(self.dtype())?),
        }
    }
}

fn cast_slice<S: Float, T: Float>(x: &[S], y: &mut [T]) {
    simd(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::put(T::Acc::of(x.get().f64()));
            }
        },
    );
}

fn accumulate_slice<S: Float, T: Float>(x: &[S], y: &mut [T]) {
    simd(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::put(y.get() + T::Acc::of(x.get().f64()));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accumulated_is_on_the_same_device() {
        let Ok(emulated) = Device::emulated() else { return };
        let mut sum = Tensor::full([3], 1.0f32, &Device::Cpu).unwrap();
        let x = Tensor::full([3], 2.0f32, &emulated).unwrap();
        let error = sum.accumulate(&x).unwrap_err().to_string();
        assert_eq!(error, "accumulate: `x` has device emulated, expected cpu");
        sum.accumulate(&x.to_device(&Device::Cpu).unwrap()).unwrap();
        assert_eq!(sum.to_vec::<f32>().unwrap(), [3.0; 3]);
    }
}
