// Adafactor with momentum over many tensors, in place (arXiv 1804.04235, algorithm 4, in the form of arXiv 2106.04560,
// section 3.4). Reference and equations: src/ops/adafactor.
// narrow-ok: adafactor_rows_f32 a lane per column, 128 bytes a warp
// narrow-ok: adafactor_cols_f32 a lane per column, 128 bytes a warp
#include "multi_tensor.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)

struct AdafactorTensor {
    float* w;        // [n]
    float* m;        // [n]
    const float* g;  // [n]
    void* compute;   // [n] T, or null
    float* by_row;   // factored: [groups, rows]; else the second moment, [n]
    float* by_col;   // [groups, cols], or null if not factored
    double* means;   // [groups]: of by_row over its rows
    unsigned long long n;
    unsigned groups, rows, cols;
    unsigned place;  // of the groups among the axes: 0 before rows and columns, 1 between, 2 behind
    float lr_scale, weight_decay;
};

struct Adafactor {
    const AdafactorTensor* tensors;
    const Chunk* chunks;   // one per block; tensors are counted from `first` on
    const float* scalars;  // lr, decay of the second moment, 1 less it
    const float* norm;     // [2] norm and factor of the gradients, or null
    float momentum, take;  // m <- momentum · m + take · u
    float eps;             // added to the squares
    unsigned round;        // whether m is rounded to bf16
    unsigned chunk;        // elements per chunk
    unsigned first;
};

__device__ __forceinline__ size_t element(const AdafactorTensor& t, unsigned group, unsigned row, unsigned col) {
    if (t.place == 0) return (size_t(group) * t.rows + row) * t.cols + col;
    if (t.place == 1) return (size_t(row) * t.groups + group) * t.cols + col;
    return (size_t(row) * t.cols + col) * t.groups + group;
}

__device__ __forceinline__ float square(const Adafactor& a, const AdafactorTensor& t, float factor, size_t at) {
    const float g = factor * t.g[at];
    return fmaf(g, g, a.eps);
}

// A warp per row.
__device__ void adafactor_rows_f32_body(const Adafactor& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const AdafactorTensor t = a.tensors[chunk.tensor - a.first];
    float factor;
    if (!gradient_factor(a.norm, a.norm ? 1 : 0, 0, factor)) return;
    const unsigned at = chunk.index * WARPS + warp_id();
    if (at >= t.groups * t.rows) return;  // whole warps leave; no block barrier follows
    const unsigned group = at / t.rows, row = at % t.rows;
    float sum = 0.f;
    for (unsigned c = lane_id(); c < t.cols; c += WARP) sum += square(a, t, factor, element(t, group, row, c));
    sum = warp_sum(sum);
    if (lane_id() == 0) t.by_row[at] = a.scalars[1] * t.by_row[at] + a.scalars[2] * (sum / float(t.cols));
}
KERNEL_BOUNDS(adafactor_rows_f32, Adafactor, THREADS)

// 32 columns of a group per block; its warps take rows in turn.
__device__ void adafactor_cols_f32_body(const Adafactor& a) {
    SMEM(Floats<THREADS>, partial);
    const Chunk chunk = a.chunks[blockIdx.x];
    const AdafactorTensor t = a.tensors[chunk.tensor - a.first];
    float factor;
    if (!gradient_factor(a.norm, a.norm ? 1 : 0, 0, factor)) return;
    const unsigned across = (t.cols + WARP - 1) / WARP;
    const unsigned group = chunk.index / across, col = chunk.index % across * WARP + lane_id();
    float sum = 0.f;
    if (col < t.cols)
        for (unsigned r = warp_id(); r < t.rows; r += WARPS) sum += square(a, t, factor, element(t, group, r, col));
    partial.v[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() != 0 || col >= t.cols) return;
    sum = 0.f;
    UNROLL
    for (int w = 0; w < WARPS; ++w) sum += partial.v[w * WARP + lane_id()];
    float* to = t.by_col + size_t(group) * t.cols + col;
    *to = a.scalars[1] * *to + a.scalars[2] * (sum / float(t.rows));
}
KERNEL_BOUNDS(adafactor_cols_f32, Adafactor, THREADS)

// A block per group: the mean of what `rows` left.
__device__ void adafactor_mean_f32_body(const Adafactor& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const AdafactorTensor t = a.tensors[chunk.tensor - a.first];
    double sum = 0.0;
    for (unsigned r = threadIdx.x; r < t.rows; r += THREADS) sum += double(t.by_row[size_t(chunk.index) * t.rows + r]);
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) t.means[chunk.index] = sum / double(t.rows);
}
KERNEL_BOUNDS(adafactor_mean_f32, Adafactor, THREADS)

// The second moment of an element, its root taken by the caller: of a factored tensor as two factors, whose product may
// have no place in an f32.
__device__ __forceinline__ float scaled(const Adafactor& a, const AdafactorTensor& t, size_t at, float g) {
    if (!t.by_col) {
        const float v = a.scalars[1] * t.by_row[at] + a.scalars[2] * fmaf(g, g, a.eps);
        t.by_row[at] = v;
        return g / sqrtf(v);
    }
    unsigned group, row, col;
    if (t.place == 0) {
        col = unsigned(at % t.cols);
        row = unsigned(at / t.cols % t.rows);
        group = unsigned(at / t.cols / t.rows);
    } else if (t.place == 1) {
        col = unsigned(at % t.cols);
        group = unsigned(at / t.cols % t.groups);
        row = unsigned(at / t.cols / t.groups);
    } else {
        group = unsigned(at % t.groups);
        col = unsigned(at / t.groups % t.cols);
        row = unsigned(at / t.groups / t.cols);
    }
    const float ratio = float(double(t.by_row[size_t(group) * t.rows + row]) / t.means[group]);
    return g / sqrtf(ratio) / sqrtf(t.by_col[size_t(group) * t.cols + col]);
}

template <class T>
__device__ void adafactor_apply(const Adafactor& a) {
    const Chunk chunk = a.chunks[blockIdx.x];
    const AdafactorTensor t = a.tensors[chunk.tensor - a.first];
    float factor;
    if (!gradient_factor(a.norm, a.norm ? 1 : 0, 0, factor)) return;
    const float step = a.scalars[0] * t.lr_scale, decay = step * t.weight_decay;
    for_each_in_chunk(t.n, a.chunk, chunk.index, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> g = load_vec<float, N>(t.g + i);
        Vec<float, N> w = load_vec<float, N>(t.w + i), m = load_vec<float, N>(t.m + i);
        Vec<T, N> copy;
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float kept = a.momentum * m[j];
            const float u = a.take * scaled(a, t, i + j, factor * g[j]);
            const float moved = u + (a.round ? to_f32(from_f32<bf16>(kept)) : kept);
            m[j] = a.round ? to_f32(from_f32<bf16>(moved)) : moved;
            w[j] = w[j] - decay * w[j] - step * moved;
            copy[j] = from_f32<T>(w[j]);
        }
        store_vec(t.w + i, w);
        store_vec(t.m + i, m);
        if (t.compute) store_vec(out<T>(t.compute) + i, copy);
    });
}
KERNEL_PER_DTYPE(adafactor_apply, Adafactor)
