//! Shapes of contiguous row-major tensors.

use std::fmt;
use std::ops::Deref;

/// Extents of a tensor, outermost first; `[]` is a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// Elements seen as `[rows, cols]` with `cols` the last axis; a scalar is `[1, 1]`.
    pub fn rows_cols(&self) -> (usize, usize) {
        let cols = self.0.last().copied().unwrap_or(1);
        (self.0.iter().rev().skip(1).product(), cols)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl<T: AsRef<[usize]>> From<T> for Shape {
    fn from(dims: T) -> Self {
        Self(dims.as_ref().to_vec())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
