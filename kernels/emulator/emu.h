// The CUDA language and intrinsics as ordinary C++17: what kernels/common.cuh includes where nvcc would include the
// CUDA headers. Only what the kernels of this project use; add here when a kernel needs more.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <immintrin.h>

#include "emu_core.h"

// ---- language -------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Compiles, but is neither poisoned nor checked: kernels use SMEM and DYN_SMEM of common.cuh.
#define __shared__ static thread_local

struct dim3 {
    uint32_t x = 1, y = 1, z = 1;
};
struct uint3 {
    uint32_t x, y, z;
};

EMU_INLINE uint3 emu_thread_idx() {
    const emu_lane_view* self = emu_self();
    return {emu_constant32<0>(self), emu_constant32<4>(self), emu_constant32<8>(self)};
}
EMU_INLINE uint3 emu_block_idx() {
    const emu_block_view* block = emu_block();
    return {emu_constant32<0>(block), emu_constant32<4>(block), emu_constant32<8>(block)};
}
EMU_INLINE uint3 emu_block_dim() {
    const emu_block_view* block = emu_block();
    return {emu_constant32<12>(block), emu_constant32<16>(block), emu_constant32<20>(block)};
}
EMU_INLINE uint3 emu_grid_dim() {
    const emu_block_view* block = emu_block();
    return {emu_constant32<24>(block), emu_constant32<28>(block), emu_constant32<32>(block)};
}
#define threadIdx emu_thread_idx()
#define blockIdx emu_block_idx()
#define blockDim emu_block_dim()
#define gridDim emu_grid_dim()
#define warpSize 32

// ---- vector types ---------------------------------------------------------------------------------------------------

#define EMU_VECTOR_TYPES(base, T, align2, align4)                                                          \
    struct alignas(align2) base##2 {                                                                       \
        T x, y;                                                                                            \
    };                                                                                                     \
    struct alignas(align4) base##4 {                                                                       \
        T x, y, z, w;                                                                                      \
    };                                                                                                     \
    EMU_INLINE base##2 make_##base##2(T x, T y) { return {x, y}; }                                         \
    EMU_INLINE base##4 make_##base##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR_TYPES(char, signed char, 2, 4)
EMU_VECTOR_TYPES(uchar, unsigned char, 2, 4)
EMU_VECTOR_TYPES(short, short, 4, 8)
EMU_VECTOR_TYPES(ushort, unsigned short, 4, 8)
EMU_VECTOR_TYPES(int, int, 8, 16)
EMU_VECTOR_TYPES(uint, unsigned, 8, 16)
EMU_VECTOR_TYPES(float, float, 8, 16)
EMU_VECTOR_TYPES(longlong, long long, 16, 16)
EMU_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
EMU_VECTOR_TYPES(double, double, 16, 16)
struct int3 {
    int x, y, z;
};
struct float3 {
    float x, y, z;
};
struct uchar3 {
    unsigned char x, y, z;
};
EMU_INLINE int3 make_int3(int x, int y, int z) { return {x, y, z}; }
EMU_INLINE uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
EMU_INLINE float3 make_float3(float x, float y, float z) { return {x, y, z}; }

// Words that vector accesses move in one instruction each, so that one hook sees the whole access.
template <int BYTES>
struct VecWord;
template <>
struct VecWord<1> {
    typedef uint8_t type;
};
template <>
struct VecWord<2> {
    typedef uint16_t __attribute__((may_alias)) type;
};
template <>
struct VecWord<4> {
    typedef uint32_t __attribute__((may_alias)) type;
};
template <>
struct VecWord<8> {
    typedef uint64_t __attribute__((may_alias)) type;
};
template <>
struct VecWord<16> {
    typedef uint32_t __attribute__((may_alias, vector_size(16))) type;
};

// ---- bit casts and integer intrinsics -------------------------------------------------------------------------------

template <class To, class From>
EMU_TEMPLATE_INLINE To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
EMU_INLINE float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
EMU_INLINE float __int_as_float(int x) { return emu_bits<float>(x); }
EMU_INLINE unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
EMU_INLINE int __float_as_int(float x) { return emu_bits<int>(x); }
EMU_INLINE long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
EMU_INLINE double __longlong_as_double(long long x) { return emu_bits<double>(x); }

EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
EMU_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_INLINE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
EMU_INLINE int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
EMU_INLINE unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return unsigned(((uint64_t(hi) << 32 | lo) << (shift & 31)) >> 32);
}
EMU_INLINE unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return unsigned((uint64_t(hi) << 32 | lo) >> (shift & 31));
}
EMU_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned pick = selector >> (4 * i) & 0xf;
        unsigned byte = unsigned(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}

#define EMU_MIN_MAX(T)                                       \
    EMU_INLINE T min(T a, T b) { return b < a ? b : a; }     \
    EMU_INLINE T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_INLINE unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
EMU_INLINE unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
EMU_INLINE unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
EMU_INLINE unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
EMU_INLINE float min(float a, float b) { return fminf(a, b); }
EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMU_INLINE double min(double a, double b) { return fmin(a, b); }
EMU_INLINE double max(double a, double b) { return fmax(a, b); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------
// expf, logf, erff, tanhf, sqrtf, fmaxf and the like are those of <cmath>. The fast variants are the same functions: a
// GPU's approximations differ in the last bits. Several of their names are declared by the C library, hence macros.

#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
EMU_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE float __frcp_rn(float x) { return 1.0f / x; }
EMU_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
EMU_INLINE float __fdividef(float x, float y) { return x / y; }
EMU_INLINE float __fdiv_rn(float x, float y) { return x / y; }
EMU_INLINE float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// Never contracted into a fused multiply-add, whatever the flags.
EMU_INLINE float __fmul_rn(float a, float b) {
    float product = a * b;
    asm("" : "+x"(product));
    return product;
}
EMU_INLINE float __fadd_rn(float a, float b) {
    asm("" : "+x"(a), "+x"(b));
    return a + b;
}
EMU_INLINE float __fsub_rn(float a, float b) {
    asm("" : "+x"(a), "+x"(b));
    return a - b;
}

// Conversions saturate and turn NaN into 0, as the GPU's do.
EMU_INLINE int emu_to_int(float x) {
    return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : int(x);
}
EMU_INLINE unsigned emu_to_uint(float x) { return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 4294967295u : unsigned(x); }
EMU_INLINE int __float2int_rn(float x) { return emu_to_int(rintf(x)); }
EMU_INLINE int __float2int_rz(float x) { return emu_to_int(x); }
EMU_INLINE int __float2int_rd(float x) { return emu_to_int(floorf(x)); }
EMU_INLINE int __float2int_ru(float x) { return emu_to_int(ceilf(x)); }
EMU_INLINE unsigned __float2uint_rn(float x) { return emu_to_uint(rintf(x)); }
EMU_INLINE unsigned __float2uint_rz(float x) { return emu_to_uint(x); }
EMU_INLINE unsigned __float2uint_rd(float x) { return emu_to_uint(floorf(x)); }
EMU_INLINE unsigned __float2uint_ru(float x) { return emu_to_uint(ceilf(x)); }
EMU_INLINE float __int2float_rn(int x) { return float(x); }
EMU_INLINE float __uint2float_rn(unsigned x) { return float(x); }

// ---- 16-bit floats --------------------------------------------------------------------------------------------------

struct __nv_bfloat16;
struct __half;
EMU_INLINE __nv_bfloat16 __float2bfloat16_rn(float x);
EMU_INLINE float __bfloat162float(__nv_bfloat16 x);
EMU_INLINE __half __float2half_rn(float x);
EMU_INLINE float __half2float(__half x);

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit EMU_TEMPLATE_INLINE __nv_bfloat16(float x) { *this = __float2bfloat16_rn(x); }
    explicit EMU_TEMPLATE_INLINE operator float() const { return __bfloat162float(*this); }
};
struct __half {
    uint16_t bits;
    __half() = default;
    explicit EMU_TEMPLATE_INLINE __half(float x) { *this = __float2half_rn(x); }
    explicit EMU_TEMPLATE_INLINE operator float() const { return __half2float(*this); }
};

EMU_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return emu_bits<__nv_bfloat16>(bits); }
EMU_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
EMU_INLINE __half __ushort_as_half(unsigned short bits) { return emu_bits<__half>(bits); }
EMU_INLINE unsigned short __half_as_ushort(__half x) { return x.bits; }

// Nearest even; every NaN becomes the GPU's 0x7fff.
EMU_INLINE __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits = emu_bits<uint32_t>(x);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return __ushort_as_bfloat16(uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded));
}
EMU_INLINE __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
EMU_INLINE float __bfloat162float(__nv_bfloat16 x) { return emu_bits<float>(uint32_t(x.bits) << 16); }
EMU_INLINE __half __float2half_rn(float x) {
    return __ushort_as_half(x != x ? 0x7fffu : uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)));
}
EMU_INLINE __half __float2half(float x) { return __float2half_rn(x); }
EMU_INLINE float __half2float(__half x) { return _cvtsh_ss(x.bits); }

// ---- memory access with cache hints ---------------------------------------------------------------------------------

template <class T>
EMU_TEMPLATE_INLINE T __ldg(const T* p) {
    return *p;
}
template <class T>
EMU_TEMPLATE_INLINE T __ldcs(const T* p) {
    return *p;
}
template <class T>
EMU_TEMPLATE_INLINE T __ldcg(const T* p) {
    return *p;
}
template <class T>
EMU_TEMPLATE_INLINE void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
EMU_TEMPLATE_INLINE void __stcg(T* p, T value) {
    *p = value;
}
EMU_INLINE void __threadfence() { emu_fence(); }
EMU_INLINE void __threadfence_block() { emu_fence(); }
EMU_INLINE void __threadfence_system() { emu_fence(); }
EMU_INLINE void __nanosleep(unsigned) { emu_nanosleep(); }
EMU_INLINE void __trap(EMU_SITE) { emu_trap("__trap()", file, line); }

// ---- barriers -------------------------------------------------------------------------------------------------------

EMU_INLINE void __syncthreads(EMU_SITE) { emu_syncthreads(EMU_BLOCK_NONE, 0, file, line); }
EMU_INLINE int __syncthreads_count(int predicate, EMU_SITE) {
    return emu_syncthreads(EMU_BLOCK_COUNT, predicate, file, line);
}
EMU_INLINE int __syncthreads_and(int predicate, EMU_SITE) {
    return emu_syncthreads(EMU_BLOCK_AND, predicate, file, line);
}
EMU_INLINE int __syncthreads_or(int predicate, EMU_SITE) {
    return emu_syncthreads(EMU_BLOCK_OR, predicate, file, line);
}
EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu_syncwarp(mask, file, line); }

// ---- warp operations ------------------------------------------------------------------------------------------------

template <class T>
EMU_TEMPLATE_INLINE T emu_shuffle(unsigned mask, T value, int argument, int kind, int width, EMU_SITE_PARAMETERS) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emu_shfl(mask, bits, argument, kind << 8 | width, file, line);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
EMU_TEMPLATE_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
    return emu_shuffle(mask, value, source, EMU_SHFL_IDX, width, file, line);
}
template <class T>
EMU_TEMPLATE_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    return emu_shuffle(mask, value, int(delta), EMU_SHFL_UP, width, file, line);
}
template <class T>
EMU_TEMPLATE_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    return emu_shuffle(mask, value, int(delta), EMU_SHFL_DOWN, width, file, line);
}
template <class T>
EMU_TEMPLATE_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_SITE) {
    return emu_shuffle(mask, value, lanes, EMU_SHFL_XOR, width, file, line);
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
    return emu_vote(mask, EMU_VOTE_BALLOT, predicate, file, line);
}
EMU_INLINE int __any_sync(unsigned mask, int predicate, EMU_SITE) {
    return int(emu_vote(mask, EMU_VOTE_ANY, predicate, file, line));
}
EMU_INLINE int __all_sync(unsigned mask, int predicate, EMU_SITE) {
    return int(emu_vote(mask, EMU_VOTE_ALL, predicate, file, line));
}
template <class T>
EMU_TEMPLATE_INLINE unsigned __match_any_sync(unsigned mask, T value, EMU_SITE) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return emu_match(mask, 0, bits, file, line);
}
template <class T>
EMU_TEMPLATE_INLINE unsigned __match_all_sync(unsigned mask, T value, int* predicate, EMU_SITE) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    unsigned lanes = emu_match(mask, 1, bits, file, line);
    *predicate = lanes != 0;
    return lanes;
}
#define EMU_REDUCE(name, T, kind)                                         \
    EMU_INLINE T name(unsigned mask, T value, EMU_SITE) {                 \
        return T(emu_reduce(mask, kind, uint32_t(value), file, line));    \
    }
EMU_REDUCE(__reduce_add_sync, int, EMU_REDUCE_ADD)
EMU_REDUCE(__reduce_add_sync, unsigned, EMU_REDUCE_ADD)
EMU_REDUCE(__reduce_min_sync, int, EMU_REDUCE_MIN_S)
EMU_REDUCE(__reduce_min_sync, unsigned, EMU_REDUCE_MIN_U)
EMU_REDUCE(__reduce_max_sync, int, EMU_REDUCE_MAX_S)
EMU_REDUCE(__reduce_max_sync, unsigned, EMU_REDUCE_MAX_U)
EMU_REDUCE(__reduce_and_sync, unsigned, EMU_REDUCE_AND)
EMU_REDUCE(__reduce_or_sync, unsigned, EMU_REDUCE_OR)
EMU_REDUCE(__reduce_xor_sync, unsigned, EMU_REDUCE_XOR)

// ---- atomics --------------------------------------------------------------------------------------------------------

#define EMU_ATOMIC(name, T, width, kind)                                                                            \
    EMU_INLINE T name(T* address, T value) {                                                                        \
        return emu_bits<T>(emu_atomic##width(kind, address, emu_bits<uint##width##_t>(value), 0));                  \
    }
EMU_ATOMIC(atomicAdd, int, 32, EMU_ATOMIC_ADD)
EMU_ATOMIC(atomicAdd, unsigned, 32, EMU_ATOMIC_ADD)
EMU_ATOMIC(atomicAdd, unsigned long long, 64, EMU_ATOMIC_ADD)
EMU_ATOMIC(atomicAdd, float, 32, EMU_ATOMIC_ADD_F)
EMU_ATOMIC(atomicAdd, double, 64, EMU_ATOMIC_ADD_F)
EMU_ATOMIC(atomicAdd, __nv_bfloat16, 16, EMU_ATOMIC_ADD_BF16)
EMU_ATOMIC(atomicAdd, __half, 16, EMU_ATOMIC_ADD_F16)
EMU_ATOMIC(atomicMin, int, 32, EMU_ATOMIC_MIN_S)
EMU_ATOMIC(atomicMin, unsigned, 32, EMU_ATOMIC_MIN_U)
EMU_ATOMIC(atomicMin, unsigned long long, 64, EMU_ATOMIC_MIN_U)
EMU_ATOMIC(atomicMax, int, 32, EMU_ATOMIC_MAX_S)
EMU_ATOMIC(atomicMax, unsigned, 32, EMU_ATOMIC_MAX_U)
EMU_ATOMIC(atomicMax, unsigned long long, 64, EMU_ATOMIC_MAX_U)
EMU_ATOMIC(atomicAnd, int, 32, EMU_ATOMIC_AND)
EMU_ATOMIC(atomicAnd, unsigned, 32, EMU_ATOMIC_AND)
EMU_ATOMIC(atomicOr, int, 32, EMU_ATOMIC_OR)
EMU_ATOMIC(atomicOr, unsigned, 32, EMU_ATOMIC_OR)
EMU_ATOMIC(atomicXor, int, 32, EMU_ATOMIC_XOR)
EMU_ATOMIC(atomicXor, unsigned, 32, EMU_ATOMIC_XOR)
EMU_ATOMIC(atomicExch, int, 32, EMU_ATOMIC_EXCH)
EMU_ATOMIC(atomicExch, unsigned, 32, EMU_ATOMIC_EXCH)
EMU_ATOMIC(atomicExch, float, 32, EMU_ATOMIC_EXCH)
EMU_ATOMIC(atomicExch, unsigned long long, 64, EMU_ATOMIC_EXCH)
EMU_ATOMIC(atomicInc, unsigned, 32, EMU_ATOMIC_INC)
EMU_ATOMIC(atomicDec, unsigned, 32, EMU_ATOMIC_DEC)
EMU_INLINE int atomicSub(int* address, int value) { return atomicAdd(address, int(0u - unsigned(value))); }
EMU_INLINE unsigned atomicSub(unsigned* address, unsigned value) { return atomicAdd(address, 0u - value); }
EMU_INLINE int atomicCAS(int* address, int compare, int value) {
    return int(emu_atomic32(EMU_ATOMIC_CAS, address, uint32_t(value), uint32_t(compare)));
}
EMU_INLINE unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value) {
    return emu_atomic32(EMU_ATOMIC_CAS, address, value, compare);
}
EMU_INLINE unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare,
                                        unsigned long long value) {
    return emu_atomic64(EMU_ATOMIC_CAS, address, value, compare);
}

// ---- kernels --------------------------------------------------------------------------------------------------------


// The kernel proper (hooked, everything inlined into it), a thunk that copies the argument struct onto the thread's
// stack so that reading it costs no hook, and the entry in the kernel table.
#define EMU_KERNEL(entry, call, Args, max_threads)                                                            \
    static_assert(__is_trivially_copyable(Args), "kernel arguments are plain structs");                       \
    EMU_FLATTEN __attribute__((noinline)) static void entry(const Args emu_args) { call(emu_args); }          \
    EMU_NO_HOOKS static void entry##_thunk(const void* emu_args) { entry(*static_cast<const Args*>(emu_args)); } \
    namespace {                                                                                               \
    const struct entry##_registration {                                                                       \
        EMU_NO_HOOKS entry##_registration() {                                                                 \
            emu_register_kernel(#entry, sizeof(Args), max_threads, entry##_thunk);                            \
        }                                                                                                     \
    } entry##_registered;                                                                                     \
    }
