// GELU, exact form: y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2 (arXiv 1606.08415, section 2).
// Reference and gradient: src/ops/gelu.
#include "elementwise.cuh"

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.f + erff(x * 0.707106781f)); }

struct GeluFwd {
    const void* x;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
};

template <class T>
__device__ void gelu_fwd(const GeluFwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(x[j]) * normal_cdf(to_f32(x[j])));
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(gelu_fwd, GeluFwd)

struct GeluBwd {
    const void* dy;  // [n] T
    const void* x;   // [n] T
    void* dx;        // [n] T
    unsigned long long n;
};

// dx = dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi).
template <class T>
__device__ void gelu_bwd(const GeluBwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> dy = load_vec<T, N>(in<T>(a.dy) + i), x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float v = to_f32(x[j]);
            const float density = 0.398942280f * expf(-0.5f * v * v);
            dx[j] = from_f32<T>(to_f32(dy[j]) * (normal_cdf(v) + v * density));
        }
        store_vec(out<T>(a.dx) + i, dx);
    });
}
KERNEL_PER_DTYPE(gelu_bwd, GeluBwd)
