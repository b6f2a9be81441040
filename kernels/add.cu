// Sums: y = a + b as an operation, and y += x in place, by which gradients and micro-batches accumulate.
// References: src/ops/add and src/tensor/convert.rs.
#include "elementwise.cuh"

struct AddFwd {
    const void* a;  // [n] T
    const void* b;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
};

template <class T>
__device__ void add_fwd(const AddFwd& args) {
    elementwise<T>(args.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> a = load_vec<T, N>(in<T>(args.a) + i), b = load_vec<T, N>(in<T>(args.b) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(a[j]) + to_f32(b[j]));
        store_vec(out<T>(args.y) + i, y);
    });
}
KERNEL_PER_DTYPE(add_fwd, AddFwd)

struct AddAccumulate {
    void* y;        // [n] T, read and written
    const void* x;  // [n] T
    unsigned long long n;
};

template <class T>
__device__ void add_accumulate(const AddAccumulate& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y = load_vec<T, N>(in<T>(a.y) + i);
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(y[j]) + to_f32(x[j]));
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(add_accumulate, AddAccumulate)
