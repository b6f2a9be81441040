// Attention over sequences of any length on tensor cores. A warp keeps its rows (queries or keys) in registers; the rows
// of the other side stream through shared memory, a stage of 64 or 32 at a time, one on its way while the other is worked
// on.
//
// TILES tiles of 16 rows a warp: what a warp reads from shared memory (4 cycles for two right operands) serves 2 · TILES
// products. With one tile, reading would take longer than multiplying. WARPS warps a block at most, fewer where that
// shares the rows of the longest sequence evenly among its `tiles` blocks.
//
// Block x: block of rows, fastest, so that what streams is read from device memory once; then head; then sequence.
// Block y: part of what streams, where so few blocks have rows that most multiprocessors would be idle. Each part gives
// its result in f32, and a kernel of its own adds them in the order of the parts (arXiv 2311.01282, section 4).
#pragma once
#include "attention_mma.cuh"

#define LONG_STAGE 4  // tiles of each operand that streams, of up to 128 columns

// Where a block is.
struct LongBlock {
    unsigned sequence_index, head, first;  // row of the sequence
    SequencePair seq;
    template <class Args>
    __device__ __forceinline__ LongBlock(const Args& a, unsigned rows)
        : sequence_index(blockIdx.x / a.tiles / a.heads),
          head(blockIdx.x / a.tiles % a.heads),
          first(blockIdx.x % a.tiles * rows),
          seq(a, sequence_index) {}
};

// This block's part of what streams, in whole stages of `rows` but for the end; the last parts may be empty.
__device__ __forceinline__ Sequence streaming(const Sequence& seq, unsigned rows) {
    const unsigned stages = (seq.length + rows - 1) / rows, each = (stages + gridDim.y - 1) / gridDim.y * rows;
    const unsigned from = min(blockIdx.y * each, seq.length);
    return {seq.start + from, min(each, seq.length - from)};
}

// Starts copying the next STAGE tiles of two operands, of which `rows` rows exist, into the tiles from `to` on; the
// second's lie behind the first's.
template <int STAGE, class T, int DIM, int STRIDE>
__device__ __forceinline__ void copy_stage(const SharedRows<T, DIM, STRIDE>& to, const T* x, unsigned x_stride, const T* y,
                                           unsigned y_stride, unsigned rows, unsigned dim) {
    constexpr unsigned PIECES = DIM / 8;
    for (unsigned i = computed_here(threadIdx.x); i < STAGE * TILE * PIECES; i += blockDim.x) {
        const unsigned row = i / PIECES, piece = i % PIECES;
        const bool inside = row < rows && 8 * piece < dim;
        T* at = to.piece(row / TILE, row % TILE, piece);
        cp_async_16(at, inside ? x + size_t(row) * x_stride + 8 * piece : x, inside ? 16 : 0);
        cp_async_16(at + STAGE * STRIDE, inside ? y + size_t(row) * y_stride + 8 * piece : y, inside ? 16 : 0);
    }
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct AttentionFwd {
    const void* q;    // [queries, heads, dim] T, q_stride elements from query to query
    const void* k;    // [keys, heads, dim] T, k_stride likewise
    const void* v;    // [keys, heads, dim] T, v_stride
    const int* cu_q;  // [sequences + 1]
    const int* cu_k;  // [sequences + 1]
    void* o;          // [queries, heads, dim] T; of parts: [parts, queries, heads, dim] float
    float* lse;       // [heads, queries]; of parts: [parts, heads, queries]
    unsigned q_stride, k_stride, v_stride;
    unsigned queries, keys, heads, dim;
    unsigned tiles;      // of the rows a block takes, in the longest sequence of queries
    unsigned key_tiles;  // short: of 16 keys, in the longest sequence of keys
    float scale;
};

// Dynamic shared memory: 16 tiles of 16 · DIM elements, two stages of k and v. The queries come through the second.
template <class T, int DIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_fwd_long(const AttentionFwd& a) {
    constexpr int KEYS = LONG_STAGE * TILE;
    constexpr int CHUNK = DIM <= 80 ? LONG_STAGE : LONG_STAGE / 2;  // tiles of keys at a time: as registers allow
    static_assert(TILES * WARPS <= 2 * LONG_STAGE, "the queries fit into a stage");
    typedef SharedRows<T, DIM, TILE * DIM> Rows;
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a, warps * TILES * TILE);
    const unsigned queries = block.seq.queries.length;
    if (block.first >= queries) return;  // the whole block
    const Rows stages{reinterpret_cast<T*>(memory)};
    const Sequence part = streaming(block.seq.keys, KEYS);
    const unsigned length = part.length, row = a.heads * a.dim;
    const size_t token = size_t(block.seq.queries.start) + block.first;
    const T* k = in<T>(a.k) + part.start * size_t(a.k_stride) + block.head * a.dim;
    const T* v = in<T>(a.v) + part.start * size_t(a.v_stride) + block.head * a.dim;

    copy_tiles(stages.from(2 * LONG_STAGE), in<T>(a.q) + token * a.q_stride + block.head * a.dim, a.q_stride, 0,
               warps * TILES, queries - block.first, a.dim, warp_id(), blockDim.x / WARP);
    copy_stage<LONG_STAGE>(stages, k, a.k_stride, v, a.v_stride, length, a.dim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the queries are there
    QueryTiles<T, DIM, TILES> x;
    x.start(stages, 2 * LONG_STAGE + mine);
    const unsigned first = block.first + mine * TILE;  // of this warp
    for (unsigned key = 0; key < length; key += KEYS) {
        const unsigned stage = key / KEYS % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (key + KEYS < length) {
            copy_stage<LONG_STAGE>(stages.from((stage ^ 1) * 2 * LONG_STAGE), k + size_t(key + KEYS) * a.k_stride,
                                   a.k_stride, v + size_t(key + KEYS) * a.v_stride, a.v_stride, length - key - KEYS, a.dim);
            cp_async_commit();
        }
        const Rows keys = stages.from(stage * 2 * LONG_STAGE);
        if (first < queries && key + KEYS <= length) {
#pragma unroll 1
            for (int c = 0; c < LONG_STAGE; c += CHUNK)
                x.template attend<CHUNK * TILE, true>(keys, keys.from(LONG_STAGE), c, 0, a.scale * LOG2_E);
        } else if (first < queries) {
            for (int c = 0; key + c * TILE < length; c += CHUNK)
                x.template attend<CHUNK * TILE, false>(
                    keys, keys.from(LONG_STAGE), c, int(length - key) - c * TILE, a.scale * LOG2_E);
        }
    }
    const unsigned stage = (length + KEYS - 1) / KEYS % 2;  // not the last, which others may be reading
    if (first >= queries) return;  // whole warps leave; no block barrier follows
    const size_t query = size_t(block.seq.queries.start) + first;
    x.close(a.lse + (size_t(blockIdx.y) * a.heads + block.head) * a.queries + query, queries - first, a.scale);
    if (gridDim.y > 1) {
        float* to = out<float>(a.o) + (size_t(blockIdx.y) * a.queries + query) * row + block.head * a.dim;
        UNROLL
        for (int m = 0; m < TILES; ++m)
            if (first + TILE * m < queries)
                store_part(to + size_t(TILE * m) * row, row, x.o[m], queries - first - TILE * m, a.dim, x.sum[m][0],
                           x.sum[m][1]);
        return;
    }
    const unsigned mine_at = stage * 2 * LONG_STAGE + mine;
    x.stage(stages, mine_at);
    __syncwarp();  // o is there
    UNROLL
    for (int m = 0; m < TILES; ++m)
        store_tile(out<T>(a.o) + query * row + block.head * a.dim, row, stages.from(mine_at), m, queries - first, a.dim);
}
