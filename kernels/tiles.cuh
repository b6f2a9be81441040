// 16-bit operands of tensor cores: rows in shared memory, and the fragments that a warp takes from them.
#pragma once
#include "ptx.cuh"

#define TILE 16  // rows of a matrix product

// Rows of DIM elements in tiles of 16, in pieces of 16 bytes. Tiles of one number of all matrices lie side by side
// (STRIDE elements from number to number), so that the offsets between matrices are constants.
// Pieces are exchanged within a row such that the same piece of eight neighbouring rows lies in different banks:
// ldmatrix and cp.async take 4 passes for 512 bytes, the fewest possible.
template <class T, int DIM, int STRIDE>
struct SharedRows {
    static constexpr int WIDTH = DIM, ELEMENTS = TILE * DIM;
    T* first;
    __device__ __forceinline__ SharedRows from(unsigned tile) const { return {first + tile * STRIDE}; }
    // Row 0 to 15 of a tile.
    __device__ __forceinline__ T* piece(unsigned tile, unsigned row, unsigned piece) const {
        return first + tile * STRIDE + row * DIM + (piece ^ (row / ROWS & (2 * STEPS - 1))) * 8;
    }
    // The same, piece 2 · step + `half`, for a lane whose row and half do not change: all but the step is computed once.
    __device__ __forceinline__ SharedAddress half(unsigned tile, unsigned row, unsigned half, unsigned step) const {
        return (shared_address(piece(tile, row, half)) ^ step % STEPS * 32) + step / STEPS * STEPS * 32;
    }

  private:
    // Pieces are exchanged within STEPS pairs, the same way in ROWS neighbouring rows, which fill the banks.
    static constexpr unsigned STEPS = DIM % 64 == 0 ? 4 : DIM % 32 == 0 ? 2 : 1, ROWS = 4 / STEPS;
};

// Starts copying tiles [first, end) of x (rows of `stride` elements), of which `rows` rows and `dim` columns exist, a
// multiple of 8; missing ones become zero. `warps` warps share the tiles, this is number `warp`.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void copy_tiles(const SharedRows<T, DIM, STRIDE>& to, const T* x, unsigned stride,
                                           unsigned first, unsigned end, unsigned rows, unsigned dim, unsigned warp,
                                           unsigned warps) {
    // Where a row takes whole turns of the warp, a lane has one column, and its rows are a fixed number apart.
    constexpr unsigned PIECES = DIM / 8, APART = WARP % PIECES == 0 ? WARP / PIECES : 0;
    const unsigned lane = computed_here(threadIdx.x) % WARP;
    for (unsigned tile = first + warp; tile < end; tile += warps) {
        const T* from = x + size_t(tile * TILE) * stride;
        if (APART) from += size_t(lane / PIECES) * stride + 8 * (lane % PIECES);
        UNROLL
        for (unsigned i = 0; i < TILE * PIECES / WARP; ++i) {
            const unsigned row = APART ? lane / PIECES + i * APART : (i * WARP + lane) / PIECES,
                           piece = APART ? lane % PIECES : (i * WARP + lane) % PIECES;
            const T* at = from + (APART ? size_t(i * APART) * stride : size_t(row) * stride + 8 * piece);
            cp_async_16(to.piece(tile, row, piece), at, tile * TILE + row < rows && 8 * piece < dim ? 16 : 0);
        }
    }
}

// Writes the rows of a tile that exist to y, the first row of the sequence. By one warp.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void store_tile(
    T* y, unsigned stride, const SharedRows<T, DIM, STRIDE>& from, unsigned tile, unsigned rows, unsigned dim) {
    constexpr unsigned PIECES = DIM / 8;
    UNROLL
    for (unsigned i = 0; i < TILE * PIECES / WARP; ++i) {
        const unsigned at = i * WARP + lane_id(), row = at / PIECES, piece = at % PIECES;
        if (tile * TILE + row < rows && 8 * piece < dim)
            store_vec<T, 8>(y + size_t(tile * TILE + row) * stride + 8 * piece, load_vec<T, 8>(from.piece(tile, row, piece)));
    }
}

// ---- fragments (layouts: ptx.cuh) -----------------------------------------------------------------------------------------
// 16 x 16 elements of a tile from column 16 · step on, in the order of an operand:
// LEFT: the left one, [m, k] as stored; LEFT_T: the left one, stored [k, m];
// RIGHT: two right ones of 8 columns, stored [n, k] (registers 0, 1 and 2, 3); RIGHT_T: the same stored [k, n].

template <class Rows>
__device__ __forceinline__ SharedAddress square(const Rows& x, unsigned tile, unsigned step) {
    return x.half(tile, lane_id() % 16, lane_id() / 16, step);
}
template <class Rows>
__device__ __forceinline__ SharedAddress paired(const Rows& x, unsigned tile, unsigned step) {
    return x.half(tile, lane_id() % 8 + lane_id() / 16 * 8, lane_id() / 8 % 2, step);
}
#define LEFT(fragment, x, tile, step) ldmatrix<4>(fragment, square(x, tile, step))
#define LEFT_T(fragment, x, tile, step) ldmatrix<4, true>(fragment, paired(x, tile, step))
#define RIGHT(fragment, x, tile, step) ldmatrix<4>(fragment, paired(x, tile, step))
#define RIGHT_T(fragment, x, tile, step) ldmatrix<4, true>(fragment, square(x, tile, step))

// Two results of 8 columns, rounded, as the left operand of the next product.
template <class T>
__device__ __forceinline__ void as_left(unsigned (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = pack2<T>(x[0], x[1]);
    a[1] = pack2<T>(x[2], x[3]);
    a[2] = pack2<T>(y[0], y[1]);
    a[3] = pack2<T>(y[2], y[3]);
}

// A left operand into pieces `piece` and `piece` + 1 of a tile.
template <class Rows>
__device__ __forceinline__ void store_left(const Rows& to, unsigned tile, unsigned piece, const unsigned (&a)[4]) {
    UNROLL
    for (int r = 0; r < 4; ++r)
        *reinterpret_cast<unsigned*>(to.piece(tile, lane_id() / 4 + 8 * (r % 2), piece + r / 2) + lane_id() % 4 * 2) = a[r];
}
