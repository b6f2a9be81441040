//! Retrieval: which captions an image finds, and which image a caption finds.
//!
//! recall@k is the share of queries with a match among the k nearest by the product of unit embeddings. An image matches all
//! its captions, and one among the first k is enough; a caption matches its image. Equal products rank by number. Source:
//! big_vision at 0127fb6, `evaluators/proj/image_text/image_text_retrieval.py`.

use super::rows;
use crate::{Error, Result, Tensor};

/// Recall in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Retrieval {
    /// Of images looking for captions, for each k.
    pub image_to_text: Vec<f64>,
    /// Of captions looking for their image, for each k.
    pub text_to_image: Vec<f64>,
}

/// Recall at each of `ks` (big_vision: 1, 5, 10) of images `[N, d]` and captions `[M, d]`, where `image_of` `[M]` is the number
/// of each caption's image.
///
/// # Errors
/// Shapes that do not fit, no k or one of 0, an image number out of range, an image without captions, or an embedding that is
/// not finite.
pub fn retrieval(images: &Tensor, texts: &Tensor, image_of: &[i32], ks: &[usize]) -> Result<Retrieval> {
    let op = "retrieval";
    let [count, dim] = images.dims(op, "images")?;
    let [captions, width] = texts.dims(op, "texts")?;
    if width != dim || captions != image_of.len() || count == 0 {
        let expected = format!("[{}, {dim}], and at least one image", image_of.len());
        return Err(Error::shape(op, "texts", texts.shape(), expected));
    }
    if ks.is_empty() || ks.contains(&0) {
        return Err(Error::value(op, "ks", format!("{ks:?}"), "one or more numbers from 1 on"));
    }
    let mut captions_of = vec![Vec::new(); count];
    for (caption, &image) in image_of.iter().enumerate() {
        let of = usize::try_from(image).ok().and_then(|image| captions_of.get_mut(image));
        of.ok_or_else(|| Error::value(op, "image_of", image, format!("0 to {}", count - 1)))?.push(caption);
    }
    if let Some(image) = captions_of.iter().position(Vec::is_empty) {
        return Err(Error::value(op, "image_of", format!("no caption of image {image}"), "one for each image"));
    }
    let (images, texts) = (rows::unit(images)?, rows::unit(texts)?);
    let image_ranks = ranks(&images, &texts, |image| &captions_of[image])?;
    let own: Vec<Vec<usize>> = image_of.iter().map(|image| vec![*image as usize]).collect();
    let text_ranks = ranks(&texts, &images, |text| &own[text])?;
    let recall = |ranks: &[usize]| {
        let share = |k: &usize| ranks.iter().filter(|rank| *rank < k).count() as f64 / ranks.len() as f64;
        ks.iter().map(share).collect()
    };
    Ok(Retrieval { image_to_text: recall(&image_ranks), text_to_image: recall(&text_ranks) })
}

/// For each query how many candidates lie before its nearest match.
fn ranks<'a>(queries: &Tensor, candidates: &Tensor, matches: impl Fn(usize) -> &'a Vec<usize>) -> Result<Vec<usize>> {
    let [count, _] = queries.dims("retrieval", "queries")?;
    let [width, _] = candidates.dims("retrieval", "candidates")?;
    let mut ranks = Vec::with_capacity(count);
    rows::products(queries, candidates, |scores| {
        for row in scores.chunks_exact(width) {
            let before = |wanted: usize| {
                let nearer = |(other, s): (usize, &f32)| *s > row[wanted] || (*s == row[wanted] && other < wanted);
                row.iter().enumerate().filter(|c| nearer(*c)).count()
            };
            let best = matches(ranks.len()).iter().copied().reduce(|a, b| {
                if row[b] > row[a] { b } else { a } // ascending numbers: of equal ones the first
            });
            ranks.push(best.map_or(usize::MAX, before));
        }
    })?;
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    const MANY: usize = 265; // more than are compared at a time

    fn rows(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), [rows.len(), 2], &Device::Cpu).unwrap()
    }

    fn angles(angles: &[f32]) -> Tensor {
        rows(&angles.iter().map(|a| [3.0 * a.cos(), 3.0 * a.sin()]).collect::<Vec<_>>())
    }

    #[test]
    fn one_caption_among_the_first_is_enough() {
        // Captions 0 and 1 belong to image 0, caption 2 to image 1; caption 1 lies at image 1.
        let found = retrieval(&angles(&[0.0, 1.0]), &angles(&[0.1, 1.01, 1.3]), &[0, 0, 1], &[1, 2, 9]).unwrap();
        assert_eq!(found.image_to_text, [0.5, 1.0, 1.0]);
        assert_eq!(found.text_to_image, [2.0 / 3.0, 1.0, 1.0]);
    }

    #[test]
    fn perfect_embeddings_find_everything_and_recall_grows_with_k() {
        let spread: Vec<f32> = (0..MANY).map(|i| i as f32 * 6.0 / MANY as f32).collect();
        let own: Vec<i32> = (0..spread.len() as i32).collect();
        let perfect = retrieval(&angles(&spread), &angles(&spread), &own, &[1]).unwrap();
        assert_eq!((perfect.image_to_text, perfect.text_to_image), (vec![1.0], vec![1.0]));
        let shifted: Vec<f32> = spread.iter().enumerate().map(|(i, a)| a + 0.02 * (i % 7) as f32).collect();
        let found = retrieval(&angles(&spread), &angles(&shifted), &own, &[1, 2, 3, 5, 8, 13, 300]).unwrap();
        for recall in [&found.image_to_text, &found.text_to_image] {
            assert!(recall.is_sorted() && recall[0] < 0.9 && recall[6] == 1.0, "{recall:?}");
        }
    }

    #[test]
    fn equal_products_rank_by_number() {
        let same = rows(&[[1.0, 0.0]; 3]);
        let found = retrieval(&same, &same, &[0, 1, 2], &[1, 2, 3]).unwrap();
        assert_eq!(found.image_to_text, [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        let found = retrieval(&rows(&[[1.0, 0.0]; 2]), &same, &[1, 0, 0], &[1, 2, 3]).unwrap();
        assert_eq!(found.image_to_text, [0.5, 1.0, 1.0]);
    }

    #[test]
    fn what_is_unusable_is_named() {
        let x = angles(&[0.0, 1.0]);
        let text = |image_of: &[i32], ks: &[usize]| retrieval(&x, &x, image_of, ks).unwrap_err().to_string();
        assert!(text(&[0], &[1]).contains("texts"));
        assert!(text(&[0, 2], &[1]).contains("0 to 1"));
        assert!(text(&[0, -1], &[1]).contains("-1"));
        assert!(text(&[0, 0], &[1]).contains("no caption of image 1"));
        assert!(text(&[0, 1], &[]).contains("ks"));
        assert!(text(&[0, 1], &[1, 0]).contains("ks"));
        for bad in [f32::NAN, f32::INFINITY] {
            let y = rows(&[[1.0, 0.0], [0.0, bad]]);
            for (images, texts) in [(&x, &y), (&y, &x)] {
                let error = retrieval(images, texts, &[0, 1], &[1]).unwrap_err().to_string();
                assert!(error.contains("in row 1, expected finite"), "{error}");
            }
        }
    }
}
