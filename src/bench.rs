//! Measuring operations at their real shapes: what `ocellus bench` prints and what the criterion benches time.
//!
//! Inputs are random, and several sets of them take turns, so that none is in a cache when its turn comes. A GPU is timed
//! by its own events. What a perfect kernel would take is computed from two ceilings, both measured on the same device
//! in the same run: the speed of a large copy and the rate of a large matrix product.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::device::gemm::{GemmSpec, Layout, gemm};
use crate::ops::{Case, Operand, Role};
use crate::random::{normal, stream};
use crate::testing::{operands, repeated};
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

/// Bytes of inputs after which the first of them has left every cache: 4 times the L2 of an H200, and more than the
/// last level of server CPUs.
const ROTATION: usize = 240 << 20;
/// Sets of inputs at most: small operations on small inputs stay in the cache rather than take a thousand sets.
const MAX_SETS: usize = 16;
/// Shortest time a sample takes: far above what the clock and the events resolve.
const SAMPLE: Duration = Duration::from_millis(10);
/// Samples of which the median is taken.
const SAMPLES: usize = 9;

/// How many sets of `bytes` bytes take turns, so that none is in a cache when its turn comes.
pub fn sets(bytes: usize) -> usize {
    (ROTATION / bytes.max(1) + 1).min(MAX_SETS)
}

/// Standard normal values: zeros need less power, and a GPU clocks higher on them.
pub fn random(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let draw = |n| normal(&mut stream(1, 0), n).into_iter().map(|x| x as f32).collect();
    let values: Vec<f32> = repeated(shape.iter().product(), draw);
    Tensor::from_slice(&values, shape, &Device::Cpu)?.cast(dtype)?.to_device(device)
}

/// Time of `iterations` calls of `f`, which gets the number of its turn: by the clock, or by the events of a GPU.
pub fn time(device: &Device, iterations: u64, mut f: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut all = || (0..iterations).try_for_each(|_| f());
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let start = gpu.mark()?;
        all()?;
        let end = gpu.mark()?;
        return Ok(Duration::from_secs_f32(gpu.elapsed_ms(&start, &end)? / 1e3));
    }
    let start = Instant::now();
    all()?;
    device.synchronize()?;
    Ok(start.elapsed())
}

/// Median time of one call in seconds, after a warm-up.
pub fn median(device: &Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let once = time(device, 1, &mut f)?.min(time(device, 1, &mut f)?); // the first loads kernels and plans
    let iterations = (SAMPLE.as_secs_f64() / once.as_secs_f64().max(1e-9)).ceil().clamp(1.0, 1e5) as u64;
    // A call that fills a second by itself is not repeated nine times.
    let samples = if once > Duration::from_secs(1) { 3 } else { SAMPLES };
    let mut seconds = Vec::with_capacity(samples);
    for _ in 0..samples {
        seconds.push(time(device, iterations, &mut f)?.as_secs_f64() / iterations as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[samples / 2])
}

/// Operands of a case that take turns.
pub struct Inputs {
    sets: Vec<Vec<Operand>>,
    turn: usize,
    /// Which output the sweep starts from, and its gradient; `None` if no input has one.
    seed: Option<(usize, Tensor)>,
}

impl Inputs {
    /// As many sets as it takes to leave the caches.
    pub fn new(case: &Case, dtype: DType, device: &Device) -> Result<Self> {
        let first = operands(case, dtype, dtype, device)?;
        let bytes: usize = first.iter().map(Tensor::bytes).sum();
        let copy = |_| {
            let operands = case.inputs.iter().zip(&first);
            operands.map(|(input, t)| input.operand(t.deep_clone()?)).collect::<Result<Vec<Operand>>>()
        };
        let sets = (0..sets(bytes)).map(copy).collect::<Result<_>>()?;
        let mut inputs = Self { sets, turn: 0, seed: None };
        let tape = Tape::new();
        let outputs = (case.run)(&tape, &inputs.next(&tape))?;
        let last = outputs.iter().rposition(|y| y.slot().is_some());
        // Its own value is as good as any gradient.
        inputs.seed = last.map(|i| outputs[i].value().deep_clone().map(|seed| (i, seed))).transpose()?;
        Ok(inputs)
    }

    /// The operands whose turn it is, on a tape.
    pub fn next(&mut self, tape: &Tape) -> Vec<Var> {
        self.turn += 1;
        self.sets[self.turn % self.sets.len()].iter().map(|operand| operand.on(tape)).collect()
    }

    /// Forward and backward of the operands whose turn it is.
    pub fn step(&mut self, case: &Case) -> Result<()> {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let vars = self.next(&tape);
        let Some((output, seed)) = &self.seed else { return Ok(()) };
        let y = (case.run)(&tape, &vars)?.swap_remove(*output);
        tape.backward(&y, seed.clone(), &mut grads)?;
        black_box(grads);
        Ok(())
    }
}

/// What the device can do at most, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written by a large copy, per second.
    pub bytes: f64,
    /// Floating-point operations of a large matrix product, per second.
    pub flops: f64,
}

impl Ceilings {
    /// Copies 1 GiB and multiplies 8192 x 8192 matrices on a GPU; 256 MiB and 1024 x 1024 on a host.
    pub fn measure(dtype: DType, device: &Device) -> Result<Self> {
        let (elements, n) = if device.is_host() { (1 << 26, 1024) } else { (1 << 28, 8192) };
        let from = random(&[elements], DType::F32, device)?;
        let mut to = Tensor::uninit_like(&from)?;
        let copy = median(device, || to.copy_from(&from))?;
        let bytes = 2.0 * from.bytes() as f64 / copy;
        drop((from, to));
        let [a, b] = [random(&[n, n], dtype, device)?, random(&[n, n], dtype, device)?];
        let mut d = Tensor::uninit_like(&a)?;
        let layout = Layout { m: n, n, k: n, trans_a: false, trans_b: true, input: dtype, output: dtype };
        let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
        let product = median(device, || gemm(&spec, a.storage(), b.storage(), None, d.storage_mut("bench")?))?;
        Ok(Self { bytes, flops: 2.0 * (n as f64).powi(3) / product })
    }

    /// Seconds below which a forward that moves `bytes` and computes `flops` cannot come.
    pub fn floor(&self, bytes: u64, flops: u64) -> f64 {
        (bytes as f64 / self.bytes).max(flops as f64 / self.flops)
    }
}

/// The figures of one case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// Operation.
    pub op: &'static str,
    /// Shape.
    pub id: String,
    /// Storage type.
    pub dtype: &'static str,
    /// Median of the forward in seconds.
    pub forward: f64,
    /// Median of forward and backward in seconds, where there is a gradient.
    pub step: Option<f64>,
    /// Bytes of a perfect forward.
    pub bytes: u64,
    /// Floating-point operations of the forward.
    pub flops: u64,
    /// What a perfect forward takes, in seconds; `None` for a case without figures.
    pub floor: Option<f64>,
}

impl Row {
    /// Times one case.
    pub fn measure(case: &Case, dtype: DType, device: &Device, ceilings: &Ceilings) -> Result<Self> {
        let (forward, step) = match &case.in_place {
            // One set: what optimizers work on is larger than any cache.
            Some(in_place) => (median(device, in_place(operands(case, dtype, dtype, device)?)?)?, None),
            None => {
                let mut inputs = Inputs::new(case, dtype, device)?;
                let forward = median(device, || {
                    let tape = Tape::no_grad();
                    black_box((case.run)(&tape, &inputs.next(&tape))?);
                    Ok(())
                })?;
                let differentiable = case.inputs.iter().any(|input| input.role != Role::Constant);
                (forward, differentiable.then(|| median(device, || inputs.step(case))).transpose()?)
            }
        };
        let (bytes, flops) = ((case.bytes)(dtype), case.flops);
        let floor = (bytes + flops > 0).then(|| ceilings.floor(bytes, flops));
        Ok(Self { op: case.op, id: case.id.clone(), dtype: dtype.name(), forward, step, bytes, flops, floor })
    }
}

/// The cases whose `op/shape` contains `filter`, in the order of operations.
///
/// # Errors
/// A filter that no case passes.
pub fn select(filter: &str) -> Result<Vec<Case>> {
    let cases: Vec<Case> = crate::ops::cases();
    let mut ops: Vec<&str> = cases.iter().map(|case| case.op).collect();
    ops.dedup();
    let expected = format!("a part of an operation's name or shape; operations: {}", ops.join(", "));
    let chosen: Vec<Case> =
        cases.into_iter().filter(|case| format!("{}/{}", case.op, case.id).contains(filter)).collect();
    if chosen.is_empty() { Err(Error::config("filter", filter, expected)) } else { Ok(chosen) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_figures_of_its_case() {
        let case = crate::ops::layer_norm::case(5, 8);
        let ceilings = Ceilings { bytes: 1e9, flops: 1e12 };
        let row = Row::measure(&case, DType::F32, &Device::Cpu, &ceilings).unwrap();
        assert_eq!((row.op, row.id.as_str(), row.dtype), ("layer_norm", "5x8", "f32"));
        assert!(row.forward > 0.0 && row.step.unwrap() > 0.0);
        assert_eq!(row.floor, Some(ceilings.floor((case.bytes)(DType::F32), case.flops)));
        assert_eq!(ceilings.floor(2_000_000_000, 1), 2.0);
        assert_eq!(ceilings.floor(1, 3_000_000_000_000), 3.0);
    }

    #[test]
    fn filters_choose_by_operation_and_shape() {
        let all = select("").unwrap().len();
        let some = select("layer_norm/").unwrap();
        assert!(!some.is_empty() && some.len() < all);
        assert!(some.iter().all(|case| format!("{}/", case.op).ends_with("layer_norm/")));
        assert!(select("no such thing").err().unwrap().to_string().contains("operations: adafactor, adamw, add"));
    }
}
