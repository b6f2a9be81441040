use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::Device;

fn scalar(x: f64) -> Tensor {
    Tensor::from_slice(&[x], [1], &Device::Cpu).unwrap()
}

/// y = a · b, recorded by hand.
fn mul(tape: &Tape, a: &Var, b: &Var) -> Var {
    let product = |x: &Tensor, y: &Tensor| scalar(x.item().unwrap() * y.item().unwrap());
    let value = product(a.value(), b.value());
    let (to_a, to_b) = (a.slot(), b.slot());
    let saved = [a.value().clone(), b.value().clone()];
    tape.record("mul", value, &[a, b], saved, move |dy, [a, b], grads| {
        grads.add(to_a, product(&dy, &b))?;
        grads.add(to_b, product(&dy, &a))
    })
}

fn param(name: &str, x: f64) -> Param {
    Param::new(name, scalar(x), DType::F64).unwrap()
}

#[test]
fn products_and_repeated_use_add_up() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(scalar(3.0));
    let y = mul(&tape, &mul(&tape, &x, &x), &x); // x³
    tape.backward(&y, scalar(1.0), &mut grads).unwrap();
    assert_eq!(grads.take(&x).unwrap().item().unwrap(), 27.0);
}

#[test]
fn gradients_accumulate_over_sweeps_until_cleared() {
    let (w, mut grads) = (param("w", 2.0), Grads::new());
    for expected in [5.0, 10.0] {
        let tape = Tape::new();
        let y = mul(&tape, &tape.param(&w), &Var::constant(scalar(5.0)));
        tape.backward(&y, scalar(1.0), &mut grads).unwrap();
        assert_eq!(grads.get(&w).unwrap().item().unwrap(), expected);
    }
    grads.clear();
    assert!(grads.get(&w).is_none());
}

#[test]
fn write_adds_where_a_gradient_is_already() {
    let (w, mut grads) = (param("w", 2.0), Grads::new());
    let slot = Tape::new().param(&w).slot();
    for (mode, total) in [(Mode::Set, 1.0), (Mode::Add, 2.0)] {
        let put = |out: &mut Tensor, m: Mode| {
            assert_eq!(m, mode);
            out.as_mut_slice::<f64>()?[0] = total;
            Ok(())
        };
        grads.write(slot, w.master.shape(), &Device::Cpu, put).unwrap();
    }
    assert_eq!(grads.get(&w).unwrap().item().unwrap(), 2.0);
}

/// What reads gradients by address uploads its table once.
#[test]
fn cleared_gradients_come_back_to_their_addresses() {
    let (w, v, mut grads) = (param("w", 2.0), param("v", 2.0), Grads::new());
    let tape = Tape::new();
    let [to_w, to_v] = [&w, &v].map(|p| tape.param(p).slot());
    let mut step = |x: f64| {
        grads.add(to_w, scalar(x)).unwrap();
        let put = |out: &mut Tensor, _| out.copy_from(&scalar(x));
        grads.write(to_v, v.master.shape(), &Device::Cpu, put).unwrap();
        let now = [&w, &v].map(|p| grads.get(p).unwrap().clone());
        grads.clear();
        now
    };
    let address = |t: &Tensor| t.ptr();
    let first = step(1.0).each_ref().map(address);
    let second = step(2.0);
    assert_eq!(second.each_ref().map(address), first);
    let third = step(3.0); // while someone still looks at the second: left alone
    assert!(second.iter().all(|t| t.item().unwrap() == 2.0));
    assert!(third.iter().all(|t| t.item().unwrap() == 3.0));
}

#[test]
fn seeds_of_f64_losses_are_not_rounded() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(scalar(1.0));
    let y = mul(&tape, &x, &Var::constant(scalar(1.0)));
    tape.backward_scaled(&y, 1.0 / 3.0, &mut grads).unwrap();
    assert_eq!(grads.take(&x).unwrap().item().unwrap(), 1.0 / 3.0);
}

#[test]
fn recompute_gives_the_same_gradients_and_saves_inputs_only() {
    let w = param("w", 3.0);
    let run = |recompute: bool| {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = tape.leaf(scalar(2.0));
        let (inner, weight) = (mul, w.clone());
        let f = move |tape: &Tape, v: &[Var]| {
            let w = tape.param(&weight);
            Ok(inner(tape, &inner(tape, &v[0], &w), &w)) // x w²
        };
        let y = if recompute { tape.recompute(&[&x], f) } else { f(&tape, std::slice::from_ref(&x)) }.unwrap();
        let saved: usize = tape.saved().iter().map(|s| s.1).sum();
        tape.backward(&y, scalar(1.0), &mut grads).unwrap();
        (grads.take(&x).unwrap().item().unwrap(), grads.get(&w).unwrap().item().unwrap(), saved)
    };
    assert_eq!(run(false), (9.0, 12.0, 32));
    assert_eq!(run(true), (9.0, 12.0, 8));
}

#[test]
fn recompute_of_several_values_gives_the_same_gradients() {
    let w = param("w", 3.0);
    let run = |recompute: bool, uses: [bool; 3]| {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = tape.leaf(scalar(2.0));
        let weight = w.clone();
        let f = move |tape: &Tape, v: &[Var]| {
            let xw = mul(tape, &v[0], &tape.param(&weight));
            let xxw = mul(tape, &v[0], &xw);
            Ok([xw, xxw, Var::constant(scalar(7.0))])
        };
        let all =
            if recompute { tape.recompute_several(&[&x], f) } else { f(&tape, std::slice::from_ref(&x)) }.unwrap();
        let used = all.iter().zip(uses).filter(|(_, used)| *used).map(|(y, _)| y);
        let y = used.fold(x.clone(), |product, y| mul(&tape, &product, y));
        tape.backward(&y, scalar(1.0), &mut grads).unwrap();
        let of_w = grads.get(&w).map(|g| g.item().unwrap());
        (y.value().item().unwrap(), grads.take(&x).unwrap().item().unwrap(), of_w)
    };
    for uses in [[true, false, false], [false, true, true], [true, true, true], [false, false, true]] {
        assert_eq!(run(true, uses), run(false, uses), "{uses:?}");
    }
}

#[test]
fn nothing_is_recorded_without_a_tape_or_for_constants() {
    let w = param("w", 1.0);
    let none = Tape::no_grad();
    assert!(mul(&none, &none.param(&w), &none.leaf(scalar(1.0))).slot().is_none());
    let tape = Tape::new();
    let y = mul(&tape, &Var::constant(scalar(1.0)), &Var::constant(scalar(2.0)));
    assert!(tape.saved().is_empty());
    assert!(matches!(tape.backward(&y, scalar(1.0), &mut Grads::new()), Err(Error::NothingToDifferentiate)));
}

#[test]
fn a_variable_of_another_tape_is_an_error() {
    let (one, two) = (Tape::new(), Tape::new());
    let x = one.leaf(scalar(1.0));
    let y = mul(&two, &x, &two.leaf(scalar(2.0)));
    assert!(matches!(two.backward(&y, scalar(1.0), &mut Grads::new()), Err(Error::ForeignVar { .. })));
}

#[test]
fn missing_gradients_are_named() {
    let (used, unused, mut grads) = (param("used", 1.0), param("blocks.0.unused", 1.0), Grads::new());
    let mut frozen = param("frozen", 1.0);
    frozen.trainable = false;
    let tape = Tape::new();
    let y = mul(&tape, &tape.param(&used), &tape.param(&frozen));
    tape.backward(&y, scalar(1.0), &mut grads).unwrap();
    let error = grads.check_complete([&used, &unused, &frozen]).unwrap_err();
    assert_eq!(error.to_string(), "no gradient reached 1 trainable parameter(s): blocks.0.unused");
}

/// (2x, 3x) as one operation; the backward notes which gradients came.
fn double_and_triple(tape: &Tape, x: &Var, came: &Rc<Cell<[bool; 2]>>) -> (Var, Var) {
    let v = x.value().item().unwrap();
    let (to_x, came) = (x.slot(), came.clone());
    let outputs = [scalar(2.0 * v), scalar(3.0 * v)];
    let both = tape.record_several("pair", outputs, &[x], [], move |dy: [Option<Tensor>; 2], [], grads| {
        came.set(dy.each_ref().map(Option::is_some));
        let [a, b] = dy.map(|d| d.map_or(0.0, |d| d.item().unwrap()));
        grads.add(to_x, scalar(2.0 * a + 3.0 * b))
    });
    both.into()
}

#[test]
fn a_pair_runs_once_with_the_gradients_that_reached_it() {
    for (uses, expected) in [([true, false], 2.0), ([false, true], 3.0), ([true, true], 2.0 * 12.0 + 3.0 * 8.0)] {
        let (tape, mut grads, came) = (Tape::new(), Grads::new(), Rc::new(Cell::new([false; 2])));
        let x = tape.leaf(scalar(4.0));
        let (a, b) = double_and_triple(&tape, &x, &came);
        let y = match uses {
            [true, true] => mul(&tape, &a, &b), // 6x²
            [first, _] => {
                if first {
                    a
                } else {
                    b
                }
            }
        };
        tape.backward(&y, scalar(1.0), &mut grads).unwrap();
        assert_eq!(came.get(), uses);
        assert_eq!(grads.take(&x).unwrap().item().unwrap(), expected);
    }
}

#[test]
fn an_unused_pair_does_not_run() {
    let (tape, mut grads, came) = (Tape::new(), Grads::new(), Rc::new(Cell::new([false; 2])));
    let x = tape.leaf(scalar(4.0));
    double_and_triple(&tape, &x, &came);
    let y = mul(&tape, &x, &x);
    tape.backward(&y, scalar(1.0), &mut grads).unwrap();
    assert_eq!(came.get(), [false; 2]);
    assert_eq!(grads.take(&x).unwrap().item().unwrap(), 8.0);
    let none = Tape::no_grad();
    assert!(double_and_triple(&none, &Var::constant(scalar(1.0)), &came).0.slot().is_none());
}

#[test]
fn a_gradient_through_a_reshaped_variable_has_the_shape_of_the_value() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(scalar(3.0));
    let y = tape.record("probe", scalar(1.0), &[&x], [], {
        let to = x.slot();
        move |dy, _, grads| {
            assert_eq!(**dy.shape(), [1]);
            grads.add(to, dy.reshape([1, 1])?)
        }
    });
    let seed = scalar(2.0).reshape([1, 1, 1]).unwrap();
    tape.backward(&y.reshape([1, 1, 1]).unwrap(), seed, &mut grads).unwrap();
    assert_eq!(**grads.take(&x).unwrap().shape(), [1]);
}
