// Bias gradient of a linear layer: column sums of dy, in two passes with a fixed split so that every run gives the
// same bits. The products are cuBLASLt's. Reference: src/ops/linear.
// narrow-ok: linear_bwd_bias_* a lane per column: rows of any length, no element is packed with others
#include "rows.cuh"

struct LinearBwdBias {
    const void* dy;  // [rows, cols] T
    float* part;     // [parts, cols]
    unsigned long long rows;
    unsigned cols, rows_per_part;
};

struct LinearBiasTile {
    float sum[8][32];
};

// Block (32, 8): x walks columns, y rows; blockIdx.y owns rows_per_part rows.
template <class T>
__device__ void linear_bwd_bias(const LinearBwdBias& a) {
    SMEM(LinearBiasTile, tile);
    const unsigned col = blockIdx.x * 32 + threadIdx.x;
    const unsigned long long first = (unsigned long long)blockIdx.y * a.rows_per_part;
    const unsigned long long last = first + a.rows_per_part < a.rows ? first + a.rows_per_part : a.rows;
    float sum = 0.f;
    if (col < a.cols)
        for (unsigned long long row = first + threadIdx.y; row < last; row += 8)
            sum += to_f32(in<T>(a.dy)[row * a.cols + col]);
    tile.sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < a.cols) {
        float total = 0.f;
        for (int y = 0; y < 8; ++y) total += tile.sum[y][threadIdx.x];
        a.part[size_t(blockIdx.y) * a.cols + col] = total;
    }
}
KERNEL_PER_DTYPE(linear_bwd_bias, LinearBwdBias)

__device__ void linear_bwd_bias_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(linear_bwd_bias_reduce_f32, ColumnSum)
