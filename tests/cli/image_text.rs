//! Image-text models from captions to pictures, and what a person can get wrong on the way.

use std::fs;
use std::path::Path;
use std::process::Command;

use ocellus::checkpoint::safetensors;

use crate::support::{Place, fail, files, names, ocellus, succeed};

/// Image-text pairs, a tokenizer and a short run on them.
struct Pairs {
    place: Place,
}

impl Pairs {
    fn new() -> Self {
        let pairs = Self { place: Place::new() };
        let synth =
            ["data", "synth", &pairs.text("pairs"), "--captions", "--train", "24", "--val", "12", "--size", "16"];
        let (out, _) = succeed(ocellus(&synth));
        names(&out, &["60 images", "96 classes"]);
        pairs.tokenizer("tokenizer.json", "300");
        succeed(pairs.pretrain("pairs/train", "run", &[]));
        pairs
    }

    fn text(&self, name: &str) -> String {
        self.place.text(name)
    }

    fn tokenizer(&self, out: &str, vocab: &str) {
        let train = ["tokenizer", "train", &self.text("pairs/train"), "--vocab", vocab, "--out", &self.text(out)];
        succeed(ocellus(&train));
    }

    fn pretrain(&self, data: &str, out: &str, flags: &[&str]) -> Command {
        let (data, out, tokenizer) = (self.text(data), self.text(out), self.text("tokenizer.json"));
        let mut command = ocellus(&["pretrain", "siglip", &data, "--out", &out, "--tokenizer", &tokenizer]);
        command.args(["--preset", "micro", "--image-size", "16", "--patch-size", "8", "--batch-size", "8"]);
        command.args(["--epochs", "2"]).args(flags);
        command
    }

    /// A command on the run, with flags.
    fn on_run(&self, command: &[&str], flags: &[&str]) -> Command {
        ocellus(&[command, &[&self.text("run")], flags].concat())
    }
}

#[test]
fn from_captions_to_pictures() {
    let pairs = Pairs::new();
    for file in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_settings.json"] {
        assert!(pairs.place.path("run").join(file).is_file(), "{file}");
    }
    let (unseen, val) = (pairs.text("pairs/unseen"), pairs.text("pairs/val"));
    let (classes, templates) = (pairs.text("pairs/classes.txt"), pairs.text("pairs/templates.txt"));
    let zero_shot = |flags: &[&str]| succeed(pairs.on_run(&["eval", "zero-shot"], flags)).0;
    names(&zero_shot(&[&unseen]), &["zero-shot: top-1 ", "12 images, 12 classes, 16 templates"]);
    let all = zero_shot(&[&unseen, "--classes", &classes, "--templates", &templates]);
    names(&all, &["12 images, 96 classes, 3 templates"]);
    assert_eq!(zero_shot(&[&unseen, "--classes", &classes, "--templates", &templates, "--batch-size", "5"]), all);
    names(&zero_shot(&[&unseen, "--crop", "--interpolation", "bilinear"]), &["12 images"]);
    let (out, _) = succeed(pairs.on_run(&["eval", "retrieval"], &[&val]));
    names(&out, &["12 images, 24 captions", "image to text: recall@1 ", "text to image: recall@1 ", "recall@10 "]);

    let embed = |out: &str, flags: &[&str]| {
        succeed(pairs.on_run(&["embed"], &[flags, &["--out", &pairs.text(out)]].concat()));
    };
    embed("images", &[&unseen]);
    let captions = pairs.text("captions.txt");
    fs::write(&captions, format!("a red circle\n{}\n", "word ".repeat(10_000))).unwrap();
    embed("texts", &["--text", &captions]);
    embed("arrays", &["--text", &captions, "--npy"]);
    let features = |folder: &str| safetensors::read(pairs.place.path(folder).join("features.safetensors")).unwrap();
    assert_eq!(features("images").require("features").unwrap().shape().to_vec(), [12, 96]);
    assert_eq!(features("texts").require("features").unwrap().shape().to_vec(), [2, 96]);
    assert_eq!(files(&pairs.place.path("arrays"), ""), ["features.npy", "texts.txt"]);
    let list = fs::read_to_string(pairs.place.path("images/files.txt")).unwrap();
    assert!(list.lines().count() == 12 && list.lines().all(|file| Path::new(&unseen).join(file).is_file()), "{list}");

    succeed(pairs.on_run(&["visualize", "siglip"], &[&val, "--out", &pairs.text("pictures"), "--count", "4"]));
    assert_eq!(files(&pairs.place.path("pictures"), ""), ["captions.png", "images.png", "similarity.png"]);
    for picture in ["captions.png", "images.png", "similarity.png"] {
        let picture = ocellus::data::decode::open(pairs.place.path("pictures").join(picture)).unwrap();
        assert!(picture.width > 400 && picture.height > 300);
    }
}

#[test]
fn unusable_text_is_named() {
    let pairs = Pairs::new();
    let (unseen, val) = (pairs.text("pairs/unseen"), pairs.text("pairs/val"));
    let write = |name: &str, bytes: &[u8]| {
        fs::write(pairs.place.path(name), bytes).unwrap();
        pairs.text(name)
    };
    let zero_shot = |flags: &[&str]| fail(pairs.on_run(&["eval", "zero-shot"], &[&[unseen.as_str()], flags].concat()));
    names(&zero_shot(&["--classes", &write("empty.txt", b"\n \n")]), &["empty.txt", "no class names"]);
    names(
        &zero_shot(&["--classes", &write("few.txt", b"circle\nsquare\n")]),
        &["few.txt", "no name for the class folder"],
    );
    names(
        &zero_shot(&["--classes", &write("bytes.txt", b"circle\n\xff\xfe\n")]),
        &["bytes.txt", "line 2 is not UTF-8"],
    );
    names(&zero_shot(&["--templates", &write("plain.txt", b"a photo\n")]), &["plain.txt", "`a photo`", "`{}`"]);
    names(&zero_shot(&["--templates", &pairs.text("empty.txt")]), &["empty.txt", "no templates"]);
    names(&zero_shot(&["--batch-size", "0"]), &["`batch_size` is 0"]);
    names(&fail(pairs.on_run(&["eval", "zero-shot"], &[&val])), &["pairs/val", "no class folders"]);

    // A tokenizer with another number of ids, none at all, and one that is none.
    pairs.tokenizer("larger.json", "310");
    let retrieval = |flags: &[&str]| fail(pairs.on_run(&["eval", "retrieval"], &[&[val.as_str()], flags].concat()));
    names(&retrieval(&["--tokenizer", &pairs.text("larger.json")]), &["larger.json", "310 ids", "300"]);
    names(&retrieval(&["--tokenizer", &write("none.json", b"{}")]), &["tokenizer", "none.json"]);
    fs::remove_file(pairs.place.path("run/tokenizer.json")).unwrap();
    names(&retrieval(&[]), &["tokenizer", "--tokenizer"]);
    succeed(pairs.on_run(&["eval", "retrieval"], &[&val, "--tokenizer", &pairs.text("tokenizer.json")]));

    let embed = |flags: &[&str]| fail(pairs.on_run(&["embed"], flags));
    let tokenizer = pairs.text("tokenizer.json");
    let text = |file: &str| embed(&["--text", file, "--tokenizer", &tokenizer]);
    names(&text(&pairs.text("bytes.txt")), &["bytes.txt", "line 2 is not UTF-8"]);
    names(&text(&pairs.text("empty.txt")), &["empty.txt", "no captions"]);
    names(&embed(&[&unseen, "--tokens", "--tokenizer", &tokenizer]), &["`tokens`", "image-text model"]);
    names(&embed(&[]), &["required arguments"]);
    let visualize = |flags: &[&str]| fail(pairs.on_run(&["visualize", "siglip"], &[&[val.as_str()], flags].concat()));
    names(&visualize(&["--count", "0"]), &["`count` is 0"]);
    names(&visualize(&["--count", "257"]), &["`count` is 257", "1 to 256"]);

    // Weights of another kind of model.
    succeed(pairs.place.pretrain("mae", &[]));
    let message = fail(ocellus(&["eval", "retrieval", &pairs.text("mae"), &val, "--tokenizer", &tokenizer]));
    names(&message, &["mae"]);
}

#[test]
fn unusable_pairs_are_skipped_and_named() {
    let pairs = Pairs::new();
    let tar = fs::read(pairs.place.path("pairs/train/00000.tar")).unwrap();
    fs::create_dir_all(pairs.place.path("cut")).unwrap();
    fs::write(pairs.place.path("cut/00000.tar"), &tar[..tar.len() * 3 / 4]).unwrap();
    let (_, err) = succeed(pairs.pretrain("cut", "after-cut", &[]));
    names(&err, &["00000.tar", "cut"]);
    names(&fail(pairs.pretrain("cut", "strict", &["--strict"])), &["00000.tar", "cut"]);
    assert!(!pairs.place.path("strict").exists());

    // A folder of pairs: one without a caption, one that is not UTF-8, one of ten thousand words.
    let unseen = ocellus::data::Folder::open(pairs.place.path("pairs/seen")).unwrap();
    fs::create_dir_all(pairs.place.path("loose")).unwrap();
    for i in 0..12 {
        let image = pairs.place.path("loose").join(format!("{i:02}.png"));
        fs::copy(unseen.path(i), &image).unwrap();
        match i {
            3 => {}
            5 => fs::write(image.with_extension("txt"), b"caf\xe9").unwrap(),
            7 => fs::write(image.with_extension("txt"), "red ".repeat(10_000)).unwrap(),
            8 => fs::write(image.with_extension("txt"), " \n").unwrap(),
            _ => fs::write(image.with_extension("txt"), format!("thing {i}")).unwrap(),
        }
    }
    let (_, err) = succeed(pairs.pretrain("loose", "after-loose", &[]));
    names(&err, &["loose/03.png", "no caption", "loose/05.txt", "not UTF-8", "loose/08.png", "empty"]);
    assert!(!err.contains("loose/07"), "{err}");
    let (out, err) = succeed(ocellus(&["eval", "retrieval", &pairs.text("after-loose"), &pairs.text("loose")]));
    names(&out, &["9 images, 9 captions"]);
    names(&err, &["1 pairs were left out", "2 unreadable"]);
    names(&fail(pairs.pretrain("loose", "strict", &["--strict"])), &["loose/03.png", "no caption"]);
}

/// Every command that reads pairs finds the columns of a table by the same flags, and takes no other in their place.
#[test]
fn columns_have_the_same_flags_everywhere() {
    let pairs = Pairs::new();
    let unseen = ocellus::data::Folder::open(pairs.place.path("pairs/seen")).unwrap();
    let rows: String =
        (0..12).map(|i| format!("{}\ta thing of number {i}\tother\n", unseen.path(i).display())).collect();
    fs::write(pairs.place.path("table.tsv"), format!("picture\twords\tcaption\n{rows}")).unwrap();
    let (table, out) = (pairs.text("table.tsv"), pairs.text("out"));
    type WithFlags<'a> = &'a dyn Fn(&[&str]) -> Command;
    let commands: [WithFlags; 4] = [
        &|flags| ocellus(&[&["tokenizer", "train", &table, "--vocab", "300", "--out", &out], flags].concat()),
        &|flags| pairs.pretrain("table.tsv", "named", flags),
        &|flags| pairs.on_run(&["eval", "retrieval"], &[&[table.as_str()], flags].concat()),
        &|flags| pairs.on_run(&["visualize", "siglip"], &[&[&table, "--out", &pairs.text("drawn")], flags].concat()),
    ];
    for command in commands {
        let named = ["--image-column", "picture", "--caption"];
        names(
            &fail(command(&[&named[..], &["wrods"]].concat())),
            &["table.tsv", "line 1: no `wrods` among its columns"],
        );
        names(&fail(command(&[])), &["table.tsv", "line 1: none of `image`", "--image-column gives another name"]);
        succeed(command(&[&named[..], &["words"]].concat()));
    }
    let mut resume = pairs.place.resume(&["pretrain", "siglip"], "named");
    resume.args(["--caption", "words"]);
    names(&fail(resume), &["'--resume <RUN>' cannot be used with"]);
    succeed(pairs.place.resume(&["pretrain", "siglip"], "named"));
}
