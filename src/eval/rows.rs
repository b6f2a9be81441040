//! Rows of embeddings.

use crate::{DType, Device, Error, Result, Tensor};

/// Each row of `[N, d]` at unit length, f32 on the CPU; rows of zeros stay.
///
/// # Errors
/// A value that is not finite: it compares with nothing, so that every rank made of it would be the best.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let [_, dim] = x.dims("unit", "features")?;
    let mut values = x.cast(DType::F32)?.to_vec::<f32>()?;
    for (number, row) in values.chunks_exact_mut(dim.max(1)).enumerate() {
        if let Some(bad) = row.iter().find(|v| !v.is_finite()) {
            return Err(Error::value("unit", "features", format!("{bad} in row {number}"), "finite numbers"));
        }
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
    Tensor::from_slice(&values, x.shape().clone(), &Device::Cpu)
}
