// Kernels over many tensors in one launch: a block takes one chunk of one tensor. Host side: src/ops/multi_tensor.rs.
#pragma once
#include "elementwise.cuh"

// One block's share.
struct Chunk {
    unsigned tensor;  // number of the record
    unsigned index;   // of the chunk within the tensor
};

// Calls `body(i, Width<N>)` for the elements i of this block's chunk, `chunk` elements long, of a tensor of n. Every
// pointer the body adds `i` to starts at a multiple of 16 bytes, and `chunk` is a multiple of 4.
template <class Body>
__device__ __forceinline__ void for_each_in_chunk(size_t n, unsigned chunk, unsigned index, Body body) {
    const size_t first = size_t(index) * chunk;
    const size_t count = n - first < chunk ? n - first : chunk;
    for_each_pack<float>(count, threadIdx.x, blockDim.x, true, [&](size_t i, auto width) { body(first + i, width); });
}

// Factor of the gradients of a group that grad_norm wrote to `norm: [groups, 2]`, 1 without one. False where any norm is
// not finite: the step is to leave everything as it is.
__device__ __forceinline__ bool gradient_factor(const float* norm, unsigned groups, unsigned group, float& factor) {
    factor = norm ? norm[2 * group + 1] : 1.f;
    bool finite = true;
    if (norm)
        for (unsigned g = 0; g < groups; ++g) finite = finite && fabsf(norm[2 * g]) < INFINITY;
    return finite;
}

struct WarpDoubles {
    double v[32];
};

// Sum over a block of whole warps in f64. Every thread of the block calls it and gets the same sum.
__device__ __forceinline__ double block_sum_f64(double x) {
    SMEM(WarpDoubles, partial);  // [warps]
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    __syncthreads();  // an earlier use of `partial` is over
    if (lane_id() == 0) partial.v[warp_id()] = x;
    __syncthreads();
    double sum = 0.;
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp) sum += partial.v[warp];
    return sum;
}
