//! Learning rates as functions of the position in a run.

/// Learning rate of a batch of `batch` images from one stated per 256 (Goyal et al. 2017, arXiv 1706.02677).
pub fn scaled_lr(blr: f64, batch: usize) -> f64 {
    blr * batch as f64 / 256.0
}

/// Linear warm-up from 0, then half a cosine from `lr` to `min_lr`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    /// At the end of the warm-up.
    pub lr: f64,
    /// At the end of the run.
    pub min_lr: f64,
    /// Length of the warm-up.
    pub warmup_epochs: f64,
    /// Length of the run, warm-up included.
    pub epochs: f64,
}

impl Cosine {
    /// The learning rate at a fractional epoch: 0 at the very first step, `min_lr` from the end on.
    pub fn at(&self, epoch: f64) -> f64 {
        cosine_with_warmup(epoch, self.lr, self.min_lr, self.warmup_epochs, self.epochs)
    }
}

/// `lr · e / W` for `e < W`, else `min_lr + (lr - min_lr) · (1 + cos(π (e - W) / (E - W))) / 2` with `W` epochs of warm-up
/// of `E` in all. Past `E` it stays at `min_lr`.
pub fn cosine_with_warmup(epoch: f64, lr: f64, min_lr: f64, warmup_epochs: f64, epochs: f64) -> f64 {
    if epoch < warmup_epochs {
        return lr * epoch / warmup_epochs;
    }
    let (past, length) = (epoch - warmup_epochs, epochs - warmup_epochs);
    // A run that is all warm-up has no cosine to divide by.
    let progress = if past < length { past / length } else { 1.0 };
    min_lr + (lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}
