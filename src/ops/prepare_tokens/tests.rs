use proptest::prelude::*;

use super::{Part, case, launch, prepare_tokens};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    check(&case(&[[1, 1]], 0, 1)).unwrap();
    check(&case(&[[3, 5], [7, 2]], 2, 31)).unwrap();
    check(&case(&[[2, 7], [1, 3], [5, 1]], 1, 8)).unwrap();
    check(&case(&[[37, 3]], 4, 24)).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(&[[2, 3], [3, 2]], 2, 4)).unwrap();
    check_gradients(&case(&[[3, 2]], 0, 3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(images in 1usize..40, len in 1usize..12, more in 0usize..20, registers in 0usize..5, cols in 1usize..70) {
        check(&case(&[[images, len], [more, 3]], registers, cols)).unwrap();
    }
}

#[test]
fn grids_cover_everything() {
    for n in [0u32, 1, 7, 8, 9, 12801] {
        let grid = launch::rows_grid(n);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= n);
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape.to_vec(), &Device::Cpu).unwrap()
}

/// One image of two patches, the second hidden, one register; width 1.
#[test]
fn numbers_by_hand() {
    let tape = Tape::new();
    let [patches, pos] = [tensor(&[1., 2.], &[2, 1]), tensor(&[10., 20., 30.], &[1, 3, 1])].map(|t| tape.leaf(t));
    let [cls, mask, extra] =
        [tensor(&[100.], &[1, 1, 1]), tensor(&[200.], &[1, 1]), tensor(&[300.], &[1, 1, 1])].map(|t| tape.leaf(t));
    let masks = Tensor::from_slice(&[0, 1], [1, 2], &Device::Cpu).unwrap();
    let parts = [Part { patches: &patches, pos_embed: &pos, masks: Some(&masks) }];
    let y = prepare_tokens(&tape, &parts, &cls, &mask, Some(&extra)).unwrap();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), [110., 300., 21., 230.]);
    let mut grads = Grads::new();
    tape.backward(&y, tensor(&[1., 2., 3., 4.], &[4, 1]), &mut grads).unwrap();
    let mut got = |v: &Var| grads.take(v).unwrap().to_vec::<f32>().unwrap();
    assert_eq!((got(&patches), got(&pos)), (vec![3., 0.], vec![1., 3., 4.]));
    assert_eq!((got(&cls), got(&mask), got(&extra)), (vec![1.], vec![4.], vec![2.]));
}

/// What lies under a mask reaches nothing, not even as NaN.
#[test]
fn hidden_patches_are_not_read() {
    let constant = |values: &[f32], shape: &[usize]| Var::constant(tensor(values, shape));
    let (patches, pos) = (constant(&[f32::NAN], &[1, 1]), constant(&[1., 2.], &[1, 2, 1]));
    let masks = Tensor::from_slice(&[7], [1, 1], &Device::Cpu).unwrap();
    let parts = [Part { patches: &patches, pos_embed: &pos, masks: Some(&masks) }];
    let (cls, mask) = (constant(&[3.], &[1, 1, 1]), constant(&[4.], &[1, 1]));
    let y = prepare_tokens(&Tape::no_grad(), &parts, &cls, &mask, None).unwrap();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), [4., 6.]);
}

#[test]
fn wrong_arguments_are_named() {
    let zeros = |shape: &[usize], dtype| Var::constant(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
    let f32s = |shape: &[usize]| zeros(shape, DType::F32);
    let run = |patches: &Var, pos: &Var, masks: &Var, cls: &Var| {
        let parts = [Part { patches, pos_embed: pos, masks: Some(masks.value()) }];
        let mask = f32s(&[1, 3]);
        prepare_tokens(&Tape::no_grad(), &parts, cls, &mask, None).unwrap_err().to_string()
    };
    let (patches, pos, cls) = (f32s(&[4, 3]), f32s(&[1, 3, 3]), f32s(&[1, 1, 3]));
    let masks = zeros(&[2, 2], DType::I32);
    let op = "prepare_tokens";
    let error = run(&f32s(&[5, 3]), &pos, &masks, &cls);
    assert_eq!(error, format!("{op}: `patches` has shape [5, 3], expected [N x 2, 3], the patches of whole images"));
    assert_eq!(
        run(&patches, &f32s(&[1, 3, 4]), &masks, &cls),
        format!("{op}: `pos_embed` has shape [1, 3, 4], expected [1, 3, 3]")
    );
    assert_eq!(
        run(&patches, &pos, &zeros(&[1, 2], DType::I32), &cls),
        format!("{op}: `masks` has shape [1, 2], expected [2, 2]")
    );
    assert_eq!(run(&patches, &pos, &f32s(&[2, 2]), &cls), format!("{op}: `masks` has dtype f32, expected i32"));
    assert_eq!(
        run(&patches, &pos, &masks, &f32s(&[3])),
        format!("{op}: `cls_token` has shape [3], expected [1, 1, 3]")
    );
    let error = prepare_tokens(&Tape::no_grad(), &[], &cls, &f32s(&[1, 3]), None).unwrap_err().to_string();
    assert_eq!(error, format!("{op}: `parts` has length 0, expected at least one"));
}
