use super::*;
use crate::data::folder::Source;
use crate::data::rle::Rle;
use crate::data::rng::{Purpose, Stream};
use crate::data::synth::{Config, Content, generate};

fn made(frames: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::Clips { frames };
    let config = Config { train: 2, val: 1, size: 24, content, ..Config::default() };
    generate(&config, dir.path().join("clips"), &|_| ()).unwrap();
    dir
}

#[test]
fn videos_and_their_objects() {
    let dir = made(4);
    let videos = Videos::open(dir.path().join("clips/train"), true).unwrap();
    assert_eq!(videos.videos.len(), 2);
    let video = &videos.videos[0];
    let masks = video.masks().unwrap();
    assert_eq!((video.frames.len(), masks.annotated()), (4, &[0, 1, 2, 3][..]));
    let map = LabelMap::open(dir.path().join("clips/train/masks/00000/00002.png")).unwrap();
    for (id, mask) in masks.objects(2).unwrap() {
        let area = map.ids.iter().filter(|&&x| u16::from(x) == id).count();
        assert_eq!(mask.area(), area);
    }
    assert!(Videos::open(dir.path(), true).unwrap_err().to_string().contains("no folder of frames"));
    let film = dir.path().join("film.mp4");
    fs::write(&film, "").unwrap();
    assert!(frames(&film).unwrap_err().to_string().contains("film.mp4 -q:v 2"));
}

#[test]
fn a_picture_for_each_object_may_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let frame = Image { width: 2, height: 1, data: vec![9; 6] };
    let at = |path: &str| dir.path().join(path);
    for folder in ["JPEGImages/a", "Annotations/a/001", "Annotations/a/007"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    frame.save_png(at("JPEGImages/a/00000.png")).unwrap();
    for (object, ids) in [("001", vec![1, 1]), ("007", vec![0, 1])] {
        LabelMap { width: 2, height: 1, ids }.save(at(&format!("Annotations/a/{object}/00000.png"))).unwrap();
    }
    // What else lies there is not looked at.
    frame.save_png(at("overview.png")).unwrap();
    fs::write(at("overview.json"), "[]").unwrap();
    fs::write(at("sa_split.json"), "[]").unwrap();
    let videos = Videos::open(dir.path(), true).unwrap();
    assert_eq!((videos.videos.len(), &videos.videos[0].name[..]), (1, "a"));
    let objects = videos.videos[0].masks().unwrap().objects(0).unwrap();
    assert_eq!(objects[&1].pixels(), [true, true]);
    assert_eq!(objects[&7].pixels(), [false, true]);
    let clips = Clips::new(videos, 1, 3, 0.0).unwrap();
    let clip = clips.load(0).unwrap();
    assert_eq!((clip.height, &clip.data[6..]), (2, &[1, 0, 0, 3, 0, 0][..]));
}

#[test]
fn clips_depend_on_the_stream_alone() {
    let dir = made(6);
    let clips = Clips::new(Videos::open(dir.path().join("clips/train"), true).unwrap(), 3, 2, 0.5).unwrap();
    let draw = |index| clips.sample(1, &mut Stream::new(3, Purpose::CLIP, 0, index)).unwrap();
    assert_eq!(draw(0), draw(0));
    assert!((1..20).any(|i| draw(i) != draw(0)));
    let clip = draw(0);
    assert_eq!((clip.width, clip.height), (24, 2 * 3 * 24));
    let first: Vec<u8> = clip.data[3 * 3 * 24 * 24..][..3 * 24 * 24].to_vec();
    assert!(first.iter().step_by(3).any(|&bits| bits & 1 != 0), "the first object is seen in the first frame");
    let videos = Videos::open(dir.path().join("clips/train"), true).unwrap();
    // The name of a clip is the frame that it begins with.
    let one = Clips::new(videos.clone(), 1, 2, 0.0).unwrap();
    for index in 0..9 {
        let stream = || Stream::new(3, Purpose::CLIP, 0, index);
        let first = decode::open(one.sample_name(1, &mut stream())).unwrap();
        assert_eq!(first.data, one.sample(1, &mut stream()).unwrap().data[..3 * 24 * 24]);
    }
    assert!(Clips::new(videos.clone(), 7, 2, 0.5).unwrap_err().to_string().contains("at most 6 frames with masks"));
    assert!(Clips::new(videos, 2, MAX_OBJECTS + 1, 0.5).is_err());
}

/// A mask of 4 x 3 pixels with these inside.
fn mask(inside: &[usize]) -> BinaryMask {
    BinaryMask::new(4, 3, (0..12).map(|t| inside.contains(&t)).collect()).unwrap()
}

/// As pycocotools writes it, or with its runs as numbers.
fn runs(inside: &[usize], text: bool) -> serde_json::Value {
    let rle = Rle::encode(&mask(inside));
    match text {
        true => serde_json::json!({"size": [3, 4], "counts": rle.to_text()}),
        false => serde_json::json!({"size": [3, 4], "counts": rle.counts()}),
    }
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Grey pictures of 4 x 3 pixels.
fn pictures_at(folder: &Path, names: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    for name in names {
        Image { width: 4, height: 3, data: vec![9; 36] }.save_png(folder.join(name)).unwrap();
    }
}

#[test]
fn masklets_of_sa_v() {
    use serde_json::Value::Null;
    for (files, frames) in [("", ""), ("sav_000/", "JPEGImages_24fps/sav_000/"), ("Annotations_6fps/", "frames/")] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let at = |end: &str| root.join(format!("{files}sav_000001_{end}.json"));
        pictures_at(
            &root.join(format!("{frames}sav_000001")),
            &["00000.png", "00004.png", "00008.png", "00012.png", "00013.png"],
        );
        // The second list has a null, the last is of frame 16, which is not there; other keys are passed over.
        let list = serde_json::json!({"video_id": "sav_000001", "video_frame_count": 17.0, "masklet": [
            [runs(&[0, 5], true), runs(&[], true)],
            [runs(&[0], true), Null],
            [runs(&[1], true), runs(&[2, 3], true)],
            [runs(&[1], true), runs(&[2], true)],
            [runs(&[1], true), runs(&[2], true)],
        ]});
        write(&at("manual"), list.to_string());
        let videos = Videos::open(root, true).unwrap();
        let video = &videos.videos[0];
        assert_eq!((video.name.as_str(), videos.videos.len(), video.frames.len()), ("sav_000001", 1, 5));
        let masks = video.masks().unwrap();
        assert_eq!(masks.annotated(), [0, 2, 3]);
        assert_eq!(masks.objects(0).unwrap(), [(1, mask(&[0, 5])), (2, mask(&[]))].into());
        assert_eq!((masks.seen(0).unwrap(), masks.seen(2).unwrap()), (vec![1], vec![1, 2]));
        assert_eq!(masks.objects(4).unwrap(), [].into());
        // Automatic ones are more objects; their list ends earlier and has a frame that is null.
        let list =
            serde_json::json!({"masklet": [[runs(&[7, 8, 9], false)], [runs(&[3], false)], [runs(&[6], false)], null]});
        write(&at("auto"), list.to_string());
        let videos = Videos::open(root, true).unwrap();
        let masks = videos.videos[0].masks().unwrap();
        assert_eq!(masks.annotated(), [0, 2]);
        assert_eq!(masks.objects(2).unwrap(), [(1, mask(&[1])), (2, mask(&[2, 3])), (3, mask(&[6]))].into());
        // One without an object changes nothing, nor need there be a manual one.
        write(&at("manual"), r#"{"masklet": [[], []]}"#);
        assert_eq!(videos.videos[0].masks().unwrap().annotated(), [0, 1, 2]);
        fs::remove_file(at("manual")).unwrap();
        let videos = Videos::open(root, true).unwrap();
        assert_eq!(videos.videos[0].masks().unwrap().objects(0).unwrap(), [(1, mask(&[7, 8, 9]))].into());
    }
}

#[test]
fn clips_of_sa_v_and_pictures_of_sa_1b() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    pictures_at(&root.join("sav_1"), &["00000.png", "00004.png"]);
    let row = serde_json::json!([runs(&[], true), runs(&[0], true)]);
    write(&root.join("sav_1_manual.json"), serde_json::json!({"masklet": [row, row]}).to_string());
    pictures_at(root, &["sa_7.png", "sa_8.png"]);
    // No pixel; nine tenths of them; three; another one. `area` and `bbox` are not looked at.
    let most: Vec<usize> = (0..11).collect();
    let each = [&[][..], &most, &[1, 2, 3], &[11]];
    let each =
        each.map(|inside| serde_json::json!({"area": 3, "bbox": [0, 0, 1, 1], "segmentation": runs(inside, true)}));
    write(&root.join("sa_7.json"), serde_json::json!({"image": {"width": 4}, "annotations": each}).to_string());
    let videos = Videos::open(root, true).unwrap();
    assert_eq!(videos.videos.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["sa_7", "sav_1"]);
    let objects = videos.videos[0].masks().unwrap().objects(0).unwrap();
    assert_eq!(objects, [(3, mask(&[1, 2, 3])), (4, mask(&[11]))].into());

    // Both at once as pictures; 30 objects at most need two pictures of bits.
    let clips = Clips::new(videos.clone(), 1, 30, 0.0).unwrap();
    assert_eq!(clips.name(0), root.join("sa_7.png"));
    for index in 0..9 {
        let clip = clips.sample(0, &mut Stream::new(1, Purpose::CLIP, 0, index)).unwrap();
        assert_eq!(clip.height, 3 * 3);
        let first = &clip.data[36..39 + 33];
        let bit = |t: usize| first[3 * t];
        assert_eq!([bit(1), bit(2), bit(3), bit(1) | bit(11), bit(0)], [bit(1), bit(1), bit(1), 3, 0]);
    }
    assert_eq!(clips.load(1).unwrap().data[36..40], [1, 0, 0, 0]); // of the object that is seen
    assert_eq!(Clips::new(videos, 2, 1, 0.0).unwrap().len(), 1);
}

#[test]
fn what_is_wrong_with_lists_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    pictures_at(&root.join("a"), &["00000.png", "00004.png"]);
    let file = root.join("a_manual.json");
    let error = |text: &str| {
        write(&file, text);
        let videos = Videos::open(root, true).unwrap();
        let found = videos.videos[0].masks().and_then(|masks| masks.objects(0));
        let text = found.unwrap_err().to_string();
        assert!(text.contains("a_manual.json: "), "{text}");
        text
    };
    let has = |text: &str, parts: &[&str]| {
        let found = error(text);
        assert!(parts.iter().all(|part| found.contains(part)), "{found}");
    };
    has(r#"{"masklet": [[{"size": [3, 4], "#, &["EOF", "line 1"]);
    has(r#"{"video_id": "a"}"#, &["missing field `masklet`"]);
    has(r#"{"masklet": [[{"size": [3, 4], "counts": [[1, 2, 3]]}]]}"#, &["expected usize"]);
    has(r#"{"masklet": [[{"size": [3, 4], "counts": 3}]]}"#, &["COCO's run lengths: a string or a list of numbers"]);
    has(
        r#"{"masklet": [[{"size": [3, 4], "counts": "<"}, {"size": [3, 4], "counts": "5"}]]}"#,
        &["`masklet[0][1]`", "sum 5, expected 12"],
    );
    has(r#"{"masklet": [[{"size": [3, 4], "counts": [12]}]], "fps": 7}"#, &["`fps` is 7", "divides 24"]);
    write(&file, r#"{"masklet": [[{"size": [3, 4], "counts": [12]}], []], "fps": [24.0]}"#);
    let videos = Videos::open(root, true).unwrap();
    assert_eq!(videos.videos[0].masks().unwrap().annotated(), [0]); // list 1 is of frame 1

    // Too few for a clip, found when the list is read.
    let clips = Clips::new(videos.clone(), 2, 1, 0.0).unwrap();
    let text = clips.sample(0, &mut Stream::new(1, Purpose::CLIP, 0, 0)).unwrap_err().to_string();
    assert!(text.contains("1 of its frames have all their masks, a clip has 2"), "{text}");

    // Frames that are numbered one after the other would get wrong masks.
    pictures_at(&root.join("a"), &["00001.png"]);
    fs::remove_file(root.join("a/00004.png")).unwrap();
    write(&file, r#"{"masklet": [[{"size": [3, 4], "counts": [12]}], []]}"#);
    let text = |videos: &Videos| videos.videos[0].masks().unwrap_err().to_string();
    let found = text(&Videos::open(root, true).unwrap());
    assert!(found.contains("2 frames numbered 0 to 1, but the masks are those of every 4th frame"), "{found}");
    fs::rename(root.join("a/00000.png"), root.join("a/00002.png")).unwrap();
    let found = text(&Videos::open(root, true).unwrap());
    assert!(found.contains("2 frames numbered 1 to 2"), "{found}");
    // A list that is short of an object is no list of all objects.
    write(&file, r#"{"masklet": [[{"size": [3, 4], "counts": [12]}], []], "fps": 24}"#);
    fs::rename(root.join("a/00002.png"), root.join("a/00000.png")).unwrap();
    assert_eq!(Videos::open(root, true).unwrap().videos[0].masks().unwrap().annotated(), [0]);

    // Videos without frames and lists without pictures are left out, or an error.
    write(&root.join("b_auto.json"), "{}");
    write(&root.join("sa_3.json"), "{}");
    assert_eq!(Videos::open(root, false).unwrap().videos.len(), 1);
    let text = Videos::open(root, true).unwrap_err().to_string();
    assert!(text.contains("b_auto.json: no folder of this video's frames: expected b/00000.jpg"), "{text}");
    fs::remove_file(root.join("b_auto.json")).unwrap();
    let text = Videos::open(root, true).unwrap_err().to_string();
    assert!(text.contains("sa_3.json: no picture sa_3.jpg beside it"), "{text}");
    fs::remove_file(&file).unwrap();
    assert!(Videos::open(root, false).is_err());
}
