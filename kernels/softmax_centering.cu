// Centred softmax of teacher logits by factors, as of sinkhorn_knopp: softmax((z - c) / T) = exp(z / T + a + l) with
// a = -c / T. The mean of the logits, which moves the centre later, comes from the same read. Reference:
// src/ops/softmax_centering.
// narrow-ok: softmax_centering_rows_f32 a few numbers per row
#include "prototypes.cuh"

struct SoftmaxCenteringFwd {
    const void* logits;   // [rows, cols] T
    const float* temp;    // [1]
    const float* centre;  // [cols]
    float* a;             // [cols]
    float* sums;          // [rows, tiles, 2]: shift, sum of a tile's Σ_k exp(z / T + a)
    float* part;          // [parts, cols]: Σ_b z
    const int* count;     // [1]: the first rows, which count; null: all
    unsigned rows, cols;
};

template <class T, int V>
__device__ __forceinline__ void centred(const SoftmaxCenteringFwd& a) {
    const Tile<V> tile(a.cols);
    const float temp = a.temp[0];
    Columns<float, V> prototypes = load_columns<float, V>(a.centre, tile, 0.f), total;
    for_columns<V>([&](int m, int j) { prototypes.v[m][j] /= -temp, total.v[m][j] = 0.f; });
    if (blockIdx.y == 0) store_columns<float, V>(a.a, tile, prototypes);
    const auto add = [&](const Columns<T, V>& z) {
        for_columns<V>([&](int m, int j) { total.v[m][j] += to_f32(z.v[m][j]); });
    };
    row_sums<T, V>(in<T>(a.logits), tile, 1.f / temp, prototypes, part_of(counted({0, a.rows}, a.count)), a.sums, add);
    store_columns<float, V>(a.part + size_t(blockIdx.y) * a.cols, tile, total);
}

template <class T>
__device__ void softmax_centering_fwd(const SoftmaxCenteringFwd& a) {
    constexpr int V = 16 / int(sizeof(T));
    if (a.cols % V == 0)
        centred<T, V>(a);
    else
        centred<T, 1>(a);
}
KERNEL_PER_DTYPE_BOUNDS(softmax_centering_fwd, SoftmaxCenteringFwd, TILE_THREADS)

__device__ void softmax_centering_rows_f32_body(const RowFactors& a) { row_factors(a); }
KERNEL(softmax_centering_rows_f32, RowFactors)

struct SoftmaxCenteringMean {
    const float* part;    // [parts, cols]
    const float* centre;  // [cols]: the mean of no rows
    float* mean;          // [cols]
    const int* count;     // [1]: the first rows, which count; null: all
    unsigned parts, cols;
    unsigned rows, pad;
};

// One thread per column.
__device__ void softmax_centering_mean_f32_body(const SoftmaxCenteringMean& a) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= a.cols) return;
    float sum = 0.f;
    for (unsigned p = 0; p < a.parts; ++p) sum += a.part[size_t(p) * a.cols + k];
    const unsigned rows = counted({0, a.rows}, a.count).to;
    a.mean[k] = rows ? sum / rows : a.centre[k];
}
KERNEL(softmax_centering_mean_f32, SoftmaxCenteringMean)
