// Gradient of attention over sequences of any length on tensor cores, in two launches that both compute P = exp(S - lse)
// again: one gives dq, and for the other what it knows of each query; the other gives dk and dv. Seven products where
// one pass would make do with five, but no sum leaves its registers, so that neither atomics nor partial sums in device
// memory are needed (arXiv 2205.14135, algorithm 4, in two passes). How rows are shared: attention_long.cuh.
#pragma once
#include "attention_bwd_mma.cuh"

// Numbers of the queries of one head, two floats each: lse · log2 e and rowsum(d_o · o). Each sequence starts at a
// multiple of 16 bytes, as asynchronous copies want: sequence i at its first token + i, rounded up to even.
__device__ __forceinline__ float* query_pairs(const AttentionBwd& a, const LongBlock& block) {
    const size_t at = (size_t(block.seq.start) + block.sequence_index + 1) / 2 * 2;
    return a.delta + 2 * (size_t(block.head) * a.pairs + at);
}

// Left operands of TILES tiles from `tile` of rows on: the first KEPT steps of 16 columns in registers, the others read
// from shared memory every time.
template <int TILES, int KEPT, class Rows>
struct LeftTiles {
    Rows rows;
    unsigned tile;
    unsigned kept[TILES][KEPT][4];

    __device__ __forceinline__ LeftTiles(const Rows& rows, unsigned tile) : rows(rows), tile(tile) {
        UNROLL
        for (int m = 0; m < TILES; ++m)
            UNROLL
            for (int n = 0; n < KEPT; ++n) LEFT(kept[m][n], rows, tile + m, n);
    }

    // x += left · right, tile `at` of the right one, over all columns.
    template <class T>
    __device__ __forceinline__ void dot(float (&x)[TILES][2][4], const Rows& right, unsigned at) const {
        UNROLL
        for (int n = 0; n < Rows::WIDTH / 16; ++n) {
            unsigned b[4];
            RIGHT(b, right, at, n);
            UNROLL
            for (int m = 0; m < TILES; ++m) {
                unsigned a[4];
                if (n >= KEPT) LEFT(a, rows, tile + m, n);
                UNROLL
                for (int r = 0; r < 4; ++r)
                    if (n < KEPT) a[r] = kept[m][n][r];
                mma_16x8x16<T>(x[m][0], a, b[0], b[1]);
                mma_16x8x16<T>(x[m][1], a, b[2], b[3]);
            }
        }
    }
};

// sum += left · tile `tile` of rows: the 16 columns of left are its rows.
template <class T, int TILES, int COLUMNS, class Rows>
__device__ __forceinline__ void accumulate_tile(
    float (&sum)[TILES][COLUMNS][4], const unsigned (&left)[TILES][4], const Rows& rows, unsigned tile) {
    UNROLL
    for (int n = 0; n < COLUMNS / 2; ++n) {
        unsigned b[4];
        RIGHT_T(b, rows, tile, n);
        UNROLL
        for (int m = 0; m < TILES; ++m) {
            mma_16x8x16<T>(sum[m][2 * n], left[m], b[0], b[1]);
            mma_16x8x16<T>(sum[m][2 * n + 1], left[m], b[2], b[3]);
        }
    }
}

// Dynamic shared memory of both kernels: 24 tiles of 16 · DIM elements, which are two stages of what streams and room for
// one of the two operands that stay (the other comes through the second stage); then two stages of 64 pairs of numbers.

// dq of a block of queries, over all keys.
template <class T, int DIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_bwd_long_q(const AttentionBwd& a) {
    constexpr int STAGE = 2 * LONG_STAGE, KEYS = LONG_STAGE * TILE;
    static_assert(TILES * WARPS <= STAGE, "the queries fit into a stage");
    typedef SharedRows<T, DIM, TILE * DIM> Rows;
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a.cu_seqlens, a.tokens, a.heads, a.tiles, warps * TILES * TILE);
    const unsigned length = block.seq.length, first = block.first + mine * TILE;  // of this warp
    if (block.first >= length) return;  // the whole block
    const Rows stages{reinterpret_cast<T*>(memory)};
    const AttentionHead<T> x(a, block.seq.start, block.head);
    const size_t start = block.first;

    copy_tiles(stages.from(STAGE), x.q + start * x.stride, x.stride, 0, warps * TILES, length - block.first, a.dim,
               threadIdx.x, blockDim.x);
    copy_tiles(stages.from(2 * STAGE), x.d_o + start * x.row, x.row, 0, warps * TILES, length - block.first, a.dim,
               threadIdx.x, blockDim.x);
    copy_stage(stages, x.k, x.stride, x.v, x.stride, length, a.dim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the queries and their d_o are there
    const LeftTiles<TILES, DIM / 16, Rows> q(stages, STAGE + mine), d_o(stages, 2 * STAGE + mine);
    float lse[TILES][2], delta[TILES][2];  // of rows g and g + 8 of each tile
    float* pairs = query_pairs(a, block);
    UNROLL
    for (int m = 0; m < TILES; ++m) {
        // Two lanes a row; o straight from device memory.
        const unsigned row = lane_id() % 16, query = first + TILE * m + row;
        const T* o = in<T>(a.o) + (block.seq.start + size_t(query)) * x.row + block.head * a.dim;
        float sum = 0.f;
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (query < length && column < a.dim) {
                const Vec<T, 8> y = load_vec<T, 8>(o + column),
                                d = load_vec<T, 8>(stages.piece(2 * STAGE + mine + m, row, column / 8));
                UNROLL
                for (int i = 0; i < 8; ++i) sum += to_f32(y[i]) * to_f32(d[i]);
            }
        }
        sum += __shfl_xor_sync(FULL_MASK, sum, 16);
        const float log_sum = query < length ? x.lse[query] * LOG2_E : 0.f;
        if (lane_id() < 16 && query < length) store_vec<float, 2>(pairs + 2 * size_t(query), {log_sum, sum});
        UNROLL
        for (int r = 0; r < 2; ++r) {
            lse[m][r] = __shfl_sync(FULL_MASK, log_sum, lane_id() / 4 + 8 * r);
            delta[m][r] = __shfl_sync(FULL_MASK, sum, lane_id() / 4 + 8 * r);
        }
    }

    const float scale = a.scale * LOG2_E;
    float dq[TILES][DIM / 8][4] = {};
    for (unsigned key = 0; key < length; key += KEYS) {
        const unsigned stage = key / KEYS % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (key + KEYS < length) {
            const size_t next = (key + KEYS) * x.stride;
            copy_stage(stages.from((stage ^ 1) * STAGE), x.k + next, x.stride, x.v + next, x.stride, length - key - KEYS,
                       a.dim);
            cp_async_commit();
        }
        const Rows k = stages.from(stage * STAGE), v = k.from(LONG_STAGE);
        const unsigned keys = first < length ? min(length - key, unsigned(KEYS)) : 0;
#pragma unroll 1
        for (unsigned c = 0; TILE * c < keys; ++c) {
            float s[TILES][2][4] = {}, ds[TILES][2][4];
            UNROLL
            for (int m = 0; m < TILES; ++m)
                UNROLL
                for (int j = 0; j < 2; ++j)
                    UNROLL
                    for (int i = 0; i < 4; ++i) ds[m][j][i] = -delta[m][i / 2];
            q.template dot<T>(s, k, c);
            d_o.template dot<T>(ds, v, c);
            unsigned left[TILES][4];
            UNROLL
            for (int m = 0; m < TILES; ++m) {
                UNROLL
                for (int j = 0; j < 2; ++j)
                    UNROLL
                    for (int i = 0; i < 4; ++i) ds[m][j][i] *= exp2_approx(s[m][j][i] * scale - lse[m][i / 2]);
                if (TILE * c + TILE > keys) {  // keys past the end
                    UNROLL
                    for (int j = 0; j < 2; ++j)
                        UNROLL
                        for (int i = 0; i < 4; ++i)
                            if (TILE * c + 8 * j + 2 * (lane_id() % 4) + i % 2 >= keys) ds[m][j][i] = 0.f;
                }
                as_left<T>(left[m], ds[m][0], ds[m][1]);
            }
            accumulate_tile<T>(dq, left, k, c);
        }
    }
    const unsigned stage = (length + KEYS - 1) / KEYS % 2;  // not the last, which others may be reading
    if (first >= length) return;  // whole warps leave; no block barrier follows
    const Rows to = stages.from(stage * STAGE + mine);
    UNROLL
    for (int m = 0; m < TILES; ++m) stage_tile(to, m, dq[m], a.scale, a.scale);
    __syncwarp();  // dq is there
    T* out_q = out<T>(a.dqkv) + (block.seq.start + size_t(first)) * x.stride + block.head * a.dim;
    UNROLL
    for (int m = 0; m < TILES; ++m) store_tile(out_q, x.stride, to, m, length - first, a.dim);
}

// dk and dv of a block of keys, over all queries. Rows of the score tile are keys, columns queries.
template <class T, int DIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_bwd_long_kv(const AttentionBwd& a) {
    constexpr int STAGE = 2 * LONG_STAGE, QUERIES = LONG_STAGE * TILE;
    // Steps of v in registers: as many as dk, dv and k leave room for.
    constexpr int V_KEPT = DIM == 64 ? 1 : DIM == 80 ? 4 : DIM / 16;
    static_assert(TILES * WARPS <= STAGE, "the keys fit into a stage");
    typedef SharedRows<T, DIM, TILE * DIM> Rows;
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a.cu_seqlens, a.tokens, a.heads, a.tiles, warps * TILES * TILE);
    const unsigned length = block.seq.length, first = block.first + mine * TILE;  // of this warp
    if (block.first >= length) return;  // the whole block
    const Rows stages{reinterpret_cast<T*>(memory)};
    float* numbers = reinterpret_cast<float*>(stages.from(3 * STAGE).first);  // [2, QUERIES, 2]
    const AttentionHead<T> x(a, block.seq.start, block.head);
    const float* pairs = query_pairs(a, block);
    const size_t start = block.first;
    // Queries from `query` on, past the end zeros: P is 1 there, and what it multiplies zero.
    auto copy_queries = [&](unsigned query, unsigned stage) {
        const AttentionHead<T> from(a, computed_here(block.seq.start) + query, block.head);
        copy_stage(stages.from(stage * STAGE), from.q, from.stride, from.d_o, from.row, length - query, a.dim);
        for (unsigned i = 2 * computed_here(threadIdx.x); i < QUERIES; i += 2 * blockDim.x) {
            const int count = min(2, max(0, int(length - query) - int(i)));
            cp_async_16(numbers + 2 * (stage * QUERIES + i), count ? pairs + 2 * size_t(query + i) : pairs, 8 * count);
        }
        cp_async_commit();
    };

    copy_tiles(stages.from(STAGE), x.k + start * x.stride, x.stride, 0, warps * TILES, length - block.first, a.dim,
               threadIdx.x, blockDim.x);
    copy_tiles(stages.from(2 * STAGE), x.v + start * x.stride, x.stride, 0, warps * TILES, length - block.first, a.dim,
               threadIdx.x, blockDim.x);
    copy_queries(0, 0);
    cp_async_wait<0>();
    __syncthreads();  // the keys and values are there
    const LeftTiles<TILES, DIM / 16, Rows> k(stages, STAGE + mine);
    const LeftTiles<TILES, V_KEPT, Rows> v(stages, 2 * STAGE + mine);

    const float scale = a.scale * LOG2_E;
    float dk[TILES][DIM / 8][4] = {}, dv[TILES][DIM / 8][4] = {};
    for (unsigned query = 0; query < length; query += QUERIES) {
        const unsigned stage = query / QUERIES % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (query + QUERIES < length) copy_queries(query + QUERIES, stage ^ 1);
        const Rows q = stages.from(stage * STAGE), d_o = q.from(LONG_STAGE);
        const unsigned queries = first < length ? min(length - query, unsigned(QUERIES)) : 0;
#pragma unroll 1
        for (unsigned c = 0; TILE * c < queries; ++c) {
            float p[TILES][2][4] = {}, ds[TILES][2][4] = {};
            k.template dot<T>(p, q, c);
            v.template dot<T>(ds, d_o, c);
            const float* columns = numbers + 2 * (stage * QUERIES + TILE * c + 2 * (lane_id() % 4));
            const Vec<float, 4> pair[2] = {load_vec<float, 4>(columns), load_vec<float, 4>(columns + 16)};
            unsigned left_p[TILES][4], left_ds[TILES][4];
            UNROLL
            for (int m = 0; m < TILES; ++m) {
                UNROLL
                for (int j = 0; j < 2; ++j)
                    UNROLL
                    for (int i = 0; i < 4; ++i) {
                        p[m][j][i] = exp2_approx(p[m][j][i] * scale - pair[j][i % 2 * 2]);
                        ds[m][j][i] = p[m][j][i] * (ds[m][j][i] - pair[j][i % 2 * 2 + 1]);
                    }
                as_left<T>(left_p[m], p[m][0], p[m][1]);
                as_left<T>(left_ds[m], ds[m][0], ds[m][1]);
            }
            accumulate_tile<T>(dv, left_p, d_o, c);
            accumulate_tile<T>(dk, left_ds, q, c);
        }
    }
    const unsigned stage = (length + QUERIES - 1) / QUERIES % 2;  // not the last, which others may be reading
    if (first >= length) return;  // whole warps leave; no block barrier follows
    const Rows to_k = stages.from(stage * STAGE + mine), to_v = stages.from(2 * STAGE + mine);
    UNROLL
    for (int m = 0; m < TILES; ++m) {
        stage_tile(to_k, m, dk[m], a.scale, a.scale);
        stage_tile(to_v, m, dv[m], 1.f, 1.f);
    }
    __syncwarp();  // dk and dv are there
    T* dq = out<T>(a.dqkv) + (block.seq.start + size_t(first)) * x.stride + block.head * a.dim;
    UNROLL
    for (int m = 0; m < TILES; ++m) {
        store_tile(dq + x.row, x.stride, to_k, m, length - first, a.dim);
        store_tile(dq + 2 * x.row, x.stride, to_v, m, length - first, a.dim);
    }
}
