//! What operations hold in memory at most, beside what their formulas promise.
//!
//! `cargo bench --bench memory` prints a line for each small shape: operation, dtype, shape, the formula's bytes, the bytes
//! counted during a forward and a backward (`Device::peak_bytes`, on the CPU), seconds; it fails where the two differ. Other
//! shapes are arguments, `<op>/<dtype>/<shape>`, as in
//! `cargo bench --bench memory -- sigmoid_pair_loss/f32/32768x768`, which takes minutes.

use std::process::ExitCode;
use std::time::Instant;

use ocellus::ops::prototype_cross_entropy::{self as cross_entropy, Pairing};
use ocellus::ops::sigmoid_pair_loss::{self, Block, sigmoid_pair_loss};
use ocellus::ops::softmax_pair_loss::{self, Sides, softmax_pair_loss};
use ocellus::ops::{l2_normalize, sinkhorn_knopp};
use ocellus::random::{normal, stream};
use ocellus::{DType, Device, Grads, Result, Tape, Tensor};

/// The formula's bytes and those counted; `None` for a wrong number of extents.
type Measured = Option<Result<[usize; 2]>>;

/// An operation whose memory is promised.
struct Subject {
    op: &'static str,
    /// Run without arguments.
    shapes: &'static [&'static str],
    /// For a dtype and the extents of a shape.
    measure: fn(DType, &[usize]) -> Measured,
}

const SUBJECTS: &[Subject] = &[
    Subject { op: "prototype_loss", shapes: &["f32/256x8192", "f16/512x8192"], measure: prototype_loss },
    // Time grows with the square of the rows, memory with the rows.
    Subject {
        op: "sigmoid_pair_loss",
        shapes: &["f32/2048x256", "f32/4096x256", "f32/8192x256", "bf16/2048x768"],
        measure: |dtype, shape| pair_loss(dtype, shape, true),
    },
    Subject {
        op: "softmax_pair_loss",
        shapes: &["f32/2048x256", "f32/4096x256", "bf16/2048x768"],
        measure: |dtype, shape| pair_loss(dtype, shape, false),
    },
];

/// `rows x prototypes` of teacher and student: Sinkhorn-Knopp with three iterations, then the cross-entropy and its
/// gradient, written over the student's logits.
fn prototype_loss(dtype: DType, shape: &[usize]) -> Measured {
    let &[rows, cols] = shape else { return None };
    let device = Device::Cpu;
    let measure = || {
        let logits = |seed| -> Result<Tensor> {
            let line = normal(&mut stream(seed, 0), cols); // shifted from row to row: random numbers for all would take minutes
            let values: Vec<f32> =
                (0..rows * cols).map(|i| 0.3 * line[(i % cols + 7 * (i / cols)) % cols] as f32).collect();
            Tensor::from_slice(&values, [rows, cols], &device)?.cast(dtype)
        };
        let scalar = |value: f64| Tensor::from_slice(&[value], [1], &device)?.cast(dtype.accumulate());
        let (teacher, student) = (logits(1)?, logits(2)?);
        let weights = Tensor::full([rows], 1.0f32, &device)?.cast(dtype.accumulate())?;
        let (temp, dloss, normaliser) = (scalar(0.07)?, scalar(1.0)?, rows as f64);
        let step = || -> Result<Tensor> {
            let teacher = sinkhorn_knopp::sinkhorn_knopp(&teacher, &temp, 3, None)?;
            let same = Pairing::Same;
            let (_, stats) = cross_entropy::forward(&student, 0.1, &teacher, same, &weights, normaliser)?;
            cross_entropy::backward(&dloss, student, 0.1, &teacher, same, &weights, normaliser, &stats)
        };
        let (result, held) = device.peak_bytes(step)?;
        result?;
        let factors = dtype.accumulate().size() * (cols + rows); // of the teacher, while the cross-entropy runs
        let solving = sinkhorn_knopp::workspace_bytes(rows, cols, dtype, &device)?;
        let formula = solving.max(factors + cross_entropy::workspace_bytes(rows, cols, dtype, &device)?);
        Ok([formula, held])
    };
    Some(measure())
}

/// `rows x width`, as many of `x` as of `y`: the sigmoid loss, or its peer.
fn pair_loss(dtype: DType, shape: &[usize], sigmoid: bool) -> Measured {
    let &[n, d] = shape else { return None };
    let device = Device::Cpu;
    let measure = || {
        let embeddings = |seed| -> Result<Tensor> {
            let mut rng = stream(seed, 0);
            let values: Vec<f32> = (0..n).flat_map(|_| normal(&mut rng, d)).map(|x| x as f32).collect();
            Ok(l2_normalize::forward(&Tensor::from_slice(&values, [n, d], &device)?.cast(dtype)?)?.0)
        };
        let scalar = |value: f64| Tensor::from_slice(&[value], [1], &device)?.cast(dtype.accumulate());
        let inputs = [embeddings(1)?, embeddings(2)?, scalar(10f64.ln())?, scalar(-10.0)?];
        let seed = scalar(1.0)?;
        let step = || -> Result<_> {
            let (tape, mut grads) = (Tape::new(), Grads::new());
            let [x, y, log_scale, bias] = inputs.map(|t| tape.leaf(t));
            let (loss, logits) = match sigmoid {
                true => sigmoid_pair_loss(&tape, &x, &y, &log_scale, &bias, Block::whole(n))?,
                false => softmax_pair_loss(&tape, &x, &y, &log_scale, Block::whole(n), Sides::Both)?,
            };
            tape.backward(&loss, seed, &mut grads)?;
            Ok((loss, logits, grads))
        };
        let (result, held) = device.peak_bytes(step)?;
        result?;
        let formula = match sigmoid {
            true => sigmoid_pair_loss::peak_bytes(n, n, d, dtype, &device),
            false => softmax_pair_loss::peak_bytes(n, d, dtype, &device),
        };
        Ok([formula, held])
    };
    Some(measure())
}

/// Prints a line; whether the formula is right.
fn line(subject: &Subject, shape: &str) -> std::result::Result<bool, String> {
    let wrong = || format!("{}/{shape}: expected <dtype>/<n>x<n>.., as {}", subject.op, subject.shapes[0]);
    let (name, numbers) = shape.split_once('/').ok_or_else(wrong)?;
    let dtypes = [DType::F32, DType::BF16, DType::F16, DType::F64];
    let dtype = dtypes.into_iter().find(|dtype| dtype.name() == name).ok_or_else(wrong)?;
    let numbers: Vec<usize> =
        numbers.split('x').map(str::parse).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    let start = Instant::now();
    let [formula, counted] = (subject.measure)(dtype, &numbers).ok_or_else(wrong)?.map_err(|e| e.to_string())?;
    let verdict = if formula == counted { "" } else { "  DIFFERENT" };
    let seconds = start.elapsed().as_secs_f64();
    println!("{:<20} {shape:<18} {formula:>14} {counted:>14} {seconds:>8.1}{verdict}", subject.op);
    Ok(formula == counted)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut lines = Vec::new();
    for subject in SUBJECTS {
        let asked =
            arguments.iter().filter_map(|a| Some(a.strip_prefix(subject.op)?.trim_start_matches('/').to_string()));
        for shape in asked {
            match shape.is_empty() {
                true => lines.extend(subject.shapes.iter().map(|s| (subject, s.to_string()))),
                false => lines.push((subject, shape)),
            }
        }
        if arguments.is_empty() {
            lines.extend(subject.shapes.iter().map(|s| (subject, s.to_string())));
        }
    }
    println!("{:<20} {:<18} {:>14} {:>14} {:>8}", "operation", "shape", "formula", "counted", "seconds");
    let mut right = !lines.is_empty();
    for (subject, shape) in lines {
        right &= line(subject, &shape).unwrap_or_else(|e| {
            eprintln!("{e}");
            false
        });
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
