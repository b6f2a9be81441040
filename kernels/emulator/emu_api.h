// C interface of the emulator, called from Rust. Positions in messages are `kernels/<file>:<line>`.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EMU_ORDER_FORWARD = 0, EMU_ORDER_REVERSE = 1, EMU_ORDER_SHUFFLED = 2 };
enum { EMU_CHECKS_OFF = 0, EMU_CHECKS_ON = 1, EMU_CHECKS_TRAFFIC = 2 };

typedef struct EmuOptions {
    uint32_t order;         // in which order threads, warps and blocks run
    uint32_t checks;        // off: barriers and warp masks only; on: every access; traffic: counts transactions as well
    uint64_t seed;          // of the shuffled order
    uint32_t shared_limit;  // bytes of dynamic + static shared memory a block may have; 0: 232448
    uint32_t threads;       // operating system threads; 0: one per core
} EmuOptions;

typedef struct EmuKernel {
    const char* name;
    size_t args_bytes;
    uint32_t max_threads;  // launch bound; 1024 where the kernel states none
    void (*thunk)(const void* args);
} EmuKernel;

// Counts of one source line. A request is one instruction of one warp.
typedef struct EmuTrafficRow {
    const char* file;
    uint32_t line;
    uint32_t pad;
    uint64_t global_requests;
    uint64_t sectors;            // 32-byte sectors touched by the global requests
    uint64_t ideal_sectors;      // what the same bytes need when they are contiguous
    uint64_t shared_requests;
    uint64_t wavefronts;         // passes over the shared memory banks
    uint64_t ideal_wavefronts;   // the same without bank conflicts
} EmuTrafficRow;

// A tensor map, 128 bytes aligned to 64. Dimensions innermost first.
#define EMU_TENSOR_MAP 0x0ce105u
typedef struct EmuTensorMap {
    uint64_t address;
    uint32_t mark;           // EMU_TENSOR_MAP
    uint8_t rank;            // 2 to 4
    uint8_t element_bytes;
    uint8_t swizzle;         // bytes: 0, 32, 64, 128
    uint8_t pad;
    uint64_t sizes[4];
    uint64_t strides[3];     // bytes, of dimensions 1, 2, 3
    uint64_t box[4];
    uint64_t unused[3];
} EmuTensorMap;

typedef struct EmuTraffic EmuTraffic;  // rows of one launch

// The kernel of that name or null; `emu_kernel_at` enumerates all in name order, null behind the last.
const EmuKernel* emu_find(const char* name);
const EmuKernel* emu_kernel_at(size_t index);

// Runs a kernel to its end. `args` is the kernel's one argument struct. Returns 0, or 1 with a text in `err`.
int emu_launch(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t dynamic_smem,
               const void* args, size_t args_bytes, const EmuOptions* options, EmuTraffic* traffic_or_null, char* err,
               size_t err_len);

EmuTraffic* emu_traffic_new(void);
void emu_traffic_free(EmuTraffic* traffic);
// Row `index`, ordered by file and line; 0 behind the last. The strings live as long as `traffic`.
int emu_traffic_row(const EmuTraffic* traffic, size_t index, EmuTrafficRow* row);

// Device memory. A new buffer counts as uninitialised until a kernel or `emu_buffer_written` writes it.
// A launch checks its accesses against all buffers registered at that time. Thread-safe.
void emu_buffer_register(const void* memory, size_t bytes, const char* name);
void emu_buffer_unregister(const void* memory);
void emu_buffer_name(const void* memory, const char* name);
void emu_buffer_written(const void* memory, size_t offset, size_t bytes);

#ifdef __cplusplus
}
#endif
