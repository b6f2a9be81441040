//! Updates that are left out because the loss or a gradient is not finite.

use crate::{Error, Result};

/// Counts them.
#[derive(Default)]
pub(super) struct Skips {
    /// In all.
    pub all: u64,
    in_a_row: u64,
}

impl Skips {
    /// What an update gave; `None` and a warning for one that is skipped, of which `allowed` may follow each other. Nothing
    /// was changed by it.
    pub fn pass<T>(&mut self, updated: Result<T>, step: u64, allowed: u64) -> Result<Option<T>> {
        match updated {
            Err(Error::NonFinite { tensor, value, .. }) if self.in_a_row < allowed => {
                self.all += 1;
                self.in_a_row += 1;
                let count = self.in_a_row;
                tracing::warn!(
                    "step {step}: {tensor} is {value}, the update is skipped ({count} in a row of {allowed} allowed)"
                );
                Ok(None)
            }
            other => {
                self.in_a_row = 0;
                other.map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests;
