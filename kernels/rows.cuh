// Rows of matrices: a warp copies or adds one row, a block sums columns over rows.
#pragma once
#include "elementwise.cuh"

// Kernels of a warp to a row for every type: four blocks of at most 256 threads to a multiprocessor, so 64 registers.
#define ROW_KERNELS(name, Args)                          \
    KERNEL_DTYPE_BOUNDS(name, f32, float, Args, 256, 4)  \
    KERNEL_DTYPE_BOUNDS(name, bf16, bf16, Args, 256, 4)  \
    KERNEL_DTYPE_BOUNDS(name, f16, f16, Args, 256, 4)

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

// Calls `body(first, Width<N>)` so that the accesses first + j * 32 * N for j below BATCH, where below `cols`, cover a row
// with the lanes of a warp. A body loads BATCH of them before it stores the first: the compiler may not move a load over a
// store. Rows of whole packs start at multiples of 16 bytes.
template <class T, int BATCH, class Body>
__device__ __forceinline__ void for_each_batch_in_row(unsigned cols, Body body) {
    constexpr int N = 16 / int(sizeof(T));
    if (cols % N == 0)
        for (unsigned first = lane_id() * N; first < cols; first += BATCH * WARP * N) body(first, Width<N>{});
    else
        for (unsigned first = lane_id(); first < cols; first += BATCH * WARP) body(first, Width<1>{});
}

// y = x
template <class T>
__device__ __forceinline__ void copy_row(T* y, const T* x, unsigned cols) {
    constexpr int BATCH = 4;
    for_each_batch_in_row<T, BATCH>(cols, [&](unsigned first, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> v[BATCH];
        UNROLL
        for (int j = 0; j < BATCH; ++j)
            if (first + j * WARP * N < cols) v[j] = load_vec<T, N>(x + first + j * WARP * N);
        UNROLL
        for (int j = 0; j < BATCH; ++j)
            if (first + j * WARP * N < cols) store_vec(y + first + j * WARP * N, v[j]);
    });
}

// y = a + b
template <class T>
__device__ __forceinline__ void add_rows(T* y, const T* a, const T* b, unsigned cols) {
    constexpr int BATCH = 2;
    for_each_batch_in_row<T, BATCH>(cols, [&](unsigned first, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> u[BATCH], v[BATCH];
        UNROLL
        for (int j = 0; j < BATCH; ++j) {
            const unsigned c = first + j * WARP * N;
            if (c < cols) u[j] = load_vec<T, N>(a + c), v[j] = load_vec<T, N>(b + c);
        }
        UNROLL
        for (int j = 0; j < BATCH; ++j) {
            const unsigned c = first + j * WARP * N;
            if (c >= cols) break;
            Vec<T, N> sum;
            UNROLL
            for (int i = 0; i < N; ++i) sum[i] = from_f32<T>(to_f32(u[j][i]) + to_f32(v[j][i]));
            store_vec(y + c, sum);
        }
    });
}

// y = value
template <class T>
__device__ __forceinline__ void fill_row(T* y, float value, unsigned cols) {
    for (unsigned i = lane_id(); i < cols; i += WARP) y[i] = from_f32<T>(value);
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

// Sums `x` over the warps of a block, at most MAX_WARPS; warp 0 has the sum. Every thread of the block calls it.
template <int MAX_WARPS, int N>
__device__ __forceinline__ void add_warps(float (&x)[N]) {
    SMEM(Floats<MAX_WARPS * WARP * N>, partial);  // [N, warps, 32]
    __syncthreads();  // an earlier use of `partial` is over
    UNROLL
    for (int j = 0; j < N; ++j) partial.v[j * blockDim.x + threadIdx.x] = x[j];
    __syncthreads();
    if (warp_id() != 0) return;
    const unsigned warps = blockDim.x / WARP;
    UNROLL
    for (int j = 0; j < N; ++j) {
        x[j] = 0.f;
        for (unsigned w = 0; w < warps; ++w) x[j] += partial.v[j * blockDim.x + w * WARP + lane_id()];
    }
}

// Calls `body(c, inside, Width<N>)` for the N columns from c of every lane, blockIdx.y striding over groups of 32 lanes:
// all warps of a block have the same columns, and all lanes are called.
template <class T, class Body>
__device__ __forceinline__ void for_each_lane_column(unsigned cols, Body body) {
    constexpr int N = 16 / int(sizeof(T));
    const unsigned n = cols % N == 0 ? N : 1;
    for (unsigned first = blockIdx.y * WARP * n; first < cols; first += gridDim.y * WARP * n) {
        const unsigned c = first + lane_id() * n;
        if (n == N)
            body(c, c < cols, Width<N>{});
        else
            body(c, c < cols, Width<1>{});
    }
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
