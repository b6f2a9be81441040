// Norm of all gradients and the factor that clips them (arXiv 1211.5063, algorithm 1), in two stages without atomics.
// Reference: src/ops/grad_norm.
#include "multi_tensor.cuh"

struct GradNormTensor {
    const float* g;  // [n]
    unsigned long long n;
    unsigned group;  // whose norm it belongs to
    unsigned pad;
};

struct GradNorm {
    const GradNormTensor* tensors;
    const Chunk* chunks;  // one per block
    double* sums;         // [blocks]
    unsigned chunk, pad;  // elements per chunk
};

// f64: the square of a finite f32 neither overflows nor vanishes, and the memory is slower than the sums.
__device__ void grad_norm_f32_body(const GradNorm& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const GradNormTensor t = a.tensors[chunk.tensor];
    double sum = 0.;
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> g = load_vec<float, N>(t.g + i);
        UNROLL
        for (int j = 0; j < N; ++j) sum += double(g[j]) * double(g[j]);
    });
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}
KERNEL(grad_norm_f32, GradNorm)

struct GradNormFinish {
    const GradNormTensor* tensors;
    const Chunk* chunks;  // [count]
    const double* sums;   // [count]
    float* out;           // [groups, 2]: norm, factor
    double max_norm;
    unsigned count;
    unsigned clip;       // 0: the factor is 1
};

// One block per group.
__device__ void grad_norm_finish_f32_body(const GradNormFinish& a) {
    double sum = 0.;
    for (unsigned i = threadIdx.x; i < a.count; i += blockDim.x)
        if (a.tensors[a.chunks[i].tensor].group == blockIdx.x) sum += a.sums[i];
    sum = block_sum_f64(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum);
    const double factor = a.clip ? a.max_norm / (norm + 1e-6) : 1.;
    a.out[2 * blockIdx.x] = float(norm);
    a.out[2 * blockIdx.x + 1] = factor > 1. ? 1.f : float(factor);  // NaN is kept
}
KERNEL(grad_norm_finish_f32, GradNormFinish)
