//! Products of small matrices on one thread, for references that keep a whole problem in the cache (attention).
//! A general GEMM copies its operands first; here the caller lays them out, and no copy is needed.

use pulp::{Simd, WithSimd};

use crate::dtype::Real;

/// Rows of vector operands start at multiples of this many elements: one 512-bit vector of f32.
const ALIGN: usize = 16;

/// A row length for matrices of `cols` columns: whole vectors, and an odd number of them, since rows a power of two apart
/// would all fall into the same few cache sets.
pub fn padded(cols: usize) -> usize {
    (cols.div_ceil(ALIGN) | 1) * ALIGN
}

/// A row-major operand: elements and the distance between rows.
#[derive(Clone, Copy)]
pub struct Rows<'a, A> {
    /// Elements.
    pub data: &'a [A],
    /// Elements from row to row.
    pub stride: usize,
}

impl<'a, A> Rows<'a, A> {
    /// Names both parts.
    pub fn new(data: &'a [A], stride: usize) -> Self {
        Self { data, stride }
    }
}

/// `D = A · B`, `[m, k] · [k, n]`; with `add`, `D += A · B`.
///
/// The stride of `B` and `D` is at least [`padded`]`(n)`; columns from `n` on are written with arbitrary values.
/// Every element of `D` is one sum in order of `k`.
///
/// # Panics
/// When an operand is shorter than its extents.
pub fn product<A: Lanes>(m: usize, n: usize, k: usize, a: Rows<A>, b: Rows<A>, d: &mut [A], stride: usize, add: bool) {
    run::<A, false>(m, n, k, a, b, d, stride, add);
}

/// `D = Aᵀ · B` with `A` stored `[k, m]`; else as [`product`].
///
/// # Panics
/// When an operand is shorter than its extents.
pub fn product_t<A: Lanes>(
    m: usize,
    n: usize,
    k: usize,
    a: Rows<A>,
    b: Rows<A>,
    d: &mut [A],
    stride: usize,
    add: bool,
) {
    run::<A, true>(m, n, k, a, b, d, stride, add);
}

fn run<A: Lanes, const TRANS: bool>(
    m: usize,
    n: usize,
    k: usize,
    a: Rows<A>,
    b: Rows<A>,
    d: &mut [A],
    stride: usize,
    add: bool,
) {
    if m > 0 && n > 0 {
        pulp::Arch::new().dispatch(Product::<A, TRANS> { m, n, k, a, b, d, stride, add });
    }
}

/// f32 or f64 with the vectors of an instruction set.
pub trait Lanes: Real {
    /// One register.
    type Vector<S: Simd>: Copy;
    /// Every lane `x`.
    fn splat<S: Simd>(s: S, x: Self) -> Self::Vector<S>;
    /// `a · b + c`, fused where the machine can.
    fn mul_add<S: Simd>(s: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// Elements as vectors, a rest dropped.
    fn vectors<S: Simd>(x: &[Self]) -> &[Self::Vector<S>];
    /// Elements as vectors for writing, a rest dropped.
    fn vectors_mut<S: Simd>(x: &mut [Self]) -> &mut [Self::Vector<S>];
}

macro_rules! lanes {
    ($t:ty, $vector:ident, $splat:ident, $mul_add:ident, $as:ident, $as_mut:ident) => {
        impl Lanes for $t {
            type Vector<S: Simd> = S::$vector;
            #[inline(always)]
            fn splat<S: Simd>(s: S, x: Self) -> S::$vector {
                s.$splat(x)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(s: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                s.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn vectors<S: Simd>(x: &[Self]) -> &[S::$vector] {
                S::$as(x).0
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(x: &mut [Self]) -> &mut [S::$vector] {
                S::$as_mut(x).0
            }
        }
    };
}
lanes!(f32, f32s, splat_f32s, mul_add_e_f32s, as_simd_f32s, as_mut_simd_f32s);
lanes!(f64, f64s, splat_f64s, mul_add_e_f64s, as_simd_f64s, as_mut_simd_f64s);

struct Product<'a, A, const TRANS: bool> {
    m: usize,
    n: usize,
    k: usize,
    a: Rows<'a, A>,
    b: Rows<'a, A>,
    d: &'a mut [A],
    stride: usize,
    add: bool,
}

impl<A: Lanes, const TRANS: bool> WithSimd for Product<'_, A, TRANS> {
    type Output = ();

    /// Panels of two vectors (one at the end) of columns, so that a panel of `B` stays in the first cache for all rows.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let lanes = size_of::<A::Vector<S>>() / size_of::<A>();
        let mut j = 0;
        while j < self.n {
            // Accumulators of a tile plus its vectors of B fill the register file: 12 · 2 + 2 of 32, 6 · 2 + 2 of 16.
            match (self.n - j > lanes, S::REGISTER_COUNT >= 32) {
                (true, true) => self.panel::<S, 12, 2>(s, j),
                (true, false) => self.panel::<S, 6, 2>(s, j),
                (false, true) => self.panel::<S, 12, 1>(s, j),
                (false, false) => self.panel::<S, 6, 1>(s, j),
            }
            j += 2 * lanes;
        }
    }
}

impl<A: Lanes, const TRANS: bool> Product<'_, A, TRANS> {
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const COLS: usize>(&mut self, s: S, j: usize) {
        let mut i = 0;
        while self.m - i >= ROWS {
            self.tile::<S, ROWS, COLS>(s, i, j);
            i += ROWS;
        }
        if self.m - i >= 8 {
            self.tile::<S, 8, COLS>(s, i, j);
            i += 8;
        }
        if self.m - i >= 4 {
            self.tile::<S, 4, COLS>(s, i, j);
            i += 4;
        }
        if self.m - i >= 2 {
            self.tile::<S, 2, COLS>(s, i, j);
            i += 2;
        }
        if self.m - i == 1 {
            self.tile::<S, 1, COLS>(s, i, j);
        }
    }

    /// `D[i..i + ROWS, j..j + COLS vectors]`, accumulated in registers.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "one index for four arrays reads like the formula")]
    fn tile<S: Simd, const ROWS: usize, const COLS: usize>(&mut self, s: S, i: usize, j: usize) {
        let Self { k, a, b, stride, add, .. } = *self;
        let width = COLS * size_of::<A::Vector<S>>() / size_of::<A>();
        let mut sum = [[A::splat(s, A::ZERO); COLS]; ROWS];
        if add {
            for (r, sum) in sum.iter_mut().enumerate() {
                sum.copy_from_slice(A::vectors::<S>(&self.d[(i + r) * stride + j..][..width]));
            }
        }
        if TRANS {
            for p in 0..k {
                let a = &a.data[p * a.stride + i..][..ROWS];
                let b = A::vectors::<S>(&b.data[p * b.stride + j..][..width]);
                for r in 0..ROWS {
                    let x = A::splat(s, a[r]);
                    for c in 0..COLS {
                        sum[r][c] = A::mul_add(s, x, b[c], sum[r][c]);
                    }
                }
            }
        } else {
            let a: [&[A]; ROWS] = std::array::from_fn(
                #[inline(always)]
                |r| &a.data[(i + r) * a.stride..][..k],
            );
            for p in 0..k {
                let b = A::vectors::<S>(&b.data[p * b.stride + j..][..width]);
                for r in 0..ROWS {
                    let x = A::splat(s, a[r][p]);
                    for c in 0..COLS {
                        sum[r][c] = A::mul_add(s, x, b[c], sum[r][c]);
                    }
                }
            }
        }
        for (r, sum) in sum.iter().enumerate() {
            A::vectors_mut::<S>(&mut self.d[(i + r) * stride + j..][..width]).copy_from_slice(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Rows, padded, product, product_t};

    /// Small integers: every product and sum is exact.
    fn fill(rows: usize, stride: usize, salt: usize) -> Vec<f32> {
        (0..rows * stride).map(|i| ((i * 7 + salt * 13) % 11) as f32 - 5.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equals_the_plain_sums(m in 0usize..40, n in 0usize..70, k in 0usize..20, trans: bool, add: bool) {
            let (ld_a, ld) = (if trans { m } else { k }, padded(n));
            let (a, b) = (fill(if trans { k } else { m }, ld_a, 1), fill(k, ld, 2));
            let (before, mut d) = (fill(m, ld, 3), fill(m, ld, 3));
            let call = if trans { product_t::<f32> } else { product::<f32> };
            call(m, n, k, Rows::new(&a, ld_a), Rows::new(&b, ld), &mut d, ld, add);
            for i in 0..m {
                for j in 0..n {
                    let a = |p: usize| if trans { a[p * ld_a + i] } else { a[i * ld_a + p] };
                    let sum: f32 = (0..k).map(|p| a(p) * b[p * ld + j]).sum();
                    prop_assert_eq!(d[i * ld + j], if add { before[i * ld + j] + sum } else { sum });
                }
            }
        }
    }

    #[test]
    fn rows_are_whole_vectors_an_odd_number_of_lines_apart() {
        assert_eq!([0, 1, 16, 17, 64, 257].map(padded), [16, 16, 16, 48, 80, 272]);
    }
}
