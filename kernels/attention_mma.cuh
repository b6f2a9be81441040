// Tensor-core attention, forward and backward: 16-row tiles of one warp. Their rows in shared memory: tiles.cuh.
//
// DIM is the number of columns a kernel is made for, a multiple of 16: 32, 64, 80, 96, 128 or 256. Columns from the head
// dimension up to it are zero in shared memory, so that they change no sum. VDIM is the same for values, o and d_o.
#pragma once
#include "attention.cuh"
#include "tiles.cuh"

// Results of one warp: 16 rows, DIM columns, times a factor per half of the rows, rounded into a tile. What the warp read
// of the tile before is done with: a lane writes rows that ldmatrix read for others.
template <class T, int DIM, int STRIDE>
__device__ __forceinline__ void stage_tile(
    const SharedRows<T, DIM, STRIDE>& to, unsigned tile, float (&x)[DIM / 8][4], float upper, float lower) {
    __syncwarp();
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

// The same results times their factors as they are, into y, the first row of the tile, of which `rows` exist.
template <int COLUMNS>
__device__ __forceinline__ void store_part(
    float* y, unsigned stride, const float (&x)[COLUMNS][4], unsigned rows, unsigned dim, float upper, float lower) {
    UNROLL
    for (int r = 0; r < 2; ++r) {
        const unsigned row = lane_id() / 4 + 8 * r;
        const float factor = r ? lower : upper;
        UNROLL
        for (int j = 0; j < COLUMNS; ++j) {
            const unsigned column = 8 * j + lane_id() % 4 * 2;
            if (row < rows && column < dim)
                store_vec<float, 2>(y + size_t(row) * stride + column, {x[j][2 * r] * factor, x[j][2 * r + 1] * factor});
        }
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

// TILES tiles of 16 queries of one warp: what a running softmax keeps of the keys so far.
template <class T, int DIM, int VDIM, int TILES>
struct QueryTiles {
    unsigned q[TILES][DIM / 16][4];
    float o[TILES][VDIM / 8][4];
    // Of rows g and g + 8 of each tile: what was taken off q · k before exp, and this lane's part of the sum.
    float max[TILES][2], sum[TILES][2];

    template <class Rows>
    __device__ __forceinline__ void start(const Rows& rows, unsigned tile) {
        UNROLL
        for (int m = 0; m < TILES; ++m) {
            UNROLL
            for (int n = 0; n < DIM / 16; ++n) LEFT(q[m][n], rows, tile + m, n);
            UNROLL
            for (int j = 0; j < VDIM / 8; ++j)
                UNROLL
                for (int i = 0; i < 4; ++i) o[m][j][i] = 0.f;
            UNROLL
            for (int r = 0; r < 2; ++r) {
                max[m][r] = -INFINITY;
                sum[m][r] = 0.f;
            }
        }
    }

    // Takes in KEYS keys from tile `first` on; unless WHOLE, only the first `keys` of them, at least one. `scale`:
    // positive, times log2 e, which makes exp(scale · (s - max)) one multiply-add and one exp2.
    template <int KEYS, bool WHOLE, class KeyRows, class ValueRows>
    __device__ __forceinline__ void attend(
        const KeyRows& k, const ValueRows& v, unsigned first, int keys, float scale) {
        float s[TILES][KEYS / 8][4] = {};
        UNROLL
        for (int c = 0; c < KEYS / 16; ++c) {
            if (WHOLE || 16 * c < keys) {
                UNROLL
                for (int n = 0; n < DIM / 16; ++n) {
                    unsigned b[4];
                    RIGHT(b, k, first + c, n);
                    UNROLL
                    for (int m = 0; m < TILES; ++m) {
                        mma_16x8x16<T>(s[m][2 * c], q[m][n], b[0], b[1]);
                        mma_16x8x16<T>(s[m][2 * c + 1], q[m][n], b[2], b[3]);
                    }
                }
            }
            if (!WHOLE && 16 * c + 16 > keys) {
                UNROLL
                for (int m = 0; m < TILES; ++m)
                    UNROLL
                    for (int j = 2 * c; j < 2 * c + 2; ++j)
                        UNROLL
                        for (int i = 0; i < 4; ++i)
                            if (8 * j + 2 * (lane_id() % 4) + i % 2 >= keys) s[m][j][i] = -INFINITY;
            }
        }
        // What is taken off the scores need not be the maximum: while no exponential passes 2^8, it stays, and with it
        // o and the sums so far. 16-bit floats keep as many digits of 2^8 as of 1.
        constexpr float SLACK = 8.f;
        float top[TILES][2];
        bool stays = true;
        UNROLL
        for (int m = 0; m < TILES; ++m)
            UNROLL
            for (int r = 0; r < 2; ++r) {
                float most = max[m][r];
                UNROLL
                for (int j = 0; j < KEYS / 8; ++j) most = fmaxf(most, fmaxf(s[m][j][2 * r], s[m][j][2 * r + 1]));
                top[m][r] = quad_max(most);
                stays = stays && !((top[m][r] - max[m][r]) * scale > SLACK);
            }
        if (!__all_sync(FULL_MASK, stays)) {
            UNROLL
            for (int m = 0; m < TILES; ++m)
                UNROLL
                for (int r = 0; r < 2; ++r) {
                    const float shrink = exp2_approx(scale * (max[m][r] - top[m][r]));  // 0 for the first keys
                    max[m][r] = top[m][r];
                    sum[m][r] *= shrink;
                    UNROLL
                    for (int j = 0; j < VDIM / 8; ++j)
                        UNROLL
                        for (int i = 2 * r; i < 2 * r + 2; ++i) o[m][j][i] *= shrink;
                }
        }
        UNROLL
        for (int m = 0; m < TILES; ++m)
            UNROLL
            for (int r = 0; r < 2; ++r) {
                const float shift = -scale * max[m][r];
                UNROLL
                for (int j = 0; j < KEYS / 8; ++j)
                    UNROLL
                    for (int i = 2 * r; i < 2 * r + 2; ++i) {
                        s[m][j][i] = exp2_approx(s[m][j][i] * scale + shift);
                        sum[m][r] += s[m][j][i];
                    }
            }
        UNROLL
        for (int c = 0; c < KEYS / 16; ++c)
            if (WHOLE || 16 * c < keys) {
                unsigned p[TILES][4];
                UNROLL
                for (int m = 0; m < TILES; ++m) as_left<T>(p[m], s[m][2 * c], s[m][2 * c + 1]);
                UNROLL
                for (int n = 0; n < VDIM / 16; ++n) {
                    unsigned b[4];
                    RIGHT_T(b, v, first + c, n);
                    UNROLL
                    for (int m = 0; m < TILES; ++m) {
                        mma_16x8x16<T>(o[m][2 * n], p[m], b[0], b[1]);
                        mma_16x8x16<T>(o[m][2 * n + 1], p[m], b[2], b[3]);
                    }
                }
            }
    }

    // After the last key: sums become the factors of o. lse: of the first query, of `count` that exist.
    __device__ __forceinline__ void close(float* lse, unsigned count, float scale) {
        UNROLL
        for (int m = 0; m < TILES; ++m)
            UNROLL
            for (int r = 0; r < 2; ++r) {
                const float total = quad_sum(sum[m][r]);
                const unsigned at = TILE * m + lane_id() / 4 + 8 * r;
                if (lane_id() % 4 == 0 && at < count) lse[at] = max[m][r] * scale + LN_2 * log2_approx(total);
                sum[m][r] = total == 0.f ? 0.f : reciprocal_approx(total);
            }
    }

    // o into tiles of shared memory from `tile` on.
    template <class Rows>
    __device__ __forceinline__ void stage(const Rows& rows, unsigned tile) {
        UNROLL
        for (int m = 0; m < TILES; ++m) stage_tile(rows, tile + m, o[m], sum[m][0], sum[m][1]);
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

// The same for values of `v_dim` columns: name_hd<dim>v<v_dim>.
#define ATTENTION_NARROW_KERNEL(name, dim, v_dim, Args, ...)                        \
    template <class T>                                                              \
    __device__ void name##_hd##dim##v##v_dim(const Args& a) {                       \
        name<T, dim, v_dim>(a);                                                     \
    }                                                                               \
    KERNEL_DTYPE_BOUNDS(name##_hd##dim##v##v_dim, bf16, bf16, Args, __VA_ARGS__)    \
    KERNEL_DTYPE_BOUNDS(name##_hd##dim##v##v_dim, f16, f16, Args, __VA_ARGS__)
