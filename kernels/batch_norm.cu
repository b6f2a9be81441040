// Batch normalisation without affine: every column of x to mean 0 and variance 1 over the rows (arXiv 1502.03167,
// algorithm 1). Reference and gradient: src/ops/batch_norm.
// narrow-ok: batch_norm_* a lane per column: rows of any length, no element is packed with others
#include "common.cuh"

#define COLS 32  // columns of a block, one per lane: rows are read 32 elements at a time
#define ROWS 8   // rows of a block at a time, one per warp

struct BatchNormTile {
    float v[ROWS][COLS];
};

// Sum over the rows of the block's columns, in a fixed order; every thread gets its column's. The block is
// [ROWS, COLS]; two barriers inside.
template <class Term>
__device__ __forceinline__ float column_sum(BatchNormTile& tile, unsigned rows, bool inside, Term term) {
    float sum = 0.f;
    if (inside)
        for (unsigned row = warp_id(); row < rows; row += ROWS) sum += term(row);
    __syncthreads();  // an earlier use of the tile is over
    tile.v[warp_id()][lane_id()] = sum;
    __syncthreads();
    float total = 0.f;
    for (int r = 0; r < ROWS; ++r) total += tile.v[r][lane_id()];
    return total;
}

struct BatchNormFwd {
    const void* x;  // [rows, cols] T
    void* y;        // [rows, cols] T
    float* mean;    // [cols]
    float* var;     // [cols]: biased
    unsigned rows, cols;
    float eps;      // added to the variance
    unsigned pad;
};

template <class T>
__device__ void batch_norm_fwd(const BatchNormFwd& a) {
    SMEM(BatchNormTile, tile);
    const unsigned col = blockIdx.x * COLS + lane_id();
    const bool inside = col < a.cols;
    const T* x = in<T>(a.x) + col;
    const size_t step = a.cols;
    const float mean = column_sum(tile, a.rows, inside, [&](unsigned row) { return to_f32(x[row * step]); }) / a.rows;
    const float square = column_sum(tile, a.rows, inside, [&](unsigned row) {
        const float d = to_f32(x[row * step]) - mean;
        return d * d;
    });
    const float var = square / a.rows, rstd = 1.f / sqrtf(var + a.eps);
    if (!inside) return;  // no barrier follows
    for (unsigned row = warp_id(); row < a.rows; row += ROWS)
        out<T>(a.y)[row * step + col] = from_f32<T>((to_f32(x[row * step]) - mean) * rstd);
    if (warp_id() == 0) {
        a.mean[col] = mean;
        a.var[col] = var;
    }
}
KERNEL_PER_DTYPE(batch_norm_fwd, BatchNormFwd)

struct BatchNormBwd {
    const void* dy;     // [rows, cols] T
    const void* x;      // [rows, cols] T
    const float* mean;  // [cols]
    const float* var;   // [cols]
    void* dx;           // [rows, cols] T
    unsigned rows, cols;
    float eps;
    unsigned pad;
};

template <class T>
__device__ void batch_norm_bwd(const BatchNormBwd& a) {
    SMEM(BatchNormTile, tile);
    const unsigned col = blockIdx.x * COLS + lane_id();
    const bool inside = col < a.cols;
    const T *x = in<T>(a.x) + col, *dy = in<T>(a.dy) + col;
    const size_t step = a.cols;
    const float mean = inside ? a.mean[col] : 0.f, rstd = inside ? 1.f / sqrtf(a.var[col] + a.eps) : 0.f;
    const float mean_g = column_sum(tile, a.rows, inside, [&](unsigned row) { return to_f32(dy[row * step]); }) / a.rows;
    const float sum_gx = column_sum(tile, a.rows, inside, [&](unsigned row) {
        return to_f32(dy[row * step]) * (to_f32(x[row * step]) - mean) * rstd;
    });
    const float mean_gx = sum_gx / a.rows;
    if (!inside) return;  // no barrier follows
    for (unsigned row = warp_id(); row < a.rows; row += ROWS) {
        const float normed = (to_f32(x[row * step]) - mean) * rstd;
        out<T>(a.dx)[row * step + col] = from_f32<T>(rstd * (to_f32(dy[row * step]) - mean_g - normed * mean_gx));
    }
}
KERNEL_PER_DTYPE(batch_norm_bwd, BatchNormBwd)

struct BatchNormNormalize {
    const void* x;      // [rows, cols] T
    const float* mean;  // [cols]
    const float* var;   // [cols]
    void* y;            // [rows, cols] T
    unsigned long long rows;
    unsigned cols;
    float eps;
};

// With given statistics. blockIdx.x covers the columns, blockIdx.y strides over the rows.
template <class T>
__device__ void batch_norm_normalize(const BatchNormNormalize& a) {
    const unsigned col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= a.cols) return;
    const float mean = a.mean[col], rstd = 1.f / sqrtf(a.var[col] + a.eps);
    for (unsigned long long row = blockIdx.y; row < a.rows; row += gridDim.y)
        out<T>(a.y)[row * a.cols + col] = from_f32<T>((to_f32(in<T>(a.x)[row * a.cols + col]) - mean) * rstd);
}
KERNEL_PER_DTYPE(batch_norm_normalize, BatchNormNormalize)
