// Logistic function, scaled and shifted: y = scale * sigma(x) + bias. Reference and gradient: src/ops/sigmoid.
#include "elementwise.cuh"
#include "ptx.cuh"

struct SigmoidFwd {
    const void* x;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
    float scale, bias;
};

template <class T>
__device__ void sigmoid_fwd(const SigmoidFwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(a.scale * sigmoid_approx(to_f32(x[j])) + a.bias);
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(sigmoid_fwd, SigmoidFwd)

struct SigmoidBwd {
    const void* dy;  // [n] T
    const void* x;   // [n] T
    void* dx;        // [n] T
    unsigned long long n;
    float scale;
    unsigned pad;
};

// dx = dy * scale * s (1 - s), s = sigma(-|x|) at most 1/2.
template <class T>
__device__ void sigmoid_bwd(const SigmoidBwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> dy = load_vec<T, N>(in<T>(a.dy) + i), x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float s = sigmoid_approx(-fabsf(to_f32(x[j])));
            dx[j] = from_f32<T>(to_f32(dy[j]) * (a.scale * (s * (1.f - s))));
        }
        store_vec(out<T>(a.dx) + i, dx);
    });
}
KERNEL_PER_DTYPE(sigmoid_bwd, SigmoidBwd)
