// Focal and dice loss of the best of an object's masks, the error of the predicted IoUs and a cross-entropy of "the object is
// there": one pass over the masks leaves sums of parts of them, one block makes the loss of these, and the gradient is a pass
// that writes zeros for all but the best masks. Equations, reference and gradient: src/ops/mask_loss.
// narrow-ok: mask_loss_fwd_[bf]* a few numbers per mask
// narrow-ok: mask_loss_bwd_scores_* a few numbers per object
#include "logistic.cuh"
#include "rows.cuh"

#define THREADS 256  // of a block that goes over pixels
#define BATCH 2      // vectors that a thread has under way
#define SUMS 6       // numbers of a part of a mask: struct Sums
#define WARPS 32     // of the block that finishes, at most

struct Focal {
    float foreground;  // share of a pixel of the target; 1 for both: not weighted
    float background;
    float gamma;
    float pad;
};

// A logit beside its target, p_t the probability of the target. Nothing in it overflows.
struct Logit {
    float cost;   // -ln p_t
    float other;  // -ln (1 - p_t)
    float right;  // p_t
    float wrong;  // 1 - p_t

    __device__ __forceinline__ Logit(float x, bool target) {
        const float z = target ? x : -x;
        const float e = exp2_approx(-LOG2_E * fabsf(z)), tail = ln_1p(e), near = reciprocal_approx(1.f + e), far = e * near;
        right = z < 0.f ? far : near;
        wrong = z < 0.f ? near : far;
        cost = fmaxf(-z, 0.f) + tail;
        other = fmaxf(z, 0.f) + tail;
    }
};

// (1 - p_t)^gamma for the gamma in use, and for any: 0 gives 1.
struct Square {
    __device__ __forceinline__ float operator()(const Logit& l) const { return l.wrong * l.wrong; }
};
struct Power {
    float gamma;
    __device__ __forceinline__ float operator()(const Logit& l) const {
        return gamma == 0.f ? 1.f : exp2_approx(-LOG2_E * gamma * l.other);  // 0 · inf of an infinite logit
    }
};

// Calls `body` with the power of this loss.
template <class Body>
__device__ __forceinline__ void with_power(const Focal& focal, Body body) {
    if (focal.gamma == 2.f)
        body(Square{});
    else
        body(Power{focal.gamma});
}

template <class Pow>
__device__ __forceinline__ float focal_loss(const Focal& focal, const Logit& l, bool target, Pow power) {
    return (target ? focal.foreground : focal.background) * power(l) * l.cost;
}

// Its derivative by the logit.
template <class Pow>
__device__ __forceinline__ float focal_slope(const Focal& focal, const Logit& l, bool target, Pow power) {
    const float share = target ? -focal.foreground : focal.background;
    return share * power(l) * (l.wrong + focal.gamma * l.right * l.cost);
}

// Calls `body(first, Width<N>)` so that the accesses first + j * THREADS * N for j below BATCH, where below `end`, cover the
// elements from `start` with the threads of a block. `packed`: rows begin at multiples of 16 bytes.
template <class T, class Body>
__device__ __forceinline__ void for_each_batch(unsigned start, unsigned end, bool packed, Body body) {
    constexpr int N = 16 / int(sizeof(T));
    if (packed)
        for (unsigned i = start + threadIdx.x * N; i < end; i += BATCH * THREADS * N) body(i, Width<N>{});
    else
        for (unsigned i = start + threadIdx.x; i < end; i += BATCH * THREADS) body(i, Width<1>{});
}

// ---- forward ------------------------------------------------------------------------------------------------------------

struct MaskLossPart {
    const void* masks;             // [objects, count, pixels] T
    const unsigned char* targets;  // [objects, pixels]: zero or not
    float* part;                   // [objects, count, gridDim.x, SUMS]
    unsigned objects, count, pixels;
    unsigned chunk;                // pixels of a block, whole vectors
    Focal focal;
};

// Sums over pixels of one mask.
struct Sums {
    float v[SUMS] = {};  // focal loss, 1 - p_t, p, t, pixels of mask and target, of the mask

    template <class Pow>
    __device__ __forceinline__ void take(const Focal& focal, float x, bool target, Pow power) {
        const Logit l(x, target);
        v[0] += focal_loss(focal, l, target, power);
        v[1] += l.wrong;
        v[2] += target ? l.right : l.wrong;
        v[3] += target ? 1.f : 0.f;
        v[4] += target && x > 0.f ? 1.f : 0.f;
        v[5] += x > 0.f ? 1.f : 0.f;
    }

    // Adds up the block's and writes them to[0..SUMS]. Every thread calls it.
    __device__ __forceinline__ void store(float* to) {
        SMEM(Floats<SUMS * THREADS / WARP>, partial);  // [SUMS, warps]
        __syncthreads();  // those of the mask before are written
        UNROLL
        for (int q = 0; q < SUMS; ++q) {
            const float sum = warp_sum(v[q]);
            if (lane_id() == 0) partial.v[q * (THREADS / WARP) + warp_id()] = sum;
        }
        __syncthreads();
        if (threadIdx.x >= SUMS) return;
        float sum = 0.f;
        UNROLL
        for (int w = 0; w < THREADS / WARP; ++w) sum += partial.v[threadIdx.x * (THREADS / WARP) + w];
        to[threadIdx.x] = sum;
    }
};

// Pixels of blockIdx.x of the objects of blockIdx.y; targets come from near memory for all masks but the first.
template <class T>
__device__ void mask_loss_fwd_part(const MaskLossPart& a) {
    const unsigned start = blockIdx.x * a.chunk, end = min(start + a.chunk, a.pixels);
    const bool packed = a.pixels % (16 / sizeof(T)) == 0;
    with_power(a.focal, [&](auto power) {
        for (unsigned o = blockIdx.y; o < a.objects; o += gridDim.y) {
            const unsigned char* targets = a.targets + size_t(o) * a.pixels;
            for (unsigned m = 0; m < a.count; ++m) {
                const size_t mask = size_t(o) * a.count + m;
                const T* x = in<T>(a.masks) + mask * a.pixels;
                Sums sums;
                for_each_batch<T>(start, end, packed, [&](unsigned first, auto width) {
                    constexpr int N = decltype(width)::value;
                    Vec<T, N> v[BATCH];
                    Vec<unsigned char, N> t[BATCH];
                    UNROLL
                    for (int j = 0; j < BATCH; ++j) {
                        const unsigned i = first + j * THREADS * N;
                        if (i < end) v[j] = load_vec<T, N>(x + i), t[j] = load_vec<unsigned char, N>(targets + i);
                    }
                    UNROLL
                    for (int j = 0; j < BATCH; ++j) {
                        if (first + j * THREADS * N >= end) break;
                        UNROLL
                        for (int n = 0; n < N; ++n) sums.take(a.focal, to_f32(v[j][n]), t[j][n] != 0, power);
                    }
                });
                sums.store(a.part + (mask * gridDim.x + blockIdx.x) * SUMS);
            }
        }
    });
}
KERNEL_PER_DTYPE_BOUNDS(mask_loss_fwd_part, MaskLossPart, THREADS)

struct MaskLossFinish {
    const float* part;   // [objects, count, parts, SUMS]
    const void* ious;    // [objects, count] T
    const void* scores;  // [objects] T
    float* total;        // [1]
    float* terms;        // [4]: mask, dice, iou, class, divided and not weighted
    int* best;           // [objects]
    float* stats;        // [objects, count, 4]: 2 sum p t + 1, sum p + sum t + 1, IoU, sum t
    double divisor;
    float factors[4];    // of the terms
    Focal focal;         // of the scores
    unsigned objects, count, parts, pixels;
    unsigned l1;         // absolute error of IoUs, not its square
    unsigned all;        // IoUs of all masks, not of the best
};

// The same in every lane.
__device__ __forceinline__ double warp_sum_f64(double x) {
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

struct Terms {
    double v[4][WARPS];
};

// One block, a warp for an object in turn. Parts are f32, what is made of them f64: there are few.
template <class T>
__device__ void mask_loss_fwd(const MaskLossFinish& a) {
    SMEM(Terms, shared);
    double term[4] = {};
    for (unsigned o = warp_id(); o < a.objects; o += blockDim.x / WARP) {
        double smallest = 0., focal_of_best = 0., dice_of_best = 0., error_of_best = 0., errors = 0., target = 0.;
        unsigned best = 0;
        for (unsigned m = 0; m < a.count; ++m) {
            const size_t mask = size_t(o) * a.count + m;
            double sum[SUMS] = {};
            for (unsigned p = lane_id(); p < a.parts; p += WARP)
                UNROLL
                for (int q = 0; q < SUMS; ++q) sum[q] += double(a.part[(mask * a.parts + p) * SUMS + q]);
            UNROLL
            for (int q = 0; q < SUMS; ++q) sum[q] = warp_sum_f64(sum[q]);
            target = sum[3];
            const double whole = sum[2] + target + 1., focal = sum[0] / a.pixels, dice = sum[1] / whole;
            const double either = sum[5] + target - sum[4], iou = sum[4] / (either < 1. ? 1. : either);
            if (lane_id() == 0)
                store_vec(a.stats + 4 * mask, Vec<float, 4>{float(whole - sum[1]), float(whole), float(iou), float(target)});
            const double off = double(to_f32(in<T>(a.ious)[mask])) - iou;
            const double error = a.l1 ? fabs(off) : off * off;
            errors += error;
            const double loss = a.factors[0] * focal + a.factors[1] * dice;
            if (m == 0 || loss < smallest || (loss != loss && smallest == smallest)) {  // a NaN is best: it is seen
                best = m;
                smallest = loss, focal_of_best = focal, dice_of_best = dice, error_of_best = error;
            }
        }
        if (lane_id() == 0) a.best[o] = int(best);
        const bool there = target > 0.;
        if (there) {
            term[0] += focal_of_best;
            term[1] += dice_of_best;
            term[2] += a.all ? errors / a.count : error_of_best;
        }
        const Logit score(to_f32(in<T>(a.scores)[o]), there);
        with_power(a.focal, [&](auto power) { term[3] += double(focal_loss(a.focal, score, there, power)); });
    }
    UNROLL
    for (int q = 0; q < 4; ++q)
        if (lane_id() == 0) shared.v[q][warp_id()] = term[q];
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0.;
    for (int q = 0; q < 4; ++q) {
        double sum = 0.;
        for (unsigned w = 0; w < blockDim.x / WARP; ++w) sum += shared.v[q][w];
        a.terms[q] = float(sum / a.divisor);
        total += a.factors[q] * (sum / a.divisor);
    }
    a.total[0] = float(total);
}
KERNEL_PER_DTYPE_BOUNDS(mask_loss_fwd, MaskLossFinish, WARPS * WARP)

// ---- backward -----------------------------------------------------------------------------------------------------------

struct MaskLossBwd {
    const float* dtotal;           // [1]
    const void* masks;             // [objects, count, pixels] T
    const unsigned char* targets;  // [objects, pixels]
    const int* best;               // [objects]
    const float* stats;            // [objects, count, 4]
    void* dmasks;                  // [objects, count, pixels] T
    unsigned objects, count, pixels;
    unsigned chunk;                // pixels of a block, whole vectors
    float by_focal;                // factor / (divisor pixels)
    float by_dice;                 // factor / divisor
    Focal focal;
};

// Pixels of blockIdx.x of the masks of blockIdx.y.
template <class T>
__device__ void mask_loss_bwd(const MaskLossBwd& a) {
    const unsigned start = blockIdx.x * a.chunk, end = min(start + a.chunk, a.pixels);
    const bool packed = a.pixels % (16 / sizeof(T)) == 0;
    const float by_focal = a.by_focal * a.dtotal[0], by_dice = a.by_dice * a.dtotal[0];
    for (unsigned mask = blockIdx.y; mask < a.objects * a.count; mask += gridDim.y) {
        const unsigned o = mask / a.count;
        const Vec<float, 4> stats = load_vec<float, 4>(a.stats + 4 * size_t(mask));
        T* dx = out<T>(a.dmasks) + size_t(mask) * a.pixels;
        if (a.best[o] != int(mask - o * a.count) || !(stats[3] > 0.f)) {
            for_each_batch<T>(start, end, packed, [&](unsigned first, auto width) {
                constexpr int N = decltype(width)::value;
                Vec<T, N> zero;
                UNROLL
                for (int n = 0; n < N; ++n) zero[n] = from_f32<T>(0.f);
                UNROLL
                for (int j = 0; j < BATCH; ++j)
                    if (first + j * THREADS * N < end) store_vec(dx + first + j * THREADS * N, zero);
            });
            continue;
        }
        const T* x = in<T>(a.masks) + size_t(mask) * a.pixels;
        const unsigned char* targets = a.targets + size_t(o) * a.pixels;
        const float outside = by_dice * stats[0] / (stats[1] * stats[1]), inside = outside - 2.f * by_dice / stats[1];
        with_power(a.focal, [&](auto power) {
            for_each_batch<T>(start, end, packed, [&](unsigned first, auto width) {
                constexpr int N = decltype(width)::value;
                Vec<T, N> v[BATCH];
                Vec<unsigned char, N> t[BATCH];
                UNROLL
                for (int j = 0; j < BATCH; ++j) {
                    const unsigned i = first + j * THREADS * N;
                    if (i < end) v[j] = load_vec<T, N>(x + i), t[j] = load_vec<unsigned char, N>(targets + i);
                }
                UNROLL
                for (int j = 0; j < BATCH; ++j) {
                    const unsigned i = first + j * THREADS * N;
                    if (i >= end) break;
                    UNROLL
                    for (int n = 0; n < N; ++n) {
                        const bool target = t[j][n] != 0;
                        const Logit l(to_f32(v[j][n]), target);
                        const float dice = (target ? inside : outside) * l.right * l.wrong;
                        v[j][n] = from_f32<T>(fmaf(by_focal, focal_slope(a.focal, l, target, power), dice));
                    }
                    store_vec(dx + i, v[j]);
                }
            });
        });
    }
}
KERNEL_PER_DTYPE_BOUNDS(mask_loss_bwd, MaskLossBwd, THREADS)

struct MaskLossScores {
    const float* dtotal;  // [1]
    const void* ious;     // [objects, count] T
    const void* scores;   // [objects] T
    const int* best;      // [objects]
    const float* stats;   // [objects, count, 4]
    void* dious;          // [objects, count] T
    void* dscores;        // [objects] T
    unsigned objects, count;
    float by_iou;         // factor / divisor, and / count with `all`
    float by_class;       // factor / divisor
    Focal focal;          // of the scores
    unsigned l1, all;     // as in MaskLossFinish
};

// One warp per object.
template <class T>
__device__ void mask_loss_bwd_scores(const MaskLossScores& a) {
    const unsigned o = warp_row();
    if (o >= a.objects) return;  // whole warps leave; no block barrier follows
    const float* stats = a.stats + size_t(o) * a.count * 4;
    const bool there = stats[3] > 0.f;
    const int best = a.best[o];
    for (unsigned m = lane_id(); m < a.count; m += WARP) {
        const size_t mask = size_t(o) * a.count + m;
        const float off = to_f32(in<T>(a.ious)[mask]) - stats[4 * m + 2];
        const float sign = off > 0.f ? 1.f : off < 0.f ? -1.f : 0.f, slope = a.l1 ? sign : 2.f * off;
        const bool taken = there && (a.all || int(m) == best);
        out<T>(a.dious)[mask] = from_f32<T>(taken ? a.dtotal[0] * a.by_iou * slope : 0.f);
    }
    if (lane_id() != 0) return;
    const Logit score(to_f32(in<T>(a.scores)[o]), there);
    with_power(a.focal, [&](auto power) {
        const float slope = focal_slope(a.focal, score, there, power);
        out<T>(a.dscores)[o] = from_f32<T>(a.dtotal[0] * a.by_class * slope);
    });
}
KERNEL_PER_DTYPE_BOUNDS(mask_loss_bwd_scores, MaskLossScores, THREADS)
