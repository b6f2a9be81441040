// LayerNorm by warps and rows: y = (x - mean) * rstd * w + b, two passes over a row (arXiv 1607.06450, eq. 3-4).
// Shared by layer_norm.cu and add_layer_norm.cu.
#pragma once
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

struct LayerNormBwd {
    const void* dy;      // [rows, cols] T
    const void* x;       // [rows, cols] T
    const void* w;       // [cols] T
    const float* stats;  // [rows, 2]
    void* dx;            // [rows, cols] T
    float* part;         // [2, parts, cols]: dw and db of one block's rows; a block per part
    unsigned rows, cols, rows_per_part, pad;
};

// A block owns rows_per_part rows: its warps write dx, then its threads walk the columns for dw and db. The rows are
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
