// Gradient of attention over sequences of any length on tensor cores, in two launches that both compute P = exp(S - lse)
// again: one gives dq, and for the other what it knows of each query; the other gives dk and dv. Seven products where
// one pass would make do with five, but no sum leaves its registers, so that no atomics are needed, and partial sums in
// device memory only where there are few rows (arXiv 2205.14135, algorithm 4, in two passes). How rows are shared, and
// cut into parts: attention_long.cuh.
#pragma once
#include "attention_bwd_mma.cuh"

// Numbers of the queries of one head, two floats each: lse · log2 e and rowsum(d_o · o). Each sequence starts at a
// multiple of 16 bytes, as asynchronous copies want: sequence i at its first token + i, rounded up to even.
__device__ __forceinline__ float* query_pairs(const AttentionBwd& a, unsigned head, unsigned gap, unsigned query) {
    return a.delta + 2 * (size_t(head) * a.pairs + gap + query);
}
// Places between the first query of a block's sequence and its pair.
__device__ __forceinline__ unsigned pairs_gap(const LongBlock& block) {
    const unsigned start = block.seq.queries.start;
    return block.sequence_index + (start + block.sequence_index) % 2;
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

// Tiles of each operand that streams: at 256 columns of both half, so that what stays fits beside two stages.
template <int DIM, int VDIM>
struct BwdStage {
    static constexpr int value = VDIM <= 128 ? LONG_STAGE : LONG_STAGE / 2;
};

// Dynamic shared memory of all kernels: two stages of what streams, each 4 tiles of 16 · (DIM + VDIM) elements, or 2 at
// 256 columns of both; room for one of the two operands that stay, twice as many tiles of 16 · DIM (the other comes
// through the second stage); then two stages of pairs of numbers. Of operands of different widths the wide one has the
// room: it is the one that does not fit into registers whole.

// dq of a block of queries, over all keys.
template <class T, int DIM, int VDIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_bwd_long_q(const AttentionBwd& a) {
    constexpr int TILES_AT_ONCE = BwdStage<DIM, VDIM>::value, KEYS = TILES_AT_ONCE * TILE;
    // Steps of d_o in registers: beside dq and q of 256 columns there is room for none but these. Steps of q likewise,
    // where d_o is narrow and kept whole.
    constexpr int D_O_KEPT = VDIM <= 128 ? VDIM / 16 : 1;
    constexpr int Q_KEPT = VDIM == DIM ? DIM / 16 : 14;
    static_assert(TILES * WARPS <= 2 * TILES_AT_ONCE, "the queries fit into a stage");
    typedef Stages<T, DIM, VDIM, TILES_AT_ONCE> Staged;
    typedef typename Staged::Wide Wide;
    typedef typename Staged::Narrow Narrow;
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a, warps * TILES * TILE);
    const unsigned queries = block.seq.queries.length, first = block.first + mine * TILE;  // of this warp
    if (block.first >= queries) return;  // the whole block
    const Staged stages{reinterpret_cast<T*>(memory)};
    const Wide q_rows = stages.wide(VDIM == DIM ? 1 : 2).from(mine);  // of this warp
    const Narrow d_o_rows = stages.place(VDIM == DIM ? 2 : 1).from(mine);
    const Sequence part = streaming(block.seq.keys, KEYS);
    const unsigned length = part.length;
    const AttentionHead<T> x(a, size_t(block.seq.queries.start) + block.first, part.start, block.head);

    copy_tiles(stages.wide(VDIM == DIM ? 1 : 2), x.q, a.q_stride, 0, warps * TILES, queries - block.first, a.dim,
               warp_id(), warps);
    copy_tiles(stages.place(VDIM == DIM ? 2 : 1), x.d_o, x.row, 0, warps * TILES, queries - block.first, a.v_dim,
               warp_id(), warps);
    stages.copy(0, x.k, a.k_stride, x.v, a.v_stride, length, a.dim, a.v_dim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the queries and their d_o are there
    const LeftTiles<TILES, Q_KEPT, Wide> q(q_rows, 0);
    const LeftTiles<TILES, D_O_KEPT, Narrow> d_o(d_o_rows, 0);
    float lse[TILES][2], delta[TILES][2];  // of rows g and g + 8 of each tile
    float* pairs = query_pairs(a, block.head, pairs_gap(block), block.seq.queries.start);
    UNROLL
    for (int m = 0; m < TILES; ++m) {
        // Two lanes a row; o straight from device memory.
        const unsigned row = lane_id() % 16, in_block = (mine + m) * TILE + row, query = block.first + in_block;
        float sum = 0.f;
        UNROLL
        for (int n = 0; n < VDIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (query < queries && column < a.v_dim) {
                const Vec<T, 8> y = load_vec<T, 8>(x.o + in_block * x.row + column),
                                d = load_vec<T, 8>(d_o_rows.piece(m, row, column / 8));
                UNROLL
                for (int i = 0; i < 8; ++i) sum += to_f32(y[i]) * to_f32(d[i]);
            }
        }
        sum += __shfl_xor_sync(FULL_MASK, sum, 16);
        const float log_sum = query < queries ? x.lse[in_block] * LOG2_E : 0.f;
        if (lane_id() < 16 && query < queries && blockIdx.y == 0)
            store_vec<float, 2>(pairs + 2 * size_t(query), {log_sum, sum});
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
            stages.copy(stage ^ 1, x.k + size_t(key + KEYS) * a.k_stride, a.k_stride,
                        x.v + size_t(key + KEYS) * a.v_stride, a.v_stride, length - key - KEYS, a.dim, a.v_dim);
            cp_async_commit();
        }
        const Wide k = stages.wide(stage);
        const Narrow v = stages.narrow(stage);
        const unsigned keys = first < queries ? min(length - key, unsigned(KEYS)) : 0;
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
    if (first >= queries) return;  // whole warps leave; no block barrier follows
    const LongBlock again(a, computed_here(warps * TILES * TILE));  // not kept in registers all the while
    const unsigned row = a.heads * a.dim, rows = again.seq.queries.length - first;
    const size_t query = size_t(again.seq.queries.start) + first;
    if (gridDim.y > 1) {
        float* to = a.parts + (size_t(blockIdx.y) * a.queries + query) * row + again.head * a.dim;
        UNROLL
        for (int m = 0; m < TILES; ++m)
            if (unsigned(TILE * m) < rows)
                store_part(to + size_t(TILE * m) * row, row, dq[m], rows - TILE * m, a.dim, a.scale, a.scale);
        return;
    }
    const Wide to = VDIM == DIM ? stages.wide(stage).from(mine) : q_rows;
    UNROLL
    for (int m = 0; m < TILES; ++m) stage_tile(to, m, dq[m], a.scale, a.scale);
    __syncwarp();  // dq is there
    UNROLL
    for (int m = 0; m < TILES; ++m)
        store_tile(out<T>(a.dq) + query * a.q_stride + again.head * a.dim, a.q_stride, to, m, rows, a.dim);
}

// The queries that stream past a block of keys: q, d_o and their pairs of numbers, a stage at a time.
template <class T, class Staged>
struct QueryStages {
    static constexpr unsigned QUERIES = Staged::TILES * TILE;
    const AttentionBwd& a;
    Staged stages;
    float* numbers;  // [2, QUERIES, 2]
    Sequence part;
    unsigned head, gap;

    __device__ __forceinline__ QueryStages(
        const AttentionBwd& a, const LongBlock& block, const Staged& stages, float* numbers)
        : a(a),
          stages(stages),
          numbers(numbers),
          part(streaming(block.seq.queries, QUERIES)),
          head(block.head),
          gap(pairs_gap(block)) {}

    // Starts copying from `query` on; past the end zeros: P is 1 there, and what it multiplies zero.
    __device__ __forceinline__ void copy(unsigned query, unsigned stage) const {
        const unsigned head = computed_here(this->head);
        const AttentionHead<T> from(a, size_t(computed_here(part.start)) + query, 0, head);
        stages.copy(stage, from.q, a.q_stride, from.d_o, unsigned(from.row), part.length - query, a.dim, a.v_dim);
        const float* pairs = query_pairs(a, head, gap, part.start + query);
        for (unsigned i = 2 * computed_here(threadIdx.x); i < QUERIES; i += 2 * blockDim.x) {
            const int count = min(2, max(0, int(part.length - query) - int(i)));
            cp_async_16(numbers + 2 * (stage * QUERIES + i), count ? pairs + 2 * i : a.delta, 8 * count);
        }
        cp_async_commit();
    }

    // Numbers of the columns that this lane has of a tile: lse · log2 e and delta of two columns, then of two 8 further on.
    __device__ __forceinline__ void columns(Vec<float, 4> (&pair)[2], unsigned stage, unsigned tile) const {
        const float* from = numbers + 2 * (stage * QUERIES + TILE * tile + 2 * (lane_id() % 4));
        pair[0] = load_vec<float, 4>(from);
        pair[1] = load_vec<float, 4>(from + 16);
    }
};

// One warp's 16 rows of a gradient by keys: rounded through a tile of shared memory into `to`, or, where the queries
// come in parts, as they are into this part of them. `rows`: from `key` on to the end of the sequence.
template <class T, class Rows, int COLUMNS>
__device__ __forceinline__ void store_key_gradient(const AttentionBwd& a, void* to, unsigned stride, bool is_v, size_t key,
                                                   unsigned head, float (&x)[COLUMNS][4], unsigned rows, float factor,
                                                   const Rows& staged) {
    const unsigned dim = is_v ? a.v_dim : a.dim;
    if (gridDim.y > 1) {
        // Columns, of all keys and heads.
        const size_t before = size_t(blockIdx.y) * (a.dim + a.v_dim) + (is_v ? a.dim : 0);
        float* part = a.parts + (before * a.keys + key * dim) * a.heads + head * dim;
        store_part(part, a.heads * dim, x, rows, dim, factor, factor);
        return;
    }
    stage_tile(staged, 0, x, factor, factor);
    __syncwarp();  // all of it is there
    store_tile(out<T>(to) + key * stride + head * dim, stride, staged, 0, rows, dim);
}

// dk and dv of a block of keys, over all queries. Rows of the score tile are keys, columns queries.
template <class T, int DIM, int VDIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_bwd_long_kv(const AttentionBwd& a) {
    constexpr int QUERIES = LONG_STAGE * TILE;
    // Steps of v in registers: as many as dk, dv and k leave room for. Steps of k likewise, where v is narrow.
    constexpr int V_KEPT = DIM == 64 ? 1 : DIM == 80 ? 4 : VDIM / 16;
    constexpr int K_KEPT = VDIM == DIM ? DIM / 16 : 7;
    static_assert(TILES * WARPS <= 2 * LONG_STAGE, "the keys fit into a stage");
    typedef Stages<T, DIM, VDIM, LONG_STAGE> Staged;
    typedef typename Staged::Wide Wide;
    typedef typename Staged::Narrow Narrow;
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a, warps * TILES * TILE);
    const unsigned keys = block.seq.keys.length, first = block.first + mine * TILE;  // of this warp
    if (block.first >= keys) return;  // the whole block
    const Staged stages{reinterpret_cast<T*>(memory)};
    const Wide k_rows = stages.wide(VDIM == DIM ? 1 : 2);
    const Narrow v_rows = stages.place(VDIM == DIM ? 2 : 1);
    const QueryStages<T, Staged> from(
        a, block, stages, reinterpret_cast<float*>(stages.wide(2).from(2 * LONG_STAGE).first));
    const unsigned length = from.part.length;
    {
        const AttentionHead<T> x(a, 0, size_t(block.seq.keys.start) + block.first, block.head);
        copy_tiles(k_rows, x.k, a.k_stride, 0, warps * TILES, keys - block.first, a.dim, warp_id(), warps);
        copy_tiles(v_rows, x.v, a.v_stride, 0, warps * TILES, keys - block.first, a.v_dim, warp_id(), warps);
    }
    from.copy(0, 0);
    cp_async_wait<0>();
    __syncthreads();  // the keys and values are there
    const LeftTiles<TILES, K_KEPT, Wide> k(k_rows, mine);
    const LeftTiles<TILES, V_KEPT, Narrow> v(v_rows, mine);

    const float scale = a.scale * LOG2_E;
    float dk[TILES][DIM / 8][4] = {}, dv[TILES][VDIM / 8][4] = {};
    for (unsigned query = 0; query < length; query += QUERIES) {
        const unsigned stage = query / QUERIES % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (query + QUERIES < length) from.copy(query + QUERIES, stage ^ 1);
        const Wide q = stages.wide(stage);
        const Narrow d_o = stages.narrow(stage);
        const unsigned queries = first < keys ? min(length - query, unsigned(QUERIES)) : 0;
#pragma unroll 1
        for (unsigned c = 0; TILE * c < queries; ++c) {
            float p[TILES][2][4] = {}, ds[TILES][2][4] = {};
            k.template dot<T>(p, q, c);
            v.template dot<T>(ds, d_o, c);
            Vec<float, 4> pair[2];
            from.columns(pair, stage, c);
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
    if (first >= keys) return;  // whole warps leave; no block barrier follows
    const LongBlock again(a, computed_here(warps * TILES * TILE));  // not kept in registers all the while
    UNROLL
    for (int m = 0; m < TILES; ++m)
        if (first + TILE * m < again.seq.keys.length) {
            const unsigned rows = again.seq.keys.length - first - TILE * m;
            const size_t key = size_t(again.seq.keys.start) + first + TILE * m;
            // Where this warp's v, or k, has stayed, and the stage.
            store_key_gradient<T>(a, a.dk, a.k_stride, false, key, again.head, dk[m], rows, a.scale,
                                  stages.wide(VDIM == DIM ? stage : 2).from(mine + m));
            store_key_gradient<T>(a, a.dv, a.v_stride, true, key, again.head, dv[m], rows, 1.f,
                                  stages.place(VDIM == DIM ? 2 : stage).from(mine + m));
        }
}
