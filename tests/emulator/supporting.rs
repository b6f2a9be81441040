//! The memory transactions of the kernels around the matrix products of DINOv2, SigLIP and SAM 2, and of the variants of
//! LayerNorm and softmax by the length of the row.

use ocellus::ops::{self, Case, gelu::Form};

use super::ops::{Counts, compare};

fn cases() -> Vec<Case> {
    vec![
        ops::adafactor::case("small", &[[40, 40].into(), [40].into()]),
        ops::adamw::teacher_case("small", &[[40, 40].into(), [40].into()]),
        ops::add_layer_norm::joint_case(8, 97),
        ops::add_layer_norm::joint_case(16, 1024),
        ops::embedding::case(8, 150, 96, true),
        ops::gelu::form_case(8, 96, Form::Tanh),
        ops::koleo::case(2, 5, 96),
        ops::layer_norm::case(8, 97),
        ops::layer_norm::case(16, 1024),
        ops::layer_norm::case(16, 1536),
        ops::lion::case("small", &[[40, 40].into(), [40].into()]),
        ops::layer_scale::subset_case(&[[4, 3, 2]], 96),
        ops::rope::case([1, 1, 0], [2, 2], 3, 1, 64),
        ops::softmax::case(8, 97),
        ops::softmax::case(4, 1000),
        ops::softmax_pair_loss::case(40, 96),
        ops::swiglu::case(8, 96),
        ops::weight_norm::case(8, 96),
    ]
}

#[test]
fn supporting_kernels_move_no_more_than_pinned() {
    compare(&cases(), PINNED);
}

/// Kernel, [sectors, ideal], [wavefronts, ideal].
pub(super) const PINNED: &[(&str, Counts)] = &[
    ("adafactor_apply_bf16", [[3000, 1768], [0, 0]]), // the two factors of an element by single numbers
    ("adamw_bf16", [[2267, 2259], [0, 0]]),
    ("add_fwd_bf16", [[3072, 3072], [0, 0]]),
    ("add_layer_norm_bwd_bf16", [[837, 666], [0, 0]]),
    ("add_layer_norm_bwd_x4_bf16", [[6672, 6416], [896, 896]]),
    ("add_layer_norm_fwd_bf16", [[667, 520], [0, 0]]),
    ("add_layer_norm_fwd_x4_bf16", [[6176, 6176], [0, 0]]),
    ("embedding_bwd_bf16", [[1742, 1622], [0, 0]]),
    ("embedding_bwd_runs_f32", [[1752, 1752], [96, 96]]),
    ("embedding_fwd_bf16", [[2850, 2850], [0, 0]]),
    ("gelu_bwd_tanh_bf16", [[144, 144], [0, 0]]),
    ("gelu_fwd_tanh_bf16", [[96, 96], [0, 0]]),
    ("koleo_bwd_bf16", [[835, 830], [1960, 840]]), // eight columns of a thread side by side in shared memory
    ("koleo_mean_f32", [[4, 3], [32, 32]]),
    ("koleo_nearest_f32", [[276, 270], [480, 480]]),
    ("koleo_normalise_bf16", [[250, 250], [0, 0]]),
    ("layer_norm_bwd_bf16", [[760, 610], [0, 0]]),
    ("layer_norm_bwd_reduce_f32", [[768, 768], [192, 192]]),
    ("layer_norm_bwd_x4_bf16", [[5648, 5392], [896, 896]]),
    ("layer_norm_bwd_x6_bf16", [[8464, 8080], [1344, 1344]]),
    ("layer_norm_fwd_bf16", [[436, 352], [0, 0]]),
    ("layer_norm_fwd_x4_bf16", [[4128, 4128], [0, 0]]),
    ("layer_norm_fwd_x6_bf16", [[6176, 6176], [0, 0]]),
    ("layer_scale_bwd_bf16", [[198, 186], [128, 128]]), // every warp reads gamma
    ("layer_scale_bwd_reduce_f32", [[24, 24], [6, 6]]),
    ("layer_scale_fwd_bf16", [[240, 240], [0, 0]]),
    ("lion_bf16", [[1224, 1224], [0, 0]]),
    ("rope_bf16", [[256, 256], [0, 0]]),
    ("sigmoid_pair_loss_bwd_bf16", [[1568, 1568], [0, 0]]),
    ("sigmoid_pair_loss_bwd_f32", [[10, 10], [0, 0]]),
    ("softmax_bwd_s12_bf16", [[231, 168], [0, 0]]),
    ("softmax_bwd_x4_bf16", [[774, 756], [0, 0]]),
    ("softmax_fwd_s12_bf16", [[154, 112], [0, 0]]),
    ("softmax_fwd_x4_bf16", [[516, 504], [0, 0]]),
    ("softmax_pair_loss_cols_f32", [[436, 426], [176, 176]]),
    ("softmax_pair_loss_grad_bf16", [[1740, 1720], [640, 640]]),
    ("softmax_pair_loss_reduce_f32", [[162, 52], [1644, 359]]), // one block: a pair of f64 for each row and column
    ("softmax_pair_loss_rows_f32", [[960, 960], [2560, 2560]]),
    ("swiglu_bwd_bf16", [[240, 240], [0, 0]]),
    ("swiglu_fwd_bf16", [[144, 144], [0, 0]]),
    ("weight_norm_bwd_bf16", [[312, 312], [0, 0]]),
    ("weight_norm_fwd_bf16", [[160, 160], [0, 0]]),
];
