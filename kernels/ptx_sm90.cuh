// Hopper's own instructions, one function each as in ptx.cuh: mbarriers, bulk copies (TMA) and warpgroup products
// (wgmma). A file that uses them carries the line `// arch: sm_90a` and keeps their kernels behind `#if SM90A`.
// kernels/emulator/tests/ptx_sm90.cu proves that both sides do the same, bit for bit.
#pragma once
#include "ptx.cuh"

// Whether this pass compiles kernels of this header: the host's does, and machine code for sm_90a.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SM90A 1
#else
#define SM90A 0
#endif

// ---- mbarriers ------------------------------------------------------------------------------------------------------------
// Phases follow each other; one is over when `count` arrivals and all bytes that were announced have come. What threads
// wrote before they arrived is there for those who have waited; an arrival speaks for its whole warp, so __syncwarp
// comes before a single lane's.

struct alignas(8) Mbarrier {
    unsigned long long state;
};

// Once, by one thread; then mbarrier_init_fence, and a barrier before others use it.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int count) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#else
    emu_mbarrier_init(barrier, count);
#endif
}
// Makes this thread's mbarrier_init known to bulk copies.
__device__ __forceinline__ void mbarrier_init_fence() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    emu_mbarrier_init_fence();
#endif
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    emu_mbarrier_arrive(barrier, 0);
#endif
}
// Arrives, and announces bytes that bulk loads will bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, int bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    emu_mbarrier_arrive(barrier, bytes);
#endif
}
// Returns once the phase of this parity is over: phases 0, 2, 4, .. have parity 0. A fresh barrier passes parity 1.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, int parity) {
#ifdef __CUDACC__
    unsigned over;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(over)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!over);
#else
    emu_mbarrier_wait(barrier, parity);
#endif
}

// ---- bulk copies ----------------------------------------------------------------------------------------------------------
// One thread starts a copy of a whole tile. A load is over with the phase of its mbarrier in which its bytes were
// announced; a store once the thread has waited for the store's group.

// A tensor in global memory and the box that one copy moves (`Device::tensor_map` makes it). A member of the kernel's
// argument struct, never copied: the instructions take its address there.
struct alignas(64) TensorMap {
    unsigned char opaque[128];
};

// What this thread wrote into shared memory becomes visible to bulk stores and wgmma: behind the writes, before the
// barrier that the issuing thread passes.
__device__ __forceinline__ void fence_async() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emu_fence_async();
#endif
}

// `bytes` bytes, a multiple of 16; both addresses are aligned to 16 bytes.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Mbarrier* barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#else
    emu_bulk_load(to, from, bytes, barrier);
#endif
}
__device__ __forceinline__ void bulk_store(void* to, const void* from, int bytes) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
#else
    emu_bulk_store(to, from, bytes);
#endif
}

// The box whose first element is `at` (outermost dimension first, like shapes; may lie outside): rows of the box one
// behind the other, swizzled by address as the map says. Elements outside the tensor are zeros, and count as bytes.
// `to` is aligned to 128 bytes.
template <int RANK>
__device__ __forceinline__ void tensor_load(void* to, const TensorMap& map, const int (&at)[RANK], Mbarrier* barrier) {
    static_assert(RANK >= 2 && RANK <= 4, "two to four dimensions");
#ifdef __CUDACC__
    const unsigned address = shared_address(to), done = shared_address(barrier);
    if constexpr (RANK == 2)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
                "r"(address),
            "l"(&map), "r"(done), "r"(at[1]), "r"(at[0])
            : "memory");
    if constexpr (RANK == 3)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
            "[%2];" ::"r"(address),
            "l"(&map), "r"(done), "r"(at[2]), "r"(at[1]), "r"(at[0])
            : "memory");
    if constexpr (RANK == 4)
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
            "%6}], [%2];" ::"r"(address),
            "l"(&map), "r"(done), "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0])
            : "memory");
#else
    emu_tensor_load(to, &map, at, RANK, barrier);
#endif
}
// The inverse; nothing is written outside the tensor.
template <int RANK>
__device__ __forceinline__ void tensor_store(const TensorMap& map, const int (&at)[RANK], const void* from) {
    static_assert(RANK >= 2 && RANK <= 4, "two to four dimensions");
#ifdef __CUDACC__
    const unsigned address = shared_address(from);
    if constexpr (RANK == 2)
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                     "r"(address), "r"(at[1]), "r"(at[0])
                     : "memory");
    if constexpr (RANK == 3)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                     "r"(address), "r"(at[2]), "r"(at[1]), "r"(at[0])
                     : "memory");
    if constexpr (RANK == 4)
        asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
                         &map),
                     "r"(address), "r"(at[3]), "r"(at[2]), "r"(at[1]), "r"(at[0])
                     : "memory");
#else
    emu_tensor_store(&map, at, RANK, from);
#endif
}

// Makes a group of this thread's stores since the last one.
__device__ __forceinline__ void bulk_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    emu_bulk_commit();
#endif
}
// Waits for all of this thread's groups but the last `PENDING`: they have written.
template <int PENDING = 0>
__device__ __forceinline__ void bulk_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emu_bulk_wait(PENDING, false);
#endif
}
// The same until they have read shared memory, which may be overwritten or given up then.
template <int PENDING = 0>
__device__ __forceinline__ void bulk_wait_read() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#else
    emu_bulk_wait(PENDING, true);
#endif
}
// Fetches a map ahead of its first use.
__device__ __forceinline__ void tensor_map_prefetch(const TensorMap& map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
    (void)map;
#endif
}

// ---- registers ------------------------------------------------------------------------------------------------------------

// A whole warpgroup gives registers up, or takes them; N a multiple of 8. The kernel has launch bounds that name blocks.
template <int N>
__device__ __forceinline__ void registers_release() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
__device__ __forceinline__ void registers_take() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// ---- products of a warpgroup ----------------------------------------------------------------------------------------------
// Four warps, the first of a number divisible by four, multiply a [64, 16] by b [16, N] into f32 accumulators: d[i] of
// a thread is row 16 (warp % 4) + g + 8 (i / 2 % 2), column 8 (i / 4) + 2t + i % 2. The order is
//     wgmma_fence(d), wgmma_ss or wgmma_rs .., wgmma_commit(), wgmma_wait(d),
// and until the wait nobody touches d or writes what is being read.

// The side that lies contiguous in shared memory: k, or the rows of a (columns of b).
enum Major { MAJOR_K = 0, MAJOR_MN = 1 };

// A tile of 16-bit elements in shared memory, swizzled by SWIZZLE bytes (0, 32, 64, 128) as tensor_load does it:
// byte address x ^ (x >> 3 & (SWIZZLE - 16)). The place of element (mn, k), mn being the row of a or column of b, is
//   K-major:   mn / 8 * stride + mn % 8 * SWIZZLE + 2 k; the next 16 k lie 32 bytes on
//   MN-major:  mn / (SWIZZLE / 2) * leading + k / 8 * stride + k % 8 * SWIZZLE + mn % (SWIZZLE / 2) * 2
// and without a swizzle, in pieces of 8 x 16 bytes,
//   K-major:   mn / 8 * stride + k / 8 * leading + mn % 8 * 16 + k % 8 * 2
//   MN-major:  mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2.
// A swizzled tile is aligned to 8 SWIZZLE bytes. Another tile of the same form is `bytes / 16` later.
template <int SWIZZLE>
__device__ __forceinline__ uint64_t wgmma_tile(const void* tile, int leading, int stride) {
    static_assert(SWIZZLE == 0 || SWIZZLE == 32 || SWIZZLE == 64 || SWIZZLE == 128, "a swizzle of 0, 32, 64, 128 bytes");
    constexpr uint64_t MODE = SWIZZLE == 0 ? 0 : SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
#ifdef __CUDACC__
    const unsigned address = shared_address(tile);
#else
    const unsigned address = emu_shared_offset(tile);
#endif
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32 |
           MODE << 62;
}

// Keeps a value of each register where it is in the program: the compiler knows nothing of asynchronous products.
template <int R>
__device__ __forceinline__ void registers_settled(float (&d)[R]) {
#ifdef __CUDACC__
    UNROLL
    for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
#else
    (void)d;
#endif
}

// Before the first product, and again after registers were touched.
template <int... R>
__device__ __forceinline__ void wgmma_fence(float (&... d)[R]) {
    (registers_settled(d), ...);
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emu_wgmma_fence();
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emu_wgmma_commit();
#endif
}
// Waits for all groups but the last `PENDING`; d: the accumulators that may be used from here on.
template <int PENDING = 0, int... R>
__device__ __forceinline__ void wgmma_wait(float (&... d)[R]) {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#else
    emu_wgmma_wait(PENDING);
#endif
    (registers_settled(d), ...);
}

#ifdef __CUDACC__
template <class T>
struct WgmmaType {
    static constexpr bool HALF = false;
};
template <>
struct WgmmaType<f16> {
    static constexpr bool HALF = true;
};
template <int R>
struct Wgmma;

#define WGMMA_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D8(d, i) WGMMA_D4(d, i), WGMMA_D4(d, i + 4)
#define WGMMA_D16(d, i) WGMMA_D8(d, i), WGMMA_D8(d, i + 8)
#define WGMMA_D32(d, i) WGMMA_D16(d, i), WGMMA_D16(d, i + 16)
#define WGMMA_D48(d, i) WGMMA_D32(d, i), WGMMA_D16(d, i + 32)
#define WGMMA_D64(d, i) WGMMA_D32(d, i), WGMMA_D32(d, i + 32)
#define WGMMA_D96(d, i) WGMMA_D64(d, i), WGMMA_D32(d, i + 64)
#define WGMMA_D128(d, i) WGMMA_D64(d, i), WGMMA_D64(d, i + 64)
#define WGMMA_N4 "%0, %1, %2, %3"
#define WGMMA_N8 WGMMA_N4 ", %4, %5, %6, %7"
#define WGMMA_N16 WGMMA_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_N32 WGMMA_N16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_N48 WGMMA_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_N64 WGMMA_N48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_N96                                                                                                       \
    WGMMA_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "  \
              "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_N128                                                                                                      \
    WGMMA_N96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "    \
              "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA_TEXT(N, R, type, p, rest)                                                                       \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type \
    " {" WGMMA_N##R "}, " rest ";\n}"
#define WGMMA_SS(N, R, type, n0, n1, n2, n3, n4)                                                               \
    asm volatile(WGMMA_TEXT(N, R, type, n2, "%" #n0 ", %" #n1 ", p, 1, 1, %" #n3 ", %" #n4)                    \
                 : WGMMA_D##R(d, 0)                                                                            \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(MAJOR_A), "n"(MAJOR_B)                                 \
                 : "memory")
#define WGMMA_RS(N, R, type, n0, n1, n2, n3, n4, n5, n6)                                                       \
    asm volatile(WGMMA_TEXT(N, R, type, n5, "{%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", p, 1, 1, %" #n6) \
                 : WGMMA_D##R(d, 0)                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(MAJOR_B)           \
                 : "memory")
#define WGMMA(N, R, n0, n1, n2, n3, n4, n5, n6)                                                                \
    template <>                                                                                                \
    struct Wgmma<R> {                                                                                          \
        template <class T, int MAJOR_A, int MAJOR_B>                                                           \
        static __device__ __forceinline__ void ss(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {     \
            if constexpr (WgmmaType<T>::HALF) WGMMA_SS(N, R, "f16", n0, n1, n2, n3, n4);                       \
            else WGMMA_SS(N, R, "bf16", n0, n1, n2, n3, n4);                                                   \
        }                                                                                                      \
        template <class T, int MAJOR_B>                                                                        \
        static __device__ __forceinline__ void rs(float (&d)[R], const unsigned (&a)[4], uint64_t b,           \
                                                  int accumulate) {                                            \
            if constexpr (WgmmaType<T>::HALF) WGMMA_RS(N, R, "f16", n0, n1, n2, n3, n4, n5, n6);               \
            else WGMMA_RS(N, R, "bf16", n0, n1, n2, n3, n4, n5, n6);                                           \
        }                                                                                                      \
    };
WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10)
WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14)
WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)
#else
template <class T>
struct WgmmaType {
    static constexpr int KIND = EMU_MMA_BF16;
};
template <>
struct WgmmaType<f16> {
    static constexpr int KIND = EMU_MMA_F16;
};
#endif

// d (+)= a · b, both from shared memory (wgmma_tile); N = 2 R is 8, 16, 32, 64, 96, 128, 192 or 256. Without
// `accumulate` d starts from zero.
template <class T, int MAJOR_A, int MAJOR_B, int R>
__device__ __forceinline__ void wgmma_ss(float (&d)[R], uint64_t a, uint64_t b, int accumulate CALL_SITE) {
#ifdef __CUDACC__
    Wgmma<R>::template ss<T, MAJOR_A, MAJOR_B>(d, a, b, accumulate);
#else
    emu_wgmma(d, R, {WgmmaType<T>::KIND, accumulate != 0, false, MAJOR_A, MAJOR_B}, {}, a, b, file, line);
#endif
}
// The same with a from registers: each warp's 16 rows as in mma_16x8x16.
template <class T, int MAJOR_B, int R>
__device__ __forceinline__ void wgmma_rs(float (&d)[R], const unsigned (&a)[4], uint64_t b, int accumulate CALL_SITE) {
#ifdef __CUDACC__
    Wgmma<R>::template rs<T, MAJOR_B>(d, a, b, accumulate);
#else
    emu_wgmma(d, R, {WgmmaType<T>::KIND, accumulate != 0, true, 0, MAJOR_B}, {{a[0], a[1], a[2], a[3]}}, 0, b, file,
              line);
#endif
}
