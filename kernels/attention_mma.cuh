// Tensor-core attention, forward and backward: 16-bit rows in shared memory, fragments, and 16-row tiles of one warp.
//
// DIM is the head dimension rounded up to 32; of the last 16 columns the products take part only if dim has them.
// Columns from dim up to the next 16 are zero in shared memory, so that they change no sum.
#pragma once
#include "attention.cuh"
#include "ptx.cuh"

#define LOG2_E 1.4426950408889634f
#define TILE 16  // rows of a matrix product

// Rows of DIM elements in tiles of 16, in pieces of 16 bytes. Tiles of one number of all matrices lie side by side
// (STRIDE elements from number to number), so that the offsets between matrices are constants.
// Pieces are exchanged within a row such that the same piece of eight neighbouring rows lies in different banks:
// ldmatrix and cp.async take 4 passes for 512 bytes, the fewest possible.
template <class T, int DIM, int STRIDE>
struct SharedRows {
    static constexpr int PIECES = DIM / 8, ELEMENTS = TILE * DIM;
    T* first;
    // Row 0 to 15 of a tile.
    __device__ __forceinline__ T* piece(unsigned tile, unsigned row, unsigned piece) const {
        return first + tile * STRIDE + row * DIM + (piece ^ (DIM % 64 == 0 ? row & 7 : row >> 1 & 3)) * 8;
    }
};

// Whether the 16 columns of `step` belong to the head; `dim` is above DIM - 32.
template <int DIM>
__device__ __forceinline__ bool has_step(int step, unsigned dim) {
    return step < DIM / 16 - 1 || dim > unsigned(DIM - 16);
}

// Starts copying tiles [first, end) of x (rows of `stride` elements), of which `rows` rows exist; missing ones become
// zero. `thread` of `threads` threads.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void copy_tiles(const SharedRows<T, DIM, STRIDE>& to, const T* x, size_t stride, unsigned first,
                                           unsigned end, unsigned rows, unsigned dim, unsigned thread, unsigned threads) {
    constexpr unsigned PIECES = DIM / 8;
    for (unsigned i = first * TILE * PIECES + thread; i < end * TILE * PIECES; i += threads) {
        const unsigned row = i / PIECES, piece = i % PIECES;
        const bool inside = row < rows && 8 * piece < dim;
        if (8 * piece < (dim + 15) / 16 * 16)
            cp_async_16(to.piece(row / TILE, row % TILE, piece), inside ? x + row * stride + 8 * piece : x, inside ? 16 : 0);
    }
}

// Writes the rows of a tile that exist to y, the first row of the sequence. By one warp.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void store_tile(
    T* y, size_t stride, const SharedRows<T, DIM, STRIDE>& from, unsigned tile, unsigned rows, unsigned dim) {
    constexpr unsigned PIECES = DIM / 8;
    UNROLL
    for (unsigned i = 0; i < TILE * PIECES / WARP; ++i) {
        const unsigned at = i * WARP + lane_id(), row = at / PIECES, piece = at % PIECES;
        if (tile * TILE + row < rows && 8 * piece < dim)
            store_vec<T, 8>(y + (tile * TILE + row) * stride + 8 * piece, load_vec<T, 8>(from.piece(tile, row, piece)));
    }
}

// ---- fragments (layouts: ptx.cuh) -----------------------------------------------------------------------------------------
// 16 x 16 elements of a tile from piece `piece` on, in the order of an operand:
// LEFT: the left one, [m, k] as stored; LEFT_T: the left one, stored [k, m];
// RIGHT: two right ones of 8 columns, stored [n, k] (registers 0, 1 and 2, 3); RIGHT_T: the same stored [k, n].

template <class Rows>
__device__ __forceinline__ auto* square(const Rows& x, unsigned tile, unsigned piece) {
    return x.piece(tile, lane_id() % 16, piece + lane_id() / 16);
}
template <class Rows>
__device__ __forceinline__ auto* paired(const Rows& x, unsigned tile, unsigned piece) {
    return x.piece(tile, lane_id() % 8 + lane_id() / 16 * 8, piece + lane_id() / 8 % 2);
}
#define LEFT(fragment, x, tile, piece) ldmatrix<4>(fragment, square(x, tile, piece))
#define LEFT_T(fragment, x, tile, piece) ldmatrix<4, true>(fragment, paired(x, tile, piece))
#define RIGHT(fragment, x, tile, piece) ldmatrix<4>(fragment, paired(x, tile, piece))
#define RIGHT_T(fragment, x, tile, piece) ldmatrix<4, true>(fragment, square(x, tile, piece))

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

// Results of one warp: 16 rows, DIM columns, times a factor per half of the rows, rounded into a tile.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void stage_tile(
    const SharedRows<T, DIM, STRIDE>& to, unsigned tile, float (&x)[DIM / 8][4], float upper, float lower) {
    UNROLL
    for (int n = 0; n < DIM / 16; ++n) {
        UNROLL
        for (int j = 2 * n; j < 2 * n + 2; ++j)
            UNROLL
            for (int i = 0; i < 4; ++i) x[j][i] *= i < 2 ? upper : lower;
        unsigned a[4];
        as_left<T>(a, x[2 * n], x[2 * n + 1]);
        store_left(to, tile, 2 * n, a);
    }
}

// Over the four lanes that share a row of results.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_MASK, x, 1);
    return x + __shfl_xor_sync(FULL_MASK, x, 2);
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

// 16 queries of one warp: what a running softmax keeps of the keys so far.
template <class T, int DIM>
struct QueryTile {
    unsigned q[DIM / 16][4];
    float o[DIM / 8][4];
    float max[2], sum[2];  // of rows g and g + 8: maximum of q · k over all keys, this lane's part of the sum

    template <class Rows>
    __device__ __forceinline__ void start(const Rows& rows, unsigned tile, unsigned dim) {
        UNROLL
        for (int n = 0; n < DIM / 16; ++n) {
            UNROLL
            for (int r = 0; r < 4; ++r) q[n][r] = 0;
            if (has_step<DIM>(n, dim)) LEFT(q[n], rows, tile, 2 * n);
        }
        UNROLL
        for (int j = 0; j < DIM / 8; ++j)
            UNROLL
            for (int i = 0; i < 4; ++i) o[j][i] = 0.f;
        UNROLL
        for (int r = 0; r < 2; ++r) {
            max[r] = -INFINITY;
            sum[r] = 0.f;
        }
    }

    // Takes in the first `keys` keys from tile `first` on, up to KEYS of them, at least one. `scale`: positive, times
    // log2 e, which makes exp(scale · (s - max)) one multiply-add and one exp2.
    template <int KEYS, class Rows>
    __device__ __forceinline__ void attend(
        const Rows& k, const Rows& v, unsigned first, unsigned keys, unsigned dim, float scale) {
        float s[KEYS / 8][4];
        UNROLL
        for (int c = 0; c < KEYS / 16; ++c) {
            UNROLL
            for (int i = 0; i < 4; ++i) s[2 * c][i] = s[2 * c + 1][i] = 0.f;
            if (16 * c < int(keys)) {
                UNROLL
                for (int n = 0; n < DIM / 16; ++n)
                    if (has_step<DIM>(n, dim)) {
                        unsigned b[4];
                        RIGHT(b, k, first + c, 2 * n);
                        mma_16x8x16<T>(s[2 * c], q[n], b[0], b[1]);
                        mma_16x8x16<T>(s[2 * c + 1], q[n], b[2], b[3]);
                    }
            }
            if (16 * c + 16 > int(keys)) {
                UNROLL
                for (int j = 2 * c; j < 2 * c + 2; ++j)
                    UNROLL
                    for (int i = 0; i < 4; ++i)
                        if (8 * j + 2 * (lane_id() % 4) + i % 2 >= int(keys)) s[j][i] = -INFINITY;
            }
        }
        UNROLL
        for (int r = 0; r < 2; ++r) {
            float top = max[r];
            UNROLL
            for (int j = 0; j < KEYS / 8; ++j) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
            top = quad_max(top);
            const float shrink = exp2_approx(scale * (max[r] - top));  // 0 for the first keys
            const float shift = -scale * top;
            max[r] = top;
            float total = 0.f;
            UNROLL
            for (int j = 0; j < KEYS / 8; ++j)
                UNROLL
                for (int i = 2 * r; i < 2 * r + 2; ++i) {
                    s[j][i] = exp2_approx(s[j][i] * scale + shift);
                    total += s[j][i];
                }
            sum[r] = sum[r] * shrink + total;
            UNROLL
            for (int j = 0; j < DIM / 8; ++j)
                UNROLL
                for (int i = 2 * r; i < 2 * r + 2; ++i) o[j][i] *= shrink;
        }
        UNROLL
        for (int c = 0; c < KEYS / 16; ++c)
            if (16 * c < int(keys)) {
                unsigned p[4];
                as_left<T>(p, s[2 * c], s[2 * c + 1]);
                UNROLL
                for (int n = 0; n < DIM / 16; ++n)
                    if (has_step<DIM>(n, dim)) {
                        unsigned b[4];
                        RIGHT_T(b, v, first + c, 2 * n);
                        mma_16x8x16<T>(o[2 * n], p, b[0], b[1]);
                        mma_16x8x16<T>(o[2 * n + 1], p, b[2], b[3]);
                    }
            }
    }

    // o into a tile of shared memory, in place of the queries; lse (of the sequence) of the rows that exist.
    template <class Rows>
    __device__ __forceinline__ void finish(const Rows& rows, unsigned tile, float* lse, unsigned count, float scale) {
        UNROLL
        for (int r = 0; r < 2; ++r) {
            sum[r] = quad_sum(sum[r]);
            const unsigned at = tile * TILE + lane_id() / 4 + 8 * r;
            if (lane_id() % 4 == 0 && at < count) lse[at] = max[r] * scale + logf(sum[r]);
        }
        stage_tile(rows, tile, o, 1.f / sum[0], 1.f / sum[1]);
    }
};

// name_hd<dim><T>(a) in the 16-bit types; launch bounds: threads, then blocks per multiprocessor if given.
#define ATTENTION_MMA_KERNEL(name, dim, Args, ...)                       \
    template <class T>                                                   \
    __device__ void name##_hd##dim(const Args& a) {                      \
        name<T, dim>(a);                                                 \
    }                                                                    \
    KERNEL_DTYPE_BOUNDS(name##_hd##dim, bf16, bf16, Args, __VA_ARGS__)   \
    KERNEL_DTYPE_BOUNDS(name##_hd##dim, f16, f16, Args, __VA_ARGS__)
