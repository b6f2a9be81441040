// Access checks: the compiler calls a hook before every load and store of a kernel (-fsanitize=thread), and handlers
// for index and shift errors (-fsanitize=bounds,shift). No sanitizer library is linked: these are its functions.
//
// Shared memory: bounds, initialisation, and whether two accesses of different threads are ordered by a barrier or
// __syncwarp, whatever the schedule was. Global memory: bounds, alignment, initialisation, and writers.
#include <link.h>

#include <algorithm>
#include <cstring>

#include "emu_internal.h"

namespace emu {

namespace {

const char* verb(Access kind) { return kind == READ ? "read" : kind == WRITE ? "write" : "atomic"; }

// Was the access stamped `earlier` ordered before what the running thread does now?
inline bool ordered(const Worker& w, uint64_t earlier) {
    if (earlier & STAMP_AGENT)
        return earlier < w.floor ||
               stamp_clock(earlier) < w.agents_seen[(w.stamp & STAMP_THREAD) / 32][(earlier & STAMP_THREAD) / 32];
    if (earlier < w.synchronised) return true;
    uint64_t differs = earlier ^ w.stamp;
    if (!(differs & STAMP_WARP)) {
        if (!(differs & STAMP_THREAD) && !(earlier & STAMP_MARK)) return true;
        return earlier >> STAMP_NOW < w.stamp >> STAMP_NOW;
    }
    return w.partial &&
           stamp_clock(earlier) < w.seen[(w.stamp & STAMP_THREAD) / 32][(earlier & STAMP_THREAD) / 32];
}

// ---- shared memory ----------------------------------------------------------------------------------------------------

[[noreturn]] void shared_race(Worker& w, size_t offset, Access kind, void* pc, const char* other, uint64_t stamp,
                              uint32_t other_pc) {
    std::string by = stamp & STAMP_MARK && !(stamp & STAMP_AGENT) ? "several threads of warp " + std::to_string((stamp & STAMP_THREAD) / 32)
                                        : thread_text(stamp);
    fail(w, pc, "shared race: " + describe_address(w.arena + offset, 0, verb(kind)) + " is not ordered with the " +
                    other + " by " + by + " at " + position_token(other_pc));
}

// Puts an access into the two slots: the warp seen last, and another warp.
inline void remember(uint64_t slot[2], uint32_t slot_pc[2], uint64_t stamp, uint32_t pc) {
    uint64_t differs = slot[0] ^ stamp;
    if (!(differs & ~(STAMP_MARK | 31))) {  // same warp, same moment
        slot[0] = stamp | (slot[0] & STAMP_MARK) | (differs & 31 ? STAMP_MARK : 0);
    } else {
        if (differs & STAMP_WARP) {
            slot[1] = slot[0];
            slot_pc[1] = slot_pc[0];
        }
        slot[0] = stamp;
    }
    slot_pc[0] = pc;
}

inline void check_cell(Worker& w, Cell& cell, size_t offset, Access kind, void* pc, bool record = true) {
    uint64_t stamp = w.stamp;
    if (kind == READ && cell.reader[0] == stamp) return;  // nothing unordered can have come in between
    if (kind == WRITE && cell.writer == stamp) return;
    if (kind != WRITE && cell.writer < w.floor && cell.updater[0] < w.floor)
        fail(w, pc, "uninitialised: " + describe_address(w.arena + offset, 0, verb(kind)) +
                        " of shared memory that no thread of the block has written");
    if (!ordered(w, cell.writer)) shared_race(w, offset, kind, pc, "write", cell.writer, cell.writer_pc);
    if (kind != READ)
        for (int i = 0; i < 2; ++i)
            if (!ordered(w, cell.reader[i]))
                shared_race(w, offset, kind, pc, "read", cell.reader[i], cell.reader_pc[i]);
    if (kind != ATOMIC)
        for (int i = 0; i < 2; ++i)
            if (!ordered(w, cell.updater[i]))
                shared_race(w, offset, kind, pc, "atomic", cell.updater[i], cell.updater_pc[i]);
    if (!record) return;
    uint32_t where = pc_offset(pc);
    if (kind == WRITE) {
        cell.writer = stamp;
        cell.writer_pc = where;
        w.fenced[offset / 4] = w.current->fences;
    } else if (kind == READ) {
        remember(cell.reader, cell.reader_pc, stamp, where);
    } else {
        remember(cell.updater, cell.updater_pc, stamp, where);
    }
}

inline Cell& cell_at(Worker& w, size_t offset) {
    size_t word = offset / 4, part = offset % 4;
    return part == 0 ? w.words[word] : part == 2 ? w.halves[word] : w.bytes[2 * word + part / 2];
}

// 0: one cell stands for all 4 bytes, 1: for 2, 2: for 1. Back to 0 in every block.
inline uint32_t split_level(const Worker& w, size_t word) {
    uint32_t split = w.words[word].split;
    return split >> 2 == (w.serial & 0x3fffffffu) ? split & 3 : 0;
}

void split_word(Worker& w, size_t word, uint32_t level) {
    for (uint32_t now = split_level(w, word); now < level; ++now) {
        size_t first = word * 4;
        if (now == 0) {
            w.halves[word] = w.words[word];
        } else {
            cell_at(w, first + 1) = cell_at(w, first);
            cell_at(w, first + 3) = cell_at(w, first + 2);
        }
    }
    w.words[word].split = w.serial << 2 | level;
}

void check_parts(Worker& w, size_t offset, size_t bytes, Access kind, void* pc) {
    for (size_t end = offset + bytes; offset < end;) {
        size_t word = offset / 4;
        uint32_t needed = offset % 2 || end - offset == 1 ? 2 : offset % 4 || end - offset < 4 ? 1 : 0;
        if (split_level(w, word) < needed) split_word(w, word, needed);
        uint32_t step = 4u >> split_level(w, word);
        check_cell(w, cell_at(w, offset), offset, kind, pc);
        offset += step;
    }
}

// The access does not lie in the object accessed last.
void find_shared_object(Worker& w, size_t offset, size_t bytes, Access kind, void* pc) {
    if (offset - ARENA_FIRST < w.block.dynamic_bytes && offset - ARENA_FIRST + bytes <= w.block.dynamic_bytes) {
        w.dynamic_first = ARENA_FIRST;
        w.dynamic_bytes = w.block.dynamic_bytes;
        return;
    }
    for (uint32_t i = 0; i < w.static_objects; ++i) {
        const StaticObject& object = w.objects[i];
        if (offset - object.offset < object.bytes && offset - object.offset + bytes <= object.bytes) {
            w.dynamic_first = object.offset;
            w.dynamic_bytes = object.bytes;
            return;
        }
    }
    fail(w, pc, "out of bounds: " + describe_address(w.arena + offset, bytes, verb(kind)));
}

inline void check_pending(Worker& w, size_t offset, size_t bytes, Access kind, void* pc) {
    for (size_t granule = offset / COPY_BYTES; granule <= (offset + bytes - 1) / COPY_BYTES; ++granule)
        if (w.under_way[granule]) check_under_way(w, granule, offset, bytes, kind, pc);
}

inline void check_shared(Worker& w, size_t offset, uint32_t bytes, Access kind, void* pc) {
    if (offset - w.dynamic_first >= w.dynamic_bytes || offset - w.dynamic_first + bytes > w.dynamic_bytes)
        find_shared_object(w, offset, bytes, kind, pc);
    if (w.pending) check_pending(w, offset, bytes, kind, pc);
    if (offset % 4 || bytes % 4) return check_parts(w, offset, bytes, kind, pc);
    for (size_t word = offset / 4, end = word + bytes / 4; word < end; ++word) {
        if (split_level(w, word)) check_parts(w, word * 4, 4, kind, pc);
        else check_cell(w, w.words[word], word * 4, kind, pc);
    }
}

// ---- global memory ----------------------------------------------------------------------------------------------------

// Constant tables of the program may be read. The loaded segments of every object, in order of address.
bool in_program(uintptr_t address, size_t bytes, bool write) {
    struct Query {
        uintptr_t address;
        size_t bytes;
        bool write, found;
    } query{address, bytes, write, false};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            Query& query = *static_cast<Query*>(data);
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& segment = info->dlpi_phdr[i];
                if (segment.p_type != PT_LOAD || (query.write && !(segment.p_flags & PF_W))) continue;
                uintptr_t first = info->dlpi_addr + segment.p_vaddr;
                if (query.address - first < segment.p_memsz &&
                    query.address - first + query.bytes <= segment.p_memsz)
                    query.found = true;
            }
            return int(query.found);
        },
        &query);
    return query.found;
}

[[noreturn]] void global_race(Worker& w, uintptr_t address, Access kind, void* pc, uint64_t stamp, bool same_block) {
    fail(w, pc, "global race: " + describe_address(address, 0, verb(kind)) + " is not ordered with the " +
                    (stamp & STAMP_MARK ? "atomic" : "write") + " by " + thread_text(stamp) +
                    (same_block ? " of the same block" : " of another block"));
}

inline void check_stamp(Worker& w, std::atomic<uint64_t>& place, uintptr_t address, Access kind, uint64_t mine,
                        void* pc) {
    uint64_t last = place.load(std::memory_order_relaxed);
    if (kind != READ) place.store(mine, std::memory_order_relaxed);
    if (last >> STAMP_WORKER == w.id) {
        if (last < w.launch->start[w.id].load(std::memory_order_relaxed)) return;
        if (last >= w.floor) {
            if ((kind == ATOMIC && last & STAMP_MARK) || w.current->did_atomic) return;
            if (!ordered(w, last & ~STAMP_MARK)) global_race(w, address, kind, pc, last, true);
            return;
        }
    } else if (last < w.launch->start[last >> STAMP_WORKER].load(std::memory_order_relaxed) ||
               last >= w.launch->end[last >> STAMP_WORKER].load(std::memory_order_relaxed)) {
        return;  // of another launch
    }
    // Another block of this launch. A block that has done a global atomic may have learned that the other is done.
    if ((kind == ATOMIC && last & STAMP_MARK) || w.block_atomic) return;
    global_race(w, address, kind, pc, last, false);
}

void check_stamps(Worker& w, Buffer& buffer, size_t offset, uint32_t bytes, Access kind, void* pc) {
    uint64_t* stamps = buffer.stamps.load(std::memory_order_acquire);
    if (kind != READ) {
        if (!stamps) stamps = ensure_stamps(buffer);
        if (buffer.launch.load(std::memory_order_relaxed) != w.launch->id)
            buffer.launch.store(w.launch->id, std::memory_order_relaxed);
        if (bytes == 1 && !buffer.byte_stamps.load(std::memory_order_relaxed)) buffer.byte_stamps.store(true);
    } else if (!stamps || buffer.launch.load(std::memory_order_relaxed) != w.launch->id) {
        return;  // nobody has written it in this launch
    }
    uint64_t mine = w.stamp | (kind == ATOMIC ? STAMP_MARK : 0);
    auto* pairs = reinterpret_cast<std::atomic<uint64_t>*>(stamps);
    auto* odd = pairs + buffer.stamp_pairs;
    uintptr_t begin = buffer.begin.load(std::memory_order_relaxed);
    bool separate = buffer.byte_stamps.load(std::memory_order_relaxed);
    for (size_t pair = offset / 2; pair <= (offset + bytes - 1) / 2; ++pair) {
        if (!separate || 2 * pair >= offset) check_stamp(w, pairs[pair], begin + 2 * pair, kind, mine, pc);
        if (separate && 2 * pair + 1 < offset + bytes && 2 * pair + 1 >= offset)
            check_stamp(w, odd[pair], begin + 2 * pair + 1, kind, mine, pc);
    }
}

void check_initialised(Worker& w, Buffer& buffer, size_t offset, uint32_t bytes, Access kind, void* pc) {
    if (kind == WRITE) {
        uint8_t* map = ensure_initialised(buffer);
        if (map) std::memset(map + offset, 1, bytes);
        return;
    }
    uint8_t* map = buffer.initialised.load(std::memory_order_acquire);
    size_t missing = 0;
    if (buffer.state.load(std::memory_order_acquire) == Buffer::PARTLY && map)
        while (missing < bytes && map[offset + missing]) ++missing;
    else if (buffer.state.load(std::memory_order_acquire) == Buffer::WRITTEN)
        return;
    if (missing < bytes)
        fail(w, pc, "uninitialised: " +
                        describe_address(buffer.begin.load() + offset + missing, 0, verb(kind)) +
                        " of memory that neither the host nor a kernel has written");
}

inline bool inside(const Buffer* buffer, uintptr_t address, size_t bytes) {
    if (!buffer) return false;
    size_t offset = address - buffer->begin.load(std::memory_order_relaxed);
    size_t size = buffer->bytes.load(std::memory_order_relaxed);
    return offset < size && bytes <= size - offset;
}

inline void check_global(Worker& w, uintptr_t address, uint32_t bytes, Access kind, void* pc) {
    Buffer*& recent = w.recent[reinterpret_cast<uintptr_t>(pc) >> 2 & 63];
    if (!inside(recent, address, bytes)) {
        Buffer* found = find_buffer(address);
        if (!inside(found, address, bytes)) {
            if (in_program(address, bytes, kind != READ)) return;
            fail(w, pc, "out of bounds: " + describe_address(address, bytes, verb(kind)));
        }
        recent = found;
    }
    Buffer& buffer = *recent;
    size_t offset = address - buffer.begin.load(std::memory_order_relaxed);
    if (buffer.state.load(std::memory_order_relaxed) != Buffer::WRITTEN)
        check_initialised(w, buffer, offset, bytes, kind, pc);
    check_stamps(w, buffer, offset, bytes, kind, pc);
}

inline void check(Worker& w, const void* place, uint32_t bytes, Access kind, void* pc) {
    uintptr_t address = reinterpret_cast<uintptr_t>(place), offset = address - w.arena;
    if (offset >= ARENA_BYTES && offset < w.mapping_bytes) return;  // a stack
    if (!--w.budget)
        fail(w, pc, format("endless loop: %llu accesses without reaching a barrier or warp operation",
                           (unsigned long long)ACCESS_BUDGET));
    bool shared = offset < ARENA_BYTES;
    if (shared) check_shared(w, offset, bytes, kind, pc);
    else check_global(w, address, bytes, kind, pc);
    if (w.counting) traffic_record(w, place, bytes, kind, shared, pc);
}

// Accesses of the C++ types' own sizes must be aligned to them, as on the GPU. 16 bytes may be two merged doubles;
// load_vec and store_vec check theirs.
inline void check_natural(Worker& w, const void* place, uint32_t bytes, Access kind, void* pc) {
    uintptr_t address = reinterpret_cast<uintptr_t>(place);
    if (address & (std::min(bytes, 8u) - 1) && address - w.arena - ARENA_BYTES >= w.mapping_bytes - ARENA_BYTES)
        fail(w, pc, "misaligned: " + describe_address(address, 0, verb(kind)) + format(" of %u bytes", bytes));
    check(w, place, bytes, kind, pc);
}

}  // namespace

void check_access(Worker& w, const void* address, uint32_t bytes, Access kind, void* pc) {
    check(w, address, bytes, kind, pc);
}

void check_shared_bounds(Worker& w, const void* at, uint32_t bytes, Access kind, void* pc) {
    size_t offset = reinterpret_cast<uintptr_t>(at) - w.arena;
    if (offset - w.dynamic_first >= w.dynamic_bytes || offset - w.dynamic_first + bytes > w.dynamic_bytes)
        find_shared_object(w, offset, bytes, kind, pc);
}

bool is_ordered(const Worker& w, uint64_t earlier) { return ordered(w, earlier); }

// f(cell, its offset) for whole words.
template <class F>
static inline void each_cell(Worker& w, const void* at, uint32_t bytes, F f) {
    size_t offset = reinterpret_cast<uintptr_t>(at) - w.arena;
    for (size_t end = offset + bytes; offset < end; offset += 4u >> split_level(w, offset / 4))
        f(cell_at(w, offset), offset);
}

void check_async_read(Worker& w, const void* from, uint32_t bytes, void* pc) {
    check_shared_bounds(w, from, bytes, READ, pc);
    if (w.pending) check_pending(w, reinterpret_cast<uintptr_t>(from) - w.arena, bytes, READ, pc);
    each_cell(w, from, bytes, [&](Cell& cell, size_t offset) {
        check_cell(w, cell, offset, READ, pc, false);
        if (cell.writer < w.floor || cell.writer & STAMP_AGENT) return;
        if (w.lanes[cell.writer & STAMP_THREAD].fences == w.fenced[offset / 4])
            fail(w, pc, "missing fence_async: " + describe_address(w.arena + offset, 0, "asynchronous read") +
                            " of what " + thread_text(cell.writer) + " wrote at " + position_token(cell.writer_pc) +
                            " without the fence behind it");
    });
}

void record_agent(Worker& w, const void* at, uint32_t bytes, Access kind, int agent, uint32_t clock, void* pc) {
    uint64_t stamp = uint64_t(w.id) << STAMP_WORKER | uint64_t(clock) << STAMP_CLOCK | STAMP_AGENT | uint64_t(agent) * 32;
    uint32_t where = pc_offset(pc);
    each_cell(w, at, bytes, [&](Cell& cell, size_t) {
        if (kind == READ) {
            remember(cell.reader, cell.reader_pc, stamp, where);
        } else {
            cell.writer = stamp;
            cell.writer_pc = where;
        }
    });
}

std::string thread_text(uint64_t stamp) {
    return stamp & STAMP_AGENT ? "an asynchronous operation" : "thread " + std::to_string(stamp & STAMP_THREAD);
}

}  // namespace emu

using namespace emu;

#define HOOK(name, bytes, kind, how)                                                          \
    extern "C" void name(void* address) {                                                     \
        if (Worker* w = emu_checked) how(*w, address, bytes, kind, __builtin_return_address(0)); \
    }
#define HOOKS(bytes)                                                  \
    HOOK(__tsan_read##bytes, bytes, READ, check_natural)              \
    HOOK(__tsan_write##bytes, bytes, WRITE, check_natural)            \
    HOOK(__tsan_unaligned_read##bytes, bytes, READ, check)            \
    HOOK(__tsan_unaligned_write##bytes, bytes, WRITE, check)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" {
void* emu_static_shared(const void* key, size_t bytes, size_t align, const char* name, const char*, int) {
    Worker& w = *emu_worker;
    for (uint32_t i = 0; i < w.static_objects; ++i)
        if (w.objects[i].key == key) return reinterpret_cast<void*>(w.arena + w.objects[i].offset);
    void* pc = __builtin_return_address(0);
    size_t limit = w.launch->options.shared_limit ? w.launch->options.shared_limit : SHARED_LIMIT;
    w.static_bytes += uint32_t((bytes + 15) & ~size_t(15));
    if (w.static_bytes > STATIC_LIMIT)
        fail(w, pc, format("`%s`: %u bytes of static shared memory, at most %zu", name, w.static_bytes, STATIC_LIMIT));
    // Dynamic memory is aligned to 1024 bytes and lies behind the static memory.
    uint32_t before = w.block.dynamic_bytes ? (w.static_bytes + 1023) & ~1023u : w.static_bytes;
    if (before + w.block.dynamic_bytes > limit)
        fail(w, pc, format("`%s`: too much shared memory: %u bytes dynamic and %u static, at most %zu", name,
                           w.block.dynamic_bytes, before, limit));
    if (w.static_objects == sizeof w.objects / sizeof w.objects[0] || align > 1024)
        fail(w, pc, format("`%s`: more than 64 static shared objects, or an alignment above 1024", name));
    size_t end = ARENA_FIRST + w.block.dynamic_bytes;
    if (w.static_objects) end = w.objects[w.static_objects - 1].offset + w.objects[w.static_objects - 1].bytes;
    size_t offset = (end + (w.static_objects ? STATIC_GAP : DYNAMIC_GAP) + 127) & ~size_t(127);
    offset = (offset + align - 1) & ~(align - 1);
    if (offset + bytes > ARENA_BYTES) fail(w, pc, format("`%s`: no room left for static shared memory", name));
    w.objects[w.static_objects++] = {key, name, offset, bytes};
    void* memory = reinterpret_cast<void*>(w.arena + offset);
    std::memset(memory, 0xff, bytes);
    return memory;
}

void emu_misaligned(const void* address, int bytes) {
    Worker& w = *emu_worker;
    void* pc = __builtin_return_address(0);
    fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(address), size_t(bytes), "vector access") +
                    format(" is not aligned to %d", bytes));
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* address, size_t bytes) {
    if (Worker* w = emu_checked) check(*w, address, uint32_t(bytes), READ, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    if (Worker* w = emu_checked) check(*w, address, uint32_t(bytes), WRITE, __builtin_return_address(0));
}

struct UbsanSite {
    const char* file;
    uint32_t line, column;
};
static void ubsan(const UbsanSite* site, void* pc, std::string what) {
    if (Worker* w = emu_worker)
        fail(*w, pc, what + format(" (%s:%u)", short_path(site->file).c_str(), site->line));
}
void __ubsan_handle_out_of_bounds(UbsanSite* site, uintptr_t index) {
    ubsan(site, __builtin_return_address(0), format("out of bounds: index %lld of an array", (long long)index));
}
void __ubsan_handle_shift_out_of_bounds(UbsanSite* site, uintptr_t, uintptr_t by) {
    ubsan(site, __builtin_return_address(0), format("shift: by %lld bits, or of a negative number", (long long)by));
}
}
