// GELU: y = x Phi(x), in the exact form Phi(x) = (1 + erf(x / sqrt 2)) / 2 and in the approximation by tanh
// (arXiv 1606.08415, section 2). Reference and gradient: src/ops/gelu.
#include "elementwise.cuh"
#include "ptx.cuh"

// Phi and its derivative, exact to f32.
struct Erf {
    static __device__ __forceinline__ float cdf(float x) { return 0.5f * (1.f + erff(x * 0.707106781f)); }
    static __device__ __forceinline__ float slope(float x, float& density) {
        density = 0.398942280f * expf(-0.5f * x * x);
        return cdf(x);
    }
};

// The same to 1e-7 of 1, for results of 16 bits: Abramowitz and Stegun 7.1.26, whose exponential is also the density's.
struct ErfNarrow {
    static __device__ __forceinline__ float slope(float x, float& density) {
        const float t = reciprocal_approx(1.f + 0.231641888f * fabsf(x)), e = exp2_approx(-0.721347520f * x * x);
        const float p = t * (0.127414796f + t * (-0.142248368f + t * (0.710706871f + t * (-0.726576014f + t * 0.530702715f))));
        density = 0.398942280f * e;
        const float tail = p * e;  // Phi(-|x|)
        return x < 0.f ? tail : 1.f - tail;
    }
    static __device__ __forceinline__ float cdf(float x) {
        float density;
        return slope(x, density);
    }
};

// Phi(x) = sigma(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct Tanh {
    static __device__ __forceinline__ float cdf(float x) {
        return sigmoid_approx(1.595769122f * x * (1.f + 0.044715f * x * x));
    }
    static __device__ __forceinline__ float slope(float x, float& density) {
        const float s = cdf(x);
        density = s * (1.f - s) * (1.595769122f * (1.f + 0.134145f * x * x));
        return s;
    }
};

template <class T>
struct ExactOf {
    typedef ErfNarrow type;
};
template <>
struct ExactOf<float> {
    typedef Erf type;
};

struct GeluFwd {
    const void* x;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
};

template <class T, class Phi>
__device__ __forceinline__ void fwd(const GeluFwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(x[j]) * Phi::cdf(to_f32(x[j])));
        store_vec(out<T>(a.y) + i, y);
    });
}

template <class T>
__device__ void gelu_fwd(const GeluFwd& a) {
    fwd<T, typename ExactOf<T>::type>(a);
}
KERNEL_PER_DTYPE(gelu_fwd, GeluFwd)

template <class T>
__device__ void gelu_fwd_tanh(const GeluFwd& a) {
    fwd<T, Tanh>(a);
}
KERNEL_PER_DTYPE(gelu_fwd_tanh, GeluFwd)

struct GeluBwd {
    const void* dy;  // [n] T
    const void* x;   // [n] T
    void* dx;        // [n] T
    unsigned long long n;
};

// dx = dy (Phi(x) + x Phi'(x)).
template <class T, class Phi>
__device__ __forceinline__ void bwd(const GeluBwd& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> dy = load_vec<T, N>(in<T>(a.dy) + i), x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float v = to_f32(x[j]);
            float density;
            const float cdf = Phi::slope(v, density);
            dx[j] = from_f32<T>(to_f32(dy[j]) * (cdf + v * density));
        }
        store_vec(out<T>(a.dx) + i, dx);
    });
}

template <class T>
__device__ void gelu_bwd(const GeluBwd& a) {
    bwd<T, typename ExactOf<T>::type>(a);
}
KERNEL_PER_DTYPE(gelu_bwd, GeluBwd)

template <class T>
__device__ void gelu_bwd_tanh(const GeluBwd& a) {
    bwd<T, Tanh>(a);
}
KERNEL_PER_DTYPE(gelu_bwd_tanh, GeluBwd)
