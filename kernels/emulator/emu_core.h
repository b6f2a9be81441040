// What kernels see of the emulator: the calling thread's indices and the out-of-line operations behind the CUDA names
// of emu.h. Every name starts with `emu`; kernels use none of them directly.
#pragma once
#include <cstddef>
#include <cstdint>

// Source position of the caller: defaulted parameters are filled in where the call stands.
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_SITE_PARAMETERS const char *file, int line

// emu.h consists of such functions only. An out-of-line copy made while compiling a kernel would carry access hooks,
// and the linker could hand it to other code.
#define EMU_INLINE static inline __attribute__((always_inline))
#define EMU_TEMPLATE_INLINE inline __attribute__((always_inline))
#define EMU_NO_HOOKS __attribute__((no_sanitize("thread"), noinline))
#if defined(__clang__)
#define EMU_FLATTEN
#else
#define EMU_FLATTEN __attribute__((flatten))
#endif

// What is the same for all threads of a block.
struct emu_block_view {
    uint32_t block[3];
    uint32_t block_dim[3];
    uint32_t grid_dim[3];
    uint32_t dynamic_bytes;
    unsigned char* dynamic;  // dynamic shared memory
};

// What one thread knows about itself; first member of the emulator's record of it.
struct emu_lane_view {
    uint32_t thread[3];
    uint32_t linear;  // thread number in the block, x fastest
    const emu_block_view* block;
};

#if defined(__x86_64__)
// These are plain register moves for the compiler: it may keep the result for the life of the thread (a block stays
// on one operating system thread and the values never change), and they carry no access hook.
EMU_INLINE const emu_lane_view* emu_self() {
    const emu_lane_view* lane;
    asm("movq emu_current@gottpoff(%%rip), %0\n\tmovq %%fs:(%0), %0" : "=r"(lane));
    return lane;
}
template <size_t OFFSET>
EMU_TEMPLATE_INLINE uint32_t emu_constant32(const void* record) {
    uint32_t value;
    asm("movl %c2(%1), %0" : "=r"(value) : "r"(record), "i"(OFFSET));
    return value;
}
template <size_t OFFSET>
EMU_TEMPLATE_INLINE uint64_t emu_constant64(const void* record) {
    uint64_t value;
    asm("movq %c2(%1), %0" : "=r"(value) : "r"(record), "i"(OFFSET));
    return value;
}
#else
#error "the emulator's fibers are written for x86-64 hosts"
#endif

EMU_INLINE const emu_block_view* emu_block() {
    return reinterpret_cast<const emu_block_view*>(emu_constant64<offsetof(emu_lane_view, block)>(emu_self()));
}
EMU_INLINE unsigned char* emu_dynamic_shared() {
    return reinterpret_cast<unsigned char*>(emu_constant64<offsetof(emu_block_view, dynamic)>(emu_block()));
}

enum emu_shfl_kind { EMU_SHFL_IDX, EMU_SHFL_UP, EMU_SHFL_DOWN, EMU_SHFL_XOR };
enum emu_vote_kind { EMU_VOTE_BALLOT, EMU_VOTE_ANY, EMU_VOTE_ALL };
enum emu_reduce_kind {
    EMU_REDUCE_ADD,
    EMU_REDUCE_MIN_S,
    EMU_REDUCE_MIN_U,
    EMU_REDUCE_MAX_S,
    EMU_REDUCE_MAX_U,
    EMU_REDUCE_AND,
    EMU_REDUCE_OR,
    EMU_REDUCE_XOR
};
enum emu_block_vote_kind { EMU_BLOCK_NONE, EMU_BLOCK_COUNT, EMU_BLOCK_AND, EMU_BLOCK_OR };
enum emu_atomic_kind {
    EMU_ATOMIC_ADD,
    EMU_ATOMIC_MIN_S,
    EMU_ATOMIC_MIN_U,
    EMU_ATOMIC_MAX_S,
    EMU_ATOMIC_MAX_U,
    EMU_ATOMIC_AND,
    EMU_ATOMIC_OR,
    EMU_ATOMIC_XOR,
    EMU_ATOMIC_EXCH,
    EMU_ATOMIC_CAS,
    EMU_ATOMIC_INC,
    EMU_ATOMIC_DEC,
    EMU_ATOMIC_ADD_F,  // f32 in 32 bits, f64 in 64 bits
    EMU_ATOMIC_ADD_BF16,
    EMU_ATOMIC_ADD_F16
};

enum emu_mma_kind { EMU_MMA_BF16, EMU_MMA_F16 };

// Operands that travel in registers, so that handing them over costs no access hook.
struct emu_words4 {
    uint32_t v[4];
};
struct emu_floats4 {
    float v[4];
};

// What a wgmma computes besides its shape; the kind is an emu_mma_kind, a major one of ptx_sm90.cuh.
struct emu_wgmma_form {
    int kind;
    bool accumulate;
    bool a_in_registers;
    int major_a, major_b;
};

typedef void (*emu_thunk)(const void* args);

extern "C" {
// Block barriers. `emu_barrier` is the named form (bar.sync / bar.arrive); `threads` counts those that take part.
int emu_syncthreads(int vote, int predicate, EMU_SITE_PARAMETERS);
void emu_barrier(int id, int threads, bool wait, EMU_SITE_PARAMETERS);

// Warp operations. The lanes in `mask` meet; the last to arrive computes the result of all.
void emu_syncwarp(uint32_t mask, EMU_SITE_PARAMETERS);
uint64_t emu_shfl(uint32_t mask, uint64_t value, int argument, int kind_and_width, EMU_SITE_PARAMETERS);
uint32_t emu_vote(uint32_t mask, int kind, int predicate, EMU_SITE_PARAMETERS);
uint32_t emu_reduce(uint32_t mask, int kind, uint32_t value, EMU_SITE_PARAMETERS);
uint32_t emu_match(uint32_t mask, int all, uint64_t value, EMU_SITE_PARAMETERS);
float emu_warp_sum(float value, EMU_SITE_PARAMETERS);  // the xor butterfly 16, 8, 4, 2, 1 over the whole warp
float emu_warp_max(float value, EMU_SITE_PARAMETERS);

// Matrix operations of a whole warp (ptx.cuh says what they compute).
emu_floats4 emu_mma(int kind, emu_words4 a, uint64_t b, emu_floats4 c, EMU_SITE_PARAMETERS);
emu_words4 emu_ldmatrix(const void* row, int matrices, bool transposed, EMU_SITE_PARAMETERS);
void emu_stmatrix(void* row, emu_words4 x, int matrices, bool transposed, EMU_SITE_PARAMETERS);

// Asynchronous copies of 16 bytes from global to shared memory: `bytes` are read, the rest becomes zero. They happen
// when the calling thread waits for their group, not earlier; until then the destination is poison.
void emu_cp_async(void* to, const void* from, int bytes);
void emu_cp_async_commit();
void emu_cp_async_wait(int groups);  // all but the last `groups` committed groups

// mbarriers live in a table of the emulator; their bytes in shared memory are only a name.
void emu_mbarrier_init(void* barrier, int count);
void emu_mbarrier_init_fence();
void emu_mbarrier_arrive(void* barrier, int bytes);  // `bytes`: announced
void emu_mbarrier_wait(void* barrier, int parity);

// Bulk copies. A load happens when no thread can run (in the shuffled order at a random time before), a store when the
// calling thread waits for its group.
void emu_fence_async();
void emu_bulk_load(void* to, const void* from, int bytes, void* barrier);
void emu_bulk_store(void* to, const void* from, int bytes);
void emu_tensor_load(void* to, const void* map, const int* at, int rank, void* barrier);
void emu_tensor_store(const void* map, const int* at, int rank, const void* from);
void emu_bulk_commit();
void emu_bulk_wait(int groups, bool read);  // all but the last `groups`; `read`: only until they have read

// Products of a warpgroup: computed when the first of its warps waits for them, NaN in `d` until its own warp has.
uint32_t emu_shared_offset(const void* address);
void emu_wgmma(float* d, int registers, emu_wgmma_form form, emu_words4 a, uint64_t tile_a, uint64_t tile_b,
               EMU_SITE_PARAMETERS);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(int groups);

// Atomics return the old value; `other` is the value compared with (cas).
uint16_t emu_atomic16(int kind, void* address, uint16_t value, uint16_t other);
uint32_t emu_atomic32(int kind, void* address, uint32_t value, uint32_t other);
uint64_t emu_atomic64(int kind, void* address, uint64_t value, uint64_t other);

void emu_fence();
void emu_nanosleep();  // lets the other threads of the block run

// Static shared memory: one place per `key` and block.
void* emu_static_shared(const void* key, size_t bytes, size_t align, const char* name, EMU_SITE_PARAMETERS);

// These end the launch with a report and do not return.
[[noreturn]] void emu_misaligned(const void* address, int bytes);
[[noreturn]] void emu_trap(const char* what, EMU_SITE_PARAMETERS);

void emu_register_kernel(const char* name, size_t args_bytes, uint32_t max_threads, emu_thunk thunk);
}

EMU_INLINE void emu_check_aligned(const void* address, int bytes) {
    if (reinterpret_cast<uintptr_t>(address) & uintptr_t(bytes - 1)) emu_misaligned(address, bytes);
}
