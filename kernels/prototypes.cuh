// Matrices [rows, prototypes], too wide for one block: a block of 256 threads owns a tile of columns, what depends on the
// prototype alone stays in its registers, and it goes down the rows of its part. A sum over a row is made of the
// partial sums of the tiles.
//
// e^(z/T + a + l) is 2^((z/T + a) log2 e + l log2 e): z/T and a may be hundreds, but their sum is small where the power is
// not, and loses nothing to what follows. z/T is rounded for itself, the same in every pass: what a maximum of them, a
// column's or a row's, leaves of itself is then 0.
#pragma once
#include "ptx.cuh"
#include "rows.cuh"

#define TILE_THREADS 256
#define TILE_WARPS (TILE_THREADS / WARP)

// Vectors per thread: the shuffles of a row's sum are the same for two as for one, and with more the factors and sums of
// a thread's columns take so many registers that few blocks fit on a multiprocessor. Not measured yet.
#define TILE_VECTORS 2

// This thread's columns of tile blockIdx.x: VECTORS vectors of V, neighbours in a warp side by side. V > 1 needs whole
// vectors: cols is a multiple of V.
template <int V>
struct Tile {
    unsigned cols;
    __device__ __forceinline__ explicit Tile(unsigned n) : cols(n) {}
    __device__ __forceinline__ unsigned at(int m) const {
        return ((blockIdx.x * TILE_VECTORS + m) * TILE_THREADS + threadIdx.x) * V;
    }
    __device__ __forceinline__ bool inside(int m) const { return at(m) < cols; }
};

// One number for each of a thread's columns.
template <class T, int V>
struct Columns {
    Vec<T, V> v[TILE_VECTORS];
};

// Of a row or a vector of a matrix; `outside` beyond its end.
template <class T, int V>
__device__ __forceinline__ Columns<T, V> load_columns(const T* row, const Tile<V>& tile, float outside) {
    Columns<T, V> x;
    UNROLL
    for (int m = 0; m < TILE_VECTORS; ++m) {
        if (tile.inside(m)) {
            x.v[m] = load_vec<T, V>(row + tile.at(m));
        } else {
            UNROLL
            for (int j = 0; j < V; ++j) x.v[m][j] = from_f32<T>(outside);
        }
    }
    return x;
}

template <class T, int V>
__device__ __forceinline__ void store_columns(T* row, const Tile<V>& tile, const Columns<T, V>& x) {
    UNROLL
    for (int m = 0; m < TILE_VECTORS; ++m)
        if (tile.inside(m)) store_vec(row + tile.at(m), x.v[m]);
}

// Calls `body(m, j)` for each of a thread's columns.
template <int V, class Body>
__device__ __forceinline__ void for_columns(Body body) {
    UNROLL
    for (int m = 0; m < TILE_VECTORS; ++m) {
        UNROLL
        for (int j = 0; j < V; ++j) body(m, j);
    }
}

// Rows [from, to).
struct Rows {
    unsigned from, to;
};

// The share of blockIdx.y; empty for the last ones if there are more parts than rows.
__device__ __forceinline__ Rows part_of(Rows all) {
    const unsigned per_part = (all.to - all.from + gridDim.y - 1) / gridDim.y;
    const unsigned from = min(all.from + blockIdx.y * per_part, all.to);
    return {from, min(from + per_part, all.to)};
}

// Those of a batch that is the first *count rows; all where that is null.
__device__ __forceinline__ Rows counted(Rows all, const int* count) {
    if (!count) return all;
    const unsigned end = unsigned(max(*count, 0));
    return {min(all.from, end), min(all.to, end)};
}

// x, or 0 for -inf: what may be subtracted from numbers of which x is the largest.
__device__ __forceinline__ float finite_shift(float x) { return x == -INFINITY ? 0.f : x; }

// z / T, with `scale` its reciprocal; never fused into a sum.
template <class T>
__device__ __forceinline__ float scaled(T z, float scale) { return __fmul_rn(to_f32(z), scale); }

// e^x
__device__ __forceinline__ float exp_of(float x) { return exp2_approx(x * LOG2_E); }

// sum · e^shift, where sum is at least 1 unless it is 0: neither overflows nor vanishes.
struct ScaledSum {
    float shift, sum;
};

__device__ __forceinline__ ScaledSum operator+(ScaledSum a, ScaledSum b) {
    const float shift = fmaxf(a.shift, b.shift), by = finite_shift(shift);
    return {shift, a.sum * exp_of(a.shift - by) + b.sum * exp_of(b.shift - by)};
}

__device__ __forceinline__ ScaledSum load_sum(const float* p) {
    const Vec<float, 2> x = load_vec<float, 2>(p);
    return {x[0], x[1]};
}

__device__ __forceinline__ void store_sum_to(float* p, ScaledSum x) {
    Vec<float, 2> v;
    v[0] = x.shift, v[1] = x.sum;
    store_vec(p, v);
}

// What the warps of a block have of some rows, for a reader that adds them up. Two of them take turns, so that one
// barrier between writing and reading is enough: the next barrier is behind the reading.
template <class X, int ROWS>
struct WarpSums {
    X v[2][ROWS][TILE_WARPS];
};

// Rows read ahead of their sums.
#define SUM_ROWS 2

// sums[row, tile] = Σ_k e^(z·scale + a_k) over the tile's columns, for the rows of a part. `seen(z)` gets each row.
template <class T, int V, class Seen>
__device__ __forceinline__ void row_sums(
    const T* logits, const Tile<V>& tile, float scale, const Columns<float, V>& a, Rows rows, float* sums, Seen seen) {
    typedef WarpSums<ScaledSum, SUM_ROWS> Shared;
    SMEM(Shared, shared);
    unsigned turn = 0;
    for (unsigned from = rows.from; from < rows.to; from += SUM_ROWS, turn ^= 1) {
        Columns<T, V> z[SUM_ROWS];
        UNROLL
        for (int u = 0; u < SUM_ROWS; ++u)
            z[u] = load_columns<T, V>(logits + size_t(min(from + u, rows.to - 1)) * tile.cols, tile, -INFINITY);
        UNROLL
        for (int u = 0; u < SUM_ROWS; ++u) {
            if (from + u >= rows.to) continue;
            seen(z[u]);
            float x[TILE_VECTORS][V], top = -INFINITY;
            for_columns<V>([&](int m, int j) {
                x[m][j] = scaled(z[u].v[m][j], scale) + a.v[m][j];
                top = fmaxf(top, x[m][j]);
            });
            top = warp_max(top);
            const float by = -LOG2_E * finite_shift(top);
            float sum = 0.f;
            for_columns<V>([&](int m, int j) { sum += exp2_approx(x[m][j] * LOG2_E + by); });
            sum = warp_sum(sum);
            if (lane_id() == 0) shared.v[turn][u][warp_id()] = {top, sum};
        }
        __syncthreads();
        if (threadIdx.x < SUM_ROWS && from + threadIdx.x < rows.to) {
            ScaledSum total = shared.v[turn][threadIdx.x][0];
            for (int w = 1; w < TILE_WARPS; ++w) total = total + shared.v[turn][threadIdx.x][w];
            store_sum_to(sums + 2 * (size_t(from + threadIdx.x) * gridDim.x + blockIdx.x), total);
        }
    }
}

// The logarithm of the sum over the tiles of a row, by a warp.
__device__ __forceinline__ float row_log_sum(const float* sums, unsigned tiles) {
    float top = -INFINITY;
    for (unsigned t = lane_id(); t < tiles; t += WARP) top = fmaxf(top, sums[2 * t]);
    top = warp_max(top);
    const float by = finite_shift(top);
    float sum = 0.f;
    for (unsigned t = lane_id(); t < tiles; t += WARP) {
        const ScaledSum x = load_sum(sums + 2 * t);
        sum += x.sum * exp_of(x.shift - by);
    }
    return top + logf(warp_sum(sum));
}

// The logarithms of the row factors: l[row] = -log Σ_tiles sums[row, tile], -inf where a row does not count, one warp per
// row.
struct RowFactors {
    const float* sums;  // [rows, tiles, 2]: shift, sum
    float* l;           // [rows]
    const int* count;   // [1]: the first rows, which count; null: all
    unsigned rows, tiles;
};

__device__ __forceinline__ void row_factors(const RowFactors& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    if (row >= counted({0, a.rows}, a.count).to) {
        if (lane_id() == 0) a.l[row] = -INFINITY;
        return;
    }
    const float log_sum = row_log_sum(a.sums + 2 * size_t(row) * a.tiles, a.tiles);
    if (lane_id() == 0) a.l[row] = -log_sum;
}
