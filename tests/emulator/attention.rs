//! Memory transactions of attention in parts and at 256 columns, pinned as in ops.rs.

use ocellus::ops::attention::{case, cross_case, narrow_case};

use super::ops::{Counts, compare};

#[test]
fn parts_and_wide_heads_move_no_more_than_pinned() {
    // Few queries and many keys, the reverse, self-attention of 256 columns, and values of 64 for them.
    let cases = [
        cross_case(&[3], &[1000], 1, 64, true),
        cross_case(&[600], &[3], 1, 32, false),
        case(&[40], 1, 256),
        narrow_case(&[72], &[90], 1, 256, 64),
    ];
    compare(&cases, PINNED);
}

/// Kernel, [sectors, ideal], [wavefronts, ideal].
const PINNED: &[(&str, Counts)] = &[
    ("attention_bwd_long_kv_8x16_hd256v64_bf16", [[5094, 5094], [8442, 8262]]),
    ("attention_bwd_long_kv_4x32_hd32_bf16", [[2634, 2634], [2328, 2100]]),
    ("attention_bwd_long_kv_4x32_hd64_bf16", [[16392, 16392], [11472, 11280]]),
    ("attention_bwd_long_pairs_4x16_hd256_bf16", [[3874, 3874], [5444, 5300]]),
    ("attention_bwd_long_q_4x16_hd256_bf16", [[3873, 3873], [3880, 3880]]),
    ("attention_bwd_long_q_8x16_hd256v64_bf16", [[4737, 4737], [6640, 6640]]),
    ("attention_bwd_long_q_4x32_hd32_bf16", [[5203, 5203], [2965, 2965]]),
    ("attention_bwd_long_q_4x32_hd64_bf16", [[8202, 8202], [5480, 5468]]),
    ("attention_bwd_sum_bf16", [[60, 60], [0, 0]]),
    ("attention_fwd_combine_bf16", [[104, 102], [0, 0]]),
    ("attention_fwd_long_4x32_hd64_bf16", [[8124, 8123], [4256, 4256]]),
    ("attention_fwd_long_4x32_hd256v64_bf16", [[3261, 3261], [3016, 3016]]),
    ("attention_fwd_long_8x16_hd256_bf16", [[2577, 2577], [2400, 2400]]),
    ("attention_fwd_short_hd32_bf16", [[2511, 2511], [1836, 1836]]),
];
