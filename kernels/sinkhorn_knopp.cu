// Sinkhorn-Knopp by scaling factors: the logits are only read. P = exp(z / T + a + l), a per prototype, l per row.
// Reference, equations and the reads of each design: src/ops/sinkhorn_knopp.
//
// Place for a variant of sm_90a: a cluster of 8 blocks holds a row of 131072 16-bit logits (32 KB each) and its column
// sums (64 KB each) in shared memory, exchanges the row's sum through distributed shared memory, and adds the row's
// masses before it lets go of it: step() with one read, no groups of rows, and no second launch.
// narrow-ok: sinkhorn_knopp_m* vectors of rows or prototypes, not the matrix
// narrow-ok: sinkhorn_knopp_prototypes_f32 as above
// narrow-ok: sinkhorn_knopp_rows_f32 as above
// narrow-ok: sinkhorn_knopp_start_f32 as above
#include "prototypes.cuh"

struct SinkhornKnoppFirst {
    const void* logits;  // [rows, cols] T
    const float* temp;   // [1]
    float* part_max;     // [parts, cols]: of z / T
    float* part;         // [parts, cols]: Σ exp(z / T - part_max)
    const int* count;    // [1]: the first rows, which count; null: all
    unsigned rows, cols;
};

// Rows read ahead: their maximum is taken before the sums move to it.
#define FIRST_ROWS 4

template <class T, int V>
__device__ __forceinline__ void first(const SinkhornKnoppFirst& a) {
    const Tile<V> tile(a.cols);
    const T* logits = in<T>(a.logits);
    const float scale = 1.f / a.temp[0];
    const Rows rows = part_of(counted({0, a.rows}, a.count));
    Columns<float, V> top, sum;
    for_columns<V>([&](int m, int j) { top.v[m][j] = -INFINITY, sum.v[m][j] = 0.f; });
    for (unsigned from = rows.from; from < rows.to; from += FIRST_ROWS) {
        Columns<T, V> z[FIRST_ROWS];
        UNROLL
        for (int u = 0; u < FIRST_ROWS; ++u)
            z[u] = load_columns<T, V>(logits + size_t(min(from + u, rows.to - 1)) * a.cols, tile, -INFINITY);
        for_columns<V>([&](int m, int j) {
            float largest = top.v[m][j];
            UNROLL
            for (int u = 0; u < FIRST_ROWS; ++u) largest = fmaxf(largest, scaled(z[u].v[m][j], scale));
            const float by = finite_shift(largest);
            float total = sum.v[m][j] * exp_of(top.v[m][j] - by);
            UNROLL
            for (int u = 0; u < FIRST_ROWS; ++u)
                if (from + u < rows.to) total += exp_of(scaled(z[u].v[m][j], scale) - by);
            top.v[m][j] = largest, sum.v[m][j] = total;
        });
    }
    const size_t at = size_t(blockIdx.y) * a.cols;
    store_columns<float, V>(a.part_max + at, tile, top);
    store_columns<float, V>(a.part + at, tile, sum);
}

template <class T>
__device__ void sinkhorn_knopp_first(const SinkhornKnoppFirst& a) {
    constexpr int V = 16 / int(sizeof(T));
    if (a.cols % V == 0)
        first<T, V>(a);
    else
        first<T, 1>(a);
}
KERNEL_PER_DTYPE_BOUNDS(sinkhorn_knopp_first, SinkhornKnoppFirst, TILE_THREADS)

struct SinkhornKnoppMax {
    const float* part;  // [parts, cols]
    float* max;         // [cols]
    unsigned parts, cols;
};

// One thread per column.
__device__ void sinkhorn_knopp_max_f32_body(const SinkhornKnoppMax& a) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= a.cols) return;
    float top = -INFINITY;
    for (unsigned p = 0; p < a.parts; ++p) top = fmaxf(top, a.part[size_t(p) * a.cols + k]);
    a.max[k] = top;
}
KERNEL(sinkhorn_knopp_max_f32, SinkhornKnoppMax)

struct SinkhornKnoppPrototypes {
    const float* part;      // [parts, cols]
    const float* part_max;  // [parts, cols]: what the parts are relative to; null: all are relative to `a`
    float* mass;            // [cols]
    float* a;               // [cols]
    unsigned parts, cols;
};

// The factors from the maxima, which lie in `mass`. One thread per column.
__device__ void sinkhorn_knopp_start_f32_body(const SinkhornKnoppPrototypes& a) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < a.cols) a.a[k] = -finite_shift(a.mass[k]);
}
KERNEL(sinkhorn_knopp_start_f32, SinkhornKnoppPrototypes)

// The masses from the parts. One thread per column.
__device__ void sinkhorn_knopp_masses_f32_body(const SinkhornKnoppPrototypes& a) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= a.cols) return;
    float mass = 0.f;
    for (unsigned p = 0; p < a.parts; ++p) {
        const size_t at = size_t(p) * a.cols + k;
        mass += a.part_max ? a.part[at] * expf(a.part_max[at] + a.a[k]) : a.part[at];
    }
    a.mass[k] = mass;
}
KERNEL(sinkhorn_knopp_masses_f32, SinkhornKnoppPrototypes)

// The factors from the masses. One thread per column. A prototype without any mass keeps its factor.
__device__ void sinkhorn_knopp_prototypes_f32_body(const SinkhornKnoppPrototypes& a) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < a.cols && a.mass[k] != 0.f) a.a[k] -= logf(a.mass[k]);
}
KERNEL(sinkhorn_knopp_prototypes_f32, SinkhornKnoppPrototypes)

struct SinkhornKnoppStep {
    const void* logits;  // [rows, cols] T
    const float* temp;   // [1]
    const float* a;      // [cols]
    float* sums;         // [rows, tiles, 2]: shift, sum of a tile's Σ_k exp(z / T + a)
    float* part;         // [parts, cols]: Σ_b exp(z / T + a + l)
    const int* count;    // [1]: the first rows, which count; null: all
    Rows sum;            // rows whose sums are made
    Rows weigh;          // rows, summed by an earlier launch, whose masses are added to `part`
    unsigned cols;
    unsigned add;        // 0: `part` is overwritten
};

// Rows whose factors a block finishes before it uses them.
#define STEP_ROWS 32

// Both halves belong to neighbouring groups of rows: while one group comes from memory, the group before, which the
// second-level cache still has, is read again with its factors known.
template <class T, int V>
__device__ __forceinline__ void step(const SinkhornKnoppStep& a) {
    const Tile<V> tile(a.cols);
    const T* logits = in<T>(a.logits);
    const float scale = 1.f / a.temp[0];
    const Columns<float, V> prototypes = load_columns<float, V>(a.a, tile, 0.f);
    const Rows summed = part_of(counted(a.sum, a.count));
    row_sums<T, V>(logits, tile, scale, prototypes, summed, a.sums, [](const Columns<T, V>&) {});

    if (a.weigh.from == a.weigh.to) return;  // all threads of all blocks; where no row counts, `part` is 0
    SMEM(Floats<STEP_ROWS>, factor);
    const Rows rows = part_of(counted(a.weigh, a.count));
    float* part = a.part + size_t(blockIdx.y) * a.cols;
    Columns<float, V> mass;
    for_columns<V>([&](int m, int j) { mass.v[m][j] = 0.f; });
    if (a.add) mass = load_columns<float, V>(part, tile, 0.f);
    for (unsigned from = rows.from; from < rows.to; from += STEP_ROWS) {
        const unsigned count = min(rows.to - from, unsigned(STEP_ROWS));
        __syncthreads();  // the factors before are used
        for (unsigned i = warp_id(); i < count; i += TILE_WARPS) {
            const float log_sum = row_log_sum(a.sums + 2 * size_t(from + i) * gridDim.x, gridDim.x);
            if (lane_id() == 0) factor.v[i] = -LOG2_E * log_sum;
        }
        __syncthreads();
        for (unsigned i = 0; i < count; i += SUM_ROWS) {
            Columns<T, V> z[SUM_ROWS];
            UNROLL
            for (int u = 0; u < SUM_ROWS; ++u) {
                const size_t row = from + min(i + u, count - 1);
                z[u] = load_columns<T, V>(logits + row * a.cols, tile, -INFINITY);
            }
            UNROLL
            for (int u = 0; u < SUM_ROWS; ++u) {
                if (i + u >= count) continue;
                const float l = factor.v[i + u];
                for_columns<V>([&](int m, int j) {
                    const float x = scaled(z[u].v[m][j], scale) + prototypes.v[m][j];
                    mass.v[m][j] += exp2_approx(x * LOG2_E + l);
                });
            }
        }
    }
    store_columns<float, V>(part, tile, mass);
}

template <class T>
__device__ void sinkhorn_knopp_step(const SinkhornKnoppStep& a) {
    constexpr int V = 16 / int(sizeof(T));
    if (a.cols % V == 0)
        step<T, V>(a);
    else
        step<T, 1>(a);
}
KERNEL_PER_DTYPE_BOUNDS(sinkhorn_knopp_step, SinkhornKnoppStep, TILE_THREADS)

__device__ void sinkhorn_knopp_rows_f32_body(const RowFactors& a) { row_factors(a); }
KERNEL(sinkhorn_knopp_rows_f32, RowFactors)
