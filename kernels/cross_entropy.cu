// Softmax cross-entropy, the mean over rows: loss = -sum_k t_k log softmax(x)_k. The log-softmax is never stored.
// Reference and gradient: src/ops/cross_entropy.
// narrow-ok: cross_entropy_* a lane per column: rows of any length, no element is packed with others
#include "common.cuh"

struct CrossEntropyFwd {
    const void* logits;  // [rows, cols] T
    const int* classes;  // [rows], or null with
    const float* soft;   // [rows, cols]: targets
    float* lse;          // [rows]: log of the sum of exponentials
    float* losses;       // [rows]
    unsigned rows, cols;
    float smoothing;     // share of the target that is spread over all classes; 0 with `soft`
    unsigned pad;
};

// One warp per row.
template <class T>
__device__ void cross_entropy_fwd(const CrossEntropyFwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.logits) + size_t(row) * a.cols;
    float largest = -INFINITY;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) largest = fmaxf(largest, to_f32(x[c]));
    largest = warp_max(largest);
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) sum += expf(to_f32(x[c]) - largest);
    const float lse = largest + logf(warp_sum(sum));
    float loss;
    if (a.soft) {
        const float* t = a.soft + size_t(row) * a.cols;
        float part = 0.f;
        for (unsigned c = lane_id(); c < a.cols; c += WARP)
            if (t[c] != 0.f) part += t[c] * (lse - to_f32(x[c]));  // 0 times an infinite -log p is 0
        loss = warp_sum(part);
    } else {
        const unsigned c = unsigned(a.classes[row]);
        loss = c < a.cols ? (1.f - a.smoothing) * (lse - to_f32(x[c])) : NAN;
        if (a.smoothing > 0.f) {
            float part = 0.f;
            for (unsigned c = lane_id(); c < a.cols; c += WARP) part += lse - to_f32(x[c]);
            loss += a.smoothing * warp_sum(part) / a.cols;
        }
    }
    if (lane_id() == 0) {
        a.lse[row] = lse;
        a.losses[row] = loss;
    }
}
KERNEL_PER_DTYPE(cross_entropy_fwd, CrossEntropyFwd)

struct CrossEntropyMean {
    const float* losses;  // [rows]
    float* loss;          // [1]
    unsigned rows, pad;
};

// One block.
__device__ void cross_entropy_mean_f32_body(const CrossEntropyMean& a) {
    float sum = 0.f;
    for (unsigned row = threadIdx.x; row < a.rows; row += blockDim.x) sum += a.losses[row];
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.loss[0] = sum / a.rows;
}
KERNEL(cross_entropy_mean_f32, CrossEntropyMean)

struct CrossEntropyBwd {
    const float* dloss;  // [1]
    const void* logits;  // [rows, cols] T
    const float* lse;    // [rows]
    const int* classes;  // [rows], or null with
    const float* soft;   // [rows, cols]
    void* dlogits;       // [rows, cols] T
    unsigned rows, cols;
    float smoothing;
    unsigned pad;
};

// dx_k = dloss / rows * (p_k sum_j t_j - t_k), p = exp(x - lse). One warp per row.
template <class T>
__device__ void cross_entropy_bwd(const CrossEntropyBwd& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.logits) + size_t(row) * a.cols;
    T* dx = out<T>(a.dlogits) + size_t(row) * a.cols;
    const float scale = a.dloss[0] / a.rows, lse = a.lse[row];
    if (a.soft) {
        const float* t = a.soft + size_t(row) * a.cols;
        float part = 0.f;
        for (unsigned c = lane_id(); c < a.cols; c += WARP) part += t[c];
        const float total = warp_sum(part);
        for (unsigned c = lane_id(); c < a.cols; c += WARP)
            dx[c] = from_f32<T>(scale * (total * expf(to_f32(x[c]) - lse) - t[c]));
    } else {
        const unsigned hit = unsigned(a.classes[row]);
        const float off = a.smoothing / a.cols, on = 1.f - a.smoothing;
        for (unsigned c = lane_id(); c < a.cols; c += WARP)
            dx[c] = from_f32<T>(scale * (expf(to_f32(x[c]) - lse) - off - (c == hit ? on : 0.f)));
    }
}
KERNEL_PER_DTYPE(cross_entropy_bwd, CrossEntropyBwd)
