//! Optimizers and what steers them: learning-rate schedules, and rules that map parameter names to factors.

mod adamw;
pub mod groups;
mod lars;
pub mod schedule;
mod state;
#[cfg(test)]
mod tests;

pub use adamw::AdamW;
pub use groups::{Group, Rules};
pub use lars::Lars;
pub use state::StepStats;
