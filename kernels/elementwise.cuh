// The loop of elementwise kernels: accesses of 16 bytes where the count allows, single elements for the rest.
#pragma once
#include "common.cuh"

// A number the body of a loop knows at compile time.
template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls `body(i, Width<N>)` so that the ranges [i, i + N) cover [0, n) once, spread over `threads` threads of which
// this is number `thread`. `packed`: every pointer the body adds `i` to is aligned to 16 bytes.
template <class T, class Body>
__device__ __forceinline__ void for_each_pack(size_t n, size_t thread, size_t threads, bool packed, Body body) {
    constexpr int N = 16 / int(sizeof(T));
    const size_t packs = packed ? n / N : 0;
    for (size_t p = thread; p < packs; p += threads) body(p * N, Width<N>{});
    for (size_t i = packs * N + thread; i < n; i += threads) body(i, Width<1>{});
}

// The same over all threads of a one-dimensional grid and whole allocations.
template <class T, class Body>
__device__ __forceinline__ void elementwise(size_t n, Body body) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for_each_pack<T>(n, thread, size_t(gridDim.x) * blockDim.x, true, body);
}
