// Records of what a block does asynchronously: mbarriers, bulk copies, products of warpgroups.
#pragma once
#include <deque>
#include <memory>

#include "emu_api.h"
#include "emu_internal.h"

namespace emu {

// Agents: warpgroup q's products are agent q, loads that complete on the i-th mbarrier agent 8 + i % 24.
constexpr int WARPGROUPS = MAX_WARPS / 4;
constexpr uint32_t ASYNC_READ = 1u << 16;  // in `under_way`

struct Mbarrier {
    uint32_t offset;  // in the arena
    int agent;
    uint32_t count, pending;
    int64_t bytes;    // announced and not yet there
    uint64_t phase;   // phases that are over
    uint64_t waited;  // of these, how many a wait has seen over
    uint64_t loaded;  // behind the last phase in which a load came
    void* load_pc;
    uint64_t init_stamp;
    const Lane* init_lane;
    uint32_t init_fences;
    void* init_pc;
    // Clocks released by arrivals so far, and by those of the phases that are over.
    uint32_t arrived[MAX_WARPS], arrived_agents[AGENTS];
    uint32_t over[MAX_WARPS], over_agents[AGENTS];
    uint32_t waiting[2][MAX_WARPS];  // lanes, by the parity they wait for
};

// A copy of a tensor's box, or of `bytes` contiguous bytes.
struct Bulk {
    uint8_t* shared;
    uint8_t* global;
    uint32_t bytes;
    bool tensor;
    EmuTensorMap map;
    int32_t at[4];  // innermost first
    void* pc;
};

struct Load {
    Bulk bulk;
    Mbarrier* barrier;
};

struct Store {
    Bulk bulk;
    uint32_t group;
    bool read;                   // shared memory; `values` wait to be written
    std::vector<uint8_t> values;  // as they lie in shared memory
};

struct Stores {
    std::vector<Store> open;
    uint32_t groups;
};

// Accumulators of a warp that products under way will write.
struct Accumulators {
    float* d[32];
    int registers;
    int users;
    std::vector<float> values;  // [32 lanes, registers]
};

// One wgmma of a warpgroup.
struct Product {
    emu_wgmma_form form;
    int registers;
    uint64_t tile_a, tile_b;
    Site site;
    void* pc;
    uint32_t issued, retired;  // warps
    bool done;
    uint32_t clock;
    emu_words4 a[4][32];
    std::shared_ptr<Accumulators> d[4];
    uint32_t group[4];  // each warp's
};

struct WarpProducts {
    uint64_t issued, retired;
    uint32_t groups;  // committed
    bool fenced;
};

struct Warpgroup {
    std::deque<Product> products;
    uint64_t first;  // number of the first of `products`
    WarpProducts warp[4];
    uint32_t waiting[4];  // lanes
};

struct Async {
    std::deque<Mbarrier> mbarriers;
    std::vector<Load> loads;
    Stores stores[MAX_THREADS];
    Warpgroup groups[WARPGROUPS];
    bool stored;     // some thread has open stores
    bool multiplied;  // some warp has products
};

Async& async_of(Worker& w);
inline uint32_t offset_of(const Worker& w, const void* address) {
    return uint32_t(reinterpret_cast<uintptr_t>(address) - w.arena);
}
// Address `x` of shared memory with its bits exchanged as a swizzle of that many bytes does it.
inline uint32_t swizzled(uint32_t x, uint32_t swizzle) { return swizzle ? x ^ (x >> 3 & (swizzle - 16)) : x; }
void mark_reading(Worker& w, const void* at, uint32_t bytes, bool begin);
// The mbarrier at this address, which the calling thread may use.
Mbarrier& mbarrier_at(Worker& w, const void* address, const char* what, void* pc);
void mbarrier_count(Worker& w, Mbarrier& barrier, uint32_t arrivals, int64_t bytes);
void end_products(Worker& w, Lane& lane);
std::string product_text(const Worker& w, size_t granule);

}  // namespace emu
