// Cross-entropy between student logits and teacher probabilities that exist only as logits and factors. Equations,
// gradient and reference: src/ops/prototype_cross_entropy.
// narrow-ok: prototype_cross_entropy_loss_f32 a few numbers per row
#include "multi_tensor.cuh"
#include "prototypes.cuh"

#define LN2 0.6931471805599453f

struct PrototypeCrossEntropy {
    const void* student;   // [rows, cols] T
    const void* logits;    // [teachers, cols] S
    const float* temp;     // [1]: of the teacher
    const float* a;        // [cols]
    const float* l;        // [teachers]
    const int* pairs;      // [rows, group]: teachers of a row, -1: none; null: row r has teacher r
    const float* weights;  // [rows]; rows of weight 0 are not read
    float* part;           // [rows, tiles, 4]: struct RowPart (forward)
    const float* stats;    // [rows, 4] (backward)
    const float* dloss;    // [1] (backward)
    void* ds;              // [rows, cols] T; may be `student` (backward)
    unsigned rows, cols;
    unsigned teachers, group;
    float scale;           // log2 e / student temperature
    float factor;          // 1 / (student temperature · normaliser) (backward)
};

// t[j] = Σ over the row's teachers of exp(z / T + a + l); NaN for a teacher that does not exist.
template <class S, int V>
__device__ __forceinline__ void teacher_probabilities(
    const PrototypeCrossEntropy& a,
    const Tile<V>& tile,
    unsigned row,
    float scale,
    const Columns<float, V>& prototypes,
    Columns<float, V>& t) {
    for_columns<V>([&](int m, int j) { t.v[m][j] = 0.f; });
    for (unsigned g = 0; g < a.group; ++g) {
        const int of = a.pairs ? a.pairs[size_t(row) * a.group + g] : int(row);
        if (of == -1) continue;
        if (unsigned(of) >= a.teachers) {
            for_columns<V>([&](int m, int j) { t.v[m][j] = NAN; });
            return;
        }
        const float l = a.l[of] * LOG2_E;
        const Columns<S, V> z = load_columns<S, V>(in<S>(a.logits) + size_t(of) * a.cols, tile, -INFINITY);
        for_columns<V>([&](int m, int j) {
            const float x = scaled(z.v[m][j], scale) + prototypes.v[m][j];
            t.v[m][j] += exp2_approx(x * LOG2_E + l);
        });
    }
}

// What some columns of a row add to its loss.
struct RowPart {
    float top;    // the largest s; what follows is relative to it, or to 0 if it is -inf
    float sum;    // Σ 2^((s - top) scale)
    float dot;    // Σ t (s - top) scale
    float total;  // Σ t
};

// x relative to another largest s.
__device__ __forceinline__ RowPart moved(RowPart x, float top, float scale) {
    const float by = (x.top - finite_shift(top)) * scale;
    // without teacher mass an infinite distance costs nothing
    return {top, x.sum * exp2_approx(by), x.dot + (x.total == 0.f ? 0.f : x.total * by), x.total};
}

__device__ __forceinline__ RowPart merged(RowPart x, RowPart y, float scale) {
    const float top = fmaxf(x.top, y.top);
    x = moved(x, top, scale), y = moved(y, top, scale);
    return {top, x.sum + y.sum, x.dot + y.dot, x.total + y.total};
}

__device__ __forceinline__ RowPart load_part(const float* p) {
    const Vec<float, 4> x = load_vec<float, 4>(p);
    return {x[0], x[1], x[2], x[3]};
}

__device__ __forceinline__ void store_four(float* p, float x, float y, float z, float w) {
    Vec<float, 4> v;
    v[0] = x, v[1] = y, v[2] = z, v[3] = w;
    store_vec(p, v);
}

template <class S, class T, int V>
__device__ __forceinline__ void forward(const PrototypeCrossEntropy& a) {
    typedef WarpSums<RowPart, 1> Shared;
    SMEM(Shared, shared);
    const Tile<V> tile(a.cols);
    const float teacher_scale = 1.f / a.temp[0];
    const Columns<float, V> prototypes = load_columns<float, V>(a.a, tile, 0.f);
    Columns<float, V> t;
    const Rows rows = part_of({0, a.rows});
    unsigned turn = 0;
    for (unsigned row = rows.from; row < rows.to; ++row) {
        if (a.weights[row] == 0.f) continue;  // the whole block
        const Columns<T, V> s = load_columns<T, V>(in<T>(a.student) + size_t(row) * a.cols, tile, -INFINITY);
        teacher_probabilities<S, V>(a, tile, row, teacher_scale, prototypes, t);
        float top = -INFINITY;
        for_columns<V>([&](int m, int j) { top = fmaxf(top, to_f32(s.v[m][j])); });
        top = warp_max(top);
        const float by = finite_shift(top);
        float sum = 0.f, dot = 0.f, total = 0.f;
        for_columns<V>([&](int m, int j) {
            const float d = (to_f32(s.v[m][j]) - by) * a.scale, p = t.v[m][j];
            sum += exp2_approx(d);
            dot += p == 0.f ? 0.f : p * d;  // 0 times an infinite -log is 0
            total += p;
        });
        sum = warp_sum(sum);
        dot = warp_sum(dot);
        total = warp_sum(total);
        if (lane_id() == 0) shared.v[turn][0][warp_id()] = {top, sum, dot, total};
        __syncthreads();
        if (threadIdx.x == 0) {
            RowPart x = shared.v[turn][0][0];
            for (int w = 1; w < TILE_WARPS; ++w) x = merged(x, shared.v[turn][0][w], a.scale);
            store_four(a.part + 4 * (size_t(row) * gridDim.x + blockIdx.x), x.top, x.sum, x.dot, x.total);
        }
        turn ^= 1;
    }
}

template <class S, class T, int V>
__device__ __forceinline__ void backward(const PrototypeCrossEntropy& a) {
    const Tile<V> tile(a.cols);
    const float teacher_scale = 1.f / a.temp[0], factor = a.factor * a.dloss[0];
    const Columns<float, V> prototypes = load_columns<float, V>(a.a, tile, 0.f);
    Columns<float, V> t;
    const Rows rows = part_of({0, a.rows});
    for (unsigned row = rows.from; row < rows.to; ++row) {
        const size_t at = size_t(row) * a.cols;
        const float weight = a.weights[row];
        Columns<T, V> ds;
        if (weight == 0.f) {
            for_columns<V>([&](int m, int j) { ds.v[m][j] = from_f32<T>(0.f); });
        } else {
            const Columns<T, V> s = load_columns<T, V>(in<T>(a.student) + at, tile, -INFINITY);
            teacher_probabilities<S, V>(a, tile, row, teacher_scale, prototypes, t);
            const Vec<float, 4> stats = load_vec<float, 4>(a.stats + 4 * size_t(row));
            const float top = stats[0], log2_sum = stats[1] * LOG2_E, total = stats[2], by = factor * weight;
            for_columns<V>([&](int m, int j) {
                const float p = exp2_approx((to_f32(s.v[m][j]) - top) * a.scale - log2_sum);
                ds.v[m][j] = from_f32<T>(by * (total * p - t.v[m][j]));
            });
        }
        store_columns<T, V>(out<T>(a.ds) + at, tile, ds);
    }
}

#define PROTOTYPE_CROSS_ENTROPY(direction, body, from, S)                                         \
    template <class T>                                                                            \
    __device__ void prototype_cross_entropy_##direction##_from_##from(const PrototypeCrossEntropy& a) { \
        constexpr int V = 16 / int(sizeof(T));                                                    \
        if (a.cols % V == 0)                                                                      \
            body<S, T, V>(a);                                                                     \
        else                                                                                      \
            body<S, T, 1>(a);                                                                     \
    }
PROTOTYPE_CROSS_ENTROPY(fwd, forward, f32, float)
PROTOTYPE_CROSS_ENTROPY(fwd, forward, bf16, bf16)
PROTOTYPE_CROSS_ENTROPY(fwd, forward, f16, f16)
PROTOTYPE_CROSS_ENTROPY(bwd, backward, f32, float)
PROTOTYPE_CROSS_ENTROPY(bwd, backward, bf16, bf16)
PROTOTYPE_CROSS_ENTROPY(bwd, backward, f16, f16)

// Three blocks on a multiprocessor: for four, which the compiler would choose, registers do not suffice.
#define PROTOTYPE_CROSS_ENTROPY_KERNELS(name)                                           \
    KERNEL_DTYPE_BOUNDS(name, f32, float, PrototypeCrossEntropy, TILE_THREADS, 3)       \
    KERNEL_DTYPE_BOUNDS(name, bf16, bf16, PrototypeCrossEntropy, TILE_THREADS, 3)       \
    KERNEL_DTYPE_BOUNDS(name, f16, f16, PrototypeCrossEntropy, TILE_THREADS, 3)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_fwd_from_f32)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_fwd_from_bf16)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_fwd_from_f16)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_bwd_from_f32)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_bwd_from_bf16)
PROTOTYPE_CROSS_ENTROPY_KERNELS(prototype_cross_entropy_bwd_from_f16)

struct PrototypeCrossEntropyRows {
    const float* part;     // [rows, tiles, 4]
    const float* weights;  // [rows]
    float* stats;          // [rows, 4]: max s, log Σ exp((s - max) / τ), Σ t, cross-entropy
    unsigned rows, tiles;
    float scale;
    unsigned pad;
};

// One thread per row: the parts of a row are few.
__device__ void prototype_cross_entropy_rows_f32_body(const PrototypeCrossEntropyRows& a) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.rows) return;
    float* stats = a.stats + 4 * size_t(row);
    if (a.weights[row] == 0.f) {
        store_four(stats, 0.f, 0.f, 0.f, 0.f);
        return;
    }
    const float* part = a.part + 4 * size_t(row) * a.tiles;
    RowPart x = load_part(part);
    for (unsigned i = 1; i < a.tiles; ++i) x = merged(x, load_part(part + 4 * i), a.scale);
    const float log2_sum = log2f(x.sum);
    store_four(stats, x.top, LN2 * log2_sum, x.total, LN2 * (x.total * log2_sum - x.dot));
}
KERNEL(prototype_cross_entropy_rows_f32, PrototypeCrossEntropyRows)

struct PrototypeCrossEntropyLoss {
    const float* stats;    // [rows, 4]
    const float* weights;  // [rows]
    float* loss;           // [1]
    double scale;          // 1 / normaliser
    unsigned rows, pad;
};

// One block. f64: thousands of rows add no error of their own.
__device__ void prototype_cross_entropy_loss_f32_body(const PrototypeCrossEntropyLoss& a) {
    double sum = 0.;
    for (unsigned row = threadIdx.x; row < a.rows; row += blockDim.x)
        sum += double(a.weights[row]) * double(a.stats[4 * size_t(row) + 3]);
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) a.loss[0] = float(sum * a.scale);
}
KERNEL(prototype_cross_entropy_loss_f32, PrototypeCrossEntropyLoss)
