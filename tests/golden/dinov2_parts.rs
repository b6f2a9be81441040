//! Parts of DINOv2: the head with its normalised last layer, and the KoLeo regulariser.

use ocellus::ops::gelu::{Form, gelu};
use ocellus::ops::koleo;
use ocellus::ops::linear::linear;
use ocellus::ops::weight_norm::weight_norm;
use ocellus::{DType, Device, Grads, Param, Tape, Tensor, Var};

use crate::reader::{Golden, Outcome, Report};

pub fn koleo(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut total = 0.0;
    for i in 0.. {
        let name = format!("input.x_{i}");
        if !g.tensors.contains_key(&name) {
            break;
        }
        let x = g.tensor(&name, device);
        let (loss, saved) = koleo::forward(&x, 1)?;
        let neighbours: Vec<f64> = saved.neighbours.to_vec::<i32>()?.into_iter().map(f64::from).collect();
        report.compare(g, &format!("output.nn_index_{i}"), &neighbours);
        report.tensor(g, &format!("output.koleo_{i}"), &loss);
        total += loss.item()?;
        let one = Tensor::from_slice(&[1.0f32], [1], device)?;
        report.tensor(g, &format!("grad_input.x_{i}"), &koleo::backward(&one, &x, &saved, 1)?);
    }
    report.compare(g, "output.loss", &[total]);
    Ok(())
}

/// Linear layers with GELU between them, rows of length 1, and prototypes of given lengths.
pub fn dino_head(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let names: Vec<String> = g.tensors.keys().filter_map(|n| n.strip_prefix("param.").map(String::from)).collect();
    let param = |n: &String| Param::new(n.as_str(), g.tensor(&format!("param.{n}"), device), DType::F32);
    let params = names.iter().map(param).collect::<ocellus::Result<Vec<Param>>>()?;
    let tape = Tape::new();
    let var = |name: &str| params.iter().find(|p| p.name() == name).map(|p| tape.param(p));
    let x = tape.leaf(g.tensor("input.x", device));
    let layers = g.usize("nlayers");
    let mut y: Var = x.clone();
    for i in 0..layers {
        let at = if layers == 1 { "mlp".to_string() } else { format!("mlp.{}", 2 * i) };
        let weight = var(&format!("{at}.weight")).ok_or("no weight")?;
        y = linear(&tape, &y, &weight, var(&format!("{at}.bias")).as_ref(), None)?;
        if i + 1 < layers {
            y = gelu(&tape, &y, Form::Erf)?;
        }
    }
    let unit = weight_norm(&tape, &y, None)?;
    let prototypes =
        weight_norm(&tape, &var("last_layer.weight_v").ok_or("no directions")?, var("last_layer.weight_g").as_ref())?;
    let logits = linear(&tape, &unit, &prototypes, None, None)?;
    report.tensor(g, "output.logits", logits.value());
    let cotangent = g.tensor("input.cotangent", device);
    let loss = logits.value().to_f64()?.iter().zip(cotangent.to_f64()?).map(|(y, c)| y * c).sum();
    report.compare(g, "output.loss", &[loss]);
    let mut grads = Grads::new();
    tape.backward(&logits, cotangent, &mut grads)?;
    report.tensor(g, "grad_input.x", &grads.take(&x).ok_or("no gradient of the input")?);
    report.params(g, "grad", |name| params.iter().find(|p| p.name() == name).and_then(|p| grads.get(p)?.to_f64().ok()));
    Ok(())
}
