//! Golden files and the comparison rule: max|a - b| / max(max|truth|, 1e-3 of the largest truth of the same category).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ocellus::checkpoint::StateDict;
use ocellus::nn::Module;
use ocellus::{Device, Grads, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Why a golden could not be run.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A tensor of a file, widened to f64 (exact for everything stored).
#[derive(Clone)]
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
    pub integer: bool,
}

/// One file.
pub struct Golden {
    pub path: PathBuf,
    pub kind: String,
    pub config: Value,
    pub metadata: HashMap<String, Value>,
    pub tensors: BTreeMap<String, Stored>,
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>, String> {
    macro_rules! read {
        ($t:ty) => {
            bytes.chunks_exact(size_of::<$t>()).map(|b| <$t>::from_le_bytes(b.try_into().unwrap()) as f64).collect()
        };
    }
    Ok(match dtype {
        Dtype::F32 => read!(f32),
        Dtype::F64 => read!(f64),
        Dtype::I64 => read!(i64),
        Dtype::I32 => read!(i32),
        Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| f64::from(b)).collect(),
        other => return Err(format!("dtype {other:?}")),
    })
}

impl Golden {
    pub fn read(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let texts = header.metadata().clone().unwrap_or_default();
        let metadata: HashMap<String, Value> = texts
            .iter()
            .map(|(k, v)| (k.clone(), serde_json::from_str(v).unwrap_or(Value::String(v.clone()))))
            .collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let integer = !matches!(view.dtype(), Dtype::F32 | Dtype::F64);
            let values = widen(view.dtype(), view.data()).map_err(|e| format!("{name}: {e}"))?;
            tensors.insert(name, Stored { shape: view.shape().to_vec(), values, integer });
        }
        let kind = texts.get("kind").ok_or("no metadata key `kind`")?.clone();
        let config = metadata.get("config").cloned().unwrap_or(Value::Null);
        Ok(Self { path: path.to_path_buf(), kind, config, metadata, tensors })
    }

    pub fn usize(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap_or_else(|| panic!("config `{key}` is {}", self.config[key])) as usize
    }

    pub fn f64(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("config `{key}` is {}", self.config[key]))
    }

    pub fn bool(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or_else(|| panic!("config `{key}` is {}", self.config[key]))
    }

    pub fn get(&self, name: &str) -> &Stored {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    /// As an f32 tensor on a device.
    pub fn tensor(&self, name: &str, device: &Device) -> Tensor {
        let t = self.get(name);
        let values: Vec<f32> = t.values.iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&values, t.shape.clone(), device).unwrap()
    }

    /// As f32 values.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name).values.iter().map(|&x| x as f32).collect()
    }

    /// As indices.
    pub fn ints(&self, name: &str) -> Vec<i32> {
        self.get(name).values.iter().map(|&x| x as i32).collect()
    }

    /// As an i32 tensor on a device.
    pub fn indices(&self, name: &str, device: &Device) -> Tensor {
        Tensor::from_slice(&self.ints(name), self.get(name).shape.clone(), device).unwrap()
    }

    /// Tensors `<prefix>.<name>` as a state dict of `<name>`.
    pub fn dict(&self, prefix: &str) -> StateDict {
        let mut dict = StateDict::default();
        for name in self.tensors.keys() {
            if let Some(rest) = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('.')) {
                dict.insert(rest, self.tensor(name, &Device::Cpu)).unwrap();
            }
        }
        dict
    }

    fn category(name: &str) -> &str {
        name.split('.').next().unwrap_or(name)
    }

    fn largest(&self, category: &str) -> f64 {
        let same = self.tensors.iter().filter(|(n, t)| Self::category(n) == category && !t.integer);
        same.flat_map(|(_, t)| &t.values).fold(0.0, |m, x| x.abs().max(m))
    }

    /// What rounding may leave of a tensor whose true value is zero: the file's bound, which is of numbers of size 1, for
    /// numbers as large as those of its category.
    fn near_zero(&self, name: &str) -> Option<f64> {
        let listed = self.metadata.get("near_zero")?.as_array()?.iter().any(|n| n == name);
        let bound = self.metadata.get("near_zero_abs").filter(|_| listed)?.as_f64()?;
        Some(bound * self.largest(Self::category(name)).max(1.0))
    }

    /// The file's own tolerance for a tensor: by full name, else by category; or one number for all but those of
    /// `tolerance_of`, where those after optimizer steps may have their own.
    fn tolerance(&self, name: &str) -> Option<f64> {
        let (table, category) = (self.metadata.get("tolerance")?, Self::category(name));
        let of = |table: &Value| table.get(name).or_else(|| table.get(category))?.as_f64();
        let after = self.metadata.get("tolerance_after").filter(|_| category == "after");
        of(table)
            .or_else(|| self.metadata.get("tolerance_of").and_then(of))
            .or_else(|| after?.as_f64())
            .or_else(|| table.as_f64())
            .or_else(|| (table.as_str() == Some("exact")).then_some(0.0))
    }
}

/// What was compared so far.
#[derive(Default)]
pub struct Report {
    seen: BTreeSet<String>,
    worst: Option<(f64, f64)>, // error, tolerance
    failures: Vec<String>,
    hints: Vec<String>,
}

impl Report {
    /// Compares values with the file's tensor `name`. Integers must be equal; those that are 8-bit pixels (`*_u8`) may
    /// differ by one. What a file does not pin is not compared; [`finish`](Self::finish) sees to it that all it pins is.
    pub fn compare(&mut self, golden: &Golden, name: &str, values: &[f64]) {
        let Some(stored) = golden.tensors.get(name) else { return };
        self.note(name);
        if values.len() != stored.values.len() {
            self.failures.push(format!("{name}: {} values, expected {:?}", values.len(), stored.shape));
            return;
        }
        if stored.integer {
            let allowed = if name.contains("u8") { 1.0 } else { 0.0 };
            let diff = largest_difference(&stored.values, values);
            if diff > allowed {
                self.failures.push(format!("{name}: off by {diff}, allowed {allowed}"));
            }
            return;
        }
        if let Some(allowed) = golden.near_zero(name) {
            let largest = largest_difference(&vec![0.0; values.len()], values);
            if largest > allowed {
                self.failures.push(format!("{name}: {largest:.1e}, expected 0 to {allowed:.1e}"));
            }
            return;
        }
        self.judge(golden, name, &stored.values, values);
    }

    /// The metric on one tensor or a part of it; `name` decides category and tolerance.
    fn judge(&mut self, golden: &Golden, name: &str, truth: &[f64], values: &[f64]) {
        let Some(tolerance) = golden.tolerance(name) else {
            self.failures.push(format!("{name}: the file has no tolerance for it"));
            return;
        };
        let largest = truth.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let scale = largest.max(1e-3 * golden.largest(Golden::category(name)));
        let diff = largest_difference(truth, values);
        let error = if diff == 0.0 { 0.0 } else { diff / scale };
        if error.is_nan() || error > tolerance {
            self.failures.push(format!("{name}: error {error:.2e} over {tolerance:.1e}"));
        }
        // The line shows the tensor nearest to its limit.
        let share = |e: f64, t: f64| if t == 0.0 { e } else { e / t };
        if self.worst.as_ref().is_none_or(|(e, t)| share(error, tolerance) > share(*e, *t)) {
            self.worst = Some((error, tolerance));
        }
    }

    /// Compares a tensor.
    pub fn tensor(&mut self, golden: &Golden, name: &str, t: &Tensor) {
        self.compare(golden, name, &t.to_f64().unwrap());
    }

    /// Marks a tensor as looked at by a rule of its own.
    pub fn note(&mut self, name: &str) {
        self.seen.insert(name.to_string());
    }

    pub fn fail(&mut self, text: String) {
        self.failures.push(text);
    }

    /// Something of the file that was not understood: part of the message, should anything differ.
    pub fn hint(&mut self, text: String) {
        self.hints.push(text);
    }

    /// Compares `<prefix>.<parameter>` for each tensor of that prefix with upstream-named values `got`. `spelled` maps the
    /// file's tensors to upstream names (identity, or the Hugging Face map). The key third of a qkv bias has a true
    /// gradient of zero: in gradients it must be tiny, after optimizer steps it is left out.
    pub fn params(&mut self, golden: &Golden, prefix: &str, mut got: impl FnMut(&str) -> Option<Vec<f64>>) {
        let names: Vec<String> =
            golden.tensors.keys().filter(|n| n.starts_with(&format!("{prefix}."))).cloned().collect();
        let largest = golden.largest(Golden::category(prefix));
        for name in names {
            let param = &name[prefix.len() + 1..];
            let Some(values) = got(param) else {
                self.note(&name);
                self.failures.push(format!("{name}: nothing to compare it with"));
                continue;
            };
            self.note(&name);
            self.param(golden, prefix, &name, &golden.get(&name).values.clone(), &values, largest);
        }
    }

    /// [`params`](Self::params) for a file under the names of Hugging Face, whatever their spelling: the file's tensors
    /// are fused to upstream's, each third of a qkv is judged as the separate tensor it is in the file.
    pub fn params_hf(
        &mut self,
        golden: &Golden,
        prefix: &str,
        mut got: impl FnMut(&str) -> Option<Vec<f64>>,
    ) -> Outcome {
        let dict = golden.dict(prefix);
        if dict.is_empty() {
            return Ok(());
        }
        golden.tensors.keys().filter(|n| n.starts_with(&format!("{prefix}."))).for_each(|n| self.note(n));
        let largest = golden.largest(Golden::category(prefix));
        for (name, truth) in ocellus::checkpoint::to_upstream(dict)?.iter() {
            let (truth, label) = (truth.to_f64()?, format!("{prefix}.{name}"));
            match got(name) {
                Some(values) => self.param(golden, prefix, &label, &truth, &values, largest),
                None => self.failures.push(format!("{label}: nothing to compare it with")),
            }
        }
        Ok(())
    }

    fn param(&mut self, golden: &Golden, prefix: &str, name: &str, truth: &[f64], values: &[f64], largest: f64) {
        if values.len() != truth.len() {
            self.failures.push(format!("{name}: {} values, expected {}", values.len(), truth.len()));
            return;
        }
        // A key's bias moves all scores of a query alike: its true gradient is zero, unless keys are rotated after it.
        let tiny = |v: &[f64], share: f64| largest_difference(&vec![0.0; v.len()], v) <= share * largest;
        if prefix == "grad" && name.ends_with("k_proj.bias") && tiny(truth, 1e-9) {
            if !tiny(values, 1e-5) {
                self.failures.push(format!("{name}: a key bias has a gradient, expected 0"));
            }
            return;
        }
        if !name.contains("attn.qkv.") {
            return self.judge(golden, name, truth, values);
        }
        let d = values.len() / 3;
        for part in 0..3 {
            let range = part * d..(part + 1) * d;
            if part != 1 || !name.ends_with("bias") {
                self.judge(golden, name, &truth[range.clone()], &values[range]);
            } else if prefix == "grad" {
                let key = largest_difference(&vec![0.0; d], &values[range]);
                if key > 1e-5 * largest {
                    self.failures.push(format!("{name}: the key bias has a gradient of {key:.1e}, expected 0"));
                }
            }
        }
    }

    /// Worst error and its tolerance; an error if a tensor differs or was not compared at all, or if there is none.
    pub fn finish(self, golden: &Golden) -> Result<(f64, f64), String> {
        // A file of weights alone pins those.
        let weights = golden.tensors.keys().all(|n| Golden::category(n) == "param");
        let judged = |n: &&str| weights || ["output", "grad", "grad_input", "after"].contains(&Golden::category(n));
        let pinned: Vec<&str> = golden.tensors.keys().map(String::as_str).filter(judged).collect();
        if pinned.is_empty() {
            return Err("the file has no output, grad, grad_input or after tensor: nothing to compare".into());
        }
        let skipped: Vec<&str> = pinned.into_iter().filter(|n| !self.seen.contains(*n)).collect();
        let hints = match self.hints.is_empty() {
            true => String::new(),
            false => format!("; not understood: {}", self.hints.join(", ")),
        };
        if let Some(first) = self.failures.first() {
            return Err(format!("{first} ({} in all){hints}", self.failures.len()));
        }
        if !skipped.is_empty() {
            return Err(format!("not compared: {}{hints}", skipped.join(", ")));
        }
        Ok(self.worst.unwrap_or((0.0, 0.0)))
    }
}

fn largest_difference(truth: &[f64], values: &[f64]) -> f64 {
    truth.iter().zip(values).fold(0.0, |m, (a, b)| if b.is_nan() { f64::INFINITY } else { m.max((a - b).abs()) })
}

/// Gradient of a model's parameter by name, for [`Report::params`].
pub fn gradient<'a>(model: &'a dyn Module, grads: &'a Grads) -> impl FnMut(&str) -> Option<Vec<f64>> + 'a {
    let params = model.params();
    move |name| {
        let p = params.iter().find(|p| p.name() == name)?;
        grads.get(p)?.to_f64().ok()
    }
}

/// Value of a model's parameter by name.
pub fn value<'a>(model: &'a dyn Module) -> impl FnMut(&str) -> Option<Vec<f64>> + 'a {
    let params = model.params();
    move |name| params.iter().find(|p| p.name() == name)?.master.to_f64().ok()
}

/// Puts the file's `param.*` (already under upstream names) into a model; every parameter must be there.
pub fn load(model: &mut dyn Module, dict: &StateDict) -> Outcome {
    for p in model.params_mut() {
        let name = p.name().to_string();
        p.set(dict.get(&name).ok_or_else(|| format!("no param.{name}"))?)?;
    }
    Ok(())
}
