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

// 16 bytes of T as they lie in memory: half the registers of widened ones, and an element widens in one instruction.
template <class T>
struct Packed {
    static constexpr int N = 16 / int(sizeof(T));
    Vec<unsigned, 4> word;
    __device__ __forceinline__ float operator[](int i) const;
};
template <>
__device__ __forceinline__ float Packed<float>::operator[](int i) const {
    return __uint_as_float(word[i]);
}
template <>
__device__ __forceinline__ float Packed<bf16>::operator[](int i) const {
    return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
}
template <>
__device__ __forceinline__ float Packed<f16>::operator[](int i) const {
    return __half2float(__ushort_as_half((unsigned short)(word[i / 2] >> (i % 2 * 16))));
}

// Reads p[0..16 / sizeof(T)]; `p` is aligned to 16 bytes.
template <class T>
__device__ __forceinline__ Packed<T> load_packed(const T* p) {
    return {load_vec<unsigned, 4>(reinterpret_cast<const unsigned*>(p))};
}

// A row held by the lanes of a warp: vector p of a lane is that of columns (p * 32 + lane) * N. Calls `body(p, c)` for the
// vectors that lie in the row, c their first column; unrolled, so that an array indexed by p stays in registers.
template <int N, int PACKS, class Body>
__device__ __forceinline__ void for_each_held(unsigned cols, Body body) {
    UNROLL
    for (int p = 0; p < PACKS; ++p) {
        const unsigned c = unsigned(p * WARP + lane_id()) * N;
        if (c < cols) body(p, c);
    }
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
