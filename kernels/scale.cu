// Product with a number: y = factor * x. Reference and gradient: src/ops/scale.
#include "elementwise.cuh"

struct ScaleFwd {
    const void* x;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
    float factor;
    unsigned pad;
};

template <class T>
__device__ void scale_fwd(const ScaleFwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(a.factor * to_f32(x[j]));
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(scale_fwd, ScaleFwd)
