// What the instructions of ptx_sm90.cuh do: for the emulator and for a Hopper GPU, which must agree bit for bit.
// arch: sm_90a
#include "ptx_sm90.cuh"

struct BulkProbe {
    TensorMap from, to;
    const void* x;  // words
    void* y;        // words
    int at[4], to_at[4];  // outermost dimension first
    unsigned bytes;  // of the box
    unsigned pad[3];
};

struct ProductProbe {
    const void* x;  // shared memory's image, then a from registers
    void* y;        // [64, N] f32
    unsigned bytes;  // of the image
    unsigned form;   // 0 to 3: major of a + 2 major of b; 4, 5: a from registers, major of b
    unsigned b;      // where b begins in the image
    unsigned swizzle_a, swizzle_b;
    unsigned leading_a, stride_a, leading_b, stride_b;
    unsigned step_a, step_b;  // bytes from 16 k to the next
    unsigned pad;
};

#if SM90A
// y [64] = x + 1 and [64] = x: words by a bulk load, whose bytes two mbarriers' phases bring, and two bulk stores. One warp.
template <class T>
__device__ void probe_bulk_copy(const BulkProbe& a) {
    DYN_SMEM(raw);
    SMEM(Mbarrier, done);
    unsigned* words = reinterpret_cast<unsigned*>(raw);
    if (threadIdx.x == 0) {
        mbarrier_init(&done, 1);
        mbarrier_init_fence();
    }
    __syncwarp();
    const unsigned* x = in<unsigned>(a.x);
    unsigned* y = out<unsigned>(a.y);
    for (int half = 0; half < 2; ++half) {
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(&done, 128);
            bulk_load(words + 32 * half, x + 32 * half, 128, &done);
        }
        mbarrier_wait(&done, half);
        __syncwarp();
    }
    for (int half = 0; half < 2; ++half) words[64 + 32 * half + lane_id()] = words[32 * half + lane_id()] + 1;
    fence_async();
    __syncwarp();
    if (threadIdx.x != 0) return;
    bulk_store(y, words + 64, 256);
    bulk_commit();
    bulk_store(y + 64, words, 256);
    bulk_commit();
    bulk_wait<1>();
    bulk_wait_read();
}
KERNEL_DTYPE(probe_bulk_copy, bf16, bf16, BulkProbe)

// The box of `from` at `at`: its image in shared memory to y, and itself to the place `to_at` of `to`. One warp.
template <int RANK>
__device__ __forceinline__ void probe_tensor(const BulkProbe& a) {
    DYN_SMEM(raw);
    SMEM(Mbarrier, done);
    int at[RANK], to_at[RANK];
    UNROLL
    for (int i = 0; i < RANK; ++i) {
        at[i] = a.at[i];
        to_at[i] = a.to_at[i];
    }
    if (threadIdx.x == 0) {
        tensor_map_prefetch(a.from);
        mbarrier_init(&done, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(&done, int(a.bytes));
        tensor_load<RANK>(raw, a.from, at, &done);
    }
    __syncwarp();
    mbarrier_wait(&done, 0);
    for (unsigned i = threadIdx.x; i < a.bytes / 4; i += WARP)
        out<unsigned>(a.y)[i] = reinterpret_cast<const unsigned*>(raw)[i];
    if (threadIdx.x != 0) return;
    tensor_store<RANK>(a.to, to_at, raw);
    bulk_commit();
    bulk_wait();
}
KERNEL_ENTRY(probe_tensor_2d_bf16, probe_tensor<2>, BulkProbe)
KERNEL_ENTRY(probe_tensor_3d_bf16, probe_tensor<3>, BulkProbe)
KERNEL_ENTRY(probe_tensor_4d_bf16, probe_tensor<4>, BulkProbe)

// The tile of wgmma_tile for a swizzle that is known at run time only.
__device__ __forceinline__ uint64_t probe_tile(const void* tile, unsigned swizzle, unsigned leading, unsigned stride) {
    if (swizzle == 32) return wgmma_tile<32>(tile, int(leading), int(stride));
    if (swizzle == 64) return wgmma_tile<64>(tile, int(leading), int(stride));
    if (swizzle == 128) return wgmma_tile<128>(tile, int(leading), int(stride));
    return wgmma_tile<0>(tile, int(leading), int(stride));
}

template <class T, int MAJOR_A, int MAJOR_B, int R>
__device__ __forceinline__ void probe_ss(float (&d)[R], uint64_t tile_a, uint64_t tile_b, const ProductProbe& a) {
    wgmma_fence(d);
    wgmma_ss<T, MAJOR_A, MAJOR_B>(d, tile_a, tile_b, 0);
    wgmma_ss<T, MAJOR_A, MAJOR_B>(d, tile_a + a.step_a / 16, tile_b + a.step_b / 16, 1);
    wgmma_commit();
    wgmma_wait(d);
}
template <class T, int MAJOR_B, int R>
__device__ __forceinline__ void probe_rs(float (&d)[R], const unsigned (&x)[2][4], uint64_t tile_b, const ProductProbe& a) {
    wgmma_fence(d);
    wgmma_rs<T, MAJOR_B>(d, x[0], tile_b, 0);
    wgmma_rs<T, MAJOR_B>(d, x[1], tile_b + a.step_b / 16, 1);
    wgmma_commit();
    wgmma_wait(d);
}

// y = a · b over 32 k, a [64, 32], b [32, N], N = 2 R. One warpgroup. SOME: only the forms 0 and 4.
template <class T, int R, bool SOME>
__device__ __forceinline__ void probe_wgmma(const ProductProbe& a) {
    DYN_SMEM(raw);
    const unsigned* x = in<unsigned>(a.x);
    for (unsigned i = threadIdx.x; i < a.bytes / 4; i += blockDim.x) reinterpret_cast<unsigned*>(raw)[i] = x[i];
    fence_async();
    __syncthreads();
    const int g = lane_id() / 4, t = lane_id() % 4, row = 16 * warp_id() + g;
    unsigned words[2][4];
    UNROLL
    for (int i = 0; i < 8; ++i)  // pairs of elements: a row has 16
        words[i / 4][i % 4] = x[a.bytes / 4 + unsigned(row + 8 * (i % 2)) * 16 + i / 4 * 8 + t + 4 * (i / 2 % 2)];
    const uint64_t tile_a = probe_tile(raw, a.swizzle_a, a.leading_a, a.stride_a);
    const uint64_t tile_b = probe_tile(raw + a.b, a.swizzle_b, a.leading_b, a.stride_b);
    float d[R];
    UNROLL
    for (int i = 0; i < R; ++i) d[i] = __int_as_float(0x7fc00000);
    if (a.form == 0) probe_ss<T, MAJOR_K, MAJOR_K>(d, tile_a, tile_b, a);
    if (a.form == 4) probe_rs<T, MAJOR_K>(d, words, tile_b, a);
    if constexpr (!SOME) {
        if (a.form == 1) probe_ss<T, MAJOR_MN, MAJOR_K>(d, tile_a, tile_b, a);
        if (a.form == 2) probe_ss<T, MAJOR_K, MAJOR_MN>(d, tile_a, tile_b, a);
        if (a.form == 3) probe_ss<T, MAJOR_MN, MAJOR_MN>(d, tile_a, tile_b, a);
        if (a.form == 5) probe_rs<T, MAJOR_MN>(d, words, tile_b, a);
    }
    UNROLL
    for (int i = 0; i < R; ++i)
        out<float>(a.y)[(row + 8 * (i / 2 % 2)) * 2 * R + 8 * (i / 4) + 2 * t + i % 2] = d[i];
}
#define PROBE_WGMMA(N, suffix, T, SOME) \
    KERNEL_ENTRY_BOUNDS(probe_wgmma_n##N##_##suffix, (probe_wgmma<T, N / 2, SOME>), ProductProbe, 128)
PROBE_WGMMA(64, bf16, bf16, false)
PROBE_WGMMA(64, f16, f16, false)
PROBE_WGMMA(128, bf16, bf16, false)
PROBE_WGMMA(8, bf16, bf16, true)
PROBE_WGMMA(16, bf16, bf16, true)
PROBE_WGMMA(32, bf16, bf16, true)
PROBE_WGMMA(96, bf16, bf16, true)
PROBE_WGMMA(192, bf16, bf16, true)
PROBE_WGMMA(256, bf16, bf16, true)
PROBE_WGMMA(256, f16, f16, true)
#endif
