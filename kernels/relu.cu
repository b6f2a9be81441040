// Positive part: y = max(x, 0); NaN stays NaN. Reference and gradient: src/ops/relu.
#include "elementwise.cuh"

struct ReluFwd {
    const void* x;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
};

template <class T>
__device__ void relu_fwd(const ReluFwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = to_f32(x[j]) <= 0.f ? from_f32<T>(0.f) : x[j];
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(relu_fwd, ReluFwd)

struct ReluBwd {
    const void* dy;  // [n] T
    const void* y;   // [n] T, the result
    void* dx;        // [n] T
    unsigned long long n;
};

// dx = dy where the result is not 0.
template <class T>
__device__ void relu_bwd(const ReluBwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> dy = load_vec<T, N>(in<T>(a.dy) + i), y = load_vec<T, N>(in<T>(a.y) + i);
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) dx[j] = to_f32(y[j]) <= 0.f ? from_f32<T>(0.f) : dy[j];
        store_vec(out<T>(a.dx) + i, dx);
    });
}
KERNEL_PER_DTYPE(relu_bwd, ReluBwd)
