//! The softmax loss: on one device, and as ranks of a group hold it.

use ocellus::ops::l2_normalize::{self, l2_normalize};
use ocellus::ops::linear;
use ocellus::ops::softmax_pair_loss::{Block, Sides, softmax_pair_loss};
use ocellus::{Device, Grads, Tape, Tensor, Var};

use crate::reader::{Golden, Outcome, Report};

/// A loss and its gradients by `x`, `y` and the log scale.
struct Answer {
    loss: f64,
    dx: Tensor,
    dy: Tensor,
    dlog_scale: f64,
}

/// The loss of embeddings, normalised first if they are `raw`.
fn pairs(
    g: &Golden,
    x: &Tensor,
    y: &Tensor,
    block: Block,
    sides: Sides,
    raw: bool,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let vars: [Var; 3] = [x.clone(), y.clone(), g.tensor("param.logit_scale", x.device())].map(|t| tape.leaf(t));
    let rows = |var: &Var| if raw { l2_normalize(&tape, var) } else { Ok(var.clone()) };
    let (loss, _) = softmax_pair_loss(&tape, &rows(&vars[0])?, &rows(&vars[1])?, &vars[2], block, sides)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    let [dx, dy, dlog_scale] = vars.map(|var| grads.take(&var).expect("a gradient of each input"));
    Ok(Answer { loss: value, dx, dy, dlog_scale: dlog_scale.item()? })
}

/// Both halves on one device.
pub fn loss(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let n = g.usize("n");
    let raw = ["input.image_embeds", "input.text_embeds"].map(|name| g.tensor(name, device));
    let whole = pairs(g, &raw[0], &raw[1], Block::whole(n), Sides::Both, true)?;
    report.compare(g, "output.loss", &[whole.loss]);
    report.tensor(g, "grad_input.image_embeds", &whole.dx);
    report.tensor(g, "grad_input.text_embeds", &whole.dy);
    report.compare(g, "grad.logit_scale", &[whole.dlog_scale]);

    let [(x, _), (y, _)] = [l2_normalize::forward(&raw[0])?, l2_normalize::forward(&raw[1])?];
    report.tensor(g, "output.image_features", &x);
    report.tensor(g, "output.text_features", &y);
    let t = g.get("param.logit_scale").values[0].exp();
    for (name, x, y) in [("output.logits_per_image", &x, &y), ("output.logits_per_text", &y, &x)] {
        let cosines = linear::forward(x, y, None, None)?.to_f64()?;
        report.compare(g, name, &cosines.into_iter().map(|s| t * s).collect::<Vec<_>>());
    }
    let normed = pairs(g, &x, &y, Block::whole(n), Sides::Both, false)?;
    report.tensor(g, "grad_input.image_features", &normed.dx);
    report.tensor(g, "grad_input.text_features", &normed.dy);
    Ok(())
}

/// A group of ranks, each with its rows of both sides: what one device has, and what each rank holds before anything is
/// averaged, in the four ways in which the others' rows can be had. A loss is local (own rows against all) or global (all
/// against all, computed by everybody), and the gathered rows lead gradients back to their ranks or are constants.
pub fn ranks(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (ranks, per_rank) = (g.usize("D"), g.usize("per_rank"));
    let n = ranks * per_rank;
    let sides = ["image_embeds", "text_embeds"];
    let [x, y] = sides.map(|side| g.tensor(&format!("input.{side}"), device));
    let whole = pairs(g, &x, &y, Block::whole(n), Sides::Both, true)?;
    report.compare(g, "output.loss", &[whole.loss]);
    report.tensor(g, "grad_input.image_embeds", &whole.dx);
    report.tensor(g, "grad_input.text_embeds", &whole.dy);
    report.compare(g, "grad.logit_scale", &[whole.dlog_scale]);
    let whole_by_side = [whole.dx.to_f64()?, whole.dy.to_f64()?];

    // Of each rank's local loss, by its rows of a side and by all rows of it.
    let mut own = vec![];
    let mut gathered = [vec![0.0; x.numel()], vec![0.0; y.numel()]];
    let mut losses = vec![];
    for rank in 0..ranks {
        let block = Block { row0: rank * per_rank, col0: 0, divisor: per_rank };
        let [images, texts] = sides.map(|side| g.tensor(&format!("input.rank{rank}.{side}"), device));
        let of_images = pairs(g, &images, &y, block, Sides::Rows, true)?;
        let of_texts = pairs(g, &texts, &x, block, Sides::Rows, true)?;
        losses.push([of_images.loss + of_texts.loss, of_images.dlog_scale + of_texts.dlog_scale].map(|v| v / 2.0));
        for (sum, gradient) in gathered.iter_mut().zip([&of_texts.dy, &of_images.dy]) {
            sum.iter_mut().zip(gradient.to_f64()?).for_each(|(sum, v)| *sum += v / 2.0);
        }
        let half = |t: &Tensor| t.to_f64().map(|v| v.into_iter().map(|v| v / 2.0).collect::<Vec<_>>());
        own.push([half(&of_images.dx)?, half(&of_texts.dx)?]);
    }
    let part = |values: &[f64], rank: usize| {
        let rows = values.len() / ranks;
        values[rank * rows..(rank + 1) * rows].to_vec()
    };
    for rank in 0..ranks {
        let [loss, dlog_scale] = losses[rank];
        let names = |variant: &str| format!("{variant}rank{rank}");
        for (side, name) in sides.iter().enumerate() {
            let (mine, all) = (&own[rank][side], part(&gathered[side], rank));
            let one_device = part(&whole_by_side[side], rank);
            let sum: Vec<f64> = mine.iter().zip(&all).map(|(a, b)| a + b).collect();
            let each: Vec<f64> = one_device.iter().map(|v| v * ranks as f64).collect();
            for (variant, gradient) in
                [("", &sum), ("local_nograd.", mine), ("global_gg.", &each), ("global_nograd.", &one_device)]
            {
                report.compare(g, &format!("grad_input.{}.{name}", names(variant)), gradient);
            }
        }
        for (variant, loss, dlog_scale) in [
            ("", loss, dlog_scale),
            ("local_nograd.", loss, dlog_scale),
            ("global_gg.", whole.loss, whole.dlog_scale),
            ("global_nograd.", whole.loss, whole.dlog_scale),
        ] {
            report.compare(g, &format!("output.{}.loss", names(variant)), &[loss]);
            report.compare(g, &format!("grad.{}.logit_scale", names(variant)), &[dlog_scale]);
        }
    }
    Ok(())
}
