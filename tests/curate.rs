//! `ocellus curate` on a pool with planted copies: what it finds, that it may be killed at any moment, and what a person can
//! get wrong.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{fail, files, names, ocellus, succeed, texts};

/// A folder with a planted data set and, once asked for, a model.
struct Pool(tempfile::TempDir);

impl Pool {
    fn new(images: usize, size: usize) -> Self {
        let pool = Self(tempfile::tempdir().unwrap());
        let (images, size) = (images.to_string(), size.to_string());
        let sizes = ["--images", &images, "--size", &size, "--evaluation", "24", "--curated", "20"];
        let (out, _) = succeed(ocellus(&[&["data", "planted", &pool.text("set")], &sizes[..]].concat()));
        names(&out, &["what is a copy of what: truth.tsv"]);
        pool
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A model that has seen the pool twice.
    fn train(&self) {
        let (data, out) = (self.text("set/pool"), self.text("run"));
        let sizes =
            ["--preset", "micro", "--image-size", "32", "--patch-size", "8", "--batch-size", "32", "--epochs", "2"];
        succeed(ocellus(&[&["pretrain", "mae", &data, "--out", &out, "--lr", "1e-3"], &sizes[..]].concat()));
    }

    /// The command into `out` with the evaluation set and the truth.
    fn curate(&self, out: &str, more: &[&str]) -> Command {
        let [pool, evaluation, truth, out] = ["set/pool", "set/evaluation", "set/truth.tsv", out].map(|p| self.text(p));
        let usual = ["curate", &pool, "--evaluation", &evaluation, "--truth", &truth, "--out", &out];
        ocellus(&[&usual, more].concat())
    }

    /// Retrieval with the model.
    fn retrieve(&self, out: &str, more: &[&str]) -> Command {
        let [model, curated] = ["run", "set/curated"].map(|p| self.text(p));
        self.curate(out, &[&["--model", &model, "--curated", &curated], more].concat())
    }

    fn report(&self, out: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(out).join("report.json")).unwrap()).unwrap()
    }

    fn lines(&self, file: &str) -> Vec<String> {
        fs::read_to_string(self.path(file)).unwrap().lines().map(str::to_owned).collect()
    }

    /// All that a finished curation leaves for people, less times.
    fn result(&self, out: &str) -> (Value, Vec<Option<Vec<u8>>>) {
        let mut report = self.report(out);
        report.as_object_mut().unwrap().remove("seconds").unwrap();
        let list = ["kept.txt", "dropped.tsv", "retrieved.tsv", "dropped-duplicate.png", "dropped-evaluation.png"];
        (report, list.iter().map(|name| fs::read(self.path(out).join(name)).ok()).collect())
    }
}

#[test]
fn planted_copies_are_found_and_little_else() {
    let pool = Pool::new(400, 64);
    let (out, _) = succeed(pool.curate("out", &[]));
    names(&out, &["kept ", " of 400 images; duplicate: ", "evaluation: ", "planted copies: precision ", "; cropped "]);
    let report = pool.report("out");
    let score = |key: &str| report["score"][key].as_f64().unwrap();
    for key in ["duplicate_precision", "duplicate_recall", "evaluation_precision", "evaluation_recall"] {
        assert!(score(key) >= 0.98, "{key}: {}", report["score"]);
    }
    assert!(report["score"]["retrieval_precision"].is_null());
    // Every image is in one list, in order, and a match is a file.
    let (kept, dropped) = (pool.lines("out/kept.txt"), pool.lines("out/dropped.tsv"));
    assert_eq!((kept.len() + dropped.len()) as u64, report["images"].as_u64().unwrap());
    let mut all: Vec<_> =
        kept.iter().map(String::as_str).chain(dropped.iter().map(|l| l.split('\t').next().unwrap())).collect();
    all.sort_unstable();
    assert_eq!(all, files(&pool.path("set/pool"), "g").iter().map(String::as_str).collect::<Vec<_>>());
    for line in &dropped {
        let [_, reason, matched, similarity] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let set = if reason == "duplicate" { "pool" } else { "evaluation" };
        assert!(pool.path("set").join(set).join(matched).is_file() || reason == "evaluation", "{line}");
        assert!((0.9..=1.0001).contains(&similarity.parse::<f64>().unwrap()), "{line}");
    }
    for sheet in ["dropped-duplicate.png", "dropped-evaluation.png"] {
        assert!(ocellus::data::decode::open(pool.path("out").join(sheet)).unwrap().height > 96, "{sheet}");
    }
    // Threads and the size of parts do not matter, and a finished run given again says the same.
    let result = pool.result("out");
    succeed(pool.curate("threads", &["--threads", "2"]));
    assert!(pool.result("threads") == result);
    succeed(pool.curate("parts", &["--save-every", "64"]));
    assert!(pool.result("parts").1 == result.1);
    succeed(pool.curate("out", &[]));
    assert!(pool.result("out") == result);

    // Folders of links and of copies hold what was kept.
    for (flag, folder) in [("--link", "links"), ("--copy", "copies")] {
        succeed(pool.curate("out", &[flag, &pool.text(folder)]));
        assert_eq!(files(&pool.path(folder), "g"), kept, "{flag}");
        let read = |folder: &str| fs::read(pool.path(folder).join(&kept[7])).unwrap();
        assert!(read(folder) == read("set/pool"));
    }
}

#[test]
fn retrieval_takes_an_image_once_and_what_it_is_asked_for() {
    let pool = Pool::new(240, 32);
    pool.train();
    let (out, _) = succeed(pool.retrieve("sample", &["--retrieve", "sample", "-k", "3"]));
    names(&out, &["not retrieved: ", "retrieval by class: precision "]);
    let lines = pool.lines("sample/retrieved.tsv");
    assert_eq!(lines.len(), 60);
    let mut by: Vec<_> = lines.iter().map(|line| line.split('\t').nth(2).unwrap()).collect();
    by.sort_unstable();
    assert!(by.chunks(3).all(|three| three[0] == three[2]) && by[2] != by[3]);
    let mut taken: Vec<_> = lines.iter().map(|line| line.split('\t').next().unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, pool.lines("sample/kept.txt"));
    assert_eq!(pool.report("sample")["kept"], 60);

    let clusters = ["--retrieve", "cluster", "--clusters", "6", "--cluster-min", "1", "--cap", "50"];
    let (out, _) = succeed(pool.retrieve("cluster", &clusters));
    names(&out, &["clusters hold enough curated images"]);
    assert_eq!(pool.lines("cluster/kept.txt").len(), 50);
    assert!(pool.report("cluster")["clusters"].as_u64().unwrap() >= 1);

    // Copies by the model: the exact ones at least.
    let thresholds = ["--dedup-threshold", "0.99999", "--evaluation-threshold", "0.99999"];
    let run = pool.text("run");
    succeed(pool.curate("model", &[&["--model", &run, "--copies", "model"][..], &thresholds].concat()));
    assert_eq!(pool.report("model")["score"]["recall_by_kind"]["exact"], 1.0);
}

/// Numbers that look random (splitmix64).
fn random(seed: u64) -> u64 {
    let x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn kills_at_random_moments_do_not_change_the_result() {
    let pool = Pool::new(160, 32);
    pool.train();
    for (name, more) in [
        ("sample", &["--retrieve", "sample"][..]),
        ("cluster", &["--retrieve", "cluster", "--clusters", "9", "--cluster-min", "1"][..]),
    ] {
        let flags = [more, &["--batch-size", "4", "--save-every", "12"]].concat();
        let began = Instant::now();
        succeed(pool.retrieve(&format!("{name}-whole"), &flags));
        let millis = began.elapsed().as_millis() as u64 + 1;
        let whole = pool.result(&format!("{name}-whole"));
        let (mut kills, mut runs) = (0, 0);
        while kills < 12 {
            runs += 1;
            let out = format!("{name}-{runs}");
            loop {
                let command = &mut pool.retrieve(&out, &flags);
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(random(kills + 100 * runs) % millis));
                child.kill().unwrap(); // SIGKILL
                let status = child.wait().unwrap();
                if status.code().is_some() {
                    assert!(status.success(), "{out}: {status}");
                    break;
                }
                kills += 1;
                if kills >= 12 {
                    succeed(pool.retrieve(&out, &flags));
                    break;
                }
            }
            assert!(pool.result(&out) == whole, "{out}");
            for folder in ["", "vectors", "pairs", "neighbours"] {
                assert_eq!(files(&pool.path(&out).join(folder), ".tmp"), [""; 0], "{out}/{folder}");
            }
        }
    }
}

#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let pool = Pool::new(80, 32);
    pool.train();
    let flags = ["--retrieve", "sample", "--batch-size", "1", "--save-every", "2"];
    let mut command = pool.retrieve("out", &flags);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while files(&pool.path("out/vectors"), ".safetensors").len() < 3 {
        assert!(began.elapsed() < Duration::from_secs(120), "the command hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains(&format!("stopped and saved; the same command continues {}", pool.text("out"))), "{err}");
    let (_, err) = succeed(pool.retrieve("out", &flags));
    assert!(err.contains("was begun before and is continued"), "{err}");
    succeed(pool.retrieve("whole", &flags));
    assert!(pool.result("out") == pool.result("whole"));
}

#[test]
fn faults_are_named() {
    let pool = Pool::new(20, 16);
    let text = |path: &str| pool.text(path);
    let message = |more: &[&str]| fail(pool.curate("out", more));
    for (more, expected) in [
        (&["--dedup-threshold", "1.5"][..], "config: `dedup_threshold` is 1.5, expected a number between 0 and 1"),
        (
            &["--evaluation-threshold", "NaN"],
            "config: `evaluation_threshold` is NaN, expected a number between 0 and 1",
        ),
        (&["-k", "0"], "config: `k` is 0, expected at least 1"),
        (&["--save-every", "0"], "config: `save_every` is 0, expected at least 1"),
        (
            &["--retrieve", "sample"],
            "config: `curated` is missing, expected a folder of images whose neighbours are to be retrieved",
        ),
        (
            &["--retrieve", "sample", "--curated", &text("set/curated")],
            "config: `model` is missing, expected the encoder of the features",
        ),
        (
            &["--curated", &text("set/curated")],
            "config: `retrieve` is none, expected sample or cluster: curated images are for retrieval alone",
        ),
        (&["--copies", "model"], "config: `model` is missing, expected the encoder of the features"),
    ] {
        assert_eq!(message(more), format!("error: {expected}"));
    }
    fs::create_dir(pool.path("empty")).unwrap();
    let empty = fail(ocellus(&["curate", &text("empty"), "--out", &text("none")]));
    assert_eq!(empty, format!("error: {}: no images (.jpg, .jpeg, .png, .webp) in it or below", text("empty")));
    assert!(!pool.path("none").exists() && !pool.path("out").exists());
    let taken = fail(ocellus(&["curate", &text("set/pool"), "--out", &text("set")]));
    let cause = "is not empty and holds no curation; give another folder with --out";
    assert_eq!(taken, format!("error: {}: {cause}", text("set")));

    succeed(pool.curate("out", &[]));
    let begun = format!("with which {} was begun; or another folder with --out", text("out"));
    let other = message(&["--dedup-threshold", "0.9"]);
    assert_eq!(other, format!("error: config: `dedup_threshold` is 0.9, expected 0.95, {begun}"));
    fs::remove_file(pool.path("set/pool/000003.png")).unwrap();
    let identity = message(&[]);
    names(&identity, &["config: `pool` is 19 images, checksum of their names ", ", expected 20 images, ", &begun]);

    // Files that are no images are left out and named; or they end the run.
    fs::write(pool.path("set/pool/000003.png"), "no image").unwrap();
    fs::write(pool.path("set/evaluation/000001.png"), "").unwrap();
    let (out, _) = succeed(pool.curate("faulty", &[]));
    names(&out, &["unreadable: 1"]);
    let lines = pool.lines("faulty/dropped.tsv");
    let line = lines.iter().find(|line| line.starts_with("000003.png\t")).unwrap();
    names(line, &["000003.png\tunreadable\t", "neither JPEG, PNG nor WebP"]);
    names(&pool.report("faulty")["unreadable_elsewhere"].to_string(), &["000001.png", "the file is empty"]);
    names(
        &fail(pool.curate("strict", &["--strict"])),
        &["000003.png: not a readable image: neither JPEG, PNG nor WebP"],
    );
    fs::create_dir(pool.path("broken")).unwrap();
    fs::write(pool.path("broken/a.png"), "no image").unwrap();
    let none = fail(ocellus(&["curate", &text("broken"), "--out", &text("broken-out")]));
    assert_eq!(none, format!("error: {}: no readable image", text("broken")));
}
