//! The emulated device: `kernels/*.cu` compiled as C++ and run by `kernels/emulator`, on host memory, with checks.
//!
//! What a launch checks, and in which order its threads run, is [`Options`], per operating system thread; what it
//! found wrong is the text of its error. Shared state is the table of buffers and nothing else, so tests run in
//! parallel.
//!
//! ```
//! use ocellus::device::emulated::{Options, Order, kernels, with_options};
//!
//! assert!(kernels().iter().any(|(name, _)| name == "layer_norm_fwd_f32"));
//! let shuffled = Options { order: Order::Shuffled, seed: 7, ..Options::default() };
//! with_options(shuffled, || { /* launches of this thread */ });
//! ```
#![allow(unsafe_code)] // the C interface of the emulator

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// In which order the threads of a block, its warps and the blocks run. A correct kernel gives the same in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// Lowest number first.
    #[default]
    Forward,
    /// Highest number first.
    Reverse,
    /// Drawn from [`Options::seed`].
    Shuffled,
}

/// What a launch watches. Barriers, warp masks, shared memory limits and vector alignment are always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Checks {
    /// No access is checked: addresses must be right.
    Off,
    /// Every access: bounds, alignment, initialisation, races.
    On,
    /// As `On`, and counts memory transactions for [`take_traffic`].
    Traffic,
}

/// How the launches of a thread run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Schedule.
    pub order: Order,
    /// Of the shuffled schedule.
    pub seed: u64,
    /// Level of checking.
    pub checks: Checks,
    /// Shared memory a block may have, in bytes: 232448 on sm_90, 166912 on sm_80, 101376 on sm_86 and sm_89.
    pub shared_limit: u32,
}

impl Default for Options {
    /// Forward, with the checks that the environment variable `OCELLUS_EMULATOR_CHECKS` names: `off`, `on` (the
    /// default) or `traffic`.
    fn default() -> Self {
        static CHECKS: OnceLock<Checks> = OnceLock::new();
        let checks = *CHECKS.get_or_init(|| match std::env::var("OCELLUS_EMULATOR_CHECKS").as_deref() {
            Ok("off" | "0") => Checks::Off,
            Ok("traffic" | "2") => Checks::Traffic,
            _ => Checks::On,
        });
        Self { order: Order::Forward, seed: 0, checks, shared_limit: 232_448 }
    }
}

/// Memory transactions of one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Full kernel name.
    pub kernel: String,
    /// One entry per source line with accesses, ordered by file and line.
    pub lines: Vec<TrafficLine>,
}

/// Memory transactions of one source line. A request is one instruction of one warp.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficLine {
    /// `kernels/<op>.cu`.
    pub file: String,
    /// Line in it.
    pub line: u32,
    /// Requests to global memory.
    pub global_requests: u64,
    /// 32-byte sectors these touched.
    pub sectors: u64,
    /// Sectors that as many bytes need when they are contiguous.
    pub ideal_sectors: u64,
    /// Requests to shared memory.
    pub shared_requests: u64,
    /// Passes over the shared memory banks.
    pub wavefronts: u64,
    /// Passes without bank conflicts.
    pub ideal_wavefronts: u64,
}

impl Traffic {
    /// Sums over all lines of `file` (a suffix of the path is enough) in `lines`.
    pub fn sum(&self, file: &str, lines: impl std::ops::RangeBounds<u32>) -> TrafficLine {
        let mut sum = TrafficLine { file: file.into(), ..TrafficLine::default() };
        for l in self.lines.iter().filter(|l| l.file.ends_with(file) && lines.contains(&l.line)) {
            sum.global_requests += l.global_requests;
            sum.sectors += l.sectors;
            sum.ideal_sectors += l.ideal_sectors;
            sum.shared_requests += l.shared_requests;
            sum.wavefronts += l.wavefronts;
            sum.ideal_wavefronts += l.ideal_wavefronts;
        }
        sum
    }
}

/// A launch of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryLaunch {
    /// Full kernel name.
    pub kernel: String,
    /// Its grid, block and shared memory.
    pub launch: super::Launch,
}

thread_local! {
    static DRY: RefCell<Option<Vec<DryLaunch>>> = const { RefCell::new(None) };
    static OPTIONS: Cell<Option<Options>> = const { Cell::new(None) };
    static TRAFFIC: RefCell<Vec<Traffic>> = const { RefCell::new(Vec::new()) };
}

/// What launches of this thread use now.
pub fn options() -> Options {
    OPTIONS.get().unwrap_or_default()
}

/// Runs `f` with these options for the launches of the calling thread.
pub fn with_options<R>(options: Options, f: impl FnOnce() -> R) -> R {
    struct Reset(Option<Options>);
    impl Drop for Reset {
        fn drop(&mut self) {
            OPTIONS.set(self.0);
        }
    }
    let _reset = Reset(OPTIONS.replace(Some(options)));
    f()
}

/// Takes what launches of this thread with [`Checks::Traffic`] have counted since the last call, in launch order.
pub fn take_traffic() -> Vec<Traffic> {
    TRAFFIC.take()
}

/// Runs `f` without its launches, which are returned instead: nothing is computed on [`Device::Emulated`] by this thread,
/// matrix products included, so shapes may be as large as memory allows. What `f` reads back is what memory held.
///
/// [`Device::Emulated`]: super::Device::Emulated
pub fn dry_run<R>(f: impl FnOnce() -> R) -> (R, Vec<DryLaunch>) {
    struct Reset(Option<Vec<DryLaunch>>);
    impl Drop for Reset {
        fn drop(&mut self) {
            DRY.replace(self.0.take());
        }
    }
    let _reset = Reset(DRY.replace(Some(Vec::new())));
    let result = f();
    (result, DRY.take().unwrap_or_default())
}

/// Whether this thread is inside [`dry_run`].
pub(super) fn dry() -> bool {
    DRY.with_borrow(Option::is_some)
}

/// Names of all kernels in this build and the sizes of their argument structs, ordered by name.
pub fn kernels() -> Vec<(String, usize)> {
    let mut all = Vec::new();
    loop {
        // SAFETY: any index may be asked for; entries live as long as the process.
        let Some(kernel) = (unsafe { ffi::emu_kernel_at(all.len()).as_ref() }) else { return all };
        // SAFETY: the name of an entry is a string literal of the kernel file.
        let name = unsafe { CStr::from_ptr(kernel.name) };
        all.push((name.to_string_lossy().into_owned(), kernel.args_bytes));
    }
}

/// Runs a kernel to its end. `args` are the bytes of its argument struct; addresses in it must belong to registered
/// memory, which all checks but [`Checks::Off`] enforce.
///
/// # Errors
/// A text with kernel, block, thread, source position and cause: an unknown name, arguments of another size, too much
/// shared memory, or what the checks found.
pub fn launch(kernel: &str, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[u8]) -> Result<(), String> {
    let recorded = DRY.with_borrow_mut(|dry| {
        let launch = super::Launch { grid, block, shared };
        dry.as_mut().map(|all| all.push(DryLaunch { kernel: kernel.into(), launch }))
    });
    if recorded.is_some() {
        return Ok(());
    }
    let name = CString::new(kernel).map_err(|_| format!("{kernel}: not a kernel name"))?;
    let Options { order, seed, checks, shared_limit } = options();
    let c_options = ffi::Options { order: order as u32, checks: checks as u32, seed, shared_limit, threads: 0 };
    let traffic = (checks == Checks::Traffic).then(ffi::TrafficHandle::new);
    let mut text = [0u8; 4096];
    // SAFETY: all pointers are to live memory of the stated sizes; `text` is closed with a zero by the callee. The
    // kernel's accesses are checked against the registered buffers (see above for `Checks::Off`).
    let failed = unsafe {
        ffi::emu_launch(
            name.as_ptr(),
            grid.as_ptr(),
            block.as_ptr(),
            shared,
            args.as_ptr().cast(),
            args.len(),
            &c_options,
            traffic.as_ref().map_or(std::ptr::null_mut(), |t| t.0),
            text.as_mut_ptr().cast(),
            text.len(),
        )
    };
    if failed != 0 {
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        return Err(text.to_string_lossy().into_owned());
    }
    if let Some(traffic) = traffic {
        TRAFFIC.with_borrow_mut(|all| all.push(Traffic { kernel: kernel.into(), lines: traffic.lines() }));
    }
    Ok(())
}

/// Makes memory known to the checks, as uninitialised.
pub fn register(address: u64, bytes: usize) {
    // SAFETY: the emulator stores the range and does not touch it.
    unsafe { ffi::emu_buffer_register(pointer(address), bytes, c"buffer".as_ptr()) }
}

/// Forgets registered memory.
pub fn unregister(address: u64) {
    // SAFETY: as in `register`; an unknown address is ignored.
    unsafe { ffi::emu_buffer_unregister(pointer(address)) }
}

/// Names registered memory in reports.
pub fn name(address: u64, name: &str) {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: the callee copies the name; an unknown address is ignored.
    unsafe { ffi::emu_buffer_name(pointer(address), name.as_ptr()) }
}

/// Names the buffers that an argument struct points to after its fields, so that a report reads "`y`: 4 bytes past the
/// end". Its `Debug` text gives both; a number that is no buffer's address names nothing.
pub fn name_pointers(args: &impl std::fmt::Debug) {
    for field in format!("{args:?}").split(['{', '}', ',']) {
        let Some((field, value)) = field.split_once(": ") else { continue };
        if let Ok(address) = value.trim().parse() {
            name(address, field.trim());
        }
    }
}

/// The host has written `bytes` bytes at `address`, inside registered memory.
pub fn mark_written(address: u64, bytes: usize) {
    // SAFETY: the callee notes the range if it lies in registered memory.
    unsafe { ffi::emu_buffer_written(pointer(address), 0, bytes) }
}

fn pointer(address: u64) -> *const c_void {
    std::ptr::without_provenance(address as usize)
}

/// `kernels/emulator/emu_api.h`.
mod ffi {
    use super::{CStr, TrafficLine, c_char, c_int, c_void};

    #[repr(C)]
    pub struct Options {
        pub order: u32,
        pub checks: u32,
        pub seed: u64,
        pub shared_limit: u32,
        pub threads: u32,
    }

    #[repr(C)]
    pub struct Kernel {
        pub name: *const c_char,
        pub args_bytes: usize,
        max_threads: u32,
        thunk: *const c_void,
    }

    #[repr(C)]
    struct Row {
        file: *const c_char,
        line: u32,
        pad: u32,
        global_requests: u64,
        sectors: u64,
        ideal_sectors: u64,
        shared_requests: u64,
        wavefronts: u64,
        ideal_wavefronts: u64,
    }

    pub enum Rows {}

    unsafe extern "C" {
        pub fn emu_kernel_at(index: usize) -> *const Kernel;
        pub fn emu_launch(
            name: *const c_char,
            grid: *const u32,
            block: *const u32,
            dynamic: u32,
            args: *const c_void,
            args_bytes: usize,
            options: *const Options,
            traffic: *mut Rows,
            err: *mut c_char,
            err_len: usize,
        ) -> c_int;
        pub fn emu_buffer_register(memory: *const c_void, bytes: usize, name: *const c_char);
        pub fn emu_buffer_unregister(memory: *const c_void);
        pub fn emu_buffer_name(memory: *const c_void, name: *const c_char);
        pub fn emu_buffer_written(memory: *const c_void, offset: usize, bytes: usize);
        fn emu_traffic_new() -> *mut Rows;
        fn emu_traffic_free(traffic: *mut Rows);
        fn emu_traffic_row(traffic: *const Rows, index: usize, row: *mut Row) -> c_int;
    }

    /// Owner of the rows of one launch.
    pub struct TrafficHandle(pub *mut Rows);

    impl TrafficHandle {
        pub fn new() -> Self {
            // SAFETY: allocates; freed in `drop`.
            Self(unsafe { emu_traffic_new() })
        }

        pub fn lines(&self) -> Vec<TrafficLine> {
            let mut lines = Vec::new();
            loop {
                let mut row = std::mem::MaybeUninit::<Row>::uninit();
                // SAFETY: the handle is live; the callee fills `row` when it returns 1.
                if unsafe { emu_traffic_row(self.0, lines.len(), row.as_mut_ptr()) } == 0 {
                    return lines;
                }
                // SAFETY: filled, see above.
                let row = unsafe { row.assume_init() };
                // SAFETY: a string that lives as long as the handle.
                let file = unsafe { CStr::from_ptr(row.file) }.to_string_lossy().into_owned();
                lines.push(TrafficLine {
                    file,
                    line: row.line,
                    global_requests: row.global_requests,
                    sectors: row.sectors,
                    ideal_sectors: row.ideal_sectors,
                    shared_requests: row.shared_requests,
                    wavefronts: row.wavefronts,
                    ideal_wavefronts: row.ideal_wavefronts,
                });
            }
        }
    }

    impl Drop for TrafficHandle {
        fn drop(&mut self) {
            // SAFETY: made by `emu_traffic_new`, freed once.
            unsafe { emu_traffic_free(self.0) }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Pod, Zeroable};

    use crate::DType;
    use crate::device::{Device, Launch, Storage};

    /// `struct ScaleFwd` of kernels/scale.cu.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Pod, Zeroable)]
    struct Args {
        x: u64,
        y: u64,
        n: u64,
        factor: f32,
        pad: u32,
    }

    #[test]
    fn a_dry_run_computes_nothing() {
        let mut y = Storage::alloc(&Device::Emulated, 4 * 128).unwrap();
        y.zero().unwrap();
        let args = Args { x: y.ptr(), y: y.ptr(), n: 128, factor: 1.0, pad: 0 };
        let launch = Launch::linear(1, 128);
        // SAFETY: the launch is not run.
        let run = || unsafe { Device::Emulated.launch("scale", "scale_fwd", DType::F32, launch, &args) };
        let (result, recorded) = super::dry_run(run);
        result.unwrap();
        assert_eq!(recorded, [super::DryLaunch { kernel: "scale_fwd_f32".into(), launch }]);
        assert!(!super::dry());
    }

    #[test]
    fn reports_name_the_field_that_points_to_the_buffer() {
        let mut x = Storage::alloc(&Device::Emulated, 4 * 128).unwrap();
        x.zero().unwrap();
        let y = Storage::alloc(&Device::Emulated, 4 * 100).unwrap();
        let args = Args { x: x.ptr(), y: y.ptr(), n: 128, factor: 1.0, pad: 0 };
        // SAFETY: the emulator checks every access, and refuses those that this launch gets wrong.
        let launched =
            unsafe { Device::Emulated.launch("scale", "scale_fwd", DType::F32, Launch::linear(1, 128), &args) };
        let report = launched.unwrap_err().to_string();
        assert!(report.contains("`y`: write of") && report.contains("past the end"), "{report}");
    }
}
