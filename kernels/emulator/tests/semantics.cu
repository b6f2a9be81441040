// What the emulated language and intrinsics compute, for tests/emulator/semantics.rs.
#include "common.cuh"

struct Convert {
    const float* x;       // [count]
    unsigned short* bf;   // [count]
    unsigned short* half;  // [count]
    float* back_bf;       // [count]
    float* back_half;     // [count]
    unsigned count, pad;
};
__device__ void probe_convert_body(const Convert& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    bf16 b = from_f32<bf16>(a.x[i]);
    f16 h = from_f32<f16>(a.x[i]);
    a.bf[i] = __bfloat16_as_ushort(b);
    a.half[i] = __half_as_ushort(h);
    a.back_bf[i] = to_f32(b);
    a.back_half[i] = to_f32(h);
}
KERNEL(probe_convert, Convert)

struct Words {
    const unsigned* x;  // [count]
    unsigned* y;        // [rows, threads]
    unsigned count, pad;
};

// Row r of the output is result r of every thread.
#define PUT(value) a.y[blockDim.x * row++ + threadIdx.x] = unsigned(value)

__device__ void probe_warp_ops_body(const Words& a) {
    unsigned row = 0;
    const unsigned v = a.x[threadIdx.x];
    const int lane = lane_id();
    PUT(__shfl_sync(FULL_MASK, v, 5));
    PUT(__shfl_sync(FULL_MASK, v, lane + 3, 8));
    PUT(__shfl_up_sync(FULL_MASK, v, 3));
    PUT(__shfl_up_sync(FULL_MASK, v, 3, 8));
    PUT(__shfl_down_sync(FULL_MASK, v, 5));
    PUT(__shfl_down_sync(FULL_MASK, v, 5, 16));
    PUT(__shfl_xor_sync(FULL_MASK, v, 9));
    PUT(__shfl_xor_sync(FULL_MASK, v, 9, 8));
    PUT(__ballot_sync(FULL_MASK, v & 1));
    PUT(__any_sync(FULL_MASK, v == a.x[warp_id() * 32]));
    PUT(__all_sync(FULL_MASK, v < 1000));
    PUT(__reduce_add_sync(FULL_MASK, v));
    PUT(__reduce_min_sync(FULL_MASK, v));
    PUT(__reduce_max_sync(FULL_MASK, v));
    PUT(__reduce_min_sync(FULL_MASK, int(v)));
    PUT(__reduce_max_sync(FULL_MASK, int(v)));
    PUT(__reduce_and_sync(FULL_MASK, v));
    PUT(__reduce_or_sync(FULL_MASK, v));
    PUT(__reduce_xor_sync(FULL_MASK, v));
    PUT(__match_any_sync(FULL_MASK, v & 7));
    PUT(lane < 8 ? __shfl_sync(0xffu, v, 9) : 0u);  // lane 9 is not in the mask
    PUT(__syncthreads_count(v & 1));
    PUT(__syncthreads_or(v == 77));
    PUT(__syncthreads_and(v != 77));
    unsigned long long wide = (unsigned long long)v << 32 | ~v;
    PUT(__shfl_xor_sync(FULL_MASK, wide, 1) >> 32);
}
KERNEL(probe_warp_ops, Words)

__device__ void probe_bits_body(const Words& a) {
    unsigned row = 0;
    const unsigned v = a.x[threadIdx.x], u = a.x[threadIdx.x ^ 1];
    PUT(__popc(v));
    PUT(__clz(int(v)));
    PUT(__ffs(int(v)));
    PUT(__brev(v));
    PUT(__umulhi(v, u));
    PUT(__funnelshift_l(v, u, 7));
    PUT(__funnelshift_r(v, u, 7));
    PUT(__byte_perm(v, u, 0x7250));
    PUT(__float_as_uint(__uint_as_float(v)));
    PUT(__float2int_rn(float(int(v)) * 0.25f));
    PUT(__float2int_rz(float(int(v)) * 0.25f));
    PUT(__float2int_rd(float(int(v)) * 0.25f));
    PUT(__float2int_ru(float(int(v)) * 0.25f));
    PUT(__float2int_rn(float(int(v)) * 16.0f));  // saturates
    PUT(__float2uint_rn(float(int(v)) * 16.0f));
    PUT(min(v, u));
    PUT(max(int(v), int(u)));
}
KERNEL(probe_bits, Words)

struct Reals {
    const float* x;  // [threads]
    float* y;        // [rows, threads]
    unsigned count, pad;
};
__device__ void probe_math_body(const Reals& a) {
    unsigned row = 0;
    const float v = a.x[blockIdx.x * blockDim.x + threadIdx.x];
#define PUT_F(value) a.y[(size_t(gridDim.x) * row++ + blockIdx.x) * blockDim.x + threadIdx.x] = value
    PUT_F(warp_sum(v));
    PUT_F(warp_max(v));
    PUT_F(block_sum(v));
    PUT_F(block_max<4>(v));
    PUT_F(block_sum<4>(v * v));
    PUT_F(__expf(v));
    PUT_F(rsqrtf(fabsf(v) + 1.f));
    PUT_F(__fdividef(v, 3.f));
    PUT_F(__saturatef(v));
    PUT_F(erff(v));
    PUT_F(tanhf(v));
    PUT_F(exp2f(v));
    PUT_F(__logf(fabsf(v) + 1.f));
    PUT_F(__fadd_rn(__fmul_rn(v, v), v));
    PUT_F(__fmaf_rn(v, v, v));
}
KERNEL_BOUNDS(probe_math, Reals, 128)

struct Atomics {
    const unsigned* x;  // [threads of the grid]
    unsigned* n;        // [16]
    float* f;           // [4]
    unsigned long long* l;  // [2]
    unsigned short* h;  // [2]: bf16, f16
};
__device__ void probe_atomics_body(const Atomics& a) {
    const unsigned v = a.x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(&a.n[0], v);
    atomicSub(&a.n[1], v);
    atomicMin(&a.n[2], v);
    atomicMax(&a.n[3], v);
    atomicMin(reinterpret_cast<int*>(&a.n[4]), int(v));
    atomicMax(reinterpret_cast<int*>(&a.n[5]), int(v));
    atomicAnd(&a.n[6], v);
    atomicOr(&a.n[7], v);
    atomicXor(&a.n[8], v);
    atomicInc(&a.n[9], 6u);
    atomicDec(&a.n[10], 6u);
    atomicExch(&a.n[11], 42u);
    for (unsigned seen = 0, old = a.x[0]; seen != old;) {  // add by compare and swap
        seen = old;
        old = atomicCAS(&a.n[12], seen, seen + 3);
    }
    atomicAdd(&a.f[0], float(v & 15));
    atomicAdd(&a.l[0], (unsigned long long)v);
    atomicAdd(reinterpret_cast<bf16*>(&a.h[0]), from_f32<bf16>(0.5f));
    atomicAdd(reinterpret_cast<f16*>(&a.h[1]), from_f32<f16>(0.25f));
}
KERNEL(probe_atomics, Atomics)

struct Indices {
    unsigned* y;  // [blocks, threads, 12]
};
__device__ void probe_indices_body(const Indices& a) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned* y = a.y + 12 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    y[0] = blockIdx.x, y[1] = blockIdx.y, y[2] = blockIdx.z;
    y[3] = threadIdx.x, y[4] = threadIdx.y, y[5] = threadIdx.z;
    y[6] = gridDim.x, y[7] = gridDim.y, y[8] = gridDim.z;
    y[9] = blockDim.x, y[10] = blockDim.y, y[11] = blockDim.z;
}
KERNEL(probe_indices, Indices)

struct Copy {
    const float* x;
    float* y;
    unsigned stride, pad;
};
__device__ void probe_strided_body(const Copy& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = a.x[i * a.stride];  // MARK: strided load
    a.y[i] = v;                   // MARK: coalesced store
}
KERNEL(probe_strided, Copy)

__device__ void probe_vectors_body(const Copy& a) {
    const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    Vec<float, 4> v = load_vec<float, 4>(a.x + i);  // MARK: vector load
    store_vec(a.y + i, v);                          // MARK: vector store
}
KERNEL(probe_vectors, Copy)

struct Banks {
    float v[32 * 33];
};
__device__ void probe_banks_body(const Copy& a) {
    SMEM(Banks, tile);
    const unsigned lane = threadIdx.x;
    for (unsigned r = 0; r < 32; ++r) tile.v[r * a.stride + lane] = a.x[r * 32 + lane];  // MARK: row store
    __syncthreads();
    for (unsigned r = 0; r < 32; ++r) a.y[r * 32 + lane] = tile.v[lane * a.stride + r];  // MARK: column load
    __syncthreads();
    atomicAdd(&tile.v[lane / 8], 1.f);  // MARK: shared atomic
}
KERNEL(probe_banks, Copy)
