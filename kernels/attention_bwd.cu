// Gradient of attention: P = exp(S - lse) is computed again, once by key tiles for dk and dv and once by query tiles for
// dq, so that each result is a sum in one thread's registers: no atomics, the same bits in every run
// (arXiv 2205.14135, algorithm 4, in two passes). Equations: src/ops/attention.
// spill-ok: attention_bwd_long_q_4x32_hd96_* one number, read again once for 64 keys
// spill-ok: attention_bwd_kv_16x16_hd96_* 16-bit types on sm_90a: one number, one store and one load
// no-mma-ok: attention_bwd_delta_* one dot product per row, bound by bytes
// no-mma-ok: attention_bwd_kv_??x??_* f32 arithmetic, for what the tensor-core kernels do not take
// no-mma-ok: attention_bwd_q_??x??_* f32 arithmetic, for what the tensor-core kernels do not take
// no-mma-ok: attention_bwd_*_8x8_* f32 arithmetic, for what the tensor-core kernels do not take
// no-mma-ok: attention_bwd_sum_* a sum of parts, bound by bytes
#include "attention_bwd_pairs.cuh"

// Block x: a query per warp; block y: head.
template <class T>
__device__ void attention_bwd_delta(const AttentionBwd& a) {
    const unsigned query = blockIdx.x * (blockDim.x / WARP) + warp_id(), head = blockIdx.y;
    if (query >= a.queries) return;  // whole warps leave; no block barrier follows
    const size_t row = (size_t(query) * a.heads + head) * a.v_dim;
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.v_dim; c += WARP)
        sum += to_f32(in<T>(a.o)[row + c]) * to_f32(in<T>(a.d_o)[row + c]);
    sum = warp_sum(sum);
    if (lane_id() == 0) a.delta[size_t(head) * a.queries + query] = sum;
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
    load_tile<T>(s.q, x.q + first * size_t(a.q_stride), a.q_stride, rows, a.dim, a.scale);
    load_tile<T>(s.d_o, x.d_o + first * x.row, x.row, rows, a.v_dim, 1.f);
    if (threadIdx.x < B) {
        const bool inside = threadIdx.x < rows;
        s.lse[threadIdx.x] = inside ? x.lse[first + threadIdx.x] : INFINITY;
        s.delta[threadIdx.x] = inside ? x.delta[first + threadIdx.x] : 0.f;
    }
}

template <class T, int B, int DIM>
__device__ __forceinline__ void load_keys(
    AttentionBwdShared<B, DIM>& s, const AttentionHead<T>& x, unsigned first, unsigned rows, const AttentionBwd& a) {
    load_tile<T>(s.k, x.k + first * size_t(a.k_stride), a.k_stride, rows, a.dim, 1.f);
    load_tile<T>(s.v, x.v + first * size_t(a.v_stride), a.v_stride, rows, a.v_dim, 1.f);
}

// dk and dv of a tile of keys, over all tiles of queries. Rows of the score tile are keys, columns queries.
// Block x: tile of keys of a sequence; block y: head.
template <class T, int B, int DIM>
__device__ __forceinline__ void attention_bwd_kv(const AttentionBwd& a) {
    constexpr int COLS = B / THREADS_PER_ROW;
    typedef AttentionBwdShared<B, DIM> Shared;
    SMEM(Shared, s);
    const SequencePair seq(a, blockIdx.x / a.tiles);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.keys.length) return;  // the whole block
    const AttentionHead<T> x(a, seq.queries.start, seq.keys.start, head);
    load_keys<T, B, DIM>(s, x, first, seq.keys.length - first, a);
    Rows<DIM> dk = {}, dv = {};
    for (unsigned query = 0; query < seq.queries.length; query += B) {
        load_queries<T, B, DIM>(s, x, query, seq.queries.length - query, a);
        __syncthreads();  // all four tiles are there
        float p[ROWS_PER_THREAD][COLS], ds[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.k, s.q, a.dim);
        dot_rows(ds, s.v, s.d_o, a.v_dim);
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
    const size_t key = size_t(seq.keys.start) + first;
    store_rows(out<T>(a.dk) + key * a.k_stride + head * a.dim, a.k_stride, dk, seq.keys.length - first, a.dim, 1.f);
    store_rows(out<T>(a.dv) + key * a.v_stride + head * a.v_dim, a.v_stride, dv, seq.keys.length - first, a.v_dim, 1.f);
}
ATTENTION_KERNEL(attention_bwd_kv, 32, 32, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 32, 64, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 16, 96, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 16, 128, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_kv, 8, 256, AttentionBwd)

// dq of a tile of queries, over all tiles of keys. Rows of the score tile are queries, columns keys.
// Block x: tile of queries of a sequence; block y: head.
template <class T, int B, int DIM>
__device__ __forceinline__ void attention_bwd_q(const AttentionBwd& a) {
    constexpr int COLS = B / THREADS_PER_ROW;
    typedef AttentionBwdShared<B, DIM> Shared;
    SMEM(Shared, s);
    const SequencePair seq(a, blockIdx.x / a.tiles);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.queries.length) return;  // the whole block
    const AttentionHead<T> x(a, seq.queries.start, seq.keys.start, head);
    load_queries<T, B, DIM>(s, x, first, seq.queries.length - first, a);
    Rows<DIM> dq = {};
    for (unsigned key = 0; key < seq.keys.length; key += B) {
        load_keys<T, B, DIM>(s, x, key, seq.keys.length - key, a);
        __syncthreads();  // all four tiles are there
        float p[ROWS_PER_THREAD][COLS], ds[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.q, s.k, a.dim);
        dot_rows(ds, s.d_o, s.v, a.v_dim);
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r)
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                const bool inside = key + thread_col() + THREADS_PER_ROW * j < seq.keys.length;
                const int row = thread_row() + r;
                ds[r][j] = inside ? expf(p[r][j] - s.lse[row]) * (ds[r][j] - s.delta[row]) : 0.f;
            }
        store_scores(s.ds, ds);
        __syncwarp();  // rows of ds stay within their warp
        accumulate_rows(dq, s.ds, s.k);
        __syncthreads();  // k, v and ds are done with
    }
    const Sequence again = SequencePair(a, computed_here(blockIdx.x) / a.tiles).queries;  // not kept in registers
    T* to = out<T>(a.dq) + (size_t(again.start) + first) * a.q_stride + head * a.dim;
    store_rows(to, a.q_stride, dq, again.length - first, a.dim, a.scale);
}
ATTENTION_KERNEL(attention_bwd_q, 32, 32, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 32, 64, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 16, 96, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 16, 128, AttentionBwd)
ATTENTION_KERNEL(attention_bwd_q, 8, 256, AttentionBwd)

// Up to 288 tokens at 32 columns, else up to 128: two blocks of eight warps leave 128 registers to a thread, of which dk
// and dv of 64 columns take half.
ATTENTION_MMA_KERNEL(attention_bwd_short, 32, AttentionBwd, 576)
ATTENTION_MMA_KERNEL(attention_bwd_short, 64, AttentionBwd, 256, 2)
ATTENTION_MMA_KERNEL(attention_bwd_short, 80, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_short, 96, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_short, 128, AttentionBwd, 256)

// Long sequences on tensor cores. Names: warps of a block x rows of a warp.
#define ATTENTION_BWD_LONG(pass, warps, tiles, rows)                                                          \
    template <class T, int DIM, int VDIM = DIM>                                                               \
    __device__ __forceinline__ void attention_bwd_long_##pass##_##warps##x##rows(const AttentionBwd& a) {      \
        attention_bwd_long_##pass<T, DIM, VDIM, tiles, warps>(a);                                              \
    }
ATTENTION_BWD_LONG(q, 4, 2, 32)
ATTENTION_BWD_LONG(q, 4, 1, 16)
ATTENTION_BWD_LONG(q, 8, 1, 16)
ATTENTION_BWD_LONG(kv, 4, 2, 32)
ATTENTION_BWD_LONG(kv, 6, 1, 16)
ATTENTION_BWD_LONG(kv, 8, 1, 16)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 32, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 64, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 80, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x32, 96, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_8x16, 128, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_long_q_4x16, 256, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_4x32, 32, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_4x32, 64, AttentionBwd, 128)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_6x16, 80, AttentionBwd, 192, 2)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_8x16, 96, AttentionBwd, 256)
ATTENTION_MMA_KERNEL(attention_bwd_long_kv_8x16, 128, AttentionBwd, 256)
template <class T, int DIM>
__device__ __forceinline__ void attention_bwd_long_pairs_4x16(const AttentionBwd& a) {
    attention_bwd_long_pairs<T, DIM, 4>(a);
}
ATTENTION_MMA_KERNEL(attention_bwd_long_pairs_4x16, 256, AttentionBwd, 256)
ATTENTION_NARROW_KERNEL(attention_bwd_long_q_8x16, 256, 64, AttentionBwd, 256)
ATTENTION_NARROW_KERNEL(attention_bwd_long_kv_8x16, 256, 64, AttentionBwd, 256)

struct AttentionSum {
    const float* parts;  // [parts, rows, width], `step` elements from part to part
    void* to;            // [rows, width] T, `stride` elements from row to row
    size_t step;
    unsigned rows, width, stride, count;
};

// A gradient from its parts, added in their order. Block x: threads over groups of four columns of all rows.
template <class T>
__device__ void attention_bwd_sum(const AttentionSum& a) {
    const unsigned groups = a.width / 4;
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const size_t row = at / groups, column = at % groups * 4;
    if (row >= a.rows) return;
    float sum[4] = {};
#pragma unroll 8
    for (unsigned s = 0; s < a.count; ++s) {
        const Vec<float, 4> part = load_vec<float, 4>(a.parts + s * a.step + row * a.width + column);
        UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += part[i];
    }
    Vec<T, 4> packed;
    UNROLL
    for (int i = 0; i < 4; ++i) packed[i] = from_f32<T>(sum[i]);
    store_vec<T, 4>(out<T>(a.to) + row * a.stride + column, packed);
}
KERNEL_DTYPE(attention_bwd_sum, bf16, bf16, AttentionSum)
KERNEL_DTYPE(attention_bwd_sum, f16, f16, AttentionSum)
