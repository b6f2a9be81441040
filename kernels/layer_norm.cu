// LayerNorm over the last axis: y = (x - mean) * rstd * w + b. Reference and gradient: src/ops/layer_norm.
// narrow-ok: layer_norm_[fb]wd_[bf]* long rows, or those that no vector divides: a lane per column
// narrow-ok: layer_norm_bwd_reduce_f32 a lane per column of a few partial sums
#include "layer_norm.cuh"

struct LayerNormFwd {
    const void* x;  // [rows, cols] T
    const void* w;  // [cols] T
    const void* b;  // [cols] T
    void* y;        // [rows, cols] T
    float* stats;   // [rows, 2]: mean, rstd
    unsigned rows, cols;
    float eps;      // added to the variance
    unsigned pad;
};

// One warp per row of any length, which it reads three times, twice from the cache.
template <class T>
__device__ void layer_norm_fwd(const LayerNormFwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const size_t at = size_t(row) * a.cols;
    layer_norm_row(in<T>(a.x) + at, in<T>(a.w), in<T>(a.b), out<T>(a.y) + at, a.stats + 2 * size_t(row), a.cols, a.eps);
}
KERNEL_PER_DTYPE(layer_norm_fwd, LayerNormFwd)

// One warp per row, which it holds in registers.
template <class T, int PACKS>
__device__ void layer_norm_fwd_held(const LayerNormFwd& a) {
    constexpr int N = Packed<T>::N;
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const size_t at = size_t(row) * a.cols;
    Packed<T> x[PACKS];
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) { x[p] = load_packed(in<T>(a.x) + at + c); });
    layer_norm_held(x, in<T>(a.w), in<T>(a.b), out<T>(a.y) + at, a.stats + 2 * size_t(row), a.cols, a.eps);
}
HELD_KERNELS(layer_norm_fwd, LayerNormFwd, 128)

template <class T>
__device__ void layer_norm_bwd(const LayerNormBwd& a) {
    layer_norm_bwd_rows<T>(a, nullptr);
}
KERNEL_PER_DTYPE(layer_norm_bwd, LayerNormBwd)

template <class T, int PACKS>
__device__ void layer_norm_bwd_held(const LayerNormBwd& a) {
    layer_norm_bwd_held<T, PACKS, false>(a, nullptr);
}
HELD_KERNELS(layer_norm_bwd, LayerNormBwd, HELD_WARPS * WARP)

struct LayerNormBwdReduce {
    const float* part;  // [2, parts, cols]: of dw and of db
    float* dw;          // [cols]
    float* db;          // [cols]
    unsigned parts, cols;
};

// blockIdx.y: 0 sums dw, 1 db.
__device__ void layer_norm_bwd_reduce_f32_body(const LayerNormBwdReduce& a) {
    const float* part = a.part + size_t(blockIdx.y) * a.parts * a.cols;
    column_sum({part, blockIdx.y ? a.db : a.dw, a.parts, a.cols});
}
KERNEL(layer_norm_bwd_reduce_f32, LayerNormBwdReduce)
