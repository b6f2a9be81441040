//! What the criterion benches share: devices and sampling.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use ocellus::{DType, Device};

/// The CPU and, if there is one, the first GPU, with the types each is timed in.
pub fn devices() -> Vec<(Device, Vec<DType>)> {
    let mut devices = vec![(Device::Cpu, vec![DType::F32])];
    if let Ok(gpu) = Device::cuda(0) {
        devices.push((gpu, vec![DType::F32, DType::BF16]));
    }
    devices
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
        let next = || {
            f(turn);
            turn += 1;
            Ok(())
        };
        ocellus::bench::time(device, iterations, next).unwrap()
    });
}
