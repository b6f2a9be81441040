//! The emulator's own tests: faults it must find whatever the schedule, legal code it must accept, what the emulated
//! language computes, and what its traffic counters count. Kernels: `kernels/emulator/tests/*.cu`.
#![cfg(feature = "emulator")]

mod async_faults;
mod attention;
mod faults;
mod maps;
mod ops;
mod prototypes;
mod ptx;
mod semantics;
mod sm90;
mod supporting;
mod traffic;

use ocellus::Device;
use ocellus::device::emulated::{self, Checks, Options, Order, with_options};
use ocellus::device::{Launch, Storage};

/// A named emulated buffer.
struct Buffer(Storage);

impl Buffer {
    /// Nobody has written it.
    fn fresh(name: &str, bytes: usize) -> Self {
        let storage = Storage::alloc(&Device::Emulated, bytes).unwrap();
        emulated::name(storage.ptr(), name);
        Self(storage)
    }

    /// Written by the host.
    fn of<T: bytemuck::Pod>(name: &str, values: &[T]) -> Self {
        let mut buffer = Self::fresh(name, size_of_val(values));
        buffer.0.upload(bytemuck::cast_slice(values)).unwrap();
        buffer
    }

    fn ptr(&self) -> u64 {
        self.0.ptr()
    }

    fn get<T: bytemuck::Pod>(&self) -> Vec<T> {
        bytemuck::pod_collect_to_vec(self.0.host().unwrap())
    }
}

fn launch<A: bytemuck::Pod>(kernel: &str, launch: Launch, args: &A) -> Result<(), String> {
    emulated::launch(kernel, launch.grid, launch.block, launch.shared, bytemuck::bytes_of(args))
}

/// Forward, reverse and four shuffled schedules.
fn schedules() -> impl Iterator<Item = Options> {
    let base = Options { checks: Checks::On, ..Options::default() };
    [Order::Forward, Order::Reverse]
        .map(|order| Options { order, ..base })
        .into_iter()
        .chain((0..4).map(move |seed| Options { order: Order::Shuffled, seed, ..base }))
}

/// Runs `f` once per schedule.
fn in_every_order(mut f: impl FnMut(Options)) {
    for options in schedules() {
        with_options(options, || f(options));
    }
}

/// The line of `text` that carries `mark`.
fn line_of(text: &str, mark: &str) -> u32 {
    let at = |line: &str| line.split_once("// ").is_some_and(|(_, rest)| rest.split(": ").nth(1) == Some(mark));
    text.lines().position(at).unwrap_or_else(|| panic!("no line is marked `{mark}`")) as u32 + 1
}
