//! Rows of embeddings, and the order in which rows are visited.

use crate::data::{Purpose, Stream};
use crate::ops::linear;
use crate::{DType, Device, Error, Result, Tensor};

/// Queries compared at a time: bounds memory to `BLOCK` x candidates.
const BLOCK: usize = 256;

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

/// Products of all `queries: [M, d]` with all `candidates: [N, d]`, both f32 on the CPU, some queries at a time: `each` gets
/// `[block, N]`.
pub fn products(queries: &Tensor, candidates: &Tensor, mut each: impl FnMut(&[f32])) -> Result<()> {
    let [_, dim] = queries.dims("products", "queries")?;
    for block in queries.as_slice::<f32>()?.chunks(BLOCK * dim.max(1)) {
        let block = Tensor::from_slice(block, [block.len() / dim.max(1), dim], &Device::Cpu)?;
        each(linear::forward(&block, candidates, None, None)?.as_slice::<f32>()?);
    }
    Ok(())
}

/// Batches of rows that are held in memory: a new order in every epoch, full ones only.
pub struct Order {
    seed: u64,
    batch: usize,
    order: Vec<usize>,
    epoch: Option<u64>,
}

impl Order {
    /// Of `rows` rows.
    ///
    /// # Errors
    /// A batch of none, or of more than all.
    pub fn new(rows: usize, batch: usize, seed: u64) -> Result<Self> {
        if !(1..=rows).contains(&batch) {
            return Err(Error::config("batch_size", batch, format!("1 to the {rows} training images")));
        }
        Ok(Self { seed, batch, order: vec![0; rows], epoch: None })
    }

    /// Batches in an epoch.
    pub fn steps(&self) -> u64 {
        (self.order.len() / self.batch) as u64
    }

    /// The rows of a step, counted from the first epoch on.
    pub fn at(&mut self, step: u64) -> &[usize] {
        let (epoch, first) = (step / self.steps(), (step % self.steps()) as usize * self.batch);
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.order.iter_mut().enumerate().for_each(|(at, row)| *row = at);
            Stream::new(self.seed, Purpose::SHUFFLE, epoch, 0).shuffle(&mut self.order);
        }
        &self.order[first..first + self.batch]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_row_of_its_full_batches_once() {
        let mut order = Order::new(10, 3, 0).unwrap();
        assert_eq!(order.steps(), 3);
        let mut epoch: Vec<usize> = (3..6).flat_map(|step| order.at(step).to_vec()).collect();
        let first: Vec<usize> = (0..3).flat_map(|step| order.at(step).to_vec()).collect();
        assert_ne!(epoch, first);
        epoch.sort_unstable();
        epoch.dedup();
        assert!(epoch.len() == 9 && epoch.iter().all(|row| *row < 10));
        for batch in [0, 3] {
            let text = Order::new(2, batch, 0).err().unwrap().to_string();
            assert_eq!(text, format!("config: `batch_size` is {batch}, expected 1 to the 2 training images"));
        }
    }

    #[test]
    fn blocks_of_products_follow_each_other() {
        let count = BLOCK + 3;
        let queries: Vec<f32> = (0..count).flat_map(|i| [i as f32, 1.0]).collect();
        let queries = Tensor::from_slice(&queries, [count, 2], &Device::Cpu).unwrap();
        let candidates = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0], [2, 2], &Device::Cpu).unwrap();
        let mut all = vec![];
        products(&queries, &candidates, |block| all.extend_from_slice(block)).unwrap();
        assert_eq!(all, queries.to_vec::<f32>().unwrap());
    }
}
