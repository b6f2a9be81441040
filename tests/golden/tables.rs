//! Masks, patches, position tables, schedules.

use ocellus::data::masks::random_masking;
use ocellus::nn::pos_embed;
use ocellus::ops::{gather_rows::gather_rows, masked_mse, patchify as patches};
use ocellus::optim::schedule::cosine_with_warmup;
use ocellus::{Device, Grads, Tape, Tensor};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report};

fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("config `{key}` is {}", v[key]))
}

fn wide<T: Copy + Into<f64>>(v: &[T]) -> Vec<f64> {
    v.iter().map(|&x| x.into()).collect()
}

pub fn masking(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    for (i, case) in g.config["cases"].as_array().ok_or("no cases")?.iter().enumerate() {
        let [batch, len, dim] = ["batch", "len", "dim"].map(|k| number(case, k) as usize);
        let masking = random_masking(&g.floats(&format!("input.{i}.noise")), batch, len, number(case, "mask_ratio"))?;
        report.compare(g, &format!("output.{i}.ids_keep"), &wide(&masking.ids_keep));
        report.compare(g, &format!("output.{i}.ids_restore"), &wide(&masking.ids_restore));
        report.compare(g, &format!("output.{i}.mask"), &wide(&masking.mask));
        let rows: Vec<i32> =
            masking.ids_keep.iter().enumerate().map(|(j, id)| (j / masking.keep * len) as i32 + id).collect();
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = tape.leaf(g.tensor(&format!("input.{i}.x"), device).reshape([batch * len, dim])?);
        let y = gather_rows(&tape, &x, &Tensor::from_slice(&rows, [rows.len()], device)?)?;
        report.tensor(g, &format!("output.{i}.x_masked"), y.value());
        let seed = g.tensor(&format!("input.{i}.probe"), device).reshape(y.value().shape().clone())?;
        tape.backward(&y, seed, &mut grads)?;
        report.tensor(g, &format!("grad_input.{i}.x"), &grads.take(&x).ok_or("no gradient")?);
    }
    Ok(())
}

pub fn patchify(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let patch = g.usize("patch_size");
    let images = g.tensor("input.imgs", device);
    report.tensor(g, "output.patches", &patches::patchify(&images, patch)?);
    let [_, _, h, w] = images.dims("patchify", "imgs")?;
    let rows = g.tensor("input.patches", device);
    report.tensor(g, "output.imgs", &patches::unpatchify(&rows, patch, (h / patch, w / patch))?);
    let flat = g.tensor("input.imgs_flat", device);
    report.tensor(g, "output.target_raw", &masked_mse::target(&flat, None, patch, false)?);
    report.tensor(g, "output.target_norm", &masked_mse::target(&flat, None, patch, true)?);
    Ok(())
}

/// Numbers in a tensor name: `d24_h3_w5_nocls` has d 24, h 3, w 5.
fn field(name: &str, letter: char) -> Option<usize> {
    name.split(['_', '.']).find_map(|part| part.strip_prefix(letter)?.parse().ok())
}

pub fn pos_embed(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    for name in g.tensors.keys().filter(|n| n.starts_with("output.")) {
        let dim = field(name, 'd').ok_or("no width in the name")?;
        let (h, w) = match field(name, 'g') {
            Some(side) => (side, side),
            None => (field(name, 'h').ok_or("no h")?, field(name, 'w').ok_or("no w")?),
        };
        report.compare(g, name, &wide(&pos_embed::sincos_2d(dim, h, w, !name.ends_with("nocls"))?));
    }
    Ok(())
}

pub fn pos_embed_interpolate(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    for case in g.config["cases"].as_array().ok_or("no cases")? {
        let [dim, old, new] = ["dim", "old", "new"].map(|k| number(case, k) as usize);
        let name = format!("d{dim}_g{old}_to_{new}");
        let table = g.tensor(&format!("input.{name}"), device);
        let resized = pos_embed::resize(&table, (old, old), (new, new))?;
        report.tensor(g, &format!("output.{name}"), &resized);
    }
    Ok(())
}

pub fn lr_schedule(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    for (i, case) in g.config["cases"].as_array().ok_or("no cases")?.iter().enumerate() {
        let [lr, min_lr, warmup, epochs] = ["lr", "min_lr", "warmup_epochs", "epochs"].map(|k| number(case, k));
        let [iters, accum] = ["iters", "accum_iter"].map(|k| number(case, k) as usize);
        let rates: Vec<f64> = (0..epochs as usize * iters)
            .map(|at| {
                let inside = at % iters / accum * accum; // set before micro-iterations divisible by accum_iter
                let epoch = (at / iters) as f64 + inside as f64 / iters as f64;
                cosine_with_warmup(epoch, lr, min_lr, warmup, epochs)
            })
            .collect();
        report.compare(g, &format!("output.{i}.lr"), &rates);
        // The group's factor is in no config: the notes say it in words.
        let scaled: Vec<f64> = rates.iter().map(|r| r * 0.25).collect();
        report.compare(g, &format!("output.{i}.lr_scaled_group"), &scaled);
    }
    Ok(())
}
