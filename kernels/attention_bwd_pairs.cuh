// dk and dv at 256 columns. Both together would take 256 registers of each thread, more than there are, so pairs of warps
// share 16 keys: the first makes P and from it dv; the second dP, and with the P that the first left in shared memory dS
// and dk. Neither repeats a product of the other's, and each sum still stays in registers.
#pragma once
#include "attention_bwd_long.cuh"

// Dynamic shared memory: as in attention_bwd_long.cuh, then P of a stage: 16 keys and 32 queries for each of PAIRS pairs,
// float. A block has 2 · PAIRS warps at most, whole pairs.
template <class T, int DIM, int PAIRS>
__device__ __forceinline__ void attention_bwd_long_pairs(const AttentionBwd& a) {
    constexpr int TILES_AT_ONCE = BwdStage<DIM, DIM>::value, QUERIES = TILES_AT_ONCE * TILE;
    static_assert(PAIRS <= 2 * TILES_AT_ONCE, "the keys fit into a stage");
    typedef Stages<T, DIM, DIM, TILES_AT_ONCE> Staged;
    typedef typename Staged::Wide Rows;
    DYN_SMEM(memory);
    const unsigned pairs = blockDim.x / (2 * WARP), mine = warp_id() / 2;
    const bool second = warp_id() % 2;
    const LongBlock block(a, pairs * TILE);
    const unsigned keys = block.seq.keys.length, first = block.first + mine * TILE;  // of this pair
    if (block.first >= keys) return;  // the whole block
    const Staged stages{reinterpret_cast<T*>(memory)};
    float* numbers = reinterpret_cast<float*>(stages.wide(3).first);
    // P of this lane's places: [tile of queries, half of its columns, 4], lanes side by side.
    float* shared_p = numbers + 2 * 2 * QUERIES + mine * (TILE * QUERIES) + 4 * lane_id();
    const QueryStages<T, Staged> from(a, block, stages, numbers);
    const unsigned length = from.part.length;
    {
        const AttentionHead<T> x(a, 0, size_t(block.seq.keys.start) + block.first, block.head);
        copy_tiles(stages.wide(1), x.k, a.k_stride, 0, pairs, keys - block.first, a.dim, warp_id(), blockDim.x / WARP);
        copy_tiles(stages.wide(2), x.v, a.v_stride, 0, pairs, keys - block.first, a.v_dim, warp_id(),
                   blockDim.x / WARP);
    }
    from.copy(0, 0);
    cp_async_wait<0>();
    __syncthreads();  // the keys and values are there
    const LeftTiles<1, DIM / 16, Rows> left(stages.wide(second ? 2 : 1), mine);  // v or k

    const float scale = a.scale * LOG2_E;
    float sum[1][DIM / 8][4] = {};  // dk or dv
    for (unsigned query = 0; query < length; query += QUERIES) {
        const unsigned stage = query / QUERIES % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other and the last P are done with
        if (query + QUERIES < length) from.copy(query + QUERIES, stage ^ 1);
        const Rows q = stages.wide(stage), d_o = stages.narrow(stage);
        const Rows right = second ? d_o : q, summed = second ? q : d_o;
        float x[TILES_AT_ONCE][1][2][4] = {};
        UNROLL
        for (int c = 0; c < TILES_AT_ONCE; ++c) left.template dot<T>(x[c], right, c);
        if (!second) {
            UNROLL
            for (int c = 0; c < TILES_AT_ONCE; ++c) {
                Vec<float, 4> pair[2];
                from.columns(pair, stage, c);
                UNROLL
                for (int j = 0; j < 2; ++j) {
                    Vec<float, 4> p;
                    UNROLL
                    for (int i = 0; i < 4; ++i)
                        p[i] = x[c][0][j][i] = exp2_approx(x[c][0][j][i] * scale - pair[j][i % 2 * 2]);
                    store_vec<float, 4>(shared_p + (2 * c + j) * 4 * WARP, p);
                }
            }
        }
        __syncthreads();  // P is there
        if (second) {
            UNROLL
            for (int c = 0; c < TILES_AT_ONCE; ++c) {
                Vec<float, 4> pair[2];
                from.columns(pair, stage, c);
                UNROLL
                for (int j = 0; j < 2; ++j) {
                    const Vec<float, 4> p = load_vec<float, 4>(shared_p + (2 * c + j) * 4 * WARP);
                    UNROLL
                    for (int i = 0; i < 4; ++i) x[c][0][j][i] = p[i] * (x[c][0][j][i] - pair[j][i % 2 * 2 + 1]);
                }
            }
        }
        UNROLL
        for (int c = 0; c < TILES_AT_ONCE; ++c) {
            unsigned weights[1][4];
            as_left<T>(weights[0], x[c][0][0], x[c][0][1]);
            accumulate_tile<T>(sum, weights, summed, c);
        }
    }
    const unsigned stage = (length + QUERIES - 1) / QUERIES % 2;  // not the last, which others may be reading
    if (first >= keys) return;  // whole warps leave; no block barrier follows
    const size_t key = size_t(block.seq.keys.start) + first;
    if (second)
        store_key_gradient<T>(a, a.dk, a.k_stride, false, key, block.head, sum[0], keys - first, a.scale,
                              stages.wide(2).from(mine));
    else
        store_key_gradient<T>(a, a.dv, a.v_stride, true, key, block.head, sum[0], keys - first, 1.f,
                              stages.wide(stage).from(mine));
}
