//! Text, images and evaluation of image-text models: everything around the towers.

use ocellus::Device;
use ocellus::data::augment::Normalise;
use ocellus::data::resize::{Filter, resize};
use ocellus::data::text::{Eos, Lower, Punctuation, Settings, canonicalize};
use ocellus::data::{Image, Tokenizer, tf_resize};
use ocellus::eval::{retrieval, zero_shot};
use ocellus::nn::pos_embed::{Resample, resample};

use crate::reader::{Golden, Outcome, Report};

fn bytes(g: &Golden, name: &str) -> Vec<u8> {
    g.get(name).values.iter().map(|&x| x as u8).collect()
}

/// Texts stored as bytes and offsets.
fn texts(g: &Golden, name: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let bytes = bytes(g, &format!("{name}_utf8"));
    let text = |w: &[i32]| String::from_utf8(bytes[w[0] as usize..w[1] as usize].to_vec()).map_err(Into::into);
    g.ints(&format!("{name}_offsets")).windows(2).map(text).collect()
}

fn wide<T: Copy + Into<f64>>(values: impl IntoIterator<Item = T>) -> Vec<f64> {
    values.into_iter().map(Into::into).collect()
}

pub fn canonical(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let given = texts(g, "input.text")?;
    for (name, keep) in [("plain", None), ("keep_braces", Some("{}")), ("keep_comma", Some(","))] {
        let name = format!("output.{name}");
        let out: Vec<String> = given.iter().map(|text| canonicalize(text, keep)).collect();
        let mut ends = vec![0.0];
        ends.extend(out.iter().scan(0, |end, text| {
            *end += text.len();
            Some(*end as f64)
        }));
        report.compare(g, &format!("{name}_offsets"), &ends);
        let expected = texts(g, &name)?;
        report.note(&format!("{name}_utf8"));
        if let Some((a, b)) = out.iter().zip(&expected).find(|(a, b)| a != b) {
            report.fail(format!("{name}: `{a}`, expected `{b}`"));
        }
    }
    Ok(())
}

/// Every `output.ids_<eos>_pad<id>` is the tokenize op under these settings; `encode_ids` is the model alone.
pub fn tokenizer(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let (file, given) = (bytes(g, "input.model_proto"), texts(g, "input.text")?);
    let open = |eos, pad| {
        let (lower, punctuation) = (Lower::Ascii, Punctuation::Keep);
        Tokenizer::from_bytes(&file, "model", Settings { max_len: g.usize("max_len"), eos, pad, lower, punctuation })
    };
    let plain = open(Eos::None, 0)?;
    plain.check_vocab(g.usize("vocab"))?;
    let (mut ids, mut offsets) = (Vec::new(), vec![0.0]);
    for text in &given {
        ids.extend(plain.encode(text)?);
        offsets.push(ids.len() as f64);
    }
    report.compare(g, "output.encode_offsets", &offsets);
    report.compare(g, "output.encode_ids", &wide(ids));
    for name in g.tensors.keys().filter(|name| name.starts_with("output.ids_")) {
        let (eos, pad) = name["output.ids_".len()..].split_once("_pad").ok_or("ids without a pad id")?;
        let eos = match eos {
            "sticky" => Eos::Sticky,
            "yes" => Eos::Yes,
            "none" => Eos::None,
            other => return Err(format!("end of text `{other}`").into()),
        };
        report.compare(g, name, &wide(open(eos, pad.parse()?)?.batch(&given)?));
    }
    Ok(())
}

pub fn classification(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let prompts = g.tensor("input.text_embeds", device);
    let weights = zero_shot::class_weights(&prompts, &g.ints("input.text_labels"), g.usize("classes"))?;
    report.tensor(g, "output.class_weights", &weights);
    let predictions = zero_shot::predict(&g.tensor("input.image_embeds", device), &weights)?;
    report.compare(g, "output.predictions", &wide(predictions.iter().copied()));
    let mask: Vec<bool> = g.get("input.mask").values.iter().map(|&x| x != 0.0).collect();
    for (labels, out) in [("labels", "correct_single"), ("multi_labels", "correct_multi")] {
        let labels = g.ints(&format!("input.{labels}"));
        let counted = zero_shot::count_correct(&predictions, &labels, Some(&mask))?;
        report.compare(g, &format!("output.{out}"), &[counted.correct as f64]);
        report.compare(g, "output.n", &[counted.images as f64]);
    }
    Ok(())
}

pub fn recall(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let [images, texts] = ["input.image_embeds", "input.text_embeds"].map(|name| g.tensor(name, device));
    let ks: Vec<usize> = serde_json::from_value(g.config["k"].clone())?;
    let found = retrieval(&images, &texts, &g.ints("input.text_image"), &ks)?;
    report.compare(g, "output.img2txt_recall", &found.image_to_text);
    report.compare(g, "output.txt2img_recall", &found.text_to_image);
    Ok(())
}

pub fn posemb_resample(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let pairs: Vec<[usize; 2]> = serde_json::from_value(g.config["pairs"].clone())?;
    for [old, new] in pairs {
        let table = g.tensor(&format!("input.pos_{old}"), device);
        let resized = resample(&table, (old, old), (new, new), Resample::Corners)?;
        report.tensor(g, &format!("output.pos_{old}_to_{new}"), &resized);
    }
    Ok(())
}

/// The images of a file, by number.
fn images(g: &Golden) -> Vec<(usize, Image)> {
    (0..)
        .map_while(|i| g.tensors.get(&format!("input.image{i}")).map(|stored| (i, stored)))
        .map(|(i, stored)| {
            let data = stored.values.iter().map(|&x| x as u8).collect();
            (i, Image::new(stored.shape[1], stored.shape[0], data).expect("an image"))
        })
        .collect()
}

/// A file's rule for pixels: a share of the values may differ, each by at most a bound.
fn pixels(g: &Golden, name: &str, values: &[f64], share: f64, bound: f64, report: &mut Report) {
    let stored = g.get(name);
    report.note(name);
    if stored.values.len() != values.len() {
        return report.fail(format!("{name}: {} values, expected {:?}", values.len(), stored.shape));
    }
    let differences = stored.values.iter().zip(values).map(|(a, b)| (a - b).abs());
    let off = differences.clone().filter(|d| *d > 1e-6).count() as f64 / values.len() as f64;
    let worst = differences.fold(0.0, f64::max);
    if off > share || worst > bound + 1e-6 || worst.is_nan() {
        report.fail(format!("{name}: {:.2} % of the values differ, by at most {worst:.4}", 100.0 * off));
    }
}

pub fn preprocess_pil(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let (out, normalise) = (g.usize("out"), Normalise::new([0.5; 3], [0.5; 3])?);
    for (i, image) in images(g) {
        let resized = resize(&image, image.rect(), out, out, Filter::Bicubic)?;
        pixels(g, &format!("output.resized{i}"), &wide(resized.data.iter().copied()), 0.01, 2.0, report);
        let values = wide(normalise.apply(&resized));
        pixels(g, &format!("output.pixel_values{i}"), &values, 0.01, 2.0 / 255.0, report);
    }
    Ok(())
}

pub fn preprocess_resize(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let out = g.usize("out");
    for (i, image) in images(g) {
        for (name, resized) in [
            ("bilinear", tf_resize::bilinear(&image, out, out)?),
            ("bilinear_antialias", tf_resize::antialiased(&image, out, out, Filter::Bilinear)?),
            ("bicubic_antialias", tf_resize::antialiased(&image, out, out, Filter::Bicubic)?),
        ] {
            let values: Vec<f64> = resized.data.iter().map(|&v| f64::from(f32::from(v) / 127.5 - 1.0)).collect();
            pixels(g, &format!("output.{name}{i}"), &values, 0.005, 2.0 / 255.0, report);
        }
    }
    Ok(())
}
