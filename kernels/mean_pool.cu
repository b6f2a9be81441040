// Mean over the tokens of each sequence, the first `skip` left out. Reference and gradient: src/ops/mean_pool.
#include "rows.cuh"

struct MeanPool {
    const void* from;  // forward: x [batch, rows, cols] T; backward: dy [batch, cols] T
    void* to;          // forward: y [batch, cols] T; backward: dx [batch, rows, cols] T
    unsigned batch, rows, skip, cols;
    float scale;       // 1 / (rows - skip)
    unsigned pad;
};

// Rows of a warp that are under way at once.
constexpr int BATCH = 8;

// blockIdx.x is the sequence. The warps of a block take rows in turn and meet in shared memory.
template <class T>
__device__ void mean_pool_fwd(const MeanPool& a) {
    const unsigned warps = blockDim.x / WARP;
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        const T* x = in<T>(a.from) + size_t(blockIdx.x) * a.rows * a.cols + c;
        float sum[N] = {};
        for (unsigned first = a.skip + warp_id(); first < a.rows; first += BATCH * warps) {
            Vec<T, N> row[BATCH];
            UNROLL
            for (int j = 0; j < BATCH; ++j)
                if (inside && first + j * warps < a.rows) row[j] = load_vec<T, N>(x + size_t(first + j * warps) * a.cols);
            UNROLL
            for (int j = 0; j < BATCH; ++j)
                if (inside && first + j * warps < a.rows) accumulate(sum, row[j]);
        }
        add_warps<8>(sum);
        if (warp_id() != 0 || !inside) return;
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(sum[j] * a.scale);
        store_vec(out<T>(a.to) + size_t(blockIdx.x) * a.cols + c, y);
    });
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
