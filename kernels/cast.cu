// Conversions between storage types, rounded to nearest even. Reference: src/tensor/convert.rs.
#include "elementwise.cuh"

struct Cast {
    const void* x;  // [n] source type
    void* y;        // [n] target type
    unsigned long long n;
};

// As many elements at a time as fill 16 bytes of the wider type.
template <class From, class To>
__device__ __forceinline__ void cast(const Cast& a) {
    const auto body = [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<From, N> x = load_vec<From, N>(in<From>(a.x) + i);
        Vec<To, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<To>(to_f32(x[j]));
        store_vec(out<To>(a.y) + i, y);
    };
    if constexpr (sizeof(From) > sizeof(To))
        elementwise<From>(a.n, body);
    else
        elementwise<To>(a.n, body);
}

template <class To>
__device__ void cast_from_f32(const Cast& a) {
    cast<float, To>(a);
}
KERNEL_PER_DTYPE(cast_from_f32, Cast)

template <class To>
__device__ void cast_from_bf16(const Cast& a) {
    cast<bf16, To>(a);
}
KERNEL_PER_DTYPE(cast_from_bf16, Cast)

template <class To>
__device__ void cast_from_f16(const Cast& a) {
    cast<f16, To>(a);
}
KERNEL_PER_DTYPE(cast_from_f16, Cast)
