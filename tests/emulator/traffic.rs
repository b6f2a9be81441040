//! The transaction counts of access patterns whose price is known.

use bytemuck::{Pod, Zeroable};
use ocellus::device::emulated::{Traffic, TrafficLine, take_traffic};

use super::*;

const SOURCE: &str = include_str!("../../kernels/emulator/tests/semantics.cu");
const FILE: &str = "tests/semantics.cu";

/// `struct Copy`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyArgs {
    x: u64,
    y: u64,
    stride: u32,
    pad: u32,
}

fn measure(kernel: &str, shape: Launch, stride: u32, inputs: usize, outputs: usize) -> Traffic {
    let (x, y) = (Buffer::of("x", &vec![1f32; inputs]), Buffer::fresh("y", 4 * outputs));
    let args = CopyArgs { x: x.ptr(), y: y.ptr(), stride, pad: 0 };
    take_traffic();
    let counting = Options { checks: Checks::Traffic, ..Options::default() };
    with_options(counting, || launch(kernel, shape, &args)).unwrap();
    let mut all = take_traffic();
    assert_eq!((all.len(), all[0].kernel.as_str()), (1, kernel));
    all.remove(0)
}

fn at(traffic: &Traffic, mark: &str) -> TrafficLine {
    let line = line_of(SOURCE, mark);
    traffic.sum(FILE, line..=line)
}

#[track_caller]
fn global(line: &TrafficLine, requests: u64, sectors: u64, ideal: u64) {
    assert_eq!((line.global_requests, line.sectors, line.ideal_sectors), (requests, sectors, ideal), "{line:?}");
}

#[track_caller]
fn shared(line: &TrafficLine, requests: u64, wavefronts: u64, ideal: u64) {
    assert_eq!(
        (line.shared_requests, line.wavefronts, line.ideal_wavefronts),
        (requests, wavefronts, ideal),
        "{line:?}"
    );
}

#[test]
fn coalesced_and_strided() {
    let shape = Launch::linear(2, 128); // 8 warps
    let coalesced = measure("probe_strided", shape, 1, 256, 256);
    global(&at(&coalesced, "strided load"), 8, 8 * 4, 8 * 4);
    global(&at(&coalesced, "coalesced store"), 8, 8 * 4, 8 * 4);
    let strided = measure("probe_strided", shape, 2, 512, 256);
    global(&at(&strided, "strided load"), 8, 8 * 8, 8 * 4);
    let column = measure("probe_strided", shape, 32, 32 * 256, 256);
    global(&at(&column, "strided load"), 8, 8 * 32, 8 * 4);
    let broadcast = measure("probe_strided", shape, 0, 1, 256);
    global(&at(&broadcast, "strided load"), 8, 8, 8);
}

#[test]
fn vectors_are_one_request() {
    let traffic = measure("probe_vectors", Launch::linear(1, 64), 0, 256, 256);
    global(&at(&traffic, "vector load"), 2, 2 * 16, 2 * 16);
    global(&at(&traffic, "vector store"), 2, 2 * 16, 2 * 16);
}

#[test]
fn bank_conflicts() {
    let conflict = measure("probe_banks", Launch::linear(1, 32), 32, 1024, 1024);
    shared(&at(&conflict, "row store"), 32, 32, 32);
    shared(&at(&conflict, "column load"), 32, 32 * 32, 32);
    shared(&at(&conflict, "shared atomic"), 1, 8, 1);
    let padded = measure("probe_banks", Launch::linear(1, 32), 33, 1024, 1024);
    shared(&at(&padded, "row store"), 32, 32, 32);
    shared(&at(&padded, "column load"), 32, 32, 32);
}

#[test]
fn counts_do_not_depend_on_the_schedule() {
    let forward = measure("probe_banks", Launch::linear(1, 32), 33, 1024, 1024);
    for options in schedules() {
        let options = Options { checks: Checks::Traffic, ..options };
        let (x, y) = (Buffer::of("x", &vec![1f32; 1024]), Buffer::fresh("y", 4096));
        let args = CopyArgs { x: x.ptr(), y: y.ptr(), stride: 33, pad: 0 };
        with_options(options, || launch("probe_banks", Launch::linear(1, 32), &args)).unwrap();
        assert_eq!(take_traffic(), std::slice::from_ref(&forward), "{options:?}");
    }
}
