//! Embeddings of images and texts by an image-text model, and what they are evaluated for.

use std::path::Path;
use std::sync::Arc;

use super::features::{Features, collect};
use super::zero_shot::{self, Correct, Prompts};
use super::{ClassNames, Retrieval, retrieval, rows};
use crate::data::text::{Settings, Tokenizer};
use crate::data::transforms::{self, Interpolation};
use crate::data::{Folder, Image, Pairs, Purpose, Source, Stream};
use crate::ops::linear;
use crate::recipes::siglip::picture::Matches;
use crate::recipes::siglip::{Siglip, Sizes, TokenIds, VOCAB_2, norm};
use crate::{Device, Error, Param, Result, Tape, Tensor, Var};

/// The tokenizer beside weights of these sizes, or the one in `file`, see [`Tokenizer::beside`]. Where no settings are stored
/// they are those of the published models: SigLIP 2 (whose texts are padded differently) by its vocabulary, else SigLIP as
/// `transformers` has it.
///
/// # Errors
/// No tokenizer, or one with another number of ids than the model has embeddings.
pub fn tokenizer(weights: &Path, file: Option<&Path>, sizes: &Sizes) -> Result<Tokenizer> {
    let family = if sizes.vocab_size == VOCAB_2 { Settings::siglip2() } else { Settings::siglip_hf() };
    let tokenizer = Tokenizer::beside(weights, file, Settings { max_len: sizes.context_len, ..family })?;
    tokenizer.check_vocab(sizes.vocab_size)?;
    Ok(tokenizer)
}

/// From a decoded image to planes of bytes.
type Transform = dyn Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Send + Sync;

/// A model with what texts and images need on their way into it.
pub struct Embedder<'a> {
    /// The model.
    pub model: &'a Siglip,
    /// Its sizes.
    pub sizes: &'a Sizes,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How images are resized.
    pub interpolation: Interpolation,
    /// Whether only the middle is taken, see [`transforms::squash_centre`].
    pub crop: bool,
    /// Images or texts in a forward pass.
    pub batch: usize,
}

impl Embedder<'_> {
    /// Embeddings `[N, d]` of all readable images, not normalised, and the number of each row's image. `root` is taken off the
    /// names of files; `each` is called with the number of images done.
    ///
    /// # Errors
    /// No readable image.
    pub fn images(
        &self,
        source: Arc<dyn Source>,
        root: &Path,
        each: impl FnMut(usize),
    ) -> Result<(Features, Vec<usize>)> {
        let device = self.device();
        let row = [self.sizes.embed_dim];
        let forward = |images| self.forward(images);
        collect(source, root, self.transform()?, self.batch, device, self.sizes.image_size, &row, forward, each)
    }

    fn device(&self) -> &Device {
        self.model.logit_scale.master.device()
    }

    fn transform(&self) -> Result<Box<Transform>> {
        let size = self.sizes.image_size;
        Ok(match self.crop {
            true => Box::new(transforms::squash_centre(size, self.interpolation)?),
            false => Box::new(transforms::squash(size, self.interpolation)?),
        })
    }

    /// Embeddings of u8 planes `[B, 3, H, W]`.
    fn forward(&self, images: Tensor) -> Result<Tensor> {
        let norm = norm(self.device())?;
        Ok(self.model.vision.forward(&Tape::no_grad(), &Var::constant(images), Some(&norm))?.value().clone())
    }

    /// Embeddings `[N, d]` of texts, not normalised, f32 on the CPU. `each` is called with the number of texts done.
    ///
    /// # Errors
    /// No texts, or what a tokenizer cannot express.
    pub fn texts<S: AsRef<str> + Sync>(&self, texts: &[S], mut each: impl FnMut(usize)) -> Result<Tensor> {
        if texts.is_empty() {
            return Err(Error::value("embed", "texts", 0, "at least one"));
        }
        let (sizes, device) = (self.sizes, self.device());
        let (mut values, mut done) = (Vec::with_capacity(texts.len() * sizes.embed_dim), 0);
        for block in texts.chunks(self.batch.max(1)) {
            let len = self.tokenizer.settings().max_len;
            let ids = TokenIds::new(&self.tokenizer.batch(block)?, len, sizes.vocab_size, device)?;
            let y = self.model.text.forward(&Tape::no_grad(), &ids)?;
            values.extend(y.value().to_f64()?.into_iter().map(|x| x as f32));
            done += block.len();
            each(done);
        }
        Tensor::from_slice(&values, [texts.len(), sizes.embed_dim], &Device::Cpu)
    }

    /// The probability `sigmoid(t s + beta)` of every pair of an image and a caption, for pictures of a few.
    /// `image_of`: the image of each caption.
    ///
    /// # Errors
    /// No images or no captions.
    pub fn matches(&self, images: Vec<Image>, captions: Vec<String>, image_of: Vec<usize>) -> Result<Matches> {
        if images.is_empty() {
            return Err(Error::value("embed", "images", 0, "at least one"));
        }
        let (transform, sizes) = (self.transform()?, self.sizes);
        let mut embedded = Vec::with_capacity(images.len() * sizes.embed_dim);
        for block in images.chunks(self.batch.max(1)) {
            let mut values = Vec::new();
            for image in block {
                values.extend(transform(image, &mut Stream::new(0, Purpose::AUGMENT, 0, 0))?); // draws nothing
            }
            let y = self.forward(Tensor::from_slice(&values, sizes.images(block.len()), self.device())?)?;
            embedded.extend(y.to_f64()?.into_iter().map(|x| x as f32));
        }
        let embedded = Tensor::from_slice(&embedded, [images.len(), sizes.embed_dim], &Device::Cpu)?;
        let (rows, columns) = (rows::unit(&embedded)?, rows::unit(&self.texts(&captions, |_| ())?)?);
        let scores = linear::forward(&rows, &columns, None, None)?; // [images, captions]
        let number = |p: &Param| Ok::<_, Error>(p.master.to_f64()?[0]);
        let (scale, bias) = (number(&self.model.logit_scale)?.exp(), number(&self.model.logit_bias)?);
        let probability = |s: &f32| (1.0 / (1.0 + (-(scale * f64::from(*s) + bias)).exp())) as f32;
        let probabilities = scores.as_slice::<f32>()?.iter().map(probability).collect();
        Ok(Matches { images, captions, image_of, probabilities })
    }

    /// Classifies the images of class folders by the prompts of all `names`. `each` hears of prompts and images done.
    ///
    /// # Errors
    /// As [`Prompts::new`]; no readable image.
    pub fn zero_shot<T: AsRef<str>>(
        &self,
        folder: Arc<Folder>,
        names: &ClassNames,
        templates: &[T],
        mut each: impl FnMut(),
    ) -> Result<ZeroShot> {
        let prompts = Prompts::new(&names.names, templates)?;
        let texts = self.texts(&prompts.texts, |_| each())?;
        let weights = zero_shot::class_weights(&texts, &prompts.classes, names.names.len())?;
        let root = folder.root().to_path_buf();
        let (images, _) = self.images(folder, &root, |_| each())?;
        let labels: Vec<i32> = images.labels.iter().map(|&label| names.of_folder[label as usize]).collect();
        let predictions = zero_shot::predict(&images.values, &weights)?;
        let correct = zero_shot::count_correct(&predictions, &labels, None)?;
        Ok(ZeroShot { correct, classes: names.names.len(), skipped: images.skipped })
    }

    /// recall@k in both directions over all images of `pairs` and all their captions. `each` hears of images and captions done.
    ///
    /// # Errors
    /// As [`retrieval`]; no readable pair.
    pub fn retrieval(&self, pairs: Arc<Pairs>, ks: &[usize], mut each: impl FnMut()) -> Result<Recall> {
        let (images, indices) = self.images(pairs.clone(), Path::new(""), |_| each())?;
        let (mut captions, mut image_of) = (Vec::new(), Vec::new());
        for (row, index) in (0..).zip(indices) {
            let more = pairs.captions(index)?;
            image_of.extend(std::iter::repeat_n(row, more.len()));
            captions.extend(more);
        }
        let texts = self.texts(&captions, |_| each())?;
        let found = retrieval(&images.values, &texts, &image_of, ks)?;
        Ok(Recall { found, images: images.labels.len(), captions: captions.len(), skipped: images.skipped })
    }
}

/// Result of zero-shot classification.
#[derive(Clone, Debug)]
pub struct ZeroShot {
    /// Images counted and classified.
    pub correct: Correct,
    /// Candidates.
    pub classes: usize,
    /// Files that could not be read, with the cause.
    pub skipped: Vec<String>,
}

/// Result of retrieval.
#[derive(Clone, Debug)]
pub struct Recall {
    /// The shares.
    pub found: Retrieval,
    /// Images that were compared.
    pub images: usize,
    /// Captions that were compared.
    pub captions: usize,
    /// Pairs that could not be read, with the cause.
    pub skipped: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::data::synth::{self, Config};
    use crate::data::text::{Training, train};
    use crate::nn::Builder;
    use crate::recipes::siglip::Preset;

    struct Setting {
        place: tempfile::TempDir,
        model: Siglip,
        sizes: Sizes,
        tokenizer: Tokenizer,
    }

    impl Setting {
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let config = Config { train: 4, val: 10, size: 16, ..Config::pairs() };
            synth::generate(&config, place.path().join("pairs"), &|_| ()).unwrap();
            let captions = ["a small red circle and a large green star", "there is a blue ring on a black ground"];
            let settings = Settings { max_len: 8, ..Settings::siglip() };
            let path = place.path().join("tokenizer.json");
            let vocab = train(captions, &settings, &Training { vocab: 300, min_count: 1 }, &path).unwrap();
            let sizes = "micro".parse::<Preset>().unwrap().sizes(Some([16, 16]), Some(8));
            let sizes = Sizes { vocab_size: vocab, context_len: 8, ..sizes };
            let model = Siglip::new(&Builder::new(&Device::Cpu, DType::F32, 3), &sizes).unwrap();
            let tokenizer = Tokenizer::open(&path, settings).unwrap();
            Self { place, model, sizes, tokenizer }
        }

        fn embedder(&self, batch: usize) -> Embedder<'_> {
            let Self { model, sizes, tokenizer, .. } = self;
            Embedder { model, sizes, tokenizer, interpolation: Interpolation::Bicubic, crop: false, batch }
        }
    }

    fn unit(values: &Tensor) -> Vec<Vec<f64>> {
        let width = values.shape()[1];
        let rows = values.to_f64().unwrap();
        let of = |row: &[f64]| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x / norm).collect()
        };
        rows.chunks(width).map(of).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn classes_are_those_of_the_nearest_prompts() {
        let setting = Setting::new();
        let folder = Arc::new(Folder::open(setting.place.path().join("pairs/unseen")).unwrap());
        let names = ClassNames::new(&folder, None).unwrap();
        let embedder = setting.embedder(4);
        let mut heard = 0;
        let found = embedder.zero_shot(folder.clone(), &names, &["a {}"], || heard += 1).unwrap();
        assert_eq!((found.correct.images, found.classes, heard), (10, 10, 3 + 3));
        // One prompt a class: its weight is the unit embedding.
        let prompts: Vec<String> = names.names.iter().map(|name| format!("a {name}")).collect();
        let (images, indices) = embedder.images(folder.clone(), folder.root(), |_| ()).unwrap();
        let (rows, classes) = (unit(&images.values), unit(&embedder.texts(&prompts, |_| ()).unwrap()));
        let nearest = |row: &Vec<f64>| {
            (0..classes.len()).max_by(|&a, &b| dot(row, &classes[a]).total_cmp(&dot(row, &classes[b]))).unwrap()
        };
        let right = rows.iter().zip(&indices).filter(|(row, i)| nearest(row) as i32 == folder.label(**i)).count();
        assert_eq!(found.correct.correct, right);
        // The order of the names plays no part, nor do batches.
        let count = names.names.len() as i32;
        let reversed = ClassNames {
            names: names.names.iter().rev().cloned().collect(),
            of_folder: names.of_folder.iter().map(|c| count - 1 - c).collect(),
        };
        assert_eq!(setting.embedder(64).zero_shot(folder, &reversed, &["a {}"], || ()).unwrap().correct, found.correct);
    }

    #[test]
    fn all_captions_of_an_image_take_part_in_retrieval() {
        let setting = Setting::new();
        let pairs = Arc::new(Pairs::open(setting.place.path().join("pairs/val"), &Default::default()).unwrap());
        let found = setting.embedder(3).retrieval(pairs.clone(), &[1, 5], || ()).unwrap();
        assert_eq!((found.images, found.captions, found.skipped.len()), (10, 20, 0));
        // One image and one caption at a time, in another order.
        let embedder = setting.embedder(1);
        let (mut rows, mut columns, mut image_of) = (vec![], vec![], vec![]);
        for (row, index) in (0..).zip(0..pairs.len()) {
            let image = pairs.load(index).unwrap();
            let bytes = Interpolation::Bicubic.apply(&image, [16, 16]).unwrap().to_planes();
            let image = Tensor::from_slice(&bytes, [1, 3, 16, 16], &Device::Cpu).unwrap();
            rows.extend(unit(&embedder.forward(image).unwrap()));
            for caption in pairs.captions(index).unwrap() {
                columns.extend(unit(&embedder.texts(&[caption], |_| ()).unwrap()));
                image_of.push(row);
            }
        }
        let recall = |queries: &[Vec<f64>], candidates: &[Vec<f64>], is: &dyn Fn(usize, usize) -> bool, k: usize| {
            let hit = |query: &usize| {
                let mut order: Vec<usize> = (0..candidates.len()).collect();
                order.sort_by(|&a, &b| {
                    dot(&queries[*query], &candidates[b]).total_cmp(&dot(&queries[*query], &candidates[a]))
                });
                order[..k].iter().any(|&candidate| is(*query, candidate))
            };
            (0..queries.len()).filter(hit).count() as f64 / queries.len() as f64
        };
        for (at, k) in [1, 5].into_iter().enumerate() {
            let expected = recall(&rows, &columns, &|image, caption| image_of[caption] == image, k);
            assert_eq!(found.found.image_to_text[at], expected, "image to text, {k}");
            let expected = recall(&columns, &rows, &|caption, image| image_of[caption] == image, k);
            assert_eq!(found.found.text_to_image[at], expected, "text to image, {k}");
        }
        assert!(found.found.text_to_image[1] < 1.0, "{:?}", found.found);
    }

    #[test]
    fn probabilities_are_those_of_the_loss() {
        let setting = Setting::new();
        assert!(setting.embedder(2).matches(vec![], vec!["a star".into()], vec![0]).is_err());
        let images = [[200, 30, 30], [30, 30, 200]].map(|colour| Image::filled(20, 10, colour)).to_vec();
        let captions = ["a red circle", "a blue ring", "a star"].map(str::to_owned).to_vec();
        let embedder = setting.embedder(2);
        let matches = embedder.matches(images.clone(), captions.clone(), vec![0, 1, 1]).unwrap();
        let one_by_one = setting.embedder(1).matches(images.clone(), captions.clone(), vec![0, 1, 1]).unwrap();
        for (a, b) in matches.probabilities.iter().zip(&one_by_one.probabilities) {
            assert!((a - b).abs() < 1e-5 * a, "{a} {b}");
        }
        assert_eq!(one_by_one.probabilities.len(), 6);
        let texts = unit(&embedder.texts(&captions, |_| ()).unwrap());
        let squashed: Vec<u8> =
            images.iter().flat_map(|i| Interpolation::Bicubic.apply(i, [16, 16]).unwrap().to_planes()).collect();
        let squashed = Tensor::from_slice(&squashed, [2, 3, 16, 16], &Device::Cpu).unwrap();
        let rows = unit(&embedder.forward(squashed).unwrap());
        for (at, given) in matches.probabilities.iter().enumerate() {
            // The initial scale is 10 and the bias -10.
            let expected = 1.0 / (1.0 + (10.0 - 10.0 * dot(&rows[at / 3], &texts[at % 3])).exp());
            assert!((f64::from(*given) - expected).abs() < 1e-5 * expected, "{at}: {given} {expected}");
        }
    }

    #[test]
    fn a_tokenizer_must_fit() {
        let setting = Setting::new();
        let folder = setting.place.path();
        assert_eq!(tokenizer(folder, None, &setting.sizes).unwrap().settings().max_len, 8);
        let larger = Sizes { vocab_size: setting.sizes.vocab_size + 1, ..setting.sizes.clone() };
        let error = tokenizer(folder, None, &larger).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
        assert!(setting.embedder(2).texts(&[""; 0], |_| ()).is_err());
    }
}
