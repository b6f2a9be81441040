// Weight normalisation by rows: w = g * v / |v| (arXiv 1602.07868, eq. 2). Reference and gradient: src/ops/weight_norm.
#include "rows.cuh"

// 1 / norm; 0 of a row without direction.
__device__ __forceinline__ float inverse_norm(float norm) { return norm == 0.f ? 0.f : 1.f / norm; }

struct WeightNormFwd {
    const void* v;  // [rows, cols] T
    const void* g;  // [rows] T, or null: 1
    void* w;        // [rows, cols] T
    float* norms;   // [rows]
    unsigned rows, cols;
};

// One warp per row, read a second time from the cache.
template <class T>
__device__ void weight_norm_fwd(const WeightNormFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* v = in<T>(a.v) + size_t(row) * a.cols;
    T* w = out<T>(a.w) + size_t(row) * a.cols;
    float square = 0.f;
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(v + i);
        UNROLL
        for (int j = 0; j < N; ++j) square += to_f32(x[j]) * to_f32(x[j]);
    });
    const float norm = sqrtf(warp_sum(square));
    const float scale = (a.g ? to_f32(in<T>(a.g)[row]) : 1.f) * inverse_norm(norm);
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(v + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(scale * to_f32(x[j]));
        store_vec(w + i, y);
    });
    if (lane_id() == 0) a.norms[row] = norm;
}
KERNEL_PER_DTYPE(weight_norm_fwd, WeightNormFwd)

struct WeightNormBwd {
    const void* dw;      // [rows, cols] T
    const void* v;       // [rows, cols] T
    const void* g;       // [rows] T, or null: 1
    const float* norms;  // [rows]
    float* dv;           // [rows, cols]
    float* dg;           // [rows], or null
    unsigned rows, cols;
};

template <class T>
__device__ void weight_norm_bwd(const WeightNormBwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* dw = in<T>(a.dw) + size_t(row) * a.cols;
    const T* v = in<T>(a.v) + size_t(row) * a.cols;
    float* dv = a.dv + size_t(row) * a.cols;
    const float inverse = inverse_norm(a.norms[row]);
    float dot = 0.f;
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> d = load_vec<T, N>(dw + i), x = load_vec<T, N>(v + i);
        UNROLL
        for (int j = 0; j < N; ++j) dot += to_f32(d[j]) * to_f32(x[j]);
    });
    const float along = warp_sum(dot) * inverse;
    const float scale = (a.g ? to_f32(in<T>(a.g)[row]) : 1.f) * inverse, back = along * inverse;
    // By 16 bytes of what is written: wider ones would leave gaps in every request.
    for_each_in_row<float>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> d = load_vec<T, N>(dw + i), x = load_vec<T, N>(v + i);
        Vec<float, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = scale * (to_f32(d[j]) - to_f32(x[j]) * back);
        store_vec(dv + i, y);
    });
    if (a.dg && lane_id() == 0) a.dg[row] = along;
}
KERNEL_PER_DTYPE(weight_norm_bwd, WeightNormBwd)
