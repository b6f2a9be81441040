//! SAM-2 from clips to masks of objects, and what stops it.

use std::fs;

use ocellus::checkpoint::{self, safetensors};
use ocellus::data::label_map::LabelMap;
use ocellus::data::{BinaryMask, Rle};

use crate::support::{Place, fail, logged, names, ocellus, succeed};

#[test]
fn from_clips_to_masks_of_objects() {
    let place = Place::new();
    let val = place.text("clips/val");
    let (out, _) = succeed(place.sam2("run", &["--val", &val]));
    names(&out, &["model.safetensors", "upstream.safetensors", "run/pictures/masks.png", "J&F on"]);
    assert_eq!(logged(&place.path("run"), "train"), [1, 2, 3, 4]);
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    for key in ["loss_mask", "loss_dice", "loss_iou", "loss_class", "answers"] {
        assert!(first[key].is_f64(), "no {key} in {first}");
    }

    // Both files are the model, under both sets of names.
    let frames = place.text("clips/val/frames/00000");
    let (first, masks) = (format!("{frames}/00000.png"), place.text("given.png"));
    // Large enough to be seen in a small mask of 8 x 8.
    let square = |t: usize| u8::from((8..24).contains(&(t % 32)) && (4..20).contains(&(t / 32))) * 3;
    LabelMap { width: 32, height: 32, ids: (0..32 * 32).map(square).collect() }.save(&masks).unwrap();
    let mut maps = Vec::new();
    for model in ["run", "run/upstream.safetensors", "run/model.safetensors"] {
        let (model, tracked) = (place.text(model), place.text("tracked"));
        let (out, _) = succeed(ocellus(&["segment", "video", &model, &frames, "--masks", &masks, "--out", &tracked]));
        names(&out, &["4 frames: label maps in", "overlay"]);
        let map = |at: usize| LabelMap::open(place.path("tracked/masks").join(format!("{at:05}.png"))).unwrap();
        maps.push((0..4).map(|at| map(at).ids).collect::<Vec<_>>());
        assert!(place.path("tracked/overlay/00003.png").exists());
    }
    assert!(maps.iter().all(|m| *m == maps[0]));
    // The masks that were given come back, but for what is lost by enlarging a small mask.
    let given = LabelMap::open(&masks).unwrap().ids;
    let objects = |both: fn(u8, u8) -> bool| given.iter().zip(&maps[0][0]).filter(|(a, b)| both(**a, **b)).count();
    let (common, either) = (objects(|a, b| a != 0 && a == b), objects(|a, b| a != 0 || b != 0));
    assert!(either > 0 && 2 * common > either, "{common} of {either} pixels of objects");

    // A point in the middle of the video is followed both ways.
    let (run, tracked) = (place.text("run"), place.text("both"));
    let point = ["--point", "16,16", "--not", "2,3", "--frame", "2"];
    let mut command = ocellus(&["segment", "video", &run, &frames, "--out", &tracked]);
    command.args(point);
    succeed(command);
    assert_eq!(fs::read_dir(place.path("both/masks")).unwrap().count(), 4);

    let found = place.text("masks");
    let (out, _) =
        succeed(ocellus(&["segment", "image", &run, &first, "--box", "4,4,20,20", "--several", "--out", &found]));
    names(&out, &["mask 2: predicted IoU", "3 masks in", "overlay.png"]);
    let text = fs::read_to_string(place.path("masks/masks.json")).unwrap();
    let lines: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!((lines.len(), lines[0]["segmentation"]["size"].clone()), (3, serde_json::json!([32, 32])));
    let flags = ["--everything", "--points-per-side", "3", "--iou", "0", "--stability", "0"];
    let mut command = ocellus(&["segment", "image", &run, &first, "--out", &found]);
    command.args(flags);
    names(&succeed(command).0, &["masks in"]);
    // Where none is kept, it says which limit is in the way and what the best candidate has.
    for (iou, stability, parts) in [
        ("2", "0.95", ["none of 27 candidates has a predicted IoU above 2 (--iou): the best has 0.", "lower --iou"]),
        ("0", "1.5", ["27 of 27 candidates have", "none of them a stability of 1.5 (--stability): the best has"]),
    ] {
        let mut command = ocellus(&["segment", "image", &run, &first, "--out", &found, "--everything"]);
        command.args(["--points-per-side", "3", "--iou", iou, "--stability", stability]);
        let (out, _) = succeed(command);
        names(&out, &["0 masks in"]);
        names(&out, &parts);
    }

    let predictions = place.text("predictions");
    let (out, _) = succeed(ocellus(&["eval", "video", &run, &val, "--predictions", &predictions]));
    names(&out, &["J&F ", "objects of 1 videos", "frames a second"]);
    assert!(place.path("predictions/00000/masks/00001.png").exists());

    // From weights to weights: one update changes little.
    succeed(place.sam2("more", &["--init", &run, "--lr", "1e-9", "--vision-lr", "0", "--epochs", "1"]));
    let weights = |out: &str| checkpoint::read(place.path(out).join("upstream.safetensors")).unwrap();
    let (before, after) = (weights("run"), weights("more"));
    let change = |name: &str| {
        let [a, b] = [&before, &after].map(|dict| dict.require(name).unwrap().to_f64().unwrap());
        a.iter().zip(&b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()))
    };
    assert!(before.names().all(|name| change(name) < 1e-6));
}

#[test]
fn what_cannot_be_used_is_named() {
    let place = Place::new();
    drop(place.sam2("nothing", &[])); // makes the clips
    let error = fail(place.sam2("run", &["--frames", "9"]));
    names(&error, &["at most 4 frames with masks in a video, a clip has 9"]);
    let error = fail(place.sam2("run", &["--image-size", "40"]));
    names(&error, &["`image_size`", "multiple of 32"]);
    let error = fail(place.sam2("run", &["--max-objects", "65"]));
    names(&error, &["`max_objects`", "at most 64"]);
    let data = place.text("data/train");
    names(&fail(ocellus(&["pretrain", "sam2", &data, "--preset", "micro"])), &["no folder of frames"]);
    assert!(!place.path("run").exists());

    succeed(place.sam2("run", &["--epochs", "1"]));
    let (run, frame) = (place.text("run"), place.text("clips/val/frames/00000/00000.png"));
    names(&fail(ocellus(&["segment", "image", &run, &frame])), &["--point, --box or --everything"]);
    let frames = place.text("clips/val/frames/00000");
    let error = fail(ocellus(&["segment", "video", &run, &frames, "--point", "1,1", "--frame", "4"]));
    names(&error, &["`frame`", "below 4"]);
    names(&fail(ocellus(&["segment", "image", &place.text("data"), &frame, "--point", "1,1"])), &["data"]);

    // A weight that is missing is named; so is one of another model.
    let dict = checkpoint::read(place.path("run/upstream.safetensors")).unwrap();
    let mut less = checkpoint::StateDict::new();
    for (name, tensor) in dict.iter().filter(|(name, _)| *name != "sam_mask_decoder.iou_token.weight") {
        less.insert(name, tensor.clone()).unwrap();
    }
    less.metadata = dict.metadata.clone();
    safetensors::write(place.path("less.safetensors"), &less).unwrap();
    let error = fail(ocellus(&["segment", "image", &place.text("less.safetensors"), &frame, "--point", "1,1"]));
    names(&error, &["sam_mask_decoder.iou_token.weight"]);
    // Without its sizes a model is known by its width and its blocks: here one is missing.
    let mut less = checkpoint::StateDict::new();
    for (name, tensor) in dict.iter().filter(|(name, _)| !name.contains("trunk.blocks.6.")) {
        less.insert(name, tensor.clone()).unwrap();
    }
    safetensors::write(place.path("less.safetensors"), &less).unwrap();
    let error = fail(ocellus(&["segment", "image", &place.text("less.safetensors"), &frame, "--point", "1,1"]));
    names(&error, &["which no released SAM-2 model has"]);
}

/// A frame that cannot be read is counted and named, or ends the run with `--strict`.
#[test]
fn a_damaged_frame_is_skipped_with_its_video() {
    let place = Place::new();
    drop(place.sam2("nothing", &[]));
    fs::write(place.path("clips/train/frames/00001/00001.png"), b"no picture").unwrap();
    let (_, err) = succeed(place.sam2("run", &["--epochs", "4"]));
    names(&err, &["frames/00001/00001.png", "unreadable videos were skipped"]);
    let error = fail(place.sam2("strict", &["--epochs", "4", "--strict"]));
    names(&error, &["frames/00001/00001.png"]);
}

/// The clips as SA-V has its training videos: frames by their number in the video, masks as run lengths in a file for
/// each.
fn as_masklets(place: &Place) -> String {
    let clips = place.path("clips/train");
    for folder in fs::read_dir(clips.join("frames")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let out = place.path("sav").join(name);
        fs::create_dir_all(&out).unwrap();
        let open = |at: usize| LabelMap::open(clips.join("masks").join(name).join(format!("{at:05}.png"))).unwrap();
        let maps: Vec<LabelMap> = (0..4).map(open).collect();
        let objects = *maps.iter().flat_map(|map| &map.ids).max().unwrap();
        let mask = |map: &LabelMap, object: u8| {
            let inside = map.ids.iter().map(|&id| id == object).collect();
            let counts = Rle::encode(&BinaryMask::new(32, 32, inside).unwrap()).to_text();
            serde_json::json!({"size": [32, 32], "counts": counts})
        };
        let list = |map| (1..=objects).map(|object| mask(map, object)).collect::<Vec<_>>();
        let lists: Vec<_> = maps.iter().map(list).collect();
        fs::write(out.with_extension("json"), "[]").unwrap(); // no file of masks
        let file = out.with_file_name(format!("{name}_manual.json"));
        fs::write(file, serde_json::json!({"masklet": lists}).to_string()).unwrap();
        for at in 0..4 {
            fs::copy(folder.join(format!("{at:05}.png")), out.join(format!("{:05}.png", 4 * at))).unwrap();
        }
    }
    place.text("sav")
}

/// The layout changes nothing; a damaged file is counted and named, or ends the run.
#[test]
fn masklets_are_the_masks_that_they_say() {
    let place = Place::new();
    let flags = ["--epochs", "1"];
    succeed(place.sam2("run", &flags));
    let sav = as_masklets(&place);
    let train = |out: &str, strict: bool| {
        let mut command = place.sam2(out, &flags);
        let mut args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap().to_string()).collect();
        args.iter_mut().filter(|arg| arg.ends_with("clips/train")).for_each(|arg| arg.clone_from(&sav));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        command = ocellus(&args);
        if strict {
            command.arg("--strict");
        }
        command
    };
    succeed(train("same", true));
    assert!(place.weights("run") == place.weights("same"));
    let scores = |data: &str| {
        let (out, _) = succeed(ocellus(&["eval", "video", &place.text("run"), data]));
        out[..out.rfind(',').unwrap()].to_string() // the rest is the speed
    };
    assert_eq!(scores(&place.text("clips/train")), scores(&sav));
    let file = place.path("sav/00001_manual.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    let (_, err) = succeed(train("skipped", false));
    names(&err, &["00001_manual.json: EOF", "1 unreadable videos were skipped"]);
    names(&fail(train("strict", true)), &["00001_manual.json: EOF"]);
}
