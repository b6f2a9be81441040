// AdamW over many tensors, in place (arXiv 1711.05101, algorithm 2; the decay is scaled by the learning rate), and the
// moving average of what it leaves (arXiv 1703.01780, eq. 2). Reference: src/ops/adamw.
#include "multi_tensor.cuh"

struct AdamWTensor {
    float* w;        // [n]
    float* m;        // [n]
    float* v;        // [n]
    const float* g;  // [n]
    void* compute;   // [n] T, or null
    float* teacher;         // [n], or null
    void* teacher_compute;  // [n] T, or null; null without teacher
    unsigned long long n;
    float lr_scale;
    float weight_decay;
    float correction[2];  // factors of scalars[1] and scalars[2] for a tensor that has had fewer steps than t; else 1, 1
    unsigned group;  // of the norms
    unsigned pad;
};

struct AdamW {
    const AdamWTensor* tensors;
    const Chunk* chunks;   // one per block
    const float* scalars;  // lr, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), factor of the decay, momentum, 1 - momentum
    const float* norm;     // [groups, 2] norm and factor of the gradients, or null
    float beta1[2];        // beta1, 1 - beta1
    float beta2[2];
    float eps;             // added to the root of v
    unsigned chunk;        // elements per chunk
    unsigned groups, pad;
};

template <class T>
__device__ void adamw(const AdamW& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const AdamWTensor t = a.tensors[chunk.tensor];
    float factor;
    if (!gradient_factor(a.norm, a.groups, t.group, factor)) return;
    const float decay = a.scalars[0] * t.lr_scale * (t.weight_decay * a.scalars[3]);
    const float step = a.scalars[1] * t.lr_scale * t.correction[0], root = a.scalars[2] * t.correction[1];
    const float keep = a.scalars[4], take = a.scalars[5];
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> g = load_vec<float, N>(t.g + i);
        Vec<float, N> w = load_vec<float, N>(t.w + i), m = load_vec<float, N>(t.m + i), v = load_vec<float, N>(t.v + i);
        Vec<float, N> teacher = {};
        if (t.teacher) teacher = load_vec<float, N>(t.teacher + i);
        Vec<T, N> copy;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float gj = factor * g[j];
            m[j] = a.beta1[0] * m[j] + a.beta1[1] * gj;
            v[j] = a.beta2[0] * v[j] + a.beta2[1] * (gj * gj);
            w[j] = w[j] - decay * w[j] - step * m[j] / (sqrtf(v[j]) * root + a.eps);
            copy[j] = from_f32<T>(w[j]);
        }
        store_vec(t.w + i, w);
        store_vec(t.m + i, m);
        store_vec(t.v + i, v);
        if (t.compute) store_vec(out<T>(t.compute) + i, copy);
        if (t.teacher) {
            UNROLL
            for (int j = 0; j < N; ++j) {
                teacher[j] = keep * teacher[j] + take * w[j];
                copy[j] = from_f32<T>(teacher[j]);
            }
            store_vec(t.teacher + i, teacher);
            if (t.teacher_compute) store_vec(out<T>(t.teacher_compute) + i, copy);
        }
    });
}
KERNEL_PER_DTYPE(adamw, AdamW)
