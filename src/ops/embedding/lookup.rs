//! Checked indices with their inverse.

use super::OP;
use crate::{Device, Error, Result, Tensor};

/// Indices into the rows of a table, on a device, with the order in which the gradient adds them up.
#[derive(Clone, Debug)]
pub struct Lookup {
    ids: Tensor,
    order: Tensor,
    rows: usize,
}

impl Lookup {
    /// `ids` into a table of `rows` rows; they may repeat.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first index out of range.
    pub fn new(ids: &[i32], rows: usize, device: &Device) -> Result<Self> {
        let order = order(ids, rows)?;
        let copy = |v: &[i32]| Tensor::from_slice(v, [v.len()], device);
        Ok(Self { ids: copy(ids)?, order: copy(&order)?, rows })
    }

    /// From the tensors of another, see [`parts`](Self::parts).
    pub(super) fn of([ids, order]: [Tensor; 2], rows: usize) -> Self {
        Self { ids, order, rows }
    }

    pub(super) fn parts(&self) -> [Tensor; 2] {
        [self.ids.clone(), self.order.clone()]
    }

    /// `[M]` i32.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// `[M]` i32: positions in ascending order of their index, equal ones in ascending order of their own.
    pub fn order(&self) -> &Tensor {
        &self.order
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of indices, `M`.
    pub fn len(&self) -> usize {
        self.ids.numel()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its tensors, over which those of the next batch are copied when a recorded step runs again.
    pub fn tensors(&mut self) -> [&mut Tensor; 2] {
        [&mut self.ids, &mut self.order]
    }
}

/// Positions sorted by their index, by counting.
pub(super) fn order(ids: &[i32], rows: usize) -> Result<Vec<i32>> {
    if i32::try_from(ids.len()).is_err() {
        return Err(Error::argument(OP, "ids", "length", ids.len().to_string(), "below 2^31"));
    }
    let mut next = vec![0usize; rows + 1]; // next[v + 1] counts v, then next[v] is where its positions begin
    for (at, &id) in ids.iter().enumerate() {
        match usize::try_from(id) {
            Ok(id) if id < rows => next[id + 1] += 1,
            _ => return Err(Error::value(OP, format!("ids[{at}]"), id, format!("an index below {rows}"))),
        }
    }
    (0..rows).for_each(|v| next[v + 1] += next[v]);
    let mut order = vec![0; ids.len()];
    for (at, &id) in ids.iter().enumerate() {
        let to = &mut next[id as usize]; // in range: checked above
        order[*to] = at as i32;
        *to += 1;
    }
    Ok(order)
}
