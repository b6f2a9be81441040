//! Principal components: the directions in which rows vary most.
//!
//! They are the leading eigenvectors of the covariance `C = 1/N Σ (x - mean)(x - mean)ᵀ` in f64. Few are wanted of many
//! columns, so a block of vectors is multiplied by C and made orthonormal again until its leading Ritz vectors (those of C
//! within the block) no longer change: subspace iteration (Golub and Van Loan, Matrix Computations, section 8.2.4). The small
//! matrix is diagonalised by Jacobi's rotations, which are accurate for any symmetric matrix.

use crate::data::{Purpose, Stream};
use crate::ops::linear;
use crate::{Device, Error, Result, Tensor};

/// Vectors iterated beside those wanted: they bring the wanted ones closer in each round.
const GUARD: usize = 13;
/// Rounds at most. Where the wanted variances hardly differ from the next ones any direction among them is as good.
const ROUNDS: usize = 500;
/// Largest `|C v - λ v|` of a component, over the largest eigenvalue.
const RESIDUAL: f64 = 1e-10;

/// Principal components of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Pca {
    /// Mean of the rows: `[d]`.
    pub mean: Vec<f64>,
    /// Directions of unit length, the one of most variance first; the largest entry of each is positive: `[count][d]`.
    pub components: Vec<Vec<f64>>,
    /// Variance of the rows along each.
    pub variances: Vec<f64>,
}

impl Pca {
    /// The first `count` components, at most d, of `rows: [N, d]` f32 on the CPU.
    ///
    /// # Errors
    /// No rows, no component, or a value that is not finite.
    pub fn new(rows: &Tensor, count: usize) -> Result<Self> {
        let op = "pca";
        let [n, d] = rows.dims(op, "rows")?;
        if n == 0 || d == 0 || count == 0 {
            return Err(Error::shape(op, "rows", rows.shape(), "at least one row, one column and one component"));
        }
        let values = rows.as_slice::<f32>()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::value(op, "rows", format!("{} in row {}", values[at], at / d), "finite numbers"));
        }
        let mut mean = vec![0.0; d];
        for row in values.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / n as f64);
        }
        let mut columns = vec![0.0; n * d]; // [d, N], centred
        for (at, row) in values.chunks_exact(d).enumerate() {
            for (column, (v, m)) in row.iter().zip(&mean).enumerate() {
                columns[column * n + at] = (f64::from(*v) - m) / (n as f64).sqrt();
            }
        }
        let columns = Tensor::from_slice(&columns, [d, n], &Device::Cpu)?;
        let (variances, components) = leading(&linear::forward(&columns, &columns, None, None)?, count.min(d))?;
        Ok(Self { mean, components, variances })
    }

    /// How far each of `rows`, `[N, d]`, lies along each component: `[N][count]`.
    pub fn scores(&self, rows: &[f32]) -> Vec<Vec<f64>> {
        let centred = |row: &[f32]| row.iter().zip(&self.mean).map(|(v, m)| f64::from(*v) - m).collect::<Vec<f64>>();
        let score = |row: &[f32]| {
            let row = centred(row);
            self.components.iter().map(|component| dot(&row, component)).collect()
        };
        rows.chunks_exact(self.mean.len()).map(score).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The `count` largest eigenvalues of the symmetric `c: [d, d]` f64 and their eigenvectors, the largest first.
fn leading(c: &Tensor, count: usize) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let [d, _] = c.dims("pca", "c")?;
    let size = d.min(count + GUARD);
    let mut rng = Stream::new(0, Purpose::INIT, 0, 0);
    let mut block: Vec<Vec<f64>> = (0..size).map(|_| (0..d).map(|_| rng.normal()).collect()).collect();
    let mut found = (vec![], vec![]);
    for _ in 0..ROUNDS {
        orthonormalise(&mut block, &mut rng);
        let flat = Tensor::from_slice(&block.concat(), [size, d], &Device::Cpu)?;
        let product = linear::forward(&flat, c, None, None)?.to_vec::<f64>()?;
        let product: Vec<&[f64]> = product.chunks_exact(d).collect();
        let small: Vec<Vec<f64>> = product.iter().map(|p| block.iter().map(|q| dot(p, q)).collect()).collect();
        let (values, vectors) = jacobi(small);
        let turned = |rows: &[&[f64]], vector: &[f64]| {
            let mut sum = vec![0.0; d];
            for (row, factor) in rows.iter().zip(vector) {
                sum.iter_mut().zip(*row).for_each(|(s, r)| *s += factor * r);
            }
            sum
        };
        let basis: Vec<&[f64]> = block.iter().map(Vec::as_slice).collect();
        let ritz: Vec<Vec<f64>> = vectors.iter().map(|vector| turned(&basis, vector)).collect();
        let next: Vec<Vec<f64>> = vectors.iter().map(|vector| turned(&product, vector)).collect();
        let residual = |i: usize| {
            let squares = next[i].iter().zip(&ritz[i]).map(|(p, v)| (p - values[i] * v).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let settled = (0..count).all(|i| residual(i) <= RESIDUAL * values[0].abs());
        found = (values, ritz);
        if settled || size == d {
            break; // a block of all directions is exact at once
        }
        block = next;
    }
    let (mut values, mut vectors) = found;
    values.truncate(count);
    vectors.truncate(count);
    vectors.iter_mut().for_each(|vector| orient(vector));
    Ok((values, vectors))
}

/// Gives a vector the sign that makes its largest entry positive, of equal ones the first.
fn orient(vector: &mut [f64]) {
    let largest = vector.iter().copied().reduce(|a, b| if b.abs() > a.abs() * (1.0 + 1e-9) { b } else { a });
    if largest.is_some_and(|v| v < 0.0) {
        vector.iter_mut().for_each(|v| *v = -*v);
    }
}

/// Gram and Schmidt's way, each projection taken off twice. A row that the others already span is drawn anew.
fn orthonormalise(rows: &mut [Vec<f64>], rng: &mut Stream) {
    for at in 0..rows.len() {
        let (before, rest) = rows.split_at_mut(at);
        let row = &mut rest[0];
        loop {
            let length = dot(row, row).sqrt();
            for _ in 0..2 {
                for other in before.iter() {
                    let share = dot(row, other);
                    row.iter_mut().zip(other).for_each(|(r, o)| *r -= share * o);
                }
            }
            let left = dot(row, row).sqrt();
            if left > 1e-10 * length {
                row.iter_mut().for_each(|r| *r /= left);
                break;
            }
            row.iter_mut().for_each(|r| *r = rng.normal());
        }
    }
}

/// Eigenvalues, largest first, and eigenvectors of a symmetric matrix, by rotations that make one pair of entries beside the
/// diagonal zero at a time (Golub and Van Loan, section 8.5).
fn jacobi(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let size: f64 = a.iter().flatten().map(|x| x * x).sum();
    for _ in 0..60 {
        let beside = |i: usize| (0..i).map(|j| a[i][j] * a[i][j]).sum::<f64>();
        if (0..n).map(beside).sum::<f64>() <= 1e-32 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let cos = 1.0 / (t * t + 1.0).sqrt();
                let sin = t * cos;
                for row in &mut a {
                    (row[p], row[q]) = (cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]);
                }
                for k in 0..n {
                    (a[p][k], a[q][k]) = (cos * a[p][k] - sin * a[q][k], sin * a[p][k] + cos * a[q][k]);
                    let (x, y) = (vectors[p][k], vectors[q][k]); // rows are the eigenvectors
                    (vectors[p][k], vectors[q][k]) = (cos * x - sin * y, sin * x + cos * y);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    (order.iter().map(|&i| a[i][i]).collect(), order.iter().map(|&i| vectors[i].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64], bound: f64) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= bound), "{found:?} {expected:?}");
    }

    #[test]
    fn rotations_find_the_eigenvectors_of_a_small_matrix() {
        // [2 1; 1 2] has 3 along (1, 1) and 1 along (1, -1).
        let (values, mut vectors) = jacobi(vec![vec![2.0, 1.0], vec![1.0, 2.0]]);
        vectors.iter_mut().for_each(|v| orient(v));
        let half = 0.5f64.sqrt();
        close(&values, &[3.0, 1.0], 1e-14);
        close(&vectors.concat(), &[half, half, half, -half], 1e-14);
        assert_eq!(jacobi(vec![vec![0.0; 3]; 3]).0, [0.0; 3]);
    }

    #[test]
    fn leading_vectors_are_those_of_a_known_matrix() {
        // Q diag(λ) Qᵀ with Q of reflections: 60 wide, so that the block is smaller than the matrix.
        let d = 60;
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        let mut basis: Vec<Vec<f64>> = (0..d).map(|_| (0..d).map(|_| rng.normal()).collect()).collect();
        orthonormalise(&mut basis, &mut rng);
        basis.iter_mut().for_each(|v| orient(v));
        let value = |i: usize| [9.0, 8.5, 8.4, 0.0].get(i).copied().unwrap_or(4.0 / i as f64);
        let mut c = vec![0.0; d * d];
        for (i, v) in basis.iter().enumerate() {
            c.iter_mut().enumerate().for_each(|(at, c)| *c += value(i) * v[at / d] * v[at % d]);
        }
        let (values, vectors) = leading(&Tensor::from_slice(&c, [d, d], &Device::Cpu).unwrap(), 3).unwrap();
        close(&values, &[9.0, 8.5, 8.4], 1e-9);
        for (found, expected) in vectors.iter().zip(&basis) {
            close(found, expected, 1e-7);
        }
    }

    #[test]
    fn two_clusters_lie_on_either_side_of_the_first_component() {
        let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
        let direction: Vec<f64> = (0..20).map(|i| if i == 7 { 3.0 } else { -0.5 }).collect();
        let row = |i: usize, rng: &mut Stream| {
            let side = if i.is_multiple_of(3) { 1.0 } else { -1.0 };
            direction.iter().map(|d| (5.0 + side * d + 0.2 * rng.normal()) as f32).collect::<Vec<f32>>()
        };
        let rows: Vec<f32> = (0..90).flat_map(|i| row(i, &mut rng)).collect();
        let pca = Pca::new(&Tensor::from_slice(&rows, [90, 20], &Device::Cpu).unwrap(), 3).unwrap();
        let length = dot(&direction, &direction).sqrt();
        assert!(dot(&pca.components[0], &direction) / length > 0.999, "{:?}", pca.components[0]);
        assert!(pca.variances[0] > 50.0 * pca.variances[1]);
        let scores = pca.scores(&rows);
        assert!((0..90).all(|i| (scores[i][0] > 0.0) == (i % 3 == 0)));
        // Variance of the scores, and no correlation between components.
        for a in 0..3 {
            for b in 0..=a {
                let mean = scores.iter().map(|s| s[a] * s[b]).sum::<f64>() / 90.0;
                let expected = if a == b { pca.variances[a] } else { 0.0 };
                assert!((mean - expected).abs() < 1e-9 * pca.variances[0], "{a} {b} {mean} {expected}");
            }
        }
    }

    #[test]
    fn few_or_equal_rows_have_components_too() {
        let pca = |rows: &[f32], n, d| Pca::new(&Tensor::from_slice(rows, [n, d], &Device::Cpu).unwrap(), 3);
        let one = pca(&[1.0, 2.0], 1, 2).unwrap();
        assert_eq!((one.components.len(), &one.variances), (2, &vec![0.0, 0.0]));
        assert_eq!(one.scores(&[1.0, 2.0]), [[0.0, 0.0]]);
        let wide = pca(&[0.5; 3 * 40], 3, 40).unwrap();
        assert!(wide.variances == [0.0; 3] && wide.components.iter().all(|c| (dot(c, c) - 1.0).abs() < 1e-12));
        let text = pca(&[0.0, 1.0, f32::NAN, 1.0], 2, 2).unwrap_err().to_string();
        assert_eq!(text, "pca: `rows` has value NaN in row 1, expected finite numbers");
        let text = pca(&[], 0, 2).unwrap_err().to_string();
        assert_eq!(text, "pca: `rows` has shape [0, 2], expected at least one row, one column and one component");
    }
}
