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

// Two stages of COUNT tiles of what streams: rows of DIM columns and, behind them, rows of VDIM columns.
template <class T, int DIM, int VDIM, int COUNT>
struct Stages {
    typedef SharedRows<T, DIM, TILE * DIM> Wide;
    typedef SharedRows<T, VDIM, TILE * VDIM> Narrow;
    static constexpr int TILES = COUNT, ELEMENTS = COUNT * TILE * (DIM + VDIM);
    T* first;
    __device__ __forceinline__ Wide wide(unsigned stage) const { return {first + stage * ELEMENTS}; }
    __device__ __forceinline__ Narrow narrow(unsigned stage) const { return {wide(stage).from(COUNT).first}; }
    // Where a stage begins, or, with number 2, what lies behind both, as rows of VDIM columns.
    __device__ __forceinline__ Narrow place(unsigned stage) const { return {first + stage * ELEMENTS}; }

    // Starts copying rows of x and y, of which `rows` exist, with `dim` and `v_dim` columns, into a stage.
    __device__ __forceinline__ void copy(unsigned stage, const T* x, unsigned x_stride, const T* y, unsigned y_stride,
                                         unsigned rows, unsigned dim, unsigned v_dim) const {
        constexpr unsigned PIECES = DIM / 8, V_PIECES = VDIM / 8;
        const Wide to = wide(stage);
        const Narrow to_y = narrow(stage);
        for (unsigned i = computed_here(threadIdx.x); i < COUNT * TILE * PIECES; i += blockDim.x) {
            const unsigned row = i / PIECES, piece = i % PIECES;
            const bool inside = row < rows && 8 * piece < dim, y_inside = row < rows && 8 * piece < v_dim;
            cp_async_16(to.piece(row / TILE, row % TILE, piece), inside ? x + size_t(row) * x_stride + 8 * piece : x,
                        inside ? 16 : 0);
            if (VDIM == DIM)
                cp_async_16(to_y.piece(row / TILE, row % TILE, piece),
                            y_inside ? y + size_t(row) * y_stride + 8 * piece : y, y_inside ? 16 : 0);
        }
        if constexpr (VDIM != DIM)
            for (unsigned i = computed_here(threadIdx.x); i < COUNT * TILE * V_PIECES; i += blockDim.x) {
                const unsigned row = i / V_PIECES, piece = i % V_PIECES;
                const bool inside = row < rows && 8 * piece < v_dim;
                cp_async_16(to_y.piece(row / TILE, row % TILE, piece),
                            inside ? y + size_t(row) * y_stride + 8 * piece : y, inside ? 16 : 0);
            }
    }
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct AttentionFwd {
    const void* q;    // [queries, heads, dim] T, q_stride elements from query to query
    const void* k;    // [keys, heads, dim] T, k_stride likewise
    const void* v;    // [keys, heads, v_dim] T, v_stride
    const int* cu_q;  // [sequences + 1]
    const int* cu_k;  // [sequences + 1]
    void* o;          // [queries, heads, v_dim] T; of parts: [parts, queries, heads, v_dim] float
    float* lse;       // [heads, queries]; of parts: [parts, heads, queries]
    unsigned q_stride, k_stride, v_stride;
    unsigned queries, keys, heads, dim, v_dim;
    unsigned tiles;      // of the rows a block takes, in the longest sequence of queries
    unsigned key_tiles;  // short: of 16 keys, in the longest sequence of keys
    float scale;
    unsigned pad;
};

// Dynamic shared memory: two stages of k and v, each 4 tiles of 16 · (DIM + VDIM) elements. The queries come through
// the second while the first is on its way, or, where values are too narrow for that, through both before.
template <class T, int DIM, int VDIM, int TILES, int WARPS>
__device__ __forceinline__ void attention_fwd_long(const AttentionFwd& a) {
    constexpr int KEYS = LONG_STAGE * TILE;
    // Tiles of keys at a time: as registers allow, of which two tiles of 256 columns of q take half.
    constexpr int CHUNK = DIM <= 80 ? LONG_STAGE : TILES * DIM <= 256 ? LONG_STAGE / 2 : 1;
    typedef Stages<T, DIM, VDIM, LONG_STAGE> Staged;
    constexpr int QUERIES = TILES * WARPS * TILE * DIM;
    constexpr bool BESIDE = QUERIES <= Staged::ELEMENTS;
    static_assert(QUERIES <= (BESIDE ? 1 : 2) * Staged::ELEMENTS, "the queries fit");
    DYN_SMEM(memory);
    const unsigned warps = blockDim.x / WARP, mine = warp_id() * TILES;
    const LongBlock block(a, warps * TILES * TILE);
    const unsigned queries = block.seq.queries.length;
    if (block.first >= queries) return;  // the whole block
    const Staged stages{reinterpret_cast<T*>(memory)};
    const Sequence part = streaming(block.seq.keys, KEYS);
    const unsigned length = part.length;
    const size_t token = size_t(block.seq.queries.start) + block.first;
    const T* k = in<T>(a.k) + part.start * size_t(a.k_stride) + block.head * a.dim;
    const T* v = in<T>(a.v) + part.start * size_t(a.v_stride) + block.head * a.v_dim;

    copy_tiles(stages.wide(BESIDE), in<T>(a.q) + token * a.q_stride + block.head * a.dim, a.q_stride, 0, warps * TILES,
               queries - block.first, a.dim, warp_id(), blockDim.x / WARP);
    if (BESIDE) stages.copy(0, k, a.k_stride, v, a.v_stride, length, a.dim, a.v_dim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the queries are there
    QueryTiles<T, DIM, VDIM, TILES> x;
    x.start(stages.wide(BESIDE), mine);
    if (!BESIDE) {
        __syncthreads();  // all warps have theirs
        if (length) stages.copy(0, k, a.k_stride, v, a.v_stride, length, a.dim, a.v_dim);
        cp_async_commit();
    }
    const unsigned first = block.first + mine * TILE;  // of this warp
    for (unsigned key = 0; key < length; key += KEYS) {
        const unsigned stage = key / KEYS % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (key + KEYS < length) {
            stages.copy(stage ^ 1, k + size_t(key + KEYS) * a.k_stride, a.k_stride, v + size_t(key + KEYS) * a.v_stride,
                        a.v_stride, length - key - KEYS, a.dim, a.v_dim);
            cp_async_commit();
        }
        if (first < queries && key + KEYS <= length) {
#pragma unroll 1
            for (int c = 0; c < LONG_STAGE; c += CHUNK)
                x.template attend<CHUNK * TILE, true>(stages.wide(stage), stages.narrow(stage), c, 0, a.scale * LOG2_E);
        } else if (first < queries) {
            for (int c = 0; key + c * TILE < length; c += CHUNK)
                x.template attend<CHUNK * TILE, false>(
                    stages.wide(stage), stages.narrow(stage), c, int(length - key) - c * TILE, a.scale * LOG2_E);
        }
    }
    const unsigned stage = (length + KEYS - 1) / KEYS % 2;  // not the last, which others may be reading
    if (first >= queries) return;  // whole warps leave; no block barrier follows
    const unsigned row = a.heads * a.v_dim, rows = queries - first;
    const size_t query = size_t(block.seq.queries.start) + first;
    x.close(a.lse + (size_t(blockIdx.y) * a.heads + block.head) * a.queries + query, rows, a.scale);
    if (gridDim.y > 1) {
        float* to = out<float>(a.o) + (size_t(blockIdx.y) * a.queries + query) * row + block.head * a.v_dim;
        UNROLL
        for (int m = 0; m < TILES; ++m)
            if (unsigned(TILE * m) < rows)
                store_part(to + size_t(TILE * m) * row, row, x.o[m], rows - TILE * m, a.v_dim, x.sum[m][0],
                           x.sum[m][1]);
        return;
    }
    const typename Staged::Narrow to = stages.place(stage).from(mine);
    x.stage(to, 0);
    __syncwarp();  // o is there
    UNROLL
    for (int m = 0; m < TILES; ++m)
        store_tile(out<T>(a.o) + query * row + block.head * a.v_dim, row, to, m, rows, a.v_dim);
}
