// Mean squared error between predicted and true pixels of chosen patches; the target is read from the image, with
// norm_pix normalised per patch: t = (x - mean) / sqrt(var + eps), var with P - 1. Means are taken of differences to the
// patch's first value, in two passes: a patch of one colour gives exactly 0 and a nearly constant one keeps its digits.
// Reference and gradient: src/ops/masked_mse.
// narrow-ok: masked_mse_* four pixels at a time, which 16-bit and 8-bit types fill to 8 and 4 bytes
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
    unsigned staged;     // 1: shared memory holds [warps, values rounded up to 4] f32
    float eps;           // added to the variance
    float scale;         // 2 / (rows * values) (backward)
    unsigned pad;
};

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
          image(in<S>(args.images) + args.patches.start(row / args.scored, id)),
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
    return warp_sum(sum);
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

// One warp per row; every thread reaches the block's sum.
template <class S, class T>
__device__ __forceinline__ void forward(const MaskedMse& a) {
    DYN_SMEM(shared);
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id(), values = a.patches.values();
    float sum = 0.f;
    if (row < a.rows) {
        const unsigned id = unsigned(a.ids[row]);
        if (id < a.patches.count()) {
            const Target<S> target(a, row, id, reinterpret_cast<float*>(shared));
            PatchScale scale = {0.f, 0.f, 1.f};
            if (a.norm_pix) {
                scale.first = target.at(0);
                const float2 s = target.statistics(scale.first);
                scale.mean = s.x, scale.rstd = s.y;
            }
            const T* pred = in<T>(a.pred) + size_t(row) * values;
            sum = values % 4 == 0 ? squares<S, T, 4>(target, scale, pred) : squares<S, T, 1>(target, scale, pred);
            if (lane_id() == 0) {
                a.stats[2 * size_t(row)] = scale.mean;
                a.stats[2 * size_t(row) + 1] = scale.rstd;
            }
        } else {
            sum = NAN;  // stats stay unwritten: the backward tests the index again
        }
    }
    const float total = block_sum(lane_id() == 0 ? sum : 0.f);
    if (threadIdx.x == 0) a.part[blockIdx.x] = total;
}

// One warp per row.
template <class S, class T>
__device__ __forceinline__ void backward(const MaskedMse& a) {
    DYN_SMEM(shared);
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id(), values = a.patches.values();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* pred = in<T>(a.pred) + size_t(row) * values;
    T* dpred = out<T>(a.dpred) + size_t(row) * values;
    const unsigned id = unsigned(a.ids[row]);
    if (id >= a.patches.count()) {
        for (unsigned i = lane_id(); i < values; i += WARP) dpred[i] = from_f32<T>(NAN);
        return;
    }
    const Target<S> target(a, row, id, reinterpret_cast<float*>(shared));
    const float first = a.norm_pix ? target.at(0) : 0.f;
    const PatchScale scale = {first, a.stats[2 * size_t(row)], a.stats[2 * size_t(row) + 1]};
    const float factor = a.scale * a.dloss[0];
    if (values % 4 == 0)
        gradient<S, T, 4>(target, scale, factor, pred, dpred);
    else
        gradient<S, T, 1>(target, scale, factor, pred, dpred);
}

template <class T>
__device__ void masked_mse_fwd_from_u8(const MaskedMse& a) {
    forward<unsigned char, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_fwd_from_u8, MaskedMse)

template <class T>
__device__ void masked_mse_fwd_from_f32(const MaskedMse& a) {
    forward<float, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_fwd_from_f32, MaskedMse)

template <class T>
__device__ void masked_mse_fwd_from_bf16(const MaskedMse& a) {
    forward<bf16, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_fwd_from_bf16, MaskedMse)

template <class T>
__device__ void masked_mse_fwd_from_f16(const MaskedMse& a) {
    forward<f16, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_fwd_from_f16, MaskedMse)

template <class T>
__device__ void masked_mse_bwd_from_u8(const MaskedMse& a) {
    backward<unsigned char, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_bwd_from_u8, MaskedMse)

template <class T>
__device__ void masked_mse_bwd_from_f32(const MaskedMse& a) {
    backward<float, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_bwd_from_f32, MaskedMse)

template <class T>
__device__ void masked_mse_bwd_from_bf16(const MaskedMse& a) {
    backward<bf16, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_bwd_from_bf16, MaskedMse)

template <class T>
__device__ void masked_mse_bwd_from_f16(const MaskedMse& a) {
    backward<f16, T>(a);
}
KERNEL_PER_DTYPE(masked_mse_bwd_from_f16, MaskedMse)

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
