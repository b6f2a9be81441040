// Residual connection with one factor per sequence (stochastic depth): y = x + s[g] * branch.
// Reference and gradient: src/ops/residual.
#include "elementwise.cuh"

struct ResidualFwd {
    const void* x;       // [groups, span] T
    const void* branch;  // [groups, span] T
    const float* scale;  // [groups]
    void* y;             // [groups, span] T
    unsigned long long span;  // elements of one group: its rows times the columns
    unsigned groups, pad;
};

// blockIdx.x strides over a group's elements, blockIdx.y over the groups. Groups start at multiples of 16 bytes or are
// taken element by element.
template <class T, class Body>
__device__ __forceinline__ void for_each_group(size_t span, unsigned groups, Body body) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = size_t(gridDim.x) * blockDim.x;
    const bool packed = span % (16 / sizeof(T)) == 0;
    for (unsigned g = blockIdx.y; g < groups; g += gridDim.y)
        for_each_pack<T>(span, thread, threads, packed, [&](size_t i, auto width) { body(g, g * span + i, width); });
}

template <class T>
__device__ void residual_fwd(const ResidualFwd& a) {
    for_each_group<T>(a.span, a.groups, [&](unsigned g, size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const float scale = a.scale[g];
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i), branch = load_vec<T, N>(in<T>(a.branch) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(x[j]) + scale * to_f32(branch[j]));
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(residual_fwd, ResidualFwd)

struct ResidualBwd {
    const void* dy;      // [groups, span] T
    const float* scale;  // [groups]
    void* dbranch;       // [groups, span] T
    unsigned long long span;
    unsigned groups, pad;
};

template <class T>
__device__ void residual_bwd(const ResidualBwd& a) {
    for_each_group<T>(a.span, a.groups, [&](unsigned g, size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const float scale = a.scale[g];
        const Vec<T, N> dy = load_vec<T, N>(in<T>(a.dy) + i);
        Vec<T, N> dbranch;
        UNROLL
        for (int j = 0; j < N; ++j) dbranch[j] = from_f32<T>(scale * to_f32(dy[j]));
        store_vec(out<T>(a.dbranch) + i, dbranch);
    });
}
KERNEL_PER_DTYPE(residual_bwd, ResidualBwd)
