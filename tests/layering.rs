//! The shape of the source tree: which module may import which, where unsafe code may stand, and that an operation has
//! one name everywhere.

#[path = "layering/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::{Source, imports, unsafe_lines};

/// Modules of the library from the bottom up: each may import those before it and those on its line.
const CHAIN: [&[&str]; 10] = [
    &["error", "dtype", "shape", "math"],
    &["device"],
    &["tensor"],
    &["tape"],
    &["ops"],
    &["nn"],
    &["optim"],
    &["recipes"],
    &["train"],
    &["cli", "main"],
];

/// Modules beside the chain: the last link of it that they may import, and which of their kind.
const SIDE: [(&str, &str, &[&str]); 6] = [
    ("data", "tensor", &[]),
    ("checkpoint", "optim", &[]),
    ("eval", "recipes", &["data", "checkpoint"]),
    ("curate", "train", &["data", "checkpoint", "eval"]),
    ("bench", "ops", &["testing"]),
    ("testing", "ops", &[]), // tests import it; `ops` gives it `Case`
];

/// Links of the chain that may import modules beside it.
const SIDE_USERS: [(&str, &[&str]); 4] = [
    ("recipes", &["data", "checkpoint"]),
    ("train", &["data", "checkpoint", "eval"]),
    ("cli", &["data", "checkpoint", "eval", "curate", "bench"]),
    ("main", &["data", "checkpoint", "eval"]),
];

/// What the root of the repository holds, hidden and ignored entries apart.
const ROOT: [&str; 14] = [
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "build.rs",
    "docs",
    "examples",
    "kernels",
    "rustfmt.toml",
    "src",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rank(module: &str) -> Option<usize> {
    CHAIN.iter().position(|link| link.contains(&module))
}

fn sides<'a>(list: &[(&str, &'a [&'a str])], module: &str) -> &'a [&'a str] {
    list.iter().find(|(name, _)| *name == module).map_or(&[], |(_, allowed)| *allowed)
}

/// Whether `from` may import `to`; `None` if one of them has no place yet.
fn allowed(from: &str, to: &str) -> Option<bool> {
    let side = |module: &str| SIDE.iter().find(|(name, ..)| *name == module);
    if from == to {
        return rank(from).map(|_| true).or(side(from).map(|_| true));
    }
    match (rank(from), rank(to), side(from), side(to)) {
        (Some(from), Some(to), ..) => Some(to <= from),
        (Some(_), None, _, Some(_)) => Some(sides(&SIDE_USERS, from).contains(&to)),
        (None, Some(to), Some((_, last, _)), _) => Some(rank(last).is_some_and(|last| to <= last)),
        (None, None, Some((_, _, others)), Some(_)) => Some(others.contains(&to)),
        _ => None,
    }
}

/// Every import of `files` that the order forbids, as text.
fn violations(files: &[Source]) -> Vec<String> {
    let exports = source::exports(files);
    let mut found = Vec::new();
    for file in files.iter().filter(|f| !f.is_test && !f.module.is_empty()) {
        for (line, name, certain) in imports(file) {
            let from = file.module[0].as_str();
            let known = rank(&name).is_some() || SIDE.iter().any(|(side, ..)| *side == name);
            let to = if known { Some(&name) } else { exports.get(&name) };
            let place = format!("src/{}:{line}", file.path);
            match to.map(|to| (to, allowed(from, to))) {
                Some((_, Some(true))) => {}
                Some((to, Some(false))) => found.push(format!("{place}: `{from}` imports `{to}` ({name})")),
                Some((to, None)) => found.push(format!("{place}: `{from}` or `{to}` has no place in the order")),
                None if certain => found.push(format!("{place}: `crate::{name}` is not a module or a re-export")),
                None => {}
            }
        }
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn imports_follow_the_order() {
    let found = violations(&source::read(&root().join("src")));
    assert!(found.is_empty(), "imports against the order:\n{}", found.join("\n"));
}

#[test]
fn an_import_against_the_order_is_found() {
    let lib = ("lib.rs", "pub use device::Device; pub use tape::{Tape, Var}; pub use tensor::Tensor;");
    let found =
        |path: &str, text: &str| violations(&source::parse([lib, (path, text)].map(|(p, t)| (p.into(), t.into()))));
    for (path, text) in [
        ("tensor/mod.rs", "use crate::ops::gelu;"),
        ("tensor/mod.rs", "use crate::{Device, Tape};"),
        ("tensor/mod.rs", "use crate::{\n    Device,\n    device::{host, Storage}, nn::{self, Linear},\n};"),
        ("tensor/convert.rs", "fn f() { crate::tape::f() }"),
        ("tensor/mod.rs", "use super::optim::AdamW;"),
        ("tensor/convert.rs", "use super::super::optim::AdamW;"),
        ("ops/gelu/mod.rs", "use crate::testing::check;"),
        ("data/mod.rs", "use crate::Var;"),
        ("data/mod.rs", "use crate::checkpoint::StateDict;"),
        ("checkpoint/mod.rs", "use crate::recipes::mae;"),
        ("nn/mod.rs", "use crate::data::Batch;"),
        ("ops/mod.rs", "macro_rules! m { () => { $crate::nn::f() } }"),
        ("ops/mod.rs", "use crate::unheard_of;"),
        ("novelty/mod.rs", "use crate::ops::gelu;"),
        ("tensor/mod.rs", "#[cfg(feature = \"cuda\")] mod tests { use crate::nn::f; }"),
        ("tensor/mod.rs", "const A: &str = \"// no comment\"; use crate::nn::f;"),
    ] {
        assert_eq!(found(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("tensor/mod.rs", "use crate::{Device, device::Storage};"),
        ("tensor/mod.rs", "//! [`x`](crate::ops::gelu)\n/* crate::nn */ // use crate::nn;"),
        (
            "tensor/mod.rs",
            "#[cfg(test)]\nmod checks { use crate::nn::f; const S: char = '}'; fn g() { crate::train::f() } }",
        ),
        ("tensor/tests.rs", "use crate::testing::check;"),
        ("tensor/tests/odd.rs", "use crate::testing::check;"),
        ("tensor/mod.rs", "const A: &str = \"crate::nn\"; const B: &str = r#\"\" crate::nn\"#;"),
        ("tensor/convert.rs", "use super::Tensor; mod inner { use super::f; }"),
        ("dtype.rs", "mod inner { use super::Float; }"),
        ("recipes/mae/mod.rs", "use crate::{data::Batch, nn::Module, checkpoint::StateDict};"),
    ] {
        assert_eq!(found(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn modules_declared_for_tests_are_tests_whatever_their_name() {
    let text = |p: &str, t: &str| (p.to_string(), t.to_string());
    let helper = text("tensor/fixtures.rs", "use crate::testing::check;");
    let owner = text("tensor/mod.rs", "#[cfg(test)]\nmod fixtures;");
    assert!(violations(&source::parse([owner, helper.clone()])).is_empty());
    assert_eq!(violations(&source::parse([text("tensor/mod.rs", "mod fixtures;"), helper])).len(), 1);
}

#[test]
fn unsafe_code_is_in_device_and_launch_files_only() {
    let mut found = Vec::new();
    for file in source::read(&root().join("src")) {
        let launches = file.path.ends_with("/launch.rs");
        if !file.path.starts_with("device/") && !launches {
            found.extend(unsafe_lines(&file).map(|line| format!("src/{}:{line}", file.path)));
        }
    }
    assert!(found.is_empty(), "unsafe code outside src/device and launch.rs:\n{}", found.join("\n"));
}

#[test]
fn unsafe_code_is_found() {
    let lines = |text: &str| {
        let files = source::parse([("nn/mod.rs".to_string(), text.to_string())]);
        unsafe_lines(&files[0]).collect::<Vec<_>>()
    };
    assert_eq!(lines("fn f() {\n    unsafe { g() }\n}"), [2]);
    assert_eq!(lines("unsafe impl Send for X {}"), [1]);
    assert_eq!(lines("#![allow(unsafe_code)]"), [1]);
    assert_eq!(lines("#![deny(unsafe_code)]\n#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";"), [0; 0]);
}

/// Entries of a folder of operations, kernels and cases that are not in all three.
fn unmatched(ops: &BTreeSet<String>, kernels: &BTreeSet<String>, cases: &BTreeSet<String>) -> Vec<String> {
    let all: BTreeSet<&String> = ops.union(kernels).chain(cases).collect();
    let lists = [("folder in src/ops", ops), ("kernels/*.cu", kernels), ("case in ops::cases", cases)];
    let missing =
        |name: &&String| lists.iter().filter(|(_, l)| !l.contains(*name)).map(|(w, _)| *w).collect::<Vec<_>>();
    all.iter()
        .map(|n| (n, missing(n)))
        .filter(|(_, m)| !m.is_empty())
        .map(|(n, m)| format!("{n}: no {}", m.join(", no ")))
        .collect()
}

/// Kernels of `<stem>.cu` that are not named after it.
fn misnamed(stem: &str, text: &str) -> Vec<String> {
    let op = stem.strip_suffix("_bwd").unwrap_or(stem);
    let entry = |line: &str| {
        let (macro_name, arguments) = line.split_once('(')?;
        let defines = macro_name.contains("KERNEL") && macro_name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        defines.then(|| arguments.split([',', ')']).next().unwrap_or_default().trim().to_string())
    };
    let fits = |name: &String| name.strip_prefix(op).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    text.lines().filter_map(entry).filter(|name| !fits(name)).collect()
}

#[test]
fn a_kernel_of_another_name_is_found() {
    let text = "KERNEL_PER_DTYPE(add_fwd, Add)\nKERNEL(adder_f32, Add)\nKERNEL(add, Add)\n#define KERNEL_X(name, y)\n";
    assert_eq!(misnamed("add", text), ["adder_f32"]);
    assert_eq!(misnamed("add_bwd", "ATTENTION_KERNEL(add_bwd_kv, 32, Args)\nKERNEL(accumulate, A)"), ["accumulate"]);
}

#[test]
fn operations_have_one_name_everywhere() {
    let ops_dir = root().join("src/ops");
    let ops: BTreeSet<String> = names(&ops_dir).into_iter().filter(|n| ops_dir.join(n).is_dir()).collect();
    let stem = |name: String| Some(name.strip_suffix(".cu")?.to_string());
    let files: BTreeSet<String> = names(&root().join("kernels")).into_iter().filter_map(stem).collect();
    let kernels = files.iter().map(|f| f.strip_suffix("_bwd").unwrap_or(f).to_string()).collect();
    let cases = ocellus::ops::cases().iter().map(|case| case.op.to_string()).collect();
    let odd = unmatched(&ops, &kernels, &cases);
    assert!(odd.is_empty(), "{}", odd.join("\n"));
    for stem in files.iter().filter_map(|f| f.strip_suffix("_bwd")) {
        assert!(files.contains(stem), "kernels/{stem}_bwd.cu without kernels/{stem}.cu");
    }
    for op in &ops {
        // A cast is part of the tensor layer, which gradients need: src/tensor/convert.rs and launch.rs.
        let below: &[&str] = if op == "cast" { &[] } else { &["reference.rs", "launch.rs"] };
        for file in ["mod.rs", "case.rs", "tests.rs"].iter().chain(below) {
            assert!(ops_dir.join(op).join(file).exists(), "src/ops/{op}/{file} is missing");
        }
        let text = fs::read_to_string(ops_dir.join(op).join("mod.rs")).unwrap();
        let named = text.lines().find_map(|l| l.strip_prefix("const OP: &str = \"")?.split('"').next());
        assert!(named.is_none_or(|name| name == op), "src/ops/{op}/mod.rs calls itself {named:?}");
    }
    for file in &files {
        let text = fs::read_to_string(root().join(format!("kernels/{file}.cu"))).unwrap();
        let odd = misnamed(file, &text);
        assert!(odd.is_empty(), "kernels/{file}.cu: {odd:?} do not begin with the file's name");
    }
    // Benches cover every operation as long as they take their list from the cases.
    if let Ok(text) = fs::read_to_string(root().join("benches/ops.rs")) {
        assert!(text.contains("cases()"), "benches/ops.rs does not run ops::cases()");
    }
}

#[test]
fn a_missing_kernel_case_or_folder_is_found() {
    let set = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    let odd = unmatched(&set(&["add", "gelu"]), &set(&["add", "scale"]), &set(&["add", "gelu"]));
    assert_eq!(odd, ["gelu: no kernels/*.cu", "scale: no folder in src/ops, no case in ops::cases"]);
}

#[test]
fn case_ids_are_unique() {
    let mut count = BTreeMap::new();
    for case in ocellus::ops::cases() {
        *count.entry((case.op, case.id)).or_insert(0) += 1;
    }
    let twice: Vec<_> = count.into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(twice.is_empty(), "benches would overwrite each other's results: {twice:?}");
}

#[test]
fn the_root_holds_what_is_documented() {
    let ignored = fs::read_to_string(root().join(".gitignore")).unwrap_or_default();
    let ignored: Vec<&str> = ignored.lines().map(|l| l.trim_matches('/')).collect();
    let known =
        |name: &str| name.starts_with('.') || name == "tests" || ROOT.contains(&name) || ignored.contains(&name);
    let odd: Vec<String> = names(&root()).into_iter().filter(|name| !known(name)).collect();
    assert!(odd.is_empty(), "unexpected in the root of the repository: {odd:?}");
    let modules = names(&root().join("src")).into_iter().map(|n| n.trim_end_matches(".rs").to_string());
    let placed = |m: &String| m == "lib" || rank(m).is_some() || SIDE.iter().any(|(side, ..)| side == m);
    let odd: Vec<String> = modules.filter(|m| !placed(m)).collect();
    assert!(odd.is_empty(), "modules without a place in the order: {odd:?}");
}
