//! Faults of mbarriers, bulk copies and warpgroup products: each is reported in every schedule, at its own source line;
//! the correct variants pass.

use bytemuck::{Pod, Zeroable};

use super::*;

const SOURCE: &str = include_str!("../../kernels/emulator/tests/faults_async.cu");

/// `struct AsyncProbe`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AsyncProbe {
    x: u64,
    y: u64,
    count: u32,
    variant: u32,
}

fn value(i: usize) -> f32 {
    (i * 7 % 11) as f32 - 5.0
}

/// What a launch said or computed.
fn run(kernel: &str, variant: u32, threads: u32, inputs: usize, outputs: usize) -> Result<Vec<f32>, String> {
    let x = Buffer::of("x", &(0..inputs).map(value).collect::<Vec<_>>());
    let y = Buffer::of("y", &vec![0f32; outputs]);
    let count = if variant == 13 { outputs } else { inputs } as u32;
    let args = AsyncProbe { x: x.ptr(), y: y.ptr(), count, variant };
    launch(kernel, Launch::linear(1, threads), &args).map(|()| y.get())
}

/// One kernel, its threads, inputs and outputs.
struct Case(&'static str, u32, usize, usize);

impl Case {
    fn passes(&self, variant: u32, expected: &[f32]) {
        let Case(kernel, threads, inputs, outputs) = *self;
        in_every_order(|options| {
            let y = run(kernel, variant, threads, inputs, outputs);
            assert_eq!(y.as_deref(), Ok(expected), "{kernel}, variant {variant}, {options:?}");
        });
    }

    /// The report contains one of `causes` and names one of the lines marked `marks`.
    fn fails(&self, variant: u32, causes: &[&str], marks: &[&str]) {
        let Case(kernel, threads, inputs, outputs) = *self;
        in_every_order(|options| {
            let case = format!("{kernel}, variant {variant}, {options:?}");
            let report = run(kernel, variant, threads, inputs, outputs).expect_err(&case);
            assert!(causes.iter().any(|cause| report.contains(cause)), "{case}: {report}");
            let named = |mark: &&str| report.contains(&format!("faults_async.cu:{}", line_of(SOURCE, mark)));
            assert!(marks.is_empty() || marks.iter().any(named), "{case}: another line than {marks:?}: {report}");
        });
    }
}

#[test]
fn mbarriers() {
    let case = Case("probe_mbarrier", 96, 32, 32);
    let expected: Vec<f32> = (0..32).map(|i| 4.0 * value(i ^ 5) + 6.0).collect();
    case.passes(0, &expected);
    let race = ["shared race", "uninitialised"];
    case.fails(1, &race, &["fill", "use"]);
    // The arrivals of a round may also run a phase ahead of those who wait for it.
    case.fails(2, &["shared race", "uninitialised", "deadlock"], &["fill", "use", "wait for full"]);
    case.fails(3, &["no mbarrier was initialised there"], &["wait for empty", "wait for full"]);
    case.fails(4, &["initialisation", "no mbarrier was initialised"], &["wait for empty", "wait for full"]);
    case.fails(5, &["deadlock"], &["wait for empty", "wait for full"]);
    case.fails(6, &["holds the mbarrier", "shared race"], &["write to an mbarrier", "initialisation"]);
    case.fails(7, &["is initialised again"], &["initialised twice"]);
    case.fails(8, &["shared race"], &["fill", "use"]);
    case.fails(9, &["parity 2"], &["wait for full"]);
    case.fails(10, &["mbarrier of 0 arrivals"], &["initialisation"]);
}

#[test]
fn a_deadlock_says_what_the_mbarrier_lacks() {
    let report = run("probe_mbarrier", 5, 96, 32, 32).unwrap_err();
    for part in ["`pair`", "waits in mbarrier_wait at", "phase 0: 1 of 2 arrivals and 0 bytes missing"] {
        assert!(report.contains(part), "{report}");
    }
}

#[test]
fn bulk_copies() {
    let case = Case("probe_bulk", 32, 32, 32);
    let expected: Vec<f32> = (0..32).map(|i| value(i) + 1.0).collect();
    case.passes(0, &expected);
    case.fails(1, &["nobody has waited", "shared race"], &["early read"]);
    case.fails(2, &["a bulk load that nobody has waited for"], &["load"]);
    case.fails(3, &["missing mbarrier_init_fence"], &["load"]);
    case.fails(4, &["deadlock", "0 of 1 arrivals and 16 bytes missing"], &["wait for the load"]);
    case.fails(5, &["`x`: read of 128 bytes, 112 bytes past the end"], &["load"]);
    case.fails(6, &["misaligned"], &["load"]);
    case.fails(7, &["bulk copy of 8 bytes"], &["load"]);
    case.fails(8, &["missing fence_async"], &["bulk store"]);
    case.fails(9, &["missing fence_async"], &["bulk store"]);
    case.fails(10, &["has still to read"], &["overwritten"]);
    case.fails(11, &["a bulk store that it has not waited for"], &["bulk store"]);
    case.fails(12, &["a bulk store that it has not waited for"], &["bulk store"]);
    case.fails(13, &["`y`: write of 128 bytes, 112 bytes past the end"], &["bulk store"]);
    let late = ["overwritten by another", "bulk store"];
    case.fails(14, &["shared race", "has still to read"], &late);
}

/// Column `n` of the product: a is 1, so every row is the sum of b's column.
fn sum(n: usize) -> f32 {
    // b lies in pieces of 8 columns and 8 k: element (n, k) is x[k / 8 * 64 + n * 8 + k % 8].
    (0..16).map(|k| value(k / 8 * 64 + n * 8 + k % 8)).sum()
}

#[test]
fn warpgroup_products() {
    let case = Case("probe_wgmma", 128, 128, 512);
    let expected: Vec<f32> = (0..512).map(|at| sum(at % 8)).collect();
    case.passes(0, &expected);
    case.passes(11, &expected); // a product is over for all four warps at once
    case.fails(1, &["missing fence_async"], &["product"]);
    case.fails(2, &["missing wgmma_fence"], &["product"]);
    case.fails(3, &["ended with a wgmma that it has not committed"], &["product"]);
    case.fails(4, &["has not waited for", "has still to read"], &["product", "operand overwritten late"]);
    case.fails(5, &["accumulators were written"], &["product"]);
    case.fails(6, &["has still to read"], &["operand overwritten"]);
    case.fails(7, &["for warps that have not issued the product", "have ended"], &["wait"]);
    case.fails(8, &["divergence", "uninitialised"], &["product"]);
    case.fails(9, &["missing fence_async", "shared race", "uninitialised"], &["product", "write of a", "write of b"]);
    case.fails(12, &["out of bounds", "uninitialised"], &["product"]);
    case.fails(13, &["misaligned"], &["product"]);
    case.fails(14, &["divergence"], &["product", "other product"]);
    case.fails(15, &["missing wgmma_fence"], &["second product"]);
    in_every_order(|options| {
        let early = run("probe_wgmma", 10, 128, 128, 512).unwrap();
        assert!(early[..128].iter().all(|y| y.is_nan()), "{options:?}");
    });
}

#[test]
fn warps_of_a_warpgroup_go_apart() {
    let expected: Vec<f32> = (0..128).map(|t| sum(t % 4 * 2)).collect();
    Case("probe_wgmma_apart", 128, 128, 128).passes(0, &expected);
}
