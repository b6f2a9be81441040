//! `ocellus segment` and `ocellus eval video`.

use std::path::{Path, PathBuf};

use ocellus::data::binary_mask::BinaryMask;
use ocellus::data::label_map::LabelMap;
use ocellus::data::rle::Rle;
use ocellus::data::videos::{Videos, frames};
use ocellus::data::{Image, augment::Normalise, decode};
use ocellus::eval::video_objects::{evaluate, masks_of, mean, model_frame, model_mask};
use ocellus::recipes::sam2::amg::Quality;
use ocellus::recipes::sam2::everything::{Everything, Tried};
use ocellus::recipes::sam2::image::{ImagePredictor, ImagePrompt};
use ocellus::recipes::sam2::picture::overlay;
use ocellus::recipes::sam2::regions::Repair;
use ocellus::recipes::sam2::{Label, Points, Video, VideoOptions, load, transforms};
use ocellus::train::Progress;
use ocellus::{Error, Result};

use super::Machine;

/// `10,20` as x and y.
fn parse_point(text: &str) -> std::result::Result<[f32; 2], String> {
    numbers(text).and_then(|v| <[f32; 2]>::try_from(v).map_err(|_| "expected x,y in pixels".into()))
}

/// `10,20,30,40` as left, top, right and bottom.
fn parse_box(text: &str) -> std::result::Result<[f32; 4], String> {
    numbers(text).and_then(|v| <[f32; 4]>::try_from(v).map_err(|_| "expected left,top,right,bottom in pixels".into()))
}

fn numbers(text: &str) -> std::result::Result<Vec<f32>, String> {
    let one = |part: &str| match part.trim().parse::<f32>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err(format!("`{part}` is no number")),
    };
    text.split(',').map(one).collect()
}

/// Where the object is.
#[derive(clap::Args)]
struct Where {
    /// A point of the object, x,y in pixels; may be given several times
    #[arg(long = "point", value_name = "X,Y", value_parser = parse_point)]
    points: Vec<[f32; 2]>,
    /// A point that is not part of the object
    #[arg(long = "not", value_name = "X,Y", value_parser = parse_point)]
    negatives: Vec<[f32; 2]>,
    /// A box around the object: left,top,right,bottom in pixels
    #[arg(long = "box", value_name = "L,T,R,B", value_parser = parse_box)]
    corners: Option<[f32; 4]>,
}

impl Where {
    fn is_empty(&self) -> bool {
        self.points.is_empty() && self.negatives.is_empty() && self.corners.is_none()
    }

    /// Points without the box, in pixels of the picture.
    fn clicks(&self) -> Result<Option<Points>> {
        let coords: Vec<[f32; 2]> = self.points.iter().chain(&self.negatives).copied().collect();
        let labels = self.points.iter().map(|_| Label::Positive);
        let labels: Vec<Label> = labels.chain(self.negatives.iter().map(|_| Label::Negative)).collect();
        if coords.is_empty() { Ok(None) } else { Ok(Some(Points::new(coords, labels, 1)?)) }
    }
}

/// Flags of `segment image`.
#[derive(clap::Args)]
pub struct ImageFlags {
    /// Weights: official .pt, safetensors, a Hugging Face folder or a run of `pretrain sam2`
    model: PathBuf,
    /// The picture
    image: PathBuf,
    #[command(flatten)]
    at: Where,
    /// Three masks, for what a point may mean
    #[arg(long)]
    several: bool,
    /// Everything in the picture, without a prompt
    #[arg(long, conflicts_with_all = ["points", "negatives", "corners", "several"])]
    everything: bool,
    /// Points on a side of the grid that everything is looked for with
    #[arg(long, default_value_t = 32, requires = "everything", value_parser = clap::value_parser!(u16).range(1..=512))]
    points_per_side: u16,
    /// Predicted IoU that a mask of everything must exceed: lower it for a model that thinks little of its masks
    #[arg(long, default_value_t = 0.8, requires = "everything")]
    iou: f32,
    /// Least stability of a mask of everything: of its pixels at a loose threshold, the share left at a strict one
    #[arg(long, default_value_t = 0.95, requires = "everything")]
    stability: f64,
    /// Image side of the model in pixels [default: the weights']
    #[arg(long)]
    image_size: Option<usize>,
    /// Folder to write to: overlay.png, a mask_*.png each, masks.json with boxes, scores and COCO run lengths
    #[arg(long, short, default_value = "masks")]
    out: PathBuf,
}

/// A mask in masks.json.
#[derive(serde::Serialize)]
struct Line {
    predicted_iou: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stability_score: Option<f64>,
    area: usize,
    /// Left, top, width, height.
    bbox: [usize; 4],
    segmentation: Segmentation,
}

#[derive(serde::Serialize)]
struct Segmentation {
    size: [usize; 2],
    counts: String,
}

impl Line {
    fn new(mask: &BinaryMask, predicted_iou: f32, stability_score: Option<f64>) -> Self {
        let rle = Rle::encode(mask);
        let [left, top, right, bottom] = mask.bounds().unwrap_or_default();
        let empty = mask.area() == 0;
        let bbox = if empty { [0; 4] } else { [left, top, right - left + 1, bottom - top + 1] };
        let segmentation = Segmentation { size: [mask.height(), mask.width()], counts: rle.to_text() };
        Self { predicted_iou, stability_score, area: mask.area(), bbox, segmentation }
    }
}

fn gray(mask: &BinaryMask) -> LabelMap {
    let ids = mask.pixels().iter().map(|&inside| u8::from(inside)).collect();
    LabelMap { width: mask.width(), height: mask.height(), ids }
}

/// Answers a prompt about a picture, or finds everything in it.
pub fn image(flags: &ImageFlags, machine: &Machine) -> Result<()> {
    if !flags.everything && flags.at.is_empty() {
        return Err(Error::config("prompt", "nothing", "--point, --box or --everything"));
    }
    let image = decode::open(&flags.image)?;
    let device = machine.device()?;
    let dtype = machine.dtype(&device)?;
    let model = load::model(&flags.model, &device, dtype, flags.image_size, load::Use::Images)?;
    let (mut found, mut nothing): (Vec<(BinaryMask, Line)>, _) = (Vec::new(), None);
    if flags.everything {
        let usual = Everything::default();
        let quality = Quality { predicted_iou: flags.iou, stability: flags.stability, ..usual.quality };
        let side = usize::from(flags.points_per_side);
        let settings = Everything { points_per_side: side, quality, ..usual };
        let batch = settings.points_per_batch;
        let steps = (side * side).div_ceil(batch) as u64;
        let mut progress = Progress::new("everything", steps, 0, batch as f64, "points");
        let (all, tried) = settings.find(&model, &image, &mut |_, _| progress.step(""))?;
        if all.is_empty() {
            nothing = Some(what_to_lower(&tried, &quality));
        }
        for one in all {
            let line = Line::new(&one.mask, one.iou, Some(one.stability));
            found.push((one.mask, line));
        }
        progress.finish();
        found.sort_by_key(|(mask, _)| std::cmp::Reverse(mask.area())); // small ones are drawn last
    } else {
        let predictor = ImagePredictor::new(&model, &image, &Normalise::imagenet(), Repair::image(0.0, 0, 0))?;
        let boxes = flags.at.corners.into_iter().collect();
        let prompt = ImagePrompt { points: flags.at.clicks()?, boxes, mask: None };
        let answer = predictor.predict(&prompt, flags.several)?;
        let (logits, ious) = (answer.masks.to_vec::<f32>()?, answer.ious.to_vec::<f32>()?);
        for (logits, &iou) in logits.chunks_exact(image.width * image.height).zip(&ious) {
            let mask = BinaryMask::above(image.width, image.height, logits, 0.0)?;
            let line = Line::new(&mask, iou, None);
            found.push((mask, line));
        }
    }
    std::fs::create_dir_all(&flags.out).map_err(Error::io(&flags.out))?;
    for (i, (mask, line)) in found.iter().enumerate() {
        gray(mask).save(flags.out.join(format!("mask_{i}.png")))?;
        if found.len() <= 8 {
            say!("mask {i}: predicted IoU {:.3}, {} pixels", line.predicted_iou, line.area);
        }
    }
    let masks: Vec<(usize, &BinaryMask)> = found.iter().enumerate().map(|(i, (mask, _))| (i, mask)).collect();
    overlay(&image, &masks).save_png(flags.out.join("overlay.png"))?;
    let lines: Vec<&Line> = found.iter().map(|(_, line)| line).collect();
    let text = serde_json::to_string_pretty(&lines).map_err(|e| Error::Training(format!("masks.json: {e}")))?;
    let file = flags.out.join("masks.json");
    std::fs::write(&file, text).map_err(Error::io(&file))?;
    say!("{} masks in {}; picture: {}", found.len(), file.display(), flags.out.join("overlay.png").display());
    if let Some(nothing) = nothing {
        say!("{nothing}");
    }
    Ok(())
}

/// Why no candidate was kept, and which flag keeps more.
fn what_to_lower(tried: &Tried, quality: &Quality) -> String {
    let Tried { candidates, good, .. } = tried;
    match (tried.iou, tried.stability) {
        (best, _) if *good == 0 => format!(
            "none of {candidates} candidates has a predicted IoU above {} (--iou): the best has {}; lower --iou",
            quality.predicted_iou,
            best.map_or("no number".into(), |best| format!("{best:.4}"))
        ),
        (_, Some(best)) if tried.stable == 0 => format!(
            "{good} of {candidates} candidates have a predicted IoU above {} (--iou), but none of them a \
             stability of {} (--stability): the best has {:.4}; lower --stability to that",
            quality.predicted_iou,
            quality.stability,
            (best * 1e4).floor() / 1e4 // no more than it is
        ),
        _ => format!("the {good} of {candidates} candidates above --iou {} have no pixel", quality.predicted_iou),
    }
}

/// Flags of `segment video`.
#[derive(clap::Args)]
pub struct VideoFlags {
    /// Weights: official .pt, safetensors, a Hugging Face folder or a run of `pretrain sam2`
    model: PathBuf,
    /// Folder of frames, in the order of their numbers or names; `ffmpeg -i video.mp4 -q:v 2 -start_number 0 frames/%05d.jpg`
    /// makes one of a video file
    frames: PathBuf,
    #[command(flatten)]
    at: Where,
    /// A label map of the objects in the frame of the prompt instead: a number for each, 0 for none
    #[arg(long, value_name = "PNG", conflicts_with_all = ["points", "negatives", "corners"])]
    masks: Option<PathBuf>,
    /// Number of the frame that the prompt is about, from 0
    #[arg(long, default_value_t = 0)]
    frame: usize,
    /// Fill holes of up to so many pixels of the small masks; 0 for none
    #[arg(long, default_value_t = 8)]
    fill_holes: usize,
    /// Image side of the model in pixels [default: the weights']
    #[arg(long)]
    image_size: Option<usize>,
    /// Folder to write to: masks/ with a label map for each frame, overlay/ with pictures
    #[arg(long, short, default_value = "tracked")]
    out: PathBuf,
}

/// Follows objects through a video, forwards and then backwards from the frame of the prompt.
pub fn video(flags: &VideoFlags, machine: &Machine) -> Result<()> {
    if flags.masks.is_none() && flags.at.is_empty() {
        return Err(Error::config("prompt", "nothing", "--point, --box or --masks"));
    }
    let paths = frames(&flags.frames)?;
    if flags.frame >= paths.len() {
        return Err(Error::config("frame", flags.frame, format!("below {}, the number of frames", paths.len())));
    }
    let device = machine.device()?;
    let dtype = machine.dtype(&device)?;
    let model = load::model(&flags.model, &device, dtype, flags.image_size, load::Use::Videos)?;
    let first = decode::open(&paths[flags.frame])?;
    let size = [first.height, first.width];
    let options = VideoOptions {
        non_overlap_masks: flags.masks.is_some(),
        fill_hole_area: flags.fill_holes,
        ..VideoOptions::default()
    };
    let mut video = Video::new(&model, size, Some(paths.len()), options);
    let (at, input) = (flags.frame as i64, model_frame(&model, &first)?);
    match &flags.masks {
        Some(path) => {
            let map = LabelMap::open(path)?;
            let mut ids: Vec<u8> = map.ids.iter().copied().filter(|&id| id != 0).collect();
            ids.sort_unstable();
            ids.dedup();
            if ids.is_empty() {
                return Err(Error::Dataset { path: path.clone(), cause: "no object in it: every pixel is 0".into() });
            }
            for id in ids {
                let inside = map.ids.iter().map(|&x| x == id).collect();
                let mask = BinaryMask::new(map.width, map.height, inside)?;
                video.add_mask(at, &input, id.into(), &model_mask(&model, &mask)?)?;
            }
        }
        None => {
            let side = model.sizes().image_size;
            let placed =
                |p: Points| Ok::<_, Error>(Points { coords: transforms::points(&p.coords, Some(size), side)?, ..p });
            let boxes = flags.at.corners.map(|b| placed(Points::boxes(&[b]))).transpose()?;
            let points = flags.at.clicks()?.map(placed).transpose()?;
            let points = match (boxes, points) {
                (Some(boxes), Some(points)) => boxes.then(&points)?,
                (Some(points), None) | (None, Some(points)) => points,
                (None, None) => return Err(Error::config("prompt", "nothing", "--point, --box or --masks")),
            };
            video.add_points(at, &input, 1, &points, true)?;
        }
    }
    for folder in ["masks", "overlay"].map(|name| flags.out.join(name)) {
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    let mut progress = Progress::new("track", paths.len() as u64, 0, 1.0, "frames");
    let forwards = (flags.frame..paths.len()).map(|i| (i, false));
    for (i, reverse) in forwards.chain((0..flags.frame).rev().map(|i| (i, true))) {
        let image = decode::open(&paths[i])?;
        if [image.height, image.width] != size {
            let cause =
                format!("{} x {}, the frame of the prompt has {} x {}", image.height, image.width, size[0], size[1]);
            return Err(Error::Image { path: paths[i].clone(), cause });
        }
        let frame = if i == flags.frame { input.clone() } else { model_frame(&model, &image)? };
        let found = masks_of(&video.step(i as i64, &frame, reverse)?)?;
        let masks: Vec<(i64, &BinaryMask)> = found.iter().map(|(&id, mask)| (id, mask)).collect();
        write_frame(&flags.out, &paths[i], &image, &masks, false)?;
        progress.step("");
    }
    progress.finish();
    say!("{} frames: label maps in {}", paths.len(), flags.out.join("masks").display());
    say!("pictures: {}", flags.out.join("overlay").display());
    Ok(())
}

/// Writes `masks/<frame>.png`, where each object is its number, or where one is none of 1 to 255, or they may overlap,
/// `masks/<object>/<frame>.png`; and `overlay/<frame>.png`.
fn write_frame(out: &Path, frame: &Path, image: &Image, masks: &[(i64, &BinaryMask)], apart: bool) -> Result<()> {
    let name = format!("{}.png", frame.file_stem().unwrap_or_default().to_string_lossy());
    let apart = apart || masks.iter().any(|(id, _)| !(1..=255).contains(id));
    if apart {
        for (id, mask) in masks {
            let folder = out.join("masks").join(format!("{id:03}"));
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            gray(mask).save(folder.join(&name))?;
        }
    } else {
        let mut map = LabelMap { width: image.width, height: image.height, ids: vec![0; image.width * image.height] };
        for (id, mask) in masks {
            map.ids.iter_mut().zip(mask.pixels()).filter(|(_, inside)| **inside).for_each(|(x, _)| *x = *id as u8);
        }
        map.save(out.join("masks").join(&name))?;
    }
    let drawn: Vec<(usize, &BinaryMask)> = masks.iter().map(|(id, mask)| (*id as usize, *mask)).collect();
    overlay(image, &drawn).save_png(out.join("overlay").join(&name))
}

/// Flags of `eval video`.
#[derive(clap::Args)]
pub struct EvalFlags {
    /// Weights: official .pt, safetensors, a Hugging Face folder or a run of `pretrain sam2`
    model: PathBuf,
    /// Folder of videos with masks: DAVIS, MOSE, SA-V (frames extracted), or `data synth --video`; the layout is seen
    data: PathBuf,
    /// Let objects overlap: for data with a mask for each object, as all of SA-V
    #[arg(long)]
    overlap: bool,
    /// Image side of the model in pixels [default: the weights']
    #[arg(long)]
    image_size: Option<usize>,
    /// Folder to write label maps and pictures to, a folder for each video
    #[arg(long, value_name = "FOLDER")]
    predictions: Option<PathBuf>,
}

/// J & F of following every object from its first mask.
pub fn eval(flags: &EvalFlags, machine: &Machine) -> Result<()> {
    let videos = Videos::open(&flags.data, true)?;
    let device = machine.device()?;
    let dtype = machine.dtype(&device)?;
    let model = load::model(&flags.model, &device, dtype, flags.image_size, load::Use::Benchmark)?;
    let options = VideoOptions { non_overlap_masks: !flags.overlap, ..VideoOptions::default() };
    let mut all = Vec::new();
    let mut progress = Progress::new("videos", videos.videos.len() as u64, 0, 1.0, "videos");
    for video in &videos.videos {
        let out = flags.predictions.as_ref().map(|folder| folder.join(&video.name));
        for folder in out.iter().flat_map(|out| [out.join("masks"), out.join("overlay")]) {
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        all.push(evaluate(&model, video, options, &mut |at, image, masks| match &out {
            Some(out) => {
                let masks: Vec<(i64, &BinaryMask)> = masks.iter().map(|(&id, mask)| (id, mask)).collect();
                write_frame(out, &video.frames[at], image, &masks, flags.overlap)
            }
            None => Ok(()),
        })?);
        progress.step("");
    }
    progress.finish();
    let Some(scores) = mean(&all) else {
        let cause = "no object is seen in a frame that counts: between the first and the last with masks".to_string();
        return Err(Error::Dataset { path: flags.data.clone(), cause });
    };
    let objects: usize = all.iter().map(|v| v.objects.len()).sum();
    let speed: f64 = all.iter().map(|v| v.frames_per_second).sum::<f64>() / all.len() as f64;
    say!(
        "J&F {:.1} %, J {:.1} %, F {:.1} %: {objects} objects of {} videos, {speed:.1} frames a second",
        100.0 * scores.j_and_f(),
        100.0 * scores.j,
        100.0 * scores.f,
        all.len()
    );
    Ok(())
}
