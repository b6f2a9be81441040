// Self-attention over packed sequences: o = softmax(scale q kᵀ) v per sequence and head, with a running softmax over key
// tiles (arXiv 2205.14135, algorithm 1). Reference and gradient: src/ops/attention.
// no-mma-ok: attention_fwd_32x32_* f32 arithmetic, for what the tensor-core kernels do not take
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
    const Sequence seq = sequence(a.cu_seqlens, blockIdx.x / a.tiles, a.tokens);
    const unsigned first = blockIdx.x % a.tiles * B, head = blockIdx.y;
    if (first >= seq.length) return;  // the whole block
    const size_t stride = size_t(3) * a.heads * a.dim;
    const T* q = in<T>(a.qkv) + seq.start * stride + head * a.dim;
    const T* k = q + a.heads * a.dim;
    const T* v = k + a.heads * a.dim;

    load_tile<T>(s.q, q + first * stride, stride, seq.length - first, a.dim, a.scale);
    Rows<DIM> o = {};
    float max[ROWS_PER_THREAD], sum[ROWS_PER_THREAD];  // over the keys so far
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r) {
        max[r] = -INFINITY;
        sum[r] = 0.f;
    }
    for (unsigned key = 0; key < seq.length; key += B) {
        load_tile<T>(s.kv, k + key * stride, stride, seq.length - key, a.dim, 1.f);
        __syncthreads();  // q and k are there
        float p[ROWS_PER_THREAD][COLS];
        dot_rows(p, s.q, s.kv, a.dim);
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r) {
            float top = -INFINITY;
            UNROLL
            for (int j = 0; j < COLS; ++j) {
                if (key + thread_col() + THREADS_PER_ROW * j >= seq.length) p[r][j] = -INFINITY;
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
        load_tile<T>(s.kv, v + key * stride, stride, seq.length - key, a.dim, 1.f);
        __syncthreads();  // v is there
        accumulate_rows(o, s.p, s.kv);
        __syncthreads();  // v and p are done with
    }
    const size_t token = seq.start + first;
    const size_t row = size_t(a.heads) * a.dim;
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r) {
        o.scale(r, 1.f / sum[r]);
        if (thread_col() == 0 && first + thread_row() + r < seq.length)
            a.lse[size_t(head) * a.tokens + token + thread_row() + r] = max[r] + logf(sum[r]);
    }
    store_rows(out<T>(a.o) + token * row + head * a.dim, row, o, seq.length - first, a.dim, 1.f);
}
ATTENTION_KERNEL(attention_fwd, 32, 32, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 64, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 96, AttentionFwd)
ATTENTION_KERNEL(attention_fwd, 32, 128, AttentionFwd)

// Short sequences on tensor cores: queries, keys and values of one head of one sequence lie in shared memory, every
// byte on its way before the first is used; then each warp takes 16 queries at a time through all keys, with no barrier.
// Blocks of neighbouring heads run side by side, so that together they read whole stretches of qkv.
// Block x: head, fastest, of a sequence. Dynamic shared memory: 3 · 16 · DIM elements for each of `tiles` tiles of 16
// tokens of the longest sequence.
template <class T, int DIM>
__device__ __forceinline__ void attention_fwd_short(const AttentionFwd& a) {
    constexpr int KEYS = 64;  // at a time: scores of 16 x 64 take 32 registers
    typedef SharedRows<T, DIM, 3 * TILE * DIM> Rows;
    DYN_SMEM(memory);
    const unsigned head = blockIdx.x % a.heads;
    const Sequence seq = sequence(a.cu_seqlens, blockIdx.x / a.heads, a.tokens);
    const unsigned length = min(seq.length, TILE * a.tiles), tiles = (length + TILE - 1) / TILE;
    const Rows q{reinterpret_cast<T*>(memory)}, k{q.first + Rows::ELEMENTS}, v{k.first + Rows::ELEMENTS};
    const size_t row = size_t(a.heads) * a.dim, stride = 3 * row;
    const T* from = in<T>(a.qkv) + seq.start * stride + head * a.dim;

    copy_tiles(q, from, stride, 0, tiles, length, a.dim, threadIdx.x, blockDim.x);
    copy_tiles(k, from + row, stride, 0, tiles, length, a.dim, threadIdx.x, blockDim.x);
    copy_tiles(v, from + 2 * row, stride, 0, tiles, length, a.dim, threadIdx.x, blockDim.x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // q, k and v are there
    for (unsigned tile = warp_id(); tile < tiles; tile += blockDim.x / WARP) {
        QueryTiles<T, DIM, 1> x;
        x.start(q, tile);
        for (unsigned key = 0; key < length; key += KEYS)
            x.template attend<KEYS, false>(k, v, key / TILE, int(length - key), a.scale * LOG2_E);
        __syncwarp();  // the queries are done with
        const unsigned token = TILE * tile;
        x.finish(q, tile, a.lse + size_t(head) * a.tokens + seq.start + token, length - token, a.scale);
        __syncwarp();  // o is there
        store_tile(out<T>(a.o) + seq.start * row + head * a.dim, row, q, tile, length, a.dim);
    }
}
ATTENTION_MMA_KERNEL(attention_fwd_short, 32, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 64, AttentionFwd, 512)
ATTENTION_MMA_KERNEL(attention_fwd_short, 80, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 96, AttentionFwd, 192)
ATTENTION_MMA_KERNEL(attention_fwd_short, 128, AttentionFwd, 192, 1)

// Long sequences on tensor cores: attention_long.cuh. Names: warps of a block x rows of a warp.
template <class T, int DIM>
__device__ __forceinline__ void attention_fwd_long_4x32(const AttentionFwd& a) {
    attention_fwd_long<T, DIM, 2, 4>(a);
}
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 32, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 64, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 80, AttentionFwd, 128)
ATTENTION_MMA_KERNEL(attention_fwd_long_4x32, 96, AttentionFwd, 128)
template <class T, int DIM>
__device__ __forceinline__ void attention_fwd_long_8x16(const AttentionFwd& a) {
    attention_fwd_long<T, DIM, 1, 8>(a);
}
ATTENTION_MMA_KERNEL(attention_fwd_long_8x16, 128, AttentionFwd, 256)
