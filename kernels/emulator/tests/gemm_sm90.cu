// A matrix product as Hopper wants it: one warp keeps a ring of tiles full through bulk copies, four multiply them, and
// the result leaves through a bulk store. Both sides run it (tests/emulator/sm90.rs); its faults only the emulator.
// arch: sm_90a
#include "ptx_sm90.cuh"

struct GemmSm90 {
    TensorMap a;  // [m, k] bf16, boxes of 64 x 64, 128-byte swizzle
    TensorMap b;  // [n, k] or [k, n], the same
    TensorMap c;  // [m, n] f32, boxes of 64 x 64, no swizzle
    unsigned k;
    unsigned fault;  // 0: correct
    unsigned pad[14];
};

constexpr int GEMM_STAGES = 3;

struct GemmRing {
    Mbarrier full[GEMM_STAGES], empty[GEMM_STAGES];
};

#if SM90A
// One 64 x 64 tile of c per block of 160 threads; dynamic shared memory: the ring's tiles, then the tile of c.
// B_ROWS: b is [k, n]. Faults, where compiled: 1 the producer does not wait for an empty tile, 2 the consumers do not wait
// for a full one, 3 a tile is given back before its products are done, 4 too many and 5 too few bytes announced, 6 one
// arrival too many, 7 no fence before the bulk store, 8 no wgmma_fence, 9 accumulators read too early, 10 the store is
// not waited for, 11 no barrier before it, 12 a tile that is not aligned.
template <bool B_ROWS, bool FAULTS>
__device__ __forceinline__ void gemm_sm90(const GemmSm90& a) {
    constexpr int GEMM_TILE = 64 * 64, GEMM_BYTES = 2 * GEMM_TILE;
    DYN_SMEM(raw);
    SMEM(GemmRing, ring);
    bf16* const tiles_a = reinterpret_cast<bf16*>(raw);
    bf16* const tiles_b = tiles_a + GEMM_STAGES * GEMM_TILE;
    float* const tile_c = reinterpret_cast<float*>(tiles_b + GEMM_STAGES * GEMM_TILE);
    const int row = int(blockIdx.y) * 64, col = int(blockIdx.x) * 64, steps = int(a.k + 63) / 64;
    const unsigned fault = FAULTS ? a.fault : 0;
    if (threadIdx.x == 0) {
        for (int s = 0; s < GEMM_STAGES; ++s) {
            mbarrier_init(&ring.full[s], 1);
            mbarrier_init(&ring.empty[s], 4);  // warps that multiply
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (warp_id() == 4) {
        if (lane_id() != 0) return;
        for (int i = 0; i < steps; ++i) {
            const int s = i % GEMM_STAGES, round = i / GEMM_STAGES;
            if (fault != 1) mbarrier_wait(&ring.empty[s], (round & 1) ^ 1);  // FAULT: wait for an empty tile
            const int expected = fault == 4 ? 2 * GEMM_BYTES + 16 : fault == 5 ? GEMM_BYTES : 2 * GEMM_BYTES;
            mbarrier_arrive_expect(&ring.full[s], expected);  // FAULT: announcement
            if (fault == 6) mbarrier_arrive(&ring.full[s]);   // FAULT: arrival too many
            tensor_load<2>(tiles_a + s * GEMM_TILE, a.a, {row, 64 * i}, &ring.full[s]);  // FAULT: load of a
            if (B_ROWS) tensor_load<2>(tiles_b + s * GEMM_TILE, a.b, {64 * i, col}, &ring.full[s]);
            else tensor_load<2>(tiles_b + s * GEMM_TILE, a.b, {col, 64 * i}, &ring.full[s]);  // FAULT: load of b
        }
        return;
    }
    constexpr int MAJOR_B = B_ROWS ? MAJOR_MN : MAJOR_K, STEP_B = B_ROWS ? 128 : 2;
    float d[32];
    for (int i = 0; i < steps; ++i) {
        const int s = i % GEMM_STAGES, round = i / GEMM_STAGES, last = (i + GEMM_STAGES - 1) % GEMM_STAGES;
        if (fault != 2) mbarrier_wait(&ring.full[s], round & 1);  // FAULT: wait for a full tile
        const uint64_t tile_a = wgmma_tile<128>(tiles_a + s * GEMM_TILE + (fault == 12 ? 256 : 0), 0, 1024);
        const uint64_t tile_b = wgmma_tile<128>(tiles_b + s * GEMM_TILE, GEMM_BYTES, 1024);
        if (fault != 8) wgmma_fence(d);
        UNROLL
        for (int k = 0; k < 4; ++k)
            wgmma_ss<bf16, MAJOR_K, MAJOR_B>(d, tile_a + 2 * k, tile_b + STEP_B * k, i + k > 0);  // FAULT: product
        wgmma_commit();
        if (fault == 3 && lane_id() == 0) mbarrier_arrive(&ring.empty[s]);
        wgmma_wait<1>();  // the tile before this one has been read  // FAULT: wait for the products
        if (fault != 3 && i > 0 && lane_id() == 0) mbarrier_arrive(&ring.empty[last]);
    }
    if (fault != 9) wgmma_wait(d);
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int i = 0; i < 32; ++i)
        tile_c[(16 * warp_id() + g + 8 * (i / 2 % 2)) * 64 + 8 * (i / 4) + 2 * t + i % 2] = d[i];  // FAULT: result
    if (fault == 9) wgmma_wait(d);
    if (fault != 7) fence_async();
    if (fault != 11) named_barrier_sync(1, 128);
    if (threadIdx.x != 0) return;
    tensor_store<2>(a.c, {row, col}, tile_c);  // FAULT: store
    bulk_commit();
    if (fault != 10) bulk_wait_read();
}
KERNEL_ENTRY_BOUNDS(probe_gemm_columns_bf16, (gemm_sm90<false, false>), GemmSm90, 160)
KERNEL_ENTRY_BOUNDS(probe_gemm_rows_bf16, (gemm_sm90<true, false>), GemmSm90, 160)
#ifndef __CUDACC__
KERNEL_ENTRY_BOUNDS(probe_gemm_faulty_bf16, (gemm_sm90<false, true>), GemmSm90, 160)
#endif
#endif
