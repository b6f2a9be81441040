//! The checks themselves: what each of them must refuse.

use super::*;
use crate::dtype::num_like::Ops;
use crate::ops::Input;

/// `y = x · w`, with `dw` given or not.
fn product(gives_dw: bool) -> Case {
    Case::new("product", "3", vec![Input::normal("x", [3]), Input::param("w", [3])], move |tape, v| {
        let multiply = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            let values: Vec<f64> = a.to_f64()?.iter().zip(b.to_f64()?).map(|(a, b)| a * b).collect();
            Tensor::from_slice(&values, a.shape().clone(), &Device::Cpu)?.cast(a.dtype())
        };
        let y = multiply(v[0].value(), v[1].value())?;
        let saved = [v[0].value().clone(), v[1].value().clone()];
        let (to_x, to_w) = (v[0].slot(), v[1].slot());
        Ok(vec![tape.record("product", y, &[&v[0], &v[1]], saved, move |dy, [x, w], grads| {
            if gives_dw {
                grads.add(to_w, multiply(&dy, &x)?)?;
            }
            grads.add(to_x, multiply(&dy, &w)?)
        })])
    })
}

fn on_the_cpu(case: &Case, dtype: DType) -> Result<Outcome> {
    run(case, dtype, dtype, &Device::Cpu)
}

#[test]
fn a_gradient_that_is_not_given_fails() {
    check_gradients(&product(true)).unwrap();
    let error = check_gradients(&product(false)).unwrap_err();
    assert!(error.contains("w from output 0"), "{error}");
    check_gradients(&product(false).independent(0, "w")).unwrap();
    let error = check_gradients(&product(true).independent(0, "w")).unwrap_err();
    assert!(error.contains("`w` has gradient one, expected none from output 0"), "{error}");
}

#[test]
fn an_operation_that_returns_a_constant_fails() {
    let cut =
        Case::new("cut", "3", vec![Input::normal("x", [3])], |_, v| Ok(vec![Var::constant(v[0].value().clone())]));
    assert!(check_gradients(&cut).is_err());
    check_gradients(&cut.constants(|_| true)).unwrap();
}

#[test]
fn weights_get_f32_gradients_and_values_get_their_own_type() {
    let outcome = on_the_cpu(&product(true), DType::BF16).unwrap();
    let types: Vec<DType> = outcome.tensors.iter().map(|(dtype, _)| *dtype).collect();
    assert_eq!(outcome.names, ["output 0", "d output 0 / d x", "d output 0 / d w"]);
    assert_eq!(types, [DType::BF16, DType::BF16, DType::F32]);
}

/// A sum of `n` values in the arithmetic of `T`, whatever the storage dtype.
fn sum_in<T: crate::dtype::Float>(n: usize) -> Case {
    Case::new("sum", format!("{n}"), vec![Input::constant("x", [n], Fill::Normal(0.0, 1.0))], |_, v| {
        let x = v[0].value();
        let mut sum = 0.0;
        for value in x.to_f64()? {
            sum += value;
            if x.dtype() != DType::F64 {
                sum = T::put(T::Acc::of(sum)).get().f64(); // the oracle stays exact
            }
        }
        Ok(vec![Var::constant(Tensor::from_slice(&[sum], [1], &Device::Cpu)?.cast(x.dtype())?)])
    })
    .terms(n)
}

/// The bound of the reference lets f32 loops pass and 16-bit sums fail, at any length.
#[test]
fn a_reference_that_sums_in_16_bits_fails() {
    for n in [64, 1000, 20_000] {
        let reference = |case: &Case| {
            let oracle = run(case, DType::F32, DType::F64, &Device::Cpu).unwrap();
            let loops = on_the_cpu(case, DType::F32).unwrap();
            let by = moved(case, DType::F32, DType::F32, &oracle).unwrap()[0];
            tolerance::reference(case, DType::F32, &loops.tensors[0].1, &oracle.tensors[0].1, by, 0.0)
        };
        reference(&sum_in::<f32>(n)).unwrap();
        assert!(reference(&sum_in::<half::bf16>(n)).is_err(), "{n} terms in bf16");
    }
}
