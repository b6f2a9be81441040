//! Frozen features of an encoder of images: votes, many heads at once, retrieval, labels of pixels, pictures.

use std::fs;
use std::path::Path;

use crate::support::{Place, fail, files, names, ocellus, succeed};

/// A data set and a short run.
fn pretrained() -> Place {
    let place = Place::new();
    succeed(place.pretrain("run", &[]));
    place
}

/// Width and height of a picture.
fn size(path: &Path) -> (usize, usize) {
    let picture = ocellus::data::decode::open(path).unwrap();
    (picture.width, picture.height)
}

#[test]
fn features_are_evaluated_in_several_ways() {
    let place = pretrained();
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));

    // Several voters at once say what each says alone.
    let knn = |flags: &[&str]| succeed(ocellus(&[&["eval", "knn", &run, &train, &val], flags].concat())).0;
    let usual = knn(&[]);
    let ks: Vec<&str> = usual.lines().map(|line| line.split(')').next().unwrap()).collect();
    assert_eq!(ks, ["k-NN (k = 10", "k-NN (k = 20"], "no more than the 32 training images");
    assert!(usual.starts_with(&knn(&["-k", "10"])));

    let heads = place.text("heads.tsv");
    let linear = |flags: &[&str]| ocellus(&[&["eval", "linear", &run, &train, &val, "--epochs", "2"], flags].concat());
    let sweep = ["--protocol", "dinov2", "--batch-size", "16", "--rates", "0.01,0.1", "--out", &heads];
    let (out, _) = succeed(linear(&sweep));
    names(&out, &["linear probe: top-1 ", "best on the test images of 8 heads: ", "mean patch token", "heads.tsv"]);
    let table = fs::read_to_string(&heads).unwrap();
    assert_eq!(table.lines().count(), 9);
    names(&table, &["blocks\taverage_pool\trate\ttop1\ttop5\n1\tfalse\t0.01\t", "\n4\ttrue\t0.1\t"]);
    succeed(linear(&[&sweep[..], &["--no-augment", "--blocks", "2", "--threads", "2"]].concat()));
    let kept = fs::read_to_string(&heads).unwrap();
    assert_eq!(kept.lines().count(), 5);
    succeed(linear(&[&sweep[..], &["--no-augment", "--blocks", "2"]].concat()));
    assert_eq!(fs::read_to_string(&heads).unwrap(), kept, "threads change nothing");

    let retrieval = |flags: &[&str]| succeed(ocellus(&[&["eval", "retrieval", &run], flags].concat())).0;
    names(&retrieval(&["--queries", &val]), &["16 images, each against all others", "mAP ", "16 queries"]);
    names(&retrieval(&["--queries", &val, "--database", &train]), &["32 images in the database", "mAP "]);
    let image = |index: usize| format!("circle/{:06}", 8 * index);
    let truth = serde_json::json!({
        "imlist": [image(0), image(1), image(2), image(3)],
        "qimlist": [image(0)],
        "gnd": [{ "bbx": [2, 2, 14, 14], "easy": [0], "hard": [], "junk": [2] }],
    });
    fs::write(place.path("truth.json"), truth.to_string()).unwrap();
    let truth = place.text("truth.json");
    let out = retrieval(&["--queries", &train, "--ground-truth", &truth]);
    names(&out, &["4 images in the database", "easy: mAP ", "medium: mAP ", "hard: no query has anything to find"]);
}

#[test]
fn pixels_are_labelled() {
    let place = pretrained();
    let synth = |out: &str, flags: &[&str]| {
        let out = place.text(out);
        let usual = ["data", "synth", &out, "--train", "8", "--val", "4", "--size", "24"];
        succeed(ocellus(&[&usual[..], flags].concat()));
    };
    synth("masks", &["--masks", "--classes", "3"]);
    synth("clips", &["--video", "--frames", "2"]);
    let run = place.text("run");
    let label = |data: &str, flags: &[&str]| {
        let (train, val) = (place.text(&format!("{data}/train")), place.text(&format!("{data}/val")));
        let command = ["eval", "segmentation", &run, &train, &val, "--epochs", "1", "--batch-size", "4"];
        ocellus(&[&command[..], flags].concat())
    };
    let (head, maps) = (place.text("head.safetensors"), place.text("maps"));
    let (out, _) = succeed(label("masks", &["--out", &head, "--predictions", &maps]));
    names(&out, &["mIoU ", "pixel accuracy ", "of 2304 pixels, 4 classes", "IoU by class: 0: ", "3: "]);
    assert_eq!(files(&place.path("maps/circle"), ".png"), ["000000.png", "000003.png"]);
    assert_eq!(size(&place.path("maps/circle/000000.png")), (24, 24));
    assert!(fs::metadata(&head).unwrap().len() > 4 * 96 * 4);
    names(&succeed(label("clips", &["--foreground", "--no-augment"])).0, &["of 4608 pixels, 2 classes"]);

    // A mask that cannot be read, an image without one, and an image that cannot be read are named and left out.
    fs::write(place.path("masks/val/masks/circle/000000.png"), "no mask").unwrap();
    fs::remove_file(place.path("masks/val/masks/square/000001.png")).unwrap();
    fs::write(place.path("masks/val/images/triangle/000002.png"), "no image").unwrap();
    let (out, err) = succeed(label("masks", &["--no-augment"]));
    names(&out, &["of 576 pixels"]);
    names(&err, &["masks/circle/000000.png", "masks/square/000001.png", "images/triangle/000002.png"]);
    names(&fail(label("data", &[])), &["data/train", "no folder `images` or `frames` in it"]);
}

#[test]
fn pictures_show_what_an_encoder_sees() {
    let place = pretrained();
    let (run, train) = (place.text("run"), place.text("data/train"));
    fs::create_dir(place.path("few")).unwrap();
    let folder = ocellus::data::Folder::open(place.path("data/train")).unwrap();
    for i in 0..3 {
        fs::copy(folder.path(5 * i), place.path("few").join(format!("{i}.png"))).unwrap();
    }
    fs::write(place.path("few/3.png"), "no image").unwrap();
    let few = place.text("few");
    let draw = |what: &str, flags: &[&str]| {
        let out = place.text("picture.png");
        let (text, err) = succeed(ocellus(&[&["visualize", what, &run], flags, &["--out", &out]].concat()));
        names(&text, &["picture.png"]);
        (size(&place.path("picture.png")), err)
    };
    // Three readable images, 14 times their 16 pixels.
    let (found, err) = draw("pca", &[&few]);
    assert_eq!(found, (2 * 224 + 3 * 4, 3 * 224 + 4 * 4));
    names(&err, &["few/3.png"]);
    draw("pca", &[&few, "--threshold", "0.5", "--image-size", "32"]);
    let (found, _) = draw("attention", &[&few, "--count", "2", "--image-size", "32"]);
    assert_eq!((found.0 - 4) % (224 + 4), 0);
    assert_eq!(found.1, 2 * 224 + 3 * 4);
    let (found, _) = draw("neighbours", &[&train, &few, "-k", "2"]);
    assert_eq!(found.0, 3 * 128 + 4 * 4);
}

#[test]
fn unusable_flags_are_named() {
    let place = pretrained();
    let (run, train, val) = (place.text("run"), place.text("data/train"), place.text("data/val"));
    let linear = |flags: &[&str]| fail(ocellus(&[&["eval", "linear", &run, &train, &val], flags].concat()));
    names(&linear(&["--rates", "0.1"]), &["`rates` is given, expected not given with --protocol mae"]);
    let sweep = |flags: &[&str]| linear(&[&["--protocol", "dinov2"], flags].concat());
    names(&sweep(&["--optimizer", "sgd"]), &["`optimizer` is given, expected not given with --protocol dinov2"]);
    names(&sweep(&["--pool", "mean"]), &["`pool` is given, expected not given with --protocol dinov2"]);
    names(&sweep(&["--blocks", "1,99"]), &["`blocks` is 99, expected 1 to the "]);
    names(
        &sweep(&["--batch-size", "33", "--no-augment"]),
        &["`batch_size` is 33, expected 1 to the 32 training images"],
    );
    let knn = |flags: &[&str]| fail(ocellus(&[&["eval", "knn", &run, &train, &val], flags].concat()));
    names(&knn(&["-k", "5,33"]), &["`k` is 33, expected 1 to the 32 training samples"]);
    names(&fail(ocellus(&["eval", "retrieval", &run])), &["`queries` is missing, expected a folder of images"]);
    for (flag, value, key) in [
        ("--tokenizer", "t.json", "tokenizer"),
        ("--interpolation", "bicubic", "interpolation"),
        ("--caption", "title", "caption"),
        ("--image-column", "picture", "image_column"),
        ("--images", &train, "images"),
    ] {
        let message = fail(ocellus(&["eval", "retrieval", &run, "--queries", &val, flag, value]));
        names(&message, &[&format!("`{key}` is given, expected not given: the model has no texts")]);
    }
    names(&fail(ocellus(&["eval", "retrieval", &run, &val])), &["run", "expected --queries and no pairs"]);
    let visualize = |what: &str, flags: &[&str]| fail(ocellus(&[&["visualize", what, &run], flags].concat()));
    names(&visualize("pca", &[&val, "--count", "0"]), &["`count` is 0, expected at least 1"]);
    names(&visualize("pca", &[&val, "--threshold", "2"]), &["`threshold` is 2"]);
    names(&visualize("neighbours", &[&train, &val, "-k", "33"]), &["`k` is 33, expected 1 to the 32 images"]);
    assert!(!place.path("components.png").exists());
}
