// Residual sum and its LayerNorm in one pass: sum = x + r, y = LN(sum). Reference and gradient: src/ops/add_layer_norm.
// narrow-ok: add_layer_norm_[fb]wd_[bf]* long rows, or those that no vector divides: a lane per column
#include "layer_norm.cuh"

struct AddLayerNormFwd {
    const void* x;  // [rows, cols] T
    const void* r;  // [rows, cols] T
    const void* w;  // [cols] T
    const void* b;  // [cols] T
    void* sum;      // [rows, cols] T
    void* y;        // [rows, cols] T
    float* stats;   // [rows, 2]: mean, rstd of the sum as stored
    unsigned rows, cols;
    float eps;      // added to the variance
    unsigned pad;
};

// One warp per row of any length. The sum is read back from the cache, by the lanes that wrote it.
template <class T>
__device__ void add_layer_norm_fwd(const AddLayerNormFwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const size_t at = size_t(row) * a.cols;
    T* sum = out<T>(a.sum) + at;
    for (unsigned c = lane_id(); c < a.cols; c += WARP)
        sum[c] = from_f32<T>(to_f32(in<T>(a.x)[at + c]) + to_f32(in<T>(a.r)[at + c]));
    const T* written = sum;
    layer_norm_row(written, in<T>(a.w), in<T>(a.b), out<T>(a.y) + at, a.stats + 2 * size_t(row), a.cols, a.eps);
}
KERNEL_PER_DTYPE(add_layer_norm_fwd, AddLayerNormFwd)

// One warp per row, whose sum it holds in registers.
template <class T, int PACKS>
__device__ void add_layer_norm_fwd_held(const AddLayerNormFwd& a) {
    constexpr int N = Packed<T>::N;
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const size_t at = size_t(row) * a.cols;
    Packed<T> x[PACKS], r[PACKS];
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        x[p] = load_packed(in<T>(a.x) + at + c);
        r[p] = load_packed(in<T>(a.r) + at + c);
    });
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        Vec<T, N> sum;
        UNROLL
        for (int j = 0; j < N; ++j) sum[j] = from_f32<T>(x[p][j] + r[p][j]);
        store_vec(out<T>(a.sum) + at + c, sum);
        memcpy(&x[p], &sum, sizeof(sum));  // as rounded
    });
    layer_norm_held(x, in<T>(a.w), in<T>(a.b), out<T>(a.y) + at, a.stats + 2 * size_t(row), a.cols, a.eps);
}
HELD_KERNELS(add_layer_norm_fwd, AddLayerNormFwd, 128)

struct AddLayerNormBwd {
    LayerNormBwd norm;  // its x is the sum
    const void* dsum;   // [rows, cols] T: the gradient that reached the sum itself
};

// Where no gradient reached the sum itself, the kernels of layer_norm.cu do it.
template <class T>
__device__ void add_layer_norm_bwd(const AddLayerNormBwd& a) {
    layer_norm_bwd_rows<T>(a.norm, in<T>(a.dsum));
}
KERNEL_PER_DTYPE(add_layer_norm_bwd, AddLayerNormBwd)

template <class T, int PACKS>
__device__ void add_layer_norm_bwd_held(const AddLayerNormBwd& a) {
    layer_norm_bwd_held<T, PACKS, true>(a.norm, in<T>(a.dsum));
}
HELD_KERNELS(add_layer_norm_bwd, AddLayerNormBwd, HELD_WARPS * WARP)
