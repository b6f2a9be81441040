// Kept patches of images as rows: y[b·keep + j, (c·p + py)·p + px] = (x[b, c, gy·p + py, gx·p + px] / full - mean[c]) /
// std[c] with gy·Wg + gx = ids[b, j]. Reference and gradient: src/ops/masked_gather.
// narrow-ok: masked_gather_* four pixels at a time, which 16-bit and 8-bit types fill to 8 and 4 bytes
#include "pixels.cuh"

struct MaskedGather {
    const void* from;   // forward: images [B, channels, height, width] S; backward: dy [rows, values] T
    const int* ids;     // [B, keep], unique in an image
    const float* norm;  // [2, channels]: mean, std; null: neither
    void* to;           // forward: y [rows, values] T; backward: dx as the images, S, zero before
    unsigned rows;      // B * keep
    unsigned keep;
    Patches patches;
    unsigned vector;    // pixels moved at once: divides patch and width
    unsigned held;      // 1: patches as `Quads` takes them, read two pixels at once or four
    unsigned rows_per_block;
    unsigned pad;
};

// A kept patch by a warp: all of it is read before the first pixel is written.
template <class S, class T, int V, bool FORWARD>
__device__ __forceinline__ void move_held(
    const MaskedGather& a, const Quads<V>& quads, const Channel (&channel)[QUAD_CHANNELS], unsigned row, size_t patch) {
    const size_t plane = a.patches.plane(), area = quads.area;
    const size_t line = size_t(row) * a.patches.values();
    Vec<S, 4> x[QUADS][QUAD_CHANNELS];
    Vec<T, 4> y[QUADS][QUAD_CHANNELS];
    UNROLL
    for (int q = 0; q < QUADS; ++q)
        if (quads.has(q))
            UNROLL
            for (int c = 0; c < QUAD_CHANNELS; ++c)
                if constexpr (FORWARD)
                    x[q][c] = quads.load(in<S>(a.from) + patch + c * plane, q);
                else
                    y[q][c] = load_vec<T, 4>(in<T>(a.from) + line + c * area + quads.pixel(q));
    UNROLL
    for (int q = 0; q < QUADS; ++q)
        if (quads.has(q))
            UNROLL
            for (int c = 0; c < QUAD_CHANNELS; ++c) {
                UNROLL
                for (int j = 0; j < 4; ++j)
                    if constexpr (FORWARD)
                        y[q][c][j] = from_f32<T>(channel[c].value(x[q][c][j]));
                    else
                        x[q][c][j] = from_f32<S>(to_f32(y[q][c][j]) * channel[c].inverse);
                if constexpr (FORWARD)
                    store_vec(out<T>(a.to) + line + c * area + quads.pixel(q), y[q][c]);
                else
                    quads.store(out<S>(a.to) + patch + c * plane, q, x[q][c]);
            }
}

// One warp per kept patch, V pixels per lane and step, the same ones of every channel.
template <class S, class T, int V, bool FORWARD>
__device__ __forceinline__ void move_patch(const MaskedGather& a, unsigned row, size_t patch) {
    const unsigned area = a.patches.area();
    const size_t line = size_t(row) * a.patches.values();
    for (unsigned i = lane_id() * V; i < area; i += WARP * V) {
        size_t pixel = patch + a.patches.offset(i), value = line + i;
        for (unsigned c = 0; c < a.patches.channels; ++c, pixel += a.patches.plane(), value += area) {
            const Channel channel(a.norm, a.patches.channels, c);
            if constexpr (FORWARD) {
                const Vec<S, V> x = load_vec<S, V>(in<S>(a.from) + pixel);
                Vec<T, V> y;
                UNROLL
                for (int j = 0; j < V; ++j) y[j] = from_f32<T>(channel.value(x[j]));
                store_vec(out<T>(a.to) + value, y);
            } else {
                const Vec<T, V> dy = load_vec<T, V>(in<T>(a.from) + value);
                Vec<S, V> dx;
                UNROLL
                for (int j = 0; j < V; ++j) dx[j] = from_f32<S>(to_f32(dy[j]) * channel.inverse);
                store_vec(out<S>(a.to) + pixel, dx);
            }
        }
    }
}

// Calls `body(row, first pixel of its patch)` for the rows of this block, a warp each in turn.
template <class T, bool FORWARD, class Body>
__device__ __forceinline__ void for_each_patch(const MaskedGather& a, Body body) {
    const unsigned first = blockIdx.x * a.rows_per_block, last = min(first + a.rows_per_block, a.rows);
    const unsigned count = a.patches.count(), across = a.patches.across(), values = a.patches.values();
#pragma unroll 1
    for (unsigned row = first + warp_id(); row < last; row += blockDim.x / WARP) {
        const unsigned id = unsigned(a.ids[row]);
        if (id < count)
            body(row, a.patches.start(row / a.keep, id, across));
        else if constexpr (FORWARD)
            for (unsigned i = lane_id(); i < values; i += WARP)
                out<T>(a.to)[size_t(row) * values + i] = from_f32<T>(NAN);
    }
}

template <class S, class T, int V, bool FORWARD>
__device__ __forceinline__ void move_all_held(const MaskedGather& a) {
    const Quads<V> quads(a.patches);
    const Channel channel[QUAD_CHANNELS] = {
        {a.norm, QUAD_CHANNELS, 0}, {a.norm, QUAD_CHANNELS, 1}, {a.norm, QUAD_CHANNELS, 2}};
    for_each_patch<T, FORWARD>(a, [&](unsigned row, size_t patch) {
        move_held<S, T, V, FORWARD>(a, quads, channel, row, patch);
    });
}

template <class S, class T, bool FORWARD>
__device__ __forceinline__ void move_patches(const MaskedGather& a) {
    if (a.held)
        return a.vector == 4 ? move_all_held<S, T, 4, FORWARD>(a) : move_all_held<S, T, 2, FORWARD>(a);
    for_each_patch<T, FORWARD>(a, [&](unsigned row, size_t patch) {
        if (a.vector == 4)
            move_patch<S, T, 4, FORWARD>(a, row, patch);
        else if (a.vector == 2)
            move_patch<S, T, 2, FORWARD>(a, row, patch);
        else
            move_patch<S, T, 1, FORWARD>(a, row, patch);
    });
}

template <class T>
__device__ void masked_gather_fwd_from_u8(const MaskedGather& a) {
    move_patches<unsigned char, T, true>(a);
}
KERNEL_PER_DTYPE(masked_gather_fwd_from_u8, MaskedGather)

template <class T>
__device__ void masked_gather_fwd_from_f32(const MaskedGather& a) {
    move_patches<float, T, true>(a);
}
KERNEL_PER_DTYPE(masked_gather_fwd_from_f32, MaskedGather)

template <class T>
__device__ void masked_gather_fwd_from_bf16(const MaskedGather& a) {
    move_patches<bf16, T, true>(a);
}
KERNEL_PER_DTYPE(masked_gather_fwd_from_bf16, MaskedGather)

template <class T>
__device__ void masked_gather_fwd_from_f16(const MaskedGather& a) {
    move_patches<f16, T, true>(a);
}
KERNEL_PER_DTYPE(masked_gather_fwd_from_f16, MaskedGather)

// Backward: named by the dtype of dy, the variant by that of the images.
template <class T>
__device__ void masked_gather_bwd_to_f32(const MaskedGather& a) {
    move_patches<float, T, false>(a);
}
KERNEL_PER_DTYPE(masked_gather_bwd_to_f32, MaskedGather)

template <class T>
__device__ void masked_gather_bwd_to_bf16(const MaskedGather& a) {
    move_patches<bf16, T, false>(a);
}
KERNEL_PER_DTYPE(masked_gather_bwd_to_bf16, MaskedGather)

template <class T>
__device__ void masked_gather_bwd_to_f16(const MaskedGather& a) {
    move_patches<f16, T, false>(a);
}
KERNEL_PER_DTYPE(masked_gather_bwd_to_f16, MaskedGather)
