// Pixels of image patches as numbers: bytes or floats, normalised per channel.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float to_f32(unsigned char x) { return float(x); }

// 1 over the value of white.
template <class S>
struct Unit {
    static constexpr float value = 1.f;
};
template <>
struct Unit<unsigned char> {
    static constexpr float value = 1.f / 255.f;
};

// Images [B, channels, height, width] cut into patches.
struct Patches {
    unsigned channels, height, width, patch;

    __device__ __forceinline__ unsigned count() const { return height / patch * across(); }
    __device__ __forceinline__ unsigned area() const { return patch * patch; }
    __device__ __forceinline__ unsigned values() const { return channels * area(); }
    // Patches in a row of the image.
    __device__ __forceinline__ unsigned across() const { return width / patch; }
    // Offset of the first pixel of patch `id` of image `image`; `across` is worked out once for many of them.
    __device__ __forceinline__ size_t start(unsigned image, unsigned id, unsigned across) const {
        return size_t(image) * channels * height * width + size_t(id / across) * patch * width + id % across * patch;
    }
    // Elements of one channel of an image.
    __device__ __forceinline__ size_t plane() const { return size_t(height) * width; }
    // Offset of a pixel from the patch's first one, in the same channel.
    __device__ __forceinline__ size_t offset(unsigned pixel) const {
        return size_t(pixel / patch) * width + pixel % patch;
    }
};

// Mean and inverse standard deviation of channel c; norm is [2, channels] or null.
struct Channel {
    float mean, inverse;
    __device__ __forceinline__ Channel(const float* norm, unsigned channels, unsigned c)
        : mean(norm ? norm[c] : 0.f), inverse(norm ? 1.f / norm[channels + c] : 1.f) {}
    template <class S>
    __device__ __forceinline__ float value(S x) const {
        return (to_f32(x) * Unit<S>::value - mean) * inverse;
    }
};

// Patches of three channels and 4 to 256 pixels, a multiple of 4, by the lanes of a warp: a lane has the quads `lane` and
// `lane + 32` of four pixels, in the order of the patch. V pixels at a time stay in a row of pixels; a quad need not.
#define QUADS 2
#define QUAD_CHANNELS 3

template <int V>
struct Quads {
    unsigned area;
    unsigned offset[QUADS][4 / V];  // from the patch's first pixel, in the same channel

    __device__ __forceinline__ explicit Quads(const Patches& p) : area(p.area()) {
        UNROLL
        for (int q = 0; q < QUADS; ++q)
            UNROLL
            for (int v = 0; v < 4 / V; ++v) offset[q][v] = unsigned(p.offset(pixel(q) + v * V));
    }
    // First pixel of quad q of this lane.
    __device__ __forceinline__ unsigned pixel(int q) const { return (q * WARP + lane_id()) * 4; }
    __device__ __forceinline__ bool has(int q) const { return pixel(q) < area; }
    // Quad q, where the lane has it, of the channel whose first pixel of the patch is *x.
    template <class S>
    __device__ __forceinline__ Vec<S, 4> load(const S* x, int q) const {
        Vec<S, 4> quad;
        UNROLL
        for (int v = 0; v < 4 / V; ++v) {
            const Vec<S, V> part = load_vec<S, V>(x + offset[q][v]);
            UNROLL
            for (int j = 0; j < V; ++j) quad[v * V + j] = part[j];
        }
        return quad;
    }
    template <class S>
    __device__ __forceinline__ void store(S* x, int q, const Vec<S, 4>& quad) const {
        UNROLL
        for (int v = 0; v < 4 / V; ++v) {
            Vec<S, V> part;
            UNROLL
            for (int j = 0; j < V; ++j) part[j] = quad[v * V + j];
            store_vec(x + offset[q][v], part);
        }
    }
};
