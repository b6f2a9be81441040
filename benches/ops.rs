//! Every operation at the recipes' real shapes ([`ocellus::ops::cases`]): one criterion group per operation.
//!
//! Ids are `<what>/<device>/<dtype>/<shape>`, with three of each:
//! - `forward`, recorded on a tape; throughput in bytes a perfect forward moves, or, for operations bound by
//!   arithmetic, in floating-point operations, which criterion calls elements;
//! - `step`, the same and the backward sweep from the last differentiable output; no throughput is given;
//! - `copy`, a copy that moves as many bytes as the forward: what the memory allows.
//!
//! Devices are the CPU and, if there is one, the first GPU, which is timed by its own events. Inputs are random, and
//! several sets take turns, so that none is in a cache when its turn comes. The shapes are those of GPUs; a CPU takes
//! up to seconds for one, so it makes few samples: filter, as in `cargo bench --bench ops -- 'gelu/forward/cpu'`.

use std::cell::OnceCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Bencher, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ocellus::ops::{Case, cases};
use ocellus::testing::operands;
use ocellus::{DType, Device, Grads, Tape, Tensor, Var};

/// Bytes of inputs after which the first of them has left every cache: 4 times the L2 of an H200, and more than the
/// last level of server CPUs.
const ROTATION: u64 = 240 << 20;
/// Sets of inputs at most: small operations on small inputs stay in the cache rather than take a thousand sets.
const MAX_SETS: u64 = 16;

fn devices() -> Vec<(Device, Vec<DType>)> {
    let mut devices = vec![(Device::Cpu, vec![DType::F32])];
    if let Ok(gpu) = Device::cuda(0) {
        devices.push((gpu, vec![DType::F32, DType::BF16]));
    }
    devices
}

fn ops(c: &mut Criterion) {
    for (device, dtypes) in devices() {
        for dtype in dtypes {
            cases().iter().for_each(|case| bench(c, case, dtype, &device));
        }
    }
}

fn bench(c: &mut Criterion, case: &Case, dtype: DType, device: &Device) {
    let bytes = (case.bytes)(dtype);
    let traffic = if case.flops > 0 { Throughput::Elements(case.flops) } else { Throughput::Bytes(bytes) };
    let sets = OnceCell::new(); // made when the first of the three passes the filter
    let sets = || sets.get_or_init(|| Sets::new(case, dtype, device));
    run(c, case, "forward", dtype, device, Some(traffic), |b| {
        let sets = sets();
        time(b, device, |i| {
            let tape = Tape::new();
            black_box((case.run)(&tape, &sets.vars(case, &tape, i)).unwrap());
        });
    });
    if case.inputs.iter().any(|input| input.grad) {
        run(c, case, "step", dtype, device, None, |b| {
            let sets = sets();
            time(b, device, |i| sets.step(case, i));
        });
    }
    if bytes > 0 {
        run(c, case, "copy", dtype, device, Some(Throughput::Bytes(bytes)), |b| {
            let from = Tensor::zeros([bytes.div_ceil(2) as usize], DType::U8, device).unwrap(); // read and written
            let mut to = Tensor::uninit_like(&from).unwrap();
            time(b, device, |_| to.copy_from(black_box(&from)).unwrap());
        });
    }
}

fn run(
    c: &mut Criterion,
    case: &Case,
    what: &str,
    dtype: DType,
    device: &Device,
    throughput: Option<Throughput>,
    f: impl FnMut(&mut Bencher<'_>),
) {
    let mut group = c.benchmark_group(case.op);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    if let Some(throughput) = throughput {
        group.throughput(throughput);
    }
    group.bench_function(BenchmarkId::new(what, format!("{device}/{dtype}/{}", case.id)), f);
    group.finish();
}

/// Input sets that take turns.
struct Sets {
    inputs: Vec<Vec<Tensor>>,
    /// Which output the sweep starts from, and its gradient; `None` if no input has one.
    seed: Option<(usize, Tensor)>,
}

impl Sets {
    fn new(case: &Case, dtype: DType, device: &Device) -> Self {
        let first = operands(case, dtype, dtype, device).unwrap();
        let bytes: usize = first.iter().map(Tensor::bytes).sum();
        let count = (ROTATION / bytes.max(1) as u64 + 1).min(MAX_SETS);
        let copy = |_| first.iter().map(|t| t.deep_clone().unwrap()).collect();
        let mut sets = Self { inputs: (1..count).map(copy).collect(), seed: None };
        sets.inputs.push(first);
        let tape = Tape::new();
        let outputs = (case.run)(&tape, &sets.vars(case, &tape, 0)).unwrap();
        let last = outputs.iter().rposition(|y| y.slot().is_some());
        sets.seed = last.map(|i| (i, outputs[i].value().deep_clone().unwrap())); // as good as any gradient
        sets
    }

    fn vars(&self, case: &Case, tape: &Tape, turn: usize) -> Vec<Var> {
        let inputs = &self.inputs[turn % self.inputs.len()];
        let var = |(input, t): (&ocellus::ops::Input, &Tensor)| {
            if input.grad { tape.leaf(t.clone()) } else { Var::constant(t.clone()) }
        };
        case.inputs.iter().zip(inputs).map(var).collect()
    }

    fn step(&self, case: &Case, turn: usize) {
        let Some((output, seed)) = &self.seed else { return };
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let y = (case.run)(&tape, &self.vars(case, &tape, turn)).unwrap().swap_remove(*output);
        tape.backward(&y, seed.clone(), &mut grads).unwrap();
        black_box(grads);
    }
}

/// Times `f` of the turn: by the clock on the CPU, by the device's events on a GPU.
fn time(b: &mut Bencher<'_>, device: &Device, mut f: impl FnMut(usize)) {
    let mut turn = 0;
    b.iter_custom(|iterations| {
        let mut all = || {
            for _ in 0..iterations {
                f(turn);
                turn += 1;
            }
        };
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device {
            let start = gpu.mark().unwrap();
            all();
            let end = gpu.mark().unwrap();
            return Duration::from_secs_f32(gpu.elapsed_ms(&start, &end).unwrap() / 1e3);
        }
        let start = Instant::now();
        all();
        device.synchronize().unwrap();
        start.elapsed()
    });
}

criterion_group!(benches, ops);
criterion_main!(benches);
