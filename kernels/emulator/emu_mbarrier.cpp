// mbarriers: phases, arrivals, announced bytes, and what a wait has seen.
#include <algorithm>

#include "emu_async.h"

namespace emu {

Async& async_of(Worker& w) {
    if (!w.async) {
        w.async = new Async();
        std::fill(&w.agents_seen[0][0], &w.agents_seen[0][0] + MAX_WARPS * AGENTS, 0);
    }
    return *w.async;
}

namespace {

template <size_t N>
void join(uint32_t (&to)[N], const uint32_t (&from)[N]) {
    for (size_t i = 0; i < N; ++i) to[i] = std::max(to[i], from[i]);
}

void check_address(Worker& w, const void* address, const char* what, void* pc) {
    if (!in_arena(w, address)) fail(w, pc, std::string(what) + " of an address that is not in shared memory");
    if (reinterpret_cast<uintptr_t>(address) % 8)
        fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(address), 8, what) +
                        " is not aligned to 8");
}

Mbarrier* find(Async& async, uint32_t offset) {
    for (Mbarrier& barrier : async.mbarriers)
        if (barrier.offset == offset) return &barrier;
    return nullptr;
}

bool is_over(const Mbarrier& barrier, int parity) { return int(barrier.phase & 1) != parity; }

}  // namespace

Mbarrier& mbarrier_at(Worker& w, const void* address, const char* what, void* pc) {
    check_address(w, address, what, pc);
    Mbarrier* barrier = find(async_of(w), offset_of(w, address));
    std::string place = describe_address(reinterpret_cast<uintptr_t>(address), 0, what);
    if (!barrier) fail(w, pc, "uninitialised: " + place + ": no mbarrier was initialised there");
    if (!is_ordered(w, barrier->init_stamp))
        fail(w, pc, "shared race: " + place + " is not ordered with its initialisation by " +
                        thread_text(barrier->init_stamp) + " at " + position_token(barrier->init_pc));
    return *barrier;
}

// Arrivals and bytes of the current phase; when nothing is missing any more, the phase is over.
void mbarrier_count(Worker& w, Mbarrier& barrier, uint32_t arrivals, int64_t bytes) {
    barrier.pending -= arrivals;
    barrier.bytes += bytes;
    if (barrier.pending || barrier.bytes) return;
    uint32_t(&waiting)[MAX_WARPS] = barrier.waiting[barrier.phase & 1];
    ++barrier.phase;
    barrier.pending = barrier.count;
    join(barrier.over, barrier.arrived);
    join(barrier.over_agents, barrier.arrived_agents);
    for (uint32_t i = 0; i < w.warps; ++i)
        if (uint32_t lanes = waiting[i]) {
            waiting[i] = 0;
            make_ready(w, i, lanes);
        }
}

std::string mbarrier_text(const Worker& w, uint32_t offset) {
    const Mbarrier& barrier = *find(*w.async, offset);
    return format(" (%s, phase %llu: %u of %u arrivals and %lld bytes missing)",
                  describe_address(w.arena + offset, 0, "mbarrier").c_str(), (unsigned long long)barrier.phase,
                  barrier.pending, barrier.count, (long long)barrier.bytes);
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_mbarrier_init(void* address, int count) {
    Worker& w = *emu_worker;
    void* pc = __builtin_return_address(0);
    Async& async = async_of(w);
    check_address(w, address, "mbarrier", pc);
    check_shared_bounds(w, address, 8, WRITE, pc);
    if (count < 1 || count >= 1 << 20) fail(w, pc, format("mbarrier of %d arrivals, expected 1 to 1048575", count));
    uint32_t offset = offset_of(w, address);
    if (find(async, offset))
        fail(w, pc, describe_address(reinterpret_cast<uintptr_t>(address), 0, "mbarrier") + " is initialised again");
    if (emu_checked) check_access(w, address, 8, WRITE, pc);
    Mbarrier barrier = {};
    barrier.offset = offset;
    barrier.agent = WARPGROUPS + int(async.mbarriers.size() % (AGENTS - WARPGROUPS));
    barrier.count = barrier.pending = uint32_t(count);
    barrier.init_stamp = w.stamp;
    barrier.init_lane = w.current;
    barrier.init_fences = w.current->init_fences;
    barrier.init_pc = pc;
    async.mbarriers.push_back(barrier);
    w.under_way[offset / COPY_BYTES] |= MBARRIER;
    ++w.pending;
}

void emu_mbarrier_init_fence() { ++emu_worker->current->init_fences; }

void emu_mbarrier_arrive(void* address, int bytes) {
    Worker& w = *emu_worker;
    void* pc = __builtin_return_address(0);
    Mbarrier& barrier = mbarrier_at(w, address, "arrival", pc);
    if (bytes < 0 || bytes >= 1 << 20) fail(w, pc, format("%d bytes announced, expected 0 to 1048575", bytes));
    if (!barrier.pending)
        fail(w, pc, format("too many arrivals: all %u of this phase have come", barrier.count) +
                        mbarrier_text(w, barrier.offset));
    uint32_t mine = w.current->view.linear / 32;
    barrier.arrived[mine] = release(w);
    if (w.partial) join(barrier.arrived, w.seen[mine]);
    join(barrier.arrived_agents, w.agents_seen[mine]);
    ++w.progress;
    mbarrier_count(w, barrier, 1, bytes);
}

void emu_mbarrier_wait(void* address, int parity) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    void* pc = __builtin_return_address(0);
    Mbarrier& barrier = mbarrier_at(w, address, "wait", pc);
    if (parity != 0 && parity != 1) fail(w, pc, format("wait for parity %d, expected 0 or 1", parity));
    uint32_t mine = me->view.linear / 32;
    while (!is_over(barrier, parity)) {
        barrier.waiting[parity][mine] |= 1u << me->view.linear % 32;
        me->mbarrier = barrier.offset;
        wait_at(me, "mbarrier_wait", {"", 0}, pc);
        suspend(w);
        me->mbarrier = 0;
    }
    ++w.progress;
    barrier.waited = barrier.phase;
    if (!w.partial) std::fill(&w.seen[0][0], &w.seen[0][0] + MAX_WARPS * MAX_WARPS, 0);
    w.partial = true;
    join(w.seen[mine], barrier.over);
    join(w.agents_seen[mine], barrier.over_agents);
}
}
