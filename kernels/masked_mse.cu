// Mean squared error between predicted and true pixels of chosen patches; the target is read from the image, with
// norm_pix normalised per patch: t = (x - mean) / sqrt(var + eps), var with P - 1. Means are taken of differences to the
// patch's first value, in two passes: a patch of one colour gives exactly 0 and a nearly constant one keeps its digits.
// Reference and gradient: src/ops/masked_mse.
// spill-ok: masked_mse_???_from_f32_* the f32 pixels of a patch fill the registers: up to four numbers are read again a row
// narrow-ok: masked_mse_* four values at a time, which 16-bit and 8-bit types fill to 8 and 4 bytes
#include "pixels.cuh"

struct MaskedMse {
    const void* pred;    // [rows, values] T, order (py, px, c)
    const void* images;  // [B, channels, height, width] S
    const float* norm;   // [2, channels]: mean, std; null: neither
    const int* ids;      // [B, scored]
    float* stats;        // [rows, 2]: mean less the first value, 1 / sqrt(var + eps); written forward, read backward
    float* part;         // [blocks]: a block's sum of squares (forward)
    const float* dloss;  // [1] (backward)
    void* dpred;         // [rows, values] T (backward)
    unsigned rows;       // B * scored
    unsigned scored;
    Patches patches;
    unsigned vector;     // pixels read at once: divides patch and width
    unsigned norm_pix;   // 0 or 1
    unsigned held;       // 1: patches as `Quads` takes them, read two pixels at once or four
    unsigned staged;     // 1, always with `held`: shared memory holds [warps, values rounded up to 4] f32
    unsigned rows_per_block;
    float eps;           // added to the variance
    float scale;         // 2 / (rows * values) (backward)
    unsigned pad;
};

__device__ __forceinline__ bool inside(const MaskedMse& a, unsigned id) { return id < a.patches.count(); }

__device__ __forceinline__ void store_stats(const MaskedMse& a, unsigned row, float2 stats) {
    if (lane_id() != 0) return;
    a.stats[2 * size_t(row)] = stats.x;
    a.stats[2 * size_t(row) + 1] = stats.y;
}

template <class T>
__device__ __forceinline__ void nan_row(const MaskedMse& a, unsigned row) {
    const unsigned values = a.patches.values();
    for (unsigned i = lane_id(); i < values; i += WARP) out<T>(a.dpred)[size_t(row) * values + i] = from_f32<T>(NAN);
}

// ---- patches in registers --------------------------------------------------------------------------------------------

// The pixels of a patch in the order of the prediction, as a lane reads them: those of its quads, 0 for one it lacks.
struct HeldPatch {
    static constexpr int N = 4 * QUAD_CHANNELS;  // values of a quad
    float t[QUADS][N];

    template <class S, int V>
    __device__ __forceinline__ HeldPatch(
        const Quads<V>& quads, const S* image, size_t plane, const Channel (&channel)[QUAD_CHANNELS]) {
        Vec<S, 4> x[QUADS][QUAD_CHANNELS] = {};
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            if (quads.has(q))
                UNROLL
                for (int c = 0; c < QUAD_CHANNELS; ++c) x[q][c] = quads.load(image + c * plane, q);
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            UNROLL
            for (int i = 0; i < N; ++i)
                t[q][i] = channel[i % QUAD_CHANNELS].value(x[q][i % QUAD_CHANNELS][i / QUAD_CHANNELS]);
    }

    // Every value less `x`.
    __device__ __forceinline__ void subtract(float x) {
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            UNROLL
            for (int i = 0; i < N; ++i) t[q][i] -= x;
    }

    // Sum over the patch of `term(value)`.
    template <int V, class Term>
    __device__ __forceinline__ float sum(const Quads<V>& quads, Term term) const {
        float sum = 0.f;
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            if (quads.has(q))
                UNROLL
                for (int i = 0; i < N; ++i) sum += term(t[q][i]);
        return warp_sum(sum);
    }

    // Makes the first value 0, which keeps the digits of a nearly constant patch.
    __device__ __forceinline__ void from_first() { subtract(__shfl_sync(FULL_MASK, t[0][0], 0)); }

    // Then the mean, and returns it and 1 / sqrt(var + eps).
    template <int V>
    __device__ __forceinline__ float2 centre(const Quads<V>& quads, float eps) {
        const unsigned values = quads.area * QUAD_CHANNELS;
        const float mean = sum(quads, [](float x) { return x; }) / values;
        subtract(mean);
        const float var = sum(quads, [](float x) { return x * x; }) / (values - 1);
        return make_float2(mean, 1.f / sqrtf(var + eps));
    }

    // The targets, `rstd` times the values, into `tile`: the prediction is read and written in another division among the lanes, side by side.
    template <int V>
    __device__ __forceinline__ void store(const Quads<V>& quads, float rstd, float* tile) const {
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            if (quads.has(q))
                UNROLL
                for (int k = 0; k < N / 4; ++k) {
                    Vec<float, 4> v;
                    UNROLL
                    for (int j = 0; j < 4; ++j) v[j] = t[q][4 * k + j] * rstd;
                    store_vec(tile + QUAD_CHANNELS * quads.pixel(q) + 4 * k, v);
                }
    }
};

// Rows of a block, a warp each in turn: a patch is read once, all of it before the first value is used.
template <class S, class T, int V, bool FORWARD>
__device__ __forceinline__ float rows_held(const MaskedMse& a, unsigned first, unsigned last, float* shared) {
    constexpr int ACCESSES = QUADS * QUAD_CHANNELS;  // of four values of a prediction, by a lane
    const Quads<V> quads(a.patches);
    const size_t plane = a.patches.plane();
    const unsigned values = a.patches.values(), count = a.patches.count(), across = a.patches.across();
    const Channel channel[QUAD_CHANNELS] = {
        {a.norm, QUAD_CHANNELS, 0}, {a.norm, QUAD_CHANNELS, 1}, {a.norm, QUAD_CHANNELS, 2}};
    const float factor = FORWARD ? 0.f : a.scale * a.dloss[0];
    float* const tile = shared + warp_id() * values;
    float sum = 0.f;
#pragma unroll 1
    for (unsigned row = first + warp_id(); row < last; row += blockDim.x / WARP) {
        const unsigned id = unsigned(a.ids[row]);
        if (id >= count) {
            sum = NAN;  // stats stay unwritten: the backward tests the index again
            if (!FORWARD) nan_row<T>(a, row);
            continue;
        }
        const size_t at = size_t(row) * values + 4 * lane_id();
        const auto has = [&](int k) { return unsigned(k * WARP + lane_id()) * 4 < values; };
        Vec<T, 4> pred[ACCESSES];
        UNROLL
        for (int k = 0; k < ACCESSES; ++k)
            if (has(k)) pred[k] = load_vec<T, 4>(in<T>(a.pred) + at + 4 * WARP * k);
        const S* image = in<S>(a.images) + a.patches.start(row / a.scored, id, across);
        HeldPatch patch(quads, image, plane, channel);
        if (a.norm_pix) patch.from_first();
        float2 stats = make_float2(0.f, 1.f);  // mean, rstd
        if (FORWARD) {
            if (a.norm_pix) stats = patch.centre(quads, a.eps);
            store_stats(a, row, stats);
        } else {
            stats = make_float2(a.stats[2 * size_t(row)], a.stats[2 * size_t(row) + 1]);
            if (a.norm_pix) patch.subtract(stats.x);
        }
        __syncwarp();  // the tile is free again
        patch.store(quads, stats.y, tile);
        __syncwarp();
        UNROLL
        for (int k = 0; k < ACCESSES; ++k) {
            if (!has(k)) break;
            const Vec<float, 4> t = load_vec<float, 4>(tile + 4 * (k * WARP + lane_id()));
            Vec<T, 4> dx;
            UNROLL
            for (int j = 0; j < 4; ++j) {
                const float d = to_f32(pred[k][j]) - t[j];
                if (FORWARD)
                    sum += d * d;
                else
                    dx[j] = from_f32<T>(factor * d);
            }
            if (!FORWARD) store_vec(out<T>(a.dpred) + at + 4 * WARP * k, dx);
        }
    }
    return sum;
}

// ---- patches of any size ---------------------------------------------------------------------------------------------

// The pixels of one patch, owned by a warp. Staged ones lie in shared memory channel by channel, as they come; others
// are read from the image every time.
template <class S>
struct Target {
    const MaskedMse& a;
    const S* image;  // first pixel of the patch
    float* tile;     // [channels, patch, patch], or null

    // Every lane reads the same pixels of all channels.
    template <int V>
    __device__ __forceinline__ void stage() {
        const unsigned area = a.patches.area();
        for (unsigned i = lane_id() * V; i < area; i += WARP * V) {
            const S* pixel = image + a.patches.offset(i);
            float* to = tile + i;
            for (unsigned c = 0; c < a.patches.channels; ++c, pixel += a.patches.plane(), to += area) {
                const Channel channel(a.norm, a.patches.channels, c);
                const Vec<S, V> x = load_vec<S, V>(pixel);
                Vec<float, V> t;
                UNROLL
                for (int j = 0; j < V; ++j) t[j] = channel.value(x[j]);
                store_vec(to, t);
            }
        }
    }

    __device__ __forceinline__ Target(const MaskedMse& args, unsigned row, unsigned id, float* shared)
        : a(args),
          image(in<S>(args.images) + args.patches.start(row / args.scored, id, args.patches.across())),
          tile(args.staged ? shared + size_t(warp_id()) * ((args.patches.values() + 3) / 4 * 4) : nullptr) {
        if (!tile) return;
        if (a.vector == 4)
            stage<4>();
        else if (a.vector == 2)
            stage<2>();
        else
            stage<1>();
        __syncwarp();
    }

    // Pixel of channel c.
    __device__ __forceinline__ float at(unsigned c, unsigned pixel) const {
        if (tile) return tile[c * a.patches.area() + pixel];
        return Channel(a.norm, a.patches.channels, c).value(image[c * a.patches.plane() + a.patches.offset(pixel)]);
    }
    // The same by position, channel after channel.
    __device__ __forceinline__ float at(unsigned i) const {
        return tile ? tile[i] : at(i / a.patches.area(), i % a.patches.area());
    }

    // Mean less the first value, and 1 / sqrt(var + eps).
    __device__ __forceinline__ float2 statistics(float first) const {
        const unsigned values = a.patches.values();
        float sum = 0.f;
        for (unsigned i = lane_id(); i < values; i += WARP) sum += at(i) - first;
        const float mean = warp_sum(sum) / values;
        float square = 0.f;
        for (unsigned i = lane_id(); i < values; i += WARP) {
            const float d = at(i) - first - mean;
            square += d * d;
        }
        const float var = warp_sum(square) / (values - 1);
        return make_float2(mean, 1.f / sqrtf(var + a.eps));
    }
};

// The normalisation of one patch.
struct PatchScale {
    float first, mean, rstd;
    __device__ __forceinline__ float operator()(float x) const { return (x - first - mean) * rstd; }
};

// Calls `body(i, N targets)` for the values i.. of the prediction's order.
template <class S, int N, class Body>
__device__ __forceinline__ void for_each_target(const Target<S>& target, const PatchScale& scale, Body body) {
    const unsigned values = target.a.patches.values(), channels = target.a.patches.channels;
    for (unsigned i = lane_id() * N; i < values; i += WARP * N) {
        unsigned pixel = channels == 3 ? i / 3 : i / channels;  // a multiplication for a known divisor
        unsigned c = i - pixel * channels;
        Vec<float, N> t;
        UNROLL
        for (int j = 0; j < N; ++j) {
            t[j] = scale(target.at(c, pixel));
            if (++c == channels) c = 0, ++pixel;
        }
        body(i, t);
    }
}

template <class S, class T, int N>
__device__ __forceinline__ float squares(const Target<S>& target, const PatchScale& scale, const T* pred) {
    float sum = 0.f;
    for_each_target<S, N>(target, scale, [&](unsigned i, const Vec<float, N>& t) {
        const Vec<T, N> x = load_vec<T, N>(pred + i);
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float d = to_f32(x[j]) - t[j];
            sum += d * d;
        }
    });
    return sum;
}

template <class S, class T, int N>
__device__ __forceinline__ void gradient(
    const Target<S>& target, const PatchScale& scale, float factor, const T* pred, T* dpred) {
    for_each_target<S, N>(target, scale, [&](unsigned i, const Vec<float, N>& t) {
        const Vec<T, N> x = load_vec<T, N>(pred + i);
        Vec<T, N> dx;
        UNROLL
        for (int j = 0; j < N; ++j) dx[j] = from_f32<T>(factor * (to_f32(x[j]) - t[j]));
        store_vec(dpred + i, dx);
    });
}

// The sum of squares of a lane.
template <class S, class T>
__device__ __forceinline__ float forward_row(const MaskedMse& a, unsigned row, float* shared) {
    const unsigned id = unsigned(a.ids[row]), values = a.patches.values();
    if (!inside(a, id)) return NAN;  // stats stay unwritten: the backward tests the index again
    const Target<S> target(a, row, id, shared);
    PatchScale scale = {0.f, 0.f, 1.f};
    if (a.norm_pix) {
        scale.first = target.at(0);
        const float2 s = target.statistics(scale.first);
        scale.mean = s.x, scale.rstd = s.y;
    }
    store_stats(a, row, make_float2(scale.mean, scale.rstd));
    const T* pred = in<T>(a.pred) + size_t(row) * values;
    return values % 4 == 0 ? squares<S, T, 4>(target, scale, pred) : squares<S, T, 1>(target, scale, pred);
}

template <class S, class T>
__device__ __forceinline__ void backward_row(const MaskedMse& a, unsigned row, float* shared) {
    const unsigned id = unsigned(a.ids[row]), values = a.patches.values();
    if (!inside(a, id)) return nan_row<T>(a, row);
    const Target<S> target(a, row, id, shared);
    const float first = a.norm_pix ? target.at(0) : 0.f;
    const PatchScale scale = {first, a.stats[2 * size_t(row)], a.stats[2 * size_t(row) + 1]};
    const T* pred = in<T>(a.pred) + size_t(row) * values;
    T* dpred = out<T>(a.dpred) + size_t(row) * values;
    const float factor = a.scale * a.dloss[0];
    if (values % 4 == 0)
        gradient<S, T, 4>(target, scale, factor, pred, dpred);
    else
        gradient<S, T, 1>(target, scale, factor, pred, dpred);
}

// ---- kernels ---------------------------------------------------------------------------------------------------------

// The rows of this block, one per warp if they are not held; a lane's sum of squares.
template <class S, class T, bool FORWARD>
__device__ __forceinline__ float rows(const MaskedMse& a) {
    DYN_SMEM(shared);
    const unsigned first = blockIdx.x * a.rows_per_block, last = min(first + a.rows_per_block, a.rows);
    float* const tiles = reinterpret_cast<float*>(shared);
    if (a.held)
        return a.vector == 4 ? rows_held<S, T, 4, FORWARD>(a, first, last, tiles)
                             : rows_held<S, T, 2, FORWARD>(a, first, last, tiles);
    const unsigned row = first + warp_id();
    if (row >= last) return 0.f;
    if (FORWARD) return forward_row<S, T>(a, row, tiles);
    backward_row<S, T>(a, row, tiles);
    return 0.f;
}

// Every thread reaches the block's sum.
template <class S, class T>
__device__ __forceinline__ void forward(const MaskedMse& a) {
    const float total = block_sum(rows<S, T, true>(a));
    if (threadIdx.x == 0) a.part[blockIdx.x] = total;
}

template <class S, class T>
__device__ __forceinline__ void backward(const MaskedMse& a) {
    rows<S, T, false>(a);
}

// Six blocks to a multiprocessor, so that enough patches are under way: 80 registers.
#define PATCH_KERNELS(name)                                \
    KERNEL_DTYPE_BOUNDS(name, f32, float, MaskedMse, 128, 6) \
    KERNEL_DTYPE_BOUNDS(name, bf16, bf16, MaskedMse, 128, 6) \
    KERNEL_DTYPE_BOUNDS(name, f16, f16, MaskedMse, 128, 6)

template <class T>
__device__ void masked_mse_fwd_from_u8(const MaskedMse& a) {
    forward<unsigned char, T>(a);
}
PATCH_KERNELS(masked_mse_fwd_from_u8)

template <class T>
__device__ void masked_mse_fwd_from_f32(const MaskedMse& a) {
    forward<float, T>(a);
}
PATCH_KERNELS(masked_mse_fwd_from_f32)

template <class T>
__device__ void masked_mse_fwd_from_bf16(const MaskedMse& a) {
    forward<bf16, T>(a);
}
PATCH_KERNELS(masked_mse_fwd_from_bf16)

template <class T>
__device__ void masked_mse_fwd_from_f16(const MaskedMse& a) {
    forward<f16, T>(a);
}
PATCH_KERNELS(masked_mse_fwd_from_f16)

template <class T>
__device__ void masked_mse_bwd_from_u8(const MaskedMse& a) {
    backward<unsigned char, T>(a);
}
PATCH_KERNELS(masked_mse_bwd_from_u8)

template <class T>
__device__ void masked_mse_bwd_from_f32(const MaskedMse& a) {
    backward<float, T>(a);
}
PATCH_KERNELS(masked_mse_bwd_from_f32)

template <class T>
__device__ void masked_mse_bwd_from_bf16(const MaskedMse& a) {
    backward<bf16, T>(a);
}
PATCH_KERNELS(masked_mse_bwd_from_bf16)

template <class T>
__device__ void masked_mse_bwd_from_f16(const MaskedMse& a) {
    backward<f16, T>(a);
}
PATCH_KERNELS(masked_mse_bwd_from_f16)

struct MaskedMseReduce {
    const float* part;  // [parts]
    float* loss;        // [1]
    unsigned parts;
    float scale;        // 1 / (rows * values)
};

// One block: each thread sums its parts in order, the threads meet in a tree.
__device__ void masked_mse_reduce_f32_body(const MaskedMseReduce& a) {
    float sum = 0.f;
    for (unsigned i = threadIdx.x; i < a.parts; i += blockDim.x) sum += a.part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.loss[0] = sum * a.scale;
}
KERNEL(masked_mse_reduce_f32, MaskedMseReduce)
