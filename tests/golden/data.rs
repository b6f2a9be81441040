//! Augmentation and mixing.

use ocellus::Device;
use ocellus::data::augment::{CropParams, Normalise, centre_crop, resize_short_side};
use ocellus::data::mixup::{Mix, mix, soft_targets};
use ocellus::data::resize::Filter;
use ocellus::data::{Image, Rect};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report};

fn image(g: &Golden, name: &str) -> Result<Image, ocellus::Error> {
    let stored = g.get(name);
    Image::new(stored.shape[1], stored.shape[0], stored.values.iter().map(|&x| x as u8).collect())
}

fn field(v: &Value, key: &str) -> usize {
    v[key].as_u64().unwrap_or_else(|| panic!("config `{key}` is {}", v[key])) as usize
}

/// One number for each colour.
pub fn three(v: &Value) -> [f64; 3] {
    std::array::from_fn(|i| v[i].as_f64().unwrap())
}

pub fn augment(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let normalise = Normalise::new(three(&g.config["mean"]), three(&g.config["std"]))?;
    let mut compare = |name: String, out: &Image| {
        let bytes: Vec<f64> = out.data.iter().map(|&x| f64::from(x)).collect();
        report.compare(g, &format!("output.{name}.resized_u8"), &bytes);
        let values: Vec<f64> = normalise.apply(out).into_iter().map(f64::from).collect();
        report.compare(g, &format!("output.{name}.tensor"), &values);
    };
    for (i, case) in g.config["train"].as_array().unwrap_or(&vec![]).iter().enumerate() {
        let [left, top, width, height, out] = ["left", "top", "crop_w", "crop_h", "out"].map(|k| field(case, k));
        let params = CropParams { rect: Rect { left, top, width, height }, mirror: case["hflip"].as_bool().unwrap() };
        let cropped = params.apply(&image(g, &format!("input.train{i}.img_u8"))?, out, out, Filter::Bicubic)?;
        compare(format!("train{i}"), &cropped);
    }
    for (i, case) in g.config["eval"].as_array().unwrap_or(&vec![]).iter().enumerate() {
        let resized = resize_short_side(&image(g, &format!("input.eval{i}.img_u8"))?, field(case, "resize_short"))?;
        let crop = field(case, "center_crop");
        compare(format!("eval{i}"), &centre_crop(&resized, crop, crop)?);
    }
    Ok(())
}

pub fn mixup_cutmix(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let (batch, w, h) = (g.usize("batch"), g.usize("w"), g.usize("h"));
    let draws = g.metadata.get("draws").ok_or("no metadata `draws`")?;
    for (name, draw) in draws.as_object().ok_or("draws is no object")? {
        let lam = draw["lam_used"].as_f64().ok_or("no lam_used")?;
        let how = match draw["yl_yh_xl_xh"].as_array() {
            None => Mix { lam, cut: None },
            Some(b) => {
                let at = |i: usize| b[i].as_u64().unwrap() as usize;
                let cut = Mix::cut(Rect { left: at(2), top: at(0), width: at(3) - at(2), height: at(1) - at(0) }, w, h);
                if (cut.lam - lam).abs() > 1e-12 {
                    report.fail(format!("{name}: lam {} of the box, expected {lam}", cut.lam));
                }
                cut
            }
        };
        let mut values = g.floats("input.x");
        mix(&mut values, batch, w, h, &how)?;
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        report.compare(g, &format!("output.{name}.x"), &wide(&values));
        let targets = soft_targets(&g.ints("input.target"), g.usize("classes"), g.f64("smoothing"), how.lam)?;
        report.compare(g, &format!("output.{name}.target"), &wide(&targets));
    }
    Ok(())
}
