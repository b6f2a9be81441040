// A part of a tensor along an axis, copied or added to a part of another: concatenation and slices, each the other's
// gradient. Reference: src/ops/concat.
#include "elementwise.cuh"

struct ConcatPart {
    const void* from;  // [outer, from_whole] T, read at [:, from_start .. from_start + len]
    void* to;          // [outer, to_whole] T, written at [:, to_start .. to_start + len]; concat_add reads it as well
    unsigned long long outer, len, from_whole, to_whole, from_start, to_start;
};

// Calls `body(to, from, Width<N>)` for pointers that cover the part. Packs where every run begins and ends with one.
template <class T, class Body>
__device__ __forceinline__ void for_each_in_part(const ConcatPart& a, Body body) {
    constexpr int N = 16 / int(sizeof(T));
    const bool packed = (a.len | a.from_whole | a.to_whole | a.from_start | a.to_start) % N == 0;
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for_each_pack<T>(a.outer * a.len, thread, size_t(gridDim.x) * blockDim.x, packed, [&](size_t i, auto width) {
        const size_t run = i / a.len, at = i - run * a.len;
        body(out<T>(a.to) + run * a.to_whole + a.to_start + at, in<T>(a.from) + run * a.from_whole + a.from_start + at,
             width);
    });
}

template <class T>
__device__ void concat_copy(const ConcatPart& a) {
    for_each_in_part<T>(a, [&](T* to, const T* from, auto width) {
        constexpr int N = decltype(width)::value;
        store_vec(to, load_vec<T, N>(from));
    });
}
KERNEL_PER_DTYPE(concat_copy, ConcatPart)

template <class T>
__device__ void concat_add(const ConcatPart& a) {
    for_each_in_part<T>(a, [&](T* to, const T* from, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(from);
        Vec<T, N> y = load_vec<T, N>(to);
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(y[j]) + to_f32(x[j]));
        store_vec(to, y);
    });
}
KERNEL_PER_DTYPE(concat_add, ConcatPart)
