//! `ocellus bench`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ocellus::bench::{Ceilings, Row, select};
use ocellus::train::Progress;
use ocellus::{Device, Error, Result};

use super::Machine;

/// Flags of `bench`.
#[derive(clap::Args)]
pub struct Flags {
    /// Only cases whose operation/shape contains this, e.g. layer_norm or attention/256x
    #[arg(default_value = "")]
    filter: String,
    /// Also write the figures, one JSON object per line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Times the cases and prints them as a table; those that fail are named at the end.
pub fn bench(flags: &Flags, machine: &Machine) -> Result<ExitCode> {
    let cases = select(&flags.filter)?;
    let device = machine.device()?;
    if device == Device::Emulated {
        return Err(Error::config("device", "emulated", "cpu or cuda: an emulator's time says nothing of a kernel's"));
    }
    let dtype = machine.dtype(&device)?;
    let ceilings = Ceilings::measure(dtype, &device)?;
    say!(
        "{} {dtype}: copy {}, matrix product {}",
        device.description(),
        rate(ceilings.bytes, "B/s"),
        rate(ceilings.flops, "FLOP/s")
    );
    let mut progress = Progress::new("bench", cases.len() as u64, 0, 1.0, "cases");
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let mut json = match &flags.json {
        Some(path) => Some((path, File::create(path).map_err(Error::io(path))?)),
        None => None,
    };
    for case in &cases {
        progress.step(&format!("{} {}", case.op, case.id));
        match Row::measure(case, dtype, &device, &ceilings) {
            Ok(row) => {
                if let (Some((path, file)), Ok(line)) = (&mut json, serde_json::to_string(&row)) {
                    writeln!(file, "{line}").map_err(Error::io(*path))?; // at once: what was measured is not lost
                }
                rows.push(row);
            }
            Err(error) => failures.push(format!("{}/{}: {error}", case.op, case.id)),
        }
    }
    progress.finish();
    let width = rows.iter().map(|row| row.id.len()).max().unwrap_or(0).max(5);
    say!(
        "{:<20} {:<width$} {:>11} {:>13} {:>8} {:>11}",
        "operation",
        "shape",
        "forward",
        "achieved",
        "of floor",
        "with grad"
    );
    for row in &rows {
        let (amount, unit) = if row.flops > 0 { (row.flops, "FLOP/s") } else { (row.bytes, "B/s") };
        let achieved = if amount > 0 { rate(amount as f64 / row.forward, unit) } else { String::new() };
        let share = row.floor.map_or(String::new(), |floor| format!("{:.0} %", 100.0 * floor / row.forward));
        let step = row.step.map_or(String::new(), seconds);
        say!("{:<20} {:<width$} {:>11} {achieved:>13} {share:>8} {step:>11}", row.op, row.id, seconds(row.forward));
    }
    if let Some((path, _)) = json {
        say!("figures: {}", path.display());
    }
    failures.iter().for_each(|failure| say_err!("failed: {failure}"));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rate(per_second: f64, unit: &str) -> String {
    let (scale, prefix) = if per_second >= 1e12 { (1e12, "T") } else { (1e9, "G") };
    format!("{:.3} {prefix}{unit}", per_second / scale)
}

fn seconds(value: f64) -> String {
    if value >= 1e-3 { format!("{:.3} ms", 1e3 * value) } else { format!("{:.1} us", 1e6 * value) }
}
