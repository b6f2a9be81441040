//! What the benches share: devices, sampling, and timing by the clock or by a GPU's own events.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use ocellus::random::{normal, stream};
use ocellus::{DType, Device, Tensor};

/// Bytes of inputs after which the first of them has left every cache: 4 times the L2 of an H200, and more than the
/// last level of server CPUs.
const ROTATION: usize = 240 << 20;
/// Sets of inputs at most: small operations on small inputs stay in the cache rather than take a thousand sets.
const MAX_SETS: usize = 16;

/// How many sets of `bytes` bytes take turns, so that none is in a cache when its turn comes.
pub fn sets(bytes: usize) -> usize {
    (ROTATION / bytes.max(1) + 1).min(MAX_SETS)
}

/// The CPU and, if there is one, the first GPU, with the types each is timed in.
pub fn devices() -> Vec<(Device, Vec<DType>)> {
    let mut devices = vec![(Device::Cpu, vec![DType::F32])];
    if let Ok(gpu) = Device::cuda(0) {
        devices.push((gpu, vec![DType::F32, DType::BF16]));
    }
    devices
}

/// Standard normal values: zeros need less power, and a GPU clocks higher on them.
pub fn random(shape: &[usize], dtype: DType, device: &Device) -> Tensor {
    let values: Vec<f32> = normal(&mut stream(1, 0), shape.iter().product()).into_iter().map(|x| x as f32).collect();
    Tensor::from_slice(&values, shape, &Device::Cpu).unwrap().cast(dtype).unwrap().to_device(device).unwrap()
}

/// One benchmark `what/device/dtype/id` of a group.
pub fn run(
    c: &mut Criterion,
    group: &str,
    [what, id]: [&str; 2],
    dtype: DType,
    device: &Device,
    throughput: Option<Throughput>,
    f: impl FnMut(&mut Bencher<'_>),
) {
    let mut group: BenchmarkGroup<'_, WallTime> = c.benchmark_group(group);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    if let Some(throughput) = throughput {
        group.throughput(throughput);
    }
    group.bench_function(BenchmarkId::new(what, format!("{device}/{dtype}/{id}")), f);
    group.finish();
}

/// Times `f` of the turn: by the clock on the CPU, by the device's events on a GPU.
pub fn time(b: &mut Bencher<'_>, device: &Device, mut f: impl FnMut(usize)) {
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
