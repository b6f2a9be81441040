//! Weights from whatever people have: a run, finished or not, a Hugging Face folder, a safetensors file, an official `.pth`.

use std::path::Path;

pub use super::HeadSizes;
use super::model::{Network, Ssl};
use super::preset::Preset;
use super::{Backbone, FfnKind, Head, Sizes, Start};
use crate::checkpoint::dinov2::{self, Dinov2Config};
use crate::checkpoint::{self, LoadOptions, LoadReport, RunFolder, RunState, StateDict, load_into, run_state};
use crate::nn::{Builder, Module};
use crate::{Error, Param, Result};

/// Metadata key with which this crate marks its own files.
const SIZES: &str = "ocellus.dinov2.sizes";
/// The teacher of a finished run with its heads, under upstream's names.
pub const TEACHER: &str = "teacher.safetensors";

/// Sizes of a network.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NetworkSizes {
    /// Of the backbone.
    pub backbone: Sizes,
    /// Of the head for class tokens.
    pub dino_head: HeadSizes,
    /// Of that for patches, if it is another.
    pub ibot_head: Option<HeadSizes>,
}

impl NetworkSizes {
    /// Of a network.
    pub fn of(network: &Network) -> Self {
        let head = |h: &Head| {
            let [prototypes, bottleneck] = [0, 1].map(|i| h.last_layer.weight_v.master.shape()[i]);
            let hidden = if h.mlp.len() > 1 { h.mlp[0].weight.master.shape()[0] } else { bottleneck };
            HeadSizes { hidden, bottleneck, prototypes, layers: h.mlp.len() }
        };
        Self {
            backbone: network.backbone.sizes.clone(),
            dino_head: head(&network.dino_head),
            ibot_head: network.ibot_head.as_ref().map(head),
        }
    }

    /// A network of these sizes below `b`.
    ///
    /// # Errors
    /// Impossible sizes.
    pub fn network(&self, b: &Builder, start: &Start) -> Result<Network> {
        Network::new(b, &self.backbone, start, &self.dino_head, self.ibot_head.as_ref())
    }
}

/// Sizes of the networks in a state: the student, and the teacher if it is another model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Marked {
    /// The student and its average.
    pub student: NetworkSizes,
    /// The teacher.
    pub teacher: NetworkSizes,
}

/// Marks a dictionary with what is needed to build its model again.
///
/// # Errors
/// None that can be met: sizes are plain numbers.
pub fn mark(dict: &mut StateDict, model: &Ssl) -> Result<()> {
    put(dict, &Marked { student: NetworkSizes::of(&model.student), teacher: NetworkSizes::of(&model.teacher) })
}

fn put(dict: &mut StateDict, sizes: &Marked) -> Result<()> {
    let text = serde_json::to_string(sizes).map_err(|e| Error::Training(format!("sizes as JSON: {e}")))?;
    dict.metadata.insert(SIZES.into(), text);
    Ok(())
}

/// The sizes that [`mark`] put into a dictionary.
///
/// # Errors
/// What is damaged.
pub fn marked(dict: &StateDict) -> Result<Option<Marked>> {
    let damaged = |e| Error::checkpoint(&dict.origin, format!("damaged sizes: {e}"));
    dict.metadata.get(SIZES).map(|text| serde_json::from_str(text).map_err(damaged)).transpose()
}

/// Tensors as they are stored: of a run its teacher with heads if it has finished, else the newest intact state.
fn read(path: &Path, aloud: bool) -> Result<StateDict> {
    let finished = path.join(TEACHER);
    if finished.is_file() {
        return checkpoint::read(finished);
    }
    let states = path.join(run_state::FOLDER);
    if states.is_dir()
        && let Some(found) = RunFolder::reading(states).resume()?
    {
        if aloud {
            tracing::info!("{} has not finished: taking {}", path.display(), found.path.display());
        }
        return Ok(found.state.model);
    }
    let dict = checkpoint::read(path)?;
    // One checkpoint of a run, given by name.
    if RunState::is_state(&dict) { Ok(RunState::read(path)?.model) } else { Ok(dict) }
}

/// Whether a path holds a DINOv2 model of any layout.
///
/// # Errors
/// When it cannot be read.
pub fn is_dinov2(path: &Path) -> Result<bool> {
    let dict = read(path, false)?;
    Ok(marked(&dict)?.is_some() || dinov2::is_official(&dict) || dinov2::is_hf(&dict))
}

/// Parameters below `prefix`, without it.
fn below(dict: &StateDict, prefix: &str) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        if let Some(rest) = name.strip_prefix(prefix) {
            out.insert(rest, tensor.clone())?;
        }
    }
    Ok(out)
}

/// The parameters of some parts of a network.
///
/// # Errors
/// None: names stay different.
pub fn parts_of(dict: &StateDict, parts: &[&str]) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter().filter(|(name, _)| parts.iter().any(|part| name.starts_with(part))) {
        out.insert(name, tensor.clone())?;
    }
    Ok(out)
}

/// A network, of a run of this recipe what it would be evaluated by.
pub struct Weights {
    /// Under upstream's names, `backbone.*`, `dino_head.*`, `ibot_head.*`; of files without heads the backbone alone.
    pub dict: StateDict,
    /// Sizes of the backbone.
    pub sizes: Sizes,
    /// Sizes of all of it where the file has heads.
    pub network: Option<NetworkSizes>,
}

/// Reads weights and finds their sizes: from this crate's own metadata, from the config.json of files of Hugging Face, or
/// from the tensor shapes (heads of 64 values, the resampling of the released models).
///
/// # Errors
/// When it is no DINOv2 model, or sizes cannot be found.
pub fn weights(path: &Path) -> Result<Weights> {
    let raw = read(path, true)?;
    if let Some(sizes) = marked(&raw)? {
        // Of a state the average of the student, which distillation keeps beside the teacher.
        let distilled = raw.names().any(|n| n.starts_with("average."));
        let network = if distilled { sizes.student } else { sizes.teacher };
        let prefix = if distilled { "average." } else { "teacher." };
        let state = raw.names().any(|n| n.starts_with(prefix));
        let dict = if state { below(&raw, prefix)? } else { raw };
        return Ok(Weights { dict, sizes: network.backbone.clone(), network: Some(network) });
    }
    // Upstream's teacher checkpoints have heads, under the names that they have here.
    let backbone = dinov2::to_upstream(&raw)?;
    let folder = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    let hub = dinov2::is_hf(&raw) && folder.is_file();
    let sizes = if hub {
        from_hf(&Dinov2Config::read(&folder)?, &backbone)?
    } else {
        from_shapes(&backbone, dinov2::is_hf(&raw))?
    };
    let mut dict = StateDict::of(&backbone.origin, backbone.metadata.clone());
    for (name, tensor) in backbone.iter() {
        dict.insert(format!("backbone.{name}"), tensor.clone())?;
    }
    for (name, tensor) in raw.iter().map(|(name, t)| (dinov2::plain(name), t)) {
        if ["dino_head.", "ibot_head."].iter().any(|head| name.starts_with(head)) {
            dict.insert(name, tensor.clone())?;
        }
    }
    let head = |name: &str| head_from_shapes(&dict, name);
    let network = head("dino_head").map(|dino_head| NetworkSizes {
        backbone: sizes.clone(),
        dino_head,
        ibot_head: head("ibot_head"),
    });
    Ok(Weights { dict, sizes, network })
}

/// Sizes of a head from the shapes of its tensors; `None` where the weights lack it.
fn head_from_shapes(dict: &StateDict, head: &str) -> Option<HeadSizes> {
    let rows_and_columns = |name: &str| {
        let shape = dict.get(&format!("{head}.{name}"))?.shape();
        Some((*shape.first()?, *shape.get(1)?))
    };
    let (prototypes, bottleneck) = rows_and_columns("last_layer.weight_v")?;
    if rows_and_columns("mlp.weight").is_some() {
        return Some(HeadSizes { hidden: bottleneck, bottleneck, prototypes, layers: 1 });
    }
    let layers = (0..).take_while(|i| rows_and_columns(&format!("mlp.{}.weight", 2 * i)).is_some()).count();
    Some(HeadSizes { hidden: rows_and_columns("mlp.0.weight")?.0, bottleneck, prototypes, layers })
}

/// Sizes in a config.json; hidden units are those of the weights.
pub fn from_hf(c: &Dinov2Config, backbone: &StateDict) -> Result<Sizes> {
    let name = if c.use_swiglu_ffn { "blocks.0.mlp.w3.weight" } else { "blocks.0.mlp.fc2.weight" };
    let hidden = backbone.require(name)?.shape().get(1).copied().unwrap_or(0);
    Ok(Sizes {
        image_size: c.image_size,
        patch_size: c.patch_size,
        embed_dim: c.hidden_size,
        depth: c.num_hidden_layers,
        num_heads: c.num_attention_heads,
        ffn: if c.use_swiglu_ffn { FfnKind::SwiGlu } else { FfnKind::Mlp },
        hidden,
        registers: c.num_register_tokens,
        interpolate_offset: 0.0,
        interpolate_antialias: c.has_registers(),
    })
}

/// Sizes from the shapes of tensors under official names.
fn from_shapes(dict: &StateDict, hf: bool) -> Result<Sizes> {
    let shape = |name: &str| dict.require(name).map(|t| t.shape().to_vec());
    let kernel = shape("patch_embed.proj.weight")?;
    let &[embed_dim, 3, patch_size, _] = kernel.as_slice() else {
        let cause = format!("patch_embed.proj.weight has shape {kernel:?}, expected [D, 3, p, p]");
        return Err(Error::checkpoint(&dict.origin, cause));
    };
    let patches = shape("pos_embed")?.get(1).map_or(0, |rows| rows.saturating_sub(1));
    let side = patches.isqrt();
    if side * side != patches || side == 0 {
        let cause = format!("pos_embed is for {patches} patches, expected a square of them");
        return Err(Error::checkpoint(&dict.origin, cause));
    }
    let swiglu = dict.contains("blocks.0.mlp.w12.weight");
    let registers = dict.get("register_tokens").map_or(0, |t| t.shape().get(1).copied().unwrap_or(0));
    Ok(Sizes {
        image_size: side * patch_size,
        patch_size,
        embed_dim,
        depth: (0..).take_while(|i| dict.contains(&format!("blocks.{i}.norm1.weight"))).count(),
        num_heads: Preset::heads_of_width(embed_dim),
        ffn: if swiglu { FfnKind::SwiGlu } else { FfnKind::Mlp },
        hidden: if swiglu { shape("blocks.0.mlp.w3.weight")?[1] } else { shape("blocks.0.mlp.fc1.weight")?[0] },
        registers,
        interpolate_offset: if registers > 0 || hf { 0.0 } else { 0.1 },
        interpolate_antialias: registers > 0,
    })
}

/// Puts weights into parameters named `<prefix>backbone.*` and so on, tables of positions resized as the sizes say.
///
/// # Errors
/// When a shape differs or one that `needed` names is missing.
pub fn fill(
    mut params: Vec<&mut Param>,
    prefix: &str,
    weights: &Weights,
    to: &Sizes,
    needed: impl Fn(&str) -> bool,
) -> Result<LoadReport> {
    let mut dict = StateDict::of(&weights.dict.origin, weights.dict.metadata.clone());
    for (name, tensor) in weights.dict.iter() {
        dict.insert(format!("{prefix}{name}"), tensor.clone())?;
    }
    let (from, to) = (weights.sizes.grid()?, to.grid()?);
    let table = format!("{prefix}backbone.pos_embed");
    if from != to
        && let Some(old) = dict.get(&table)
    {
        let resized = crate::nn::pos_embed::resample(old, from, to, weights.sizes.resample())?;
        tracing::info!("{table} resized from {} x {} to {} x {} patches", from.0, from.1, to.0, to.1);
        let mut rest = StateDict::of(&dict.origin, dict.metadata.clone());
        for (name, tensor) in dict.iter().filter(|(name, _)| *name != table) {
            rest.insert(name, tensor.clone())?;
        }
        rest.insert(table, resized)?;
        dict = rest;
    }
    let report = load_into(&mut params, &dict, &LoadOptions::default())?;
    report.require(needed)?;
    Ok(report)
}

/// The backbone of a model, for features.
///
/// # Errors
/// As [`weights`], and when a tensor is missing.
pub fn backbone(path: &Path, b: &Builder) -> Result<Backbone> {
    let w = weights(path)?;
    let mut model = Backbone::new(&b.pp("backbone"), &w.sizes, &Start::OFFICIAL)?;
    fill(model.params_mut(), "", &w, &w.sizes, |name| !name.ends_with("mask_token"))?;
    Ok(model)
}

/// `config.json` of a backbone; LayerScale's first value is that of trained models.
pub fn hf_config(sizes: &Sizes) -> Dinov2Config {
    let registers = sizes.registers > 0;
    let (kind, class) = match registers {
        true => ("dinov2_with_registers", "Dinov2WithRegistersModel"),
        false => ("dinov2", "Dinov2Model"),
    };
    let other = [("architectures", serde_json::json!([class])), ("torch_dtype", "float32".into())];
    Dinov2Config {
        model_type: kind.into(),
        hidden_size: sizes.embed_dim,
        num_hidden_layers: sizes.depth,
        num_attention_heads: sizes.num_heads,
        image_size: sizes.image_size,
        patch_size: sizes.patch_size,
        use_swiglu_ffn: sizes.ffn == FfnKind::SwiGlu,
        num_register_tokens: sizes.registers,
        other: other.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
        ..Dinov2Config::default()
    }
}

/// Writes a finished run: `model.safetensors` and `config.json` for Hugging Face, the official flat file of the backbone
/// `upstream.safetensors`, and the network with its heads, from which training goes on.
///
/// # Errors
/// [`Error::Io`].
pub fn save(folder: &Path, model: &Ssl) -> Result<()> {
    let (network, prefix) = (model.result(), if model.average.is_some() { "average." } else { "teacher." });
    let mut whole = below(&StateDict::from_params(network.params())?, prefix)?;
    let sizes = NetworkSizes::of(network);
    put(&mut whole, &Marked { student: sizes.clone(), teacher: sizes })?;
    let mut flat = below(&whole, "backbone.")?;
    flat.metadata.clear(); // it has no heads, whose sizes would be stated
    checkpoint::safetensors::write(folder.join("upstream.safetensors"), &flat)?;
    dinov2::save(folder, &hf_config(&network.backbone.sizes), &flat)?;
    checkpoint::safetensors::write(folder.join(TEACHER), &whole)
}
