// Batch normalisation without affine: every column of x to mean 0 and variance 1 over the rows (arXiv 1502.03167,
// algorithm 1). Reference and gradient: src/ops/batch_norm.
// Three launches each way: sums of a few rows by many blocks, their combination, and one over the elements.
// narrow-ok: batch_norm_*_combine_f32 a lane per column of a few partial sums
#include "rows.cuh"

#define WARPS 8   // of a block that reads the matrix
#define HELD 8    // rows of a warp there
#define BATCH 4   // of these, all under way at once where they are written: more take too many registers
#define PART_ROWS (WARPS * HELD)

#define COLS 32   // columns of a block that combines, one per lane
#define TURNS 32  // its warps, which take the parts in turn

struct BatchNormPart {
    const void* dy;     // [rows, cols] T (backward)
    const void* x;      // [rows, cols] T
    const float* mean;  // [cols] (backward)
    float* part;        // [2, parts, cols]: forward mean and sum of squared differences to it, backward sums of dy and of
                        // dy (x - mean), over PART_ROWS rows
    unsigned rows, cols;
};

// COUNT rows of this block and warp, from its row `from` on: `body(k, row)` for k below COUNT, unrolled.
template <int COUNT, class Body>
__device__ __forceinline__ void for_each_held_row(size_t rows, int from, Body body) {
    UNROLL
    for (int k = 0; k < COUNT; ++k) {
        const size_t row = blockIdx.x * size_t(PART_ROWS) + (from + k) * WARPS + warp_id();
        if (row < rows) body(k, row);
    }
}

// `x` of warp 0 in every thread.
template <int N>
__device__ __forceinline__ void from_first_warp(float (&x)[N]) {
    SMEM(Floats<WARP * N>, shared);  // [N, 32]
    __syncthreads();  // an earlier use of `shared` is over
    if (warp_id() == 0)
        UNROLL
        for (int j = 0; j < N; ++j) shared.v[j * WARP + lane_id()] = x[j];
    __syncthreads();
    UNROLL
    for (int j = 0; j < N; ++j) x[j] = shared.v[j * WARP + lane_id()];
}

// Two passes over rows in registers: a squared difference is to the mean of its own part.
template <class T>
__device__ void batch_norm_fwd_part(const BatchNormPart& a) {
    const unsigned count = min(unsigned(PART_ROWS), a.rows - blockIdx.x * PART_ROWS);
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> x[HELD];
        float mean[N] = {}, square[N] = {};
        if (inside) {
            for_each_held_row<HELD>(a.rows, 0, [&](int k, size_t row) { x[k] = load_vec<T, N>(in<T>(a.x) + row * a.cols + c); });
            for_each_held_row<HELD>(a.rows, 0, [&](int k, size_t) { accumulate(mean, x[k]); });
        }
        add_warps<WARPS>(mean);
        from_first_warp(mean);
        UNROLL
        for (int j = 0; j < N; ++j) mean[j] /= count;
        if (inside)
            for_each_held_row<HELD>(a.rows, 0, [&](int k, size_t) {
                UNROLL
                for (int j = 0; j < N; ++j) {
                    const float d = to_f32(x[k][j]) - mean[j];
                    square[j] += d * d;
                }
            });
        add_warps<WARPS>(square);
        if (warp_id() != 0 || !inside) return;
        float* part = a.part + size_t(blockIdx.x) * a.cols + c;
        store_sum(part, mean);
        store_sum(part + size_t(gridDim.x) * a.cols, square);
    });
}
KERNEL_PER_DTYPE_BOUNDS(batch_norm_fwd_part, BatchNormPart, WARPS * WARP)

template <class T>
__device__ void batch_norm_bwd_part(const BatchNormPart& a) {
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {}, product[N] = {};
        if (inside) {
            const Vec<float, N> mean = load_vec<float, N>(a.mean + c);
            UNROLL
            for (int from = 0; from < HELD; from += BATCH) {
                Vec<T, N> dy[BATCH], x[BATCH];
                for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t row) {
                    dy[k] = load_vec<T, N>(in<T>(a.dy) + row * a.cols + c);
                    x[k] = load_vec<T, N>(in<T>(a.x) + row * a.cols + c);
                });
                for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t) {
                    accumulate(sum, dy[k]);
                    UNROLL
                    for (int j = 0; j < N; ++j) product[j] += to_f32(dy[k][j]) * (to_f32(x[k][j]) - mean[j]);
                });
            }
        }
        add_warps<WARPS>(sum);
        add_warps<WARPS>(product);
        if (warp_id() != 0 || !inside) return;
        float* part = a.part + size_t(blockIdx.x) * a.cols + c;
        store_sum(part, sum);
        store_sum(part + size_t(gridDim.x) * a.cols, product);
    });
}
KERNEL_PER_DTYPE_BOUNDS(batch_norm_bwd_part, BatchNormPart, WARPS * WARP)

struct BatchNormCombine {
    const float* part;  // [2, parts, cols]
    float* mean;        // [cols]: forward written; backward that of dy
    float* var;         // [cols]: forward written, biased; backward read
    float* mean_gx;     // [cols]: of dy and the normalised x (backward)
    unsigned rows, cols, parts;
    float eps;          // added to the variance
};

struct BatchNormTile {
    float v[TURNS][COLS];
};

// Sum of `term(part)` over the parts, for the block's columns, in a fixed order; every thread gets its column's. The block
// is [TURNS, COLS].
template <class Term>
__device__ __forceinline__ float sum_of_parts(BatchNormTile& tile, unsigned parts, bool inside, Term term) {
    float sum = 0.f;
    if (inside)
        for (unsigned p = warp_id(); p < parts; p += TURNS) sum += term(p);
    __syncthreads();  // an earlier use of the tile is over
    tile.v[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() == 0) {
        for (int r = 1; r < TURNS; ++r) sum += tile.v[r][lane_id()];
        tile.v[0][lane_id()] = sum;
    }
    __syncthreads();
    return tile.v[0][lane_id()];
}

// Squares around the common mean from those around the means of the parts (Chan et al. 1979).
__device__ void batch_norm_fwd_combine_f32_body(const BatchNormCombine& a) {
    SMEM(BatchNormTile, tile);
    const unsigned c = blockIdx.x * COLS + lane_id();
    const bool inside = c < a.cols;
    const float* means = a.part + c;
    const float* squares = means + size_t(a.parts) * a.cols;
    const auto count = [&](unsigned p) { return float(min(unsigned(PART_ROWS), a.rows - p * PART_ROWS)); };
    const float mean =
        sum_of_parts(tile, a.parts, inside, [&](unsigned p) { return count(p) * means[size_t(p) * a.cols]; }) / a.rows;
    const float square = sum_of_parts(tile, a.parts, inside, [&](unsigned p) {
        const float d = means[size_t(p) * a.cols] - mean;
        return squares[size_t(p) * a.cols] + count(p) * d * d;
    });
    if (!inside || warp_id() != 0) return;  // no barrier follows
    a.mean[c] = mean;
    a.var[c] = square / a.rows;
}
KERNEL(batch_norm_fwd_combine_f32, BatchNormCombine)

__device__ void batch_norm_bwd_combine_f32_body(const BatchNormCombine& a) {
    SMEM(BatchNormTile, tile);
    const unsigned c = blockIdx.x * COLS + lane_id();
    const bool inside = c < a.cols;
    const float* sums = a.part + c;
    const float* products = sums + size_t(a.parts) * a.cols;
    const float sum = sum_of_parts(tile, a.parts, inside, [&](unsigned p) { return sums[size_t(p) * a.cols]; });
    const float product = sum_of_parts(tile, a.parts, inside, [&](unsigned p) { return products[size_t(p) * a.cols]; });
    if (!inside || warp_id() != 0) return;  // no barrier follows
    a.mean[c] = sum / a.rows;
    a.mean_gx[c] = product / sqrtf(a.var[c] + a.eps) / a.rows;
}
KERNEL(batch_norm_bwd_combine_f32, BatchNormCombine)

struct BatchNormNormalize {
    const void* x;      // [rows, cols] T
    const float* mean;  // [cols]
    const float* var;   // [cols]
    void* y;            // [rows, cols] T
    unsigned long long rows;
    unsigned cols;
    float eps;
};

// y = (x - mean) * rstd
template <class T>
__device__ void batch_norm_normalize(const BatchNormNormalize& a) {
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        if (!inside) return;
        const Vec<float, N> mean = load_vec<float, N>(a.mean + c);
        Vec<float, N> rstd = load_vec<float, N>(a.var + c);
        UNROLL
        for (int j = 0; j < N; ++j) rstd[j] = 1.f / sqrtf(rstd[j] + a.eps);
#pragma unroll 1
        for (int from = 0; from < HELD; from += BATCH) {
            Vec<T, N> x[BATCH];
            for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t row) {
                x[k] = load_vec<T, N>(in<T>(a.x) + row * a.cols + c);
            });
            for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t row) {
                UNROLL
                for (int j = 0; j < N; ++j) x[k][j] = from_f32<T>((to_f32(x[k][j]) - mean[j]) * rstd[j]);
                store_vec(out<T>(a.y) + row * a.cols + c, x[k]);
            });
        }
    });
}
KERNEL_PER_DTYPE_BOUNDS(batch_norm_normalize, BatchNormNormalize, WARPS * WARP)

struct BatchNormBwd {
    const void* dy;        // [rows, cols] T
    const void* x;         // [rows, cols] T
    const float* mean;     // [cols]
    const float* var;      // [cols]
    const float* mean_g;   // [cols]: of dy
    const float* mean_gx;  // [cols]: of dy and the normalised x
    void* dx;              // [rows, cols] T
    unsigned rows, cols;
    float eps;
    unsigned pad;
};

// dx = rstd * (dy - mean_g - normed * mean_gx)
template <class T>
__device__ void batch_norm_bwd(const BatchNormBwd& a) {
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        if (!inside) return;
        const Vec<float, N> mean = load_vec<float, N>(a.mean + c), mean_g = load_vec<float, N>(a.mean_g + c);
        const Vec<float, N> mean_gx = load_vec<float, N>(a.mean_gx + c);
        Vec<float, N> rstd = load_vec<float, N>(a.var + c);
        UNROLL
        for (int j = 0; j < N; ++j) rstd[j] = 1.f / sqrtf(rstd[j] + a.eps);
#pragma unroll 1
        for (int from = 0; from < HELD; from += BATCH) {
            Vec<T, N> x[BATCH], dy[BATCH];
            for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t row) {
                x[k] = load_vec<T, N>(in<T>(a.x) + row * a.cols + c);
                dy[k] = load_vec<T, N>(in<T>(a.dy) + row * a.cols + c);
            });
            for_each_held_row<BATCH>(a.rows, from, [&](int k, size_t row) {
                Vec<T, N> dx;
                UNROLL
                for (int j = 0; j < N; ++j) {
                    const float normed = (to_f32(x[k][j]) - mean[j]) * rstd[j];
                    dx[j] = from_f32<T>(rstd[j] * (to_f32(dy[k][j]) - mean_g[j] - normed * mean_gx[j]));
                }
                store_vec(out<T>(a.dx) + row * a.cols + c, dx);
            });
        }
    });
}
KERNEL_PER_DTYPE_BOUNDS(batch_norm_bwd, BatchNormBwd, WARPS * WARP)
