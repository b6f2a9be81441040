//! Names of open_clip's SigLIP models, whose image towers are timm's.

use crate::checkpoint::StateDict;
use crate::{Error, Result};

/// Outside of blocks: open_clip, here.
const OUTER: [(&str, &str); 14] = [
    ("visual.trunk.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("visual.trunk.norm", "vision_model.post_layernorm"),
    ("visual.trunk.attn_pool.latent", "vision_model.head.probe"),
    ("visual.trunk.attn_pool.q", "vision_model.head.attention.q_proj"),
    ("visual.trunk.attn_pool.kv", "vision_model.head.attention.kv_proj"),
    ("visual.trunk.attn_pool.proj", "vision_model.head.attention.out_proj"),
    ("visual.trunk.attn_pool.norm", "vision_model.head.layernorm"),
    ("visual.trunk.attn_pool.mlp.fc1", "vision_model.head.mlp.fc1"),
    ("visual.trunk.attn_pool.mlp.fc2", "vision_model.head.mlp.fc2"),
    ("text.token_embedding", "text_model.embeddings.token_embedding"),
    ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.ln_final", "text_model.final_layer_norm"),
    ("text.text_projection", "text_model.head"),
];

/// In a block: open_clip (both towers), here.
const INNER: [(&str, &str); 12] = [
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.qkv.", "self_attn.qkv_proj."),
    ("attn.proj.", "self_attn.out_proj."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.in_proj_", "self_attn.qkv_proj."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// Stacks of blocks: open_clip, here.
const STACKS: [(&str, &str); 2] = [
    ("visual.trunk.blocks.", "vision_model.encoder.layers."),
    ("text.transformer.resblocks.", "text_model.encoder.layers."),
];

/// Whether a name is of this layout.
pub(super) fn knows(name: &str) -> bool {
    name.starts_with("visual.trunk.") || name.starts_with("text.")
}

fn renamed(name: &str) -> Option<String> {
    for (theirs, ours) in OUTER {
        if let Some(rest) = name.strip_prefix(theirs).filter(|rest| matches!(*rest, "" | ".weight" | ".bias")) {
            return Some(format!("{ours}{rest}"));
        }
    }
    let (stack, rest) = STACKS.iter().find_map(|(theirs, ours)| Some((ours, name.strip_prefix(theirs)?)))?;
    let (at, inside) = rest.split_once('.')?;
    let (module, leaf) = INNER.iter().find_map(|(theirs, ours)| Some((ours, inside.strip_prefix(theirs)?)))?;
    Some(format!("{stack}{at}.{module}{leaf}"))
}

/// This crate's names.
pub(super) fn read(dict: &StateDict) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        let tensor = match name {
            "logit_scale" | "logit_bias" if tensor.numel() == 1 => tensor.reshape([1])?,
            "visual.trunk.pos_embed" => {
                let [_, rows, width] = tensor.dims("open_clip", "visual.trunk.pos_embed").map_err(|_| {
                    let given = tensor.shape();
                    Error::checkpoint(
                        &dict.origin,
                        format!("tensor `{name}` has shape {given}, expected [1, patches, width]"),
                    )
                })?;
                tensor.reshape([rows, width])?
            }
            _ => tensor.clone(),
        };
        out.insert(renamed(name).unwrap_or_else(|| name.to_string()), tensor)?;
    }
    Ok(out)
}
