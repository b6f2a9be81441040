// Softmax over the last axis: y = exp(x - max) / sum. Reference and gradient: src/ops/softmax.
// narrow-ok: softmax_[fb]wd_[bf]* long rows: a lane per column
// narrow-ok: softmax_[fb]wd_s* rows that 16 bytes do not divide: a lane per column
#include "ptx.cuh"
#include "rows.cuh"

// e^x, x <= 0: exact to f32 for f32, else to about two units in its last place.
template <class T>
__device__ __forceinline__ float exp_for(float x) {
    return exp2_approx(1.442695041f * x);
}
template <>
__device__ __forceinline__ float exp_for<float>(float x) {
    return expf(x);
}

struct SoftmaxFwd {
    const void* x;  // [rows, cols] T
    void* y;        // [rows, cols] T
    unsigned rows, cols;
};

// One warp per row of any length; a row is read three times, twice from the cache.
template <class T>
__device__ void softmax_fwd(const SoftmaxFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    float max = -INFINITY;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) max = fmaxf(max, to_f32(x[c]));
    max = warp_max(max);
    float sum = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) sum += expf(to_f32(x[c]) - max);
    const float inverse = 1.f / warp_sum(sum);
    for (unsigned c = lane_id(); c < a.cols; c += WARP) y[c] = from_f32<T>(expf(to_f32(x[c]) - max) * inverse);
}
KERNEL_PER_DTYPE(softmax_fwd, SoftmaxFwd)

// One warp per row, which it holds in registers: PACKS accesses of N elements a lane at most.
template <class T, int N, int PACKS>
__device__ void softmax_fwd_held(const SoftmaxFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    float held[PACKS][N];
    float max = -INFINITY;
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        const Vec<T, N> v = load_vec<T, N>(x + c);
        UNROLL
        for (int j = 0; j < N; ++j) {
            held[p][j] = to_f32(v[j]);
            max = fmaxf(max, held[p][j]);
        }
    });
    max = warp_max(max);
    float sum = 0.f;
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned) {
        UNROLL
        for (int j = 0; j < N; ++j) {
            held[p][j] = exp_for<T>(held[p][j] - max);
            sum += held[p][j];
        }
    });
    const float inverse = 1.f / warp_sum(sum);
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        Vec<T, N> v;
        UNROLL
        for (int j = 0; j < N; ++j) v[j] = from_f32<T>(held[p][j] * inverse);
        store_vec(y + c, v);
    });
}

struct SoftmaxBwd {
    const void* dy;  // [rows, cols] T
    const void* y;   // [rows, cols] T
    void* dx;        // [rows, cols] T
    unsigned rows, cols;
};

// One warp per row: dx = y * (dy - sum(dy * y)).
template <class T>
__device__ void softmax_bwd(const SoftmaxBwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* dy = in<T>(a.dy) + size_t(row) * a.cols;
    const T* y = in<T>(a.y) + size_t(row) * a.cols;
    T* dx = out<T>(a.dx) + size_t(row) * a.cols;
    float dot = 0.f;
    for (unsigned c = lane_id(); c < a.cols; c += WARP) dot += to_f32(dy[c]) * to_f32(y[c]);
    dot = warp_sum(dot);
    for (unsigned c = lane_id(); c < a.cols; c += WARP) dx[c] = from_f32<T>(to_f32(y[c]) * (to_f32(dy[c]) - dot));
}
KERNEL_PER_DTYPE(softmax_bwd, SoftmaxBwd)

template <class T, int N, int PACKS>
__device__ void softmax_bwd_held(const SoftmaxBwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const size_t at = size_t(row) * a.cols;
    Vec<T, N> dy[PACKS], y[PACKS];
    float dot = 0.f;
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        dy[p] = load_vec<T, N>(in<T>(a.dy) + at + c);
        y[p] = load_vec<T, N>(in<T>(a.y) + at + c);
        UNROLL
        for (int j = 0; j < N; ++j) dot += to_f32(dy[p][j]) * to_f32(y[p][j]);
    });
    dot = warp_sum(dot);
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) dx[j] = from_f32<T>(to_f32(y[p][j]) * (to_f32(dy[p][j]) - dot));
        store_vec(out<T>(a.dx) + at + c, dx);
    });
}

// `_x<PACKS>`: vectors of 16 bytes; `_s<PACKS>`: single elements, for rows that no such vectors fill.
#define HELD_SOFTMAX(suffix, T)                                                                                  \
    KERNEL_ENTRY_BOUNDS(softmax_fwd_x4_##suffix, (softmax_fwd_held<T, 16 / sizeof(T), 4>), SoftmaxFwd, 128)      \
    KERNEL_ENTRY_BOUNDS(softmax_fwd_x8_##suffix, (softmax_fwd_held<T, 16 / sizeof(T), 8>), SoftmaxFwd, 128)      \
    KERNEL_ENTRY_BOUNDS(softmax_fwd_s12_##suffix, (softmax_fwd_held<T, 1, 12>), SoftmaxFwd, 128)                 \
    KERNEL_ENTRY_BOUNDS(softmax_fwd_s32_##suffix, (softmax_fwd_held<T, 1, 32>), SoftmaxFwd, 128)                 \
    KERNEL_ENTRY_BOUNDS(softmax_bwd_x4_##suffix, (softmax_bwd_held<T, 16 / sizeof(T), 4>), SoftmaxBwd, 128)      \
    KERNEL_ENTRY_BOUNDS(softmax_bwd_x8_##suffix, (softmax_bwd_held<T, 16 / sizeof(T), 8>), SoftmaxBwd, 128)      \
    KERNEL_ENTRY_BOUNDS(softmax_bwd_s12_##suffix, (softmax_bwd_held<T, 1, 12>), SoftmaxBwd, 128)                 \
    KERNEL_ENTRY_BOUNDS(softmax_bwd_s32_##suffix, (softmax_bwd_held<T, 1, 32>), SoftmaxBwd, 128)
HELD_SOFTMAX(f32, float)
HELD_SOFTMAX(bf16, bf16)
HELD_SOFTMAX(f16, f16)
