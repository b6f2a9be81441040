// The emulator's own records. Not seen by kernels.
//
// A worker is one operating system thread's worth of state: a mapping that holds the shared memory arena and the lane
// stacks, the records of the block it runs, and what the access checks remember. Workers are kept and reused.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu_api.h"
#include "emu_core.h"

namespace emu {

constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
constexpr int BARRIERS = 16;
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t ARENA_FIRST = 1024;  // shared address 0 is never valid
constexpr size_t SHARED_LIMIT = 232448;
constexpr size_t STATIC_LIMIT = 48 * 1024;
// Room for the largest block plus the gaps between static objects.
constexpr size_t ARENA_BYTES = ARENA_FIRST + SHARED_LIMIT + 64 * 1024;
constexpr size_t DYNAMIC_GAP = 4096;  // unowned bytes behind the dynamic memory ...
constexpr size_t STATIC_GAP = 64;     // ... and behind every static object
constexpr size_t COPY_BYTES = 16;         // of one asynchronous copy
constexpr uint64_t ACCESS_BUDGET = 1ull << 26;  // accesses of one thread between two synchronising calls
constexpr uint32_t IDLE_ROUNDS = 20000;         // rounds of nothing but __nanosleep

// A stamp orders accesses: worker (8 bits), warp clock (32), warp meetings (12), atomic or several-lanes mark (1), agent
// mark (1), thread in block (10). A warp's clock moves at block barriers, its meeting count at __syncwarp; both only grow,
// so what is remembered about a place never needs clearing. An overflowing meeting count carries into the clock.
// An agent does what threads have started: its accesses are ordered for a warp that has waited for them, and for no
// other, whatever barriers that passes. Its number stands in the place of the warp's.
constexpr int STAMP_WORKER = 56, STAMP_CLOCK = 24, STAMP_NOW = 12;
constexpr uint64_t STAMP_MARK = 1u << 11, STAMP_AGENT = 1u << 10;
constexpr uint64_t STAMP_THREAD = 0x3ff, STAMP_WARP = 0x7e0;
constexpr int AGENTS = 32;
constexpr uint64_t STAMP_MEETING = 1u << STAMP_NOW;
inline uint32_t stamp_clock(uint64_t stamp) { return uint32_t(stamp >> STAMP_CLOCK); }

enum Access { READ, WRITE, ATOMIC };

struct Site {
    const char* file;
    int line;
    bool same(const Site& other) const;
};

struct Warp;

// A warp operation. `run` computes every lane's `result` from the lanes' `value` and `argument`.
struct Operation {
    const char* name;
    void (*run)(Warp& warp, uint32_t mask);
    bool same_site;  // all lanes call it from one source line
    bool orders;     // memory accesses before it come before those after it: __syncwarp alone promises that
};

// A cp.async that has not been waited for.
struct Copy {
    uint8_t* to;
    const void* from;
    uint32_t bytes;
    uint32_t group;
    void* pc;
};

struct Lane {
    emu_lane_view view;  // first: `emu_current` points here
    void* sp;            // of the suspended fiber; null before the thread has started
    uint64_t value, result;
    int argument;
    // What it waits for, for reports.
    const char* waits_for;
    Site site;
    void* pc;
    bool did_atomic;  // a global atomic in this block
    std::vector<Copy> copies;
    uint32_t groups;  // of copies, committed
    uint32_t mbarrier;           // it waits for, offset in the arena; 0: none
    uint32_t fences, init_fences;  // fence_async and mbarrier_init_fence done
};

// Lanes that wait for the others of a mask. Indexed by the lowest lane of the mask: disjoint masks never clash.
struct Meeting {
    uint32_t mask, arrived;
    const Operation* operation;
    Site site;
    void* pc;
};

struct TrafficTable;
struct Async;

struct Warp {
    Lane* lanes;
    uint64_t stamp;  // of lane 0 of the warp
    uint32_t live;   // lanes that exist
    uint32_t ended;
    Meeting meetings[32];
    TrafficTable* traffic;
};

struct Barrier {
    uint32_t arrived;   // threads
    uint32_t expected;  // threads
    int count, all, any;
    int vote;
    Site site;
    void* pc;
    uint32_t waiting[MAX_WARPS];
    uint32_t release[MAX_WARPS];  // clock of the warp behind its last arrival, 0: did not take part
};

// What is remembered about a place in shared memory: its last writer and the last readers and atomic updaters, one of
// the warp seen last and one of another warp. A mark says several lanes of that warp did so.
struct alignas(64) Cell {
    uint64_t writer, reader[2], updater[2];
    uint32_t writer_pc, reader_pc[2], updater_pc[2];
    uint32_t split;  // block serial << 2 | 0: the cell stands for 4 bytes, 1: for 2, 2: for 1
};

struct StaticObject {
    const void* key;
    const char* name;
    size_t offset, bytes;
};

// Device memory. Records are recycled, never freed, so that a stale pointer to one stays readable.
struct Buffer {
    std::atomic<uintptr_t> begin{0};
    std::atomic<size_t> bytes{0};
    std::atomic<uint8_t*> initialised{nullptr};  // one byte per byte, 1: written; see `state`
    enum State : int { UNWRITTEN, PARTLY, WRITTEN };
    std::atomic<int> state{UNWRITTEN};
    // Stamps of the last writers, [bytes / 2] for pairs or even bytes, then [bytes / 2] for odd bytes.
    std::atomic<uint64_t*> stamps{nullptr};
    std::atomic<bool> byte_stamps{false};
    std::atomic<uint64_t> launch{0};  // last launch that wrote it
    size_t stamp_pairs = 0;
    std::string name;
};

struct Fault {
    bool set = false;
    uint64_t order = 0;  // place of the block in the schedule
    uint32_t block[3] = {}, thread[3] = {};
    bool has_thread = false;
    std::string where, cause;
};

struct TrafficCounts {
    uint64_t global_requests = 0, sectors = 0, ideal_sectors = 0;
    uint64_t shared_requests = 0, wavefronts = 0, ideal_wavefronts = 0;
    void add(const TrafficCounts& other);
};
typedef std::unordered_map<void*, TrafficCounts> TrafficMap;

struct Launch {
    const EmuKernel* kernel;
    const void* args;
    size_t args_bytes;
    uint32_t grid[3], block[3];
    uint32_t dynamic;
    EmuOptions options;
    uint64_t id;
    uint64_t blocks;
    uint64_t multiplier = 1, offset = 0;  // shuffled order of blocks
    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> failed_at{~0ull};
    // First stamp of every worker that takes part, and the first after it: other stamps belong to other launches. Later ones
    // too are met, where a launch beside this one has given back shadow memory that is used again here.
    std::atomic<uint64_t> start[256], end[256];
    std::mutex mutex;
    Fault fault;
    TrafficMap traffic;
    int helpers = 0;  // guarded by the pool
};

struct Worker {
    // Read by every access hook.
    uintptr_t arena;          // start of the mapping
    size_t mapping_bytes;
    uintptr_t dynamic_first;  // offset of the shared object accessed last ...
    size_t dynamic_bytes;     // ... and its size
    uint64_t stamp;           // of the running thread
    uint64_t floor;           // first stamp of the block
    uint64_t synchronised;    // stamps below are ordered before every access of the block
    uint64_t budget;
    Cell* words;  // [ARENA_BYTES / 4]; first or only cell of each 4 bytes
    Cell* halves;
    Cell* bytes;  // [2 * ARENA_BYTES / 4]
    Buffer* recent[64];
    bool counting;            // traffic

    Lane* current;
    void* main_sp;
    uint32_t id;
    uint32_t time;  // highest clock given out
    uint32_t serial;  // of the block

    Launch* launch;
    void (*thunk)(const void*);
    const void* args;
    uint32_t order;
    uint64_t random;
    uint32_t threads, warps;
    uint32_t ready_warps;
    uint32_t ready[MAX_WARPS];
    uint32_t yielded[MAX_WARPS];
    uint32_t ended;
    uint64_t progress;  // counts everything that is not __nanosleep
    bool block_atomic;  // the block has done a global atomic
    bool failed;
    bool partial;       // `seen` is in use
    uint32_t seen[MAX_WARPS][MAX_WARPS];
    Barrier barriers[BARRIERS];
    uint32_t static_bytes, static_objects;
    StaticObject objects[64];
    // Of each 16 bytes of shared memory: who will write them (low half: thread + 1 of a cp.async or one of Pending), and
    // how many asynchronous operations have still to read them (high half). `pending`: how many have an entry.
    uint32_t pending;
    uint32_t under_way[ARENA_BYTES / COPY_BYTES];
    uint32_t fenced[ARENA_BYTES / 4];  // fence_async that the last writer of a word had done before
    uint32_t agents_seen[MAX_WARPS][AGENTS];  // clocks of agents that a warp has waited for
    Async* async;  // mbarriers, bulk copies, wgmma; null until a kernel uses one

    uint32_t free_stacks;
    uint16_t free_stack[MAX_THREADS];
    uint32_t guarded_stacks;
    uint64_t block_order;
    Fault fault;
    TrafficMap traffic;

    emu_block_view block;
    uint32_t shape[3];  // block shape the lanes are laid out for
    alignas(64) unsigned char args_copy[4096];
    Warp warp[MAX_WARPS];
    Lane lanes[MAX_THREADS];
};

enum Pending : uint32_t { BULK_LOAD = 0xffff, MBARRIER = 0xfffe };

// emu.cpp
void suspend(Worker& w);
void make_ready(Worker& w, uint32_t warp, uint32_t lanes);
void wait_at(Lane* lane, const char* what, Site site, void* pc);
// Moves the calling thread's warp to a fresh clock and returns it: what the warp did so far is before it.
uint32_t release(Worker& w);
uint64_t draw(Worker& w);
void run_block(Worker& w);
void layout_block(Worker& w, const uint32_t shape[3]);
Worker* create_worker(uint32_t id);
Worker* self();
inline Warp& warp_of(Worker& w, const Lane* lane) { return w.warp[lane->view.linear / 32]; }
void meet(Worker& w, uint32_t mask, const Operation& operation, Site site, void* pc);
// Notes what went wrong, for a caller that ends the block itself.
void set_fault(Worker& w, const Lane* lane, std::string where, std::string cause);
// Ends the launch with a report. `where` is a position or a token of one, or empty.
[[noreturn]] void fail(Worker& w, std::string where, std::string cause);
[[noreturn]] void fail(Worker& w, void* pc, std::string cause);

// emu_check.cpp
void check_access(Worker& w, const void* address, uint32_t bytes, Access kind, void* pc);
// Shared memory, whole words: what an asynchronous operation that the calling thread starts now will read, fence_async
// of the writers included; and what an agent has done.
void check_async_read(Worker& w, const void* from, uint32_t bytes, void* pc);
void record_agent(Worker& w, const void* at, uint32_t bytes, Access kind, int agent, uint32_t clock, void* pc);
void check_shared_bounds(Worker& w, const void* at, uint32_t bytes, Access kind, void* pc);
bool is_ordered(const Worker& w, uint64_t earlier);
std::string thread_text(uint64_t stamp);
inline bool in_arena(const Worker& w, const void* address) {
    return reinterpret_cast<uintptr_t>(address) - w.arena < ARENA_BYTES;
}

// emu_tensor.cpp
void end_copies(Worker& w, Lane& lane);
void drop_copies(Worker& w);
std::string copy_text(const Worker& w, size_t granule);

// emu_bulk.cpp
bool finish_load(Worker& w);  // lets one bulk load happen; false: there is none
void end_async(Worker& w, Lane& lane);
void end_async_block(Worker& w);
void drop_async(Worker& w);
void check_under_way(Worker& w, size_t granule, size_t offset, size_t bytes, Access kind, void* pc);
// emu_mbarrier.cpp
std::string mbarrier_text(const Worker& w, uint32_t offset);

// emu_buffers.cpp
Buffer* find_buffer(uintptr_t address);
std::string describe_address(uintptr_t address, size_t bytes, const char* what);
uint64_t* ensure_stamps(Buffer& buffer);
uint8_t* ensure_initialised(Buffer& buffer);
void assume_written(const Launch& launch);

// emu_traffic.cpp
void traffic_record(Worker& w, const void* address, uint32_t bytes, Access kind, bool shared, void* pc);
void traffic_flush(Worker& w, Warp& warp);
void traffic_drop(Worker& w);

// emu_report.cpp
std::string position_token(void* pc);
// The compiler may share one call between source lines, so the site is right where both are known; but a site inside
// common.cuh says less than the line that called it, which the address leads to.
std::string position(Site site, void* pc);
std::string position_token(uint32_t pc_offset);
uint32_t pc_offset(void* pc);
std::string resolve_positions(const std::string& text);
struct Position {
    std::string file;
    uint32_t line;
};
std::vector<Position> resolve(const std::vector<void*>& pcs);
std::string short_path(const std::string& path);
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emu

// The calling thread's worker while it runs a kernel, null outside; the same with access checks on, null otherwise.
extern "C" __thread emu::Worker* emu_worker;
extern "C" __thread emu::Worker* emu_checked;
extern "C" __thread emu::Lane* emu_current;
