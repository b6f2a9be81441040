//! Student, teacher and the loss between them.
//!
//! With `B` images, two global and `L` local crops of each, `n = 2 + max(2 L, 1)`, and `CE(t, s) = -Σ_k t_k log softmax(s / τ)_k`:
//!
//! - local: `1/(n B) Σ_b Σ_l Σ_g CE(t[g, b], s[l, b])`, global: `1/(n B) Σ_b Σ_g CE(t[1-g, b], s[g, b])` on class tokens;
//! - KoLeo: its weight times the sum over the two groups of global crops, on the class tokens before the head;
//! - iBOT: `1/(2 B) Σ_j w_j CE(t_j, s_j)` over hidden patches, `w_j` one over the number of them in the crop of `j`.
//!
//! The student sees masked global crops, the teacher whole ones. Source: arXiv 2304.07193, section 4; the scaling is that of
//! dinov2 at b8931f7, `train/ssl_meta_arch.py`.

use super::block::Drops;
use super::{Backbone, Crops, Head, HeadSizes, Sizes, Start};
use crate::nn::{Builder, Module, PerSize};
use crate::ops::add::add;
use crate::ops::gather_rows::{self, gather_rows};
use crate::ops::koleo::koleo;
use crate::ops::prototype_cross_entropy::{Pairing, prototype_cross_entropy};
use crate::ops::scale::scale;
use crate::ops::sinkhorn_knopp::{ITERATIONS, sinkhorn_knopp};
use crate::ops::softmax_centering::{Centering, MOMENTUM, softmax_centering};
use crate::ops::teacher::Teacher;
use crate::{Error, Param, Result, Tape, Tensor, Var, module};

/// Global crops of an image.
pub const GLOBALS: usize = 2;

/// How the teacher's targets are kept from favouring few prototypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// Sinkhorn-Knopp over the batch.
    Sinkhorn,
    /// Softmax of logits less their running mean.
    Centering,
    /// Softmax alone: nothing keeps the targets from collapsing.
    Softmax,
}

/// What the loss is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Teacher's targets.
    pub targets: Targets,
    /// `τ`
    pub student_temp: f64,
    /// Weight of the local and the global term.
    pub dino: f64,
    /// Weight of KoLeo.
    pub koleo: f64,
    /// Weight of iBOT.
    pub ibot: f64,
}

impl Default for LossSettings {
    fn default() -> Self {
        Self { targets: Targets::Sinkhorn, student_temp: 0.1, dino: 1.0, koleo: 0.1, ibot: 1.0 }
    }
}

/// A backbone with its heads. Parameter names: `backbone.*`, `dino_head.*`, `ibot_head.*`.
#[derive(Clone, Debug)]
pub struct Network {
    /// The Vision Transformer.
    pub backbone: Backbone,
    /// For class tokens, and for patches where there is no other.
    pub dino_head: Head,
    /// For patches.
    pub ibot_head: Option<Head>,
}
module!(Network { backbone, dino_head, ibot_head });

impl Network {
    /// Below `b`. `ibot`: a head of its own for patches.
    ///
    /// # Errors
    /// Impossible sizes.
    pub fn new(b: &Builder, sizes: &Sizes, start: &Start, dino: &HeadSizes, ibot: Option<&HeadSizes>) -> Result<Self> {
        let head = |name: &str, of: &HeadSizes| Head::new(&b.pp(name), sizes.embed_dim, of, start);
        Ok(Self {
            backbone: Backbone::new(&b.pp("backbone"), sizes, start)?,
            dino_head: head("dino_head", dino)?,
            ibot_head: ibot.map(|of| head("ibot_head", of)).transpose()?,
        })
    }

    fn patch_head(&self) -> &Head {
        self.ibot_head.as_ref().unwrap_or(&self.dino_head)
    }
}

/// The crops of a batch and what was drawn for them, on the device.
#[derive(Clone, Debug)]
pub struct Views {
    /// `[2 B, 3, H, W]`: the first crop of all images, then the second.
    pub global: Tensor,
    /// `[L B, 3, h, w]`, likewise; none without local crops.
    pub local: Option<Tensor>,
    /// Hidden patches; none if no patch is ever hidden.
    pub masks: Option<Masks>,
    /// `[1]`: temperature of the teacher.
    pub teacher_temp: Tensor,
    /// Stochastic depth of the student, an entry for each block or none at all.
    pub drops: Vec<Drops>,
}

/// Hidden patches of the global crops.
#[derive(Clone, Debug)]
pub struct Masks {
    /// `[2 B, N]` i32: not 0 where hidden from the student; none hides nothing and predicts all the same.
    pub hidden: Option<Tensor>,
    /// `[R]` i32: rows of the predicted patches among the student's tokens, see
    /// [`Layout::patch_row`](super::Layout::patch_row).
    pub rows: Tensor,
    /// The same among the teacher's, where it has another number of registers.
    pub teacher_rows: Option<Tensor>,
    /// `[R]` f32.
    pub weights: Tensor,
    /// `[1]` i32: the hidden patches are the first so many of the `R`; all without. The others have weight 0 and change
    /// nothing: they make `R` the same for all batches.
    pub count: Option<Tensor>,
}

/// What a step is looked at by.
#[derive(Clone, Debug)]
pub struct Found {
    /// `[1]` each: local, global, KoLeo and iBOT, weights included.
    pub terms: [Option<Tensor>; 4],
    /// The teacher's targets for class tokens: rows of the first crops, then of the second.
    pub classes: Teacher,
    /// Those for hidden patches.
    pub patches: Option<Teacher>,
    /// The student's class tokens of the global crops, `[2 B, dim]`.
    pub features: Tensor,
    /// Its logits, while nobody needs their memory: local, global, patches.
    pub logits: Option<[Option<Tensor>; 3]>,
}

/// Which teachers the rows of a batch of some size have: of local crops both global ones, of a global one the other.
#[derive(Clone, Debug)]
struct Pairs {
    /// `[L B, 2]`
    local: Tensor,
    /// `[2 B, 1]`
    global: Tensor,
    /// Ones, `[L B]` and `[2 B]`.
    ones: [Tensor; 2],
}

impl Pairs {
    fn new(images: usize, locals: usize, like: &Tensor) -> Result<Self> {
        let device = like.device();
        let local: Vec<i32> =
            (0..locals * images).flat_map(|r| [r % images, images + r % images]).map(|r| r as i32).collect();
        let global: Vec<i32> = (0..2 * images).map(|r| ((r + images) % (2 * images)) as i32).collect();
        let ones = |n: usize| Tensor::full([n], 1f32, device)?.cast(like.dtype());
        Ok(Self {
            local: Tensor::from_slice(&local, [locals * images, GLOBALS], device)?,
            global: Tensor::from_slice(&global, [2 * images, 1], device)?,
            ones: [ones(locals * images)?, ones(2 * images)?],
        })
    }
}

/// Student and teacher. Parameter names: `student.*`, `teacher.*`, `dino_loss.center`, `ibot_patch_loss.center`.
pub struct Ssl {
    /// Learns.
    pub student: Network,
    /// Is followed: an average of the student, or fixed.
    pub teacher: Network,
    /// The average of the student where the teacher is fixed.
    pub average: Option<Network>,
    /// Running means of the teacher's logits, for class tokens and patches.
    pub centers: Option<[Centering; 2]>,
    /// What the loss is made of.
    pub settings: LossSettings,
    pairs: PerSize<Pairs>,
}

impl Module for Ssl {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        self.student.visit(f);
        self.teacher.visit(f);
        self.average.visit(f);
        self.centers.iter().flatten().for_each(|c| [&c.center, &c.pending].into_iter().for_each(&mut *f));
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        self.student.visit_mut(f);
        self.teacher.visit_mut(f);
        self.average.visit_mut(f);
        self.centers.iter_mut().flatten().for_each(|c| [&mut c.center, &mut c.pending].into_iter().for_each(&mut *f));
    }
}

/// A network that no gradient reaches.
pub fn freeze(network: &mut Network) {
    network.visit_mut(&mut |p| p.trainable = false);
}

impl Ssl {
    /// A student and the teacher it follows; `teacher` is not trained, nor is `average`.
    ///
    /// # Errors
    /// When their numbers of prototypes differ, or the patches of their global crops.
    pub fn new(
        student: Network,
        mut teacher: Network,
        mut average: Option<Network>,
        settings: LossSettings,
    ) -> Result<Self> {
        freeze(&mut teacher);
        average.iter_mut().for_each(freeze);
        for (ours, theirs) in [(&student.dino_head, &teacher.dino_head), (student.patch_head(), teacher.patch_head())] {
            if ours.count() != theirs.count() {
                return Err(Error::config("prototypes", ours.count(), format!("the teacher's {}", theirs.count())));
            }
        }
        let (ours, theirs) = (student.backbone.sizes.patch_size, teacher.backbone.sizes.patch_size);
        if ours != theirs {
            return Err(Error::config("patch_size", ours, format!("the teacher's {theirs}")));
        }
        let center = |name: &str, head: &Head| {
            let weight = &head.last_layer.weight_v.master;
            Centering::new(name, &Tensor::zeros([head.count()], weight.dtype(), weight.device())?, MOMENTUM)
        };
        let centers = (settings.targets == Targets::Centering).then(|| {
            let (dino, ibot) = (&teacher.dino_head, teacher.patch_head());
            Ok::<_, Error>([center("dino_loss", dino)?, center("ibot_patch_loss", ibot)?])
        });
        Ok(Self { centers: centers.transpose()?, student, teacher, average, settings, pairs: PerSize::default() })
    }

    /// What is kept of a run: the average of the student.
    pub fn result(&self) -> &Network {
        self.average.as_ref().unwrap_or(&self.teacher)
    }

    /// Targets from the logits of class tokens (`of` 0) or patches (1), of which the first `count` are the batch.
    fn targets(&mut self, of: usize, logits: &Tensor, temp: &Tensor, count: Option<&Tensor>) -> Result<Teacher> {
        match (self.settings.targets, &mut self.centers) {
            (Targets::Centering, Some(centers)) => centers[of].teacher(logits, temp, count, None),
            (Targets::Sinkhorn, _) => sinkhorn_knopp(logits, temp, ITERATIONS, count),
            _ => {
                let cols = logits.shape()[1];
                let centre = Tensor::zeros([cols], logits.dtype().accumulate(), logits.device())?;
                Ok(softmax_centering(logits, temp, &centre, count)?.0)
            }
        }
    }

    /// The loss `[1]` on a tape, and what it was made of. `norm`: `[2, 3]` mean and standard deviation of u8 images.
    /// `keep_logits`: for those who want to look at the student's; the backward sweep then needs memory of its own for their
    /// gradients.
    ///
    /// Peak memory beside the networks' activations: the logits of student and teacher,
    /// `rows · K` values each; targets and log-softmax are never stored.
    ///
    /// # Errors
    /// When views do not fit each other or the networks.
    pub fn loss(
        &mut self,
        tape: &Tape,
        views: &Views,
        norm: Option<&Tensor>,
        keep_logits: bool,
    ) -> Result<(Var, Found)> {
        let plain = Tape::no_grad();
        let global = Var::constant(views.global.clone());
        let [twice, ..] = views.global.dims::<4>("dinov2", "global")?;
        let (images, device) = (twice / GLOBALS, views.global.device().clone());
        if twice == 0 || twice % GLOBALS != 0 {
            return Err(Error::shape("dinov2", "global", views.global.shape(), "two crops of each image"));
        }
        let seen = [Crops { images: &global, masks: None }];
        let layout = self.teacher.backbone.layout_of(&seen)?;
        // Teacher: whole crops, no tape.
        let tokens = self.teacher.backbone.forward(&plain, &seen, norm, &[])?;
        let teacher = &self.teacher;
        let logits = |head: &Head, rows: &Tensor| {
            let x = Var::constant(gather_rows::forward(tokens.value(), rows)?);
            head.teacher(teacher.backbone.norm.forward(&plain, &x)?.value())
        };
        let class_logits = logits(&teacher.dino_head, layout.class_ids(0))?;
        let theirs = views.masks.as_ref().map(|m| m.teacher_rows.as_ref().unwrap_or(&m.rows));
        let patch_logits = theirs.map(|rows| logits(teacher.patch_head(), rows)).transpose()?;
        drop(tokens);
        let classes = self.targets(0, &class_logits, &views.teacher_temp, None)?;
        let count = views.masks.as_ref().and_then(|m| m.count.as_ref());
        let patches = patch_logits.map(|z| self.targets(1, &z, &views.teacher_temp, count)).transpose()?;

        // Student: hidden patches, all crops in one packed batch.
        let local = views.local.clone().map(Var::constant);
        let hidden = views.masks.as_ref().and_then(|m| m.hidden.as_ref());
        let mut crops = vec![Crops { images: &global, masks: hidden }];
        crops.extend(local.as_ref().map(|images| Crops { images, masks: None }));
        let student = &self.student;
        let layout = student.backbone.layout_of(&crops)?;
        let locals = layout.lists.get(1).map_or(0, |count| count / images);
        if layout.lists.get(1).is_some_and(|count| *count != locals * images) {
            return Err(Error::value("dinov2", "local", layout.lists[1], format!("a multiple of {images} images")));
        }
        let tokens = student.backbone.forward(tape, &crops, norm, &views.drops)?;
        let normed = |rows: &Tensor| student.backbone.norm.forward(tape, &gather_rows(tape, &tokens, rows)?);
        let pairs = self.pairs.get(images, locals, &device, || Pairs::new(images, locals, &views.teacher_temp))?;
        let LossSettings { student_temp, dino, koleo: spread, ibot, .. } = self.settings;
        let normaliser = (images * (GLOBALS * (GLOBALS - 1) + (locals * GLOBALS).max(1))) as f64;
        let (mut logits, mut terms) = ([None, None, None], [const { None }; 4]);

        let class = normed(layout.class_ids(0))?;
        let prototypes = student.dino_head.prototypes(tape)?;
        let mut compare =
            |i: usize, x: &Var, head: &Head, prototypes: &Var, teacher: &Teacher, pairing, weights: &Tensor, n: f64| {
                let z = head.forward(tape, x, prototypes)?;
                if keep_logits {
                    logits[i] = Some(z.value().deep_clone()?);
                }
                prototype_cross_entropy(tape, &z, student_temp, teacher, pairing, weights, n)
            };
        let head = &student.dino_head;
        if locals > 0 {
            let x = normed(layout.class_ids(1))?;
            let pairing = Pairing::Rows(&pairs.local);
            terms[0] = Some(weighted(
                tape,
                compare(0, &x, head, &prototypes, &classes, pairing, &pairs.ones[0], normaliser)?,
                dino,
            )?);
        }
        let pairing = Pairing::Rows(&pairs.global);
        terms[1] = Some(weighted(
            tape,
            compare(1, &class, head, &prototypes, &classes, pairing, &pairs.ones[1], normaliser)?,
            dino,
        )?);
        if spread > 0.0 {
            terms[2] = Some(weighted(tape, koleo(tape, &class, GLOBALS)?, spread)?);
        }
        if let (Some(masks), Some(patches)) = (&views.masks, &patches) {
            let x = normed(&masks.rows)?;
            let own = student.ibot_head.as_ref().map(|head| Ok::<_, Error>((head, head.prototypes(tape)?)));
            let (head, prototypes) = own.transpose()?.unwrap_or((&student.dino_head, prototypes.clone()));
            let n = twice as f64;
            terms[3] = Some(weighted(
                tape,
                compare(2, &x, head, &prototypes, patches, Pairing::Same, &masks.weights, n)?,
                ibot,
            )?);
        }
        let mut total: Option<Var> = None;
        for term in terms.iter().flatten() {
            total = Some(total.map_or_else(|| Ok(term.clone()), |sum| add(tape, &sum, term))?);
        }
        let total = total.ok_or_else(|| Error::Training("no term of the loss has a weight".into()))?;
        let found = Found {
            terms: terms.map(|term| term.map(|t| t.value().clone())),
            classes,
            patches,
            features: class.value().clone(),
            logits: keep_logits.then_some(logits),
        };
        Ok((total, found))
    }
}

fn weighted(tape: &Tape, x: Var, weight: f64) -> Result<Var> {
    if weight == 1.0 { Ok(x) } else { scale(tape, &x, weight as f32) }
}
