use proptest::prelude::*;

use super::{Outcome, Weights, backward_masks, best_masks, case, forward, launch, mask_loss};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

const UPSTREAM: Weights = Weights {
    mask: 20.0,
    dice: 1.0,
    iou: 1.0,
    class: 1.0,
    focal_alpha: 0.25,
    focal_gamma: 2.0,
    iou_l1: true,
    supervise_all_iou: true,
    obj_focal_alpha: -1.0,
    obj_focal_gamma: 0.0,
};
/// Every choice the other way, and exponents without a short cut.
const OTHER: Weights = Weights {
    mask: 3.0,
    dice: 2.0,
    iou: 0.5,
    class: 0.25,
    focal_alpha: -1.0,
    focal_gamma: 1.5,
    iou_l1: false,
    supervise_all_iou: false,
    obj_focal_alpha: 0.4,
    obj_focal_gamma: 0.5,
};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (objects, masks, pixels) in [(0, 3, 8), (1, 1, 1), (2, 3, 31), (4, 4, 120), (3, 2, 8200), (35, 1, 16)] {
        for weights in [UPSTREAM, OTHER, Weights { focal_gamma: 0.0, obj_focal_gamma: 2.0, ..UPSTREAM }] {
            check(&case(objects, masks, pixels, weights)).unwrap();
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(4, 3, 20, UPSTREAM)).unwrap();
    check_gradients(&case(4, 3, 20, OTHER)).unwrap();
    check_gradients(&case(2, 1, 9, Weights { focal_gamma: 0.0, supervise_all_iou: false, ..UPSTREAM })).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(objects in 1usize..6, masks in 1usize..5, pixels in 1usize..300, other in any::<bool>()) {
        check(&case(objects, masks, pixels, if other { OTHER } else { UPSTREAM })).unwrap();
    }
}

/// Every device, the plain one too.
fn everywhere() -> impl Iterator<Item = Device> {
    std::iter::once(Device::Cpu).chain(devices())
}

fn tensor(values: &[f32], shape: &[usize], device: &Device) -> Tensor {
    Tensor::from_slice(values, shape, device).unwrap()
}

fn bytes(values: &[u8], shape: &[usize], device: &Device) -> Tensor {
    Tensor::from_slice(values, shape, device).unwrap()
}

/// Two pixels, one of them of the object; worked out by hand.
#[test]
fn known_values() {
    assert_eq!(Weights::default(), UPSTREAM);
    for device in everywhere() {
        // p = 3/4 of the object's pixel, 1/5 of the other; the second mask is the first turned round.
        let (x, y) = (3f32.ln(), -(4f32.ln()));
        let masks = tensor(&[y, x, x, y], &[1, 2, 2], &device);
        let (ious, score) = (tensor(&[0.25, 0.5], &[1, 2], &device), tensor(&[0.0], &[1], &device));
        let outcome = forward(&masks, &ious, &score, &bytes(&[9, 0], &[1, 2], &device), &UPSTREAM, 2.0).unwrap();
        let focal = (0.25 * 0.0625 * (4f64 / 3.0).ln() + 0.75 * 0.04 * 1.25f64.ln()) / 2.0;
        let dice = 1.0 - (2.0 * 0.75 + 1.0) / (0.75 + 0.2 + 1.0 + 1.0);
        // The first mask is inside where the object is not: IoU 0 where 1/4 was predicted; the second 1 where 1/2 was.
        let terms = [focal, dice, (0.25 + 0.5) / 2.0, 2f64.ln()].map(|t| t / 2.0);
        for (given, expected) in outcome.terms.to_f64().unwrap().iter().zip(terms) {
            assert!((given - expected).abs() < 1e-6, "{device}: {:?} instead of {terms:?}", outcome.terms.to_f64());
        }
        let total = 20.0 * terms[0] + terms[1] + terms[2] + terms[3];
        assert!((outcome.total.item().unwrap() - total).abs() < 1e-5);
        assert_eq!(outcome.best.to_vec::<i32>().unwrap(), [1]);
        let one = forward(
            &masks,
            &ious,
            &score,
            &bytes(&[1, 0], &[1, 2], &device),
            &Weights { supervise_all_iou: false, iou_l1: false, ..UPSTREAM },
            1.0,
        );
        assert!((one.unwrap().terms.to_f64().unwrap()[2] - 0.25).abs() < 1e-7);
    }
}

/// Absent objects have the logit -1024 everywhere, and a trained model may be as sure of anything.
#[test]
fn huge_logits_stay_exact() {
    for device in everywhere() {
        let masks = tensor(&[-1024.0, -1024.0, 1e30, -1e30], &[2, 1, 2], &device);
        let (ious, scores) = (tensor(&[0.0, 1.0], &[2, 1], &device), tensor(&[-1024.0, 1e30], &[2], &device));
        let targets = bytes(&[1, 0, 1, 0], &[2, 2], &device);
        let Outcome { total, terms, best, stats } = forward(&masks, &ious, &scores, &targets, &UPSTREAM, 1.0).unwrap();
        // 1024 per pixel of the object that was said to be absent, and nothing for the one that is certain.
        assert_eq!(terms.to_vec::<f32>().unwrap(), [0.25 * 1024.0 / 2.0, 0.5, 0.0, 1024.0], "{device}");
        let one = tensor(&[1.0], &[1], &device);
        let d = backward_masks(&one, &masks, &targets, &best, &stats, &UPSTREAM, 1.0).unwrap().to_vec::<f32>().unwrap();
        assert!(total.item().unwrap().is_finite() && d[1..] == [0.0; 3], "{device}: {d:?}");
        assert_eq!(d[0], -20.0 * 0.25 / 2.0, "the focal loss of what is certain and wrong is linear");
        for weights in [OTHER, Weights { focal_gamma: 0.0, ..UPSTREAM }] {
            assert!(
                forward(&masks, &ious, &scores, &targets, &weights, 1.0).unwrap().total.item().unwrap().is_finite()
            );
        }
    }
}

#[test]
fn absent_objects_have_the_class_term_alone() {
    for device in everywhere() {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let leaf = |values: &[f32], shape: &[usize]| tape.leaf(tensor(values, shape, &device));
        let masks = leaf(&[0.5, -2.0, 1.0, 3.0, 0.1, 0.2], &[1, 3, 2]);
        let (ious, score) = (leaf(&[0.1, 0.2, 0.3], &[1, 3]), leaf(&[0.0], &[1, 1]));
        let targets = bytes(&[0, 0], &[1, 2], &device);
        let (total, terms) = mask_loss(&tape, &masks, &ious, &score, &targets, &UPSTREAM, 1.0).unwrap();
        let terms = terms.to_vec::<f32>().unwrap();
        assert_eq!(terms[..3], [0.0; 3]);
        assert!((terms[3] - std::f32::consts::LN_2).abs() < 1e-6);
        tape.backward_scaled(&total, 3.0, &mut grads).unwrap();
        let mut gradient = |v: &Var| grads.take(v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!((gradient(&masks), gradient(&ious)), (vec![0.0; 6], vec![0.0; 3]));
        assert!((gradient(&score)[0] - 1.5).abs() < 1e-6);
        // The best mask is chosen all the same: nothing inside is best.
        assert_eq!(best_masks(masks.value(), &targets, &UPSTREAM).unwrap().to_vec::<i32>().unwrap(), [0]);
    }
}

#[test]
fn the_first_of_equal_masks_is_the_best_and_alone_gets_a_gradient() {
    for device in everywhere() {
        let row: Vec<f32> = (0..300).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
        let worse: Vec<f32> = row.iter().map(|x| -x).collect();
        let masks = tensor(&[&worse[..], &row, &row].concat(), &[1, 3, 300], &device);
        let inside: Vec<u8> = row.iter().map(|&x| u8::from(x > 0.5)).collect();
        let targets = bytes(&inside, &[1, 300], &device);
        assert_eq!(best_masks(&masks, &targets, &UPSTREAM).unwrap().to_vec::<i32>().unwrap(), [1], "{device}");
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device).unwrap();
        let outcome = forward(&masks, &zeros(&[1, 3]), &zeros(&[1]), &targets, &UPSTREAM, 1.0).unwrap();
        let one = tensor(&[1.0], &[1], &device);
        let d = backward_masks(&one, &masks, &targets, &outcome.best, &outcome.stats, &UPSTREAM, 1.0).unwrap();
        let d = d.to_vec::<f32>().unwrap();
        assert!(d[..300].iter().chain(&d[600..]).all(|&d| d == 0.0) && d[300..600].iter().all(|&d| d != 0.0));
    }
}

#[test]
fn grids_cover_every_pixel() {
    for (objects, pixels) in [(0, 1), (1, 1), (1, 4096), (3, 4097), (64, 1 << 20), (192, 1 << 20), (5000, 77)] {
        let (chunk, parts) = launch::chunks(objects, pixels);
        assert!(chunk.is_multiple_of(4096) && chunk * parts >= pixels && (parts - 1) * chunk < pixels);
        assert!(objects * parts <= 1056 + objects, "few blocks");
        let grid = launch::grid(parts as u32, objects as u32);
        assert!(grid.block == [256, 1, 1] && grid.grid[0] as usize == parts && grid.grid[1] as usize == objects);
    }
    assert_eq!(launch::grid(1, 100_000).grid[1], 65535);
    assert_eq!(launch::scores_grid(9).grid[0], 2);
}

#[test]
fn wrong_arguments_are_named() {
    let float = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let masks = float(&[2, 3, 4]);
    let message = |masks: &Var, ious: &[usize], scores: &[usize], targets: &Tensor, weights: Weights, objects| {
        let (ious, scores) = (float(ious), float(scores));
        let error = mask_loss(&Tape::no_grad(), masks, &ious, &scores, targets, &weights, objects).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    let targets = Tensor::zeros([2, 4], DType::U8, &Device::Cpu).unwrap();
    let shaped = |ious: &[usize], scores: &[usize]| message(&masks, ious, scores, &targets, UPSTREAM, 1.0);
    assert_eq!(shaped(&[2, 2], &[2]), "mask_loss: `ious` has shape [2, 2], expected [2, 3]");
    assert_eq!(shaped(&[2, 3], &[3]), "mask_loss: `object_scores` has shape [3], expected [2]");
    let weighed = |weights, objects| message(&masks, &[2, 3], &[2, 1], &targets, weights, objects);
    assert_eq!(weighed(UPSTREAM, 0.0), "mask_loss: `objects` has value 0, expected a positive number");
    let wrong = Weights { focal_gamma: -1.0, ..UPSTREAM };
    assert_eq!(weighed(wrong, 1.0), "mask_loss: `focal_gamma` has value -1, expected at least 0");
    let wrong = Weights { obj_focal_alpha: 1.5, ..UPSTREAM };
    assert_eq!(weighed(wrong, 1.0), "mask_loss: `obj_focal_alpha` has value 1.5, expected at most 1");
    let wrong = Weights { iou: f32::NAN, ..UPSTREAM };
    assert_eq!(weighed(wrong, 1.0), "mask_loss: `iou` has value NaN, expected a finite factor");
    let targeted = |targets: &Tensor| message(&masks, &[2, 3], &[2], targets, UPSTREAM, 1.0);
    assert_eq!(targeted(float(&[2, 4]).value()), "mask_loss: `targets` has dtype f32, expected u8");
    let long = Tensor::zeros([2, 5], DType::U8, &Device::Cpu).unwrap();
    assert_eq!(targeted(&long), "mask_loss: `targets` has shape [2, 5], expected [2, 4]");
    let none = message(&float(&[2, 0, 4]), &[2, 0], &[2], &targets, UPSTREAM, 1.0);
    let expected = "mask_loss: `masks` has shape [2, 0, 4], expected at least one mask of an object and one pixel";
    assert_eq!(none, expected);
}
