// Deliberate faults, one per kernel or variant, for tests/emulator/faults.rs. A line that must appear in the report carries
// the mark `FAULT: name`; the legal variants beside them must pass.
#include "ptx.cuh"

struct Probe {
    const float* x;   // [count]
    float* y;         // [count]
    unsigned* n;      // [count]
    unsigned count;
    unsigned variant;  // 0: correct
};

struct Tile {
    float v[128];
};

// Two rounds through one tile. 1: no barrier between write and read, 2: none before the tile is overwritten.
__device__ void probe_barrier_body(const Probe& a) {
    SMEM(Tile, tile);
    const unsigned t = threadIdx.x;
    float sum = 0.f;
    for (int round = 0; round < 2; ++round) {
        tile.v[t] = a.x[t] + round;  // FAULT: overwritten
        if (a.variant != 1) __syncthreads();
        sum += tile.v[127 - t];  // FAULT: unordered read
        if (a.variant != 2) __syncthreads();
    }
    a.y[t] = sum;
}
KERNEL(probe_barrier, Probe)

// Only thread 0 uses the reads of others' values: 1: without the barrier.
__device__ void probe_single_reader_body(const Probe& a) {
    SMEM(Tile, tile);
    const unsigned t = threadIdx.x;
    tile.v[t] = 0.f;
    __syncthreads();
    tile.v[t] = a.x[t];  // FAULT: late write
    if (a.variant == 0) __syncthreads();
    if (t == 64) a.y[0] = tile.v[3] + tile.v[100];  // FAULT: single reader
}
KERNEL(probe_single_reader, Probe)

__device__ void probe_divergent_barrier_body(const Probe& a) {
    if (threadIdx.x < 64) {
        __syncthreads();  // FAULT: first barrier
    } else {
        __syncthreads();  // FAULT: second barrier
    }
    a.y[threadIdx.x] = 0.f;
}
KERNEL(probe_divergent_barrier, Probe)

__device__ void probe_conditional_barrier_body(const Probe& a) {
    if (a.x[threadIdx.x] > 0.f) __syncthreads();  // FAULT: conditional barrier
    a.y[threadIdx.x] = 0.f;
}
KERNEL(probe_conditional_barrier, Probe)

__device__ void probe_early_exit_body(const Probe& a) {
    if (threadIdx.x == 5) return;
    __syncthreads();  // FAULT: barrier without thread 5
    a.y[threadIdx.x] = 0.f;
}
KERNEL(probe_early_exit, Probe)

// 1: half of the warp shuffles elsewhere, 2: the mask leaves callers out, 3: the mask names a lane that has ended,
// 4: half of the warp waits at the block barrier, 5: two different masks.
__device__ void probe_shuffle_body(const Probe& a) {
    const int lane = lane_id();
    float v = a.x[threadIdx.x];
    if (a.variant == 0) {
        if (lane < 16) v = __shfl_xor_sync(0x0000ffffu, v, 1);
        else v = __shfl_xor_sync(0xffff0000u, v, 1);
    } else if (a.variant == 1) {
        if (lane < 16) v = __shfl_xor_sync(FULL_MASK, v, 1);  // FAULT: shuffle one
        else v = __shfl_xor_sync(FULL_MASK, v, 1);            // FAULT: shuffle two
    } else if (a.variant == 2) {
        v = __shfl_xor_sync(0x0000ffffu, v, 1);  // FAULT: mask without caller
    } else if (a.variant == 3) {
        if (lane == 7) return;
        v = __shfl_xor_sync(FULL_MASK, v, 1);  // FAULT: mask with ended lane
    } else if (a.variant == 4) {
        if (lane < 16) v = __shfl_xor_sync(FULL_MASK, v, 1);  // FAULT: waiting shuffle
        else __syncthreads();                                 // FAULT: waiting barrier
    } else {
        v = __shfl_xor_sync(lane < 16 ? 0x7fffffffu : FULL_MASK, v, 1);  // FAULT: two masks
    }
    a.y[threadIdx.x] = v;
}
KERNEL(probe_shuffle, Probe)

// 1: read past the end, 2: write past the end, 3: read before the start, 4: an address of nobody.
__device__ void probe_global_bounds_body(const Probe& a) {
    const unsigned t = threadIdx.x;
    if (t >= a.count) return;
    float v = a.x[t];
    if (a.variant == 1) v = a.x[t + 1];                        // FAULT: read past the end
    if (a.variant == 2 && t == a.count - 1) a.y[t + 1] = v;    // FAULT: write past the end
    if (a.variant == 3) v = a.x[int(t) - 1];                   // FAULT: read before the start
    if (a.variant == 4) v = *reinterpret_cast<const float*>(uintptr_t(a.count));  // FAULT: wild read
    a.y[t] = v;
}
KERNEL(probe_global_bounds, Probe)

struct Small {
    float v[8];
};

// 1: past a static object, 2: past the dynamic memory, 3: before it.
__device__ void probe_shared_bounds_body(const Probe& a) {
    SMEM(Small, small);
    DYN_SMEM(raw);
    float* dynamic = reinterpret_cast<float*>(raw);
    float* fixed = small.v;
    const unsigned t = threadIdx.x;
    dynamic[t] = 1.f;
    if (t < 8) fixed[t] = 1.f;
    if (a.variant == 1 && t == 8) fixed[t] = 1.f;               // FAULT: past the static object
    if (a.variant == 2) dynamic[t + a.count] = 1.f;             // FAULT: past the dynamic memory
    if (a.variant == 3) dynamic[-1 - int(t)] = 1.f;             // FAULT: before the dynamic memory
    a.y[t] = dynamic[t];
}
KERNEL(probe_shared_bounds, Probe)

// 1: shared, 2: dynamic shared, 3: global, half of which the host has written.
__device__ void probe_uninitialised_body(const Probe& a) {
    SMEM(Tile, tile);
    DYN_SMEM(raw);
    const unsigned t = threadIdx.x;
    float v = 0.f;
    if (t < 100) tile.v[t] = 0.f;
    __syncthreads();
    if (a.variant == 0) v = tile.v[t < 100 ? t : 0];
    if (a.variant == 1) v = tile.v[t];                                // FAULT: unwritten shared
    if (a.variant == 2) v = reinterpret_cast<float*>(raw)[t];         // FAULT: unwritten dynamic
    if (a.variant == 3) v = a.x[t];                                   // FAULT: unwritten global
    a.y[t] = v;
}
KERNEL(probe_uninitialised, Probe)

__device__ void probe_misaligned_body(const Probe& a) {
    const unsigned t = threadIdx.x * 4 + a.variant;
    if (t + 4 > a.count) return;
    store_vec(a.y + t, load_vec<float, 4>(a.x + t));  // FAULT: misaligned vector
}
KERNEL(probe_misaligned, Probe)

// 1: blocks write one element, 2: a block reads what another wrote.
__device__ void probe_blocks_body(const Probe& a) {
    if (threadIdx.x != 0) return;
    if (a.variant == 0) a.y[blockIdx.x] = 1.f;
    if (a.variant == 1) a.y[0] = 1.f;  // FAULT: two blocks write
    if (a.variant == 2) {
        a.y[blockIdx.x] = 1.f;                                       // FAULT: block writes
        if (a.y[gridDim.x - 1 - blockIdx.x] > 0.f) a.n[blockIdx.x] = 1;  // FAULT: another block reads
    }
}
KERNEL(probe_blocks, Probe)

// A neighbour's global value within the block: 0: barrier, 1: none, 2: the whole block writes one element.
__device__ void probe_block_global_body(const Probe& a) {
    const unsigned t = threadIdx.x;
    a.y[a.variant == 2 ? 0 : t] = a.x[t];  // FAULT: block writes global
    if (a.variant != 1) __syncthreads();
    if (a.variant != 2) a.n[t] = a.y[blockDim.x - 1 - t] > 0.f;  // FAULT: block reads global
}
KERNEL(probe_block_global, Probe)

// 1: without __syncwarp.
__device__ void probe_syncwarp_body(const Probe& a) {
    SMEM(Tile, tile);
    const unsigned t = threadIdx.x;
    float v = a.x[t];
    for (int round = 0; round < 2; ++round) {
        tile.v[t] = v;  // FAULT: warp overwrites
        if (a.variant == 0) __syncwarp();
        v += tile.v[t ^ 1];  // FAULT: warp reads
        if (a.variant == 0) __syncwarp();
    }
    a.y[t] = v;
}
KERNEL(probe_syncwarp, Probe)

// One lane's result for the warp: 1: read without __syncwarp.
__device__ void probe_warp_broadcast_body(const Probe& a) {
    SMEM(Tile, tile);
    tile.v[threadIdx.x] = 0.f;
    __syncthreads();
    if (lane_id() == 17) tile.v[warp_id()] = a.x[threadIdx.x];  // FAULT: broadcast write
    if (a.variant == 0) __syncwarp();
    a.y[threadIdx.x] = tile.v[warp_id()];  // FAULT: broadcast read
}
KERNEL(probe_warp_broadcast, Probe)

// What brings a warp together without ordering its memory: between a write and another lane's read 1: a shuffle, 2: a vote,
// 3: a sum; 4: between ldmatrix and a write to a row that it read for other lanes.
struct alignas(16) MatrixRows {
    float v[8][4];
};
__device__ void probe_warp_order_body(const Probe& a) {
    SMEM(MatrixRows, rows);
    const int lane = lane_id();
    float v = a.x[threadIdx.x];
    rows.v[lane / 4][lane % 4] = v;  // FAULT: write before a warp operation
    if (a.variant == 0 || a.variant == 4) __syncwarp();
    if (a.variant == 1) v = __shfl_xor_sync(FULL_MASK, v, 1);
    if (a.variant == 2) v += __any_sync(FULL_MASK, v > 0.f);
    if (a.variant == 3) v = warp_sum(v);
    if (a.variant < 4) v += rows.v[lane / 4][lane % 4 ^ 1];  // FAULT: read behind a warp operation
    unsigned fragment[1] = {0};
    if (a.variant == 0 || a.variant == 4) ldmatrix<1>(fragment, shared_address(&rows.v[lane % 8][0]));  // FAULT: matrix
    if (a.variant == 0) __syncwarp();
    if (a.variant == 0 || a.variant == 4) rows.v[lane / 4][lane % 4] = v;  // FAULT: write behind ldmatrix
    a.y[threadIdx.x] = v + float(fragment[0] & 1);
}
KERNEL(probe_warp_order, Probe)

// 1: with __nanosleep, 2: without.
__device__ void probe_spin_body(const Probe& a) {
    volatile unsigned* flag = a.n;
    if (a.variant == 1)
        while (flag[0] == 0) __nanosleep(100);  // FAULT: endless wait
    if (a.variant == 2)
        while (flag[0] == 0) {  // FAULT: endless loop
        }
    a.y[threadIdx.x] = 0.f;
}
KERNEL(probe_spin, Probe)

struct Large {
    float v[12 * 1024 + 1];
};
__device__ void probe_static_size_body(const Probe& a) {
    SMEM(Large, large);  // FAULT: static size
    large.v[threadIdx.x] = 1.f;
    a.y[threadIdx.x] = large.v[threadIdx.x];
}
KERNEL(probe_static_size, Probe)

// Sums through shared atomics: 1: read without a barrier, 2: cleared without one.
__device__ void probe_shared_atomic_body(const Probe& a) {
    SMEM(Tile, tile);
    if (threadIdx.x < 2) tile.v[threadIdx.x] = 0.f;  // FAULT: clear
    if (a.variant != 2) __syncthreads();
    atomicAdd(&tile.v[warp_id() & 1], a.x[threadIdx.x]);  // FAULT: update
    if (a.variant != 1) __syncthreads();
    if (threadIdx.x == 127) a.y[0] = tile.v[0] + tile.v[1];  // FAULT: read of sums
}
KERNEL(probe_shared_atomic, Probe)

// The last block to finish adds up what all wrote: legal.
__device__ void probe_last_block_body(const Probe& a) {
    SMEM(unsigned, last);
    float sum = block_sum(a.x[threadIdx.x]);
    if (threadIdx.x == 0) {
        a.y[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(&a.n[0], 1u) + 1 == gridDim.x;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    float part = threadIdx.x < gridDim.x ? a.y[threadIdx.x] : 0.f;
    float total = block_sum(part);
    if (threadIdx.x == 0) a.y[gridDim.x] = total;
}
KERNEL(probe_last_block, Probe)

// Warp 0 fills a tile, warps 1 and 2 read it: 0: named barriers, 1: the readers do not wait, 2: the producer overwrites
// too early, 3: a wrong count.
__device__ void probe_named_barrier_body(const Probe& a) {
    SMEM(Tile, tile);
    const int count = a.variant == 3 ? 128 : 96;
    if (warp_id() == 0) {
        for (int round = 0; round < 3; ++round) {
            tile.v[lane_id()] = a.x[lane_id()] + round;  // FAULT: producer
            named_barrier_arrive(1, count);
            if (a.variant != 2) named_barrier_sync(2, 96);
        }
    } else if (warp_id() < 3) {
        float sum = 0.f;
        for (int round = 0; round < 3; ++round) {
            if (a.variant == 1) named_barrier_arrive(1, count);
            else named_barrier_sync(1, count);
            sum += tile.v[lane_id() ^ 5];  // FAULT: consumer
            if (a.variant != 2) named_barrier_arrive(2, 96);
        }
        a.y[threadIdx.x] = sum;
    }
}
KERNEL(probe_named_barrier, Probe)

// 1: index past a local array, 2: a shift by the width.
__device__ void probe_language_body(const Probe& a) {
    float local[4] = {a.x[0], a.x[1], a.x[2], a.x[3]};
    unsigned i = a.variant == 1 ? a.n[0] : a.n[0] & 3;
    float v = local[i];                                        // FAULT: local index
    int shifted = a.variant == 2 ? 1 << int(a.n[0] + 28) : 0;  // FAULT: shift
    a.y[threadIdx.x] = v + float(shifted);
}
KERNEL(probe_language, Probe)

__device__ void probe_bounded_body(const Probe& a) { a.y[threadIdx.x] = 0.f; }
KERNEL_BOUNDS(probe_bounded, Probe, 64)

// Neighbouring bytes and halves written by different lanes and blocks: legal.
__device__ void probe_narrow_body(const Probe& a) {
    SMEM(Tile, tile);
    unsigned char* shared = reinterpret_cast<unsigned char*>(&tile);
    unsigned char* y = reinterpret_cast<unsigned char*>(a.y);
    unsigned short* n = reinterpret_cast<unsigned short*>(a.n);
    const unsigned t = threadIdx.x;
    shared[t] = (unsigned char)t;
    n[blockIdx.x + 2 * t] = (unsigned short)t;
    __syncthreads();
    y[blockIdx.x + 2 * t] = shared[t ^ 1];
}
KERNEL(probe_narrow, Probe)

struct alignas(16) ProductTiles {
    bf16 a[16][8 + 8];
    bf16 b[8][8 + 8];
};

// y [16, 8] = x [16, 16] · b [8, 16]ᵀ by two warps (both compute all of it), x and b in `n` as bf16. 1: no wait, 2: a
// group too few, 3: no barrier behind the wait, 4: a thread leaves with a copy under way, 5: overwritten without a
// barrier, 6: a row that is not aligned, 7: half of a warp elsewhere; with wrong results only, 8: the columns of a
// fragment swapped, 9: b not in the order of its fragment.
__device__ void probe_product_body(const Probe& a) {
    SMEM(ProductTiles, tiles);
    const int lane = lane_id(), row = int(threadIdx.x) / 2, part = int(threadIdx.x) % 2 * 8;
    const bf16* x = reinterpret_cast<const bf16*>(a.n);
    if (row < 24) {  // thread pairs copy rows of a, then of b
        bf16* to = row < 16 ? tiles.a[row] : tiles.b[row - 16];
        cp_async_16(to + part, x + 16 * row + part);  // FAULT: copy
    }
    cp_async_commit();
    if (a.variant == 2) cp_async_wait<1>();
    if (a.variant != 1 && a.variant != 2 && a.variant != 4) cp_async_wait<0>();
    if (a.variant != 3) __syncthreads();
    if (a.variant == 4) return;
    unsigned fragment[4], columns[2];
    const int half = a.variant == 8 ? 1 - lane / 16 : lane / 16;
    const bf16* from = &tiles.a[lane % 16][8 * half];
    if (a.variant == 6) from += 1;
    if (a.variant != 7 || lane < 16) ldmatrix<4>(fragment, shared_address(from));  // FAULT: fragment
    else ldmatrix<4>(fragment, shared_address(from));                              // FAULT: other fragment
    ldmatrix<2>(columns, shared_address(&tiles.b[lane % 8][8 * (lane / 8 % 2)]));  // FAULT: columns
    float d[4] = {};
    if (a.variant == 9) mma_16x8x16<bf16>(d, fragment, columns[1], columns[0]);
    else mma_16x8x16<bf16>(d, fragment, columns[0], columns[1]);
    if (a.variant != 5) __syncthreads();
    if (row < 24) {
        bf16* to = row < 16 ? tiles.a[row] : tiles.b[row - 16];
        cp_async_16(to + part, x + 16 * row + part);  // FAULT: second copy
    }
    cp_async_commit();
    cp_async_wait<0>();
    UNROLL
    for (int i = 0; i < 4; ++i)
        if (warp_id() == 0) a.y[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}
KERNEL_BOUNDS(probe_product, Probe, 64)
