//! A run that is stopped at any moment, in any way, ends with the weights of one that was never stopped, bit for bit.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Place, files, logged, ocellus, succeed, texts};

const PRETRAIN: &[&str] = &["pretrain", "mae"];
const SIGLIP: &[&str] = &["pretrain", "siglip"];
const DINOV2: &[&str] = &["pretrain", "dinov2"];
const SAM2: &[&str] = &["pretrain", "sam2"];

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

/// Starts it without listening.
fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until something holds that the running child brings about.
fn wait_until(child: &mut Child, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended before");
        assert!(started.elapsed() < Duration::from_secs(120), "the command hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Twenty times: kills the run, or the run that continues it, at a random moment; a run that ends first is compared and
/// begun anew. The last one is let finish.
fn survives_kills(recipe: &[&str], flags: &[&str], updates: u64, seed: u64) {
    let place = Place::new();
    let new = |out: &str| match recipe {
        SIGLIP => place.siglip(out, flags),
        DINOV2 => place.dinov2(out, flags),
        SAM2 => place.sam2(out, flags),
        _ => place.pretrain(out, flags),
    };
    drop(new("nothing")); // makes what a run needs beside its data
    let began = Instant::now();
    succeed(new("whole"));
    let (expected, millis) = (place.weights("whole"), began.elapsed().as_millis() as u64 + 1);
    let (mut random, mut kills, mut runs) = (Random(seed), 0, 0);
    let compare = |out: &str| {
        assert!(place.weights(out) == expected, "{out}: other weights");
        assert_eq!(logged(&place.path(out), "train"), (1..=updates).collect::<Vec<_>>(), "{out}");
        assert_eq!(files(&place.path(out), ".tmp"), [""; 0], "{out}");
        assert_eq!(files(&place.path(out).join("checkpoints"), ".tmp"), [""; 0], "{out}");
    };
    while kills < 20 {
        runs += 1;
        let out = format!("run{runs}");
        let command = || match place.path(&out).join("config.toml").exists() {
            true => place.resume(recipe, &out),
            false => new(&out),
        };
        loop {
            let mut child = start(command());
            std::thread::sleep(Duration::from_millis(random.below(millis)));
            child.kill().unwrap(); // SIGKILL
            let status = child.wait().unwrap();
            if status.code().is_some() {
                assert!(status.success(), "{out}: {status}");
                break;
            }
            kills += 1;
            if kills >= 20 {
                succeed(command());
                break;
            }
        }
        compare(&out);
    }
}

#[test]
fn kills_at_random_moments_do_not_change_the_weights() {
    survives_kills(PRETRAIN, &["--epochs", "4", "--save-every", "2"], 16, 1);
}

/// 8 batches per epoch make 2 updates of 3; the last 2 batches are left out.
#[test]
fn kills_do_not_change_a_run_that_accumulates() {
    let flags = ["--epochs", "5", "--save-every", "3", "--batch-size", "4", "--accum-iter", "3", "--clip-grad", "0.5"];
    survives_kills(PRETRAIN, &flags, 10, 2);
}

/// Captions are drawn and images cropped anew in every epoch.
#[test]
fn kills_do_not_change_image_text_pretraining() {
    survives_kills(SIGLIP, &["--epochs", "2", "--crop-min", "0.5", "--mirror", "0.5"], 12, 3);
}

/// 12 batches per epoch make 2 updates over all pairs of 5; the last 2 batches are left out.
#[test]
fn kills_do_not_change_image_text_pretraining_in_parts() {
    let flags = ["--epochs", "3", "--batch-size", "4", "--accum-iter", "5", "--optimizer", "adafactor"];
    survives_kills(SIGLIP, &[&flags[..], &["--save-every", "2", "--loss", "softmax"]].concat(), 6, 4);
}

/// Student, teacher, moments, schedules, masks, kept sequences and the thawing of the prototypes go on where they stood.
#[test]
fn kills_do_not_change_self_distillation() {
    survives_kills(DINOV2, &["--epochs", "2", "--save-every", "2", "--freeze-last-layer", "0.4"], 8, 5);
}

/// The centre and the mean that has not reached it yet are part of the state.
#[test]
fn kills_do_not_change_self_distillation_with_a_centre() {
    let flags = ["--epochs", "2", "--save-every", "3", "--targets", "centering", "--shared-head", "--registers", "2"];
    survives_kills(DINOV2, &flags, 8, 6);
}

/// Clips, prompts and dropped branches are drawn anew in every epoch.
#[test]
fn kills_do_not_change_training_on_clips() {
    survives_kills(SAM2, &["--epochs", "4", "--drop-path", "0.2", "--save-every", "2"], 8, 7);
}

#[test]
fn a_kill_before_the_first_checkpoint_means_from_the_beginning() {
    let place = Place::new();
    succeed(place.pretrain("given", &[]));
    let init = place.text("given");
    let flags = ["--epochs", "3", "--save-every", "1000", "--init", &init];
    succeed(place.pretrain("whole", &flags));
    let mut child = start(place.pretrain("run", &flags));
    let metrics = place.path("run/metrics.jsonl");
    wait_until(&mut child, || fs::metadata(&metrics).is_ok_and(|file| file.len() > 0));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(files(&place.path("run/checkpoints"), ".safetensors"), [""; 0]);
    succeed(place.resume(PRETRAIN, "run"));
    assert!(place.weights("run") == place.weights("whole"));
    assert_eq!(logged(&place.path("run"), "train"), (1..=12).collect::<Vec<_>>());
}

#[test]
fn ctrl_c_saves_and_the_run_can_be_continued() {
    let place = Place::new();
    let flags = ["--epochs", "25", "--save-every", "1000"];
    let mut command = place.pretrain("run", &flags);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = place.path("run/metrics.jsonl");
    wait_until(&mut child, || fs::metadata(&metrics).is_ok_and(|file| file.len() > 0));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains(&format!("--resume {}", place.text("run"))), "{err}");
    let saved = files(&place.path("run/checkpoints"), ".safetensors");
    assert_eq!(saved.len(), 1, "{saved:?}");
    assert_eq!(saved[0], format!("step-{:08}.safetensors", logged(&place.path("run"), "train").len()));
    succeed(place.resume(PRETRAIN, "run"));
    succeed(place.pretrain("whole", &flags));
    assert!(place.weights("run") == place.weights("whole"));
    assert_eq!(logged(&place.path("run"), "train"), (1..=100).collect::<Vec<_>>());
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let place = Place::new();
    succeed(place.pretrain("run", &["--epochs", "2", "--save-every", "3"]));
    let expected = place.weights("run");
    let newest = place.path("run/checkpoints/step-00000008.safetensors");
    let intact = fs::read(&newest).unwrap();
    let mut flipped = intact.clone();
    flipped[intact.len() / 2] ^= 0x10;
    for damaged in [&intact[..intact.len() / 3], &flipped, &[]] {
        fs::write(&newest, damaged).unwrap();
        fs::remove_file(place.path("run/upstream.safetensors")).unwrap();
        let (_, err) = succeed(place.resume(PRETRAIN, "run"));
        assert!(err.contains("step-00000008.safetensors") && err.contains("step-00000006.safetensors"), "{err}");
        assert!(place.weights("run") == expected);
        assert_eq!(logged(&place.path("run"), "train"), (1..=8).collect::<Vec<_>>());
        assert!(fs::read(&newest).unwrap() == intact);
    }
    for file in files(&place.path("run/checkpoints"), ".safetensors") {
        fs::write(place.path("run/checkpoints").join(file), b"nothing").unwrap();
    }
    let output = place.resume(PRETRAIN, "run").output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("no intact state") && err.contains("step-00000006.safetensors"), "{err}");
}

#[test]
fn the_number_of_threads_does_not_change_the_weights() {
    let place = Place::new();
    succeed(place.pretrain("one", &["--accum-iter", "2", "--threads", "1"]));
    succeed(place.pretrain("two", &["--accum-iter", "2", "--threads", "2"]));
    assert!(place.weights("one") == place.weights("two"));
}

#[test]
fn a_killed_fine_tuning_ends_with_the_same_weights() {
    let place = Place::new();
    succeed(place.pretrain("pretrained", &[]));
    let (model, train, val) = (place.text("pretrained"), place.text("data/train"), place.text("data/val"));
    let finetune = |out: &str| {
        let mut command = ocellus(&["finetune", &model, &train, &val, "--out", &place.text(out), "--epochs", "3"]);
        command.args(["--batch-size", "8", "--save-every", "2", "--log-every", "1"]);
        command
    };
    succeed(finetune("whole"));
    let mut child = start(finetune("run"));
    let latest = place.path("run/checkpoints/latest");
    wait_until(&mut child, || latest.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let (out, _) = succeed(place.resume(&["finetune"], "run"));
    assert!(out.contains("validation top-1"), "{out}");
    assert!(place.weights("run") == place.weights("whole"));
    assert_eq!(logged(&place.path("run"), "train"), (1..=12).collect::<Vec<_>>());
    assert_eq!(logged(&place.path("run"), "eval"), [4, 8, 12]);
}

#[test]
fn ctrl_c_saves_image_text_pretraining() {
    let place = Place::new();
    let flags = ["--epochs", "4", "--save-every", "1000"];
    let mut command = place.siglip("run", &flags);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = place.path("run/metrics.jsonl");
    wait_until(&mut child, || fs::metadata(&metrics).is_ok_and(|file| file.len() > 0));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains(&format!("pretrain siglip --resume {}", place.text("run"))), "{err}");
    succeed(place.resume(SIGLIP, "run"));
    succeed(place.siglip("whole", &flags));
    assert!(place.weights("run") == place.weights("whole"));
    assert_eq!(logged(&place.path("run"), "train"), (1..=24).collect::<Vec<_>>());
}

/// The tower of a masked autoencoder, frozen but for the pooling that it does not have: what it was after any number of kills
/// and steps, though its file is gone.
#[test]
fn a_frozen_tower_stays_frozen_when_a_run_is_continued() {
    let place = Place::new();
    succeed(place.pretrain("mae", &["--patch-size", "8"]));
    let (init, flags) = (place.text("mae"), ["--epochs", "2", "--save-every", "1", "--freeze-image"]);
    let flags = [&flags[..], &["--init-image", &init]].concat();
    succeed(place.siglip("whole", &flags));
    let tensor = |file: &str, name: &str| {
        let dict = ocellus::checkpoint::safetensors::read(place.path(file)).unwrap();
        dict.require(name).unwrap().to_vec::<f32>().unwrap()
    };
    let fc1 = tensor("whole/model.safetensors", "vision_model.encoder.layers.5.mlp.fc1.weight");
    assert!(
        fc1 == tensor("mae/upstream.safetensors", "blocks.5.mlp.fc1.weight"),
        "a tower that is not trained has changed"
    );
    let mut child = start(place.siglip("run", &flags));
    let latest = place.path("run/checkpoints/latest");
    wait_until(&mut child, || latest.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(place.path("mae")).unwrap();
    succeed(place.resume(SIGLIP, "run"));
    assert!(place.weights("run") == place.weights("whole"));
}

/// Weights to start from that were given by relative paths are found again, from any folder.
#[test]
fn a_run_without_a_checkpoint_begins_again_from_elsewhere() {
    let place = Place::new();
    succeed(place.pretrain("mae", &[]));
    succeed(place.siglip("pairs", &[]));
    for (recipe, out, mut command) in [
        (PRETRAIN, "again", place.pretrain("again", &["--init", "mae"])),
        (SIGLIP, "image", place.siglip("image", &["--init-image", "pairs"])),
        (SIGLIP, "both", place.siglip("both", &["--init", "pairs"])),
    ] {
        command.current_dir(place.path(""));
        succeed(command);
        let weights = place.weights(out);
        fs::remove_dir_all(place.path(out).join("checkpoints")).unwrap();
        succeed(place.resume(recipe, out));
        assert!(place.weights(out) == weights, "{out}");
    }
}
