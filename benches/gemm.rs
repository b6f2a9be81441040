//! Matrix products at the shapes of the recipes' linear layers: one criterion group, `gemm`.
//!
//! Ids are `<what>/<device>/<dtype>/<m>x<n>x<k>`: of a layer from `k` to `n` features on `m` rows, `forward` is
//! `x · wᵀ + b`, `input` its gradient `dy · w`, and `weight` the gradient `dyᵀ · x`, which is added to an f32 buffer.
//! Throughput is in floating-point operations, which criterion calls elements. Inputs are random, and several sets take
//! turns. A square product of 8192 shows what the device can do.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ocellus::bench::{random, sets};
use ocellus::device::gemm::{GemmSpec, Layout, gemm};
use ocellus::{DType, Device, Tensor};
use support::{devices, run, time};

/// Rows, outputs and inputs of layers: ViT-L encoder of MAE at batch size 256 (qkv, proj, fc1, fc2), its decoder,
/// DINOv2 S/14, the patch embedding, and the square product. The CPU runs the first four, of the tiny recipe.
const LAYERS: [[usize; 3]; 13] = [
    [400, 768, 192],
    [400, 192, 768],
    [1576, 512, 128],
    [2056, 1536, 384],
    [12800, 3072, 1024],
    [12800, 1024, 1024],
    [12800, 4096, 1024],
    [12800, 1024, 4096],
    [50432, 2048, 512],
    [50432, 512, 2048],
    [32896, 1536, 384],
    [12544, 1024, 768],
    [8192, 8192, 8192],
];
const ON_THE_CPU: usize = 4;

fn benches(c: &mut Criterion) {
    for (device, dtypes) in devices() {
        let layers = if device == Device::Cpu { &LAYERS[..ON_THE_CPU] } else { &LAYERS[..] };
        for dtype in dtypes {
            layers.iter().for_each(|&layer| bench(c, layer, dtype, &device));
        }
    }
}

fn bench(c: &mut Criterion, [m, n, k]: [usize; 3], dtype: DType, device: &Device) {
    let id = format!("{m}x{n}x{k}");
    let layout = |m, n, k, trans_a, trans_b, output| Layout { m, n, k, trans_a, trans_b, input: dtype, output };
    for (what, layout, beta) in [
        ("forward", layout(m, n, k, false, true, dtype), 0.0),
        ("input", layout(m, k, n, false, false, dtype), 0.0),
        ("weight", layout(n, k, m, true, false, DType::F32), 1.0),
    ] {
        let spec = GemmSpec { layout, alpha: 1.0, beta };
        run(c, "gemm", [what, &id], dtype, device, Some(Throughput::Elements(2 * (m * n * k) as u64)), |b| {
            let mut turns = Turns::new(&layout, what == "forward", device);
            time(b, device, |i| turns.product(&spec, i));
        });
    }
}

/// Operands that take turns.
struct Turns {
    sets: Vec<[Tensor; 3]>,
    bias: Option<Tensor>,
}

impl Turns {
    fn new(layout: &Layout, bias: bool, device: &Device) -> Self {
        let Layout { m, n, k, input, output, .. } = *layout;
        let random = |shape: &[usize], dtype| random(shape, dtype, device).unwrap();
        let first = [random(&[m, k], input), random(&[k, n], input), random(&[m, n], output)];
        let bytes: usize = first.iter().map(Tensor::bytes).sum();
        let copy = |_| first.each_ref().map(|t| t.deep_clone().unwrap());
        let bias = bias.then(|| random(&[n], input));
        Self { sets: (0..sets(bytes)).map(copy).collect(), bias }
    }

    fn product(&mut self, spec: &GemmSpec, turn: usize) {
        let turn = turn % self.sets.len();
        let [a, b, d] = &mut self.sets[turn];
        let bias = self.bias.as_ref().map(Tensor::storage);
        gemm(spec, a.storage(), b.storage(), bias, d.storage_mut("gemm").unwrap()).unwrap();
        black_box(&d);
    }
}

criterion_group!(gemms, benches);
criterion_main!(gemms);
