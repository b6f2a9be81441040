//! Compiles `kernels/`: every `.cu` file by nvcc into one fatbin that the crate embeds (feature `cuda`), and, with
//! feature `emulator`, the same files by the host's C++ compiler into an archive, beside the emulator that runs them.
//!
//! | environment variable | meaning |
//! | --- | --- |
//! | `NVCC` | the compiler; else `$CUDA_HOME/bin/nvcc`, `$CUDA_PATH/bin/nvcc`, then `nvcc` on the `PATH` |
//! | `OCELLUS_CUDA_ARCHS` | architectures for every file, e.g. `sm_80,sm_90a,ptx_90`; see [`architectures`] |
//!
//! Without nvcc the crate builds, and its CUDA device says that the kernels are missing. Nothing is compiled twice: an
//! output carries a hash of the compiler, its flags and every source text that went into it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::{env, fs, thread};

/// Flags of every kernel. No fast math: where a kernel wants an approximation, it names the intrinsic.
const NVCC_FLAGS: [&str; 5] = ["--fatbin", "-O3", "-std=c++17", "-lineinfo", "-Ikernels"];
/// The emulator itself: optimised, and not instrumented, since it implements the instrumentation.
const EMULATOR_FLAGS: [&str; 7] = ["-c", "-std=c++17", "-fPIC", "-O3", "-g", "-Ikernels", "-Ikernels/emulator"];
/// Kernels as C++: every memory access, array index and shift calls a hook that the emulator defines, hence no runtime
/// library of these sanitizers is linked. f16 and fused multiply-add exist in the host's instructions, as on the device.
const EMULATED_FLAGS: [&str; 16] = [
    "-c",
    "-std=c++17",
    "-fPIC",
    "-O2",
    "-g",
    "-Ikernels",
    "-Ikernels/emulator",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-fsanitize=thread,bounds,shift",
    "-Wno-psabi",
    "-Wno-unknown-pragmas", // `#pragma unroll`
    "-xc++",
];
/// No hooks on function entry, which the emulator has no use for. One call stands for one source line: shared or jumped
/// to calls would make reports and traffic counts name another line.
const EMULATED_GNU_FLAGS: [&str; 4] = [
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-optimize-sibling-calls",
    "-fno-crossjumping",
    "-fno-tree-tail-merge",
];

/// One compiler run: `command` gets `-o output source`.
struct Job {
    command: Command,
    source: PathBuf,
    output: PathBuf,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    cuda(&out);
    if env::var_os("CARGO_FEATURE_EMULATOR").is_some() {
        emulator(&out);
    }
}

// ---- kernels for the GPU ----

/// Compiles the fatbins and writes `kernels.rs`, the table that embeds them.
fn cuda(out: &Path) {
    let mut table = String::new();
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let mut files = sources("kernels", "cu");
        if env::var_os("CARGO_FEATURE_EMULATOR").is_some() {
            // The probes of kernels/ptx*.cuh: tests run them on both sides.
            files.extend(
                ["ptx", "ptx_sm90", "gemm_sm90"].map(|stem| format!("kernels/emulator/tests/{stem}.cu").into()),
            );
        }
        match find_nvcc() {
            Some((nvcc, version)) => {
                let jobs = files.iter().map(|file| fatbin_job(&nvcc, file, out)).collect();
                run(jobs, &version);
                for file in &files {
                    let (stem, archs) = (stem(file), architectures(file));
                    table += &format!(
                        "    ({stem:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\")), &{archs:?}),\n"
                    );
                }
            }
            None => println!(
                "cargo::warning=nvcc was not found, so this build cannot use a GPU: install the CUDA toolkit 13.0 and \
                 put nvcc on the PATH, or set NVCC to it; then build again"
            ),
        }
    }
    let text = format!(
        "/// One entry per file of `kernels/`: stem, fatbin, architectures in it. Empty if nvcc was missing.\n\
         pub static KERNELS: &[(&str, &[u8], &[&str])] = &[\n{table}];\n"
    );
    write(&out.join("kernels.rs"), &text);
}

/// The compiler and what it says of its version.
fn find_nvcc() -> Option<(PathBuf, String)> {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Some(nvcc) = env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()).map(PathBuf::from) {
        if let Some(folder) = nvcc.parent() {
            watch(folder);
        }
        let Some(version) = version(&nvcc) else { fail(&format!("NVCC is {}, which does not run", nvcc.display())) };
        return Some((nvcc, version));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let homes: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin")).collect();
    let nvcc = nvcc_in(homes).or_else(|| {
        println!("cargo::rerun-if-env-changed=PATH");
        nvcc_in(env::split_paths(&env::var_os("PATH")?))
    })?;
    version(&nvcc).map(|version| (nvcc, version))
}

/// The first nvcc in these folders.
fn nvcc_in(folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.into_iter().filter(|folder| watch(folder)).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Builds again once nvcc is installed or replaced in `folder`, if there is such a folder. The folder rather than the
/// file, whose own time is that of its packaging; not a missing one, since cargo takes a missing path for a changed one
/// and would build again every time.
fn watch(folder: &Path) -> bool {
    let found = folder.is_dir();
    if found {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    found
}

/// Architectures of one file: `sm_N` is machine code for that chip, `ptx_N` is portable code that the driver compiles
/// for chips from N on. A line `// arch: sm_90a` says that the file has variants for Hopper's own instructions, which
/// only code for `sm_90a` can hold; it stands in place of `sm_90` then, so that the driver has one match.
fn architectures(file: &Path) -> Vec<String> {
    println!("cargo::rerun-if-env-changed=OCELLUS_CUDA_ARCHS");
    if let Some(list) = env::var("OCELLUS_CUDA_ARCHS").ok().filter(|list| !list.trim().is_empty()) {
        return list.split(',').map(|arch| arch.trim().to_string()).collect();
    }
    let hopper = if read(file).lines().any(|line| line.trim() == "// arch: sm_90a") { "sm_90a" } else { "sm_90" };
    ["sm_80", hopper, "ptx_90"].map(String::from).to_vec()
}

fn fatbin_job(nvcc: &Path, file: &Path, out: &Path) -> Job {
    let mut command = Command::new(nvcc);
    command.args(NVCC_FLAGS);
    for arch in architectures(file) {
        let (virtual_arch, code) = match arch.split_once('_') {
            Some(("sm", n)) => (format!("compute_{n}"), format!("sm_{n}")),
            Some(("ptx", n)) => (format!("compute_{n}"), format!("compute_{n}")),
            _ => fail(&format!("OCELLUS_CUDA_ARCHS: `{arch}`, expected sm_N or ptx_N, e.g. sm_80,sm_90a,ptx_90")),
        };
        command.arg(format!("-gencode=arch={virtual_arch},code={code}"));
    }
    Job { command, source: file.into(), output: out.join(format!("{}.fatbin", stem(file))) }
}

// ---- kernels for the emulator ----

/// Builds `libocellus_emulator.a` and `libocellus_kernels.a`. Kernels make themselves known in static initialisers,
/// which nothing refers to: `+whole-archive` keeps them.
fn emulator(out: &Path) {
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        fail("feature `emulator` runs on x86-64 only: its threads are switched by x86-64 code");
    }
    let compiler = cc::Build::new().cpp(true).no_default_flags(true).extra_warnings(false).get_compiler();
    let job = |file: &PathBuf, prefix: &str, flags: &[&str]| {
        let mut command = Command::new(compiler.path());
        command.args(compiler.args()).args(flags);
        if prefix != "emulator" && compiler.is_like_gnu() {
            command.args(EMULATED_GNU_FLAGS);
        }
        Job { command, source: file.into(), output: out.join(format!("{prefix}_{}.o", stem(file))) }
    };
    let emulator: Vec<Job> =
        sources("kernels/emulator", "cpp").iter().map(|file| job(file, "emulator", &EMULATOR_FLAGS)).collect();
    let kernels = sources("kernels", "cu").into_iter().map(|file| (file, "kernel"));
    let probes = sources("kernels/emulator/tests", "cu").into_iter().map(|file| (file, "probe"));
    let kernels: Vec<Job> = kernels.chain(probes).map(|(file, prefix)| job(&file, prefix, &EMULATED_FLAGS)).collect();

    // The archive that refers to symbols goes before the one that defines them.
    let archives = [("ocellus_kernels", &kernels, "+whole-archive"), ("ocellus_emulator", &emulator, "-whole-archive")]
        .map(|(name, jobs, link)| (name, jobs.iter().map(|job| job.output.clone()).collect::<Vec<_>>(), link));
    let version = version(compiler.path()).unwrap_or_default();
    run(emulator.into_iter().chain(kernels).collect(), &version);
    for (name, objects, link) in archives.into_iter().filter(|(_, objects, _)| !objects.is_empty()) {
        cc::Build::new().cpp(true).objects(objects).link_lib_modifier(link).compile(name);
    }
}

// ---- compiling what changed ----

/// Runs those jobs whose output is missing or out of date, as many at a time as cargo allows. Fails with the output of
/// every compiler that failed.
fn run(jobs: Vec<Job>, compiler: &str) {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (queue, errors) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let job = queue.lock().expect("no worker panics while it holds this").pop();
            let Some(job) = job else { break };
            if let Err(error) = compile(job, compiler) {
                errors.lock().expect("no worker panics while it holds this").push(error);
            }
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let errors = errors.into_inner().expect("no worker panicked");
    if !errors.is_empty() {
        fail(&errors.join("\n"));
    }
}

fn compile(mut job: Job, compiler: &str) -> Result<(), String> {
    let mut texts = BTreeMap::new();
    collect(&job.source, &mut texts);
    let mut hasher = DefaultHasher::new();
    (compiler, format!("{:?}", job.command), texts).hash(&mut hasher); // not where it goes: a target folder may be copied
    job.command.arg("-o").arg(&job.output).arg(&job.source);
    let (hash, stamp) = (format!("{:016x}", hasher.finish()), job.output.with_added_extension("hash"));
    if job.output.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == hash) {
        return Ok(());
    }
    drop(fs::remove_file(&stamp)); // A run that is cut short must not leave the stamp of an earlier one.
    let result = job.command.output().map_err(|error| format!("{:?}: {error}", job.command.get_program()))?;
    let said = [result.stdout, result.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !result.status.success() {
        return Err(format!("{}: compilation failed\n{:?}\n{said}", job.source.display(), job.command));
    }
    said.lines().for_each(|line| println!("cargo::warning={line}"));
    write(&stamp, &hash);
    Ok(())
}

/// The text of `file` and of every file it includes by `#include "..."`, as the compiler would find them.
fn collect(file: &Path, texts: &mut BTreeMap<PathBuf, String>) {
    if texts.contains_key(file) {
        return;
    }
    let text = read(file);
    texts.insert(file.into(), text.clone());
    let quoted = |line: &str| Some(line.trim().strip_prefix("#include \"")?.split_once('"')?.0.to_string());
    for name in text.lines().filter_map(quoted) {
        let folders = [file.parent().unwrap_or(Path::new("")), Path::new("kernels"), Path::new("kernels/emulator")];
        if let Some(found) = folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()) {
            collect(&found, texts);
        }
    }
}

// ---- small helpers ----

/// Files of `folder` with `extension`, sorted; none if there is no such folder.
fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn version(compiler: &Path) -> Option<String> {
    let output = Command::new(compiler).arg("--version").output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn stem(file: &Path) -> String {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| fail(&format!("{}: {error}", file.display())))
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|error| fail(&format!("{}: {error}", file.display())));
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
