// Instructions that CUDA C++ has no name for: one function each, with what it does in PTX for nvcc and the emulator's
// version for the host side by side. kernels/emulator/tests/ptx.cu proves that both do the same, bit for bit.
//
// g = lane / 4 and t = lane % 4 below. A register holds two 16-bit elements, the one of lower index in its low half.
#pragma once
#include "common.cuh"

// Where the emulator reports that the lanes of a warp are at different operations.
#ifdef __CUDACC__
#define CALL_SITE
#else
#define CALL_SITE , const char *file = __builtin_FILE(), int line = __builtin_LINE()
#endif

// An address of shared memory as instructions take it: a number, whose low bits may be exchanged.
#ifdef __CUDACC__
typedef unsigned SharedAddress;
__device__ __forceinline__ SharedAddress shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
#else
typedef uintptr_t SharedAddress;
__device__ __forceinline__ SharedAddress shared_address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
#endif

// x, of which the compiler forgets what it is: what depends on it is computed where it is used, not once ahead of a loop
// and kept in registers all the while.
__device__ __forceinline__ unsigned computed_here(unsigned x) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------------

#define LOG2_E 1.4426950408889634f  // e^x = 2^(LOG2_E x)
#define LN_2 0.6931471805599453f

// 2^x to about two units in the last place; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// log2(x) to 2^-22, also of 0 and NaN.
__device__ __forceinline__ float log2_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return log2f(x);
#endif
}

// 1 / x to about one unit in the last place; subnormal numbers count as zero.
__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.f / x;
#endif
}

// 1 / (1 + e^-x) within 2e-7 of the truth.
__device__ __forceinline__ float sigmoid_approx(float x) {
    return reciprocal_approx(1.f + exp2_approx(-1.442695041f * x));
}

// Two values rounded to nearest even: `low` in the low half.
template <class T>
__device__ __forceinline__ unsigned pack2(float low, float high);
template <>
__device__ __forceinline__ unsigned pack2<bf16>(float low, float high) {
#ifdef __CUDACC__
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return unsigned(__bfloat16_as_ushort(from_f32<bf16>(low))) | unsigned(__bfloat16_as_ushort(from_f32<bf16>(high))) << 16;
#endif
}
template <>
__device__ __forceinline__ unsigned pack2<f16>(float low, float high) {
#ifdef __CUDACC__
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return unsigned(__half_as_ushort(from_f32<f16>(low))) | unsigned(__half_as_ushort(from_f32<f16>(high))) << 16;
#endif
}

// ---- matrix products ------------------------------------------------------------------------------------------------------

// d += a · b in f32, by a whole warp: a [16, 16], b [16, 8], d [16, 8].
// a[r]: row g + 8 (r % 2), columns 2t + 8 (r / 2) + {0, 1}; b[r]: rows 2t + 8 r + {0, 1}, column g;
// d[i]: row g + 8 (i / 2), column 2t + i % 2.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1 CALL_SITE);
#ifdef __CUDACC__
#define MMA_16X8X16(T, type)                                                                                             \
    template <>                                                                                                          \
    __device__ __forceinline__ void mma_16x8x16<T>(float(&d)[4], const unsigned(&a)[4], unsigned b0, unsigned b1) {      \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
            "{%0, %1, %2, %3};"                                                                                          \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                             \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                             \
    }
MMA_16X8X16(bf16, "bf16")
MMA_16X8X16(f16, "f16")
#else
#define MMA_16X8X16(T, kind)                                                                                             \
    template <>                                                                                                          \
    __device__ __forceinline__ void mma_16x8x16<T>(float(&d)[4], const unsigned(&a)[4], unsigned b0, unsigned b1,        \
                                                   const char* file, int line) {                                         \
        const emu_floats4 sum = emu_mma(kind, {{a[0], a[1], a[2], a[3]}}, b0 | uint64_t(b1) << 32,                       \
                                        {{d[0], d[1], d[2], d[3]}}, file, line);                                         \
        UNROLL                                                                                                           \
        for (int i = 0; i < 4; ++i) d[i] = sum.v[i];                                                                     \
    }
MMA_16X8X16(bf16, EMU_MMA_BF16)
MMA_16X8X16(f16, EMU_MMA_F16)
#endif

// ---- matrices of 8 x 8 16-bit elements in shared memory -------------------------------------------------------------------
// Lane 8 i + r passes the address of row r of matrix i: 16 bytes, aligned to 16. Addresses of other lanes are ignored.

// x[i]: of matrix i, row g and columns 2t, 2t + 1; TRANS: column g and rows 2t, 2t + 1.
template <int N, bool TRANS = false>
__device__ __forceinline__ void ldmatrix(unsigned (&x)[N], SharedAddress address CALL_SITE) {
    static_assert(N == 1 || N == 2 || N == 4, "one, two or four matrices");
#ifdef __CUDACC__
    // "memory": not before stores that fill the matrices, in the order of the program.
    if constexpr (N == 1 && !TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(x[0]) : "r"(address) : "memory");
    if constexpr (N == 1 && TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(x[0]) : "r"(address) : "memory");
    if constexpr (N == 2 && !TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(x[0]), "=r"(x[1])
                     : "r"(address)
                     : "memory");
    if constexpr (N == 2 && TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(x[0]), "=r"(x[1])
                     : "r"(address)
                     : "memory");
    if constexpr (N == 4 && !TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(address)
                     : "memory");
    if constexpr (N == 4 && TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(address)
                     : "memory");
#else
    const emu_words4 loaded = emu_ldmatrix(reinterpret_cast<const void*>(address), N, TRANS, file, line);
    UNROLL
    for (int i = 0; i < N; ++i) x[i] = loaded.v[i];
#endif
}

// The inverse of ldmatrix. From sm_90 on.
template <int N, bool TRANS = false>
__device__ __forceinline__ void stmatrix(void* row, const unsigned (&x)[N] CALL_SITE) {
    static_assert(N == 1 || N == 2 || N == 4, "one, two or four matrices");
#ifdef __CUDACC__
    const unsigned address = shared_address(row);
    if constexpr (N == 1 && !TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(x[0]) : "memory");
    if constexpr (N == 1 && TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(x[0]) : "memory");
    if constexpr (N == 2 && !TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(x[0]), "r"(x[1])
                     : "memory");
    if constexpr (N == 2 && TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(x[0]), "r"(x[1])
                     : "memory");
    if constexpr (N == 4 && !TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]),
                     "r"(x[1]), "r"(x[2]), "r"(x[3])
                     : "memory");
    if constexpr (N == 4 && TRANS)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]),
                     "r"(x[1]), "r"(x[2]), "r"(x[3])
                     : "memory");
#else
    emu_words4 words = {};
    UNROLL
    for (int i = 0; i < N; ++i) words.v[i] = x[i];
    emu_stmatrix(row, words, N, TRANS, file, line);
#endif
}

// ---- asynchronous copies from global to shared memory ---------------------------------------------------------------------
// What a thread copies is there once it has waited for the copy's group, for other threads once they have met it at a
// barrier behind that. Before, the destination is neither read nor written.

// 16 bytes at `to` become the first `bytes` of `from`, then zeros. Both are aligned to 16 bytes; nothing is read for 0.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes = 16) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
#else
    emu_cp_async(to, from, bytes);
#endif
}

// Makes a group of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emu_cp_async_commit();
#endif
}

// Waits for all of this thread's groups but the last `PENDING`.
template <int PENDING = 0>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emu_cp_async_wait(PENDING);
#endif
}
