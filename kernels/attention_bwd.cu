// Gradient of attention: P = exp(S - lse) is computed again, once by key tiles for dk and dv and once by query tiles for
// dq, so that each result is a sum in one thread's registers: no atomics, the same bits in every run
// (arXiv 2205.14135, algorithm 4, in two passes). Equations: src/ops/attention.
#include "attention_mma.cuh"

struct AttentionBwd {
    const void* qkv;        // [tokens, 3, heads, dim] T
    const void* o;          // [tokens, heads, dim] T
    const void* d_o;        // [tokens, heads, dim] T
    const float* lse;       // [heads, tokens]
    float* delta;           // [heads, tokens]: rowsum(d_o * o)
    const int* cu_seqlens;  // [sequences + 1]
    void* dqkv;             // [tokens, 3, heads, dim] T
    unsigned tokens, heads, dim;
    unsigned tiles;  // of B rows in the longest sequence
    float scale;
    unsigned pad;
};

// Block x: a token per warp; block y: head.
template <class T>
__device__ void attention_bwd_delta(const AttentionBwd& a) {
    const unsigned token = blockIdx.x * (blockDim.x / WARP) + warp_id(), head = blockIdx.y;
    if (token >= a.tokens) return;  // whole warps leave; no block barrier follows
    const size_t row = (size_t(token) * a.heads + head) * a.dim;
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.dim; c += WARP) sum += to_f32(in<T>(a.o)[row + c]) * to_f32(in<T>(a.d_o)[row + c]);
    sum = warp_sum(sum);
    if (lane_id() == 0) a.delta[size_t(head) * a.tokens + token] = sum;
}
KERNEL_PER_DTYPE(attention_bwd_delta, AttentionBwd)

template <int B, int DIM>
struct alignas(16) AttentionBwdShared {
    Tile<B, DIM> q, k, v, d_o;
    Tile<B, B> p, ds;
    float lse[B], delta[B];
};

// What both passes read: one head of one sequence.
template <class T>
struct AttentionHead {
    const T *q, *k, *v, *d_o;  // of the first token
    const float *lse, *delta;
    size_t stride, row;  // elements from token to token, in qkv and in d_o
    __device__ __forceinline__ AttentionHead(const AttentionBwd& a, size_t token, unsigned head)
        : stride(size_t(3) * a.heads * a.dim), row(size_t(a.heads) * a.dim) {
        q = in<T>(a.qkv) + token * stride + head * a.dim;
        k = q + row;
        v = k + row;
        d_o = in<T>(a.d_o) + token * row + head * a.dim;
        lse = a.lse + size_t(head) * a.tokens + token;
        delta = a.delta + size_t(head) * a.tokens + token;
    }
};

// Query rows from `first` on: q times scale, as in the forward, so that S has the same bits; lse past the end is +inf,
// which makes P zero there.
template <class T, int B, int DIM>
__device__ __forceinline__ void load_queries(
    AttentionBwdShared<B, DIM>& s, const AttentionHead<T>& x, unsigned first, unsigned rows, const AttentionBwd& a) {
    load_tile<T>(s.q, x.q + first * x.stride, x.stride, rows, a.dim, a.scale);
    load_tile<T>(s.d_o, x.d_o + first * x.row, x.row, rows, a.dim, 1.f);
    if (threadIdx.x < B) {
        const bool inside = threadIdx.x < rows;
        s.lse[threadIdx.x] = inside ? x.lse[first + threadIdx.x] : INFINITY;
        s.delta[threadIdx.x] = inside ? x.delta[first + threadIdx.x] : 0.f;
    }
}

template <class T, int B, int DIM>
__device__ __forceinline__ void load_keys(
    AttentionBwdShared<B, DIM>& s, const AttentionHead<T>& x, unsigned first, unsigned rows, const AttentionBwd& a) {
    load_tile<T>(s.k, x.k + first * x.stride, x.stride, rows, a.dim, 1.f);
    load_tile<T>(s.v, x.v + first * x.stride, x.stride, rows, a.dim, 1.f);
}

// dk and dv of a tile of keys, over all tiles of queries. Rows of the score tile are keys, columns queries.
// Block x: tile of keys of a sequence; block y: head.
template <class T, int B, int DIM>
__device__ __forceinline__ void attention_bwd_kv(const AttentionBwd& a) {
    constexpr int COLS = B / THREADS_PER_ROW;
    typedef AttentionBwdShared<B, DIM> Shared;
    SMEM(Shared, s);
    const Sequence seq = sequence(a.cu_seqlens, blockIdx.x / a.tiles, a.tokens);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.length) return;  // the whole block
    const AttentionHead<T> x(a, seq.start, head);
    load_keys<T, B, DIM>(s, x, first, seq.length - first, a);
    Rows<DIM> dk = {}, dv = {};
    for (unsigned query = 0; query < seq.length; query += B) {
        load_queries<T, B, DIM>(s, x, query, seq.length - query, a);
        __syncthreads();  // all four tiles are there
        float p[ROWS_PER_THREAD][COLS], ds[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.k, s.q, a.dim);
        dot_rows(ds, s.v, s.d_o, a.dim);
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r)
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                const int col = thread_col() + THREADS_PER_ROW * j;
                p[r][j] = expf(p[r][j] - s.lse[col]);
                ds[r][j] = p[r][j] * (ds[r][j] - s.delta[col]);
            }
        store_scores(s.p, p);
        store_scores(s.ds, ds);
        __syncwarp();  // rows of p and ds stay within their warp
        accumulate_rows(dv, s.p, s.d_o);
        accumulate_rows(dk, s.ds, s.q);  // q carries the scale
        __syncthreads();  // q, do, p and ds are done with
    }
    T* dq = out<T>(a.dqkv) + (seq.start + first) * x.stride + head * a.dim;
    store_rows(dq + x.row, x.stride, dk, seq.length - first, a.dim, 1.f);
    store_rows(dq + 2 * x.row, x.stride, dv, seq.length - first, a.dim, 1.f);
}
ATTENTION_KERNEL(attention_bwd_kv, 32, 32, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 32, 64, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 16, 96, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 16, 128, AttentionBwd)

// dq of a tile of queries, over all tiles of keys. Rows of the score tile are queries, columns keys.
// Block x: tile of queries of a sequence; block y: head.
template <class T, int B, int DIM>
__device__ __forceinline__ void attention_bwd_q(const AttentionBwd& a) {
    constexpr int COLS = B / THREADS_PER_ROW;
    typedef AttentionBwdShared<B, DIM> Shared;
    SMEM(Shared, s);
    const Sequence seq = sequence(a.cu_seqlens, blockIdx.x / a.tiles, a.tokens);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.length) return;  // the whole block
    const AttentionHead<T> x(a, seq.start, head);
    load_queries<T, B, DIM>(s, x, first, seq.length - first, a);
    Rows<DIM> dq = {};
    for (unsigned key = 0; key < seq.length; key += B) {
        load_keys<T, B, DIM>(s, x, key, seq.length - key, a);
        __syncthreads();  // all four tiles are there
        float p[ROWS_PER_THREAD][COLS], ds[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.q, s.k, a.dim);
        dot_rows(ds, s.d_o, s.v, a.dim);
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r)
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                const bool inside = key + thread_col() + THREADS_PER_ROW * j < seq.length;
                const int row = thread_row() + r;
                ds[r][j] = inside ? expf(p[r][j] - s.lse[row]) * (ds[r][j] - s.delta[row]) : 0.f;
            }
        store_scores(s.ds, ds);
        __syncwarp();  // rows of ds stay within their warp
        accumulate_rows(dq, s.ds, s.k);
        __syncthreads();  // k, v and ds are done with
    }
    T* out_q = out<T>(a.dqkv) + (seq.start + first) * x.stride + head * a.dim;
    store_rows(out_q, x.stride, dq, seq.length - first, a.dim, a.scale);
}
ATTENTION_KERNEL(attention_bwd_q, 32, 32, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 32, 64, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 16, 96, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 16, 128, AttentionBwd)

// Short sequences on tensor cores, in one launch: q, k, v and d_o of one head of one sequence lie in shared memory, and
// each warp owns 16 keys. Over 64 queries at a time a warp computes Pᵀ and dSᵀ of its keys and adds to its dk and dv;
// dSᵀ goes to shared memory, from which the block then makes dq of these queries. Every result is one sum in a fixed
// order. Block x: head, fastest, of a sequence; a warp per tile of 16 tokens of the longest sequence (`tiles`), up to
// TILES. Dynamic shared memory: 16 · (4 · DIM + 64 elements, 2 floats) for each tile.
template <class T, int DIM, int TILES>
__device__ __forceinline__ void attention_bwd_short(const AttentionBwd& a) {
    constexpr int BLOCK = 64 / TILE;                     // tiles of queries between barriers
    constexpr int QUERIES = DIM <= 32 || TILES <= 8 ? 2 : 1;  // tiles of a warp at a time: as many as registers allow
    constexpr int STRIDE = TILE * (4 * DIM + TILE * BLOCK) + TILE * 2 * int(sizeof(float) / sizeof(T));
    typedef SharedRows<T, DIM, STRIDE> Rows;
    DYN_SMEM(memory);
    const unsigned head = blockIdx.x % a.heads, mine = warp_id();
    const Sequence seq = sequence(a.cu_seqlens, blockIdx.x / a.heads, a.tokens);
    const unsigned length = min(seq.length, TILE * a.tiles), tiles = (length + TILE - 1) / TILE;
    const Rows q{reinterpret_cast<T*>(memory)}, k{q.first + Rows::ELEMENTS}, v{k.first + Rows::ELEMENTS},
        d_o{v.first + Rows::ELEMENTS};
    const SharedRows<T, TILE * BLOCK, STRIDE> ds{d_o.first + Rows::ELEMENTS};  // [keys, queries of the block]
    float* numbers = reinterpret_cast<float*>(ds.first + ds.ELEMENTS);  // of a tile: [16] lse · log2 e, [16] delta
    constexpr int NUMBERS = STRIDE * int(sizeof(T)) / int(sizeof(float));
    const bool active = mine < tiles;

    if (active) {  // a warp's own 16 rows of everything
        const AttentionHead<T> x(a, seq.start, head);
        copy_tiles(q, x.q, x.stride, mine, mine + 1, length, a.dim, lane_id(), WARP);
        copy_tiles(k, x.k, x.stride, mine, mine + 1, length, a.dim, lane_id(), WARP);
        copy_tiles(v, x.v, x.stride, mine, mine + 1, length, a.dim, lane_id(), WARP);
        copy_tiles(d_o, x.d_o, x.row, mine, mine + 1, length, a.dim, lane_id(), WARP);
        cp_async_commit();
        // delta = rowsum(d_o · o): two lanes a row, o straight from device memory while the copies are under way.
        const unsigned row = lane_id() % 16, token = TILE * mine + row;
        const T* from = in<T>(a.o) + (seq.start + token) * x.row + head * a.dim;
        Vec<T, 8> o[DIM / 16];
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (token < length && column < a.dim) o[n] = load_vec<T, 8>(from + column);
        }
        const float lse = token < length ? x.lse[token] * LOG2_E : INFINITY;  // past the end P becomes zero
        cp_async_wait<0>();
        __syncwarp();  // the warp's d_o is there
        float delta = 0.f;
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            const unsigned column = 16 * n + lane_id() / 16 * 8;
            if (token < length && column < a.dim) {
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
    __syncthreads();  // everything is there

    const float scale = a.scale * LOG2_E;
    float dk[DIM / 8][4] = {}, dv[DIM / 8][4] = {};
    for (unsigned block = 0; block < tiles; block += BLOCK) {
        for (unsigned query = block; active && query < min(tiles, block + BLOCK); query += QUERIES) {
            // Rows of these tiles are keys, columns queries.
            float s[2 * QUERIES][4] = {}, dp[2 * QUERIES][4] = {};
            UNROLL
            for (int n = 0; n < DIM / 16; ++n)
                if (has_step<DIM>(n, a.dim)) {
                    unsigned left[4], b[4];
                    LEFT(left, k, mine, 2 * n);
                    UNROLL
                    for (int u = 0; u < QUERIES; ++u)
                        if (query + u < tiles) {
                            RIGHT(b, q, query + u, 2 * n);
                            mma_16x8x16<T>(s[2 * u], left, b[0], b[1]);
                            mma_16x8x16<T>(s[2 * u + 1], left, b[2], b[3]);
                        }
                }
            UNROLL
            for (int n = 0; n < DIM / 16; ++n)
                if (has_step<DIM>(n, a.dim)) {
                    unsigned left[4], b[4];
                    LEFT(left, v, mine, 2 * n);
                    UNROLL
                    for (int u = 0; u < QUERIES; ++u)
                        if (query + u < tiles) {
                            RIGHT(b, d_o, query + u, 2 * n);
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
                            const bool inside = TILE * mine + lane_id() / 4 + 8 * (i / 2) < length;
                            s[j][i] = inside ? exp2_approx(s[j][i] * scale - lse[i % 2]) : 0.f;
                            dp[j][i] = s[j][i] * (dp[j][i] - delta[i % 2]);
                        }
                    }
                    unsigned p[4], d[4], b[4];
                    as_left<T>(p, s[2 * u], s[2 * u + 1]);
                    as_left<T>(d, dp[2 * u], dp[2 * u + 1]);
                    store_left(ds, mine, (query - block + u) * 2, d);
                    UNROLL
                    for (int n = 0; n < DIM / 16; ++n)
                        if (has_step<DIM>(n, a.dim)) {
                            RIGHT_T(b, d_o, query + u, 2 * n);
                            mma_16x8x16<T>(dv[2 * n], p, b[0], b[1]);
                            mma_16x8x16<T>(dv[2 * n + 1], p, b[2], b[3]);
                            RIGHT_T(b, q, query + u, 2 * n);
                            mma_16x8x16<T>(dk[2 * n], d, b[0], b[1]);
                            mma_16x8x16<T>(dk[2 * n + 1], d, b[2], b[3]);
                        }
                }
        }
        __syncthreads();  // dSᵀ of the block is there, its queries and d_o are done with
        // dq = dS k: a tile of queries and 32 columns at a time, in place of the queries.
        for (unsigned item = mine; item < BLOCK * (DIM / 32); item += blockDim.x / WARP) {
            const unsigned tile = item % BLOCK, piece = item / BLOCK * 4;
            if (block + tile >= tiles) continue;
            float dq[4][4] = {};
            for (unsigned key = 0; key < tiles; ++key) {
                unsigned left[4], b[4];
                LEFT_T(left, ds, key, 2 * tile);
                UNROLL
                for (int n = 0; n < 2; ++n)
                    if (8 * (piece + 2 * n) < a.dim) {
                        RIGHT_T(b, k, key, piece + 2 * n);
                        mma_16x8x16<T>(dq[2 * n], left, b[0], b[1]);
                        mma_16x8x16<T>(dq[2 * n + 1], left, b[2], b[3]);
                    }
            }
            UNROLL
            for (int n = 0; n < 2; ++n) {
                UNROLL
                for (int j = 2 * n; j < 2 * n + 2; ++j)
                    UNROLL
                    for (int i = 0; i < 4; ++i) dq[j][i] *= a.scale;
                unsigned left[4];
                as_left<T>(left, dq[2 * n], dq[2 * n + 1]);
                store_left(q, block + tile, piece + 2 * n, left);
            }
        }
        __syncthreads();  // dSᵀ is done with; behind the last block all of dq is there and k is done with
    }
    if (!active) return;
    stage_tile(k, mine, dk, a.scale, a.scale);
    stage_tile(v, mine, dv, 1.f, 1.f);
    __syncwarp();  // dk and dv are there
    const size_t row = size_t(a.heads) * a.dim;
    T* to = out<T>(a.dqkv) + seq.start * (3 * row) + head * a.dim;
    store_tile(to, 3 * row, q, mine, length, a.dim);
    store_tile(to + row, 3 * row, k, mine, length, a.dim);
    store_tile(to + 2 * row, 3 * row, v, mine, length, a.dim);
}
// Up to 128 tokens, where two blocks of eight warps leave 128 registers to a thread, and up to what one block can hold.
template <class T, int DIM>
__device__ __forceinline__ void attention_bwd_short_128(const AttentionBwd& a) {
    attention_bwd_short<T, DIM, 8>(a);
}
template <class T, int DIM>
__device__ __forceinline__ void attention_bwd_short_288(const AttentionBwd& a) {
    attention_bwd_short<T, DIM, 18>(a);
}
ATTENTION_MMA_KERNEL(attention_bwd_short_288, 32, AttentionBwd, 576)
ATTENTION_MMA_KERNEL(attention_bwd_short_128, 64, AttentionBwd, 256, 2)
// spill-ok: attention_bwd_short_288_hd64_* 17 warps for 257 tokens leave 96 registers, 64 of them for dk and dv
ATTENTION_MMA_KERNEL(attention_bwd_short_288, 64, AttentionBwd, 576)
ATTENTION_MMA_KERNEL(attention_bwd_short_128, 96, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_short_128, 128, AttentionBwd, 256)
