// Softmax over the last axis: y = exp(x - max) / sum. Reference and gradient: src/ops/softmax.
// narrow-ok: softmax_* a lane per column: rows of any length, no element is packed with others
#include "common.cuh"

struct SoftmaxFwd {
    const void* x;  // [rows, cols] T
    void* y;        // [rows, cols] T
    unsigned rows, cols;
};

// One warp per row; a row is read three times, twice from the cache.
template <class T>
__device__ void softmax_fwd(const SoftmaxFwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    float max = -INFINITY;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) max = fmaxf(max, to_f32(x[c]));
    max = warp_max(max);
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) sum += expf(to_f32(x[c]) - max);
    const float inverse = 1.f / warp_sum(sum);
    for (unsigned c = lane_id(); c < a.cols; c += WARP) y[c] = from_f32<T>(expf(to_f32(x[c]) - max) * inverse);
}
KERNEL_PER_DTYPE(softmax_fwd, SoftmaxFwd)

struct SoftmaxBwd {
    const void* dy;  // [rows, cols] T
    const void* y;   // [rows, cols] T
    void* dx;        // [rows, cols] T
    unsigned rows, cols;
};

// One warp per row: dx = y * (dy - sum(dy * y)).
template <class T>
__device__ void softmax_bwd(const SoftmaxBwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* dy = in<T>(a.dy) + size_t(row) * a.cols;
    const T* y = in<T>(a.y) + size_t(row) * a.cols;
    T* dx = out<T>(a.dx) + size_t(row) * a.cols;
    float dot = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) dot += to_f32(dy[c]) * to_f32(y[c]);
    dot = warp_sum(dot);
    for (unsigned c = lane_id(); c < a.cols; c += WARP) dx[c] = from_f32<T>(to_f32(y[c]) * (to_f32(dy[c]) - dot));
}
KERNEL_PER_DTYPE(softmax_bwd, SoftmaxBwd)
