//! The memory transactions of the kernels of feature maps and masks.

use ocellus::ops::{self, Case, mask_loss::Weights, resample::Filter, unfold::Window};

use super::ops::{Counts, compare};

fn cases() -> Vec<Case> {
    let maps = [2, 8, 8, 32];
    let of_masks = Weights { focal_gamma: 1.5, ..Weights::default() };
    vec![
        ops::add::leading_case(6, &[4, 96], true),
        ops::argmax::case(8, 96),
        ops::concat::case(4, &[2, 3], 96),
        ops::concat::slice_case(4, 5, 96, 1..3),
        ops::depthwise_conv2d::case(maps, 7),
        ops::mask_loss::case(2, 3, 4096, Weights::default()),
        ops::mask_loss::case(2, 1, 4096, of_masks),
        ops::max_pool2d::case(maps),
        ops::relu::case(8, 96),
        ops::repeat::case(&[4, 96], 3, true),
        ops::resample::case(Filter::Bilinear, 2, [8, 8], [32, 32], 1),
        ops::resample::case(Filter::Nearest, 2, [8, 8], [16, 16], 32),
        ops::select_rows::case(4, 96),
        ops::select_rows::one_case(4, 96),
        ops::select_rows::row_case(4, 96),
        ops::sigmoid::case(8, 96, 20.0, -10.0),
        ops::unfold::case(maps, Window { kernel: 3, stride: 2, padding: 1 }),
        ops::unfold::fold_case([2, 8, 8, 16], Window { kernel: 2, stride: 2, padding: 0 }),
        ops::window_partition::case(maps, 3),
        ops::window_partition::unpartition_case(maps, 4),
    ]
}

#[test]
fn kernels_of_maps_move_no_more_than_pinned() {
    compare(&cases(), PINNED);
}

/// Kernel, [sectors, ideal], [wavefronts, ideal].
pub(super) const PINNED: &[(&str, Counts)] = &[
    ("add_bwd_sum_bf16", [[168, 120], [96, 96]]), // partial sums of few rows
    ("add_fwd_repeating_bf16", [[432, 432], [0, 0]]),
    ("argmax_bf16", [[64, 64], [0, 0]]),
    ("cast_from_f32_bf16", [[2, 2], [0, 0]]),
    ("concat_copy_bf16", [[192, 192], [0, 0]]),
    ("depthwise_conv2d_bwd_bf16", [[11856, 8656], [0, 0]]), // borders of tiles
    ("depthwise_conv2d_bwd_reduce_f32", [[4772, 3400], [200, 200]]), // parts of a channel lie apart
    ("depthwise_conv2d_fwd_bf16", [[10784, 10784], [0, 0]]),
    ("depthwise_conv2d_taps_bf16", [[3332, 392], [0, 0]]), // upstream keeps the taps of a channel together
    ("mask_loss_bwd_bf16", [[944, 944], [0, 0]]),
    ("mask_loss_bwd_scores_bf16", [[17, 17], [0, 0]]),
    ("mask_loss_fwd_bf16", [[25, 25], [256, 256]]),
    ("mask_loss_fwd_part_bf16", [[771, 770], [128, 112]]),
    ("max_pool2d_bwd_bf16", [[352, 352], [0, 0]]),
    ("max_pool2d_fwd_bf16", [[352, 352], [0, 0]]),
    ("relu_bwd_bf16", [[144, 144], [0, 0]]),
    ("relu_fwd_bf16", [[96, 96], [0, 0]]),
    ("repeat_fwd_bf16", [[144, 144], [0, 0]]),
    ("resample_bf16", [[3488, 3296], [2048, 1024]]),
    ("select_rows_bf16", [[98, 98], [0, 0]]),
    ("select_rows_bwd_one_bf16", [[48, 48], [64, 64]]),
    ("select_rows_bwd_reduce_f32", [[24, 24], [6, 6]]),
    ("select_rows_bwd_row_bf16", [[34, 22], [128, 128]]), // partial sums of few rows
    ("sigmoid_bwd_bf16", [[144, 144], [0, 0]]),
    ("sigmoid_fwd_bf16", [[96, 96], [0, 0]]),
    ("unfold_bwd_bf16", [[384, 256], [0, 0]]), // entries of a channel lie apart
    ("unfold_fwd_bf16", [[384, 256], [0, 0]]), // channels of a pixel go to places apart
    ("window_partition_bwd_bf16", [[512, 512], [0, 0]]),
    ("window_partition_fwd_bf16", [[512, 512], [0, 0]]),
];
