// What the instructions of ptx.cuh compute: for the emulator and for a GPU, which must agree bit for bit.
#include "ptx.cuh"

struct PtxProbe {
    const void* x;  // 16-bit elements
    const void* c;  // words
    void* y;        // words
};

struct alignas(16) PtxRows {
    unsigned short v[32][8];  // row r of matrix i is [8 i + r]
};

// y = x · bᵀ + c: x [16, 16] T, b [8, 16] T behind it, c and y [16, 8] f32. One warp.
template <class T>
__device__ void probe_mma(const PtxProbe& a) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const unsigned* x = in<unsigned>(a.x);  // pairs of elements: [16, 8], then [8, 8]
    const unsigned* b = x + 16 * 8;
    unsigned fragment[4];
    float d[4];
    UNROLL
    for (int r = 0; r < 4; ++r) {
        fragment[r] = x[(g + 8 * (r % 2)) * 8 + t + 4 * (r / 2)];
        d[r] = in<float>(a.c)[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2];
    }
    mma_16x8x16<T>(d, fragment, b[g * 8 + t], b[g * 8 + t + 4]);
    UNROLL
    for (int r = 0; r < 4; ++r) out<float>(a.y)[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = d[r];
}
KERNEL_DTYPE(probe_mma, bf16, bf16, PtxProbe)
KERNEL_DTYPE(probe_mma, f16, f16, PtxProbe)

template <int N, bool TRANS>
__device__ __forceinline__ void load_into(unsigned* y, const PtxRows& rows) {
    unsigned x[N];
    ldmatrix<N, TRANS>(x, shared_address(rows.v[lane_id() % (8 * N)]));
    UNROLL
    for (int i = 0; i < N; ++i) y[32 * i + lane_id()] = x[i];
}

// x: four matrices [4, 8, 8]; y [14, 32]: registers of 1, 2 and 4 matrices, then the same transposed. One warp.
template <class T>
__device__ void probe_ldmatrix(const PtxProbe& a) {
    SMEM(PtxRows, rows);
    store_vec(rows.v[lane_id()], load_vec<unsigned short, 8>(in<unsigned short>(a.x) + 8 * lane_id()));
    __syncwarp();
    unsigned* y = out<unsigned>(a.y);
    load_into<1, false>(y, rows);
    load_into<2, false>(y + 32, rows);
    load_into<4, false>(y + 96, rows);
    load_into<1, true>(y + 224, rows);
    load_into<2, true>(y + 256, rows);
    load_into<4, true>(y + 320, rows);
}
KERNEL_DTYPE(probe_ldmatrix, bf16, bf16, PtxProbe)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <int N, bool TRANS>
__device__ __forceinline__ void store_from(unsigned* y, PtxRows& rows, const unsigned* words) {
    const Vec<unsigned, 4> zero = {};
    store_vec(reinterpret_cast<unsigned*>(rows.v[lane_id()]), zero);
    __syncwarp();
    unsigned x[N];
    UNROLL
    for (int i = 0; i < N; ++i) x[i] = words[32 * i + lane_id()];
    stmatrix<N, TRANS>(rows.v[lane_id() % (8 * N)], x);
    __syncwarp();
    store_vec(y + 4 * lane_id(), load_vec<unsigned, 4>(reinterpret_cast<const unsigned*>(rows.v[lane_id()])));
    __syncwarp();
}

// c: registers [4, 32]; y [6, 32 rows of 4 words]: shared memory behind storing 1, 2 and 4 of them, then transposed.
template <class T>
__device__ void probe_stmatrix(const PtxProbe& a) {
    SMEM(PtxRows, rows);
    unsigned* y = out<unsigned>(a.y);
    const unsigned* words = in<unsigned>(a.c);
    store_from<1, false>(y, rows, words);
    store_from<2, false>(y + 128, rows, words);
    store_from<4, false>(y + 256, rows, words);
    store_from<1, true>(y + 384, rows, words);
    store_from<2, true>(y + 512, rows, words);
    store_from<4, true>(y + 640, rows, words);
}
KERNEL_DTYPE(probe_stmatrix, bf16, bf16, PtxProbe)
#endif

// Lane r copies the first r % 17 bytes of row r of x (32 rows of 16 bytes) to the left neighbour's row of y, in two
// groups; the first is read while the second may be under way. Row 32 + r of y is what the second brought.
template <class T>
__device__ void probe_cp_async(const PtxProbe& a) {
    SMEM(PtxRows, first);
    SMEM(PtxRows, second);
    const int r = lane_id();
    const unsigned short* x = in<unsigned short>(a.x);
    cp_async_16(first.v[r], x + 8 * r, r % 17);
    cp_async_commit();
    cp_async_16(second.v[r], x + 8 * (31 - r));
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();
    unsigned short* y = out<unsigned short>(a.y);
    store_vec(y + 8 * r, load_vec<unsigned short, 8>(first.v[(r + 1) % 32]));
    cp_async_wait<0>();
    __syncwarp();
    store_vec(y + 8 * (32 + r), load_vec<unsigned short, 8>(second.v[r]));
}
KERNEL_DTYPE(probe_cp_async, bf16, bf16, PtxProbe)

// y[4 i + j] of lane i: two values packed as bf16 and as f16; 2 to the power of the first. c: [2, 32] f32.
template <class T>
__device__ void probe_pack(const PtxProbe& a) {
    const float low = in<float>(a.c)[lane_id()], high = in<float>(a.c)[32 + lane_id()];
    unsigned* y = out<unsigned>(a.y);
    y[lane_id()] = pack2<bf16>(low, high);
    y[32 + lane_id()] = pack2<f16>(low, high);
    y[64 + lane_id()] = __float_as_uint(exp2_approx(low));
}
KERNEL_DTYPE(probe_pack, bf16, bf16, PtxProbe)
