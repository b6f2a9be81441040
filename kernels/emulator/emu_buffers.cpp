// The table of device buffers. Process-wide, because launches of several threads share buffers; guarded by a lock.
// Records and shadow memory are recycled: what an old buffer left in them is told apart by its stamps.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <shared_mutex>

#include "emu_internal.h"

namespace emu {

namespace {

struct Table {
    std::shared_mutex lock;
    std::map<uintptr_t, Buffer*> alive;
    std::vector<Buffer*> spare;
    std::multimap<size_t, uint64_t*> stamps;  // spare shadow memory by pairs
};
Table& table() {
    static Table* the_table = new Table;  // never destroyed: other threads may still run at exit
    return *the_table;
}
std::mutex& shadow_lock() {
    static std::mutex* lock = new std::mutex;
    return *lock;
}

// Last buffer that begins at or before `address`.
Buffer* before(Table& t, uintptr_t address) {
    auto next = t.alive.upper_bound(address);
    return next == t.alive.begin() ? nullptr : std::prev(next)->second;
}

void release_map(Buffer& buffer) {
    std::free(buffer.initialised.exchange(nullptr));
}

void mark(Buffer& buffer, size_t offset, size_t bytes) {
    if (buffer.state.load() == Buffer::WRITTEN || !bytes) return;
    if (offset == 0 && bytes == buffer.bytes.load()) {
        buffer.state.store(Buffer::WRITTEN);
        return;
    }
    std::memset(ensure_initialised(buffer) + offset, 1, bytes);
}

}  // namespace

Buffer* find_buffer(uintptr_t address) {
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    return before(t, address);
}

uint8_t* ensure_initialised(Buffer& buffer) {
    if (uint8_t* map = buffer.initialised.load(std::memory_order_acquire)) return map;
    std::lock_guard<std::mutex> guard(shadow_lock());
    if (uint8_t* map = buffer.initialised.load()) return map;
    auto* map = static_cast<uint8_t*>(std::calloc(buffer.bytes.load(), 1));
    buffer.initialised.store(map);
    buffer.state.store(Buffer::PARTLY);
    return map;
}

uint64_t* ensure_stamps(Buffer& buffer) {
    std::lock_guard<std::mutex> guard(shadow_lock());
    if (uint64_t* stamps = buffer.stamps.load()) return stamps;
    size_t pairs = 512;
    while (pairs < (buffer.bytes.load() + 1) / 2) pairs *= 2;
    buffer.stamp_pairs = pairs;
    Table& t = table();
    uint64_t* stamps;
    auto spare = t.stamps.find(pairs);
    if (spare != t.stamps.end()) {
        stamps = spare->second;
        t.stamps.erase(spare);
    } else {
        stamps = static_cast<uint64_t*>(mmap(nullptr, 2 * pairs * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stamps == MAP_FAILED) std::abort();
    }
    buffer.stamps.store(stamps, std::memory_order_release);
    return stamps;
}

// A launch without checks records no writes: everything its arguments lead to counts as written from now on.
// Arguments are pointers, or point to tables of pointers.
void assume_written(const Launch& launch) {
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    auto visit = [&](const void* words, size_t bytes, auto&& found) {
        for (size_t i = 0; i + 8 <= bytes; i += 8) {
            uintptr_t address;
            std::memcpy(&address, static_cast<const char*>(words) + i, 8);
            Buffer* buffer = before(t, address);
            if (buffer && address - buffer->begin.load() < buffer->bytes.load()) found(*buffer);
        }
    };
    visit(launch.args, launch.args_bytes, [&](Buffer& buffer) {
        bool known = buffer.state.load() == Buffer::WRITTEN;
        buffer.state.store(Buffer::WRITTEN);
        if (known && buffer.bytes.load() <= 65536)
            visit(reinterpret_cast<const void*>(buffer.begin.load()), buffer.bytes.load(),
                  [](Buffer& inner) { inner.state.store(Buffer::WRITTEN); });
    });
}

std::string describe_address(uintptr_t address, size_t bytes, const char* what) {
    std::string access = bytes ? format("%s of %zu bytes", what, bytes) : std::string(what);
    Worker* w = emu_worker;
    if (w && address - w->arena < ARENA_BYTES) {
        size_t offset = address - w->arena;
        const char* name = "dynamic shared memory";
        size_t first = ARENA_FIRST, size = w->block.dynamic_bytes;
        for (uint32_t i = 0; i < w->static_objects; ++i)
            if (offset >= w->objects[i].offset - STATIC_GAP / 2) {
                name = w->objects[i].name;
                first = w->objects[i].offset;
                size = w->objects[i].bytes;
            }
        if (offset < first)
            return format("%s, %zu bytes before `%s` in shared memory", access.c_str(), first - offset, name);
        if (offset - first + bytes > size)
            return format("%s at byte %zu of `%s`, which has %zu bytes of shared memory", access.c_str(),
                          offset - first, name, size);
        return format("%s at byte %zu of `%s`", access.c_str(), offset - first, name);
    }
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    constexpr uintptr_t NEAR = 1 << 20;
    Buffer* left = before(t, address);
    if (left) {
        size_t offset = address - left->begin.load(), size = left->bytes.load();
        if (offset < size && offset + bytes <= size)
            return format("%s at byte %zu of `%s`", access.c_str(), offset, left->name.c_str());
        if (offset - size < NEAR || offset < size)
            return format("`%s`: %s, %zu bytes past the end (it has %zu bytes)", left->name.c_str(), access.c_str(),
                          offset + bytes - size, size);
    }
    auto right = t.alive.upper_bound(address);
    if (right != t.alive.end() && right->first - address < NEAR)
        return format("`%s`: %s, %zu bytes before the start", right->second->name.c_str(), access.c_str(),
                      size_t(right->first - address));
    return format("%s at address %#zx, which belongs to no buffer", access.c_str(), size_t(address));
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_buffer_register(const void* memory, size_t bytes, const char* name) {
    if (!bytes) return;
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    Buffer*& slot = t.alive[reinterpret_cast<uintptr_t>(memory)];
    if (!slot) {
        if (t.spare.empty()) {
            slot = new Buffer;
        } else {
            slot = t.spare.back();
            t.spare.pop_back();
        }
    }
    release_map(*slot);
    slot->name = name && *name ? name : "buffer";
    slot->state.store(Buffer::UNWRITTEN);
    slot->byte_stamps.store(false);
    slot->launch.store(0);
    slot->begin.store(reinterpret_cast<uintptr_t>(memory));
    slot->bytes.store(bytes);
}

void emu_buffer_unregister(const void* memory) {
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    auto place = t.alive.find(reinterpret_cast<uintptr_t>(memory));
    if (place == t.alive.end()) return;
    Buffer* buffer = place->second;
    t.alive.erase(place);
    buffer->bytes.store(0);
    buffer->begin.store(0);
    release_map(*buffer);
    std::lock_guard<std::mutex> shadow(shadow_lock());
    if (uint64_t* stamps = buffer->stamps.exchange(nullptr)) t.stamps.emplace(buffer->stamp_pairs, stamps);
    t.spare.push_back(buffer);
}

void emu_buffer_name(const void* memory, const char* name) {
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    auto place = t.alive.find(reinterpret_cast<uintptr_t>(memory));
    if (place != t.alive.end()) place->second->name = name;
}

void emu_buffer_written(const void* memory, size_t offset, size_t bytes) {
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    Buffer* buffer = before(t, reinterpret_cast<uintptr_t>(memory));
    if (!buffer) return;
    offset += reinterpret_cast<uintptr_t>(memory) - buffer->begin.load();
    size_t size = buffer->bytes.load();
    if (offset <= size && bytes <= size - offset) mark(*buffer, offset, bytes);
}
}
