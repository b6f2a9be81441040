use std::fs;

use super::*;
use crate::data::fixtures::noise;
use crate::data::loader::{self, Loader, Position, Unreadable};
use crate::data::rng::Purpose;

fn png(side: usize) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    noise(side, side).save_png(place.path().join("x.png")).unwrap();
    fs::read(place.path().join("x.png")).unwrap()
}

fn shard(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn open(path: &Path) -> Pairs {
    Pairs::open(path, &Options::default()).unwrap()
}

fn strict() -> Options {
    Options { strict: true, ..Options::default() }
}

/// Names below the root and captions of all pairs.
fn listed(pairs: &Pairs) -> Vec<(String, Vec<String>)> {
    let name = |i| pairs.name(i).strip_prefix(&pairs.root).unwrap().to_str().unwrap().to_owned();
    (0..pairs.len()).map(|i| (name(i), pairs.captions(i).unwrap())).collect()
}

fn expected(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    list.iter().map(|(n, c)| ((*n).to_owned(), c.iter().map(|c| (*c).to_owned()).collect())).collect()
}

#[test]
fn members_of_shards_belong_together_by_key() {
    let place = tempfile::tempdir().unwrap();
    let (small, large) = (png(3), png(5));
    let first = shard(&[
        ("a/0.jpg", &small), // named .jpg, is a PNG: contents decide
        ("a/0.txt", b" a dog \n"),
        ("a/0.json", b"{\"caption\": \"not this\"}"),
        ("b/0.txt", b"another folder, another key"),
        ("b/0.PNG", &large),
        ("1.seg.png", b"not an image of the pair"),
        ("1.webp", &small),
        ("1.json", br#"{"caption": ["one", "two"], "width": 3}"#),
        ("2.png", &small),
        ("3.txt", b"alone"),
        ("readme", b"no key"),
        (".hidden.png", &small),
    ]);
    let long = format!("{}/4.png", "deep/".repeat(40)); // longer than a plain header holds
    let second = shard(&[(&long, &large), (&long.replace("png", "txt"), b"deep")]);
    write(place.path(), &[("00000.tar", &first), ("00001.tar", &second), ("note.txt", b"")]);
    let pairs = open(place.path());
    let deep = format!("00001.tar/{long}");
    let list: [(&str, &[&str]); 4] = [
        ("00000.tar/a/0.jpg", &["a dog"]),
        ("00000.tar/b/0.PNG", &["another folder, another key"]),
        ("00000.tar/1.webp", &["one", "two"]),
        (&deep, &["deep"]),
    ];
    assert_eq!(listed(&pairs), expected(&list));
    assert_eq!(*pairs.load(1).unwrap(), noise(5, 5));
    assert_eq!(*pairs.load(2).unwrap(), noise(3, 3));
    assert_eq!(pairs.skipped().count, 2);
    assert!(pairs.skipped().named[0].1.contains("no caption") && pairs.skipped().named[1].1.contains("no image"));
    let error = Pairs::open(place.path(), &strict()).unwrap_err().to_string();
    assert!(error.contains("00000.tar/2: has no caption"), "{error}");
    assert_eq!(open(&place.path().join("00001.tar")).len(), 1);
    assert!(pairs.identity().starts_with("4 pairs"), "{}", pairs.identity());
}

#[test]
fn a_shard_cut_anywhere_loses_the_torn_pair_only() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.tar");
    let image = png(20);
    let whole = shard(&[("0.png", &image), ("0.txt", b"zero"), ("1.png", &image), ("1.txt", b"one")]);
    let member = 512 + image.len().next_multiple_of(512); // header and contents
    let pair = member + 1024;
    for cut in (pair + 1..whole.len()).step_by(97) {
        fs::write(&path, &whole[..cut]).unwrap();
        let (pairs, text_end) = (open(&path), pair + member + 512 + 3);
        assert_eq!(pairs.len(), if cut < text_end { 1 } else { 2 }, "{cut}");
        assert!(listed(&pairs)[0].1 == ["zero"] && pairs.load(0).is_ok());
        if cut < text_end {
            assert!(pairs.skipped().count >= 1, "{cut}");
            let error = Pairs::open(&path, &strict()).unwrap_err();
            assert!(matches!(error, Error::Dataset { .. }), "{error}");
        }
    }
    // In the middle and at the last byte of an image, at the last byte of a caption.
    for cut in [pair + 600, pair + 512 + image.len() - 1, pair + member + 512 + 2] {
        fs::write(&path, &whole[..cut]).unwrap();
        let pairs = open(&path);
        assert_eq!((pairs.len(), pairs.skipped().count), (1, 1));
        assert!(pairs.skipped().named[0].1.contains("cut inside this member"), "{:?}", pairs.skipped());
    }
    fs::write(&path, b"This is no archive.").unwrap();
    assert!(Pairs::open(&path, &Options::default()).unwrap_err().to_string().contains("no image with a caption"));
}

#[test]
fn tables_of_every_form() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let tables: [(&str, &[u8]); 5] = [
        ("plain.tsv", b"a.png\tone\nb/c.png\ttwo, \"quoted\"\na.png\tthree\n"),
        ("header.tsv", b"title\tfilepath\none\ta.png\r\ntwo, \"quoted\"\tb/c.png\nthree\ta.png\n"),
        ("quoted.csv", b"image,caption\na.png,one\nb/c.png,\"two, \"\"quoted\"\"\"\na.png,three\n"),
        (
            "lines.jsonl",
            br#"{"file": "a.png", "caption": ["one", "three"], "label": 3}

{"file": "b/c.png", "caption": "two, \"quoted\""}"#,
        ),
        ("mark.csv", b"\xef\xbb\xbffilepath,title\na.png,one\nb/c.png,\"two, \"\"quoted\"\"\"\na.png,three"),
    ];
    write(folder, &tables);
    write(folder, &[("a.png", &png(3)), ("b/c.png", &png(4))]);
    for (name, _) in tables {
        let pairs = open(&folder.join(name));
        let list: [(&str, &[&str]); 2] = [("a.png", &["one", "three"]), ("b/c.png", &["two, \"quoted\""])];
        assert_eq!(listed(&pairs), expected(&list), "{name}");
        assert_eq!((pairs.load(1).unwrap().width, pairs.skipped().count), (4, 0));
    }
    let bad = b"image,caption\na.png,\"two\nlines\"\n,none\na.png\nb.png, \n\xff,x\n";
    write(
        folder,
        &[("bad.csv", bad), ("bad.jsonl", b"{\"image\": \"a.png\"}\n[1]\nx\n{\"image\": \"a.png\", \"caption\": 3}")],
    );
    let pairs = open(&folder.join("bad.csv"));
    assert_eq!(listed(&pairs), expected(&[("a.png", &["two\nlines"])]));
    let named: Vec<_> = pairs.skipped().named.iter().map(|(p, _)| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(named, ["bad.csv:4", "bad.csv:5", "bad.csv:6", "bad.csv:7"]);
    assert!(Pairs::open(folder.join("bad.csv"), &strict()).unwrap_err().to_string().contains("bad.csv:4"));
    assert!(Pairs::open(folder.join("bad.jsonl"), &Options::default()).is_err());
    let named = |image: Option<&str>, caption: Option<&str>| {
        let [image_column, caption] = [image, caption].map(|name| name.map(str::to_owned));
        Options { columns: Columns { caption, image_column, images: None }, strict: false }
    };
    let columns = named(Some("picture"), Some("words"));
    write(folder, &[("own.csv", b"picture,file,words\na.png,x,hello\n")]);
    assert_eq!(listed(&Pairs::open(folder.join("own.csv"), &columns).unwrap()), expected(&[("a.png", &["hello"])]));
    let error = Pairs::open(folder.join("quoted.csv"), &columns).unwrap_err().to_string();
    assert!(error.contains("line 1: no `picture`, no `words`"), "{error}");
    // A name that was asked for is the only one; a line with one usual name is no pair.
    let other = [
        ("other.csv", &b"file,words\na.png,hello\n"[..]),
        ("other.jsonl", b"{\"file\": \"a.png\", \"caption\": \"hello\"}"),
    ];
    write(folder, &other);
    for (file, image, caption, cause) in [
        ("quoted.csv", None, Some("captoin"), "line 1: no `captoin` among"),
        ("quoted.csv", Some("imgae"), None, "line 1: no `imgae` among"),
        ("plain.tsv", None, Some("caption"), "none of `image`"),
        ("other.csv", None, None, "line 1: none of `caption`, `title`, `text` (--caption gives another name) among"),
        ("other.jsonl", None, Some("captoin"), "no `captoin` in it"),
    ] {
        let error = Pairs::open(folder.join(file), &named(image, caption)).unwrap_err().to_string();
        assert!(error.contains(cause), "{file}: {error}");
    }
    let words = Pairs::open(folder.join("other.csv"), &named(None, Some("words"))).unwrap();
    assert_eq!(listed(&words), expected(&[("a.png", &["hello"])]));
}

#[test]
fn folders_with_captions_beside_the_images() {
    let place = tempfile::tempdir().unwrap();
    let image = png(3);
    let files: [(&str, &[u8]); 6] = [
        ("a.png", &image),
        ("a.txt", b"one\n"),
        ("b/c.jpg", &image),
        ("b/c.json", br#"{"caption": ["two", "three"]}"#),
        ("d.png", &image),
        ("d.md", b"not a caption"),
    ];
    write(place.path(), &files);
    let pairs = open(place.path());
    assert_eq!(listed(&pairs), expected(&[("a.png", &["one"]), ("b/c.jpg", &["two", "three"])]));
    assert_eq!(pairs.skipped().count, 1);
    let text = |path: &str| Pairs::open(place.path().join(path), &Options::default()).unwrap_err().to_string();
    assert!(text("a.txt").contains("expected a folder"));
    assert!(text("missing.tar").contains("missing.tar"));
    fs::create_dir(place.path().join("empty")).unwrap();
    assert!(text("empty").contains("no image with a caption"));
}

/// `n` pairs in two shards; image i has i + 1 pixels a row and captions `i.0`, `i.1`.
fn numbered(folder: &Path, n: usize) {
    let images: Vec<_> = (0..n).map(|i| png(i + 1)).collect();
    let texts: Vec<_> = (0..n).map(|i| format!(r#"{{"caption": ["{i}.0", "{i}.1"]}}"#)).collect();
    let names: Vec<_> = (0..n).map(|i| (format!("{i:03}.png"), format!("{i:03}.json"))).collect();
    let members = |range: std::ops::Range<usize>| {
        let pair = |i: usize| [(names[i].0.as_str(), &images[i][..]), (names[i].1.as_str(), texts[i].as_bytes())];
        shard(&range.flat_map(pair).collect::<Vec<_>>())
    };
    write(folder, &[("0.tar", &members(0..n / 2)), ("1.tar", &members(n / 2..n))]);
}

fn width(image: &Image, _: &mut Stream) -> Result<Vec<u8>> {
    Ok(vec![image.width as u8])
}

#[test]
fn batches_carry_captions_and_resume_exactly() {
    let place = tempfile::tempdir().unwrap();
    numbered(place.path(), 23);
    let source: Arc<dyn Source> = Arc::new(open(place.path()));
    let options = loader::Options { epochs: Some(3), threads: 2, ..loader::Options::training(4, 7) };
    let load = |options| {
        let batches = Loader::new(source.clone(), width, options).unwrap();
        batches.collect::<Result<Vec<_>>>().unwrap()
    };
    let all = load(options.clone());
    assert_eq!(all.len(), 15);
    for batch in &all {
        for ((index, width), caption) in batch.indices.iter().zip(&batch.images).zip(&batch.captions) {
            assert_eq!(u32::from(*width), index + 1);
            assert!(*caption == format!("{index}.0") || *caption == format!("{index}.1"));
        }
    }
    let captions: Vec<_> = all.iter().flat_map(|b| &b.captions).collect();
    assert!(["0", "1"].iter().all(|kind| captions.iter().any(|c| c.ends_with(kind))));
    for start in [Position { epoch: 0, step: 3 }, Position { epoch: 1, step: 0 }, Position { epoch: 2, step: 4 }] {
        let done = (start.epoch * 5 + start.step) as usize;
        assert_eq!(load(loader::Options { start, threads: 1, ..options.clone() }), all[done..]);
    }
    let evaluated = load(loader::Options::evaluation(10));
    let captions: Vec<_> = evaluated.iter().flat_map(|b| b.captions.clone()).collect();
    assert_eq!(captions, (0..23).map(|i| format!("{i}.0")).collect::<Vec<_>>());
}

#[test]
fn bad_pairs_are_replaced_and_named() {
    let place = tempfile::tempdir().unwrap();
    let image = png(3);
    let members: [(&str, &[u8]); 10] = [
        ("0.png", &image),
        ("0.txt", b"good"),
        ("1.png", b"no image"),
        ("1.txt", b"text"),
        ("2.png", &image),
        ("2.txt", b"\xff\xfe"),
        ("3.png", &image),
        ("3.txt", b" \n"),
        ("4.png", &image),
        ("4.json", b"{\"title\": \"no caption\"}"),
    ];
    write(place.path(), &[("x.tar", &shard(&members))]);
    let source = Arc::new(open(place.path()));
    let options = loader::Options { epochs: Some(1), ..loader::Options::training(5, 1) };
    let mut loader = Loader::new(source.clone(), width, options.clone()).unwrap();
    let batch = loader.next().unwrap().unwrap();
    assert_eq!((batch.captions, batch.indices), (vec!["good".to_owned(); 5], vec![0; 5]));
    let failures = loader.failures();
    assert_eq!(failures.len(), 4);
    for ((name, cause), part) in failures.iter().zip(["neither JPEG", "not UTF-8", "empty", "no `caption`"]) {
        assert!(name.starts_with(place.path().join("x.tar")) && cause.contains(part), "{cause}");
    }
    let fail = loader::Options { unreadable: Unreadable::Fail, ..options };
    assert!(Loader::new(source, width, fail).unwrap().any(|batch| batch.is_err()));
}

#[test]
fn every_epoch_is_a_permutation_in_stretches() {
    let pair = || Pair { image: Place::File("x".into()), text: Text::Here(vec![]) };
    let n = BLOCK * MIXED * 3 + 77;
    let pairs = Pairs {
        root: PathBuf::new(),
        shards: Vec::new(),
        pairs: (0..n).map(|_| pair()).collect(),
        key: String::new(),
        skipped: Skipped::default(),
    };
    let order = |seed, epoch| {
        let mut order: Vec<u32> = (0..n as u32).collect();
        pairs.shuffle(&mut Stream::new(seed, Purpose::SHUFFLE, epoch, 0), &mut order);
        order
    };
    let first = order(1, 0);
    assert_eq!(first, order(1, 0));
    assert!(first != order(1, 1) && first != order(2, 0));
    let mut sorted = first.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..n as u32).collect::<Vec<_>>());
    // A window of mixed pairs touches few blocks, but no window is in order.
    let window = &first[..BLOCK * MIXED];
    let blocks: std::collections::BTreeSet<_> = window.iter().map(|i| *i as usize / BLOCK).collect();
    assert!((MIXED..=MIXED + 1).contains(&blocks.len()) && !window.is_sorted(), "{blocks:?}");
}

#[test]
fn coco_captions_are_gathered_by_image() {
    let place = tempfile::tempdir().unwrap();
    write(place.path(), &[("val/a.png", &png(3)), ("val/b.png", &png(5))]);
    let json = r#"{"info": {}, "images": [
        {"id": 9, "file_name": "b.png", "width": 5}, {"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "c.png"}],
        "annotations": [
        {"id": 1, "image_id": 7, "caption": "a one"}, {"id": 2, "image_id": 9, "caption": "b one "},
        {"id": 3, "image_id": 7, "caption": "a two\n"}, {"id": 4, "image_id": 3, "caption": "  "},
        {"id": 5, "image_id": 4, "caption": "of no image"}, {"id": 6, "image_id": 9}]}"#;
    write(place.path(), &[("annotations/captions.json", json.as_bytes()), ("annotations/other.json", b"[1, 2]")]);
    let path = place.path().join("annotations/captions.json");
    let columns = Columns { images: Some(place.path().join("val")), ..Columns::default() };
    let options = Options { columns, strict: false };
    let pairs = Pairs::open(&path, &options).unwrap();
    assert_eq!(listed(&pairs), expected(&[("b.png", &["b one"]), ("a.png", &["a one", "a two"])]));
    assert_eq!((pairs.load(0).unwrap().width, pairs.load(1).unwrap().width), (5, 3));
    let causes: Vec<&str> = pairs.skipped().named.iter().map(|(_, cause)| cause.as_str()).collect();
    assert_eq!(causes, ["has no caption", "has a caption, but is not listed", "an annotation has no caption"]);
    let error = Pairs::open(&path, &Options { strict: true, ..options }).unwrap_err().to_string();
    assert!(error.contains("captions.json/c.png: has no caption"), "{error}");
    // Paths count from the file's folder unless another is given.
    assert!(
        Pairs::open(&path, &Options::default()).unwrap().load(0).unwrap_err().to_string().contains("annotations/b.png")
    );
    let error = Pairs::open(place.path().join("annotations/other.json"), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("other.json: not a file of COCO captions"), "{error}");
}
