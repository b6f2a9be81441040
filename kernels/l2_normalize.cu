// Rows divided by their Euclidean norm: y = x / max(|x|, eps). Reference and gradient: src/ops/l2_normalize.
#include "rows.cuh"

// Sum over the row of what `term` gives for an element, by one warp.
template <class T, class Term>
__device__ __forceinline__ float row_sum(unsigned cols, Term term) {
    float sum = 0.f;
    for_each_in_row<T>(cols, [&](size_t i, auto width) { sum += term(i, width); });
    return warp_sum(sum);
}

struct L2NormalizeFwd {
    const void* x;   // [rows, cols] T
    void* y;         // [rows, cols] T
    float* inverse;  // [rows]: 1 / |x|, 0 of rows shorter than eps
    unsigned rows, cols;
    float eps;
    unsigned pad;
};

// One warp per row, which it reads twice, the second time from the cache.
template <class T>
__device__ void l2_normalize_fwd(const L2NormalizeFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    const float norm = sqrtf(row_sum<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> u = load_vec<T, N>(x + i);
        float square = 0.f;
        UNROLL
        for (int j = 0; j < N; ++j) square += to_f32(u[j]) * to_f32(u[j]);
        return square;
    }));
    const float inverse = 1.f / (norm < a.eps ? a.eps : norm);  // a NaN stays one
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> u = load_vec<T, N>(x + i);
        UNROLL
        for (int j = 0; j < N; ++j) u[j] = from_f32<T>(to_f32(u[j]) * inverse);
        store_vec(y + i, u);
    });
    if (lane_id() == 0) a.inverse[row] = norm < a.eps ? 0.f : inverse;
}
KERNEL_PER_DTYPE(l2_normalize_fwd, L2NormalizeFwd)

struct L2NormalizeBwd {
    const void* dy;        // [rows, cols] T
    const void* x;         // [rows, cols] T
    const float* inverse;  // [rows]
    void* dx;              // [rows, cols] T
    unsigned rows, cols;
};

// dx = (dy - (dy · x) x / |x|²) / |x|. One warp per row.
template <class T>
__device__ void l2_normalize_bwd(const L2NormalizeBwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    const T* dy = in<T>(a.dy) + size_t(row) * a.cols;
    T* dx = out<T>(a.dx) + size_t(row) * a.cols;
    const float inverse = a.inverse[row];
    const float dot = row_sum<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> u = load_vec<T, N>(x + i), g = load_vec<T, N>(dy + i);
        float sum = 0.f;
        UNROLL
        for (int j = 0; j < N; ++j) sum += to_f32(g[j]) * to_f32(u[j]);
        return sum;
    });
    const float along = dot * inverse * inverse;
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> u = load_vec<T, N>(x + i), g = load_vec<T, N>(dy + i);
        Vec<T, N> d;
        UNROLL
        for (int j = 0; j < N; ++j) d[j] = from_f32<T>(inverse * (to_f32(g[j]) - along * to_f32(u[j])));
        store_vec(dx + i, d);
    });
}
KERNEL_PER_DTYPE(l2_normalize_bwd, L2NormalizeBwd)
