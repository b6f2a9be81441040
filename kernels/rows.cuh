// Rows of matrices: a warp copies or adds one row, a block sums columns over rows.
#pragma once
#include "elementwise.cuh"

// Row the warp is responsible for, with one warp per row.
__device__ __forceinline__ unsigned warp_row() { return blockIdx.x * (blockDim.x / WARP) + warp_id(); }

// Calls `body(i, Width<N>)` over a row of `cols` elements of T with the lanes of a warp. Rows of whole packs start at
// multiples of 16 bytes.
template <class T, class Body>
__device__ __forceinline__ void for_each_in_row(unsigned cols, Body body) {
    for_each_pack<T>(cols, lane_id(), WARP, cols % (16 / sizeof(T)) == 0, body);
}

// y = x
template <class T>
__device__ __forceinline__ void copy_row(T* y, const T* x, unsigned cols) {
    for_each_in_row<T>(cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        store_vec(y + i, load_vec<T, N>(x + i));
    });
}

// y = a + b
template <class T>
__device__ __forceinline__ void add_rows(T* y, const T* a, const T* b, unsigned cols) {
    for_each_in_row<T>(cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> u = load_vec<T, N>(a + i), v = load_vec<T, N>(b + i);
        Vec<T, N> sum;
        UNROLL
        for (int j = 0; j < N; ++j) sum[j] = from_f32<T>(to_f32(u[j]) + to_f32(v[j]));
        store_vec(y + i, sum);
    });
}

// y = value
template <class T>
__device__ __forceinline__ void fill_row(T* y, float value, unsigned cols) {
    for (unsigned i = lane_id(); i < cols; i += WARP) y[i] = from_f32<T>(value);
}

// Calls `body(i, Width<N>)` over `cols` columns with the threads of the blocks of one blockIdx.x.
template <class T, class Body>
__device__ __forceinline__ void for_each_column(unsigned cols, Body body) {
    const size_t thread = size_t(blockIdx.y) * blockDim.x + threadIdx.x;
    for_each_pack<T>(cols, thread, size_t(gridDim.y) * blockDim.x, cols % (16 / sizeof(T)) == 0, body);
}

// sum += x
template <class T, int N>
__device__ __forceinline__ void accumulate(float (&sum)[N], const Vec<T, N>& x) {
    UNROLL
    for (int j = 0; j < N; ++j) sum[j] += to_f32(x[j]);
}

// to[0..N] = sum
template <int N>
__device__ __forceinline__ void store_sum(float* to, const float (&sum)[N]) {
    Vec<float, N> x;
    UNROLL
    for (int j = 0; j < N; ++j) x[j] = sum[j];
    store_vec(to, x);
}

// Second stage of a column sum: y[c] = Σ_p part[p, c]. 32 columns per block, its warps take parts in turn.
struct ColumnSum {
    const float* part;  // [parts, cols]
    float* y;           // [cols]
    unsigned parts, cols;
};

__device__ __forceinline__ void column_sum(const ColumnSum& a) {
    SMEM(Floats<32 * WARP>, partial);  // [warps, 32]
    const unsigned c = blockIdx.x * WARP + lane_id(), warps = blockDim.x / WARP;
    float sum = 0.f;
    if (c < a.cols)
        for (unsigned p = warp_id(); p < a.parts; p += warps) sum += a.part[size_t(p) * a.cols + c];
    partial.v[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() == 0 && c < a.cols) {
        float total = 0.f;
        for (unsigned w = 0; w < warps; ++w) total += partial.v[w * WARP + lane_id()];
        a.y[c] = total;
    }
}
