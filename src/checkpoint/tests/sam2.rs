//! `config.json` of SAM-2: what is read, what is refused.

use serde_json::{Value, json};

use super::super::sam2::HfConfig;
use crate::Result;

fn read(change: &[(&str, Value)]) -> Result<HfConfig> {
    let folder = tempfile::tempdir().unwrap();
    let mut value = serde_json::to_value(HfConfig::default()).unwrap();
    for (pointer, new) in change {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), new.clone());
    }
    std::fs::write(folder.path().join("config.json"), value.to_string()).unwrap();
    HfConfig::read(folder.path())
}

#[test]
fn nothing_said_is_the_tiny_model() {
    let empty: HfConfig = serde_json::from_str("{}").unwrap();
    let stages = &empty.vision_config.backbone_config.blocks_per_stage;
    assert_eq!((empty.num_maskmem, stages.as_slice(), empty.image_size), (7, &[1, 2, 7, 2][..], [1024; 2]));
    assert_eq!(read(&[]).unwrap(), HfConfig::default());
    // Of the older release, of single images, with a number for a pair and a whole number for a fraction.
    let older =
        [("/memory_attention_rope_theta", json!(10000)), ("/vision_config/backbone_config/mlp_ratio", json!(4))];
    assert!(read(&older).is_ok());
    let image = [("/model_type", json!("sam2")), ("/vision_config/backbone_config/image_size", json!(1024))];
    assert!(read(&image).is_ok());
    assert!(read(&[("/rope_parameters", json!({"rope_theta": 1e4, "rope_type": "axial"}))]).is_ok());
    assert!(read(&[("/mask_decoder_config/dynamic_multimask_via_stability", json!(false))]).is_ok());
}

#[test]
fn what_is_not_known_here_is_refused() {
    for (pointer, value, text) in [
        ("/model_type", json!("sam3"), "`model_type` is \"sam3\", expected sam2_video or sam2"),
        ("/rope_parameters", json!({"rope_theta": 100.0}), "`rope_theta`, is 100.0, expected 10000"),
        ("/memory_fuser_num_layers", json!(3), "`memory_fuser_num_layers` is 3, expected 2"),
        ("/memory_fuser_embed_dim", json!(128), "`memory_fuser_embed_dim` is 128, expected 256"),
        ("/image_size", json!(512), "`image_size` is [512, 512], expected a square as in"),
        ("/num_maskmem", json!(1_000_000), "`num_maskmem` is 1000000, expected 1 to 1024"),
        ("/vision_config/fpn_stride", json!(2), "`vision_config.fpn_stride` is 2, expected 1"),
        ("/vision_config/backbone_config/mlp_ratio", json!(2.5), "`vision_config.backbone_config.mlp_ratio` is 2.5"),
        ("/vision_config/backbone_config/hidden_size", json!(100), "expected [100, 200, 400, 800]"),
        ("/vision_config/backbone_config/blocks_per_stage", json!([1, 2]), "`vision_config.backbone_config.blocks"),
        (
            "/vision_config/backbone_config/window_size_per_stage",
            json!([8, 4, 0, 7]),
            "is [8, 4, 0, 7], expected 4 numbers",
        ),
        ("/vision_config/backbone_config", json!(3), "invalid type"),
        ("/mask_decoder_config/num_multimask_outputs", json!(4), "is 4, expected 3"),
    ] {
        let error = read(&[(pointer, value)]).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("config.json"), "{pointer}: {error}");
    }
}

#[test]
fn processors_are_told_of_the_input() {
    let config = HfConfig { image_size: [512; 2], ..HfConfig::default() };
    let [image, video, both] = config.processors();
    assert_eq!(image.1["size"], json!({"height": 512, "width": 512}));
    assert_eq!(image.1["mask_size"], json!({"height": 128, "width": 128}));
    assert_eq!((&video.1["size"], &video.1["image_mean"]), (&image.1["size"], &image.1["image_mean"]));
    assert_eq!((both.0, &both.1["target_size"]), ("processor_config.json", &json!(512)));
}
