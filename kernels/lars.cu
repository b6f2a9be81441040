// LARS, or momentum without a trust coefficient, over many tensors, in place (arXiv 1708.03888, algorithm 1, in the form
// of MAE's linear probe). Two launches: sums of squares per chunk, then the update. Reference: src/ops/lars.
#include "multi_tensor.cuh"

struct LarsTensor {
    float* w;        // [n]
    float* mu;       // [n]
    const float* g;  // [n]
    void* compute;   // [n] T, or null
    unsigned long long n;
    float lr_scale;
    float weight_decay;
    unsigned adapt;  // whether the gradient is scaled by trust |w| / |g|
    unsigned pad;
};

struct Lars {
    const LarsTensor* tensors;
    const Chunk* chunks;  // one per block
    double* sums;         // [blocks, 2]: squares of w and of the decayed gradient; null if no tensor adapts
    const float* lr;      // [1]
    const float* norm;    // [2] norm and factor of the gradients, or null
    float momentum;
    float trust;
    unsigned chunk, pad;  // elements per chunk
};

__device__ void lars_norms_f32_body(const Lars& a) {
    float factor;
    const Chunk chunk = a.chunks[blockIdx.x];
    const LarsTensor t = a.tensors[chunk.tensor];
    if (!t.adapt || !gradient_factor(a.norm, 1, 0, factor)) return;  // the whole block
    double w_sum = 0., g_sum = 0.;
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> w = load_vec<float, N>(t.w + i), g = load_vec<float, N>(t.g + i);
        UNROLL
        for (int j = 0; j < N; ++j) {
            const double decayed = double(factor * g[j] + t.weight_decay * w[j]);
            w_sum += double(w[j]) * double(w[j]);
            g_sum += decayed * decayed;
        }
    });
    w_sum = block_sum_f64(w_sum);
    g_sum = block_sum_f64(g_sum);
    if (threadIdx.x != 0) return;
    a.sums[2 * size_t(blockIdx.x)] = w_sum;
    a.sums[2 * size_t(blockIdx.x) + 1] = g_sum;
}
KERNEL(lars_norms_f32, Lars)

// |w| / |g| of the tensor whose chunk is this block's, from the sums of its chunks, which are neighbours.
__device__ __forceinline__ float trust_ratio(const Lars& a, const LarsTensor& t, unsigned index) {
    const unsigned count = unsigned((t.n + a.chunk - 1) / a.chunk);
    const double* sums = a.sums + 2 * size_t(blockIdx.x - index);
    double w_sum = 0., g_sum = 0.;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        w_sum += sums[2 * size_t(i)];
        g_sum += sums[2 * size_t(i) + 1];
    }
    w_sum = block_sum_f64(w_sum);
    g_sum = block_sum_f64(g_sum);
    return w_sum > 0. && g_sum > 0. ? float(a.trust * sqrt(w_sum / g_sum)) : 1.f;
}

template <class T>
__device__ void lars(const Lars& a) {
    float factor;
    if (!gradient_factor(a.norm, 1, 0, factor)) return;
    const Chunk chunk = a.chunks[blockIdx.x];
    const LarsTensor t = a.tensors[chunk.tensor];
    const float trust = t.adapt ? trust_ratio(a, t, chunk.index) : 1.f;
    const float lr = a.lr[0] * t.lr_scale;
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> g = load_vec<float, N>(t.g + i);
        Vec<float, N> w = load_vec<float, N>(t.w + i), mu = load_vec<float, N>(t.mu + i);
        Vec<T, N> copy;
        UNROLL
        for (int j = 0; j < N; ++j) {
            mu[j] = a.momentum * mu[j] + trust * (factor * g[j] + t.weight_decay * w[j]);
            w[j] -= lr * mu[j];
            copy[j] = from_f32<T>(w[j]);
        }
        store_vec(t.w + i, w);
        store_vec(t.mu + i, mu);
        if (t.compute) store_vec(out<T>(t.compute) + i, copy);
    });
}
KERNEL_PER_DTYPE(lars, Lars)
