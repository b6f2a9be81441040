//! Where queries, keys and values lie, and which of them belong together; checked once, used by reference and launch.

use super::{MAX_DIM, OP};
use crate::ops::{float, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tensor};

/// Queries, keys and values as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Operands<'a> {
    /// `qkv: [tokens, 3, heads, head_dim]`.
    Joint(&'a Tensor),
    /// `q: [queries, heads, head_dim]` and `kv: [keys, 2, heads, head_dim]`.
    Packed(&'a Tensor, &'a Tensor),
    /// `q: [queries, heads, head_dim]`, `k: [keys, heads, head_dim]` and `v: [keys, heads, v_dim]`.
    Apart(&'a Tensor, &'a Tensor, &'a Tensor),
}

/// Where each sequence of one side begins.
#[derive(Clone, Copy, Debug)]
pub struct Packing<'a> {
    /// `[sequences + 1]` i32: first row of each, then the number of rows.
    pub cu_seqlens: &'a Tensor,
    /// Longest sequence.
    pub max_seqlen: usize,
}

/// One of q, k and v: part `part` of `parts` of each row of tensor number `tensor`, in heads of `dim` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub tensor: usize,
    pub part: usize,
    pub parts: usize,
    pub dim: usize,
}

impl<'a> Operands<'a> {
    pub(super) fn tensors(self) -> impl Iterator<Item = &'a Tensor> {
        let tensors = match self {
            Self::Joint(qkv) => [Some(qkv), None, None],
            Self::Packed(q, kv) => [Some(q), Some(kv), None],
            Self::Apart(q, k, v) => [Some(q), Some(k), Some(v)],
        };
        tensors.into_iter().flatten()
    }

    /// Of q, k and v.
    fn places(self, dim: usize, v_dim: usize) -> [Place; 3] {
        let place = |(tensor, part, parts, dim)| Place { tensor, part, parts, dim };
        match self {
            Self::Joint(_) => [(0, 0, 3, dim), (0, 1, 3, dim), (0, 2, 3, v_dim)].map(place),
            Self::Packed(..) => [(0, 0, 1, dim), (1, 0, 2, dim), (1, 1, 2, v_dim)].map(place),
            Self::Apart(..) => [(0, 0, 1, dim), (1, 0, 1, dim), (2, 0, 1, v_dim)].map(place),
        }
    }
}

/// Rows of one of q, k and v.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub tensor: &'a Tensor,
    pub place: Place,
}

/// The extents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Columns of a head of q and k.
    pub dim: usize,
    /// Of v and the result: at most `dim`.
    pub v_dim: usize,
    pub seqs: usize,
    /// Longest sequence of queries, or what the caller says.
    pub max_q: usize,
    /// Of keys.
    pub max_k: usize,
}

/// A call whose arguments fit together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a> {
    pub q: View<'a>,
    pub k: View<'a>,
    pub v: View<'a>,
    pub cu_q: &'a Tensor,
    pub cu_k: &'a Tensor,
    pub scale: f32,
    pub dims: Dims,
}

impl<'a> Problem<'a> {
    pub fn check(x: Operands<'a>, of_q: Packing<'a>, of_k: Packing<'a>, scale: f32) -> Result<Self> {
        let fits = |dim| (1..=MAX_DIM).contains(&dim);
        fn refuse<T>(arg: &str, t: &Tensor, extents: &str) -> Result<T> {
            Err(Error::shape(OP, arg, t.shape(), format!("{extents} with head_dim 1 to {MAX_DIM}")))
        }
        let asking = |q: &Tensor| {
            float(OP, "q", q)?;
            let [queries, heads, dim] = q.dims(OP, "q")?;
            if fits(dim) { Ok([queries, heads, dim]) } else { refuse("q", q, "[queries, heads, head_dim]") }
        };
        let ([queries, heads, dim], keys, v_dim) = match x {
            Operands::Joint(qkv) => {
                float(OP, "qkv", qkv)?;
                let [tokens, three, heads, dim] = qkv.dims(OP, "qkv")?;
                if three != 3 || !fits(dim) {
                    return refuse("qkv", qkv, "[tokens, 3, heads, head_dim]");
                }
                ([tokens, heads, dim], tokens, dim)
            }
            Operands::Packed(q, kv) => {
                let [queries, heads, dim] = asking(q)?;
                let [keys, ..] = kv.dims::<4>(OP, "kv")?;
                shaped(OP, "kv", kv, &[keys, 2, heads, dim])?;
                same(OP, "kv", kv, q)?;
                ([queries, heads, dim], keys, dim)
            }
            Operands::Apart(q, k, v) => {
                let [queries, heads, dim] = asking(q)?;
                let [keys, ..] = k.dims::<3>(OP, "k")?;
                shaped(OP, "k", k, &[keys, heads, dim])?;
                let [v_keys, v_heads, v_dim] = v.dims(OP, "v")?;
                if [v_keys, v_heads] != [keys, heads] || !(1..=dim).contains(&v_dim) {
                    let expected = format!("[{keys}, {heads}, v_dim] with v_dim 1 to {dim}, that of q");
                    return Err(Error::shape(OP, "v", v.shape(), expected));
                }
                same(OP, "k", k, q)?;
                same(OP, "v", v, q)?;
                ([queries, heads, dim], keys, v_dim)
            }
        };
        let tensors: Vec<_> = x.tensors().collect();
        let seqs = match x {
            Operands::Joint(qkv) => of_q.check("cu_seqlens", qkv, queries)?,
            Operands::Packed(q, _) | Operands::Apart(q, ..) => {
                let seqs = of_q.check("cu_seqlens_q", q, queries)?;
                if of_k.check("cu_seqlens_k", q, keys)? != seqs {
                    let expected = format!("[{}], that of cu_seqlens_q", seqs + 1);
                    return Err(Error::shape(OP, "cu_seqlens_k", of_k.cu_seqlens.shape(), expected));
                }
                seqs
            }
        };
        let [q, k, v] = x.places(dim, v_dim).map(|place| View { tensor: tensors[place.tensor], place });
        let dims = Dims { queries, keys, heads, dim, v_dim, seqs, max_q: of_q.max_seqlen, max_k: of_k.max_seqlen };
        Ok(Self { q, k, v, cu_q: of_q.cu_seqlens, cu_k: of_k.cu_seqlens, scale, dims })
    }

    pub fn device(&self) -> &'a Device {
        self.q.tensor.device()
    }

    pub fn dtype(&self) -> DType {
        self.q.tensor.dtype()
    }

    /// Of q, k and v, also in the gradients, which lie as their operands do.
    pub fn places(&self) -> [Place; 3] {
        [self.q, self.k, self.v].map(|view| view.place)
    }
}

impl Dims {
    /// Elements from row to row at a place.
    pub fn stride(self, place: Place) -> usize {
        place.parts * self.heads * place.dim
    }

    /// Elements before the first row at a place.
    pub fn offset(self, place: Place) -> usize {
        place.part * self.heads * place.dim
    }
}

impl Packing<'_> {
    /// The number of sequences.
    fn check(self, arg: &'static str, like: &Tensor, rows: usize) -> Result<usize> {
        typed(OP, arg, self.cu_seqlens, DType::I32)?;
        on(OP, arg, self.cu_seqlens, like)?;
        let [bounds] = self.cu_seqlens.dims(OP, arg)?;
        if bounds == 0 {
            return Err(Error::shape(OP, arg, self.cu_seqlens.shape(), "[sequences + 1]"));
        }
        if self.cu_seqlens.device().is_host() {
            check_bounds(arg, self.cu_seqlens.as_slice::<i32>()?, rows, self.max_seqlen)?;
        }
        Ok(bounds - 1)
    }
}

/// Offsets start at 0, do not fall, end at the number of rows, and no sequence is longer than `max_seqlen`.
fn check_bounds(arg: &'static str, bounds: &[i32], rows: usize, max_seqlen: usize) -> Result<()> {
    let refuse = |at: usize, expected: String| Err(Error::value(OP, format!("{arg}[{at}]"), bounds[at], expected));
    let last = bounds.len() - 1;
    if bounds[0] != 0 {
        return refuse(0, "0".into());
    }
    for (i, pair) in bounds.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return refuse(i + 1, format!("at least {}, the offset before it", pair[0]));
        }
        if (pair[1] - pair[0]) as usize > max_seqlen {
            return refuse(i + 1, format!("at most {} + max_seqlen = {}", pair[0], pair[0] as usize + max_seqlen));
        }
    }
    if bounds[last] as usize != rows {
        return refuse(last, format!("{rows}, the number of tokens"));
    }
    Ok(())
}
