// What every kernel file includes, and all it includes. nvcc reads it with the CUDA headers; a host C++ compiler reads
// it with the emulator (emulator/emu.h), which defines the same names.
//
// Conventions the emulator checks (docs/emulator.md):
// - blocks are one-dimensional (or blockDim.x is a multiple of 32), so a warp is 32 consecutive threadIdx.x;
// - no thread returns before a barrier that others still reach; barriers stand outside divergent branches;
// - shared memory through SMEM and DYN_SMEM, vector accesses through load_vec and store_vec;
// - no CUDA header, no inline assembly, no std:: templates in kernel files.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#else
#include "emulator/emu.h"
#endif

#define WARP 32
#define FULL_MASK 0xffffffffu

// `UNROLL for (...)`: a loop of constant length without a loop.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// ---- storage types ----------------------------------------------------------------------------------------------------
// Storage is f32, bf16 or f16; arithmetic is f32.

typedef __nv_bfloat16 bf16;
typedef __half f16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }

// Rounds to nearest even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
    return __float2half_rn(x);
}

// Argument structs hold `const void*` and `void*`; kernels name the element type once per pointer.
template <class T>
__device__ __forceinline__ const T* in(const void* p) {
    return static_cast<const T*>(p);
}
template <class T>
__device__ __forceinline__ T* out(void* p) {
    return static_cast<T*>(p);
}

// ---- vector access ----------------------------------------------------------------------------------------------------

// N elements, moved in one access of up to 16 bytes (more: several of 16). N * sizeof(T) is a power of two.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vec {
    T v[N];
    __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

#ifdef __CUDACC__
template <int BYTES>
struct VecWord;
template <>
struct VecWord<1> {
    typedef unsigned char type;
};
template <>
struct VecWord<2> {
    typedef unsigned short type;
};
template <>
struct VecWord<4> {
    typedef unsigned type;
};
template <>
struct VecWord<8> {
    typedef uint2 type;
};
template <>
struct VecWord<16> {
    typedef uint4 type;
};
#define CHECK_ALIGNED(p, bytes)
#else
#define CHECK_ALIGNED(p, bytes) emu_check_aligned(p, bytes)
#endif

// Reads p[0..N]. `p` is aligned to N * sizeof(T) bytes, at most 16.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_vec(const T* p) {
    constexpr int BYTES = N * int(sizeof(T)), STEP = BYTES < 16 ? BYTES : 16;
    static_assert((BYTES & (BYTES - 1)) == 0, "a vector has a power of two of bytes");
    typedef typename VecWord<STEP>::type Word;
    CHECK_ALIGNED(p, STEP);
    Vec<T, N> x;
    UNROLL
    for (int i = 0; i < BYTES / STEP; ++i) {
        Word word = reinterpret_cast<const Word*>(p)[i];
        memcpy(reinterpret_cast<unsigned char*>(&x) + i * STEP, &word, STEP);
    }
    return x;
}

// Writes p[0..N]. Alignment as in load_vec.
template <class T, int N>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, N>& x) {
    constexpr int BYTES = N * int(sizeof(T)), STEP = BYTES < 16 ? BYTES : 16;
    static_assert((BYTES & (BYTES - 1)) == 0, "a vector has a power of two of bytes");
    typedef typename VecWord<STEP>::type Word;
    CHECK_ALIGNED(p, STEP);
    UNROLL
    for (int i = 0; i < BYTES / STEP; ++i) {
        Word word;
        memcpy(&word, reinterpret_cast<const unsigned char*>(&x) + i * STEP, STEP);
        reinterpret_cast<Word*>(p)[i] = word;
    }
}

// ---- threads and shared memory ------------------------------------------------------------------------------------------

__device__ __forceinline__ int lane_id() { return int(threadIdx.x % WARP); }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x / WARP); }

// SMEM(Type, name): one object of Type per block in static shared memory; an array is wrapped in a struct.
// DYN_SMEM(name): `unsigned char* name`, the dynamic shared memory of the launch, aligned to 1024 bytes.
#ifdef __CUDACC__
#define SMEM(Type, name) __shared__ Type name
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define SMEM(Type, name)                                                                                          \
    static const char name##_key = 0;                                                                             \
    Type& name = *static_cast<Type*>(                                                                             \
        emu_static_shared(&name##_key, sizeof(Type), alignof(Type), #name, __builtin_FILE(), __builtin_LINE()))
#define DYN_SMEM(name) unsigned char* const name = emu_dynamic_shared()
#endif

// Barrier `id` (1 to 15; 0 is __syncthreads) among `threads` threads, whole warps. `sync` waits, `arrive` does not.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emu_barrier(id, threads, true, __builtin_FILE(), __builtin_LINE());
#endif
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emu_barrier(id, threads, false, __builtin_FILE(), __builtin_LINE());
#endif
}

// ---- reductions ---------------------------------------------------------------------------------------------------------
// The result is the same in every lane, bit for bit. NaN is kept by sums and dropped by maxima, as fmaxf does.

// Sum over the 32 lanes of a warp.
__device__ __forceinline__ float warp_sum(float x) {
#ifdef __CUDACC__
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
#else
    return emu_warp_sum(x, __builtin_FILE(), __builtin_LINE());
#endif
}

// Maximum over the 32 lanes of a warp.
__device__ __forceinline__ float warp_max(float x) {
#ifdef __CUDACC__
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
    return x;
#else
    return emu_warp_max(x, __builtin_FILE(), __builtin_LINE());
#endif
}

template <int N>
struct Floats {
    float v[N];
};

// Sum over a block of whole warps, at most MAX_WARPS of them. Every thread of the block calls it; two barriers inside,
// so it also orders the block's shared memory accesses before and after it.
template <int MAX_WARPS = 32>
__device__ __forceinline__ float block_sum(float x) {
    SMEM(Floats<MAX_WARPS>, partial);  // [warps]
    x = warp_sum(x);
    __syncthreads();  // an earlier use of `partial` is over
    if (lane_id() == 0) partial.v[warp_id()] = x;
    __syncthreads();
    int warps = int(blockDim.x) / WARP;
    return warp_sum(lane_id() < warps ? partial.v[lane_id()] : 0.0f);
}

// Maximum over a block; conditions as in block_sum.
template <int MAX_WARPS = 32>
__device__ __forceinline__ float block_max(float x) {
    SMEM(Floats<MAX_WARPS>, partial);  // [warps]
    x = warp_max(x);
    __syncthreads();  // an earlier use of `partial` is over
    if (lane_id() == 0) partial.v[warp_id()] = x;
    __syncthreads();
    int warps = int(blockDim.x) / WARP;
    return warp_max(lane_id() < warps ? partial.v[lane_id()] : -INFINITY);
}

// ---- kernel entries -------------------------------------------------------------------------------------------------------
// A kernel takes one plain struct by value. The body is a __device__ function of `const Args&`.

// entry: exported name; call: function that does it; launch bounds: threads of a block at most and, if given, blocks
// that a multiprocessor is to hold, from which the compiler takes how many registers a thread may have.
#ifdef __CUDACC__
#define KERNEL_ENTRY(entry, call, Args) \
    extern "C" __global__ void entry(const __grid_constant__ Args a) { call(a); }
#define KERNEL_ENTRY_BOUNDS(entry, call, Args, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) entry(const __grid_constant__ Args a) { call(a); }
#else
#define KERNEL_ENTRY(entry, call, Args) EMU_KERNEL(entry, call, Args, 1024)
#define KERNEL_FIRST(x, ...) x
#define KERNEL_ENTRY_BOUNDS(entry, call, Args, ...) EMU_KERNEL(entry, call, Args, KERNEL_FIRST(__VA_ARGS__, 0))
#endif

// `name` from `name_body(const Args&)`.
#define KERNEL(name, Args) KERNEL_ENTRY(name, name##_body, Args)
#define KERNEL_BOUNDS(name, Args, max_threads) KERNEL_ENTRY_BOUNDS(name, name##_body, Args, max_threads)

// `name_suffix` from `name<T>(const Args&)`.
#define KERNEL_DTYPE(name, suffix, T, Args) KERNEL_ENTRY(name##_##suffix, name<T>, Args)
#define KERNEL_DTYPE_BOUNDS(name, suffix, T, Args, ...) \
    KERNEL_ENTRY_BOUNDS(name##_##suffix, name<T>, Args, __VA_ARGS__)

// `name_f32`, `name_bf16`, `name_f16`.
#define KERNEL_PER_DTYPE(name, Args)      \
    KERNEL_DTYPE(name, f32, float, Args)  \
    KERNEL_DTYPE(name, bf16, bf16, Args)  \
    KERNEL_DTYPE(name, f16, f16, Args)
#define KERNEL_PER_DTYPE_BOUNDS(name, Args, max_threads)      \
    KERNEL_DTYPE_BOUNDS(name, f32, float, Args, max_threads)  \
    KERNEL_DTYPE_BOUNDS(name, bf16, bf16, Args, max_threads)  \
    KERNEL_DTYPE_BOUNDS(name, f16, f16, Args, max_threads)
