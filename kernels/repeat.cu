// Copies along a new first axis: y[t] = x. Reference and gradient: src/ops/repeat.
#include "elementwise.cuh"

struct RepeatFwd {
    const void* x;  // [n] T
    void* y;        // [times, n] T
    unsigned long long n, times;
};

// blockIdx.y and every gridDim.y-th after it are the copies a thread writes of what it has read once.
template <class T>
__device__ void repeat_fwd(const RepeatFwd& a) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool packed = a.n % (16 / sizeof(T)) == 0;
    for_each_pack<T>(a.n, thread, size_t(gridDim.x) * blockDim.x, packed, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        for (size_t t = blockIdx.y; t < a.times; t += gridDim.y) store_vec(out<T>(a.y) + t * a.n + i, x);
    });
}
KERNEL_PER_DTYPE(repeat_fwd, RepeatFwd)
