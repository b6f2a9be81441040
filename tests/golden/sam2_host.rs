//! SAM-2 outside the model: frames of the memory, codes of positions, clicks, resizing, masks of everything, J & F.
//!
//! Where a kind's schema leaves open which of a few things a tensor holds, all are computed and the nearest is
//! compared.

use ocellus::Device;
use ocellus::data::augment::Normalise;
use ocellus::data::resize::{Filter, resize};
use ocellus::data::{BinaryMask, Image, Rect, Rle};
use ocellus::eval::video_masks as metric;
use ocellus::ops::rope::axial_table;
use ocellus::recipes::sam2::regions::{Repair, Small, remove_small};
use ocellus::recipes::sam2::{amg, clicks, frames, position, transforms};

use crate::reader::{Golden, Outcome, Report};

/// Compares the nearest of several readings of a tensor.
fn nearest(g: &Golden, report: &mut Report, name: &str, readings: Vec<Vec<f64>>) {
    let truth = &g.get(name).values;
    let error = |values: &Vec<f64>| {
        let difference = truth.iter().zip(values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        if values.len() == truth.len() { difference } else { f64::INFINITY }
    };
    let best = readings.iter().min_by(|a, b| error(a).total_cmp(&error(b)));
    report.compare(g, name, best.map_or(&[], Vec::as_slice));
}

fn floats(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn bits(mask: &BinaryMask) -> Vec<f64> {
    mask.pixels().iter().map(|p| f64::from(u8::from(*p))).collect()
}

/// The planes of `[.., H, W]`, nonzero being inside.
fn masks(g: &Golden, name: &str) -> Result<Vec<BinaryMask>, Box<dyn std::error::Error>> {
    let stored = g.get(name);
    let [.., height, width] = stored.shape[..] else { return Err(format!("{name} has no planes").into()) };
    let planes = stored.values.chunks_exact((height * width).max(1));
    Ok(planes
        .map(|plane| BinaryMask::new(width, height, plane.iter().map(|v| *v != 0.0).collect()))
        .collect::<Result<_, _>>()?)
}

/// Rows and columns of the last two axes.
fn size(g: &Golden, name: &str) -> [usize; 2] {
    let shape = &g.get(name).shape;
    [shape[shape.len() - 2], shape[shape.len() - 1]]
}

/// The number behind `letter` in a part of a name.
fn field(name: &str, letter: &str) -> Option<usize> {
    name.split(['_', '.']).find_map(|part| part.strip_prefix(letter)?.parse().ok())
}

fn need(name: &str, letter: &str) -> Result<usize, String> {
    field(name, letter).ok_or_else(|| format!("{name}: no number behind `{letter}`"))
}

fn outputs<'a>(g: &'a Golden, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    g.tensors.keys().filter_map(move |name| name.strip_prefix("output.")?.strip_prefix(prefix).map(|_| name.as_str()))
}

pub fn memory_frame_selection(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let selected = g.get("output.selected");
    let columns = selected.shape[1];
    let places = (columns - 3) / 2;
    let mut rows = Vec::new();
    for row in selected.values.chunks_exact(columns) {
        let integers: Vec<i64> = row.iter().map(|v| *v as i64).collect();
        let (frame, most, count) = (integers[0], integers[1], integers[2] as usize);
        let given = &integers[3..3 + count];
        let mut chosen = frames::conditioning(frame, given, usize::try_from(most).ok())?;
        chosen.sort_unstable();
        rows.extend(row[..3 + places].iter().copied());
        rows.extend((0..places).map(|i| chosen.get(i).map_or(-1.0, |t| *t as f64)));
    }
    report.compare(g, "output.selected", &rows);
    let visited = g.get("output.visited");
    let memories = g.usize("num_maskmem");
    let mut rows = Vec::new();
    for row in visited.values.chunks_exact(visited.shape[1]) {
        let rules =
            frames::Rules { memories, conditioning: None, stride: row[0] as usize, pointers: 16, past_pointers: true };
        let now = frames::Now { frame: row[2] as i64, video: None, reverse: row[1] != 0.0 };
        rows.extend_from_slice(&row[..3]);
        rows.extend((1..memories).map(|slot| frames::slot_frame(now, slot, &rules) as f64));
    }
    report.compare(g, "output.visited", &rows);
    Ok(())
}

pub fn position_encodings(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let (temperature, theta) = (g.f64("temperature"), g.f64("rope_theta"));
    for name in outputs(g, "sine_") {
        let dim = name.split('_').nth(1).and_then(|d| d.parse().ok()).ok_or("no width in the name")?;
        let grid = [need(name, "h")?, need(name, "w")?];
        let code = position::sine_2d(dim, grid, temperature)?;
        report.compare(g, name, &planes(&floats(&code), dim));
    }
    for name in outputs(g, "sine1d_") {
        let divisor = need(name, "div")? as f64;
        let positions: Vec<f64> = g.get("input.t_diff").values.iter().map(|t| t / divisor).collect();
        report.compare(g, name, &floats(&position::sine_1d(&positions, need(name, "dim")?, temperature)?));
    }
    for (part, prefix) in ["axial_cos_", "axial_sin_"].into_iter().enumerate() {
        for name in outputs(g, prefix) {
            let [dim, width, height] = [need(name, "d")?, need(name, "x")?, need(name, "y")?];
            let table = axial_table(dim, width, height, theta, &Device::Cpu)?.to_f64()?;
            report.compare(g, name, &table.iter().skip(part).step_by(2).copied().collect::<Vec<_>>());
        }
    }
    let gaussian = g.floats("param.positional_encoding_gaussian_matrix");
    for name in outputs(g, "coords_pe_") {
        let (height, width) = (need(name, "h")? as f64, need(name, "w")? as f64);
        let coords = g.get("input.coords").values.chunks_exact(2);
        let points: Vec<[f64; 2]> = coords.map(|p| [p[0] / width, p[1] / height]).collect();
        report.compare(g, name, &floats(&position::fourier(&points, &gaussian)?));
    }
    for name in outputs(g, "dense_pe_") {
        let code = position::fourier_grid([need(name, "h")?, need(name, "w")?], &gaussian)?;
        report.compare(g, name, &planes(&floats(&code), gaussian.len()));
    }
    Ok(())
}

/// `[positions, channels]` as `[channels, positions]`.
fn planes(rows: &[f64], channels: usize) -> Vec<f64> {
    (0..channels).flat_map(|c| rows.iter().skip(c).step_by(channels).copied()).collect()
}

pub fn click_sampling(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let (truth, predicted) = (masks(g, "input.gt")?, masks(g, "input.pred")?);
    let noise = g.floats("input.noise");
    let each = noise.len() / truth.len();
    type Clicks = Result<Vec<clicks::Click>, ocellus::Error>;
    let mut clicked = |name: &str, of: &dyn Fn(usize) -> Clicks| -> Outcome {
        let all: Vec<clicks::Click> = (0..truth.len()).map(of).collect::<Result<Vec<_>, _>>()?.concat();
        let points: Vec<f64> = all.iter().flat_map(|c| [c.x as f64, c.y as f64]).collect();
        report.compare(g, &format!("output.{name}_points"), &points);
        let labels: Vec<f64> = all.iter().map(|c| f64::from(c.label)).collect();
        report.compare(g, &format!("output.{name}_labels"), &labels);
        Ok(())
    };
    let own = |i: usize| &noise[i * each..(i + 1) * each];
    clicked("uniform", &|i| clicks::uniform(&truth[i], Some(&predicted[i]), own(i)))?;
    clicked("gt", &|i| clicks::uniform(&truth[i], None, own(i)))?;
    clicked("center", &|i| Ok(vec![clicks::centre(&truth[i], Some(&predicted[i]))?]))?;
    let boxes: Vec<f64> = truth.iter().flat_map(clicks::mask_to_box).map(|v| v as f64).collect();
    report.compare(g, "output.mask_to_box", &boxes);
    // Boxes are of the objects that are there, unless there is noise for all.
    let noise = g.floats("input.box_noise");
    let all = noise.len() / 4 == truth.len();
    let rule = clicks::BoxNoise { share: g.f64("box_noise") as f32, bound: g.f64("box_noise_bound") as f32 };
    let there = truth.iter().filter(|mask| all || mask.area() > 0);
    let corners: Vec<[[f32; 2]; 2]> =
        there.zip(noise.as_chunks::<4>().0).map(|(mask, noise)| clicks::noisy_box(mask, *noise, rule)).collect();
    report.compare(g, "output.box_points", &floats(corners.as_flattened().as_flattened()));
    let labels = [clicks::label::TOP_LEFT, clicks::label::BOTTOM_RIGHT].map(f64::from);
    report.compare(g, "output.box_labels", &labels.repeat(corners.len()));
    Ok(())
}

pub fn transforms(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let stored = g.get("input.image_u8");
    let picture = [stored.shape[0], stored.shape[1]];
    let image = Image::new(picture[1], picture[0], stored.values.iter().map(|v| *v as u8).collect())?;
    let three = |key: &str| -> Option<[f64; 3]> {
        let values: Vec<f64> = g.config[key].as_array()?.iter().filter_map(serde_json::Value::as_f64).collect();
        values.try_into().ok()
    };
    let normalise = Normalise::new(three("mean").ok_or("no mean")?, three("std").ok_or("no std")?)?;
    let mut sides = Vec::new();
    for name in outputs(g, "resize") {
        let [side, _] = size(g, name);
        sides.push(side);
        report.compare(g, name, &floats(&transforms::image(&image, side, &normalise)?));
    }
    for name in outputs(g, "pil_bicubic_u") {
        let shape = &g.get(name).shape;
        let resized = resize(&image, image.rect(), shape[1], shape[0], Filter::Bicubic)?;
        report.compare(g, name, &resized.data.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        // What the model gets of it.
        let side = shape[0];
        let plain = Normalise::new([0.0; 3], [1.0 / 255.0; 3])?;
        if shape[0] == shape[1] {
            let planes = transforms::frame(&image, side, &plain)?;
            if planes.iter().zip(resized.to_planes()).any(|(v, byte)| (v - f32::from(byte)).abs() > 1e-3) {
                report.fail(format!("{name}: a frame's values are not its bytes"));
            }
        }
        sides.insert(0, side);
    }
    let side = *sides.first().ok_or("no resolution")?;
    let pairs = |name: &str| g.floats(name).as_chunks::<2>().0.to_vec();
    let points = pairs("input.points");
    let stretched = |points: &[[f32; 2]], picture| -> Result<Vec<f64>, ocellus::Error> {
        Ok(floats(transforms::points(points, picture, side)?.as_flattened()))
    };
    report.compare(g, "output.points_normalized", &stretched(&points, Some(picture))?);
    report.compare(g, "output.boxes", &stretched(&pairs("input.boxes"), Some(picture))?);
    // Relative points are the others over a number that is not in the file.
    if let Some(relative) = g.tensors.get("output.points_relative") {
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        let given = sum(&g.get("input.points").values);
        let divisor = (given * side as f64 / sum(&relative.values)).round() as f32;
        let shares: Vec<[f32; 2]> = points.iter().map(|p| p.map(|v| v / divisor)).collect();
        report.compare(g, "output.points_relative", &stretched(&shares, None)?);
    }
    let (mask, old) = (g.floats("input.mask"), size(g, "input.mask"));
    for name in outputs(g, "mask_antialias_") {
        report.compare(g, name, &floats(&transforms::mask_prompts(&mask, old, size(g, name))?));
    }
    let none = Repair::image(0.0, 0, 0);
    for name in outputs(g, "mask_plain_") {
        report.compare(g, name, &floats(&transforms::output_masks(mask.clone(), old, size(g, name), &none)?));
    }
    let old = size(g, "input.low_res_masks");
    for name in outputs(g, "post_") {
        let logits = g.floats("input.low_res_masks");
        report.compare(g, name, &floats(&transforms::output_masks(logits, old, size(g, name), &none)?));
    }
    Ok(())
}

pub fn jf_metric(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let boundary = g.f64("boundary");
    for name in outputs(g, "disk") {
        let [side, _] = size(g, name);
        let centre = BinaryMask::new(side, side, (0..side * side).map(|i| i == side * side / 2).collect())?;
        report.compare(g, name, &bits(&metric::dilated(&centre, side / 2)));
    }
    let mut videos: Vec<&str> = g.tensors.keys().filter_map(|n| n.strip_prefix("input.")?.split('.').next()).collect();
    videos.dedup(); // names are sorted
    for video in videos {
        let (mut whole, mut inner) = (Vec::new(), Vec::new());
        let prefix = format!("input.{video}.gt_obj");
        let objects: Vec<&str> = g.tensors.keys().filter_map(|n| n.strip_prefix(prefix.as_str())).collect();
        for object in objects {
            let truth = masks(g, &format!("input.{video}.gt_obj{object}"))?;
            let predicted = masks(g, &format!("input.{video}.pred_obj{object}"))?;
            let middle = 1..(truth.len() - 1).max(1);
            let all = metric::frames(&truth, &predicted, boundary)?;
            let without_ends = metric::frames(&truth[middle.clone()], &predicted[middle.clone()], boundary)?;
            // Frames in which nothing is there yet have no score; those at the ends are skipped or not, as their number
            // says.
            let listed = g.tensors.get(&format!("output.{video}.obj{object}.J_per_frame"));
            let skipped = listed.is_some_and(|listed| listed.values.len() != all.len());
            let frames = if skipped { &without_ends } else { &all };
            for (letter, of) in [("J", (|s| s.j) as fn(&metric::Scores) -> f64), ("F", |s| s.f)] {
                let name = format!("output.{video}.obj{object}.{letter}_per_frame");
                report.compare(g, &name, &frames.iter().map(of).collect::<Vec<_>>());
            }
            for name in outputs(g, &format!("{video}.boundary_f")) {
                if let Some(frame) = field(name, "f").filter(|_| name.ends_with(&format!("_obj{object}"))) {
                    let of = |masks: &[BinaryMask]| masks.get(frame).map(|mask| bits(&metric::outline(mask)));
                    nearest(g, report, name, [of(&truth), of(&predicted)].into_iter().flatten().collect());
                }
            }
            let [height, width] = [truth[0].height(), truth[0].width()];
            report.compare(
                g,
                &format!("output.{video}.boundary_pixels"),
                &[metric::radius([height, width], boundary) as f64],
            );
            // An object that is nowhere in the truth does not count.
            let there = |masks: &[BinaryMask]| masks.iter().any(|mask| mask.area() > 0);
            whole.extend(metric::Scores::mean(&all).filter(|_| there(&truth)));
            inner.extend(metric::Scores::mean(&without_ends).filter(|_| there(&truth[middle])));
        }
        // Of all objects or of each; of all frames or without the ends; from 0 to 1 or in percent.
        for (letter, of) in [("J", (|s| s.j) as fn(&metric::Scores) -> f64), ("F", |s| s.f)] {
            let mut readings = Vec::new();
            for scores in [&whole, &inner] {
                let each: Vec<f64> = scores.iter().map(of).collect();
                let mean: Vec<f64> = metric::Scores::mean(scores).iter().map(of).collect();
                for values in [each, mean] {
                    readings.push(values.iter().map(|v| 100.0 * v).collect());
                    readings.push(values);
                }
            }
            nearest(g, report, &format!("output.{video}.{letter}"), readings);
        }
    }
    Ok(())
}

pub fn amg_postprocess(g: &Golden, _: &Device, report: &mut Report) -> Outcome {
    let quality = amg::Quality {
        predicted_iou: g.f64("pred_iou_thresh") as f32,
        stability: g.f64("stability_thresh"),
        threshold: g.f64("mask_threshold") as f32,
        offset: g.f64("stability_offset") as f32,
    };
    let logits = g.floats("input.mask_logits");
    let [height, width] = size(g, "input.mask_logits");
    let planes: Vec<&[f32]> = logits.chunks_exact(height * width).collect();
    let stable: Vec<f64> =
        planes.iter().map(|plane| amg::stability(plane, quality.threshold, quality.offset)).collect();
    // Of no logits above either threshold it is not a number, in the file as here.
    let truth = &g.get("output.stability").values;
    if truth.iter().zip(&stable).any(|(a, b)| a.is_nan() != b.is_nan()) {
        report.fail(format!("output.stability: {stable:?}, expected {truth:?}"));
    }
    report.compare(
        g,
        "output.stability",
        &stable.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect::<Vec<_>>(),
    );

    let predicted = g.floats("input.iou_preds");
    let passes = |plane: &[f32], iou: f32| quality.good(iou) && quality.stable(quality.stability_of(plane));
    let passes: Vec<bool> = planes.iter().zip(&predicted).map(|(plane, iou)| passes(plane, *iou)).collect();
    let kept: Vec<usize> = (0..planes.len()).filter(|i| passes[*i]).collect();
    let numbers = |all: &[usize]| all.iter().map(|i| *i as f64).collect::<Vec<f64>>();
    let flags = passes.iter().map(|p| f64::from(u8::from(*p))).collect();
    let scores = kept.iter().map(|i| f64::from(predicted[*i])).collect();
    nearest(g, report, "output.keep_scores", vec![flags, numbers(&kept), scores]);

    // What follows may be of all masks or of those kept.
    let all: Vec<BinaryMask> = planes
        .iter()
        .map(|plane| BinaryMask::above(width, height, plane, quality.threshold))
        .collect::<Result<_, _>>()?;
    let good: Vec<BinaryMask> = kept.iter().map(|i| all[*i].clone()).collect();
    let both = [&all, &good];
    let boxes = |masks: &Vec<BinaryMask>| masks.iter().map(amg::box_of).collect::<Vec<_>>();
    nearest(g, report, "output.boxes", both.map(|m| floats(boxes(m).as_flattened())).to_vec());
    let runs = both.map(|masks| masks.iter().map(Rle::encode).collect::<Vec<_>>());
    let areas = |runs: &Vec<Rle>| runs.iter().map(|rle| rle.area() as f64).collect::<Vec<_>>();
    nearest(g, report, "output.rle_area", runs.each_ref().map(areas).to_vec());
    let counts = |rle: &Rle| rle.counts().iter().map(|run| *run as f64).collect::<Vec<_>>();
    let text = |rle: &Rle| rle.to_text().bytes().map(f64::from).collect::<Vec<_>>();
    strung(g, report, "output.rle_counts", &runs, &counts);
    strung(g, report, "output.coco_rle_ascii", &runs, &text);

    for name in outputs(g, "nms_keep") {
        // `nms_keep_5` and `nms_keep_05` are of 0.5, if not of 0.05; without a number it is the default.
        let thresholds: Vec<f64> = match name.rsplit_once("keep_") {
            Some((_, digits)) => [digits, digits.trim_start_matches('0')].map(|d| format!("0.{d}").parse()).to_vec(),
            None => vec![Ok(0.7)],
        }
        .into_iter()
        .collect::<Result<_, _>>()?;
        let good_scores: Vec<f32> = kept.iter().map(|i| predicted[*i]).collect();
        let mut readings = Vec::new();
        for threshold in thresholds {
            let of_good = amg::suppress(&boxes(&good), &good_scores, threshold)?;
            readings.push(numbers(&amg::suppress(&boxes(&all), &predicted, threshold)?));
            readings.push(of_good.iter().map(|i| kept[*i] as f64).collect());
            readings.push(numbers(&of_good));
        }
        nearest(g, report, name, readings);
    }
    crops(g, report, both)?;
    small_parts(g, report, quality.threshold)?;
    for name in outputs(g, "non_overlap_first") {
        let mut first = logits[..g.get(name).values.len()].to_vec();
        amg::without_overlap(&mut first, height * width)?;
        report.compare(g, name, &floats(&first));
    }
    for name in outputs(g, "point_grid") {
        let side = g.get(name).values.len().div_euclid(2).isqrt();
        report.compare(g, name, amg::point_grid(side).as_flattened());
    }
    Ok(())
}

/// Lists of different lengths: strung together, with something between them, in rows filled up, or the first alone.
fn strung(g: &Golden, report: &mut Report, name: &str, runs: &[Vec<Rle>; 2], of: &dyn Fn(&Rle) -> Vec<f64>) {
    let mut readings = Vec::new();
    for runs in runs {
        let lists: Vec<Vec<f64>> = runs.iter().map(of).collect();
        readings.push(lists.concat());
        readings.extend(lists.first().cloned());
        for separator in [-1.0, 0.0, 10.0, 32.0, 44.0] {
            readings.push(lists.join(&separator));
            readings.push([lists.join(&separator), vec![separator]].concat());
        }
        if let [_, columns] = g.get(name).shape[..] {
            for filling in [-1.0, 0.0, 32.0] {
                let fill = |list: &Vec<f64>| {
                    let mut list = list.clone();
                    list.resize(columns, filling);
                    list
                };
                readings.push(lists.iter().flat_map(fill).collect());
            }
        }
    }
    nearest(g, report, name, readings);
}

/// Crop boxes and what is done with the boxes of one.
fn crops(g: &Golden, report: &mut Report, masks: [&Vec<BinaryMask>; 2]) -> Outcome {
    let stored = &g.get("output.crop_boxes").values;
    let (picture, layers) = ([stored[3] as usize, stored[2] as usize], &g.get("output.crop_layers").values);
    let deepest = layers.iter().fold(0.0f64, |m, l| m.max(*l)) as u32;
    let all = amg::crops(picture, deepest, g.f64("crop_overlap_ratio"))?;
    let corners = |r: Rect| [r.left, r.top, r.left + r.width, r.top + r.height].map(|v| v as f64);
    report.compare(g, "output.crop_boxes", &all.iter().flat_map(|c| corners(c.rect)).collect::<Vec<_>>());
    report.compare(g, "output.crop_layers", &all.iter().map(|c| f64::from(c.layer)).collect::<Vec<_>>());
    // Which crop the boxes are of is not in the file: one of those, and the same for all that follows.
    let local = g.floats("input.crop_local_boxes").as_chunks::<4>().0.to_vec();
    let edges: Vec<&str> = outputs(g, "near_crop_edge_atol").collect();
    let of_crop = |rect: Rect| -> Vec<(String, Vec<Vec<f64>>)> {
        let mut found = Vec::new();
        for name in &edges {
            let tolerance = need(name, "atol").unwrap_or(20) as f32;
            let near = |b: &[f32; 4]| f64::from(u8::from(amg::near_crop_edge(*b, rect, picture, tolerance)));
            found.push((name.to_string(), vec![local.iter().map(near).collect()]));
        }
        let boxes: Vec<[f32; 4]> = local.iter().map(|b| amg::uncrop_box(*b, rect)).collect();
        let mut uncropped = vec![floats(boxes.as_flattened())];
        for masks in masks {
            let whole = masks.iter().map(|mask| Ok(bits(&amg::uncrop_mask(mask, rect, picture)?)));
            uncropped.extend(whole.collect::<Result<Vec<_>, ocellus::Error>>().map(|m| m.concat()));
        }
        found.push(("output.uncropped".to_string(), uncropped));
        found
    };
    let fits = |found: &[(String, Vec<Vec<f64>>)]| {
        found.iter().filter(|(name, readings)| readings.contains(&g.get(name).values)).count()
    };
    let best = all.iter().map(|crop| of_crop(crop.rect)).max_by_key(|found| fits(found));
    for (name, readings) in best.unwrap_or_default() {
        nearest(g, report, &name, readings);
    }
    Ok(())
}

/// Small holes and islands of masks and of scores.
fn small_parts(g: &Golden, report: &mut Report, threshold: f32) -> Outcome {
    let area = g.usize("small_region_area");
    let noisy = masks(g, "input.noisy_masks")?;
    let without = |masks: &[BinaryMask], what: Small| -> Vec<BinaryMask> {
        masks.iter().map(|mask| remove_small(mask, area, what).unwrap_or_else(|| mask.clone())).collect()
    };
    let all_bits = |masks: &[BinaryMask]| masks.iter().flat_map(bits).collect::<Vec<_>>();
    let filled = without(&noisy, Small::Holes);
    report.compare(g, "output.small_holes", &all_bits(&filled));
    let readings = [&noisy, &filled].map(|masks| all_bits(&without(masks, Small::Islands)));
    nearest(g, report, "output.small_islands", readings.to_vec());
    let all_small = masks(g, "input.all_small")?;
    report.compare(g, "output.all_small_islands", &all_bits(&without(&all_small, Small::Islands)));

    for name in outputs(g, "filled_area") {
        let mut scores = g.floats("input.fill_scores");
        let area = need(name, "area").unwrap_or(g.usize("fill_hole_area"));
        Repair::video(area).apply(&mut scores, size(g, "input.fill_scores"))?;
        report.compare(g, name, &floats(&scores));
    }
    for name in outputs(g, "post_hole") {
        let repair = Repair::image(threshold, need(name, "hole")?, need(name, "sprinkle")?);
        let mut readings = Vec::new();
        for input in ["input.fill_scores", "input.mask_logits"] {
            let scores = transforms::output_masks(g.floats(input), size(g, input), size(g, name), &repair)?;
            readings.push(floats(&scores));
        }
        nearest(g, report, name, readings);
    }
    Ok(())
}
