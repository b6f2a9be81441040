//! Memory transactions of the kernels over rows of prototypes.

use ocellus::ops::{self, Case};

use super::ops::{Counts, compare};

/// Several rows of one tile.
fn cases() -> Vec<Case> {
    vec![
        ops::sinkhorn_knopp::case(16, 512, 0.07, 2),
        ops::softmax_centering::case(16, 512, 0.07),
        ops::prototype_cross_entropy::case(16, 512, 4, 2),
    ]
}

/// Kernel, [sectors, ideal], [wavefronts, ideal]. Eight f32 for the eight 16-bit logits of a thread are two accesses of 16
/// bytes, 32 bytes apart: each touches twice the sectors of its bytes, and the second finds them in the cache.
pub(super) const PINNED: &[(&str, Counts)] = &[
    ("prototype_cross_entropy_bwd_from_bf16_bf16", [[5120, 4096], [0, 0]]),
    ("prototype_cross_entropy_fwd_from_bf16_bf16", [[4368, 3344], [1024, 1024]]),
    ("prototype_cross_entropy_loss_f32", [[11, 5], [136, 72]]),
    ("prototype_cross_entropy_rows_f32", [[18, 18], [0, 0]]),
    ("sinkhorn_knopp_first_bf16", [[776, 648], [0, 0]]),
    ("sinkhorn_knopp_masses_f32", [[384, 384], [0, 0]]),
    ("sinkhorn_knopp_max_f32", [[128, 128], [0, 0]]),
    ("sinkhorn_knopp_prototypes_f32", [[384, 384], [0, 0]]),
    ("sinkhorn_knopp_rows_f32", [[48, 48], [0, 0]]),
    ("sinkhorn_knopp_start_f32", [[128, 128], [0, 0]]),
    ("sinkhorn_knopp_step_bf16", [[2120, 1864], [912, 912]]),
    ("softmax_centering_fwd_bf16", [[912, 720], [384, 384]]),
    ("softmax_centering_mean_f32", [[128, 128], [0, 0]]),
    ("softmax_centering_rows_f32", [[48, 48], [0, 0]]),
];

#[test]
fn prototype_kernels_move_no_more_than_pinned() {
    compare(&cases(), PINNED);
}
