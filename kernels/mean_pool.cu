// Mean over the tokens of each sequence, the first `skip` left out. Reference and gradient: src/ops/mean_pool.
#include "rows.cuh"

struct MeanPool {
    const void* from;  // forward: x [batch, rows, cols] T; backward: dy [batch, cols] T
    void* to;          // forward: y [batch, cols] T; backward: dx [batch, rows, cols] T
    unsigned batch, rows, skip, cols;
    float scale;       // 1 / (rows - skip)
    unsigned pad;
};

// blockIdx.x is the sequence, blockIdx.y strides over groups of 32 * N columns. The warps of a block take rows in turn
// and meet in shared memory.
template <class T, int N>
__device__ __forceinline__ void pool_columns(const MeanPool& a) {
    SMEM(Floats<8 * WARP * N>, partial);  // [N, warps, 32]
    const unsigned warps = blockDim.x / WARP;
    const T* x = in<T>(a.from) + size_t(blockIdx.x) * a.rows * a.cols;
    for (unsigned first = blockIdx.y * WARP * N; first < a.cols; first += gridDim.y * WARP * N) {
        const unsigned c = first + lane_id() * N;
        float sum[N] = {};
        if (c < a.cols)
            for (unsigned r = a.skip + warp_id(); r < a.rows; r += warps)
                accumulate(sum, load_vec<T, N>(x + size_t(r) * a.cols + c));
        UNROLL
        for (int j = 0; j < N; ++j) partial.v[j * blockDim.x + threadIdx.x] = sum[j];
        __syncthreads();
        if (warp_id() == 0 && c < a.cols) {
            Vec<T, N> y;
            UNROLL
            for (int j = 0; j < N; ++j) {
                float total = 0.f;
                for (unsigned w = 0; w < warps; ++w) total += partial.v[j * blockDim.x + w * WARP + lane_id()];
                y[j] = from_f32<T>(total * a.scale);
            }
            store_vec(out<T>(a.to) + size_t(blockIdx.x) * a.cols + c, y);
        }
        __syncthreads();  // before the next group overwrites `partial`
    }
}

template <class T>
__device__ void mean_pool_fwd(const MeanPool& a) {
    constexpr int N = 16 / int(sizeof(T));
    if (a.cols % N == 0)
        pool_columns<T, N>(a);
    else
        pool_columns<T, 1>(a);
}
KERNEL_PER_DTYPE(mean_pool_fwd, MeanPool)

// One warp per row of dx.
template <class T>
__device__ void mean_pool_bwd(const MeanPool& a) {
    const unsigned row = warp_row();
    if (row >= a.batch * a.rows) return;  // whole warps leave; no block barrier follows
    const T* dy = in<T>(a.from) + size_t(row / a.rows) * a.cols;
    T* dx = out<T>(a.to) + size_t(row) * a.cols;
    const float scale = row % a.rows < a.skip ? 0.f : a.scale;
    for_each_in_row<T>(a.cols, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> x = load_vec<T, N>(dy + i);
        UNROLL
        for (int j = 0; j < N; ++j) x[j] = from_f32<T>(scale == 0.f ? 0.f : to_f32(x[j]) * scale);
        store_vec(dx + i, x);
    });
}
KERNEL_PER_DTYPE(mean_pool_bwd, MeanPool)
