// Gradient of attention on tensor cores. Every result is one sum in a fixed order: no atomics, the same bits in every run.
#pragma once
#include "attention_long.cuh"

struct AttentionBwd {
    const void* q;     // [queries, heads, dim] T, q_stride elements from query to query
    const void* k;     // [keys, heads, dim] T, k_stride likewise
    const void* v;     // [keys, heads, v_dim] T, v_stride
    const void* o;     // [queries, heads, v_dim] T
    const void* d_o;   // [queries, heads, v_dim] T
    const float* lse;  // [heads, queries]
    float* delta;      // [heads, queries]: rowsum(d_o * o); long: [heads, pairs, 2]: lse · log2 e, and that
    const int* cu_q;   // [sequences + 1]
    const int* cu_k;   // [sequences + 1]
    void *dq, *dk, *dv;  // as q, k and v, strides included
    float* parts;      // long, in parts: [parts, queries, heads, dim] of dq; or, of each part, [keys, heads, dim] of dk
                       // and then [keys, heads, v_dim] of dv
    unsigned q_stride, k_stride, v_stride;
    unsigned queries, keys, heads, dim, v_dim;
    unsigned tiles;  // of the rows a block takes, in the longest sequence of the side whose rows those are
    unsigned pairs;  // of one head
    float scale;
    unsigned pad;
};

// One head of one sequence.
template <class T>
struct AttentionHead {
    const T *q, *k, *v, *o, *d_o;  // of its first query or key
    const float *lse, *delta;
    size_t row;  // elements from query to query in o and d_o
    __device__ __forceinline__ AttentionHead(const AttentionBwd& a, size_t query, size_t key, unsigned head)
        : row(size_t(a.heads) * a.v_dim) {
        q = in<T>(a.q) + query * a.q_stride + head * a.dim;
        k = in<T>(a.k) + key * a.k_stride + head * a.dim;
        v = in<T>(a.v) + key * a.v_stride + head * a.v_dim;
        o = in<T>(a.o) + query * row + head * a.v_dim;
        d_o = in<T>(a.d_o) + query * row + head * a.v_dim;
        lse = a.lse + size_t(head) * a.queries + query;
        delta = a.delta + size_t(head) * a.queries + query;
    }
};

// Short sequences on tensor cores, in one launch: q, k, v and d_o of one head of one sequence lie in shared memory, and
// each warp owns 16 keys. Over 64 queries at a time a warp computes Pᵀ and dSᵀ of its keys and adds to its dk and dv;
// dSᵀ goes to shared memory, from which the block then makes dq of these queries. Every result is one sum in a fixed
// order. v_dim is dim. Block x: head, fastest, of a sequence; a warp per tile of 16 tokens of the longest sequence of
// either side (`tiles`): tile i of the queries and tile i of the keys. Dynamic shared memory: 16 · (4 · DIM + 64
// elements, 2 floats) for each tile.
template <class T, int DIM>
__device__ __forceinline__ void attention_bwd_short(const AttentionBwd& a) {
    constexpr int BLOCK = 64 / TILE;  // tiles of queries between barriers
    constexpr int QUERIES = 2;        // tiles of a warp at a time
    constexpr int STRIDE = TILE * (4 * DIM + TILE * BLOCK) + TILE * 2 * int(sizeof(float) / sizeof(T));
    typedef SharedRows<T, DIM, STRIDE> Rows;
    DYN_SMEM(memory);
    const unsigned head = blockIdx.x % a.heads, mine = warp_id();
    const SequencePair seq(a, blockIdx.x / a.heads);
    const unsigned queries = min(seq.queries.length, TILE * a.tiles), tiles = (queries + TILE - 1) / TILE;
    const unsigned keys = min(seq.keys.length, TILE * a.tiles), key_tiles = (keys + TILE - 1) / TILE;
    const Rows q{reinterpret_cast<T*>(memory)}, k{q.first + Rows::ELEMENTS}, v{k.first + Rows::ELEMENTS},
        d_o{v.first + Rows::ELEMENTS};
    const SharedRows<T, TILE * BLOCK, STRIDE> ds{d_o.first + Rows::ELEMENTS};  // [keys, queries of the block]
    float* numbers = reinterpret_cast<float*>(ds.first + ds.ELEMENTS);  // of a tile: [16] lse · log2 e, [16] delta
    constexpr int NUMBERS = STRIDE * int(sizeof(T)) / int(sizeof(float));
    const bool active = mine < key_tiles;

    const AttentionHead<T> x(a, seq.queries.start, seq.keys.start, head);
    if (active) {  // a warp's own 16 rows of everything
        copy_tiles(k, x.k, a.k_stride, mine, mine + 1, keys, a.dim, 0, 1);
        copy_tiles(v, x.v, a.v_stride, mine, mine + 1, keys, a.dim, 0, 1);
    }
    if (mine < tiles) {
        copy_tiles(q, x.q, a.q_stride, mine, mine + 1, queries, a.dim, 0, 1);
        copy_tiles(d_o, x.d_o, x.row, mine, mine + 1, queries, a.dim, 0, 1);
    }
    cp_async_commit();
    if (mine < tiles) {
        // delta = rowsum(d_o · o): two lanes a row, o straight from device memory while the copies are under way.
        const unsigned row = lane_id() % 16, query = TILE * mine + row;
        const T* from = x.o + query * x.row;
        Vec<T, 8> o[DIM / 16];
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (query < queries && column < a.dim) o[n] = load_vec<T, 8>(from + column);
        }
        const float lse = query < queries ? x.lse[query] * LOG2_E : INFINITY;  // past the end P becomes zero
        cp_async_wait<0>();
        __syncwarp();  // the warp's d_o is there
        float delta = 0.f;
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (query < queries && column < a.dim) {
                const Vec<T, 8> d = load_vec<T, 8>(d_o.piece(mine, row, column / 8));
                UNROLL
                for (int i = 0; i < 8; ++i) delta += to_f32(o[n][i]) * to_f32(d[i]);
            }
        }
        delta += __shfl_xor_sync(FULL_MASK, delta, 16);
        if (lane_id() < 16) {
            numbers[mine * NUMBERS + row] = lse;
            numbers[mine * NUMBERS + TILE + row] = delta;
        }
    }
    cp_async_wait<0>();
    __syncthreads();  // everything is there

    const float scale = a.scale * LOG2_E;
    float dk[DIM / 8][4] = {}, dv[DIM / 8][4] = {};
    for (unsigned block = 0; block < tiles; block += BLOCK) {
        for (unsigned query = block; active && query < min(tiles, block + BLOCK); query += QUERIES) {
            // Rows of these tiles are keys, columns queries.
            float s[2 * QUERIES][4] = {}, dp[2 * QUERIES][4] = {};
            UNROLL
            for (int n = 0; n < DIM / 16; ++n) {
                unsigned left[4], b[4];
                LEFT(left, k, mine, n);
                UNROLL
                for (int u = 0; u < QUERIES; ++u)
                    if (query + u < tiles) {
                        RIGHT(b, q, query + u, n);
                        mma_16x8x16<T>(s[2 * u], left, b[0], b[1]);
                        mma_16x8x16<T>(s[2 * u + 1], left, b[2], b[3]);
                    }
            }
            UNROLL
            for (int n = 0; n < DIM / 16; ++n) {
                unsigned left[4], b[4];
                LEFT(left, v, mine, n);
                UNROLL
                for (int u = 0; u < QUERIES; ++u)
                    if (query + u < tiles) {
                        RIGHT(b, d_o, query + u, n);
                        mma_16x8x16<T>(dp[2 * u], left, b[0], b[1]);
                        mma_16x8x16<T>(dp[2 * u + 1], left, b[2], b[3]);
                    }
            }
            UNROLL
            for (int u = 0; u < QUERIES; ++u)
                if (query + u < tiles) {
                    const float* columns = numbers + (query + u) * NUMBERS + 2 * (lane_id() % 4);
                    UNROLL
                    for (int j = 2 * u; j < 2 * u + 2; ++j) {
                        const Vec<float, 2> lse = load_vec<float, 2>(columns + 8 * (j % 2)),
                                            delta = load_vec<float, 2>(columns + TILE + 8 * (j % 2));
                        UNROLL
                        for (int i = 0; i < 4; ++i) {
                            const bool inside = TILE * mine + lane_id() / 4 + 8 * (i / 2) < keys;
                            s[j][i] = inside ? exp2_approx(s[j][i] * scale - lse[i % 2]) : 0.f;
                            dp[j][i] = s[j][i] * (dp[j][i] - delta[i % 2]);
                        }
                    }
                    unsigned p[4], d[4], b[4];
                    as_left<T>(p, s[2 * u], s[2 * u + 1]);
                    as_left<T>(d, dp[2 * u], dp[2 * u + 1]);
                    store_left(ds, mine, (query - block + u) * 2, d);
                    UNROLL
                    for (int n = 0; n < DIM / 16; ++n) {
                        RIGHT_T(b, d_o, query + u, n);
                        mma_16x8x16<T>(dv[2 * n], p, b[0], b[1]);
                        mma_16x8x16<T>(dv[2 * n + 1], p, b[2], b[3]);
                        RIGHT_T(b, q, query + u, n);
                        mma_16x8x16<T>(dk[2 * n], d, b[0], b[1]);
                        mma_16x8x16<T>(dk[2 * n + 1], d, b[2], b[3]);
                    }
                }
        }
        __syncthreads();  // dSᵀ of the block is there, its queries and d_o are done with
        // dq = dS k: a tile of queries and 32 columns at a time, in place of the queries.
        for (unsigned item = mine; item < BLOCK * ((DIM + 31) / 32); item += blockDim.x / WARP) {
            const unsigned tile = item % BLOCK, step = item / BLOCK * 2;
            if (block + tile >= tiles) continue;
            float dq[4][4] = {};
            for (unsigned key = 0; key < key_tiles; ++key) {
                unsigned left[4], b[4];
                LEFT_T(left, ds, key, tile);
                UNROLL
                for (int n = 0; n < 2; ++n)
                    if (step + n < DIM / 16) {
                        RIGHT_T(b, k, key, step + n);
                        mma_16x8x16<T>(dq[2 * n], left, b[0], b[1]);
                        mma_16x8x16<T>(dq[2 * n + 1], left, b[2], b[3]);
                    }
            }
            UNROLL
            for (int n = 0; n < 2; ++n)
                if (step + n < DIM / 16) {
                    UNROLL
                    for (int j = 2 * n; j < 2 * n + 2; ++j)
                        UNROLL
                        for (int i = 0; i < 4; ++i) dq[j][i] *= a.scale;
                    unsigned left[4];
                    as_left<T>(left, dq[2 * n], dq[2 * n + 1]);
                    store_left(q, block + tile, 2 * (step + n), left);
                }
        }
        __syncthreads();  // dSᵀ is done with; behind the last block all of dq is there and k is done with
    }
    const size_t at = head * a.dim;
    if (mine < tiles)
        store_tile(out<T>(a.dq) + seq.queries.start * size_t(a.q_stride) + at, a.q_stride, q, mine, queries, a.dim);
    if (!active) return;
    stage_tile(k, mine, dk, a.scale, a.scale);
    stage_tile(v, mine, dv, 1.f, 1.f);
    __syncwarp();  // dk and dv are there
    store_tile(out<T>(a.dk) + seq.keys.start * size_t(a.k_stride) + at, a.k_stride, k, mine, keys, a.dim);
    store_tile(out<T>(a.dv) + seq.keys.start * size_t(a.v_stride) + at, a.v_stride, v, mine, keys, a.dim);
}
