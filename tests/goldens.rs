//! Runs every golden file: inputs, weights, outputs and gradients that the upstream code produced.
//!
//! Folders come from `OCELLUS_GOLDENS` (colon-separated, searched recursively; default: `tests/goldens` and, when it is
//! there, `../shared/goldens`), the device from `OCELLUS_TEST_DEVICE` (cpu, emulated, cuda; default cpu). A file's metadata
//! key `kind` says what it pins; everything is built from the metadata `config`. One line per file:
//! `ok <kind> <file> worst <error> of <tolerance>`, `FAILED ...` or `unknown ...`, which fails the run too.

#[path = "golden/clip.rs"]
mod clip;
#[path = "golden/data.rs"]
mod data;
#[path = "golden/dinov2.rs"]
mod dinov2;
#[path = "golden/dinov2_data.rs"]
mod dinov2_data;
#[path = "golden/dinov2_eval.rs"]
mod dinov2_eval;
#[path = "golden/dinov2_model.rs"]
mod dinov2_model;
#[path = "golden/dinov2_parts.rs"]
mod dinov2_parts;
#[path = "golden/dinov2_step.rs"]
mod dinov2_step;
#[path = "golden/dinov2_tables.rs"]
mod dinov2_tables;
#[path = "golden/finetune.rs"]
mod finetune;
#[path = "golden/hiera_mae.rs"]
mod hiera_mae;
#[path = "golden/model.rs"]
mod model;
#[path = "golden/reader.rs"]
mod reader;
#[path = "golden/sam2_host.rs"]
mod sam2_host;
#[path = "golden/sam2_model.rs"]
mod sam2_model;
#[path = "golden/sam2_names.rs"]
mod sam2_names;
#[path = "golden/sam2_parts.rs"]
mod sam2_parts;
#[path = "golden/sam2_train.rs"]
mod sam2_train;
#[path = "golden/sam2_video.rs"]
mod sam2_video;
#[path = "golden/siglip.rs"]
mod siglip;
#[path = "golden/siglip_model.rs"]
mod siglip_model;
#[path = "golden/siglip_text.rs"]
mod siglip_text;
#[path = "golden/siglip_train.rs"]
mod siglip_train;
#[path = "golden/tables.rs"]
mod tables;

use std::path::{Path, PathBuf};

use ocellus::Device;
use reader::{Golden, Outcome, Report};

type Runner = fn(&Golden, &Device, &mut Report) -> Outcome;

/// Kinds this crate implements.
const KINDS: &[(&str, Runner)] = &[
    ("dinov2/block", dinov2_model::block),
    ("dinov2/block_drop_path_packed", dinov2_model::block_drop_path_packed),
    ("dinov2/block_mask_statistics", dinov2_data::block_mask_statistics),
    ("dinov2/dino_head", dinov2_parts::dino_head),
    ("dinov2/dino_loss", dinov2::dino_loss),
    ("dinov2/hf_dinov2", dinov2_model::hf),
    ("dinov2/hf_dinov2_with_registers", dinov2_model::hf),
    ("dinov2/ibot_loss", dinov2::ibot_loss),
    ("dinov2/knn", dinov2_eval::nearest),
    ("dinov2/koleo", dinov2_parts::koleo),
    ("dinov2/linear_probe_features", dinov2_eval::linear_probe_features),
    ("dinov2/param_groups", dinov2_tables::param_groups),
    ("dinov2/pos_embed_interpolation", dinov2_model::pos_embed_interpolation),
    ("dinov2/schedules", dinov2_tables::schedules),
    ("dinov2/sinkhorn", dinov2::sinkhorn),
    ("dinov2/sinkhorn_extreme", dinov2::sinkhorn),
    ("dinov2/sinkhorn_ranks", dinov2::sinkhorn_ranks),
    ("dinov2/softmax_centering", dinov2::softmax_centering),
    ("dinov2/ssl_step", dinov2_step::ssl_step),
    ("dinov2/trajectory", dinov2_step::trajectory),
    ("dinov2/vit_masked", dinov2_model::vit_masked),
    ("dinov2/vit_packed", dinov2_model::vit_packed),
    ("mae/augment", data::augment),
    ("mae/block", model::block),
    ("mae/decoder", model::decoder),
    ("mae/encoder", model::encoder),
    ("mae/finetune_forward", finetune::forward),
    ("mae/finetune_trajectory", finetune::trajectory),
    ("mae/hf_encoder", model::hf_encoder),
    ("mae/hf_pretraining", model::hf_pretraining),
    ("mae/hiera_mae", hiera_mae::by_noise),
    ("mae/hiera_unroll", hiera_mae::unroll),
    ("mae/linprobe_head", finetune::linprobe_head),
    ("mae/linprobe_trajectory", finetune::linprobe_trajectory),
    ("mae/lr_schedule", tables::lr_schedule),
    ("mae/masking", tables::masking),
    ("mae/mixup_cutmix", data::mixup_cutmix),
    ("mae/patchify", tables::patchify),
    ("mae/pos_embed", tables::pos_embed),
    ("mae/pos_embed_interpolate", tables::pos_embed_interpolate),
    ("mae/pretrain_forward", model::pretrain_forward),
    ("mae/pretrain_trajectory", model::pretrain_trajectory),
    ("mae/visualise", model::visualise),
    ("sam2/amg_postprocess", sam2_host::amg_postprocess),
    ("sam2/click_sampling", sam2_host::click_sampling),
    ("sam2/hf_sam2_model", sam2_model::hf_sam2_model),
    ("sam2/hiera_block", sam2_parts::hiera_block),
    ("sam2/hiera_mae", hiera_mae::by_mask),
    ("sam2/hiera_trunk_fpn", sam2_parts::hiera_trunk_fpn),
    ("sam2/image_forward", sam2_model::image_forward),
    ("sam2/image_predictor", sam2_model::image_predictor),
    ("sam2/jf_metric", sam2_host::jf_metric),
    ("sam2/losses", sam2_video::losses),
    ("sam2/mask_decoder", sam2_parts::mask_decoder),
    ("sam2/mask_decoder_dynamic", sam2_parts::mask_decoder_dynamic),
    ("sam2/memory_attention", sam2_parts::memory_attention),
    ("sam2/memory_encoder", sam2_parts::memory_encoder),
    ("sam2/memory_frame_selection", sam2_host::memory_frame_selection),
    ("sam2/position_encodings", sam2_host::position_encodings),
    ("sam2/prompt_encoder", sam2_parts::prompt_encoder),
    ("sam2/rope_attention", sam2_parts::rope_attention),
    ("sam2/tiny_model_weights", sam2_model::tiny_model_weights),
    ("sam2/train_step", sam2_video::train_step),
    ("sam2/train_trajectory", sam2_train::train_trajectory),
    ("sam2/transforms", sam2_host::transforms),
    ("sam2/two_way_transformer", sam2_parts::two_way_transformer),
    ("sam2/video_multi_cond_stride", sam2_model::video_multi_cond_stride),
    ("sam2/video_occlusion", sam2_model::video_track_step),
    ("sam2/video_predictor", sam2_video::video_predictor),
    ("sam2/video_reverse_mask_prompt", sam2_video::video_reverse_mask_prompt),
    ("sam2/video_sam20_variant", sam2_model::video_track_step),
    ("sam2/video_track_step", sam2_model::video_track_step),
    ("siglip/bv_trajectory", siglip_train::bv_trajectory),
    ("siglip/bv_two_towers", siglip_model::bv_two_towers),
    ("siglip/canonicalize_text", siglip_text::canonical),
    ("siglip/clip_loss", clip::loss),
    ("siglip/dist_clip", clip::ranks),
    ("siglip/dist_siglip", siglip::ranks),
    ("siglip/hf_siglip", siglip_model::hf_siglip),
    ("siglip/hf_siglip2", siglip_model::hf_siglip2),
    ("siglip/hf_text", siglip_model::hf_text),
    ("siglip/hf_trajectory", siglip_train::hf_trajectory),
    ("siglip/map_head", siglip_model::map_head),
    ("siglip/posemb_resample", siglip_text::posemb_resample),
    ("siglip/preprocess_pil", siglip_text::preprocess_pil),
    ("siglip/preprocess_resize", siglip_text::preprocess_resize),
    ("siglip/retrieval", siglip_text::recall),
    ("siglip/siglip_loss", siglip::loss),
    ("siglip/siglip_negatives", siglip::loss),
    ("siglip/siglip_rectangle", siglip::loss),
    ("siglip/tokenizer", siglip_text::tokenizer),
    ("siglip/zero_shot", siglip_text::classification),
];

fn folders() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("OCELLUS_GOLDENS") {
        return std::env::split_paths(&list).collect();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    [root.join("tests/goldens"), root.join("../shared/goldens")].into_iter().filter(|p| p.is_dir()).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    Ok(())
}

fn main() {
    let device = std::env::var("OCELLUS_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = Device::parse(&device).unwrap_or_else(|e| panic!("OCELLUS_TEST_DEVICE={device}: {e}"));
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let mut files = Vec::new();
    for folder in folders() {
        collect(&folder, &mut files).unwrap_or_else(|e| panic!("OCELLUS_GOLDENS: {}: {e}", folder.display()));
    }
    let (mut passed, mut failed) = (0, 0);
    for path in files.iter().filter(|p| only.as_ref().is_none_or(|o| p.to_string_lossy().contains(o.as_str()))) {
        match run(path, &device) {
            Line::Ok(text) => {
                passed += 1;
                println!("ok {text}");
            }
            Line::Unknown(text) => {
                failed += 1;
                println!("unknown {text}");
            }
            Line::Failed(text) => {
                failed += 1;
                println!("FAILED {text}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed > 0 || passed == 0 {
        std::process::exit(1);
    }
}

enum Line {
    Ok(String),
    Unknown(String),
    Failed(String),
}

fn run(path: &Path, device: &Device) -> Line {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let golden = match Golden::read(path) {
        Ok(golden) => golden,
        Err(e) => return Line::Failed(format!("? {file} {e}")),
    };
    let kind = golden.kind.clone();
    let Some((_, runner)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return Line::Unknown(format!("{kind} {file}"));
    };
    let mut report = Report::default();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runner(&golden, device, &mut report)));
    match result {
        Ok(Ok(())) => match report.finish(&golden) {
            Ok((worst, tolerance)) => Line::Ok(format!("{kind} {file} worst {worst:.1e} of {tolerance:.1e}")),
            Err(e) => Line::Failed(format!("{kind} {file} {e}")),
        },
        Ok(Err(e)) => Line::Failed(format!("{kind} {file} {e}")),
        Err(_) => Line::Failed(format!("{kind} {file} panicked")),
    }
}
