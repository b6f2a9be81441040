// Attention over sequences of any length on tensor cores. A warp keeps its rows (queries or keys) in registers; the rows
// of the other side stream through shared memory, 64 at a time, one stage on its way while the other is worked on.
//
// TILES tiles of 16 rows a warp: what a warp reads from shared memory (4 cycles for two right operands) serves 2 · TILES
// products. With one tile, reading would take longer than multiplying. WARPS warps a block at most, fewer where that
// shares the rows of the longest sequence evenly among its `tiles` blocks.
// Block x: block of rows, fastest, so that what streams is read from device memory once; then head; then sequence.
#pragma once
#include "attention_mma.cuh"

#define LONG_STAGE 4  // tiles of each operand that streams

// Where a block is.
struct LongBlock {
    Sequence seq;
    unsigned sequence_index, head, first;  // row of the sequence
    __device__ __forceinline__ LongBlock(
        const int* cu_seqlens, unsigned tokens, unsigned heads, unsigned tiles, unsigned rows)
        : sequence_index(blockIdx.x / tiles / heads), head(blockIdx.x / tiles % heads), first(blockIdx.x % tiles * rows) {
        seq = sequence(cu_seqlens, sequence_index, tokens);
    }
};

// Starts copying the next 64 rows of two operands, of which `rows` exist, into the tiles from `to` on; the second's lie
// behind the first's.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void copy_stage(const SharedRows<T, DIM, STRIDE>& to, const T* x, unsigned x_stride, const T* y,
                                           unsigned y_stride, unsigned rows, unsigned dim) {
    constexpr unsigned PIECES = DIM / 8;
    for (unsigned i = computed_here(threadIdx.x); i < LONG_STAGE * TILE * PIECES; i += blockDim.x) {
        const unsigned row = i / PIECES, piece = i % PIECES;
        const bool inside = row < rows && 8 * piece < dim;
        T* at = to.piece(row / TILE, row % TILE, piece);
        cp_async_16(at, inside ? x + size_t(row) * x_stride + 8 * piece : x, inside ? 16 : 0);
        cp_async_16(at + LONG_STAGE * STRIDE, inside ? y + size_t(row) * y_stride + 8 * piece : y, inside ? 16 : 0);
    }
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct AttentionFwd {
    const void* qkv;        // [tokens, 3, heads, dim] T
    const int* cu_seqlens;  // [sequences + 1]
    void* o;                // [tokens, heads, dim] T
    float* lse;             // [heads, tokens]
    unsigned tokens, heads, dim;
    unsigned tiles;  // of the rows a block takes, in the longest sequence
    float scale;
    unsigned pad;
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
    const LongBlock block(a.cu_seqlens, a.tokens, a.heads, a.tiles, warps * TILES * TILE);
    const unsigned length = block.seq.length;
    if (block.first >= length) return;  // the whole block
    const Rows stages{reinterpret_cast<T*>(memory)};
    const unsigned row = a.heads * a.dim, stride = 3 * row;
    const T* q = in<T>(a.qkv) + block.seq.start * size_t(stride) + block.head * a.dim;
    const T *k = q + row, *v = k + row;

    copy_tiles(stages.from(2 * LONG_STAGE), q + size_t(block.first) * stride, stride, 0, warps * TILES,
               length - block.first, a.dim, threadIdx.x, blockDim.x);
    copy_stage(stages, k, stride, v, stride, length, a.dim);
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
            const size_t next = size_t(key + KEYS) * stride;
            copy_stage(stages.from((stage ^ 1) * 2 * LONG_STAGE), k + next, stride, v + next, stride, length - key - KEYS,
                       a.dim);
            cp_async_commit();
        }
        const Rows keys = stages.from(stage * 2 * LONG_STAGE);
        if (first < length && key + KEYS <= length) {
#pragma unroll 1
            for (int c = 0; c < LONG_STAGE; c += CHUNK)
                x.template attend<CHUNK * TILE, true>(keys, keys.from(LONG_STAGE), c, 0, a.scale * LOG2_E);
        } else if (first < length) {
            for (int c = 0; key + c * TILE < length; c += CHUNK)
                x.template attend<CHUNK * TILE, false>(
                    keys, keys.from(LONG_STAGE), c, int(length - key) - c * TILE, a.scale * LOG2_E);
        }
    }
    const unsigned stage = (length + KEYS - 1) / KEYS % 2;  // not the last, which others may be reading
    if (first >= length) return;  // whole warps leave; no block barrier follows
    const unsigned mine_at = stage * 2 * LONG_STAGE + mine;
    x.finish(stages, mine_at, a.lse + size_t(block.head) * a.tokens + block.seq.start + first, length - first, a.scale);
    __syncwarp();  // o is there
    UNROLL
    for (int m = 0; m < TILES; ++m)
        store_tile(out<T>(a.o) + size_t(block.seq.start + first) * row + block.head * a.dim, row, stages.from(mine_at), m,
                   length - first, a.dim);
}
