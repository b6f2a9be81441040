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

    __device__ __forceinline__ unsigned count() const { return height / patch * (width / patch); }
    __device__ __forceinline__ unsigned area() const { return patch * patch; }
    __device__ __forceinline__ unsigned values() const { return channels * area(); }
    // Offset of the first pixel of patch `id` of image `image`.
    __device__ __forceinline__ size_t start(unsigned image, unsigned id) const {
        const unsigned across = width / patch;
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
