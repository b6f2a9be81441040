//! What tests share: the parity check against the f64 oracle, finite differences, the tolerance policy.

#[cfg(test)]
mod tests;
mod tolerance;

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use rand::{Rng, RngExt};

use crate::device::host::with_poison;
use crate::ops::{Case, Fill, Input, Operand, Role};
use crate::random::{normal, stream};
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

pub use tolerance::{compare, distance, ulp};

/// Outcome of a check; the text says what differs where.
pub type Check = std::result::Result<(), String>;

/// Devices whose kernels are tested: `OCELLUS_TEST_DEVICE` (`cpu`, `emulated`, `cuda`) or, unset, the emulator if built
/// in and a GPU if there is one.
///
/// # Panics
/// When the device asked for is not there: a test must not pass by testing nothing.
pub fn devices() -> Vec<Device> {
    match std::env::var("OCELLUS_TEST_DEVICE") {
        Ok(name) if name == "cpu" => vec![],
        Ok(name) => vec![Device::parse(&name).unwrap_or_else(|e| panic!("OCELLUS_TEST_DEVICE={name}: {e}"))],
        Err(_) => [Device::emulated(), Device::cuda(0)].into_iter().flatten().collect(),
    }
}

/// Storage types every operation is tested in.
pub const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn rng(case: &Case, salt: u64) -> impl Rng + use<> {
    let mut hasher = DefaultHasher::new();
    (case.op, &case.id).hash(&mut hasher);
    stream(hasher.finish(), salt)
}

/// How many values are drawn for a large operand, which then repeat: drawing those of a bench would take longer than the
/// bench. A prime, so that no two rows of a matrix are the same.
pub(crate) const DISTINCT: usize = 1_048_573;

/// `n` values, those after the first [`DISTINCT`] repeated.
pub(crate) fn repeated<X: Copy>(n: usize, draw: impl FnOnce(usize) -> Vec<X>) -> Vec<X> {
    let mut values = draw(n.min(DISTINCT));
    values.reserve_exact(n - values.len());
    while values.len() < n {
        values.extend_from_within(..(n - values.len()).min(DISTINCT));
    }
    values
}

/// Values of an input in f64, before rounding to a storage type; `None` for integers.
fn values(input: &Input, rng: &mut impl Rng) -> Option<Vec<f64>> {
    let n = input.shape.numel();
    match &input.fill {
        Fill::Normal(mean, std) | Fill::AccNormal(mean, std) => {
            Some(repeated(n, |n| normal(rng, n).into_iter().map(|x| mean + std * x).collect()))
        }
        Fill::Uniform(low, high) | Fill::AccUniform(low, high) => {
            Some(repeated(n, |n| (0..n).map(|_| low + (high - low) * rng.random::<f64>()).collect()))
        }
        Fill::Acc(values) => Some(values.clone()),
        Fill::I32(_) | Fill::U8 | Fill::Bytes(_) => None,
    }
}

/// The operands of a case: float values rounded to `storage`, held in `held` (f64 for the oracle, else `storage`).
pub fn operands(case: &Case, storage: DType, held: DType, device: &Device) -> Result<Vec<Tensor>> {
    let mut rng = rng(case, 0); // the same values whatever the types
    let make = |input: &Input| {
        let shape = input.shape.clone();
        if let Some(values) = values(input, &mut rng) {
            let acc = matches!(input.fill, Fill::AccNormal(..) | Fill::AccUniform(..) | Fill::Acc(_));
            let rounded = if acc { storage.accumulate() } else { storage };
            let target = if acc { held.accumulate() } else { held };
            let t = Tensor::from_slice(&values, shape, &Device::Cpu)?.cast(rounded)?.cast(target)?;
            return t.to_device(device);
        }
        match &input.fill {
            Fill::I32(v) => Tensor::from_slice(v, shape, device),
            Fill::Bytes(v) => {
                let bytes: Vec<u8> = v.iter().copied().cycle().take(shape.numel()).collect();
                Tensor::from_slice(&bytes, shape, device)
            }
            _ => {
                let bytes: Vec<u8> = repeated(shape.numel(), |n| (0..n).map(|_| rng.random()).collect());
                Tensor::from_slice(&bytes, shape, device)
            }
        }
    };
    case.inputs.iter().map(make).collect()
}

/// Outputs, and per differentiable output the gradient of each input that wants one.
struct Outcome {
    names: Vec<String>,
    tensors: Vec<(DType, Vec<f64>)>,
}

fn run(case: &Case, storage: DType, held: DType, device: &Device) -> Result<Outcome> {
    let inputs = operands(case, storage, held, device)?;
    run_on(case, inputs, |i, y| cotangent(case, i, y, storage, device))
}

/// How far each result of the oracle moves when every input and every cotangent is off by one random rounding to `unit`,
/// at most in a few draws: what such a rounding inside the operation can do as well.
fn moved(case: &Case, storage: DType, unit: DType, oracle: &Outcome) -> Result<Vec<f64>> {
    let mut most = vec![0.0f64; oracle.tensors.len()];
    for draw in 0..3 {
        let rng = RefCell::new(rng(case, 96 + draw));
        let half = tolerance::ulp(unit, 1.0) / 2.0;
        let nudge = |t: Tensor| {
            if t.dtype() != DType::F64 {
                return Ok(t); // integers are exact
            }
            let off = |x| x * (1.0 + if rng.borrow_mut().random() { half } else { -half });
            let values: Vec<f64> = t.to_vec::<f64>()?.into_iter().map(off).collect();
            Tensor::from_slice(&values, t.shape().clone(), &Device::Cpu)
        };
        let inputs =
            operands(case, storage, DType::F64, &Device::Cpu)?.into_iter().map(nudge).collect::<Result<_>>()?;
        let outcome = run_on(case, inputs, |i, y| nudge(cotangent(case, i, y, storage, &Device::Cpu)?))?;
        for ((most, (_, values)), (_, truth)) in most.iter_mut().zip(&outcome.tensors).zip(&oracle.tensors) {
            *most = most.max(distance(values, truth).0);
        }
    }
    Ok(most)
}

/// Every output, and the gradient of every input through each output that has one. An operation that cuts a gradient it
/// should give is an error.
fn run_on(case: &Case, inputs: Vec<Tensor>, cotangent: impl Fn(usize, &Var) -> Result<Tensor>) -> Result<Outcome> {
    let operands =
        case.inputs.iter().zip(inputs).map(|(input, t)| input.operand(t)).collect::<Result<Vec<Operand>>>()?;
    let on = |tape: &Tape| operands.iter().map(|operand| operand.on(tape)).collect::<Vec<Var>>();
    let wanted: Vec<usize> = (0..operands.len()).filter(|&at| case.inputs[at].role != Role::Constant).collect();
    let mut outcome = Outcome { names: vec![], tensors: vec![] };
    let tape = Tape::new();
    let outputs = (case.run)(&tape, &on(&tape))?;
    for (i, y) in outputs.iter().enumerate() {
        outcome.names.push(format!("output {i}"));
        outcome.tensors.push((y.value().dtype(), y.value().to_f64()?));
    }
    let differentiable: Vec<usize> = (0..outputs.len()).filter(|&i| outputs[i].slot().is_some()).collect();
    if differentiable.is_empty() && !wanted.is_empty() {
        return Err(Error::MissingGradients(wanted.iter().map(|&at| case.inputs[at].name.into()).collect()));
    }
    for i in differentiable {
        let tape = Tape::new();
        let vars = on(&tape);
        let y = (case.run)(&tape, &vars)?.swap_remove(i);
        let mut grads = Grads::new();
        tape.backward(&y, cotangent(i, &y)?, &mut grads)?;
        for &at in &wanted {
            let name = case.inputs[at].name;
            let gradient = operands[at].gradient(&vars[at], &mut grads);
            match (gradient, case.independent.contains(&(i, name))) {
                (Some(g), false) => {
                    outcome.names.push(format!("d output {i} / d {name}"));
                    outcome.tensors.push((g.dtype(), g.to_f64()?));
                }
                (None, true) => {}
                (None, false) => return Err(Error::MissingGradients(vec![format!("{name} from output {i}")])),
                (Some(_), true) => {
                    return Err(Error::argument(case.op, name, "gradient", "one", format!("none from output {i}")));
                }
            }
        }
    }
    Ok(outcome)
}

/// A fixed random cotangent of output `i`, rounded to the storage type also where the output is f32: the oracle, whose
/// outputs are all f64, gets the same.
fn cotangent(case: &Case, i: usize, y: &Var, storage: DType, device: &Device) -> Result<Tensor> {
    let values = normal(&mut rng(case, 1 + i as u64), y.value().numel());
    let t = Tensor::from_slice(&values, y.value().shape().clone(), &Device::Cpu)?;
    let t = t.cast(storage)?.cast(y.value().dtype())?;
    t.to_device(device)
}

/// Runs a case in every storage type on the CPU and on every device of [`devices`], and compares values and gradients
/// with the f64 oracle under the tolerance policy. Outputs start as NaN. The emulator runs three schedules, a GPU runs
/// twice, and all of them give the same bits.
pub fn check(case: &Case) -> Check {
    for dtype in DTYPES {
        check_dtype(case, dtype)?;
    }
    Ok(())
}

impl Outcome {
    /// Where two runs of the same differ in a bit.
    fn differs(&self, other: &Self) -> Option<(&str, usize)> {
        let pairs = self.names.iter().zip(self.tensors.iter().zip(&other.tensors));
        pairs
            .filter_map(|(name, ((_, a), (_, b)))| {
                let at = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits())?;
                Some((name.as_str(), at))
            })
            .next()
    }
}

/// [`check`] in one storage type.
pub fn check_dtype(case: &Case, dtype: DType) -> Check {
    let at = |device: &Device, what: &str| format!("{} {} {dtype} on {device}: {what}", case.op, case.id);
    let go =
        |held, device: &Device| with_poison(|| run(case, dtype, held, device)).map_err(|e| at(device, &e.to_string()));
    let oracle = go(DType::F64, &Device::Cpu)?;
    check_composed(case, dtype, &oracle).map_err(|e| at(&Device::Cpu, &e))?;
    let reference = go(dtype, &Device::Cpu)?;
    let moved = |unit| moved(case, dtype, unit, &oracle).map_err(|e| at(&Device::Cpu, &e.to_string()));
    let by_arithmetic = moved(DType::F32)?;
    let by_storage = if case.stored > 1 { moved(dtype)? } else { vec![0.0; by_arithmetic.len()] };
    let outputs = oracle.names.iter().filter(|n| n.starts_with("output")).count();
    if oracle.names != reference.names {
        return Err(at(&Device::Cpu, "the oracle and the reference give different outputs"));
    }
    for (i, name) in oracle.names.iter().enumerate() {
        let (held, values) = &reference.tensors[i];
        tolerance::reference(case, *held, values, &oracle.tensors[i].1, by_arithmetic[i], by_storage[i])
            .map_err(|e| at(&Device::Cpu, &format!("{name}: {e}")))?;
    }
    for device in devices() {
        let mut first: Option<Outcome> = None;
        for schedule in 0..if device == Device::Emulated { 3 } else { 2 } {
            let got = scheduled(schedule, || go(dtype, &device))?;
            if let Some((name, i)) = first.as_ref().and_then(|first| first.differs(&got)) {
                let what = format!("{name}[{i}] differs between two runs: the order of its sums is not fixed");
                return Err(at(&device, &what));
            }
            for (i, name) in oracle.names.iter().enumerate() {
                let (held, values) = &got.tensors[i];
                if *held != reference.tensors[i].0 {
                    return Err(at(
                        &device,
                        &format!("{name}: dtype {held}, the reference gives {}", reference.tensors[i].0),
                    ));
                }
                let factor = if i < outputs { 2.0 } else { 3.0 };
                compare(*held, values, &reference.tensors[i].1, &oracle.tensors[i].1, by_arithmetic[i], factor)
                    .map_err(|e| at(&device, &format!("schedule {schedule}, {name}: {e}")))?;
            }
            first.get_or_insert(got);
        }
    }
    Ok(())
}

/// The baseline of a fused operation gives what the operation gives.
fn check_composed(case: &Case, storage: DType, oracle: &Outcome) -> Check {
    let Some(composed) = &case.composed else { return Ok(()) };
    let go = || {
        let inputs = operands(case, storage, DType::F64, &Device::Cpu)?;
        let outputs = composed(&Tape::no_grad(), &inputs.into_iter().map(Var::constant).collect::<Vec<_>>())?;
        outputs.iter().map(|y| y.value().to_f64()).collect::<Result<Vec<_>>>()
    };
    for (i, (values, (_, truth))) in go().map_err(|e| e.to_string())?.iter().zip(&oracle.tensors).enumerate() {
        tolerance::reference(case, DType::F64, values, truth, 0.0, 0.0)
            .map_err(|e| format!("composed, output {i}: {e}"))?;
    }
    Ok(())
}

/// Runs `f` under one of the emulator's schedules: 0 forward, 1 reverse, others shuffled with that seed.
pub fn scheduled<R>(schedule: u64, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "emulator")]
    {
        use crate::device::emulated::{Options, Order, options, with_options};
        let order = match schedule {
            0 => Order::Forward,
            1 => Order::Reverse,
            _ => Order::Shuffled,
        };
        with_options(Options { order, seed: schedule, ..options() }, f)
    }
    #[cfg(not(feature = "emulator"))]
    {
        let _ = schedule;
        f()
    }
}

/// Runs `f` on an emulated device whose blocks may have so many bytes of shared memory; other devices have what they have.
pub fn with_shared_limit<R>(bytes: usize, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "emulator")]
    {
        use crate::device::emulated::{Options, options, with_options};
        with_options(Options { shared_limit: bytes as u32, ..options() }, f)
    }
    #[cfg(not(feature = "emulator"))]
    {
        let _ = bytes;
        f()
    }
}

/// Compares the gradients of a case in f64 on the CPU with central differences.
pub fn check_gradients(case: &Case) -> Check {
    let cpu = Device::Cpu;
    let fail = |e: crate::Error| format!("{} {}: {e}", case.op, case.id);
    let base = operands(case, DType::F64, DType::F64, &cpu).map_err(fail)?;
    let analytic = run(case, DType::F64, DType::F64, &cpu).map_err(fail)?;
    let value = |inputs: &[Tensor], i: usize| -> Result<f64> {
        let vars: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
        let y = (case.run)(&Tape::no_grad(), &vars)?.swap_remove(i);
        let seed = cotangent(case, i, &y, DType::F64, &cpu)?.to_f64()?;
        Ok(y.value().to_f64()?.iter().zip(seed).map(|(y, s)| y * s).sum())
    };
    let mut pick = rng(case, 99);
    for (name, (_, grad)) in analytic.names.iter().zip(&analytic.tensors).filter(|(n, _)| n.starts_with("d ")) {
        let (output, input) =
            parse(case, name).ok_or_else(|| format!("{}: unreadable gradient name {name}", case.op))?;
        let scale = grad.iter().fold(1e-3f64, |m, g| m.max(g.abs()));
        let x = base[input].to_f64().map_err(fail)?;
        for _ in 0..x.len().min(24) {
            let at = pick.random_range(0..x.len());
            let h = 1e-5 * x[at].abs().max(1.0);
            let shifted = |by: f64| -> Result<f64> {
                let mut values = x.clone();
                values[at] += by;
                let mut inputs = base.clone();
                inputs[input] = Tensor::from_slice(&values, base[input].shape().clone(), &cpu)?;
                value(&inputs, output)
            };
            let numeric = (shifted(h).map_err(fail)? - shifted(-h).map_err(fail)?) / (2.0 * h);
            let error = (numeric - grad[at]).abs();
            // Central differences are good to about 1e-9 of the terms summed; 1e-6 leaves room for cancellation.
            if error.is_nan() || error > 1e-6 * scale {
                return Err(format!(
                    "{} {}: {name}[{at}] is {}, differences give {numeric}",
                    case.op, case.id, grad[at]
                ));
            }
        }
    }
    Ok(())
}

fn parse(case: &Case, name: &str) -> Option<(usize, usize)> {
    let (output, input) = name.strip_prefix("d output ")?.split_once(" / d ")?;
    Some((output.parse().ok()?, case.inputs.iter().position(|i| i.name == input)?))
}
