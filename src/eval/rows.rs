//! Rows of embeddings.

use crate::{DType, Device, Result, Tensor};

/// Each row of `[N, d]` at unit length, f32 on the CPU; rows of zeros stay.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let [_, dim] = x.dims("unit", "features")?;
    let mut values = x.cast(DType::F32)?.to_vec::<f32>()?;
    for row in values.chunks_exact_mut(dim.max(1)) {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
    Tensor::from_slice(&values, x.shape().clone(), &Device::Cpu)
}
