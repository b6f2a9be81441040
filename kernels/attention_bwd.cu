// Gradient of attention: P = exp(S - lse) is computed again, once by key tiles for dk and dv and once by query tiles for
// dq, so that each result is a sum in one thread's registers: no atomics, the same bits in every run
// (arXiv 2205.14135, algorithm 4, in two passes). Equations: src/ops/attention.
// no-mma-ok: attention_bwd_delta_* one dot product per row, bound by bytes
// no-mma-ok: attention_bwd_kv_??x??_* f32 arithmetic, for what the tensor-core kernels do not take
// no-mma-ok: attention_bwd_q_??x??_* f32 arithmetic, for what the tensor-core kernels do not take
#include "attention_bwd_long.cuh"

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

// Up to 288 tokens at 32 columns, else up to 128: two blocks of eight warps leave 128 registers to a thread, of which dk
// and dv of 64 columns take half.
ATTENTION_MMA_KERNEL(attention_bwd_short, 32, AttentionBwd, 576)
ATTENTION_MMA_KERNEL(attention_bwd_short, 64, AttentionBwd, 256, 2)
ATTENTION_MMA_KERNEL(attention_bwd_short, 80, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_short, 96, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_short, 128, AttentionBwd, 256)

// Long sequences on tensor cores. Names: warps of a block x rows of a warp.
#define ATTENTION_BWD_LONG(pass, warps, tiles, rows)                                                          \
    template <class T, int DIM>                                                                               \
    __device__ __forceinline__ void attention_bwd_long_##pass##_##warps##x##rows(const AttentionBwd& a) {      \
        attention_bwd_long_##pass<T, DIM, tiles, warps>(a);                                                    \
    }
ATTENTION_BWD_LONG(q, 4, 2, 32)
ATTENTION_BWD_LONG(q, 8, 1, 16)
ATTENTION_BWD_LONG(kv, 4, 2, 32)
ATTENTION_BWD_LONG(kv, 6, 1, 16)
ATTENTION_BWD_LONG(kv, 8, 1, 16)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 32, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 64, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 80, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 96, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_8x16, 128, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_4x32, 32, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_4x32, 64, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_6x16, 80, AttentionBwd, 192, 2)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_8x16, 96, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_8x16, 128, AttentionBwd, 256)
