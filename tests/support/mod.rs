//! What the tests of the command share: a small data set, and ways to run the command and to look at what it left.
#![allow(dead_code)] // no test needs all of it

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Sizes of the runs of self-distillation.
pub const SMALL_DINOV2: [&str; 18] = [
    "--image-size",
    "16",
    "--local-size",
    "8",
    "--patch-size",
    "4",
    "--local-crops",
    "2",
    "--prototypes",
    "48",
    "--head-hidden",
    "32",
    "--drop-path",
    "0.3",
    "--lr",
    "1e-3",
    "--log-every",
    "1",
];

/// A folder that vanishes with the test, and a small labelled data set in it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// 32 training and 16 validation images of 8 classes, 16 pixels wide.
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let made = ocellus(&["data", "synth", &place.text("data"), "--train", "32", "--val", "16", "--size", "16"]);
        succeed(made);
        place
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text, for arguments.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A short pre-training run into `out`: 4 updates per epoch unless `flags` say otherwise.
    pub fn pretrain(&self, out: &str, flags: &[&str]) -> Command {
        let (data, out) = (self.text("data/train"), self.text(out));
        let mut command = ocellus(&["pretrain", "mae", &data, "--out", &out, "--preset", "micro"]);
        command.args(["--lr", "1e-3", "--log-every", "1"]);
        let usual = [("--image-size", "16"), ("--patch-size", "4"), ("--batch-size", "8"), ("--epochs", "1")];
        for (key, value) in usual.into_iter().chain([("--save-every", "3")]) {
            if !flags.contains(&key) {
                command.args([key, value]);
            }
        }
        command.args(flags);
        command
    }

    /// A short run of image-text pre-training into `out` with a tokenizer of its own: 6 updates per epoch unless `flags` say
    /// otherwise.
    pub fn siglip(&self, out: &str, flags: &[&str]) -> Command {
        let (data, out, tokenizer) = (self.text("data/captions.tsv"), self.text(out), self.text("tokenizer.json"));
        if !self.path("tokenizer.json").exists() {
            succeed(ocellus(&["tokenizer", "train", &data, "--out", &tokenizer, "--vocab", "400"]));
        }
        let mut command = ocellus(&["pretrain", "siglip", &data, "--out", &out, "--log-every", "1"]);
        let sizes = [("--preset", "micro"), ("--bias-init", "auto"), ("--patch-size", "8"), ("--context-len", "8")];
        let sizes = sizes.into_iter().filter(|_| !flags.contains(&"--init")); // which has its own
        let usual = [("--batch-size", "8"), ("--epochs", "1"), ("--save-every", "4"), ("--image-size", "16")];
        for (key, value) in sizes.chain(usual).chain([("--tokenizer", &*tokenizer)]) {
            if !flags.contains(&key) {
                command.args([key, value]);
            }
        }
        command.args(flags);
        command
    }

    /// A short run of self-distillation into `out`: 4 updates per epoch unless `flags` say otherwise.
    pub fn dinov2(&self, out: &str, flags: &[&str]) -> Command {
        let (data, out) = (self.text("data/train"), self.text(out));
        let mut command = ocellus(&["pretrain", "dinov2", &data, "--out", &out, "--preset", "micro"]);
        SMALL_DINOV2.chunks(2).filter(|pair| !flags.contains(&pair[0])).for_each(|pair| {
            command.args(pair);
        });
        for (key, value) in [("--batch-size", "8"), ("--epochs", "1"), ("--save-every", "3")] {
            if !flags.contains(&key) {
                command.args([key, value]);
            }
        }
        command.args(flags);
        command
    }

    /// A short run on clips of 32 pixels into `out`: 2 updates per epoch unless `flags` say otherwise.
    pub fn sam2(&self, out: &str, flags: &[&str]) -> Command {
        let (clips, out) = (self.text("clips"), self.text(out));
        if !self.path("clips").exists() {
            let few = ["--train", "2", "--val", "1", "--size", "32", "--frames", "4"];
            let mut made = ocellus(&["data", "synth", &clips, "--video"]);
            made.args(few);
            succeed(made);
        }
        let mut command = ocellus(&["pretrain", "sam2", &format!("{clips}/train"), "--out", &out, "--preset", "micro"]);
        let usual = [("--image-size", "32"), ("--frames", "3"), ("--epochs", "2"), ("--corrections", "1")];
        let more = [("--lr", "1e-3"), ("--vision-lr", "1e-3"), ("--log-every", "1"), ("--save-every", "3")];
        for (key, value) in usual.into_iter().chain(more) {
            if !flags.contains(&key) {
                command.args([key, value]);
            }
        }
        command.args(flags);
        command
    }

    /// Continues the run in `out`.
    pub fn resume(&self, recipe: &[&str], out: &str) -> Command {
        let mut command = ocellus(recipe);
        command.args(["--resume", &self.text(out)]);
        command
    }

    /// The finished weights of a run.
    pub fn weights(&self, out: &str) -> Vec<u8> {
        let files = ["upstream.safetensors", "model.safetensors"].map(|name| self.path(out).join(name));
        std::fs::read(files.iter().find(|file| file.exists()).unwrap_or(&files[0])).unwrap()
    }
}

/// The command with arguments, on one thread unless they say otherwise.
pub fn ocellus(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocellus"));
    if !args.contains(&"--threads") {
        command.args(["--threads", "1"]);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it and returns what it printed to stdout and stderr.
pub fn succeed(mut command: Command) -> (String, String) {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    (out, err)
}

/// Output as text: stdout, stderr.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Updates in a run's metrics.jsonl, of the lines of one kind; every number must be finite.
pub fn logged(run: &Path, kind: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["kind"] == kind).collect();
    for (key, value) in lines.iter().flat_map(|line| line.as_object().unwrap()) {
        assert!(key == "kind" || value.as_f64().is_some_and(f64::is_finite), "{key}: {value}");
    }
    lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
}

/// Names of the files in a folder that end so.
pub fn files(folder: &Path, end: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(end));
    names.sort();
    names
}

/// Runs a command that must fail: exit code 1, no panic, and one line with the cause, which is returned.
pub fn fail(mut command: Command) -> String {
    let output = command.output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {err}");
    assert!(!err.contains("panicked"), "{command:?}: {err}");
    let causes: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(causes.len(), 1, "{command:?}: {err}");
    causes[0].to_string()
}

/// Asserts that a message holds all of these.
#[track_caller]
pub fn names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

/// A small disk of its own, given back at the end.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts it; `None` without the right to.
    pub fn mount(at: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let disk = mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_path_buf()));
        if disk.is_none() {
            // Not through `eprintln!`, which the harness keeps to itself when a test passes.
            let text = "SKIPPED a test: no right to mount a small disk, nothing was tested\n";
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
        disk
    }

    /// Writes a file until no byte is left; removing it gives them back.
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 16, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}
