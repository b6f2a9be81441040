//! What is computed, kept and held, and what is not.

use super::{everywhere, inputs};
use crate::ops::sigmoid_pair_loss::{Block, forward, peak_bytes, sigmoid_pair_loss};
use crate::testing::devices;
use crate::{DType, Device, Grads, Tape, Tensor, Var};

#[test]
fn without_gradients_only_the_loss_is_computed() {
    for device in everywhere() {
        let [x, y, log_scale, bias] = inputs(33, 20, 12, DType::BF16, &device);
        let block = Block { row0: 0, col0: 4, divisor: 33 };
        let ((loss, logits), held) = device.peak_bytes(|| forward(&x, &y, &log_scale, &bias, block).unwrap()).unwrap();
        let panel = if device == Device::Cpu { 4 * 33 * 20 + 4 * 12 * 53 } else { 48 };
        if device.is_host() {
            assert_eq!(held, 16 + panel, "{device}");
        }
        let tape = Tape::new();
        let [x, y, log_scale, bias] = [x, y, log_scale, bias].map(|t| tape.leaf(t));
        let (again, statistics) = sigmoid_pair_loss(&tape, &x, &y, &log_scale, &bias, block).unwrap();
        assert_eq!(loss.to_vec::<f32>().unwrap(), again.value().to_vec::<f32>().unwrap());
        assert_eq!(logits.to_vec::<f32>().unwrap(), statistics.to_vec::<f32>().unwrap());
    }
}

#[test]
fn only_wanted_gradients_are_made_and_saved() {
    for device in everywhere() {
        let all = inputs(10, 7, 6, DType::BF16, &device);
        let full = {
            let tape = Tape::new();
            let vars = all.clone().map(|t| tape.leaf(t));
            let (loss, _) = sigmoid_pair_loss(&tape, &vars[0], &vars[1], &vars[2], &vars[3], Block::whole(10)).unwrap();
            assert_eq!(*tape.saved().last().unwrap(), ("sigmoid_pair_loss", 4 * 6 * 17 + 12));
            let mut grads = Grads::new();
            tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
            vars.map(|v| grads.take(&v).unwrap().to_f64().unwrap())
        };
        for bits in 0..16usize {
            let wanted = |i: usize| bits & 1 << i != 0;
            let tape = Tape::new();
            let vars: Vec<Var> = (0..4)
                .map(|i| if wanted(i) { tape.leaf(all[i].clone()) } else { Var::constant(all[i].clone()) })
                .collect();
            let (loss, _) = sigmoid_pair_loss(&tape, &vars[0], &vars[1], &vars[2], &vars[3], Block::whole(10)).unwrap();
            assert_eq!(loss.slot().is_some(), bits != 0);
            if bits == 0 {
                continue;
            }
            let rows = if wanted(0) { 10 } else { 0 } + if wanted(1) { 7 } else { 0 };
            assert_eq!(tape.saved().last().unwrap().1, 4 * 6 * rows + 12);
            let mut grads = Grads::new();
            tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
            for (i, var) in vars.iter().enumerate() {
                let got = grads.take(var).map(|g| g.to_f64().unwrap());
                assert_eq!(got, wanted(i).then(|| full[i].clone()), "input {i} of {bits:b} on {device}");
            }
        }
    }
}

#[test]
fn the_memory_is_what_the_formula_says() {
    let measure = |n: usize, m: usize, d: usize, dtype: DType, device: &Device| {
        let all = inputs(n, m, d, dtype, device);
        let seed = Tensor::full([1], 1.0, &Device::Cpu).unwrap().cast(dtype.accumulate()).unwrap();
        let seed = seed.to_device(device).unwrap().deep_clone().unwrap();
        let step = || {
            let tape = Tape::new();
            let vars = all.map(|t| tape.leaf(t));
            let (loss, logits) =
                sigmoid_pair_loss(&tape, &vars[0], &vars[1], &vars[2], &vars[3], Block::whole(n)).unwrap();
            let mut grads = Grads::new();
            tape.backward(&loss, seed, &mut grads).unwrap();
            (loss, logits, grads)
        };
        let (_, held) = device.peak_bytes(step).unwrap();
        assert_eq!(held, peak_bytes(n, m, d, dtype, device), "{n} {m} {d} {dtype} on {device}");
        held
    };
    let square = measure(2048, 2048, 64, DType::F32, &Device::Cpu);
    assert_eq!(square, 4 * (64 * 4096 + 7) + (4 << 20));
    for (n, m, d, dtype) in [
        (2048, 2048, 64, DType::BF16),
        (1100, 300, 16, DType::F32),
        (20, 1500, 200, DType::F16),
        (1500, 20, 300, DType::BF16),
        (7, 5, 3, DType::F64),
    ] {
        measure(n, m, d, dtype, &Device::Cpu);
    }
    for device in devices().into_iter().filter(Device::is_host) {
        for (n, m, d, dtype) in
            [(130, 20, 24, DType::F32), (20, 130, 24, DType::BF16), (300, 2, 80, DType::F16), (2, 150, 80, DType::BF16)]
        {
            measure(n, m, d, dtype, &device);
        }
    }
}
