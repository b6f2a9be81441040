// Sigmoid loss over all pairs of two sets of embeddings, panel by panel: S = x · yᵀ by tiles of 128 x 128 pairs, on tensor
// cores for 16-bit types; what a tile adds up stays on the chip but for six numbers, and dL/dS goes to a buffer of the
// panel's size, from which two products make the gradients. Reference and gradient: src/ops/sigmoid_pair_loss.
// no-mma-ok: sigmoid_pair_loss_bwd_* scales the gradients that the forward left, bound by bytes
#include "sigmoid_pair_loss.cuh"

// ---- 16-bit types ---------------------------------------------------------------------------------------------------------
// 8 warps, 2 x 4, each with 64 x 32 pairs. 64 columns of the rows' elements at a time, in two stages: one is on its way
// while the other is worked on.

#define STEP 64                      // elements of a row in a stage
#define ROW_TILES (SIDE / TILE)      // tiles of x in a stage; those of y follow
#define TILE_BYTES (TILE * STEP * 2)

template <class T>
struct PairRows {
    typedef SharedRows<T, STEP, TILE * STEP> Stage;  // [2 · SIDE, STEP], twice: 64 KiB
    typedef SharedRows<T, SIDE, TILE * SIDE> Result;  // [SIDE, SIDE]: 32 KiB
};

// Columns [k, k + STEP) of the tile's rows of x, then of y, into a stage; zero where there are none.
template <class T>
__device__ __forceinline__ void load_stage(
    const typename PairRows<T>::Stage& to, const SigmoidPairLoss& a, const PairTile& tile, unsigned k) {
    constexpr unsigned PIECES = STEP / 8;
    const bool packed = a.dim % 8 == 0;  // else rows do not begin at multiples of 16 bytes
#pragma unroll 2  // as registers allow
    for (unsigned i = computed_here(threadIdx.x); i < 2 * SIDE * PIECES; i += THREADS) {
        const unsigned row = i / PIECES, at = k + i % PIECES * 8, mine = row % SIDE;
        const bool of_x = row < SIDE, inside = int(mine) < (of_x ? tile.rows : tile.cols);
        const T* from = in<T>(of_x ? a.x : a.y) + (inside ? size_t((of_x ? tile.row : tile.col) + mine) * a.dim + at : 0);
        T* piece = to.piece(row / TILE, row % TILE, i % PIECES);
        if (packed) {
            cp_async_16(piece, inside && at < a.dim ? from : in<T>(a.x), inside && at < a.dim ? 16 : 0);
        } else {
            Vec<T, 8> values;
            UNROLL
            for (int j = 0; j < 8; ++j) values[j] = inside && at + j < a.dim ? from[j] : from_f32<T>(0.f);
            store_vec(piece, values);
        }
    }
    cp_async_commit();
}

// Takes in the pairs of a warp, of which s has the cosines; their gradients go to shared memory.
template <class T, bool GRADIENT, bool PLAIN>
__device__ __forceinline__ void sum_pairs(PairSums& sums, const typename PairRows<T>::Result& result, float (&s)[4][4][4],
                                          const SigmoidPairLoss& a, const PairTile& tile, unsigned down,
                                          unsigned across) {
    const float t = expf(a.log_scale[0]), b = a.bias[0];
    const int first = down * TILE + lane_id() / 4, second = across * TILE + lane_id() % 4 * 2;
    UNROLL
    for (int m = 0; m < 4; ++m) {
        if (!PLAIN && int(down + m) * TILE >= tile.rows) continue;  // the whole warp
        UNROLL
        for (int n = 0; n < 4; n += 2) {
            UNROLL
            for (int j = n; j < n + 2; ++j)
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const int row = first + m * TILE + i / 2 * 8, col = second + j * 8 + i % 2;
                    const bool positive = !PLAIN && col - row == tile.shift;
                    const bool exists = PLAIN || (row < tile.rows && col < tile.cols);
                    s[m][j][i] = Gain<T>::value * sums.take<GRADIENT>(s[m][j][i], t, b, positive, exists);
                }
            if (GRADIENT) {
                unsigned g[4];
                as_left<T>(g, s[m][n], s[m][n + 1]);
                store_left(result, down + m, 2 * across + n, g);
            }
        }
    }
}

template <class T, bool GRADIENT>
__device__ __forceinline__ void pair_loss_mma(const SigmoidPairLoss& a) {
    DYN_SMEM(memory);
    const typename PairRows<T>::Stage stages{reinterpret_cast<T*>(memory)};
    const PairTile tile(a);
    const unsigned down = warp_id() / 4 * 4, across = warp_id() % 4 * 2;  // the warp's first tile of x and of y
    float s[4][4][4] = {};  // 4 tiles of rows, 4 times 8 columns
    load_stage<T>(stages, a, tile, 0);
    for (unsigned k = 0; k < a.dim; k += STEP) {
        const unsigned stage = k / STEP % 2;
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, the other is done with
        if (k + STEP < a.dim) load_stage<T>(stages.from((stage ^ 1) * 2 * ROW_TILES), a, tile, k + STEP);
        const auto rows = stages.from(stage * 2 * ROW_TILES), cols = rows.from(ROW_TILES);
        UNROLL
        for (unsigned step = 0; step < STEP / 16; ++step) {
            unsigned left[4][4], right[2][4];
            const SharedAddress of_x = square(rows, down, step), of_y = paired(cols, across, step);  // LEFT and RIGHT
            UNROLL
            for (int m = 0; m < 4; ++m) ldmatrix<4>(left[m], of_x + m * TILE_BYTES);
            UNROLL
            for (int n = 0; n < 2; ++n) ldmatrix<4>(right[n], of_y + n * TILE_BYTES);
            UNROLL
            for (int m = 0; m < 4; ++m)
                UNROLL
                for (int n = 0; n < 4; ++n)
                    mma_16x8x16<T>(s[m][n], left[m], right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]);
        }
    }

    const typename PairRows<T>::Result result{reinterpret_cast<T*>(memory)};
    if (GRADIENT) __syncthreads();  // the stages are done with
    PairSums sums;
    const PairTile pairs(a);
    const unsigned warp = computed_here(threadIdx.x) / WARP;
    if (pairs.plain)
        sum_pairs<T, GRADIENT, true>(sums, result, s, a, pairs, warp / 4 * 4, warp % 4 * 2);
    else
        sum_pairs<T, GRADIENT, false>(sums, result, s, a, pairs, warp / 4 * 4, warp % 4 * 2);
    if (GRADIENT && a.g) {
        const PairTile tile(a);
        __syncthreads();  // the result is there
        T* to = out<T>(a.g) + size_t(tile.row) * a.cols + tile.col;
        const bool aligned = a.cols % 8 == 0;
        for (unsigned i = threadIdx.x; i < SIDE * SIDE / 8; i += THREADS) {
            const unsigned row = i / (SIDE / 8), piece = i % (SIDE / 8);
            if (int(row) >= tile.rows || int(8 * piece) >= tile.cols) continue;
            const Vec<T, 8> values = load_vec<T, 8>(result.piece(row / TILE, row % TILE, piece));
            T* at = to + size_t(row) * a.cols + 8 * piece;
            if (aligned) {
                store_vec(at, values);
            } else {
                UNROLL
                for (int j = 0; j < 8; ++j)
                    if (int(8 * piece) + j < tile.cols) at[j] = values[j];
            }
        }
    }
    finish_tile(a, sums);
}

// ---- f32 ------------------------------------------------------------------------------------------------------------------
// Products in f32, which tensor cores would round to TF32. A thread has 8 x 8 pairs: rows and columns 4 · its number and
// 64 behind, so that neighbours read neighbouring vectors.

#define F32_STEP 16

struct PairColumns {
    float x[F32_STEP][SIDE + 4];  // transposed; the padding spreads a column of writes over the banks
    float y[F32_STEP][SIDE + 4];
};

// Columns [k, k + F32_STEP) of up to `rows` rows, transposed; zero where there are none.
__device__ __forceinline__ void load_columns(
    float (&to)[F32_STEP][SIDE + 4], const float* x, unsigned dim, unsigned k, unsigned rows) {
    const bool packed = dim % 4 == 0;
    for (unsigned i = threadIdx.x; i < SIDE * F32_STEP / 4; i += THREADS) {
        const unsigned row = i / (F32_STEP / 4), at = i % (F32_STEP / 4) * 4;
        const float* from = x + size_t(row) * dim + k + at;
        Vec<float, 4> values = {};
        if (row < rows && packed && k + at < dim) values = load_vec<float, 4>(from);
        if (row < rows && !packed) {
            UNROLL
            for (unsigned j = 0; j < 4; ++j)
                if (k + at + j < dim) values[j] = from[j];
        }
        UNROLL
        for (int j = 0; j < 4; ++j) to[at + j][row] = values[j];
    }
}

__device__ __forceinline__ unsigned spread(unsigned thread, unsigned i) { return i / 4 * (SIDE / 2) + 4 * thread + i % 4; }

template <bool GRADIENT>
__device__ __forceinline__ void pair_loss_f32(const SigmoidPairLoss& a) {
    SMEM(PairColumns, columns);
    const PairTile tile(a);
    const float* x = in<float>(a.x) + size_t(tile.row) * a.dim;
    const float* y = in<float>(a.y) + size_t(tile.col) * a.dim;
    const unsigned down = threadIdx.x / 16, across = threadIdx.x % 16;
    float s[8][8] = {};
    for (unsigned k = 0; k < a.dim; k += F32_STEP) {
        __syncthreads();  // the columns before are done with
        load_columns(columns.x, x, a.dim, k, tile.rows);
        load_columns(columns.y, y, a.dim, k, tile.cols);
        __syncthreads();  // these are there
        UNROLL
        for (int j = 0; j < F32_STEP; ++j) {
            Vec<float, 4> left[2], right[2];
            UNROLL
            for (int h = 0; h < 2; ++h) {
                left[h] = load_vec<float, 4>(&columns.x[j][spread(down, 4 * h)]);
                right[h] = load_vec<float, 4>(&columns.y[j][spread(across, 4 * h)]);
            }
            UNROLL
            for (int m = 0; m < 8; ++m)
                UNROLL
                for (int n = 0; n < 8; ++n) s[m][n] = fmaf(left[m / 4][m % 4], right[n / 4][n % 4], s[m][n]);
        }
    }
    PairSums sums;
    const float t = expf(a.log_scale[0]), b = a.bias[0];
    float* to = out<float>(a.g) + (a.g ? size_t(tile.row) * a.cols + tile.col : 0);
    const bool aligned = a.cols % 4 == 0;
    const unsigned thread = computed_here(threadIdx.x);
    UNROLL
    for (int m = 0; m < 8; ++m) {
        const int row = spread(thread / 16, m);
        if (row >= tile.rows) continue;
        UNROLL
        for (int h = 0; h < 2; ++h) {
            const int col = spread(thread % 16, 4 * h);
            Vec<float, 4> g;
            UNROLL
            for (int j = 0; j < 4; ++j) {
                const bool exists = col + j < tile.cols;
                g[j] = sums.take<GRADIENT>(s[m][4 * h + j], t, b, col + j - row == tile.shift, exists);
            }
            if (!GRADIENT || !a.g || col >= tile.cols) continue;
            float* at = to + size_t(row) * a.cols + col;
            if (aligned) {
                store_vec(at, g);
            } else {
                UNROLL
                for (int j = 0; j < 4; ++j)
                    if (col + j < tile.cols) at[j] = g[j];
            }
        }
    }
    finish_tile(a, sums);
}

// ---- kernels --------------------------------------------------------------------------------------------------------------

// The loss alone.
template <class T>
__device__ void sigmoid_pair_loss_fwd_128x128(const SigmoidPairLoss& a) {
    pair_loss_mma<T, false>(a);
}
template <>
__device__ void sigmoid_pair_loss_fwd_128x128<float>(const SigmoidPairLoss& a) {
    pair_loss_f32<false>(a);
}
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_128x128, f32, float, SigmoidPairLoss, THREADS, 2)
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_128x128, bf16, bf16, SigmoidPairLoss, THREADS, 2)
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_128x128, f16, f16, SigmoidPairLoss, THREADS, 2)

// The loss and dL/dl.
template <class T>
__device__ void sigmoid_pair_loss_fwd_grad_128x128(const SigmoidPairLoss& a) {
    pair_loss_mma<T, true>(a);
}
template <>
__device__ void sigmoid_pair_loss_fwd_grad_128x128<float>(const SigmoidPairLoss& a) {
    pair_loss_f32<true>(a);
}
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_grad_128x128, f32, float, SigmoidPairLoss, THREADS, 2)
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_grad_128x128, bf16, bf16, SigmoidPairLoss, THREADS, 2)
KERNEL_DTYPE_BOUNDS(sigmoid_pair_loss_fwd_grad_128x128, f16, f16, SigmoidPairLoss, THREADS, 2)

struct SigmoidPairLossReduce {
    const double* part;      // [tiles, SUMS]
    const float* log_scale;  // [1]
    const float* bias;       // [1]
    float* loss;             // [1]
    float* logits;           // [3]: mean of positives, mean and largest of negatives; NaN of none
    float* factor;           // [1]: t / (n · gain), or null, and with it
    float* dlog_scale;       // [1]
    float* dbias;            // [1]
    double divisor;          // n
    double positives, negatives;  // how many
    double gain;             // struct Gain
    unsigned tiles, pad;
};

struct TotalSums {
    double v[SUMS];
};

// One block, a warp for each of the sums.
__device__ void sigmoid_pair_loss_reduce_f32_body(const SigmoidPairLossReduce& a) {
    SMEM(TotalSums, sums);
    const unsigned q = warp_id();
    const bool largest = q == SUMS - 1;
    double total = largest ? double(-INFINITY) : 0.0;
    for (unsigned i = lane_id(); i < a.tiles; i += WARP) {
        const double x = a.part[size_t(i) * SUMS + q];
        total = largest ? max(total, x) : total + x;
    }
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) {
        const double other = __shfl_xor_sync(FULL_MASK, total, step);
        total = largest ? max(total, other) : total + other;
    }
    if (lane_id() == 0) sums.v[q] = total;
    __syncthreads();
    if (threadIdx.x != 0) return;
    const double t = expf(a.log_scale[0]), b = a.bias[0];
    a.loss[0] = float(sums.v[0] / a.divisor);
    a.logits[0] = a.positives > 0.0 ? float(t * sums.v[3] / a.positives + b) : NAN;
    a.logits[1] = a.negatives > 0.0 ? float(t * sums.v[4] / a.negatives + b) : NAN;
    a.logits[2] = a.negatives > 0.0 ? float(t * sums.v[5] + b) : NAN;
    if (!a.factor) return;
    a.factor[0] = float(t / (a.divisor * a.gain));
    a.dlog_scale[0] = float(t * sums.v[2] / a.divisor);
    a.dbias[0] = float(sums.v[1] / a.divisor);
}
KERNEL_BOUNDS(sigmoid_pair_loss_reduce_f32, SigmoidPairLossReduce, SUMS * WARP)

struct SigmoidPairLossBwd {
    const float* x;       // [count]
    const float* factor;  // [1], or null for 1
    const float* dloss;   // [1]
    void* y;              // [count] T; may be x
    unsigned long long count;
};

// y = dloss · factor · x
template <class T>
__device__ void sigmoid_pair_loss_bwd(const SigmoidPairLossBwd& a) {
    const float factor = a.dloss[0] * (a.factor ? a.factor[0] : 1.f);
    elementwise<float>(a.count, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> x = load_vec<float, N>(a.x + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(factor * x[j]);
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(sigmoid_pair_loss_bwd, SigmoidPairLossBwd)
