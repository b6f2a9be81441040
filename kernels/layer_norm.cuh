// LayerNorm by warps and rows: y = (x - mean) * rstd * w + b, two passes over a row (arXiv 1607.06450, eq. 3-4).
// Shared by layer_norm.cu and add_layer_norm.cu.
#pragma once
#include "ptx.cuh"
#include "rows.cuh"

// One row by one warp. The lane that reads x[c] is the one with c % 32 == lane_id(), so a kernel may have written it.
template <class T>
__device__ __forceinline__ void layer_norm_row(
    const T* x, const T* w, const T* b, T* y, float* stats, unsigned cols, float eps) {
    float sum = 0.f;
    for (unsigned c = lane_id(); c < cols; c += WARP) sum += to_f32(x[c]);
    const float mean = warp_sum(sum) / cols;
    float square = 0.f;
    for (unsigned c = lane_id(); c < cols; c += WARP) {
        const float d = to_f32(x[c]) - mean;
        square += d * d;
    }
    const float rstd = 1.f / sqrtf(warp_sum(square) / cols + eps);
    for (unsigned c = lane_id(); c < cols; c += WARP)
        y[c] = from_f32<T>((to_f32(x[c]) - mean) * rstd * to_f32(w[c]) + to_f32(b[c]));
    if (lane_id() == 0) {
        stats[0] = mean;
        stats[1] = rstd;
    }
}

// The same of a row in the registers of a warp.
template <class T, int PACKS>
__device__ __forceinline__ void layer_norm_held(
    const Packed<T> (&x)[PACKS], const T* w, const T* b, T* y, float* stats, unsigned cols, float eps) {
    constexpr int N = Packed<T>::N;
    float sum = 0.f;
    for_each_held<N, PACKS>(cols, [&](int p, unsigned) {
        UNROLL
        for (int j = 0; j < N; ++j) sum += x[p][j];
    });
    const float mean = warp_sum(sum) / cols;
    float square = 0.f;
    for_each_held<N, PACKS>(cols, [&](int p, unsigned) {
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float d = x[p][j] - mean;
            square += d * d;
        }
    });
    const float rstd = 1.f / sqrtf(warp_sum(square) / cols + eps);
    for_each_held<N, PACKS>(cols, [&](int p, unsigned c) {
        const Packed<T> scale = load_packed(w + c), shift = load_packed(b + c);
        Vec<T, N> out;
        UNROLL
        for (int j = 0; j < N; ++j)
            out[j] = from_f32<T>((x[p][j] - mean) * rstd * scale[j] + shift[j]);
        store_vec(y + c, out);
    });
    if (lane_id() == 0) {
        stats[0] = mean;
        stats[1] = rstd;
    }
}

struct LayerNormBwd {
    const void* dy;      // [rows, cols] T
    const void* x;       // [rows, cols] T
    const void* w;       // [cols] T
    const float* stats;  // [rows, 2]
    void* dx;            // [rows, cols] T
    float* part;         // [2, parts, cols]: dw and db of one block's rows; a block per part
    unsigned rows, cols, rows_per_part, pad;
};

// For rows of any length. A block owns rows_per_part rows: its warps write dx, then its threads walk the columns for dw and db. The rows are
// read twice, the second time from the cache; no atomics, so the result is the same in every run. `dsum`,
// unless null, is added to dx.
template <class T>
__device__ __forceinline__ void layer_norm_bwd_rows(const LayerNormBwd& a, const T* dsum) {
    const unsigned first = blockIdx.x * a.rows_per_part;
    const unsigned last = first + a.rows_per_part < a.rows ? first + a.rows_per_part : a.rows;
    const T* w = in<T>(a.w);
    for (unsigned row = first + warp_id(); row < last; row += blockDim.x / WARP) {
        const T* x = in<T>(a.x) + size_t(row) * a.cols;
        const T* dy = in<T>(a.dy) + size_t(row) * a.cols;
        T* dx = out<T>(a.dx) + size_t(row) * a.cols;
        const float mean = a.stats[2 * size_t(row)], rstd = a.stats[2 * size_t(row) + 1];
        float sum_g = 0.f, sum_gx = 0.f;
        for (unsigned c = lane_id(); c < a.cols; c += WARP) {
            const float g = to_f32(dy[c]) * to_f32(w[c]);
            sum_g += g;
            sum_gx += g * (to_f32(x[c]) - mean) * rstd;
        }
        const float mean_g = warp_sum(sum_g) / a.cols;
        const float mean_gx = warp_sum(sum_gx) / a.cols;
        for (unsigned c = lane_id(); c < a.cols; c += WARP) {
            const float normed = (to_f32(x[c]) - mean) * rstd;
            const float through = rstd * (to_f32(dy[c]) * to_f32(w[c]) - mean_g - normed * mean_gx);
            dx[c] = from_f32<T>(dsum ? through + to_f32(dsum[size_t(row) * a.cols + c]) : through);
        }
    }
    float* part_dw = a.part + size_t(blockIdx.x) * a.cols;
    float* part_db = part_dw + size_t(gridDim.x) * a.cols;
    for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) {
        float dw = 0.f, db = 0.f;
        for (unsigned row = first; row < last; ++row) {
            const size_t at = size_t(row) * a.cols + c;
            const float g = to_f32(in<T>(a.dy)[at]);
            dw += g * (to_f32(in<T>(a.x)[at]) - a.stats[2 * size_t(row)]) * a.stats[2 * size_t(row) + 1];
            db += g;
        }
        part_dw[c] = dw;
        part_db[c] = db;
    }
}

// Warps of a block of the kernels below.
#define HELD_WARPS 8

// Sums `x` over the warps of a block, in pairs: warp 0 has the sum. Every thread of the block calls it. Lanes lie side by
// side in shared memory, 16 bytes each: no bank conflicts.
template <int N, int PACKS>
__device__ __forceinline__ void sum_over_warps(float (&x)[PACKS][N]) {
    constexpr int QUADS = PACKS * N / 4;                          // of a lane
    SMEM(Floats<HELD_WARPS / 2 * QUADS * WARP * 4>, shared);      // [warps / 2, quads, lanes, 4]
    UNROLL
    for (int half = HELD_WARPS / 2; half > 0; half /= 2) {
        __syncthreads();  // the rows are free again
        if (warp_id() >= half && warp_id() < 2 * half)
            UNROLL
            for (int q = 0; q < QUADS; ++q) {
                Vec<float, 4> v;
                UNROLL
                for (int j = 0; j < 4; ++j) v[j] = x[q * 4 / N][q * 4 % N + j];
                store_vec(shared.v + (((warp_id() - half) * QUADS + q) * WARP + lane_id()) * 4, v);
            }
        __syncthreads();
        if (warp_id() < half)
            UNROLL
            for (int q = 0; q < QUADS; ++q) {
                const Vec<float, 4> v = load_vec<float, 4>(shared.v + ((warp_id() * QUADS + q) * WARP + lane_id()) * 4);
                UNROLL
                for (int j = 0; j < 4; ++j) x[q * 4 / N][q * 4 % N + j] += v[j];
            }
    }
}

// x, whose elements the compiler is to widen again rather than to keep in twice the registers.
template <class T>
__device__ __forceinline__ void as_stored(Packed<T>& x) {
    UNROLL
    for (int i = 0; i < 4; ++i) x.word[i] = computed_here(x.word[i]);
}

// As layer_norm_bwd_rows, for rows of whole vectors of 16 bytes, PACKS a lane at most: a row is read once, and a warp keeps
// the sums for dw and db of all its rows in registers.
template <class T, int PACKS, bool ADD>
__device__ __forceinline__ void layer_norm_bwd_held(const LayerNormBwd& a, const T* dsum) {
    constexpr int N = Packed<T>::N;
    const unsigned first = blockIdx.x * a.rows_per_part;
    const unsigned last = first + a.rows_per_part < a.rows ? first + a.rows_per_part : a.rows;
    constexpr bool EARLY = ADD && PACKS * N <= 16;  // dsum is under way with the rest, where registers allow
    float dw[PACKS][N] = {}, db[PACKS][N] = {};
#pragma unroll 1
    for (unsigned row = first + warp_id(); row < last; row += HELD_WARPS) {
        const size_t at = size_t(row) * a.cols;
        Packed<T> x[PACKS], dy[PACKS], extra[EARLY ? PACKS : 1] = {};
        for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
            x[p] = load_packed(in<T>(a.x) + at + c);
            dy[p] = load_packed(in<T>(a.dy) + at + c);
            if (EARLY) extra[EARLY ? p : 0] = load_packed(dsum + at + c);
        });
        const Vec<float, 2> stats = load_vec<float, 2>(a.stats + 2 * size_t(row));
        const float mean = stats[0], rstd = stats[1];
        float sum_g = 0.f, sum_gx = 0.f;
        for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
            const Packed<T> w = load_packed(in<T>(a.w) + c);
            UNROLL
            for (int j = 0; j < N; ++j) {
                const float d = dy[p][j], g = d * w[j], normed = (x[p][j] - mean) * rstd;
                sum_g += g;
                sum_gx += g * normed;
                dw[p][j] += d * normed;
                db[p][j] += d;
            }
        });
        const float mean_g = warp_sum(sum_g) / a.cols;
        const float mean_gx = warp_sum(sum_gx) / a.cols;
        for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
            const Packed<T> w = load_packed(in<T>(a.w) + c);
            Vec<T, N> dx;
            Packed<T> more;
            if (ADD) more = EARLY ? extra[EARLY ? p : 0] : load_packed(dsum + at + c);
            as_stored(x[p]);
            as_stored(dy[p]);
            UNROLL
            for (int j = 0; j < N; ++j) {
                const float normed = (x[p][j] - mean) * rstd;
                const float through = rstd * (dy[p][j] * w[j] - mean_g - normed * mean_gx);
                dx[j] = from_f32<T>(ADD ? through + more[j] : through);
            }
            store_vec(out<T>(a.dx) + at + c, dx);
        });
    }
    sum_over_warps(dw);
    sum_over_warps(db);
    if (warp_id() != 0) return;
    float* part_dw = a.part + size_t(blockIdx.x) * a.cols;
    float* part_db = part_dw + size_t(gridDim.x) * a.cols;
    for_each_held<N, PACKS>(a.cols, [&](int p, unsigned c) {
        store_sum(part_dw + c, dw[p]);
        store_sum(part_db + c, db[p]);
    });
}

// `name_x2`, `name_x4` and `name_x6` for every type, and for f32 `name_x8`, from a template `name_held<T, PACKS>`: PACKS
// vectors of 16 bytes to a lane. A multiprocessor is to hold 512 threads of the first two.
#define HELD_KERNEL(name, packs, suffix, T, Args, threads) \
    KERNEL_ENTRY_BOUNDS(                                   \
        name##_x##packs##_##suffix, (name##_held<T, packs>), Args, threads, packs > 4 ? 1 : 512 / (threads))
#define HELD_KERNELS(name, Args, threads)             \
    HELD_KERNEL(name, 2, f32, float, Args, threads)   \
    HELD_KERNEL(name, 2, bf16, bf16, Args, threads)   \
    HELD_KERNEL(name, 2, f16, f16, Args, threads)     \
    HELD_KERNEL(name, 4, f32, float, Args, threads)   \
    HELD_KERNEL(name, 4, bf16, bf16, Args, threads)   \
    HELD_KERNEL(name, 4, f16, f16, Args, threads)     \
    HELD_KERNEL(name, 6, f32, float, Args, threads)   \
    HELD_KERNEL(name, 6, bf16, bf16, Args, threads)   \
    HELD_KERNEL(name, 6, f16, f16, Args, threads)     \
    HELD_KERNEL(name, 8, f32, float, Args, threads)
