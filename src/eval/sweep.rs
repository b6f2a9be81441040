//! The linear probe of DINOv2: many linear layers on frozen features, trained at once from one forward pass.
//!
//! A head sees the class tokens of the last n blocks, oldest first, and if it pools also the mean patch token of the last
//! block; there is one head for each n, with and without pooling, and learning rate. All are trained by gradient descent with
//! momentum 0.9 along a cosine to 0 and the best on the test set is reported, as upstream does. Source: dinov2 at b8931f7,
//! `eval/linear.py`.
//!
//! Heads that see the same feature are one linear layer of `heads x classes` outputs. The rows of each head enter the loss
//! with the ratio of its learning rate to the largest: momentum is linear in the gradient, so this is its learning rate.

use std::ops::Range;
use std::sync::Arc;

use super::features::collect;
use super::rows::Order;
use crate::data::augment::CropRange;
use crate::data::loader::{Options, Unreadable};
use crate::data::{Folder, Loader, Source, transforms};
use crate::nn::{Builder, Init, Linear, Module};
use crate::ops::cross_entropy::{Targets, cross_entropy};
use crate::ops::{gather_rows, lars, mean_pool};
use crate::optim::schedule::{Cosine, scaled_lr};
use crate::optim::{Lars, Optimizer as _, Rates, Rules};
use crate::recipes::Encoder;
use crate::recipes::mae::finetune::classes_of;
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

/// Learning rates per 256 images of the official sweep.
pub const RATES: [f64; 13] = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1];

/// Updates of the official sweep.
pub const UPDATES: u64 = 12_500;

/// Images per update where no number is given.
const BATCH: usize = 128;

/// Images in a forward pass where nothing is trained.
const IMAGES: usize = 64;

/// Test images in a product.
const BLOCK: usize = 256;

/// Which heads are trained and how.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Learning rates per 256 images.
    pub rates: Vec<f64>,
    /// Numbers of last blocks whose class tokens a head sees.
    pub blocks: Vec<usize>,
    /// Passes over the training images; `None` for [`UPDATES`] updates.
    pub epochs: Option<u64>,
    /// Images per update; `None` for 128, at most all.
    pub batch: Option<usize>,
    /// Random crops and mirrors; without, features are computed once and kept.
    pub augment: bool,
    /// Decides order, crops and initial weights.
    pub seed: u64,
    /// Whether the first unreadable image ends it.
    pub strict: bool,
}

/// A head after training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trained {
    /// What it sees.
    pub feature: Feature,
    /// Its learning rate per 256 images.
    pub rate: f64,
    /// Share of the test images whose largest logit is that of the label; of equal ones the first counts.
    pub top1: f64,
    /// Share whose label is among the five largest.
    pub top5: f64,
}

/// What a head sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Last blocks whose class tokens it sees, oldest first.
    pub blocks: usize,
    /// Whether it also sees the mean patch token of the last.
    pub average_pool: bool,
}

impl Feature {
    /// Where it stands in the [`summary`] of `layers` blocks, `dim` values wide.
    pub fn columns(self, layers: usize, dim: usize) -> Range<usize> {
        layers.saturating_sub(self.blocks) * dim..(layers + usize::from(self.average_pool)) * dim
    }
}

/// All that heads see of images whose tokens after the last blocks are `layers`, each `[B, 1 + L, dim]`, oldest first: the
/// class tokens, then the mean patch token of the last block. `[B, (layers + 1) dim]`, f32 on the CPU.
///
/// # Errors
/// No layers, or other shapes.
pub fn summary(layers: &[Tensor]) -> Result<Tensor> {
    let op = "summary";
    let Some(last) = layers.last() else { return Err(Error::value(op, "layers", 0, "at least one")) };
    let [batch, tokens, dim] = last.dims(op, "layers")?;
    let device = last.device();
    let of_class: Vec<i32> = (0..batch).map(|i| (i * tokens) as i32).collect();
    let of_class = Tensor::from_slice(&of_class, [batch], device)?;
    let mut parts = Vec::with_capacity(layers.len() + 1);
    for layer in layers {
        let rows = layer.reshape([batch * tokens, dim])?;
        parts.push(gather_rows::forward(&rows, &of_class)?.to_vec::<f32>()?);
    }
    parts.push(mean_pool::forward(&last.reshape([batch * tokens, dim])?, tokens, 1)?.to_vec::<f32>()?);
    let row = |i: usize| parts.iter().flat_map(move |part| &part[i * dim..(i + 1) * dim]).copied();
    let values: Vec<f32> = (0..batch).flat_map(row).collect();
    Tensor::from_slice(&values, [batch, parts.len() * dim], &Device::Cpu)
}

/// The heads of one feature.
struct Heads {
    feature: Feature,
    /// `[heads classes, width]`.
    linear: Linear,
}
crate::module!(Heads { linear });

impl Heads {
    fn new(b: &Builder, feature: Feature, width: usize, outputs: usize) -> Result<Self> {
        let name = format!("n{}_avgpool{}", feature.blocks, u8::from(feature.average_pool));
        let linear = Linear::with(&b.pp(name), width, outputs, Init::Normal(0.01), Init::Zeros)?;
        Ok(Self { feature, linear })
    }
}

/// Rows of summaries, what they are made of, and where heads compute.
struct Layout<'a> {
    layers: usize,
    dim: usize,
    classes: usize,
    device: &'a Device,
}

impl Layout<'_> {
    fn row(&self) -> usize {
        (self.layers + 1) * self.dim
    }

    /// The columns that `feature` has of summaries `[B, row]`.
    fn input(&self, feature: Feature, summaries: &[f32]) -> Result<Tensor> {
        let columns = feature.columns(self.layers, self.dim);
        let values: Vec<f32> =
            summaries.chunks_exact(self.row()).flat_map(|row| &row[columns.clone()]).copied().collect();
        Tensor::from_slice(&values, [summaries.len() / self.row(), columns.len()], self.device)
    }
}

impl Sweep {
    /// Refuses values that no sweep can use on an encoder of `depth` blocks.
    pub fn check(&self, depth: usize) -> Result<()> {
        let numbers = |of: &[usize]| of.iter().find(|n| !(1..=depth).contains(*n)).copied();
        if let Some(blocks) = numbers(&self.blocks) {
            return Err(Error::config("blocks", blocks, format!("1 to the {depth} blocks of the encoder")));
        }
        if let Some(rate) = self.rates.iter().find(|rate| !(**rate > 0.0 && **rate <= 1e3)) {
            return Err(Error::config("rates", rate, "numbers above 0, at most 1000"));
        }
        for (key, empty) in [("blocks", self.blocks.is_empty()), ("rates", self.rates.is_empty())] {
            if empty {
                return Err(Error::config(key, "no number", "at least one"));
            }
        }
        for (key, given) in [("epochs", self.epochs.unwrap_or(1)), ("batch_size", self.batch.unwrap_or(BATCH) as u64)] {
            if given == 0 {
                return Err(Error::config(key, 0, "at least 1"));
            }
        }
        Ok(())
    }

    /// Trains all heads on `model`'s features of `train` and scores them on `test`: by feature, then learning rate. `each` hears
    /// what is done, steps done, steps in all, and the heads' mean loss, weighted by their learning rates.
    ///
    /// # Errors
    /// As [`check`](Self::check); folders whose classes differ; no readable image.
    pub fn run(
        &self,
        model: &dyn Encoder,
        train: Arc<Folder>,
        test: Arc<Folder>,
        mut each: impl FnMut(&'static str, u64, u64, Option<f64>),
    ) -> Result<Vec<Trained>> {
        self.check(model.depth())?;
        let classes = classes_of(&train, &test)?;
        let layers = self.blocks.iter().copied().max().unwrap_or(1);
        let layout = Layout { layers, dim: model.dim(), classes, device: model.device() };
        let mut heads = self.heads(&layout)?;
        if self.augment {
            let batch = self.batch(train.len());
            let options = Options {
                unreadable: if self.strict { Unreadable::Fail } else { Unreadable::Replace },
                ..Options::training(batch, self.seed)
            };
            let size = model.image_size();
            let mut loader = Loader::new(train, transforms::pretrain(size, CropRange::SUPERVISED)?, options)?;
            let total = self.updates(loader.steps_per_epoch());
            self.train(&layout, &mut heads, batch, total, &mut each, |_| match loader.next() {
                Some(batch) => {
                    let batch = batch?;
                    let shape = [batch.labels.len(), 3, size[0], size[1]];
                    let images = Tensor::from_slice(&batch.images, shape, layout.device)?;
                    Ok((summary(&model.layers(&images, layers)?)?.to_vec::<f32>()?, batch.labels))
                }
                None => Err(Error::Training("the loader ended before the sweep".into())),
            })?;
        } else {
            let (rows, labels) =
                summaries(model, train, &layout, self.strict, |done, all| each("features", done, all, None))?;
            let batch = self.batch(labels.len()); // unreadable images may have left fewer than the folder has files
            let mut order = Order::new(labels.len(), batch, self.seed)?;
            self.train(&layout, &mut heads, batch, self.updates(order.steps()), &mut each, |step| {
                let chosen = order.at(step);
                let row = |&i: &usize| &rows[i * layout.row()..(i + 1) * layout.row()];
                let summaries = chosen.iter().flat_map(row).copied().collect();
                Ok((summaries, chosen.iter().map(|&i| labels[i]).collect()))
            })?;
        }
        let (rows, labels) = summaries(model, test, &layout, false, |done, all| each("test", done, all, None))?;
        let mut trained = Vec::new();
        for heads in &heads {
            trained.extend(self.score(&layout, heads, &rows, &labels)?);
        }
        Ok(trained)
    }

    /// Images per update, of so many training images.
    pub fn batch(&self, images: usize) -> usize {
        self.batch.unwrap_or(BATCH.min(images))
    }

    fn updates(&self, per_epoch: u64) -> u64 {
        self.epochs.map_or(UPDATES, |epochs| epochs.saturating_mul(per_epoch))
    }

    fn heads(&self, layout: &Layout<'_>) -> Result<Vec<Heads>> {
        let builder = Builder::new(layout.device, DType::F32, self.seed).pp("heads");
        let mut heads = Vec::new();
        for &blocks in &self.blocks {
            for average_pool in [false, true] {
                let feature = Feature { blocks, average_pool };
                let width = feature.columns(layout.layers, layout.dim).len();
                heads.push(Heads::new(&builder, feature, width, self.rates.len() * layout.classes)?);
            }
        }
        Ok(heads)
    }

    /// `total` updates on what `next` gives for each step: summaries and labels of `batch` images.
    fn train(
        &self,
        layout: &Layout<'_>,
        heads: &mut Vec<Heads>,
        batch: usize,
        total: u64,
        each: &mut impl FnMut(&'static str, u64, u64, Option<f64>),
        mut next: impl FnMut(u64) -> Result<(Vec<f32>, Vec<i32>)>,
    ) -> Result<()> {
        let largest = self.rates.iter().copied().fold(0.0, f64::max);
        let factors: Vec<f32> = self.rates.iter().map(|rate| (rate / largest) as f32).collect();
        let weight: f64 = factors.iter().map(|f| f64::from(*f)).sum();
        let cosine = Cosine { lr: scaled_lr(largest, batch), min_lr: 0.0, warmup_epochs: 0.0, epochs: total as f64 };
        let hyper = lars::Hyper { momentum: 0.9, trust: None };
        let (mut sgd, mut grads) = (Lars::new(hyper, Rules::pretraining(0.0)), Grads::new());
        for step in 0..total {
            let (summaries, labels) = next(step)?;
            let mut targets = vec![0f32; labels.len() * factors.len() * layout.classes];
            for (row, at) in targets.chunks_exact_mut(layout.classes).zip(0..) {
                row[labels[at / factors.len()] as usize] = factors[at % factors.len()];
            }
            let rows = [labels.len() * factors.len(), layout.classes];
            let targets = Tensor::from_slice(&targets, rows, layout.device)?;
            grads.clear();
            let mut losses = Vec::with_capacity(heads.len());
            for heads in heads.iter() {
                let tape = Tape::new();
                let x = Var::constant(layout.input(heads.feature, &summaries)?);
                let logits = heads.linear.forward(&tape, &x, None)?.reshape(rows)?;
                let loss = cross_entropy(&tape, &logits, Targets::Soft(&targets), 0.0)?;
                losses.push(loss.value().clone());
                // The mean is over images and heads; each head's own is over the images.
                tape.backward_scaled(&loss, factors.len() as f64, &mut grads)?;
            }
            sgd.step(&mut heads.params_mut(), &grads, &Rates::new(cosine.at(step as f64)), None)?;
            let mut sum = 0.0;
            for loss in &losses {
                sum += loss.item()?;
            }
            let mean = sum * factors.len() as f64 / (weight * losses.len() as f64);
            each("heads", step + 1, total, Some(mean));
        }
        Ok(())
    }

    fn score(&self, layout: &Layout<'_>, heads: &Heads, rows: &[f32], labels: &[i32]) -> Result<Vec<Trained>> {
        let mut hits = vec![[0usize; 2]; self.rates.len()];
        for (block, labels) in rows.chunks(BLOCK * layout.row()).zip(labels.chunks(BLOCK)) {
            let x = Var::constant(layout.input(heads.feature, block)?);
            let logits = heads.linear.forward(&Tape::no_grad(), &x, None)?.value().to_vec::<f32>()?;
            for (at, logits) in logits.chunks_exact(layout.classes).enumerate() {
                let rank = rank(logits, labels[at / hits.len()] as usize);
                let hits = &mut hits[at % self.rates.len()];
                *hits = [hits[0] + usize::from(rank == 0), hits[1] + usize::from(rank < 5)];
            }
        }
        let share = |hits: usize| hits as f64 / labels.len() as f64;
        let trained = |(&rate, [first, among]): (&f64, [usize; 2])| Trained {
            feature: heads.feature,
            rate,
            top1: share(first),
            top5: share(among),
        };
        Ok(self.rates.iter().zip(hits).map(trained).collect())
    }
}

/// How many logits come before that of the label.
fn rank(logits: &[f32], label: usize) -> usize {
    let before = |&(i, x): &(usize, &f32)| x.total_cmp(&logits[label]).then(label.cmp(&i)).is_gt();
    logits.iter().enumerate().filter(before).count()
}

/// The best of the heads: by top-1, of equal ones the first.
pub fn best(trained: &[Trained]) -> Option<&Trained> {
    trained.iter().reduce(|best, head| if head.top1 > best.top1 { head } else { best })
}

/// All heads as lines of tab-separated columns with a heading.
pub fn table(trained: &[Trained]) -> String {
    let line = |t: &Trained| {
        let Feature { blocks, average_pool } = t.feature;
        format!("{blocks}\t{average_pool}\t{}\t{:.6}\t{:.6}\n", t.rate, t.top1, t.top5)
    };
    "blocks\taverage_pool\trate\ttop1\ttop5\n".to_owned() + &trained.iter().map(line).collect::<String>()
}

/// Summaries and labels of all readable images, resized and cropped as for evaluation; `strict`: an unreadable one is an error.
fn summaries(
    model: &dyn Encoder,
    folder: Arc<Folder>,
    layout: &Layout<'_>,
    strict: bool,
    mut each: impl FnMut(u64, u64),
) -> Result<(Vec<f32>, Vec<i32>)> {
    let (root, size, total) = (folder.root().to_path_buf(), model.image_size(), folder.len().div_ceil(IMAGES));
    let mut done = 0;
    let count = |_| {
        done += 1;
        each(done, total as u64);
    };
    let forward = |images: Tensor| summary(&model.layers(&images, layout.layers)?);
    let (transform, row) = (transforms::evaluate(size)?, [layout.row()]);
    let (features, _) = collect(folder, &root, transform, IMAGES, layout.device, size, &row, forward, count)?;
    match features.skipped.first().filter(|_| strict) {
        Some(cause) => Err(Error::Dataset { path: root, cause: cause.clone() }),
        None => Ok((features.values.to_vec::<f32>()?, features.labels)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Image, Purpose, Stream};
    use crate::eval::fixtures::Colours;

    #[test]
    fn a_summary_holds_every_feature() {
        // Two images, two layers of a class token and two patches, two values wide.
        let layer = |first: f32| {
            let values: Vec<f32> = (0..12).map(|i| first + i as f32).collect();
            Tensor::from_slice(&values, [2, 3, 2], &Device::Cpu).unwrap()
        };
        let all = summary(&[layer(0.0), layer(100.0)]).unwrap();
        assert_eq!(all.shape().to_vec(), [2, 6]);
        let expected = [0.0, 1.0, 100.0, 101.0, 103.0, 104.0, 6.0, 7.0, 106.0, 107.0, 109.0, 110.0];
        assert_eq!(all.to_vec::<f32>().unwrap(), expected);
        let columns = |blocks, average_pool| Feature { blocks, average_pool }.columns(2, 2);
        assert_eq!(
            [columns(1, false), columns(1, true), columns(2, false), columns(2, true)],
            [2..4, 2..6, 0..4, 0..6]
        );
        assert_eq!(summary(&[]).unwrap_err().to_string(), "summary: `layers` has value 0, expected at least one");
    }

    fn sweep(rates: &[f64]) -> Sweep {
        let blocks = vec![1, 2];
        Sweep { rates: rates.to_vec(), blocks, epochs: Some(1), batch: Some(4), augment: false, seed: 3, strict: false }
    }

    /// Summaries of 4 images in 3 classes that change from step to step.
    fn batch(step: u64, layout: &Layout<'_>) -> (Vec<f32>, Vec<i32>) {
        let mut rng = Stream::new(1, Purpose::TEST, step, 0);
        ((0..4 * layout.row()).map(|_| rng.normal() as f32).collect(), vec![0, 1, 2, 1])
    }

    /// The weights of each head after 6 updates from the same start.
    fn learnt(rates: &[f64], copies: &[usize]) -> Vec<Vec<f32>> {
        let layout = Layout { layers: 2, dim: 3, classes: 3, device: &Device::Cpu };
        let (sweep, reference) = (sweep(rates), sweep(&[1.0; 2]).heads(&layout).unwrap());
        let mut heads = sweep.heads(&layout).unwrap();
        for (heads, start) in heads.iter_mut().zip(&reference) {
            let width = start.linear.weight.master.shape()[1];
            let rows = start.linear.weight.master.to_vec::<f32>().unwrap();
            let of = |head: &usize| rows[head * 3 * width..(head + 1) * 3 * width].to_vec();
            let values: Vec<f32> = copies.iter().flat_map(of).collect();
            heads
                .linear
                .weight
                .set(&Tensor::from_slice(&values, [3 * copies.len(), width], &Device::Cpu).unwrap())
                .unwrap();
        }
        sweep.train(&layout, &mut heads, 4, 6, &mut |_, _, _, _| (), |step| Ok(batch(step, &layout))).unwrap();
        let of = |heads: &Heads| {
            let values = heads.linear.weight.master.to_vec::<f32>().unwrap();
            values.chunks(values.len() / rates.len()).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        heads.iter().flat_map(of).collect()
    }

    #[test]
    fn each_head_learns_as_if_it_were_alone() {
        // Rates far apart: together, and each on its own.
        let together = learnt(&[0.5, 0.02], &[0, 1]);
        let (fast, slow) = (learnt(&[0.5], &[0]), learnt(&[0.02], &[1]));
        assert_eq!((together.len(), fast.len()), (8, 4));
        for (feature, pair) in together.chunks(2).enumerate() {
            for (together, alone) in pair.iter().zip([&fast[feature], &slow[feature]]) {
                for (a, b) in together.iter().zip(alone) {
                    assert!((a - b).abs() < 1e-6, "{a} {b}");
                }
            }
        }
        // Twice the rate is another result, so the rates do count.
        let twice = learnt(&[1.0, 0.04], &[0, 1]);
        assert!(together.iter().zip(&twice).all(|(a, b)| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-5)));
    }

    /// Images of one colour each: the mean patch token tells them apart, the class token, which is constant, does not.
    #[test]
    fn heads_that_see_the_class_classify() {
        let place = tempfile::tempdir().unwrap();
        let folder = |part: &str, count: usize| {
            for (class, colour) in [("a", [200, 30, 30]), ("b", [30, 200, 30]), ("c", [30, 30, 200])] {
                let folder = place.path().join(part).join(class);
                std::fs::create_dir_all(&folder).unwrap();
                for i in 0..count {
                    let colour = colour.map(|v: u8| v - 4 * i as u8);
                    Image::filled(20, 18, colour).save_png(folder.join(format!("{i}.png"))).unwrap();
                }
            }
            Arc::new(Folder::labelled(place.path().join(part)).unwrap())
        };
        let (train, test) = (folder("train", 6), folder("test", 4));
        for augment in [false, true] {
            let sweep = Sweep { epochs: Some(20), batch: Some(9), augment, ..sweep(&[1e-4, 5.0]) };
            let (mut heard, mut losses) = (vec![], vec![]);
            let each = |what, _, total, loss: Option<f64>| {
                heard.push((what, total));
                losses.extend(loss);
            };
            let trained = sweep.run(&Colours, train.clone(), test.clone(), each).unwrap();
            heard.dedup();
            let before = if augment { vec![] } else { vec![("features", 1)] };
            assert_eq!(heard, [before, vec![("heads", 40), ("test", 1)]].concat());
            assert!(losses[39] < losses[0], "{losses:?}");
            for head in &trained {
                match head.feature.average_pool {
                    false => assert_eq!(head.top1, 1.0 / 3.0, "{head:?}"),
                    true if head.rate > 1.0 => assert_eq!(head.top1, 1.0, "{head:?}"),
                    true => {}
                }
            }
            assert_eq!((trained.len(), best(&trained).map(|head| head.feature.blocks)), (8, Some(1)));
        }
    }

    /// A folder of five files of which one is no image: updates of all that are left, unless a number of images is asked for.
    #[test]
    fn a_batch_nobody_gave_is_of_the_readable_images() {
        let place = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            std::fs::create_dir(place.path().join(class)).unwrap();
            for i in 0..2 {
                let file = place.path().join(class).join(format!("{i}.png"));
                Image::filled(16, 16, [40 * i, 9, 9]).save_png(file).unwrap();
            }
        }
        std::fs::write(place.path().join("b/2.png"), "no image").unwrap();
        let folder = Arc::new(Folder::labelled(place.path()).unwrap());
        let updates = |batch| {
            let mut updates = 0;
            let count = |what: &str, _, total, _| updates = if what == "heads" { total } else { updates };
            let sweep = Sweep { batch, epochs: Some(3), ..sweep(&[0.1]) };
            sweep.run(&Colours, folder.clone(), folder.clone(), count).map(|_| updates)
        };
        assert_eq!((updates(None).unwrap(), updates(Some(2)).unwrap()), (3, 6));
        let text = updates(Some(5)).unwrap_err().to_string();
        assert_eq!(text, "config: `batch_size` is 5, expected 1 to the 4 training images");
    }

    #[test]
    fn the_best_head_is_the_first_of_the_highest() {
        let head = |rate: f64, top1: f64| Trained {
            feature: Feature { blocks: 4, average_pool: true },
            rate,
            top1,
            top5: 1.0,
        };
        let all = [head(0.1, 0.25), head(0.2, 0.5), head(0.3, 0.5)];
        assert_eq!(best(&all), Some(&all[1]));
        assert_eq!(best(&[]), None);
        assert_eq!(table(&all[..1]), "blocks\taverage_pool\trate\ttop1\ttop5\n4\ttrue\t0.1\t0.250000\t1.000000\n");
    }

    #[test]
    fn unusable_sweeps_are_named() {
        let text = |sweep: Sweep| sweep.check(2).unwrap_err().to_string();
        assert!(sweep(&[0.1]).check(2).is_ok());
        assert_eq!(
            text(Sweep { blocks: vec![1, 4], ..sweep(&[0.1]) }),
            "config: `blocks` is 4, expected 1 to the 2 blocks of the encoder"
        );
        assert_eq!(text(sweep(&[0.1, -1.0])), "config: `rates` is -1, expected numbers above 0, at most 1000");
        assert_eq!(text(sweep(&[])), "config: `rates` is no number, expected at least one");
        assert_eq!(text(Sweep { epochs: Some(0), ..sweep(&[1.0]) }), "config: `epochs` is 0, expected at least 1");
    }
}
