// Deliberate faults of Hopper's asynchronous instructions, for tests/emulator/async_faults.rs; marks as in faults.cu.
#include "ptx_sm90.cuh"

struct AsyncProbe {
    const float* x;  // [count]
    float* y;        // [count]
    unsigned count;
    unsigned variant;  // 0: correct
};

struct alignas(128) AsyncTile {
    float v[64];
};
struct MbarrierPair {
    Mbarrier full, empty;
};

// Warp 0 fills a tile for warps 1 and 2, four times. 1: they do not wait, 2: it does not wait, 3: no mbarrier was
// initialised, 4: no barrier behind the initialisation, 5: a count too high, 6: somebody writes an mbarrier's bytes,
// 7: initialised twice, 8: an empty tile is announced before it was read, 9: a parity that is none, 10: a count of 0.
__device__ void probe_mbarrier_body(const AsyncProbe& a) {
    SMEM(AsyncTile, tile);
    SMEM(MbarrierPair, pair);
    const int lane = lane_id();
    if (threadIdx.x == 0 && a.variant != 3) {
        mbarrier_init(&pair.full, a.variant == 5 ? 2 : a.variant == 10 ? 0 : 1);  // FAULT: initialisation
        mbarrier_init(&pair.empty, 2);
        if (a.variant == 7) mbarrier_init(&pair.full, 1);  // FAULT: initialised twice
        mbarrier_init_fence();
    }
    if (a.variant == 6) pair.full.state = threadIdx.x;  // FAULT: write to an mbarrier
    if (a.variant != 4) __syncthreads();
    float sum = 0.f;
    for (int round = 0; round < 4; ++round) {
        if (warp_id() == 0) {
            if (a.variant != 2) mbarrier_wait(&pair.empty, (round & 1) ^ 1);  // FAULT: wait for empty
            tile.v[lane] = a.x[lane] + round;                                 // FAULT: fill
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&pair.full);  // FAULT: full
        } else {
            if (a.variant != 1) mbarrier_wait(&pair.full, a.variant == 9 ? 2 : round & 1);  // FAULT: wait for full
            if (a.variant == 8 && lane == 0) mbarrier_arrive(&pair.empty);
            sum += tile.v[lane ^ 5];  // FAULT: use
            __syncwarp();
            if (a.variant != 8 && lane == 0) mbarrier_arrive(&pair.empty);  // FAULT: empty
        }
    }
    if (warp_id() == 1) a.y[lane] = sum;
}
KERNEL_BOUNDS(probe_mbarrier, AsyncProbe, 96)

// y = x + 1 by bulk copies of one warp. Load: 1: read before the wait, 2: nobody waits, 3: no mbarrier_init_fence, 4: 16
// bytes announced too many, 5: past the end of x, 6: an address that is not aligned, 7: 8 bytes. Store: 8: no fence_async,
// 9: the fence ahead of the writes, 10: overwritten before the wait, 11: no wait, 12: no commit, 13: past the end of y,
// 14: overwritten by another lane behind the wait.
__device__ void probe_bulk_body(const AsyncProbe& a) {
    SMEM(AsyncTile, from);
    SMEM(AsyncTile, to);
    SMEM(Mbarrier, done);
    const int lane = lane_id();
    if (lane == 0) {
        mbarrier_init(&done, 1);
        if (a.variant != 3) mbarrier_init_fence();
    }
    __syncwarp();
    if (lane == 0) {
        mbarrier_arrive_expect(&done, a.variant == 4 ? 144 : 128);
        const float* x = a.x + (a.variant == 5 ? a.count - 4 : a.variant == 6 ? 1 : 0);
        bulk_load(from.v, x, a.variant == 7 ? 8 : 128, &done);  // FAULT: load
    }
    __syncwarp();
    if (a.variant == 1) to.v[lane] = from.v[lane];                      // FAULT: early read
    if (a.variant != 1 && a.variant != 2) mbarrier_wait(&done, 0);      // FAULT: wait for the load
    if (a.variant == 9) fence_async();
    to.v[lane] = a.variant == 2 ? 0.f : from.v[lane] + 1.f;  // FAULT: write
    if (a.variant != 8 && a.variant != 9) fence_async();
    __syncwarp();
    if (lane == 0) {
        bulk_store(a.y + (a.variant == 13 ? a.count - 4 : 0), to.v, 128);  // FAULT: bulk store
        if (a.variant != 12) bulk_commit();
        if (a.variant == 10) to.v[3] = 0.f;                                // FAULT: overwritten
        if (a.variant != 11 && a.variant != 12) bulk_wait();               // FAULT: wait for the store
    }
    if (a.variant == 14 && lane == 7) to.v[3] = 0.f;  // FAULT: overwritten by another
    if (a.variant == 1 || a.variant == 2) __syncwarp();
}
KERNEL_BOUNDS(probe_bulk, AsyncProbe, 32)

struct alignas(1024) ProductTile {
    bf16 a[64 * 16], b[8 * 16];
};

// y [64, 8] = a · b with a = 1 and b = x (as bf16, [8, 16]) without a swizzle. 1: no fence_async, 2: no wgmma_fence, 3: not
// committed, 4: not waited for, 5: accumulators written before the wait, 6: an operand overwritten before the wait,
// 7: three warps issue, 8: the warps name different tiles, 9: no barrier before the product, 10: accumulators read before
// the wait, 11: an operand overwritten behind the wait without a barrier, which is legal, 12: a tile past the end of shared
// memory, 13: a tile that is not aligned for its swizzle, 14: half of a warp elsewhere, 15: no fence behind the first wait.
__device__ void probe_wgmma_body(const AsyncProbe& a) {
    SMEM(ProductTile, tile);
    const int t = int(threadIdx.x), g = lane_id() / 4, c = lane_id() % 4;
    for (int i = t; i < 64 * 16; i += 128) tile.a[i] = from_f32<bf16>(1.f);  // FAULT: write of a
    if (t < 128) tile.b[t] = from_f32<bf16>(a.x[t]);                         // FAULT: write of b
    if (a.variant != 1) fence_async();
    if (a.variant != 9) __syncthreads();
    // Pieces of 8 rows and 8 k one behind the other, k first.
    const uint64_t tile_a = a.variant == 13 ? wgmma_tile<128>(tile.a + 64, 128, 256) : wgmma_tile<0>(tile.a, 128, 256);
    uint64_t tile_b = wgmma_tile<0>(tile.b, 128, 256);
    if (a.variant == 8) tile_b += uint64_t(warp_id());
    if (a.variant == 12) tile_b += 8;
    float d[4];
    if (a.variant == 7 && warp_id() == 3) return;
    if (a.variant != 2) wgmma_fence(d);
    if (a.variant != 14 || lane_id() < 16) wgmma_ss<bf16, MAJOR_K, MAJOR_K>(d, tile_a, tile_b, 0);  // FAULT: product
    else wgmma_ss<bf16, MAJOR_K, MAJOR_K>(d, tile_a, tile_b, 0);                                    // FAULT: other product
    if (a.variant == 10) a.y[t] = d[0];
    if (a.variant == 5) d[1] = 0.f;
    if (a.variant == 6 && t == 0) tile.b[3] = from_f32<bf16>(0.f);  // FAULT: operand overwritten
    if (a.variant != 3) wgmma_commit();
    if (a.variant != 4) wgmma_wait(d);  // FAULT: wait
    if (a.variant == 15) wgmma_ss<bf16, MAJOR_K, MAJOR_K>(d, tile_a, tile_b, 1);  // FAULT: second product
    if (a.variant == 15) wgmma_wait(d);
    if (a.variant != 11) __syncthreads();
    if (t == 64) tile.b[3] = from_f32<bf16>(0.f);  // FAULT: operand overwritten late
    if (a.variant == 10) return;
    UNROLL
    for (int i = 0; i < 4; ++i) a.y[(16 * warp_id() + g + 8 * (i / 2)) * 8 + 2 * c + i % 2] = d[i];
}
KERNEL_BOUNDS(probe_wgmma, AsyncProbe, 128)

// Two warpgroups would wait for each other if a product held the warps together: warp 0 waits for an mbarrier on which
// warp 1 arrives behind its own product. Legal.
__device__ void probe_wgmma_apart_body(const AsyncProbe& a) {
    SMEM(ProductTile, tile);
    SMEM(Mbarrier, signal);
    const int t = int(threadIdx.x);
    for (int i = t; i < 64 * 16; i += 128) tile.a[i] = from_f32<bf16>(1.f);
    tile.b[t] = from_f32<bf16>(a.x[t]);
    if (t == 0) mbarrier_init(&signal, 1);
    fence_async();
    __syncthreads();
    float d[4];
    wgmma_fence(d);
    wgmma_ss<bf16, MAJOR_K, MAJOR_K>(d, wgmma_tile<0>(tile.a, 128, 256), wgmma_tile<0>(tile.b, 128, 256), 0);
    wgmma_commit();
    if (warp_id() == 0) mbarrier_wait(&signal, 0);
    wgmma_wait(d);
    if (t == 32) mbarrier_arrive(&signal);
    a.y[t] = d[0];
}
KERNEL_BOUNDS(probe_wgmma_apart, AsyncProbe, 128)
