// SwiGLU: y = silu(a) * b with [a, b] = x (arXiv 2002.05202, eq. 5). Reference and gradient: src/ops/swiglu.
#include "elementwise.cuh"
#include "ptx.cuh"

// Calls `body(i, Width<N>)` over the `hidden` columns of one row with the threads of a block. Halves of whole vectors
// start at multiples of 16 bytes.
template <class T, class Body>
__device__ __forceinline__ void for_each_hidden(unsigned hidden, Body body) {
    for_each_pack<T>(hidden, threadIdx.x, blockDim.x, hidden % (16 / sizeof(T)) == 0, body);
}

struct SwigluFwd {
    const void* x;  // [rows, 2, hidden] T: gate, value
    void* y;        // [rows, hidden] T
    unsigned rows, hidden;
};

// One block per row.
template <class T>
__device__ void swiglu_fwd(const SwigluFwd& a) {
    const T* x = in<T>(a.x) + 2 * size_t(blockIdx.x) * a.hidden;
    T* out_row = out<T>(a.y) + size_t(blockIdx.x) * a.hidden;
    for_each_hidden<T>(a.hidden, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> gate = load_vec<T, N>(x + i), value = load_vec<T, N>(x + a.hidden + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float g = to_f32(gate[j]);
            y[j] = from_f32<T>(g * sigmoid_approx(g) * to_f32(value[j]));
        }
        store_vec(out_row + i, y);
    });
}
KERNEL_PER_DTYPE_BOUNDS(swiglu_fwd, SwigluFwd, 256)

struct SwigluBwd {
    const void* dy;  // [rows, hidden] T
    const void* x;   // [rows, 2, hidden] T
    void* dx;        // [rows, 2, hidden] T
    unsigned rows, hidden;
};

template <class T>
__device__ void swiglu_bwd(const SwigluBwd& a) {
    const T* dy_row = in<T>(a.dy) + size_t(blockIdx.x) * a.hidden;
    const T* x = in<T>(a.x) + 2 * size_t(blockIdx.x) * a.hidden;
    T* dx = out<T>(a.dx) + 2 * size_t(blockIdx.x) * a.hidden;
    for_each_hidden<T>(a.hidden, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> gate = load_vec<T, N>(x + i), value = load_vec<T, N>(x + a.hidden + i);
        const Vec<T, N> dy = load_vec<T, N>(dy_row + i);
        Vec<T, N> dgate, dvalue;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float g = to_f32(gate[j]), d = to_f32(dy[j]), s = sigmoid_approx(g);
            dgate[j] = from_f32<T>(d * to_f32(value[j]) * (s * (1.f + g * (1.f - s))));
            dvalue[j] = from_f32<T>(d * (g * s));
        }
        store_vec(dx + i, dgate);
        store_vec(dx + a.hidden + i, dvalue);
    });
}
KERNEL_PER_DTYPE_BOUNDS(swiglu_bwd, SwigluBwd, 256)
