// Exponential moving average over many tensors, in place (arXiv 1703.01780, eq. 2). Reference: src/ops/ema.
#include "multi_tensor.cuh"

struct EmaTensor {
    float* teacher;        // [n]
    const float* student;  // [n]
    void* compute;         // [n] T, or null
    unsigned long long n;
};

struct Ema {
    const EmaTensor* tensors;
    const Chunk* chunks;   // one per block
    const float* scalars;  // momentum, 1 - momentum
    unsigned chunk, pad;   // elements per chunk
};

template <class T>
__device__ void ema(const Ema& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const EmaTensor t = a.tensors[chunk.tensor];
    const float keep = a.scalars[0], take = a.scalars[1];
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> student = load_vec<float, N>(t.student + i);
        Vec<float, N> teacher = load_vec<float, N>(t.teacher + i);
        Vec<T, N> copy;
        UNROLL
        for (int j = 0; j < N; ++j) {
            teacher[j] = keep * teacher[j] + take * student[j];
            copy[j] = from_f32<T>(teacher[j]);
        }
        store_vec(t.teacher + i, teacher);
        if (t.compute) store_vec(out<T>(t.compute) + i, copy);
    });
}
KERNEL_PER_DTYPE(ema, Ema)
