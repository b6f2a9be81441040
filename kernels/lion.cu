// Lion over many tensors, in place (arXiv 2302.06675, algorithm 2). Reference and equations: src/ops/lion.
#include "multi_tensor.cuh"

struct LionTensor {
    float* w;        // [n]
    float* m;        // [n]
    const float* g;  // [n]
    void* compute;   // [n] T, or null
    unsigned long long n;
    float lr_scale, weight_decay;
};

struct Lion {
    const LionTensor* tensors;
    const Chunk* chunks;  // one per block
    const float* lr;      // [1]
    const float* norm;    // [2] norm and factor of the gradients, or null
    float beta1[2];       // beta1, 1 - beta1
    float beta2[2];
    unsigned chunk, pad;  // elements per chunk
};

template <class T>
__device__ void lion(const Lion& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const LionTensor t = a.tensors[chunk.tensor];
    float factor;
    if (!gradient_factor(a.norm, a.norm ? 1 : 0, 0, factor)) return;
    const float step = a.lr[0] * t.lr_scale, decay = step * t.weight_decay;
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> g = load_vec<float, N>(t.g + i);
        Vec<float, N> w = load_vec<float, N>(t.w + i), m = load_vec<float, N>(t.m + i);
        Vec<T, N> copy;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float gj = factor * g[j], u = a.beta1[0] * m[j] + a.beta1[1] * gj;
            const float sign = u > 0.f ? 1.f : u < 0.f ? -1.f : 0.f;
            m[j] = a.beta2[0] * m[j] + a.beta2[1] * gj;
            w[j] = w[j] - decay * w[j] - step * sign;
            copy[j] = from_f32<T>(w[j]);
        }
        store_vec(t.w + i, w);
        store_vec(t.m + i, m);
        if (t.compute) store_vec(out<T>(t.compute) + i, copy);
    });
}
KERNEL_PER_DTYPE(lion, Lion)
