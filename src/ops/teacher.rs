//! Teacher probabilities that exist only as logits and factors.

use rayon::prelude::*;

use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::math::{max, sum};
use crate::ops::{float, on, shaped, typed};
use crate::{DType, Device, Error, Result, Tensor, with_float};

const OP: &str = "teacher";

/// `t[b, k] = exp(z[b, k] / T + a[k] + l[b])`: what a teacher predicts, as its logits and the logarithms of one factor
/// per prototype and one per row. Nothing is differentiated by it; no operation writes the probabilities out.
///
/// Made by [`sinkhorn_knopp`](crate::ops::sinkhorn_knopp::sinkhorn_knopp) and [`softmax_centering`](crate::ops::softmax_centering::softmax_centering),
/// read by [`prototype_cross_entropy`](crate::ops::prototype_cross_entropy::prototype_cross_entropy). Besides the logits it holds
/// `4 (K + rows + 1)` bytes.
///
/// Those that make it take a `count: [1]`, i32 in device memory: the batch is the first `count` rows. The others are there
/// so that batches of any count have one shape, and a recorded step reads the present count. They are not read, and their
/// `l` is `-inf`: they have no probabilities. A GPU, which is not asked, cuts a count to the rows that there are.
#[derive(Clone, Debug)]
pub struct Teacher {
    pub(crate) logits: Tensor,
    pub(crate) temp: Tensor,
    pub(crate) prototypes: Tensor,
    pub(crate) rows: Tensor,
}

impl Teacher {
    /// From `logits: [rows, K]`, `temp: [1]`, `prototypes: [K]` (`a`) and `rows: [rows]` (`l`); all but the logits f32
    /// (f64 for f64 logits).
    ///
    /// # Errors
    /// When shapes, dtypes or devices do not fit.
    pub fn new(logits: Tensor, temp: Tensor, prototypes: Tensor, rows: Tensor) -> Result<Self> {
        let [n, k] = check(OP, &logits, &temp)?;
        for (arg, t, len) in [("prototypes", &prototypes, k), ("rows", &rows, n)] {
            shaped(OP, arg, t, &[len])?;
            typed(OP, arg, t, logits.dtype().accumulate())?;
            on(OP, arg, t, &logits)?;
        }
        Ok(Self { logits, temp, prototypes, rows })
    }

    /// The logits `z: [rows, K]`.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The temperature `T: [1]`.
    pub fn temp(&self) -> &Tensor {
        &self.temp
    }

    /// The logarithms `a: [K]` of the prototypes' factors.
    pub fn prototypes(&self) -> &Tensor {
        &self.prototypes
    }

    /// The logarithms `l: [rows]` of the rows' factors.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The probabilities `[rows, K]` in f32 (f64 for f64 logits), for checks and pictures; computed by the host.
    pub fn probabilities(&self) -> Result<Tensor> {
        let host = |t: &Tensor| t.to_device(&Device::Cpu);
        let (z, temp, a, l) = (host(&self.logits)?, host(&self.temp)?, host(&self.prototypes)?, host(&self.rows)?);
        let acc = z.dtype().accumulate();
        let mut p = Tensor::uninit(z.shape().clone(), acc, &Device::Cpu)?;
        with_float!(OP, "logits", z.dtype(), T => {
            type A = <T as Float>::Acc;
            let (z, temp) = (z.as_slice::<T>()?, temp.as_slice::<A>()?[0]);
            let (a, l) = (a.as_slice::<A>()?, l.as_slice::<A>()?);
            let rows = p.as_mut_slice::<A>()?.chunks_mut(a.len()).zip(z.chunks(a.len())).zip(l);
            for ((p, z), &l) in rows {
                for ((p, z), &a) in p.iter_mut().zip(z).zip(a) {
                    *p = (z.get() / temp + a + l).exp();
                }
            }
            Ok(())
        })?;
        p.to_device(self.logits.device())
    }
}

/// `[rows, K]` of teacher logits and their temperature.
pub(crate) fn check(op: &'static str, logits: &Tensor, temp: &Tensor) -> Result<[usize; 2]> {
    float(op, "logits", logits)?;
    let dims: [usize; 2] = logits.dims(op, "logits")?;
    if dims[1] == 0 {
        return Err(Error::shape(op, "logits", logits.shape(), "at least one prototype"));
    }
    shaped(op, "temp", temp, &[1])?;
    typed(op, "temp", temp, logits.dtype().accumulate())?;
    on(op, "temp", temp, logits)?;
    if temp.device() == &Device::Cpu && !(temp.item()? > 0.0 && temp.item()?.is_finite()) {
        return Err(Error::value(op, "temp", temp.item()?, "a positive number"));
    }
    Ok(dims)
}

/// `count: [1]` of `rows` rows beside `like`.
pub(crate) fn check_count(op: &'static str, count: Option<&Tensor>, rows: usize, like: &Tensor) -> Result<()> {
    let Some(count) = count else { return Ok(()) };
    shaped(op, "count", count, &[1])?;
    typed(op, "count", count, DType::I32)?;
    on(op, "count", count, like)?;
    if count.device().is_host() {
        let given = count.as_slice::<i32>()?[0];
        if usize::try_from(given).map_or(true, |n| n > rows) {
            return Err(Error::value(op, "count", given, format!("0 to {rows}")));
        }
    }
    Ok(())
}

/// Rows of the batch, of `rows`, for the references; [`check_count`] has seen it.
pub(crate) fn counted(count: Option<&Tensor>, rows: usize) -> Result<usize> {
    count.map_or(Ok(rows), |count| Ok(count.as_slice::<i32>()?[0] as usize))
}

/// What the distributed forms of an operation ask of the processes that share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Every process gets the largest of each element.
    Max,
    /// Every process gets the sum.
    Sum,
    /// Every process gets the mean.
    Mean,
}

/// Combines a vector of f32, one value per prototype, with those of all other processes, in place. Every process calls
/// it equally often and in the same order, also one without rows.
pub type Across<'a> = dyn FnMut(Reduce, &mut Tensor) -> Result<()> + 'a;

/// Columns per task: rows are read in pieces that prefetch well, and 131072 columns make 128 tasks; not measured yet.
const COLUMNS: usize = 1024;

/// Calls `add(sums, logits, from, row)` for the columns of each task, row after row; `from` is the first
/// column of `sums` and of the row's piece `logits`.
pub(crate) fn over_rows<T: Float>(
    z: &[T],
    to: &mut [T::Acc],
    start: T::Acc,
    add: impl Fn(&mut [T::Acc], &[T], usize, usize) + Sync,
) {
    let cols = to.len();
    to.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, to)| {
        to.fill(start);
        let from = task * COLUMNS;
        simd(
            #[inline(always)]
            || {
                for (row, z) in z.chunks_exact(cols).enumerate() {
                    add(to, &z[from..][..to.len()], from, row);
                }
            },
        );
    });
}

/// `l_b = -ln Σ_k exp(Z_bk / T + a_k)` of the first `count` rows, `-inf` of the others.
pub(crate) fn row_factors(
    op: &'static str,
    logits: &Tensor,
    temp: &Tensor,
    a: &Tensor,
    l: &mut Tensor,
    count: usize,
) -> Result<()> {
    with_float!(op, "logits", logits.dtype(), T => {
        type A = <T as Float>::Acc;
        let (z, temp, a) = (logits.as_slice::<T>()?, temp.as_slice::<A>()?[0], a.as_slice::<A>()?);
        let (l, others) = l.as_mut_slice::<A>()?.split_at_mut(count);
        others.fill(A::NEG_INFINITY);
        let rows = l.par_iter_mut().zip(z.par_chunks_exact(a.len()));
        rows.for_each(|(l, z)| simd(#[inline(always)] || {
            let top = max(z.len(), #[inline(always)] |k| z[k].get() / temp + a[k]);
            let by = if top == A::NEG_INFINITY { A::ZERO } else { top };
            *l = -(top + sum(z.len(), #[inline(always)] |k| (z[k].get() / temp + a[k] - by).exp()).ln());
        }));
        Ok(())
    })
}
