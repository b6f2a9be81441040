// Softmax cross-entropy, the mean over rows: loss = -sum_k t_k log softmax(x)_k. The log-softmax is never stored.
// Reference and gradient: src/ops/cross_entropy.
// narrow-ok: cross_entropy_[fb]wd_[bf]* a lane per column: rows of any length, no element is packed with others
#include "rows.cuh"

#define ROWS 8  // of a block, a warp each
// Vectors of 16 bytes that a lane of the kernels `_held` has of a row of at most 1024 columns.
template <class T>
constexpr int PACKS = 32 / Packed<T>::N;

struct CrossEntropyFwd {
    const void* logits;  // [rows, cols] T
    const int* classes;  // [rows], or null with
    const float* soft;   // [rows, cols]: targets
    float* lse;          // [rows]: log of the sum of exponentials
    float* part;         // [blocks]: losses of ROWS rows, summed
    unsigned rows, cols;
    float smoothing;     // share of the target that is spread over all classes; 0 with `soft`
    unsigned pad;
};

// Loss of a row. `part`: a lane's share of sum_k t_k (lse - x_k) with `soft`, of sum_k (lse - x_k) with smoothing.
template <class T>
__device__ __forceinline__ float row_loss(const CrossEntropyFwd& a, unsigned row, const T* x, float lse, float part) {
    if (a.soft) return warp_sum(part);
    const unsigned c = unsigned(a.classes[row]);
    const float loss = c < a.cols ? (1.f - a.smoothing) * (lse - to_f32(x[c])) : NAN;
    return a.smoothing > 0.f ? loss + a.smoothing * warp_sum(part) / a.cols : loss;
}

// A row of any length: log of the sum of exponentials, and the loss.
template <class T>
__device__ __forceinline__ float2 any_row(const CrossEntropyFwd& a, unsigned row) {
    const T* x = in<T>(a.logits) + size_t(row) * a.cols;
    float largest = -INFINITY;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) largest = fmaxf(largest, to_f32(x[c]));
    largest = warp_max(largest);
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) sum += expf(to_f32(x[c]) - largest);
    const float lse = largest + logf(warp_sum(sum));
    float part = 0.f;
    if (a.soft) {
        const float* t = a.soft + size_t(row) * a.cols;
        for (unsigned c = lane_id(); c < a.cols; c += WARP)
            if (t[c] != 0.f) part += t[c] * (lse - to_f32(x[c]));  // 0 times an infinite -log p is 0
    } else if (a.smoothing > 0.f) {
        for (unsigned c = lane_id(); c < a.cols; c += WARP) part += lse - to_f32(x[c]);
    }
    return make_float2(lse, row_loss(a, row, x, lse, part));
}

// A row of whole vectors in the registers of a warp.
template <class T>
__device__ __forceinline__ float2 held_row(const CrossEntropyFwd& a, unsigned row) {
    constexpr int N = Packed<T>::N;
    const T* x = in<T>(a.logits) + size_t(row) * a.cols;
    Packed<T> held[PACKS<T>] = {};
    for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned c) { held[p] = load_packed(x + c); });
    float largest = -INFINITY;
    for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned) {
        UNROLL
        for (int j = 0; j < N; ++j) largest = fmaxf(largest, held[p][j]);
    });
    largest = warp_max(largest);
    float sum = 0.f;
    for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned) {
        UNROLL
        for (int j = 0; j < N; ++j) sum += expf(held[p][j] - largest);
    });
    const float lse = largest + logf(warp_sum(sum));
    float part = 0.f;
    if (a.soft)
        for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned c) {
            const Vec<float, N> t = load_vec<float, N>(a.soft + size_t(row) * a.cols + c);
            UNROLL
            for (int j = 0; j < N; ++j)
                if (t[j] != 0.f) part += t[j] * (lse - held[p][j]);  // as above
        });
    else if (a.smoothing > 0.f)
        for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned) {
            UNROLL
            for (int j = 0; j < N; ++j) part += lse - held[p][j];
        });
    return make_float2(lse, row_loss(a, row, x, lse, part));
}

// One warp per row; every thread reaches the block's sum.
template <class T, bool HELD>
__device__ __forceinline__ void forward(const CrossEntropyFwd& a) {
    const unsigned row = warp_row();
    float2 result = make_float2(0.f, 0.f);
    if (row < a.rows) {
        result = HELD ? held_row<T>(a, row) : any_row<T>(a, row);
        if (lane_id() == 0) a.lse[row] = result.x;
    }
    const float total = block_sum<ROWS>(lane_id() == 0 ? result.y : 0.f);
    if (threadIdx.x == 0) a.part[blockIdx.x] = total;
}

template <class T>
__device__ void cross_entropy_fwd(const CrossEntropyFwd& a) {
    forward<T, false>(a);
}
KERNEL_PER_DTYPE_BOUNDS(cross_entropy_fwd, CrossEntropyFwd, ROWS * WARP)

template <class T>
__device__ void cross_entropy_fwd_held(const CrossEntropyFwd& a) {
    forward<T, true>(a);
}
KERNEL_PER_DTYPE_BOUNDS(cross_entropy_fwd_held, CrossEntropyFwd, ROWS * WARP)

struct CrossEntropyMean {
    const float* part;  // [parts]
    float* loss;        // [1]
    unsigned parts, rows;
};

// One block.
__device__ void cross_entropy_mean_f32_body(const CrossEntropyMean& a) {
    float sum = 0.f;
    for (unsigned p = threadIdx.x; p < a.parts; p += blockDim.x) sum += a.part[p];
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

// The same of a row of whole vectors in the registers of a warp.
template <class T>
__device__ void cross_entropy_bwd_held(const CrossEntropyBwd& a) {
    constexpr int N = Packed<T>::N;
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.logits) + size_t(row) * a.cols;
    T* dx = out<T>(a.dlogits) + size_t(row) * a.cols;
    const float* soft = a.soft ? a.soft + size_t(row) * a.cols : nullptr;
    Packed<T> held[PACKS<T>] = {};
    for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned c) { held[p] = load_packed(x + c); });
    const float scale = a.dloss[0] / a.rows, lse = a.lse[row];
    float total = 1.f;
    if (soft) {
        float part = 0.f;
        for_each_held<N, PACKS<T>>(a.cols, [&](int, unsigned c) {
            const Vec<float, N> t = load_vec<float, N>(soft + c);
            UNROLL
            for (int j = 0; j < N; ++j) part += t[j];
        });
        total = warp_sum(part);
    }
    const unsigned hit = soft ? a.cols : unsigned(a.classes[row]);
    const float off = a.smoothing / a.cols, on = 1.f - a.smoothing;
    for_each_held<N, PACKS<T>>(a.cols, [&](int p, unsigned c) {
        Vec<float, N> t;
        if (soft)
            t = load_vec<float, N>(soft + c);
        else
            UNROLL
            for (int j = 0; j < N; ++j) t[j] = off + (c + j == hit ? on : 0.f);
        Vec<T, N> d;
        UNROLL
        for (int j = 0; j < N; ++j) d[j] = from_f32<T>(scale * (total * expf(held[p][j] - lse) - t[j]));
        store_vec(dx + c, d);
    });
}
KERNEL_PER_DTYPE_BOUNDS(cross_entropy_bwd_held, CrossEntropyBwd, ROWS * WARP)
