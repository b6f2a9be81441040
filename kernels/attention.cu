// Attention over packed sequences: o = softmax(scale q kᵀ) v per sequence and head, with a running softmax over key tiles
// (arXiv 2205.14135, algorithm 1). Self-attention is the case where q, k and v are views of one tensor. Queries of a
// sequence without keys get zero. Values may have fewer columns (v_dim) than queries and keys (dim). Reference and
// gradient: src/ops/attention.
// no-mma-ok: attention_fwd_32x32_* f32 arithmetic, for what the tensor-core kernels do not take
// no-mma-ok: attention_fwd_16x16_* f32 arithmetic, for what the tensor-core kernels do not take
// spill-ok: attention_fwd_short_hd64_* head and first query, once a tile: 128 registers let four blocks of four warps in
// no-mma-ok: attention_fwd_combine_* a weighted sum of parts, bound by bytes
#include "attention_long.cuh"

template <int B, int DIM>
struct alignas(16) AttentionFwdShared {
    Tile<B, DIM> q;
    Tile<B, DIM> kv;  // k while scores are made, then v: both would not fit beside q at 128 columns
    Tile<B, B> p;
};

// Block x: tile of queries of a sequence; block y: head.
template <class T, int B, int DIM>
__device__ __forceinline__ void attention_fwd(const AttentionFwd& a) {
    constexpr int COLS = B / THREADS_PER_ROW;
    typedef AttentionFwdShared<B, DIM> Shared;
    SMEM(Shared, s);
    const SequencePair seq(a, blockIdx.x / a.tiles);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.queries.length) return;  // the whole block
    const T* q = in<T>(a.q) + (size_t(seq.queries.start) + first) * a.q_stride + head * a.dim;
    const T* k = in<T>(a.k) + seq.keys.start * size_t(a.k_stride) + head * a.dim;
    const T* v = in<T>(a.v) + seq.keys.start * size_t(a.v_stride) + head * a.v_dim;

    load_tile<T>(s.q, q, a.q_stride, seq.queries.length - first, a.dim, a.scale);
    Rows<DIM> o = {};
    float max[ROWS_PER_THREAD], sum[ROWS_PER_THREAD];  // over the keys so far
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r) {
        max[r] = -INFINITY;
        sum[r] = 0.f;
    }
    for (unsigned key = 0; key < seq.keys.length; key += B) {
        load_tile<T>(s.kv, k + key * size_t(a.k_stride), a.k_stride, seq.keys.length - key, a.dim, 1.f);
        __syncthreads();  // q and k are there
        float p[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.q, s.kv, a.dim);
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r) {
            float top = -INFINITY;
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                if (key + thread_col() + THREADS_PER_ROW * j >= seq.keys.length) p[r][j] = -INFINITY;
                top = fmaxf(top, p[r][j]);
            }
            top = fmaxf(max[r], row_max(top));
            const float shrink = expf(max[r] - top);  // 0 in the first tile
            float total = 0.f;
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                p[r][j] = expf(p[r][j] - top);
                total += p[r][j];
            }
            sum[r] = sum[r] * shrink + row_sum(total);
            o.scale(r, shrink);
            max[r] = top;
        }
        store_scores(s.p, p);
        __syncthreads();  // k is done with, p is there
        load_tile<T>(s.kv, v + key * size_t(a.v_stride), a.v_stride, seq.keys.length - key, a.v_dim, 1.f);
        __syncthreads();  // v is there
        accumulate_rows(o, s.p, s.kv);
        __syncthreads();  // v and p are done with
    }
    const size_t token = size_t(seq.queries.start) + first, row = size_t(a.heads) * a.v_dim;
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r) {
        o.scale(r, inverse_sum(sum[r]));
        if (thread_col() == 0 && first + thread_row() + r < seq.queries.length)
            a.lse[size_t(head) * a.queries + token + thread_row() + r] = max[r] + logf(sum[r]);
    }
    store_rows(out<T>(a.o) + token * row + head * a.v_dim, row, o, seq.queries.length - first, a.v_dim, 1.f);
}
ATTENTION_KERNEL(attention_fwd, 32, 32, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 64, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 96, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 128, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 16, 256, AttentionFwd)

// Short sequences on tensor cores: queries, keys and values of one head of one sequence lie in shared memory, every
// byte on its way before the first is used; then each warp takes 16 queries at a time through all keys, with no barrier.
// Blocks of neighbouring heads run side by side, so that together they read whole stretches of qkv. v_dim is dim.
// Block x: head, fastest, of a sequence. Dynamic shared memory: 16 · DIM elements for each of `tiles` tiles of 16 queries
// of the longest sequence, and twice that for each of `key_tiles`.
template <class T, int DIM>
__device__ __forceinline__ void attention_fwd_short(const AttentionFwd& a) {
    constexpr int KEYS = 64;  // at a time: scores of 16 x 64 take 32 registers
    typedef SharedRows<T, DIM, 2 * TILE * DIM> KeyRows;
    typedef SharedRows<T, DIM, TILE * DIM> QueryRows;
    DYN_SMEM(memory);
    const unsigned head = blockIdx.x % a.heads, warps = blockDim.x / WARP;
    const SequencePair seq(a, blockIdx.x / a.heads);
    const unsigned queries = min(seq.queries.length, TILE * a.tiles), keys = min(seq.keys.length, TILE * a.key_tiles);
    const unsigned tiles = (queries + TILE - 1) / TILE, key_tiles = (keys + TILE - 1) / TILE;
    const KeyRows k{reinterpret_cast<T*>(memory)}, v{k.first + KeyRows::ELEMENTS};
    const QueryRows q{k.from(a.key_tiles).first};
    const T* q_from = in<T>(a.q) + seq.queries.start * size_t(a.q_stride) + head * a.dim;
    const T* k_from = in<T>(a.k) + seq.keys.start * size_t(a.k_stride) + head * a.dim;
    const T* v_from = in<T>(a.v) + seq.keys.start * size_t(a.v_stride) + head * a.dim;

    copy_tiles(q, q_from, a.q_stride, 0, tiles, queries, a.dim, warp_id(), warps);
    copy_tiles(k, k_from, a.k_stride, 0, key_tiles, keys, a.dim, warp_id(), warps);
    copy_tiles(v, v_from, a.v_stride, 0, key_tiles, keys, a.dim, warp_id(), warps);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // q, k and v are there
    const float scale = a.scale * LOG2_E;
    for (unsigned tile = warp_id(); tile < tiles; tile += warps) {
        QueryTiles<T, DIM, DIM, 1> x;
        x.start(q, tile);
        unsigned key = 0;
        for (; key + KEYS <= keys; key += KEYS) x.template attend<KEYS, true>(k, v, key / TILE, 0, scale);
        // A key that does not exist costs as much as others, and 65, 197 and 257 tokens leave few.
        const int rest = int(keys - key);
        if (rest > TILE)
            x.template attend<KEYS, false>(k, v, key / TILE, rest, scale);
        else if (rest > 0)
            x.template attend<TILE, false>(k, v, key / TILE, rest, scale);
        const unsigned token = TILE * tile;
        x.close(a.lse + size_t(head) * a.queries + seq.queries.start + token, queries - token, a.scale);
        x.stage(q, tile);
        __syncwarp();  // o is there
        const unsigned row = computed_here(a.heads) * a.dim;  // not kept in registers all the while
        store_tile(out<T>(a.o) + seq.queries.start * size_t(row) + head * a.dim, row, q, tile, queries, a.dim);
    }
}
ATTENTION_MMA_KERNEL(attention_fwd_short, 32, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 64, AttentionFwd, 512)
ATTENTION_MMA_KERNEL(attention_fwd_short, 80, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 96, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 128, AttentionFwd, 192, 1)

// Long sequences on tensor cores: attention_long.cuh. Names: warps of a block x rows of a warp.
template <class T, int DIM, int VDIM = DIM>
__device__ __forceinline__ void attention_fwd_long_4x32(const AttentionFwd& a) {
    attention_fwd_long<T, DIM, VDIM, 2, 4>(a);
}
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 32, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 64, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 80, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 96, AttentionFwd, 128)
template <class T, int DIM>
__device__ __forceinline__ void attention_fwd_long_8x16(const AttentionFwd& a) {
    attention_fwd_long<T, DIM, DIM, 1, 8>(a);
}
ATTENTION_MMA_KERNEL(attention_fwd_long_8x16, 128, AttentionFwd, 256)
ATTENTION_MMA_KERNEL(attention_fwd_long_8x16, 256, AttentionFwd, 256)
// Of values as narrow as SAM-2's memories the results leave registers to 32 rows a warp.
ATTENTION_NARROW_KERNEL(attention_fwd_long_4x32, 256, 64, AttentionFwd, 128)

struct AttentionCombine {
    const float* parts;      // [splits, queries, heads, dim]: o over part of the keys
    const float* part_lse;   // [splits, heads, queries]
    void* o;                 // [queries, heads, dim] T
    float* lse;              // [heads, queries]
    unsigned queries, heads, dim, splits;
};

// o and lse over all keys from those over parts, in the order of the parts: o = Σ exp(lse_s - lse) o_s. A part without
// keys has lse -inf and weight 0. Block x: a query per warp; block y: head.
template <class T>
__device__ void attention_fwd_combine(const AttentionCombine& a) {
    const unsigned query = blockIdx.x * (blockDim.x / WARP) + warp_id(), head = blockIdx.y;
    if (query >= a.queries) return;  // whole warps leave; no block barrier follows
    const float* lse = a.part_lse + size_t(head) * a.queries + query;
    const size_t step = size_t(a.heads) * a.queries, row = size_t(query) * a.heads + head;
    float top = -INFINITY;
    for (unsigned s = lane_id(); s < a.splits; s += WARP) top = fmaxf(top, lse[s * step]);
    top = warp_max(top);
    // -inf, and not what -inf - -inf gives; NaN stays NaN.
    auto weight = [&](unsigned s) {
        const float x = lse[s * step];
        return x == -INFINITY ? 0.f : expf(x - top);
    };
    float sum = 0.f;
    for (unsigned s = lane_id(); s < a.splits; s += WARP) sum += weight(s);
    sum = warp_sum(sum);
    if (lane_id() == 0) a.lse[size_t(head) * a.queries + query] = top + logf(sum);
    for (unsigned c = 4 * lane_id(); c < a.dim; c += 4 * WARP) {
        float o[4] = {};
#pragma unroll 8
        for (unsigned s = 0; s < a.splits; ++s) {
            const Vec<float, 4> part = load_vec<float, 4>(a.parts + (s * step + row) * a.dim + c);
            const float factor = weight(s);
            UNROLL
            for (int i = 0; i < 4; ++i) o[i] += factor * part[i];
        }
        Vec<T, 4> packed;
        UNROLL
        for (int i = 0; i < 4; ++i) packed[i] = from_f32<T>(o[i] * inverse_sum(sum));
        store_vec<T, 4>(out<T>(a.o) + row * a.dim + c, packed);
    }
}
KERNEL_DTYPE(attention_fwd_combine, bf16, bf16, AttentionCombine)
KERNEL_DTYPE(attention_fwd_combine, f16, f16, AttentionCombine)
