//! Every fault is reported in every schedule, at its own source line; the correct variants pass.

use bytemuck::{Pod, Zeroable};

use super::*;

const SOURCE: &str = include_str!("../../kernels/emulator/tests/faults.cu");

/// `struct Probe`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Probe {
    x: u64,
    y: u64,
    n: u64,
    count: u32,
    variant: u32,
}

/// What a launch said, `None` if it passed. `x` holds the thread numbers, `y` is fresh, `n` is zero.
fn run(kernel: &str, variant: u32, shape: Launch, count: u32) -> Option<String> {
    let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
    let x = Buffer::of("x", &x);
    let y = Buffer::fresh("y", 4 * count as usize);
    let n = Buffer::of("n", &vec![0u32; count as usize]);
    let args = Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count, variant };
    launch(kernel, shape, &args).err()
}

fn block(threads: u32) -> Launch {
    Launch::linear(1, threads)
}

fn passes(kernel: &str, variant: u32, shape: Launch, count: u32) {
    in_every_order(|options| {
        if let Some(report) = run(kernel, variant, shape, count) {
            panic!("{kernel}, variant {variant}, {options:?}: {report}");
        }
    });
}

/// Reported in every schedule; every report contains one of `causes` and names one of the lines marked `marks`.
fn fails(kernel: &str, variant: u32, shape: Launch, count: u32, causes: &[&str], marks: &[&str]) {
    in_every_order(|options| {
        let case = format!("{kernel}, variant {variant}, {options:?}");
        let report = run(kernel, variant, shape, count).unwrap_or_else(|| panic!("{case}: nothing was reported"));
        let known = |text: String| report.contains(&text);
        assert!(report.starts_with(kernel), "{case}: {report}");
        assert!(causes.iter().any(|cause| known((*cause).into())), "{case}: {report}");
        let lines = marks.iter().map(|mark| format!("kernels/emulator/tests/faults.cu:{}", line_of(SOURCE, mark)));
        assert!(marks.is_empty() || lines.into_iter().any(known), "{case}: another line than {marks:?}: {report}");
    });
}

#[test]
fn missing_block_barrier() {
    passes("probe_barrier", 0, block(128), 128);
    let lines = ["unordered read", "overwritten"];
    fails("probe_barrier", 1, block(128), 128, &["shared race", "uninitialised"], &lines);
    fails("probe_barrier", 2, block(128), 128, &["shared race"], &lines);
}

#[test]
fn missing_block_barrier_with_one_reader() {
    passes("probe_single_reader", 0, block(128), 128);
    fails("probe_single_reader", 1, block(128), 128, &["shared race"], &["late write", "single reader"]);
}

#[test]
fn a_race_names_both_lines_and_threads() {
    let report = run("probe_barrier", 2, block(128), 128).unwrap();
    for mark in ["unordered read", "overwritten"] {
        assert!(report.contains(&format!("faults.cu:{}", line_of(SOURCE, mark))), "{report}");
    }
    for part in ["block (0,0,0)", "thread (", "`tile`", "not ordered with"] {
        assert!(report.contains(part), "{report}");
    }
}

#[test]
fn block_barriers_that_not_all_reach() {
    fails("probe_divergent_barrier", 0, block(128), 128, &["divergence"], &["first barrier", "second barrier"]);
    let ended = ["ended while", "have ended"];
    fails("probe_conditional_barrier", 0, block(128), 128, &ended, &["conditional barrier"]);
    fails("probe_early_exit", 0, block(128), 128, &ended, &["barrier without thread 5"]);
}

#[test]
fn warp_operations_with_wrong_masks() {
    passes("probe_shuffle", 0, block(64), 64);
    fails("probe_shuffle", 1, block(64), 64, &["divergence"], &["shuffle one", "shuffle two"]);
    fails("probe_shuffle", 2, block(64), 64, &["does not name the calling lane"], &["mask without caller"]);
    fails("probe_shuffle", 3, block(64), 64, &["have ended", "deadlock"], &["mask with ended lane"]);
    fails("probe_shuffle", 4, block(64), 64, &["deadlock"], &["waiting shuffle", "waiting barrier"]);
    fails("probe_shuffle", 5, block(64), 64, &["meets mask"], &["two masks"]);
}

#[test]
fn a_mask_names_lanes_that_the_block_does_not_have() {
    fails("probe_shuffle", 1, block(48), 48, &["divergence", "do not exist"], &["shuffle one", "shuffle two"]);
}

#[test]
fn global_accesses_out_of_bounds() {
    passes("probe_global_bounds", 0, block(128), 100);
    fails(
        "probe_global_bounds",
        1,
        block(128),
        100,
        &["`x`: read of 4 bytes, 4 bytes past the end"],
        &["read past the end"],
    );
    fails(
        "probe_global_bounds",
        2,
        block(128),
        100,
        &["`y`: write of 4 bytes, 4 bytes past the end"],
        &["write past the end"],
    );
    fails(
        "probe_global_bounds",
        3,
        block(128),
        100,
        &["`x`: read of 4 bytes, 4 bytes before", "out of bounds"],
        &["read before the start"],
    );
    fails("probe_global_bounds", 4, block(128), 100, &["belongs to no buffer"], &["wild read"]);
}

#[test]
fn a_buffer_that_was_released() {
    let x = Buffer::of("x", &[0f32; 128]);
    let (y, n) = (Buffer::fresh("y", 512), Buffer::of("n", &[0u32; 128]));
    let args = Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count: 128, variant: 0 };
    assert_eq!(launch("probe_global_bounds", block(128), &args), Ok(()));
    drop(x);
    assert!(launch("probe_global_bounds", block(128), &args).unwrap_err().contains("out of bounds"));
}

#[test]
fn shared_accesses_out_of_bounds() {
    let shape = Launch { shared: 512, ..block(128) };
    passes("probe_shared_bounds", 0, shape, 128);
    fails("probe_shared_bounds", 1, shape, 128, &["`small`"], &["past the static object"]);
    fails("probe_shared_bounds", 2, shape, 128, &["dynamic shared memory"], &["past the dynamic memory"]);
    fails("probe_shared_bounds", 3, shape, 128, &["before `dynamic shared memory`"], &["before the dynamic memory"]);
}

#[test]
fn uninitialised_reads() {
    let shape = Launch { shared: 512, ..block(128) };
    passes("probe_uninitialised", 0, shape, 128);
    fails("probe_uninitialised", 1, shape, 128, &["uninitialised"], &["unwritten shared"]);
    fails("probe_uninitialised", 2, shape, 128, &["uninitialised"], &["unwritten dynamic"]);

    in_every_order(|options| {
        let x = Buffer::fresh("x", 512);
        emulated::mark_written(x.ptr(), 256);
        let (y, n) = (Buffer::fresh("y", 512), Buffer::of("n", &[0u32; 128]));
        let args = Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count: 128, variant: 3 };
        let report = launch("probe_uninitialised", block(128), &args).unwrap_err();
        assert!(report.contains("uninitialised: read at byte"), "{options:?}: {report}");
        let line = format!("faults.cu:{}", line_of(SOURCE, "unwritten global"));
        assert!(report.contains("`x`") && report.contains(&line), "{options:?}: {report}");
        // The half that the host has written is fine.
        assert_eq!(launch("probe_uninitialised", block(64), &args), Ok(()));
    });
}

#[test]
fn what_one_kernel_writes_another_may_read() {
    let x = Buffer::of("x", &[1f32; 128]);
    let (y, z) = (Buffer::fresh("y", 512), Buffer::fresh("z", 512));
    let n = Buffer::of("n", &[0u32; 128]);
    let first = Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count: 128, variant: 0 };
    let second = Probe { x: y.ptr(), y: z.ptr(), ..first };
    assert!(launch("probe_global_bounds", block(128), &second).unwrap_err().contains("uninitialised"));
    assert_eq!(launch("probe_global_bounds", block(128), &first), Ok(()));
    assert_eq!(launch("probe_global_bounds", block(128), &second), Ok(()));
    assert_eq!(z.get::<f32>(), [1f32; 128]);
}

#[test]
fn launches_without_checks_count_as_writers() {
    let x = Buffer::of("x", &[1f32; 128]);
    let (y, z) = (Buffer::fresh("y", 512), Buffer::fresh("z", 512));
    let n = Buffer::of("n", &[0u32; 128]);
    let first = Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count: 128, variant: 0 };
    let off = Options { checks: Checks::Off, ..Options::default() };
    assert_eq!(with_options(off, || launch("probe_global_bounds", block(128), &first)), Ok(()));
    let second = Probe { x: y.ptr(), y: z.ptr(), ..first };
    assert_eq!(launch("probe_global_bounds", block(128), &second), Ok(()));
}

#[test]
fn misaligned_vectors() {
    passes("probe_misaligned", 0, block(32), 128);
    for variant in 1..4 {
        fails("probe_misaligned", variant, block(32), 128, &["misaligned"], &["misaligned vector"]);
    }
    let off = Options { checks: Checks::Off, ..Options::default() };
    let report = with_options(off, || run("probe_misaligned", 1, block(32), 128));
    assert!(report.is_some_and(|r| r.contains("misaligned")), "found without checks as well");
}

#[test]
fn blocks_that_share_an_element() {
    let grid = Launch::linear(4, 32);
    passes("probe_blocks", 0, grid, 32);
    fails("probe_blocks", 1, grid, 32, &["global race", "of another block"], &["two blocks write"]);
    // Depending on which block runs first, the reader meets a foreign or an unwritten element.
    fails("probe_blocks", 2, grid, 32, &["global race", "uninitialised"], &["block writes", "another block reads"]);
}

#[test]
fn global_memory_within_a_block() {
    passes("probe_block_global", 0, block(128), 128);
    let lines = ["block writes global", "block reads global"];
    fails("probe_block_global", 1, block(128), 128, &["global race", "uninitialised"], &lines);
    fails("probe_block_global", 2, block(128), 128, &["global race"], &lines);
}

#[test]
fn warp_operations_do_not_order_memory() {
    passes("probe_warp_order", 0, block(32), 32);
    for variant in 1..=3 {
        let lines = ["write before a warp operation", "read behind a warp operation"];
        fails("probe_warp_order", variant, block(32), 32, &["shared race", "uninitialised"], &lines);
    }
    let lines = ["matrix", "write behind ldmatrix"];
    fails("probe_warp_order", 4, block(32), 32, &["shared race"], &lines);
}

#[test]
fn missing_warp_barrier() {
    passes("probe_syncwarp", 0, block(64), 64);
    fails("probe_syncwarp", 1, block(64), 64, &["shared race", "uninitialised"], &["warp reads", "warp overwrites"]);
    passes("probe_warp_broadcast", 0, block(64), 64);
    fails("probe_warp_broadcast", 1, block(64), 64, &["shared race"], &["broadcast write", "broadcast read"]);
}

#[test]
fn shared_atomics() {
    passes("probe_shared_atomic", 0, block(128), 128);
    fails("probe_shared_atomic", 1, block(128), 128, &["shared race"], &["update", "read of sums"]);
    fails("probe_shared_atomic", 2, block(128), 128, &["shared race", "uninitialised"], &["update", "clear"]);
}

#[test]
fn waiting_for_ever() {
    fails("probe_spin", 1, block(32), 32, &["endless wait"], &["endless wait"]);
    let report = run("probe_spin", 2, block(1), 32).unwrap();
    assert!(report.contains("endless loop"), "{report}");
    assert!(report.contains(&format!("faults.cu:{}", line_of(SOURCE, "endless loop"))), "{report}");
}

#[test]
fn array_indices_and_shifts() {
    let run = |variant, n: u32| {
        let (x, y) = (Buffer::of("x", &[0f32; 32]), Buffer::fresh("y", 128));
        let n = Buffer::of("n", &[n; 32]);
        launch("probe_language", block(32), &Probe { x: x.ptr(), y: y.ptr(), n: n.ptr(), count: 32, variant }).err()
    };
    assert_eq!(run(0, 3), None);
    assert_eq!(run(2, 3), None);
    let report = run(1, 4).unwrap();
    assert!(report.contains("out of bounds: index 4"), "{report}");
    assert!(report.contains(&format!("faults.cu:{}", line_of(SOURCE, "local index"))), "{report}");
    let report = run(2, 4).unwrap();
    assert!(report.contains("shift: by 32 bits"), "{report}");
    assert!(report.contains(&format!("faults.cu:{}", line_of(SOURCE, "shift"))), "{report}");
}

#[test]
fn named_barriers() {
    passes("probe_named_barrier", 0, block(128), 128);
    let lines = ["producer", "consumer"];
    fails("probe_named_barrier", 1, block(128), 128, &["shared race", "uninitialised"], &lines);
    fails("probe_named_barrier", 2, block(128), 128, &["shared race", "uninitialised", "deadlock"], &[]);
    fails("probe_named_barrier", 3, block(128), 128, &["deadlock"], &[]);
}

#[test]
fn legal_patterns() {
    passes("probe_last_block", 0, Launch::linear(5, 128), 128);
    passes("probe_narrow", 0, Launch::linear(2, 64), 128);
}

/// What `probe_product` says or computes.
fn product(variant: u32) -> Result<Vec<f32>, String> {
    let bits = |i: usize| half::bf16::from_f32((i * 7 % 11) as f32 - 5.0).to_bits();
    let x = Buffer::of("x", &(0..24 * 16).map(bits).collect::<Vec<_>>());
    let y = Buffer::fresh("y", 4 * 128);
    let args = Probe { x: y.ptr(), y: y.ptr(), n: x.ptr(), count: 128, variant };
    launch("probe_product", block(64), &args).map(|()| y.get())
}

#[test]
fn matrix_products_and_asynchronous_copies() {
    let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
    let expected: Vec<f32> =
        (0..128).map(|at| (0..16).map(|k| value(at / 8 * 16 + k) * value((16 + at % 8) * 16 + k)).sum()).collect();
    in_every_order(|options| {
        assert_eq!(product(0).as_ref(), Ok(&expected), "{options:?}");
        for variant in [8, 9] {
            assert_ne!(product(variant).as_ref(), Ok(&expected), "variant {variant}, {options:?}");
        }
        let causes = [
            (1, "under way", &["fragment", "columns"][..]),
            (2, "under way", &["fragment", "columns"]),
            (3, "", &["fragment", "columns", "copy"]),
            (4, "copies that it has not waited for", &["copy"]),
            (5, "shared race", &["second copy", "fragment", "columns"]),
            (6, "misaligned", &["fragment"]),
            (7, "divergence", &["fragment", "other fragment"]),
        ];
        for (variant, cause, marks) in causes {
            let report = product(variant).expect_err("a fault");
            let named = |mark: &&str| report.contains(&format!("faults.cu:{}", line_of(SOURCE, mark)));
            assert!(report.contains(cause) && marks.iter().any(named), "variant {variant}, {options:?}: {report}");
        }
        let report = product(3).expect_err("a fault");
        let known = ["under way", "shared race", "uninitialised"].iter().any(|cause| report.contains(cause));
        assert!(known, "{options:?}: {report}");
    });
}

#[test]
fn dynamic_shared_memory_is_padded_behind_static() {
    // 32 bytes of static memory take 1024 beside dynamic memory, as ptxas lays them out.
    let limited = Options { shared_limit: 2048, ..Options::default() };
    with_options(limited, || {
        assert_eq!(run("probe_shared_bounds", 0, Launch { shared: 1024, ..block(128) }, 128), None);
        let report = run("probe_shared_bounds", 0, Launch { shared: 1040, ..block(128) }, 128);
        assert!(report.is_some_and(|r| r.contains("1040 bytes dynamic and 1024 static, at most 2048")));
    });
}

#[test]
fn launches_that_cannot_start() {
    let refused = |kernel: &str, shape: Launch, cause: &str| {
        let report = run(kernel, 0, shape, 128).unwrap_or_else(|| panic!("{kernel} was launched: {cause}"));
        assert!(report.contains(cause), "{report}");
    };
    refused("probe_nobody", block(32), "there is no kernel");
    refused("probe_barrier", block(1025), "1 to 1024 threads");
    refused("probe_bounded", block(65), "launch bound is 64");
    refused("probe_barrier", Launch { grid: [1, 65536, 1], ..block(32) }, "the grid must be");
    refused("probe_shared_bounds", Launch { shared: 232_449, ..block(128) }, "too much shared memory");
    let small = Options { shared_limit: 101_376, ..Options::default() };
    with_options(small, || {
        refused("probe_shared_bounds", Launch { shared: 101_377, ..block(128) }, "too much shared memory");
        refused("probe_shared_bounds", Launch { shared: 101_376, ..block(128) }, "too much shared memory"); // + static
    });
    refused("probe_static_size", block(128), "static shared memory, at most 49152");
    assert!(emulated::launch("probe_barrier", [1; 3], [32, 1, 1], 0, &[0; 28]).unwrap_err().contains("28 bytes"));
}

#[test]
fn launches_of_threads_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..20 {
                    let order = [Order::Forward, Order::Reverse, Order::Shuffled][(thread + round) % 3];
                    let options = Options { order, checks: Checks::On, ..Options::default() };
                    with_options(options, || {
                        assert_eq!(run("probe_barrier", 0, block(128), 128), None);
                        assert!(run("probe_barrier", 2, block(128), 128).is_some());
                        assert_eq!(run("probe_last_block", 0, Launch::linear(64, 128), 128), None);
                    });
                }
            });
        }
    });
}
