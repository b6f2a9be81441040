//! Progress on a terminal as a bar, elsewhere as a line every few seconds.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Unlike `eprintln`, does not mind that the terminal is gone: the run goes on, or saves and stops.
pub(super) fn stderr_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows how far something that takes longer than two seconds has come.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    label: String,
    total: u64,
    done: u64,
    before: u64,
    units_per_step: f64,
    unit: &'static str,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// `total` steps of `units_per_step` things called `unit` (images); `done` of the steps lie behind already.
    pub fn new(label: &str, total: u64, done: u64, units_per_step: f64, unit: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        // A template that does not parse would be a fault of the constant below; the default style still shows a bar.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} ETA {eta}") {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        let (label, started, last_line) = (label.to_string(), now, now);
        Self { bar, terminal, label, total, done, before: done, units_per_step, unit, started, last_line }
    }

    /// Things per second since the start.
    pub fn rate(&self) -> f64 {
        (self.done - self.before) as f64 * self.units_per_step / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// One step more; `message` is shown beside the rate.
    pub fn step(&mut self, message: &str) {
        self.done += 1;
        let text = format!("{:.0} {}/s {message}", self.rate(), self.unit);
        if self.terminal {
            self.bar.set_message(text);
            self.bar.inc(1);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let left = self.total.saturating_sub(self.done) as f64 * self.units_per_step / self.rate();
            stderr_line(&format!("{} {}/{} {text} ETA {left:.0} s", self.label, self.done, self.total));
        }
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        if self.terminal { self.bar.println(line) } else { stderr_line(line) }
    }

    /// Leaves the bar as it is.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}
