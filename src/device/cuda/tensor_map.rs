//! Tensor maps as the driver encodes them.

use cudarc::driver::sys;

use super::CudaDevice;
use crate::device::{TensorBox, TensorMap};
use crate::{DType, Error, Result};

impl CudaDevice {
    /// Encodes a map; `spec` was checked.
    pub(in crate::device) fn tensor_map(&self, address: u64, spec: &TensorBox) -> Result<TensorMap> {
        use sys::CUtensorMapDataType as Type;
        use sys::CUtensorMapSwizzle as Swizzle;
        self.bind()?;
        if self.capability() < (9, 0) {
            return Err(Error::DeviceUnavailable {
                device: format!("cuda:{}", self.ordinal()),
                cause: format!("tensor maps need compute capability 9.0, this is {self:?}"),
            });
        }
        let dtype = match spec.dtype {
            DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        let swizzle = match spec.swizzle {
            0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // The driver counts from the contiguous dimension outwards.
        let sizes: Vec<u64> = spec.shape.iter().rev().map(|size| *size as u64).collect();
        let strides: Vec<u64> = spec.strides.iter().rev().map(|stride| (stride * spec.dtype.size()) as u64).collect();
        let tile: Vec<u32> = spec.tile.iter().rev().map(|size| *size as u32).collect();
        let steps = vec![1u32; tile.len()];
        let mut map: TensorMap = bytemuck::Zeroable::zeroed();
        // SAFETY: the map has the driver's size and alignment; the arrays hold `rank` entries, the strides one less.
        // The address is encoded and not followed.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                dtype,
                sizes.len() as u32,
                std::ptr::without_provenance_mut(address as usize),
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, // zeros
            )
        };
        encoded.result().map_err(self.failed("encode a tensor map"))?;
        Ok(map)
    }
}
