//! The sigmoid loss: on one device, of blocks, and as ranks of a group hold it.

use ocellus::ops::l2_normalize::{self, l2_normalize};
use ocellus::ops::linear;
use ocellus::ops::sigmoid_pair_loss::{Block, sigmoid_pair_loss};
use ocellus::{Device, Grads, Tape, Tensor, Var};

use crate::reader::{Golden, Outcome, Report};

/// `t x · yᵀ + b`, which nothing but a test has.
pub fn logits([t, b]: [f64; 2], x: &Tensor, y: &Tensor) -> Result<Vec<f64>, ocellus::Error> {
    Ok(linear::forward(x, y, None, None)?.to_f64()?.into_iter().map(|s| t * s + b).collect())
}

/// The loss of a block of embeddings, normalised first if they are `raw`, and its gradients by images, texts, log scale and
/// bias.
fn pairs(
    g: &Golden,
    images: &Tensor,
    texts: &Tensor,
    block: Block,
    raw: bool,
) -> Result<(f64, [Tensor; 4]), Box<dyn std::error::Error>> {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let scalar = |name: &str| g.tensor(name, images.device());
    let inputs = [images.clone(), texts.clone(), scalar("param.logit_scale"), scalar("param.logit_bias")];
    let vars: [Var; 4] = inputs.map(|t| tape.leaf(t));
    let rows = |var: &Var| if raw { l2_normalize(&tape, var) } else { Ok(var.clone()) };
    let (loss, _) = sigmoid_pair_loss(&tape, &rows(&vars[0])?, &rows(&vars[1])?, &vars[2], &vars[3], block)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    Ok((value, vars.map(|var| grads.take(&var).expect("a gradient of each input"))))
}

/// All pairs, or a block without positives: through the normalisation of raw embeddings.
pub fn loss(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let images = if g.config["n"].is_null() { "images" } else { "n" };
    let n = g.usize(images);
    let block = Block { col0: if g.bool("negative_only") { n } else { 0 }, ..Block::whole(n) };
    let raw = ["input.image_embeds", "input.text_embeds"].map(|name| g.tensor(name, device));
    let (value, [dx, dy, dlog_scale, dbias]) = pairs(g, &raw[0], &raw[1], block, true)?;
    report.compare(g, "output.loss", &[value]);
    report.tensor(g, "grad_input.image_embeds", &dx);
    report.tensor(g, "grad_input.text_embeds", &dy);
    report.tensor(g, "grad.logit_scale", &dlog_scale);
    report.tensor(g, "grad.logit_bias", &dbias);

    let [(x, _), (y, _)] = [l2_normalize::forward(&raw[0])?, l2_normalize::forward(&raw[1])?];
    report.tensor(g, "output.image_features", &x);
    report.tensor(g, "output.text_features", &y);
    let numbers = [g.get("param.logit_scale").values[0].exp(), g.get("param.logit_bias").values[0]];
    report.compare(g, "output.logits", &logits(numbers, &x, &y)?);
    let (_, [dx, dy, ..]) = pairs(g, &x, &y, block, false)?;
    report.tensor(g, "grad_input.image_features", &dx);
    report.tensor(g, "grad_input.text_features", &dy);
    Ok(())
}

/// A group of ranks, each with its rows of both sides and its own divisor: what one device has, and what each rank holds
/// before anything is averaged. A rank's texts get their gradients from the losses of all ranks.
pub fn ranks(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (ranks, per_rank, d) = (g.usize("D"), g.usize("per_rank"), g.usize("d"));
    let [x, y] = ["input.image_embeds", "input.text_embeds"].map(|name| g.tensor(name, device));
    let (value, [dx, dy, dlog_scale, dbias]) = pairs(g, &x, &y, Block::whole(ranks * per_rank), true)?;
    report.compare(g, "output.loss", &[value]);
    report.tensor(g, "grad_input.image_embeds", &dx);
    report.tensor(g, "grad_input.text_embeds", &dy);
    report.tensor(g, "grad.logit_scale", &dlog_scale);
    report.tensor(g, "grad.logit_bias", &dbias);

    let zeros = || Tensor::zeros([per_rank, d], x.dtype(), device);
    let mut of_texts = (0..ranks).map(|_| zeros()).collect::<Result<Vec<_>, _>>()?;
    for rank in 0..ranks {
        let images = g.tensor(&format!("input.rank{rank}.image_embeds"), device);
        let (mut value, mut numbers, mut of_images) = (0.0, [0.0; 2], zeros()?);
        for (other, of_texts) in of_texts.iter_mut().enumerate() {
            let texts = g.tensor(&format!("input.rank{other}.text_embeds"), device);
            let block = Block { row0: rank * per_rank, col0: other * per_rank, divisor: per_rank };
            let (part, [dx, dy, dlog_scale, dbias]) = pairs(g, &images, &texts, block, true)?;
            value += part;
            numbers = [numbers[0] + dlog_scale.item()?, numbers[1] + dbias.item()?];
            of_images.accumulate(&dx)?;
            of_texts.accumulate(&dy)?;
        }
        report.compare(g, &format!("output.rank{rank}.loss"), &[value]);
        report.tensor(g, &format!("grad_input.rank{rank}.image_embeds"), &of_images);
        report.compare(g, &format!("grad.rank{rank}.logit_scale"), &numbers[..1]);
        report.compare(g, &format!("grad.rank{rank}.logit_bias"), &numbers[1..]);
    }
    for (rank, gradient) in of_texts.iter().enumerate() {
        report.tensor(g, &format!("grad_input.rank{rank}.text_embeds"), gradient);
    }
    Ok(())
}
