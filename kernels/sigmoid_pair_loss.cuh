// One pair of the sigmoid loss and what is added up over pairs: l = t s + b, loss = softplus(a), dl = sigmoid(a) with
// a = l of a negative, -l of a positive (arXiv 2303.15343, algorithm 1).
#pragma once
#include "logistic.cuh"
#include "rows.cuh"
#include "tiles.cuh"

#define SIDE 128       // rows and columns of a block's tile of pairs
#define THREADS 256    // of a block
#define SUMS 6         // numbers of a tile: struct PairSums

struct SigmoidPairLoss {
    const void* x;           // [rows, dim] T
    const void* y;           // [cols, dim] T
    const float* log_scale;  // [1]: t = exp(log_scale)
    const float* bias;       // [1]
    void* g;                 // [rows, cols] T: n · GAIN · dL/dl; or null
    double* part;            // [tiles, SUMS]: of each tile, in f64 from panel to panel
    unsigned rows, cols, dim;
    int shift;               // pair (i, j) is a positive iff j - i == shift
    unsigned tiles;          // distance of `part` from a row of tiles to the next
    unsigned add;            // whether `part` holds the sums of earlier panels
};

// What n · dL/dl is stored times. f16 has no small numbers: sigmoid(-17) = 4e-8 would keep one digit. Times 2^15 the
// largest, 1, still fits, and what is below 2e-9 loses digits slowly.
template <class T>
struct Gain {
    static constexpr float value = 1.f;
};
template <>
struct Gain<f16> {
    static constexpr float value = 32768.f;
};

// Sums over the pairs of a thread, in f32; of a tile's threads in f32, of tiles in f64.
struct PairSums {
    float loss = 0.f;                // n · L
    float g = 0.f, gs = 0.f;         // Σ n dL/dl, Σ n dL/dl s
    float positive = 0.f;            // Σ s of positives
    float negative = 0.f;            // Σ s of negatives
    float most = -INFINITY;          // largest s of a negative

    // Takes in the pair of cosine s; returns n · dL/dl: sigmoid(l) of a negative, -sigmoid(-l) of a positive. A pair
    // that does not exist adds nothing.
    template <bool GRADIENT>
    __device__ __forceinline__ float take(float s, float t, float b, bool is_positive, bool exists) {
        const float l = fmaf(t, s, b), a = is_positive ? -l : l;
        const float e = exp2_approx(-LOG2_E * fabsf(a));  // of the tail, which no |l| overflows
        const float softplus = fmaxf(a, 0.f) + ln_1p(e);
        loss += exists ? softplus : 0.f;
        positive += is_positive && exists ? s : 0.f;
        negative += !is_positive && exists ? s : 0.f;
        most = fmaxf(most, !is_positive && exists ? s : -INFINITY);
        if (!GRADIENT) return 0.f;
        const float inverse = __fdividef(1.f, 1.f + e), sigmoid = a < 0.f ? e * inverse : inverse;
        const float signed_g = is_positive ? -sigmoid : sigmoid, dl = exists ? signed_g : 0.f;
        g += dl;
        gs += dl * s;
        return dl;
    }
};

// A block's tile: its first row and column, and what of it exists.
struct PairTile {
    unsigned row, col;
    int rows, cols;  // at most SIDE
    int shift;       // as in struct SigmoidPairLoss, from the tile's corner
    bool plain;      // all pairs exist and are negatives
    unsigned slot;   // of `part`
    // The tile of a block; computed anew rather than kept in registers beside the sums of a product.
    __device__ __forceinline__ explicit PairTile(const SigmoidPairLoss& a) {
        const unsigned block = computed_here(blockIdx.x);
        const unsigned across = (a.cols + SIDE - 1) / SIDE, down = block / across;
        row = down * SIDE;
        col = block % across * SIDE;
        slot = down * a.tiles + block % across;
        rows = min(int(a.rows - row), SIDE);
        cols = min(int(a.cols - col), SIDE);
        shift = a.shift + int(row) - int(col);
        plain = rows == SIDE && cols == SIDE && (shift >= SIDE || shift <= -SIDE);
    }
};

struct TileSums {
    float v[SUMS][THREADS / WARP];
};

// Adds a block's sums to its slot. The block meets at a barrier inside.
__device__ __forceinline__ void finish_tile(const SigmoidPairLoss& a, const PairSums& sums) {
    SMEM(TileSums, shared);
    const float loss = warp_sum(sums.loss);
    const float g = warp_sum(sums.g);
    const float gs = warp_sum(sums.gs);
    const float positive = warp_sum(sums.positive);
    const float negative = warp_sum(sums.negative);
    const float most = warp_max(sums.most);
    if (lane_id() == 0) {
        const float all[SUMS] = {loss, g, gs, positive, negative, most};
        UNROLL
        for (int q = 0; q < SUMS; ++q) shared.v[q][warp_id()] = all[q];
    }
    __syncthreads();
    if (threadIdx.x < SUMS) {
        double* to = a.part + size_t(PairTile(a).slot) * SUMS + threadIdx.x;
        const bool largest = threadIdx.x == SUMS - 1;
        double total = a.add ? *to : largest ? double(-INFINITY) : 0.0;
        UNROLL
        for (int w = 0; w < THREADS / WARP; ++w) {
            const double x = shared.v[threadIdx.x][w];
            total = largest ? max(total, x) : total + x;
        }
        *to = total;
    }
}
