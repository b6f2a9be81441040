//! Centring and losses of DINOv2.

use ocellus::ops::Teacher;
use ocellus::ops::gather_rows::gather_rows;
use ocellus::ops::prototype_cross_entropy::{Pairing, forward, prototype_cross_entropy};
use ocellus::ops::sinkhorn_knopp::sinkhorn_knopp;
use ocellus::ops::softmax_centering::Centering;
use ocellus::{DType, Device, Grads, Tape, Tensor};

use crate::reader::{Golden, Outcome, Report};

pub fn sinkhorn(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    for (i, case) in g.config["cases"].as_array().ok_or("no cases")?.iter().enumerate() {
        let temp = case["teacher_temp"].as_f64().ok_or("no teacher_temp")?;
        let iterations = case["n_iterations"].as_u64().ok_or("no n_iterations")?;
        let temp = Tensor::full([1], temp as f32, device)?;
        let logits = g.tensor(&format!("input.logits_{i}"), device);
        let p = sinkhorn_knopp(&logits, &temp, iterations as usize, None)?.probabilities()?.to_f64()?;
        report.compare(g, &format!("output.probs_{i}"), &p);
        let mut mass = vec![0.0; logits.shape()[1]];
        p.chunks(mass.len()).for_each(|row| mass.iter_mut().zip(row).for_each(|(m, p)| *m += p));
        report.compare(g, &format!("output.prototype_mass_{i}"), &mass);
    }
    Ok(())
}

/// Rows spread over processes have the targets they have together.
pub fn sinkhorn_ranks(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (prototypes, ranks) = (g.usize("prototypes"), g.usize("ranks"));
    let temp = Tensor::full([1], g.f64("teacher_temp") as f32, device)?;
    for (input, output) in [("logits", "probs"), ("cls_logits", "cls_probs")] {
        let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| g.floats(&format!("input.{input}_rank{rank}"))).collect();
        let all = parts.concat();
        let all = Tensor::from_slice(&all, [all.len() / prototypes, prototypes], device)?;
        let p = sinkhorn_knopp(&all, &temp, g.usize("n_iterations"), None)?.probabilities()?.to_f64()?;
        let mut rest = p.as_slice();
        for (rank, part) in parts.iter().enumerate() {
            let (own, others) = rest.split_at(part.len());
            report.compare(g, &format!("output.{output}_rank{rank}"), own);
            rest = others;
        }
    }
    Ok(())
}

pub fn softmax_centering(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let temps = g.config["teacher_temps"].as_array().ok_or("no teacher_temps")?;
    for what in ["cls", "patch"] {
        let centre = Tensor::zeros([g.usize("prototypes")], DType::F32, device)?;
        let mut centering = Centering::new(what, &centre, g.f64("center_momentum"))?;
        for (step, temp) in temps.iter().enumerate() {
            let temp = Tensor::full([1], temp.as_f64().ok_or("no number")? as f32, device)?;
            let logits = g.tensor(&format!("input.{what}_logits_{step}"), device);
            let teacher = centering.teacher(&logits, &temp, None, None)?;
            report.tensor(g, &format!("output.{what}_probs_{step}"), &teacher.probabilities()?);
            report.tensor(g, &format!("state.{what}_center_{step}"), &centering.center.master);
        }
        centering.update()?;
        report.tensor(g, &format!("after.{what}_center"), &centering.center.master);
    }
    Ok(())
}

/// A teacher of given probabilities: their logarithms at temperature 1.
fn given(g: &Golden, name: &str, prototypes: usize, device: &Device) -> ocellus::Result<Teacher> {
    let logits: Vec<f32> = g.get(name).values.iter().map(|p| p.ln() as f32).collect();
    let rows = logits.len() / prototypes;
    let zeros = |n: usize| Tensor::zeros([n], DType::F32, device);
    let logits = Tensor::from_slice(&logits, [rows, prototypes], device)?;
    Teacher::new(logits, Tensor::full([1], 1f32, device)?, zeros(prototypes)?, zeros(rows)?)
}

fn pairs(rows: usize, of: impl Fn(usize) -> Vec<usize>, device: &Device) -> ocellus::Result<Tensor> {
    let flat: Vec<i32> = (0..rows).flat_map(|row| of(row).into_iter().map(|i| i as i32)).collect();
    Tensor::from_slice(&flat, [rows, flat.len() / rows.max(1)], device)
}

pub fn dino_loss(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (batch, locals, prototypes) = (g.usize("batch"), g.usize("n_local"), g.usize("prototypes"));
    let temp = g.f64("student_temp");
    let globals = g.get("input.teacher_probs").shape[0];
    let teacher = given(g, "input.teacher_probs", prototypes, device)?;
    // The teacher's rows are swapped: those for the global crop come first.
    let of_local = pairs(locals * batch, |row| (0..globals).map(|t| t * batch + row % batch).collect(), device)?;
    let of_global = pairs(globals * batch, |row| vec![row], device)?;
    let terms = (globals * (globals - 1) + (locals * globals).max(1)) * batch;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let mut losses = vec![];
    let mut leaves = vec![];
    for (name, of) in [("local", &of_local), ("global", &of_global)] {
        let student = tape.leaf(g.tensor(&format!("input.student_{name}"), device));
        let weights = Tensor::full([student.value().shape()[0]], 1f32, device)?;
        let pairing = Pairing::Rows(of);
        losses.push(prototype_cross_entropy(&tape, &student, temp, &teacher, pairing, &weights, terms as f64)?);
        leaves.push(student);
    }
    let [local, global] = [0, 1].map(|i| losses[i].value().item().unwrap());
    report.compare(g, "output.local", &[local]);
    report.compare(g, "output.global", &[global]);
    report.compare(g, "output.loss", &[local + global]);
    report.compare(g, "output.raw_local_sum", &[local * terms as f64 / batch as f64]);
    report.compare(g, "output.raw_global", &[global * terms as f64 / (globals * batch) as f64]);
    let loss = ocellus::ops::add::add(&tape, &losses[0], &losses[1])?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    for (name, leaf) in ["local", "global"].iter().zip(&leaves) {
        let ds = grads.take(leaf).ok_or("no gradient")?;
        report.tensor(g, &format!("grad_input.student_{name}"), &ds);
    }
    Ok(())
}

/// Both forms: the masked rows gathered, and all rows, those without a mask with weight 0.
pub fn ibot_loss(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (prototypes, temp) = (g.usize("prototypes"), g.f64("student_temp"));
    let images = g.config["counts"].as_array().ok_or("no counts")?.len();
    let teacher = given(g, "input.teacher_all_probs", prototypes, device)?;
    let at = g.ints("input.mask_indices");
    let weights = g.floats("input.masks_weight");
    let of = pairs(at.len(), |row| vec![at[row] as usize], device)?;

    let (tape, mut grads) = (Tape::new(), Grads::new());
    let all = tape.leaf(g.tensor("input.student_all", device));
    let masked = gather_rows(&tape, &all, &Tensor::from_slice(&at, [at.len()], device)?)?;
    let row_weights = Tensor::from_slice(&weights, [weights.len()], device)?;
    let pairing = Pairing::Rows(&of);
    let (_, stats) = forward(masked.value(), temp, &teacher, pairing, &row_weights, images as f64)?;
    let ce: Vec<f64> = stats.to_f64()?.chunks(4).map(|row| row[3]).collect();
    report.compare(g, "output.per_token_ce", &ce);
    let loss = prototype_cross_entropy(&tape, &masked, temp, &teacher, pairing, &row_weights, images as f64)?;
    report.tensor(g, "output.loss", loss.value());
    report.tensor(g, "output.loss_default_weights", loss.value());
    drop(masked);
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    let gathered = grads.take(&all).ok_or("no gradient")?;
    report.tensor(g, "grad_input.student_all", &gathered);

    let mut dense = vec![0f32; g.get("input.masks").values.len()];
    at.iter().zip(&weights).for_each(|(&at, &w)| dense[at as usize] = w);
    let dense = Tensor::from_slice(&dense, [dense.len()], device)?;
    let tape = Tape::new();
    let all = tape.leaf(g.tensor("input.student_all", device));
    let loss = prototype_cross_entropy(&tape, &all, temp, &teacher, Pairing::Same, &dense, images as f64)?;
    report.tensor(g, "output.loss_dense_form", loss.value());
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    report.tensor(g, "grad_input.student_all", &grads.take(&all).ok_or("no gradient")?);
    for name in ["input.masks", "input.masks_weight"] {
        report.note(name);
    }
    Ok(())
}
