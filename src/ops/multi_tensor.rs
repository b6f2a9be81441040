//! What the in-place operations over many tensors share: one launch for all of them, driven by a table in device memory.
//!
//! The table holds one record per tensor (addresses, length, factors) and one entry per `chunk` elements, which is one
//! block of the grid. It is uploaded when it differs from the last one, so a training loop whose buffers stay where they
//! are uploads it once; and to where the last one was, if it is as long: a recorded launch reads the new one.

use bytemuck::{Pod, Zeroable};

use crate::dtype::{Float, Real};
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// Elements per block at most: 64 vectors of 4 for each of 256 threads, so that reading the record is a small part of the
/// work. Not measured yet.
pub(crate) const CHUNK: usize = 1 << 16;
/// Elements per block at least: two vectors for each thread.
const MIN_CHUNK: usize = 1 << 11;
/// Blocks below which they get smaller: 16 per SM of an H100, so that the last ones are a small part of the time. Not
/// measured yet.
const BLOCKS: usize = 2112;

/// Elements per block for `total` of them: a power of two.
fn chunk(total: usize) -> usize {
    let fits = total / BLOCKS + 1;
    (fits.next_power_of_two() / 2).clamp(MIN_CHUNK, CHUNK)
}

/// Threads per block of these kernels; not measured yet.
pub(crate) const THREADS: u32 = 256;

/// Elements per task of the CPU references: their streams together stay within a 2 MiB cache; not measured yet.
pub(crate) const TASK: usize = 1 << 14;

/// `struct Chunk` of kernels/multi_tensor.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Chunk {
    tensor: u32,
    index: u32,
}

/// What an operation over many tensors keeps between its calls: the table on the device and scratch memory. Use one per
/// list of tensors.
#[derive(Default)]
pub struct Workspace {
    host: Vec<u8>,
    table: Option<Tensor>,
    scratch: Option<Tensor>,
}

/// Addresses of an uploaded table.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    /// Of the first record.
    pub records: u64,
    /// Of the first chunk.
    pub chunks: u64,
    /// Number of chunks: blocks of the grid.
    pub blocks: u32,
    /// Elements of a chunk.
    pub chunk: u32,
}

impl Workspace {
    /// Nothing uploaded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `records` and the chunks of `lengths` (one per record) on the device, unless they are there already.
    pub(crate) fn table<R: Pod>(&mut self, records: &[R], lengths: &[usize], device: &Device) -> Result<Table> {
        self.table_of(records, lengths, chunk(lengths.iter().sum()), device)
    }

    /// The same in chunks of so many elements.
    pub(crate) fn table_of<R: Pod>(
        &mut self,
        records: &[R],
        lengths: &[usize],
        chunk: usize,
        device: &Device,
    ) -> Result<Table> {
        let chunks: Vec<Chunk> =
            chunks_of(lengths, chunk).map(|(t, i)| Chunk { tensor: t as u32, index: i as u32 }).collect();
        let mut host = bytemuck::cast_slice(records).to_vec();
        host.resize(host.len().next_multiple_of(size_of::<u64>()), 0);
        let at = host.len() as u64;
        host.extend_from_slice(bytemuck::cast_slice(&chunks));
        let table = match self.table.take().filter(|t| t.device() == device && t.numel() == host.len()) {
            Some(table) if self.host == host => table,
            Some(mut table) => {
                table.copy_from(&Tensor::from_bytes(&host, [host.len()], DType::U8, &Device::Cpu)?)?;
                table
            }
            None => Tensor::from_bytes(&host, [host.len()], DType::U8, device)?,
        };
        self.host = host;
        let records = table.ptr();
        self.table = Some(table);
        Ok(Table { records, chunks: records + at, blocks: chunks.len() as u32, chunk: chunk as u32 })
    }

    /// Device memory of at least `doubles` f64 values, kept for the next call.
    pub(crate) fn scratch(&mut self, op: &'static str, doubles: usize, device: &Device) -> Result<u64> {
        let bytes = 8 * doubles;
        if self.scratch.as_ref().is_none_or(|t| t.bytes() < bytes || t.device() != device) {
            self.scratch = Some(Tensor::uninit([bytes], DType::U8, device)?);
        }
        self.scratch.as_mut().map_or(Ok(0), |t| t.ptr_mut(op))
    }
}

/// (tensor, chunk of the tensor) of every block.
fn chunks_of(lengths: &[usize], chunk: usize) -> impl Iterator<Item = (usize, usize)> {
    lengths.iter().enumerate().flat_map(move |(t, n)| (0..n.div_ceil(chunk)).map(move |i| (t, i)))
}

/// Numbers that change from step to step (learning rate, momentum) in device memory, so that a recorded launch reads the
/// present ones. The address stays as long as count, type and device do.
#[derive(Default)]
pub struct Scalars(Option<Tensor>);

impl Scalars {
    /// Nothing on a device yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Overwrites the values, in f32 for f32 tensors and in f64 for f64 ones.
    pub fn set(&mut self, values: &[f64], dtype: DType, device: &Device) -> Result<&Tensor> {
        let fresh = Tensor::from_slice(values, [values.len()], &Device::Cpu)?.cast(dtype.accumulate())?;
        let fits = |t: &Tensor| t.shape() == fresh.shape() && t.dtype() == fresh.dtype() && t.device() == device;
        let held = match self.0.take() {
            Some(mut held) if fits(&held) => {
                held.copy_from(&fresh)?;
                held
            }
            _ => fresh.to_device(device)?,
        };
        Ok(self.0.insert(held))
    }

    /// The values as they were set last.
    pub fn get(&self, op: &'static str) -> Result<&Tensor> {
        self.0.as_ref().ok_or_else(|| Error::value(op, "scalars", "nothing", "values that were set"))
    }
}

/// Checks of one operand of item `i`: length, type and device of `like`.
pub(crate) fn check(
    op: &'static str,
    arg: &'static str,
    i: usize,
    x: &Tensor,
    numel: usize,
    dtype: DType,
    device: &Device,
) -> Result<()> {
    let name = || format!("{arg}[{i}]");
    if x.numel() != numel {
        return Err(Error::shape(op, name(), x.shape(), format!("{numel} elements")));
    }
    if x.dtype() != dtype {
        return Err(Error::argument(op, name(), "dtype", x.dtype().name(), dtype.name()));
    }
    if x.device() != device {
        return Err(Error::argument(op, name(), "device", x.device().name(), device.name()));
    }
    Ok(())
}

/// Checks of a small operand all tensors share.
pub(crate) fn check_vector(
    op: &'static str,
    arg: &'static str,
    x: &Tensor,
    len: usize,
    dtype: DType,
    device: &Device,
) -> Result<()> {
    crate::ops::shaped(op, arg, x, &[len])?;
    crate::ops::typed(op, arg, x, dtype)?;
    if x.device() != device {
        return Err(Error::argument(op, arg, "device", x.device().name(), device.name()));
    }
    Ok(())
}

/// What [`grad_norm`](crate::ops::grad_norm::grad_norm) wrote, on the CPU: the factor of the gradients of each group, none
/// of them without a norm, `None` where a norm is not finite.
pub(crate) fn factors<A: Real>(norm: Option<&Tensor>) -> Result<Option<Vec<A>>> {
    let Some(norm) = norm else { return Ok(Some(vec![])) };
    let norm = norm.as_slice::<A>()?;
    let finite = norm.chunks_exact(2).all(|row| row[0].f64().is_finite());
    Ok(finite.then(|| norm.chunks_exact(2).map(|row| row[1]).collect()))
}

/// [`factors`] of a single group.
pub(crate) fn factor<A: Real>(norm: Option<&Tensor>) -> Result<Option<A>> {
    Ok(factors(norm)?.map(|factors| factors.first().copied().unwrap_or(A::ONE)))
}

/// Shapes of the trainable tensors of a ViT with patches of 16 and three channels, for cases.
pub(crate) fn vit_shapes(width: usize, depth: usize) -> Vec<Shape> {
    let d = width;
    let mut shapes: Vec<Shape> = vec![[1, 1, d].into(), [d, 3, 16, 16].into(), [d].into()];
    for _ in 0..depth {
        for [rows, cols] in [[3 * d, d], [d, d], [4 * d, d], [d, 4 * d]] {
            shapes.push([rows, cols].into());
            shapes.push([rows].into());
        }
        shapes.extend((0..4).map(|_| Shape::from([d])));
    }
    shapes.extend((0..2).map(|_| Shape::from([d])));
    shapes
}

/// The type of the compute copies: that of `copy`, any one of them, or without copies that of the masters.
pub(crate) fn compute_type(
    op: &'static str,
    master: &'static str,
    dtype: DType,
    copy: Option<&Tensor>,
) -> Result<DType> {
    if !dtype.is_float() || dtype != dtype.accumulate() {
        return Err(Error::argument(op, master, "dtype", dtype.name(), "f32, or f64 on the cpu"));
    }
    let compute = copy.map_or(dtype, Tensor::dtype);
    if !compute.is_float() || compute.accumulate() != dtype {
        let expected = format!("a float type computed in {dtype}");
        return Err(Error::argument(op, "compute", "dtype", compute.name(), expected));
    }
    Ok(compute)
}

/// The tasks of a compute copy; none where there is no copy.
pub(crate) fn copy_chunks<'a, C: Float>(compute: &'a mut Option<&mut Tensor>) -> Result<std::slice::ChunksMut<'a, C>> {
    let copy = match compute {
        Some(compute) => compute.as_mut_slice::<C>()?,
        None => &mut [],
    };
    Ok(copy.chunks_mut(TASK))
}

/// Sum of squares in f64 in 16 fixed lanes: the order is the same on every machine.
#[inline(always)]
pub(crate) fn squares(n: usize, value: impl Fn(usize) -> f64) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            let x = value(i + l);
            *lane += x * x;
        }
    }
    let rest: f64 = (whole..n).map(|i| value(i) * value(i)).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_element_and_give_a_gpu_enough_blocks() {
        for total in [0, 1, 768_000, 22_000_000, 86_000_000, 1 << 31] {
            let chunk = chunk(total);
            assert!((MIN_CHUNK..=CHUNK).contains(&chunk) && chunk.is_power_of_two());
            assert!(chunk == MIN_CHUNK || total.div_ceil(chunk) >= BLOCKS);
            assert!(chunk == CHUNK || total.div_ceil(chunk) <= 4 * BLOCKS);
        }
        let all: Vec<(usize, usize)> = chunks_of(&[5, 0, 9], 4).collect();
        assert_eq!(all, [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]);
    }
}
