//! The memory transactions of every kernel file, pinned: a change that reads more sectors of global memory or runs into
//! more bank conflicts shows here, without a GPU. A failure prints the rows as they are now.

use std::collections::{BTreeMap, BTreeSet};

use ocellus::device::emulated::take_traffic;
use ocellus::ops::{self, Case, Operand, masked_gather::Images};
use ocellus::testing::operands;
use ocellus::{DType, Grads, Tape};

use super::*;

/// Sectors of global memory and passes over shared memory of one kernel, each with what contiguous accesses without
/// conflicts need.
pub(super) type Counts = [[u64; 2]; 2];

/// Small shapes of every operation, wide enough for its vector accesses.
fn cases() -> Vec<Case> {
    let shapes = [[40, 40].into(), [40].into()];
    vec![
        ops::adamw::case("small", &shapes),
        ops::add::case(8, 96),
        ops::add_layer_norm::joint_case(8, 96),
        ops::assemble_tokens::case(2, 8, 3, 96),
        ops::attention::case(&[17, 17], 2, 28), // tiled
        ops::attention::case(&[17, 17], 2, 32), // short
        ops::attention::case(&[150], 2, 64),    // long backward
        ops::attention::case(&[500], 1, 72),    // long
        ops::batch_norm::case(16, 96),
        ops::cast::case(768, DType::F32),
        ops::cross_entropy::case(8, 96, 0.1),
        ops::ema::case("small", &shapes),
        ops::gather_rows::case(8, 5, 96),
        ops::gelu::case(8, 96),
        ops::grad_norm::case("small", &shapes, Some(1.0)),
        ops::l2_normalize::case(8, 96),
        ops::lars::case("small", &shapes),
        ops::layer_norm::case(8, 96),
        ops::linear::case(16, 8, 96, false),
        ops::masked_gather::case(Images::Storage, [2, 3, 2, 2], 8, 2, true),
        ops::masked_mse::case(true, [2, 3, 2, 2], 8, 2, true),
        ops::masked_scatter::case(2, 8, 3, 96),
        ops::mean_pool::case(2, 9, 1, 96),
        ops::prepare_tokens::case(&[[2, 8], [3, 4]], 1, 96),
        ops::residual::case(2, 4, 96),
        ops::scale::case(8, 96, 0.5),
        ops::sigmoid_pair_loss::case(136, 96),
        ops::softmax::case(8, 96),
    ]
}

/// Forward and backward of a case in bf16.
fn measure(case: &Case) -> BTreeMap<String, Counts> {
    let run = || {
        let inputs = operands(case, DType::BF16, DType::BF16, &Device::Emulated).unwrap();
        let inputs: Vec<Operand> = case.inputs.iter().zip(inputs).map(|(input, t)| input.operand(t).unwrap()).collect();
        take_traffic();
        let tape = Tape::new();
        let outputs = (case.run)(&tape, &inputs.iter().map(|input| input.on(&tape)).collect::<Vec<_>>()).unwrap();
        if let Some(y) = outputs.iter().find(|y| y.slot().is_some()) {
            tape.backward(y, y.value().clone(), &mut Grads::new()).unwrap();
        }
        take_traffic()
    };
    let mut kernels = BTreeMap::new();
    for launch in with_options(Options { checks: Checks::Traffic, ..Options::default() }, run) {
        let counts: &mut Counts = kernels.entry(launch.kernel).or_default();
        for line in launch.lines {
            let add = [[line.sectors, line.ideal_sectors], [line.wavefronts, line.ideal_wavefronts]];
            counts.iter_mut().flatten().zip(add.iter().flatten()).for_each(|(sum, n)| *sum += n);
        }
    }
    kernels
}

/// That the kernels of `cases` are those pinned and move no more; returns their names.
pub(super) fn compare(cases: &[Case], pinned: &[(&'static str, Counts)]) -> Vec<String> {
    let now: BTreeMap<String, Counts> = cases.iter().flat_map(measure).collect();
    let pinned: BTreeMap<&str, Counts> = pinned.iter().copied().collect();
    let more = |now: &Counts, then: &Counts| (0..2).any(|i| now[i][0] > then[i][0]);
    let odd: Vec<String> = now
        .iter()
        .filter(|(kernel, now)| pinned.get(kernel.as_str()).is_none_or(|then| more(now, then)))
        .map(|(kernel, now)| format!("    ({kernel:?}, {now:?}), // pinned: {:?}", pinned.get(kernel.as_str())))
        .collect();
    assert!(odd.is_empty(), "more transactions than pinned:\n{}", odd.join("\n"));
    let gone: Vec<&&str> = pinned.keys().filter(|kernel| !now.contains_key(**kernel)).collect();
    assert!(gone.is_empty(), "pinned, but no longer launched: {gone:?}");
    now.into_keys().collect()
}

#[test]
fn every_kernel_file_moves_no_more_than_pinned() {
    let mut now = compare(&cases(), PINNED);
    let elsewhere = supporting::PINNED.iter().chain(prototypes::PINNED).chain(maps::PINNED);
    now.extend(elsewhere.map(|(kernel, _)| kernel.to_string()));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stems: BTreeSet<String> = files.filter_map(|name| Some(name.strip_suffix(".cu")?.to_string())).collect();
    let covers = |stem: &str, kernel: &str| kernel.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_'));
    let missing: Vec<&String> = stems.iter().filter(|stem| !now.iter().any(|kernel| covers(stem, kernel))).collect();
    assert!(missing.is_empty(), "kernel files without a pinned kernel: {missing:?}");
}

/// Kernel, [sectors, ideal], [wavefronts, ideal].
const PINNED: &[(&str, Counts)] = &[
    ("adamw_bf16", [[1738, 1730], [0, 0]]),
    ("add_accumulate_f32", [[72, 72], [0, 0]]),
    ("add_fwd_bf16", [[144, 144], [0, 0]]),
    ("add_layer_norm_bwd_x2_bf16", [[344, 320], [448, 448]]),
    ("add_layer_norm_fwd_x2_bf16", [[304, 304], [0, 0]]),
    ("assemble_tokens_bwd_bf16", [[340, 220], [1152, 1152]]), // ranks of one patch lie an image apart
    ("assemble_tokens_fwd_bf16", [[150, 150], [0, 0]]),
    ("attention_bwd_delta_bf16", [[408, 340], [0, 0]]), // rows of 56 bytes
    ("attention_bwd_kv_32x32_hd32_bf16", [[1108, 872], [12556, 3916]]),
    ("attention_bwd_long_kv_4x32_hd64_bf16", [[9820, 9820], [13672, 13072]]),
    ("attention_bwd_long_kv_6x16_hd80_bf16", [[48962, 37186], [110628, 101496]]), // rows of 144 bytes
    ("attention_bwd_long_q_4x32_hd64_bf16", [[9792, 9782], [8796, 8796]]),
    ("attention_bwd_long_q_4x32_hd80_bf16", [[42105, 27357], [42292, 40248]]), // rows of 144 bytes
    ("attention_bwd_q_32x32_hd32_bf16", [[970, 784], [9292, 2956]]),
    ("attention_bwd_short_hd32_bf16", [[1135, 1132], [1644, 1572]]),
    ("attention_fwd_32x32_hd32_bf16", [[774, 612], [6272, 1952]]),
    ("attention_fwd_long_4x32_hd80_bf16", [[34444, 22699], [30205, 28165]]), // rows of 144 bytes
    ("attention_fwd_short_hd32_bf16", [[594, 588], [612, 612]]),
    ("attention_fwd_short_hd64_bf16", [[4897, 4878], [8300, 8300]]),
    ("batch_norm_bwd_bf16", [[1056, 672], [0, 0]]), // every warp reads the statistics, 16 bytes of 32 at a time
    ("batch_norm_bwd_combine_f32", [[60, 60], [483, 483]]),
    ("batch_norm_bwd_part_bf16", [[432, 312], [256, 256]]), // as above
    ("batch_norm_fwd_combine_f32", [[60, 60], [483, 483]]),
    ("batch_norm_fwd_part_bf16", [[144, 120], [328, 328]]),
    ("batch_norm_normalize_bf16", [[576, 384], [0, 0]]), // as above
    ("cast_from_bf16_f32", [[144, 144], [0, 0]]),
    ("cast_from_f32_bf16", [[144, 144], [0, 0]]),
    ("cross_entropy_bwd_held_bf16", [[120, 120], [0, 0]]),
    ("cross_entropy_fwd_held_bf16", [[73, 73], [16, 16]]),
    ("cross_entropy_mean_f32", [[2, 2], [64, 64]]),
    ("ema_bf16", [[782, 782], [0, 0]]),
    ("gather_rows_bwd_bf16", [[65, 65], [0, 0]]),
    ("gather_rows_fwd_bf16", [[65, 65], [0, 0]]),
    ("gelu_bwd_bf16", [[144, 144], [0, 0]]),
    ("gelu_fwd_bf16", [[96, 96], [0, 0]]),
    ("grad_norm_f32", [[247, 239], [272, 144]]),
    ("grad_norm_finish_f32", [[6, 5], [528, 272]]),
    ("l2_normalize_bwd_bf16", [[248, 248], [0, 0]]),
    ("l2_normalize_fwd_bf16", [[152, 152], [0, 0]]),
    ("lars_bf16", [[1234, 1226], [272, 144]]),
    ("lars_norms_f32", [[474, 466], [272, 144]]),
    ("layer_norm_bwd_reduce_f32", [[48, 48], [12, 12]]),
    ("layer_norm_bwd_x2_bf16", [[296, 272], [448, 448]]),
    ("layer_norm_fwd_x2_bf16", [[208, 208], [0, 0]]),
    ("linear_bwd_bias_bf16", [[120, 120], [96, 96]]),
    ("linear_bwd_bias_f32", [[108, 108], [48, 48]]),
    ("linear_bwd_bias_reduce_f32", [[36, 36], [6, 6]]),
    ("masked_gather_bwd_to_bf16_bf16", [[160, 112], [0, 0]]),
    ("masked_gather_fwd_from_bf16_bf16", [[172, 124], [0, 0]]),
    ("masked_mse_bwd_from_u8_bf16", [[184, 160], [48, 48]]),
    ("masked_mse_fwd_from_u8_bf16", [[133, 109], [56, 56]]),
    ("masked_mse_reduce_f32", [[2, 2], [32, 32]]),
    ("masked_scatter_bwd_bf16", [[604, 388], [2304, 2304]]), // a sum per token and eight f32 of a lane
    ("masked_scatter_bwd_reduce_f32", [[120, 120], [12, 12]]),
    ("masked_scatter_fwd_bf16", [[340, 340], [0, 0]]),
    ("mean_pool_bwd_bf16", [[216, 216], [0, 0]]),
    ("mean_pool_fwd_bf16", [[108, 108], [256, 256]]),
    ("prepare_tokens_bwd_bf16", [[1036, 724], [3072, 3072]]), // f32 sums in vectors of two stores
    ("prepare_tokens_fwd_bf16", [[670, 670], [0, 0]]),
    ("residual_bwd_bf16", [[100, 100], [0, 0]]),
    ("residual_fwd_bf16", [[148, 148], [0, 0]]),
    ("scale_fwd_bf16", [[192, 192], [0, 0]]),
    ("sigmoid_pair_loss_bwd_bf16", [[5312, 5312], [0, 0]]),
    ("sigmoid_pair_loss_bwd_f32", [[20, 20], [0, 0]]),
    ("sigmoid_pair_loss_fwd_grad_128x128_bf16", [[4636, 4500], [9464, 9364]]),
    ("sigmoid_pair_loss_reduce_f32", [[33, 15], [12, 12]]), // six sums of a tile lie side by side
    ("softmax_bwd_x4_bf16", [[144, 144], [0, 0]]),
    ("softmax_fwd_x4_bf16", [[96, 96], [0, 0]]),
];
