// Bulk copies (TMA): contiguous ones and boxes of tensors, loads that complete on mbarriers and stores in groups. Also
// what all asynchronous operations share: the table of what is under way, and what must be over when a block ends.
#include <algorithm>
#include <cstring>

#include "emu_async.h"

namespace emu {

namespace {

// f(offset in shared memory's image, address in global memory, bytes before, bytes inside, bytes in all) for each row
// of the box: only the middle part lies in the tensor.
template <class F>
void each_row(const Bulk& bulk, F f) {
    if (!bulk.tensor) return f(0u, bulk.global, 0u, bulk.bytes, bulk.bytes);
    const EmuTensorMap& map = bulk.map;
    int64_t size = map.element_bytes;
    uint32_t row_bytes = uint32_t(map.box[0] * map.element_bytes), rows = bulk.bytes / row_bytes;
    int64_t from = std::clamp<int64_t>(-int64_t(bulk.at[0]), 0, int64_t(map.box[0]));
    int64_t to = std::clamp<int64_t>(int64_t(map.sizes[0]) - bulk.at[0], from, int64_t(map.box[0]));
    for (uint32_t row = 0; row < rows; ++row) {
        uint64_t rest = row;
        bool inside = true;
        int64_t place = int64_t(map.address) + (bulk.at[0] + from) * size;
        for (int i = 1; i < map.rank; ++i) {
            int64_t index = int64_t(bulk.at[i]) + int64_t(rest % map.box[i]);
            rest /= map.box[i];
            inside = inside && index >= 0 && index < int64_t(map.sizes[i]);
            place += index * int64_t(map.strides[i - 1]);
        }
        f(row * row_bytes, reinterpret_cast<uint8_t*>(place), uint32_t(from * size),
          inside ? uint32_t((to - from) * size) : 0u, row_bytes);
    }
}

// Where byte `at` of the box lies in shared memory; 16 bytes stay together.
uint8_t* place(const Worker& w, const Bulk& bulk, uint32_t at) {
    uint32_t offset = offset_of(w, bulk.shared) + at;
    return reinterpret_cast<uint8_t*>(w.arena) + swizzled(offset, bulk.tensor ? bulk.map.swizzle : 0);
}

void check_global(Worker& w, const Bulk& bulk, Access kind) {
    if (!emu_checked) return;
    bool counting = w.counting;
    w.counting = false;  // not requests of a warp
    each_row(bulk, [&](uint32_t, uint8_t* global, uint32_t, uint32_t inside, uint32_t) {
        if (inside) check_access(w, global, inside, kind, bulk.pc);
    });
    w.counting = counting;
}

void check_alignment(Worker& w, const void* address, uint32_t to, const char* what, void* pc) {
    if (reinterpret_cast<uintptr_t>(address) % to)
        fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(address), 0, what) +
                        format(" is not aligned to %u", to));
}

Bulk contiguous(Worker& w, const void* shared, const void* global, int bytes, void* pc) {
    if (!in_arena(w, shared)) fail(w, pc, "bulk copy with an address that is not in shared memory");
    check_alignment(w, shared, 16, "bulk copy", pc);
    check_alignment(w, global, 16, "bulk copy", pc);
    if (bytes <= 0 || bytes % 16) fail(w, pc, format("bulk copy of %d bytes, expected a multiple of 16", bytes));
    Bulk bulk = {};
    bulk.shared = static_cast<uint8_t*>(const_cast<void*>(shared));
    bulk.global = static_cast<uint8_t*>(const_cast<void*>(global));
    bulk.bytes = uint32_t(bytes);
    bulk.pc = pc;
    return bulk;
}

Bulk box(Worker& w, const void* shared, const void* map, const int* at, int rank, void* pc) {
    Bulk bulk = {};
    check_alignment(w, map, 64, "tensor map", pc);
    std::memcpy(&bulk.map, map, sizeof bulk.map);
    if (bulk.map.mark != EMU_TENSOR_MAP) fail(w, pc, "bulk copy through something that is no tensor map of this device");
    if (bulk.map.rank != rank)
        fail(w, pc, format("a tensor map of %d dimensions, expected %d", int(bulk.map.rank), rank));
    if (!in_arena(w, shared)) fail(w, pc, "bulk copy with an address that is not in shared memory");
    check_alignment(w, shared, 128, "bulk copy", pc);
    bulk.shared = static_cast<uint8_t*>(const_cast<void*>(shared));
    bulk.bytes = bulk.map.element_bytes;
    for (int i = 0; i < rank; ++i) {
        bulk.bytes *= uint32_t(bulk.map.box[i]);
        bulk.at[i] = at[rank - 1 - i];
    }
    bulk.tensor = true;
    bulk.pc = pc;
    return bulk;
}

void start_load(Worker& w, const Bulk& bulk, void* address) {
    Async& async = async_of(w);
    Mbarrier& barrier = mbarrier_at(w, address, "bulk copy", bulk.pc);
    if (barrier.init_lane->init_fences == barrier.init_fences)
        fail(w, bulk.pc, "missing mbarrier_init_fence: bulk copies do not know the mbarrier that " +
                             thread_text(barrier.init_stamp) + " initialised at " + position_token(barrier.init_pc));
    check_global(w, bulk, READ);
    check_shared_bounds(w, bulk.shared, bulk.bytes, WRITE, bulk.pc);
    if (emu_checked) {
        bool counting = w.counting;
        w.counting = false;
        check_access(w, bulk.shared, bulk.bytes, WRITE, bulk.pc);
        w.counting = counting;
    }
    std::memset(bulk.shared, 0xff, bulk.bytes);
    uint32_t first = offset_of(w, bulk.shared) / COPY_BYTES;
    for (uint32_t i = 0; i < bulk.bytes / COPY_BYTES; ++i) w.under_way[first + i] |= BULK_LOAD;
    ++w.pending;
    async.loads.push_back({bulk, &barrier});
}

void start_store(Worker& w, const Bulk& bulk) {
    Async& async = async_of(w);
    check_shared_bounds(w, bulk.shared, bulk.bytes, READ, bulk.pc);
    if (emu_checked) check_async_read(w, bulk.shared, bulk.bytes, bulk.pc);
    mark_reading(w, bulk.shared, bulk.bytes, true);
    ++w.pending;
    Stores& mine = async.stores[w.current->view.linear];
    mine.open.push_back({bulk, mine.groups, false, {}});
    async.stored = true;
}

void read_source(Worker& w, Store& store) {
    const Bulk& bulk = store.bulk;
    mark_reading(w, bulk.shared, bulk.bytes, false);
    --w.pending;
    if (emu_checked) {
        bool counting = w.counting;
        w.counting = false;
        check_access(w, bulk.shared, bulk.bytes, READ, bulk.pc);
        w.counting = counting;
    }
    store.values.resize(bulk.bytes);
    for (uint32_t i = 0; i < bulk.bytes; i += 16) std::memcpy(&store.values[i], place(w, bulk, i), 16);
    store.read = true;
}

void write_target(Worker& w, const Store& store) {
    check_global(w, store.bulk, WRITE);
    each_row(store.bulk, [&](uint32_t at, uint8_t* global, uint32_t before, uint32_t inside, uint32_t) {
        std::memcpy(global, &store.values[at] + before, inside);
    });
}

}  // namespace

void mark_reading(Worker& w, const void* at, uint32_t bytes, bool begin) {
    uint32_t first = offset_of(w, at) / COPY_BYTES;
    for (uint32_t i = 0; i < bytes / COPY_BYTES; ++i)
        w.under_way[first + i] += begin ? ASYNC_READ : 0u - ASYNC_READ;
}

bool finish_load(Worker& w) {
    Async& async = *w.async;
    if (async.loads.empty()) return false;
    size_t count = async.loads.size(), pick = 0;
    if (w.order == EMU_ORDER_REVERSE) pick = count - 1;
    if (w.order == EMU_ORDER_SHUFFLED) pick = draw(w) % count;
    Load load = async.loads[pick];
    async.loads.erase(async.loads.begin() + long(pick));
    const Bulk& bulk = load.bulk;
    each_row(bulk, [&](uint32_t at, const uint8_t* global, uint32_t before, uint32_t inside, uint32_t bytes) {
        for (uint32_t i = 0; i < bytes; i += 16) {
            uint8_t chunk[16] = {};
            uint32_t first = std::max(i, before), last = std::min(i + 16, before + inside);
            if (first < last) std::memcpy(chunk + (first - i), global + (first - before), last - first);
            std::memcpy(place(w, bulk, at + i), chunk, 16);
        }
    });
    uint32_t first = offset_of(w, bulk.shared) / COPY_BYTES;
    for (uint32_t i = 0; i < bulk.bytes / COPY_BYTES; ++i) w.under_way[first + i] &= ~uint32_t(BULK_LOAD);
    --w.pending;
    Mbarrier& barrier = *load.barrier;
    ++w.time;
    if (emu_checked) record_agent(w, bulk.shared, bulk.bytes, WRITE, barrier.agent, w.time, bulk.pc);
    barrier.arrived_agents[barrier.agent] = w.time + 1;
    barrier.loaded = barrier.phase + 1;
    barrier.load_pc = bulk.pc;
    ++w.progress;
    mbarrier_count(w, barrier, 0, -int64_t(bulk.bytes));
    return true;
}

// A thread ends: whatever it has started is over, or nobody would know.
void end_async(Worker& w, Lane& lane) {
    Async& async = *w.async;
    if (async.multiplied) end_products(w, lane);
    Stores& mine = async.stores[lane.view.linear];
    for (const Store& store : mine.open) {
        if (!store.read) fail(w, store.bulk.pc, "ended with a bulk store that it has not waited for");
        write_target(w, store);
    }
    mine.open.clear();
    mine.groups = 0;
}

void end_async_block(Worker& w) {
    Async& async = *w.async;
    const void* unwaited = nullptr;
    if (!async.loads.empty()) unwaited = async.loads[0].bulk.pc;
    for (const Mbarrier& barrier : async.mbarriers)
        if (!unwaited && barrier.loaded > barrier.waited) unwaited = barrier.load_pc;
    if (unwaited)
        set_fault(w, nullptr, position_token(const_cast<void*>(unwaited)),
                  "the block ended with a bulk load that nobody has waited for");
    drop_async(w);
}

void drop_async(Worker& w) {
    if (!w.async) return;
    Async& async = *w.async;
    async.mbarriers.clear();
    async.loads.clear();
    if (async.stored)
        for (Stores& stores : async.stores) {
            stores.open.clear();
            stores.groups = 0;
        }
    if (async.multiplied)
        for (Warpgroup& group : async.groups) group = Warpgroup();
    async.stored = async.multiplied = false;
    std::memset(w.under_way, 0, sizeof w.under_way);
    w.pending = 0;
}

void check_under_way(Worker& w, size_t granule, size_t offset, size_t bytes, Access kind, void* pc) {
    const char* verb = kind == READ ? "read" : kind == WRITE ? "write" : "atomic";
    uint32_t writer = w.under_way[granule] & 0xffff, readers = w.under_way[granule] >> 16;
    size_t first = granule * COPY_BYTES;
    auto refuse = [&](std::string what) {
        fail(w, pc, "under way: " + describe_address(w.arena + first, 0, verb) + " of what " + what);
    };
    auto covers = [&](const Bulk& bulk) {
        size_t begin = offset_of(w, bulk.shared);
        return first >= begin && first < begin + bulk.bytes;
    };
    if (writer == MBARRIER) {
        for (const Mbarrier& barrier : w.async->mbarriers)
            if (offset < barrier.offset + 8 && barrier.offset < offset + bytes)
                refuse("holds the mbarrier initialised at " + position_token(barrier.init_pc));
    } else if (writer == BULK_LOAD) {
        for (const Load& load : w.async->loads)
            if (covers(load.bulk))
                refuse("a bulk load of " + position_token(load.bulk.pc) + " will write: nobody has waited for it");
    } else if (writer) {
        refuse(copy_text(w, granule));
    }
    if (!readers || kind == READ) return;
    for (const Stores& stores : w.async->stores)
        for (const Store& store : stores.open)
            if (!store.read && covers(store.bulk))
                refuse("a bulk store of " + position_token(store.bulk.pc) + " has still to read");
    refuse(product_text(w, granule));
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_fence_async() { ++emu_worker->current->fences; }

void emu_bulk_load(void* to, const void* from, int bytes, void* barrier) {
    Worker& w = *emu_worker;
    start_load(w, contiguous(w, to, from, bytes, __builtin_return_address(0)), barrier);
}

void emu_tensor_load(void* to, const void* map, const int* at, int rank, void* barrier) {
    Worker& w = *emu_worker;
    start_load(w, box(w, to, map, at, rank, __builtin_return_address(0)), barrier);
}

void emu_bulk_store(void* to, const void* from, int bytes) {
    Worker& w = *emu_worker;
    start_store(w, contiguous(w, from, to, bytes, __builtin_return_address(0)));
}

void emu_tensor_store(const void* map, const int* at, int rank, const void* from) {
    Worker& w = *emu_worker;
    start_store(w, box(w, from, map, at, rank, __builtin_return_address(0)));
}

void emu_bulk_commit() { ++async_of(*emu_worker).stores[emu_worker->current->view.linear].groups; }

void emu_bulk_wait(int groups, bool read) {
    Worker& w = *emu_worker;
    Stores& mine = async_of(w).stores[w.current->view.linear];
    size_t done = 0;  // stores are in the order of their groups
    for (; done < mine.open.size() && mine.open[done].group + uint32_t(groups) < mine.groups; ++done) {
        if (!mine.open[done].read) read_source(w, mine.open[done]);
        if (!read) write_target(w, mine.open[done]);
    }
    if (!read) mine.open.erase(mine.open.begin(), mine.open.begin() + long(done));
}
}
