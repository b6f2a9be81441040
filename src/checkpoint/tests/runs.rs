//! States of training runs: round trips, retention, damage, killed processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use rand::RngExt;

use super::super::run_state::{Progress, RunFolder, RunState};
use super::{assert_same, tensor, upstream};
use crate::checkpoint::StateDict;
use crate::random::stream;
use crate::{Device, Tensor};

fn state(step: u64) -> RunState {
    let mut optimizer = StateDict::new();
    optimizer.insert("exp_avg.norm.weight", tensor(&[8], step)).unwrap();
    optimizer.insert("steps", Tensor::from_slice(&[step as i32], [1], &Device::Cpu).unwrap()).unwrap();
    let progress = Progress { step, config: "[mae]\nwidth = 8\n".into(), data: "7 images of \u{e9}".into() };
    let mut model = upstream(8, 1, 4, 1, 4);
    model.metadata.insert("sizes".into(), "{}".into());
    RunState { progress, model, optimizer }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_equal(a: &RunState, b: &RunState) {
    assert_eq!(a.progress, b.progress);
    assert_same(&a.model, &b.model);
    assert_eq!(a.model.metadata, b.model.metadata);
    assert_same(&a.optimizer, &b.optimizer);
}

#[test]
fn everything_comes_back_and_equal_states_give_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    state(12).write(&a).unwrap();
    let back = RunState::read(&a).unwrap();
    assert_equal(&back, &state(12));
    back.write(&b).unwrap();
    assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
}

#[test]
fn the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::open(folder.path().join("checkpoints"), 2).unwrap();
    assert!(run.resume().unwrap().is_none());
    for step in 1..=6 {
        let path = run.save(&state(step)).unwrap();
        assert_eq!(run.resume().unwrap().unwrap().path, path);
    }
    let at = folder.path().join("checkpoints");
    let kept = [5, 6].map(|s| format!("step-{s:08}.safetensors"));
    assert_eq!(names(&at), [&["latest".to_string()][..], &kept].concat());
    assert_eq!(fs::read_to_string(at.join("latest")).unwrap(), "step-00000006.safetensors\n");
}

#[test]
fn damaged_files_are_named_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::open(folder.path(), 3).unwrap();
    let paths: Vec<PathBuf> = (1..=3).map(|s| run.save(&state(s)).unwrap()).collect();
    let truncated = fs::read(&paths[2]).unwrap();
    fs::write(&paths[2], &truncated[..truncated.len() / 2]).unwrap();
    let mut flipped = fs::read(&paths[1]).unwrap();
    *flipped.last_mut().unwrap() ^= 1; // one bit of one weight: the file is well-formed
    fs::write(&paths[1], flipped).unwrap();
    let found = run.resume().unwrap().unwrap();
    assert_eq!(found.path, paths[0]);
    assert_equal(&found.state, &state(1));
    let messages: Vec<_> = found.damaged.iter().map(ToString::to_string).collect();
    assert!(messages[0].contains("step-00000003") && messages[0].contains("truncated"), "{messages:?}");
    assert!(messages[1].contains("step-00000002") && messages[1].contains("checksum"), "{messages:?}");

    // Going on from step 1 must neither delete the good file in favour of damaged ones nor resume from those later.
    let run = RunFolder::open(folder.path(), 1).unwrap();
    let next = run.save(&state(2)).unwrap();
    assert_eq!(run.resume().unwrap().unwrap().path, next);
    assert!(names(folder.path()).contains(&"step-00000003.safetensors.superseded".to_string()));

    fs::write(&next, b"nothing").unwrap();
    let error = run.resume().unwrap_err().to_string();
    assert!(error.contains("no intact state") && error.contains("step-00000002"), "{error}");
}

#[test]
fn other_files_and_later_versions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-00000007.safetensors");
    crate::checkpoint::safetensors::write(&path, &upstream(8, 1, 4, 1, 4)).unwrap();
    assert!(RunState::read(&path).unwrap_err().to_string().contains("not the state of a training run"));
    state(6).write(folder.path().join("step-00000006.safetensors")).unwrap();
    let mut dict = crate::checkpoint::safetensors::read(folder.path().join("step-00000006.safetensors")).unwrap();
    dict.metadata.insert("ocellus.schema".into(), "2".into());
    crate::checkpoint::safetensors::write(&path, &dict).unwrap();
    let run = RunFolder::open(folder.path(), 3).unwrap();
    assert!(run.resume().unwrap_err().to_string().contains("layout version 2"));
}

#[test]
fn half_written_files_are_cleaned_up() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".step-00000001.safetensors.x1y2z3.tmp"), "half").unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    RunFolder::open(folder.path(), 3).unwrap();
    assert_eq!(names(folder.path()), ["notes.txt"]);
}

const CHILD: &str = "OCELLUS_TEST_SAVING_CHILD";

/// Not a test of its own: the process that the next test kills.
#[test]
fn saving_child() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let run = RunFolder::open(folder, 2).unwrap();
    let first = run.resume().unwrap().map_or(1, |r| r.state.progress.step + 1);
    for step in first.. {
        run.save(&state(step)).unwrap();
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_a_folder_to_resume_from() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::tests::runs::saving_child"])
            .env(CHILD, folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Wait until it has got further, then a random moment more.
        let further = |n: &String| n.ends_with(".safetensors") && *n > format!("step-{last:08}.safetensors");
        while !names(folder.path()).iter().any(further) {
            assert!(child.try_wait().unwrap().is_none(), "the saving process ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(stream(1, round).random_range(0..20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = RunFolder::open(folder.path(), 2).unwrap().resume().unwrap().unwrap();
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        assert!(found.state.progress.step > last);
        last = found.state.progress.step;
        assert_equal(&found.state, &state(last));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_damage_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        state(3).write(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, bytes).unwrap();
        match RunState::read(&path) {
            Err(_) => {}
            // A flipped bit can leave the meaning of the header's JSON as it was (white space at its end).
            Ok(read) => assert_equal(&read, &state(3)),
        }
    }
}
