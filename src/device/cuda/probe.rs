//! Whether this binary can use a GPU on this machine, and if not, why.

use cudarc::cublaslt::sys as lt_sys;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::{KERNELS, say};

/// Oldest driver whose functions this crate's bindings name, as `cuDriverGetVersion` counts.
const DRIVER: i32 = 13_000;
/// Oldest chip the kernels are written for: bf16 and asynchronous copies begin there.
const CAPABILITY: (u32, u32) = (8, 0);

/// What is missing on this machine or in this binary, found without a call that could panic for want of a library.
pub(super) fn missing(ordinal: usize) -> std::result::Result<(), String> {
    let mut causes = Vec::new();
    if KERNELS.is_empty() {
        causes.push(
            "this binary holds no GPU kernels because nvcc was missing when it was built; install the CUDA toolkit 13.0 \
             (nvcc on the PATH, or NVCC set to it) and build again",
        );
    }
    // SAFETY: opens the library and closes it again; the driver's initialisers have no preconditions.
    let driver = unsafe { sys::is_culib_present() };
    if !driver {
        causes.push("the NVIDIA driver's library (libcuda.so) was not found; install driver 580 or newer");
    }
    // SAFETY: as above.
    if !unsafe { lt_sys::is_culib_present() } {
        causes.push(
            "cuBLASLt (libcublasLt.so) was not found; install cuBLAS of the CUDA toolkit 13.0, or name its folder in \
             LD_LIBRARY_PATH",
        );
    }
    if driver && let Some(cause) = no_gpu(ordinal) {
        return Err([&[cause.as_str()], &causes[..]].concat().join("; "));
    }
    if causes.is_empty() { Ok(()) } else { Err(causes.join("; ")) }
}

/// Why the driver, which is there, offers no GPU of this ordinal.
fn no_gpu(ordinal: usize) -> Option<String> {
    let mut version = 0;
    // SAFETY: writes one integer; the one driver call that needs no initialisation.
    if let Err(e) = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result() {
        return Some(format!("the NVIDIA driver does not answer: {}", say(e)));
    }
    if version < DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Some(format!("the NVIDIA driver supports CUDA {major}.{minor}, expected 13.0 (driver 580) or newer"));
    }
    match result::init().and_then(|()| result::device::get_count()) {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) | Ok(0) => {
            Some("the NVIDIA driver sees no GPU on this machine".into())
        }
        Err(e) => Some(format!("the NVIDIA driver does not start: {}", say(e))),
        Ok(count) if ordinal >= count as usize => {
            Some(format!("this machine has {count} GPU(s), expected an ordinal below {count}"))
        }
        Ok(_) => None,
    }
}

/// Checks that every kernel file holds code for this chip.
pub(super) fn fits(chip: (u32, u32), kernels: &[(&str, &[u8], &[&str])]) -> std::result::Result<(), String> {
    let (major, minor) = chip;
    if chip < CAPABILITY {
        let (wanted, _) = CAPABILITY;
        return Err(format!("compute capability {major}.{minor}, expected {wanted}.0 (Ampere) or newer"));
    }
    let Some((stem, _, archs)) = kernels.iter().find(|(_, _, archs)| !archs.iter().any(|arch| runs_on(arch, chip)))
    else {
        return Ok(());
    };
    Err(format!(
        "compute capability {major}.{minor}, but kernels/{stem}.cu was compiled for {}; build again with \
         OCELLUS_CUDA_ARCHS=sm_{major}{minor}",
        archs.join(", ")
    ))
}

/// Whether code of an architecture runs on a chip: `sm_N` on its own generation from N on, `sm_Na` on N alone, `ptx_N`
/// on everything from N on.
pub(super) fn runs_on(arch: &str, chip: (u32, u32)) -> bool {
    let Some((kind, number)) = arch.split_once('_') else { return false };
    let (number, exact) = number.strip_suffix('a').map_or((number, false), |number| (number, true));
    let Ok(number) = number.parse::<u32>() else { return false };
    let built = (number / 10, number % 10);
    match kind {
        _ if exact => built == chip,
        "sm" => built.0 == chip.0 && built.1 <= chip.1,
        _ => built <= chip,
    }
}
