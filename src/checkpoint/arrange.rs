//! Tensors on the host cut, stacked and turned, exactly and whatever their dtype.

use super::StateDict;
use crate::{Device, Error, Result, Tensor};

/// Stacks tensors of one dtype along the first axis; the other axes agree.
pub(super) fn join(parts: &[&Tensor]) -> Result<Tensor> {
    let first = parts.first().ok_or_else(|| Error::argument("join", "parts", "length", "0", "at least 1"))?;
    let mut shape = first.shape().to_vec();
    if shape.is_empty() {
        return Err(Error::shape("join", "parts", &shape, "at least one axis"));
    }
    shape[0] = 0;
    for part in parts {
        if part.shape().len() != shape.len() || part.shape()[1..] != shape[1..] || part.dtype() != first.dtype() {
            return Err(Error::shape("join", "parts", part.shape(), format!("as {first:?} but for the first axis")));
        }
        shape[0] += part.shape()[0];
    }
    let bytes = parts.iter().map(|t| StateDict::bytes_of(t)).collect::<Result<Vec<_>>>()?.concat();
    Tensor::from_bytes(&bytes, shape, first.dtype(), &Device::Cpu)
}

/// Cuts the first axis into `count` equal parts.
///
/// # Errors
/// When its extent is not a multiple of `count`.
pub(super) fn split(tensor: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let mut shape = tensor.shape().to_vec();
    let Some(rows) = shape.first_mut().filter(|rows| rows.is_multiple_of(count)) else {
        return Err(Error::shape("split", "tensor", tensor.shape(), format!("{count} times as many rows")));
    };
    *rows /= count;
    let bytes = StateDict::bytes_of(tensor)?;
    let size = bytes.len() / count;
    let part =
        |at: usize| Tensor::from_bytes(&bytes[at * size..(at + 1) * size], shape.clone(), tensor.dtype(), &Device::Cpu);
    (0..count).map(part).collect()
}

/// Axis `i` of the result is axis `axes[i]` of `tensor`.
pub(super) fn permuted(tensor: &Tensor, axes: &[usize]) -> Result<Tensor> {
    let old = tensor.shape();
    if old.len() != axes.len() {
        return Err(Error::shape("permuted", "tensor", old, format!("{} axes", axes.len())));
    }
    let shape: Vec<usize> = axes.iter().map(|&a| old[a]).collect();
    let stride = |axis: usize| old[axis + 1..].iter().product::<usize>();
    let strides: Vec<usize> = axes.iter().map(|&a| stride(a)).collect();
    let (bytes, size) = (StateDict::bytes_of(tensor)?, tensor.dtype().size());
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = vec![0; shape.len()];
    for _ in 0..tensor.numel() {
        let from = at.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>() * size;
        out.extend_from_slice(&bytes[from..from + size]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Tensor::from_bytes(&out, shape, tensor.dtype(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn counted(shape: &[usize]) -> Tensor {
        let values: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
        Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn axes_are_turned_and_turned_back() {
        let x = counted(&[2, 3]);
        assert_eq!(permuted(&x, &[1, 0]).unwrap().to_vec::<i32>().unwrap(), [0, 3, 1, 4, 2, 5]);
        let x = counted(&[2, 3, 4, 5]);
        let y = permuted(&x, &[3, 2, 0, 1]).unwrap();
        assert_eq!(y.shape()[..], [5, 4, 2, 3]);
        assert_eq!(y.to_vec::<i32>().unwrap()[..7], [0, 20, 40, 60, 80, 100, 5]);
        let back = permuted(&y, &[2, 3, 1, 0]).unwrap();
        assert_eq!((back.shape(), back.to_vec::<i32>().unwrap()), (x.shape(), x.to_vec::<i32>().unwrap()));
    }

    #[test]
    fn what_was_cut_is_stacked_again() {
        let x = counted(&[6, 2]);
        let parts = split(&x, 3).unwrap();
        assert_eq!(parts[1].to_vec::<i32>().unwrap(), [4, 5, 6, 7]);
        let back = join(&parts.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((back.shape(), back.to_vec::<i32>().unwrap()), (x.shape(), x.to_vec::<i32>().unwrap()));
        let uneven = join(&[&parts[0], &x]).unwrap();
        assert_eq!(uneven.shape()[..], [8, 2]);
        assert!(split(&x, 4).is_err() && split(&counted(&[]), 1).is_err());
        assert!(join(&[&x, &counted(&[6, 3])]).is_err() && join(&[]).is_err());
        assert!(join(&[&x, &Tensor::zeros([6, 2], DType::F32, &Device::Cpu).unwrap()]).is_err());
    }
}
