//! Every operation at the recipes' real shapes ([`ocellus::ops::cases`]): one criterion group per operation.
//!
//! Ids are `<what>/<device>/<dtype>/<shape>`, with up to four of each:
//! - `forward`, recorded on a tape; throughput in bytes a perfect forward moves, or, for operations bound by
//!   arithmetic, in floating-point operations, which criterion calls elements;
//! - `step`, the same and the backward sweep from the last differentiable output; no throughput is given;
//! - `composed`, the forward made of simpler operations of this crate, where they can be put together to the same;
//! - `copy`, a copy that moves as many bytes as the forward: what the memory allows.
//!
//! Devices are the CPU and, if there is one, the first GPU, which is timed by its own events. Inputs are random, and
//! several sets take turns, so that none is in a cache when its turn comes. The shapes are those of GPUs; a CPU takes
//! up to seconds for one, so it makes few samples: filter, as in `cargo bench --bench ops -- 'gelu/forward/cpu'`.

mod support;

use std::cell::{OnceCell, RefCell};
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ocellus::bench::{Inputs, random, sets};
use ocellus::ops::{Case, Role, Run, cases};
use ocellus::testing::operands;
use ocellus::{DType, Device, Tape, Tensor};
use support::{devices, run, time};

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
    let inputs = OnceCell::new(); // made when the first of these passes the filter
    let inputs = || inputs.get_or_init(|| RefCell::new(Inputs::new(case, dtype, device).unwrap())).borrow_mut();
    if let Some(in_place) = &case.in_place {
        run(c, case.op, ["forward", &case.id], dtype, device, Some(traffic.clone()), |b| {
            let mut f = in_place(operands(case, dtype, dtype, device).unwrap()).unwrap();
            time(b, device, |_| f().unwrap());
        });
    }
    let mut forward = |what, f: &Run| {
        run(c, case.op, [what, &case.id], dtype, device, Some(traffic.clone()), |b| {
            let mut inputs = inputs();
            time(b, device, |_| {
                let tape = Tape::new();
                black_box(f(&tape, &inputs.next(&tape)).unwrap());
            });
        });
    };
    if case.in_place.is_none() {
        forward("forward", &case.run);
    }
    if let Some(composed) = &case.composed {
        forward("composed", composed);
    }
    if case.inputs.iter().any(|input| input.role != Role::Constant) {
        run(c, case.op, ["step", &case.id], dtype, device, None, |b| {
            let mut inputs = inputs();
            time(b, device, |_| inputs.step(case).unwrap());
        });
    }
    if bytes > 0 {
        run(c, case.op, ["copy", &case.id], dtype, device, Some(Throughput::Bytes(bytes)), |b| {
            let from = random(&[bytes.div_ceil(8) as usize], DType::F32, device).unwrap(); // read and written
            let mut pairs: Vec<[Tensor; 2]> =
                (0..sets(2 * from.bytes())).map(|_| [(); 2].map(|()| from.deep_clone().unwrap())).collect();
            time(b, device, |i| {
                let turn = i % pairs.len();
                let [from, to] = &mut pairs[turn];
                to.copy_from(black_box(from)).unwrap();
            });
        });
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
