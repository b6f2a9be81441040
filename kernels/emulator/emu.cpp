// Fibers, the scheduler, block barriers: how the threads of one block take turns on one operating system thread.
//
// Every CUDA thread is a stackful fiber and runs until it calls something that synchronises. A thread that ends hands
// its stack, still warm, to the next thread that starts, so kernels without barriers use one stack for all.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "emu_internal.h"

__thread emu::Worker* emu_worker = nullptr;
__thread emu::Worker* emu_checked = nullptr;
__thread emu::Lane* emu_current = nullptr;

namespace emu {

bool Site::same(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
}

Worker* self() { return emu_worker; }

namespace {

// Leaves the running fiber, whose resume point is stored in *save, for the one that was left at `to`. Everything the
// calling convention preserves is clobbered, so the compiler saves what it needs and nothing more.
__attribute__((noinline)) void switch_to(void** save, void* to) {
    asm volatile(
        "leaq -128(%%rsp), %%rsp\n\t"  // step over the red zone
        "pushq %%rbp\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%0)\n\t"
        "movq %1, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmpq *%%rax\n"
        "1:\n\t"
        "popq %%rbp\n\t"
        "leaq 128(%%rsp), %%rsp\n\t"
        : "+D"(save), "+S"(to)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0",
          "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
          "xmm14", "xmm15");
}

void fiber_main();

uint8_t* stack_base(const Worker& w, uint32_t index) {
    return reinterpret_cast<uint8_t*>(w.arena) + ARENA_BYTES + index * STACK_BYTES;
}

// A stack on which `fiber_main` starts. Tops are staggered: at equal offsets the lanes' hot lines would share cache sets.
void* new_fiber(Worker& w) {
    uint32_t index = w.free_stack[--w.free_stacks];
    uint8_t* base = stack_base(w, index);
    if (index >= w.guarded_stacks) {  // stacks are first taken in ascending order
        mprotect(base, 4096, PROT_NONE);
        w.guarded_stacks = index + 1;
    }
    uintptr_t top = (reinterpret_cast<uintptr_t>(base) + STACK_BYTES - 192 * (index % 42)) & ~uintptr_t(63);
    void** sp = reinterpret_cast<void**>(top - 64);  // after the pop: 8 modulo 16, as behind a call
    *sp = reinterpret_cast<void*>(&fiber_main);
    return sp;
}

inline uint64_t next_random(Worker& w) {
    w.random ^= w.random << 13;
    w.random ^= w.random >> 7;
    w.random ^= w.random << 17;
    return w.random >> 32;
}

inline int pick_bit(Worker& w, uint32_t mask) {
    if (w.order == EMU_ORDER_FORWARD) return __builtin_ctz(mask);
    if (w.order == EMU_ORDER_REVERSE) return 31 - __builtin_clz(mask);
    int turn = int(next_random(w) & 31);
    uint32_t turned = mask >> turn | mask << ((32 - turn) & 31);
    return (__builtin_ctz(turned) + turn) & 31;
}

// Takes the next thread out of the ready set; null when there is none.
inline Lane* pick(Worker& w) {
    // Loads come as late as they may: when nobody can run; in the shuffled order at any time before.
    if (w.async && w.order == EMU_ORDER_SHUFFLED && (next_random(w) & 15) == 0) finish_load(w);
    if (!w.ready_warps) return nullptr;
    int warp = pick_bit(w, w.ready_warps);
    int lane = pick_bit(w, w.ready[warp]);
    if (!(w.ready[warp] &= ~(1u << lane))) w.ready_warps &= ~(1u << warp);
    return &w.lanes[warp * 32 + lane];
}

inline void make_current(Worker& w, Lane* lane) {
    w.current = emu_current = lane;
    w.stamp = warp_of(w, lane).stamp + lane->view.linear % 32;
    w.budget = ACCESS_BUDGET;
}

// A thread has returned from the kernel.
void end_thread(Worker& w, Lane* lane) {
    Warp& warp = warp_of(w, lane);
    warp.ended |= 1u << lane->view.linear % 32;
    ++w.ended;
    ++w.progress;
    end_copies(w, *lane);
    if (w.async) end_async(w, *lane);
    if (w.counting && warp.ended == warp.live) traffic_flush(w, warp);
    Barrier& barrier = w.barriers[0];
    if (barrier.arrived) {
        fail(w, std::string(), format("ended while %u thread(s) wait at the block barrier of ", barrier.arrived) +
                                   position(barrier.site, barrier.pc));
    }
}

// The body of every fiber: threads, one after the other, until none is left that could start here.
void fiber_main() {
    Worker& w = *emu_worker;
    uint32_t stack = uint32_t((reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) - w.arena - ARENA_BYTES) /
                              STACK_BYTES);
    for (;;) {
        w.thunk(w.args);
        end_thread(w, w.current);
        Lane* next = pick(w);
        if (next && !next->sp) {
            make_current(w, next);
            continue;
        }
        w.free_stack[w.free_stacks++] = uint16_t(stack);  // nobody takes it before the switch
        if (next) make_current(w, next);
        void* dropped;
        switch_to(&dropped, next ? next->sp : w.main_sp);
        __builtin_unreachable();
    }
}

std::string lane_text(const Lane& lane) {
    return format("thread (%u,%u,%u)", lane.view.thread[0], lane.view.thread[1], lane.view.thread[2]);
}

// Nobody can run and not everybody has ended: says who waits where.
void report_deadlock(Worker& w, const char* what) {
    std::string text = what;
    const Lane* culprit = nullptr;
    std::vector<std::string> seen;
    uint32_t groups = 0;
    for (uint32_t i = 0; i < w.threads; ++i) {
        const Lane& lane = w.lanes[i];
        if (warp_of(w, &lane).ended >> (i % 32) & 1) continue;
        if (!culprit) culprit = &lane;
        std::string where = std::string(lane.waits_for) + " at " + position(lane.site, lane.pc);
        if (std::find(seen.begin(), seen.end(), where) != seen.end() || ++groups > 4) continue;
        seen.push_back(where);
        text += (groups > 1 ? "; " : "") + lane_text(lane) + " waits in " + where;
        if (lane.mbarrier) text += mbarrier_text(w, lane.mbarrier);
    }
    if (w.ended) text += format("; %u of %u threads have ended", w.ended, w.threads);
    set_fault(w, culprit, culprit ? position(culprit->site, culprit->pc) : "", text);
}

// Gives every warp a fresh clock, above all given out so far: what came before is ordered before what follows.
void synchronise_block(Worker& w) {
    for (uint32_t i = 0; i < w.warps; ++i) w.time = std::max(w.time, stamp_clock(w.warp[i].stamp));
    ++w.time;
    w.synchronised = uint64_t(w.id) << STAMP_WORKER | uint64_t(w.time) << STAMP_CLOCK;
    for (uint32_t i = 0; i < w.warps; ++i) w.warp[i].stamp = w.synchronised | i * 32;
    w.partial = false;
    if (!w.async) return;
    for (int agent = 0; agent < AGENTS; ++agent) {
        uint32_t seen = 0;
        for (uint32_t i = 0; i < w.warps; ++i) seen = std::max(seen, w.agents_seen[i][agent]);
        for (uint32_t i = 0; i < w.warps; ++i) w.agents_seen[i][agent] = seen;
    }
}

}  // namespace

void make_ready(Worker& w, uint32_t warp, uint32_t lanes) {
    w.ready[warp] |= lanes;
    w.ready_warps |= 1u << warp;
}

// Runs other threads until somebody makes the current one ready again.
void suspend(Worker& w) {
    Lane* from = w.current;
    Lane* to = pick(w);
    if (to == from) return make_current(w, from);
    void* sp = w.main_sp;
    if (to) {
        make_current(w, to);
        sp = to->sp ? to->sp : new_fiber(w);
    }
    switch_to(&from->sp, sp);
}

void wait_at(Lane* lane, const char* what, Site site, void* pc) {
    lane->waits_for = what;
    lane->site = site;
    lane->pc = pc;
}

uint32_t release(Worker& w) {
    uint32_t mine = w.current->view.linear / 32;
    w.time = std::max(w.time, stamp_clock(w.warp[mine].stamp)) + 1;
    w.warp[mine].stamp = uint64_t(w.id) << STAMP_WORKER | uint64_t(w.time) << STAMP_CLOCK | mine * 32;
    make_current(w, w.current);
    return w.time;
}

uint64_t draw(Worker& w) { return next_random(w); }

void set_fault(Worker& w, const Lane* lane, std::string where, std::string cause) {
    w.failed = true;
    w.fault.set = true;
    w.fault.order = w.block_order;
    std::copy(w.block.block, w.block.block + 3, w.fault.block);
    w.fault.has_thread = lane != nullptr;
    if (lane) std::copy(lane->view.thread, lane->view.thread + 3, w.fault.thread);
    w.fault.where = std::move(where);
    w.fault.cause = std::move(cause);
}

void fail(Worker& w, void* pc, std::string cause) { fail(w, position_token(pc), std::move(cause)); }

void fail(Worker& w, std::string where, std::string cause) {
    set_fault(w, w.current, std::move(where), std::move(cause));
    void* dropped;
    switch_to(&dropped, w.main_sp);
    __builtin_unreachable();
}

// Runs the lanes of `mask` through `operation` once all of them have come here.
void meet(Worker& w, uint32_t mask, const Operation& operation, Site site, void* pc) {
    Lane* me = w.current;
    Warp& warp = warp_of(w, me);
    uint32_t bit = 1u << me->view.linear % 32;
    auto refuse = [&](std::string cause) { fail(w, position(site, pc), operation.name + std::move(cause)); };
    if (!(mask & bit)) refuse(format(": mask 0x%08x does not name the calling lane %d", mask, __builtin_ctz(bit)));
    Meeting& meeting = warp.meetings[__builtin_ctz(mask)];
    if (!meeting.arrived) {
        if (mask & ~warp.live)
            refuse(format(": mask 0x%08x names lanes that do not exist (the warp has 0x%08x)", mask, warp.live));
        if (mask & warp.ended)
            refuse(format(": mask 0x%08x names lanes that have ended (0x%08x)", mask, mask & warp.ended));
        meeting.mask = mask;
        meeting.operation = &operation;
        meeting.site = site;
        meeting.pc = pc;
    } else {
        if (meeting.mask != mask)
            refuse(format(": mask 0x%08x meets mask 0x%08x of ", mask, meeting.mask) + position(meeting.site, meeting.pc));
        if (meeting.operation != &operation || (operation.same_site && !meeting.site.same(site)))
            refuse(format(" here meets %s of ", meeting.operation->name) + position(meeting.site, meeting.pc) +
                   ": divergence");
    }
    meeting.arrived |= bit;
    if (meeting.arrived != mask) {
        wait_at(me, operation.name, site, pc);
        return suspend(w);
    }
    meeting.arrived = 0;
    operation.run(warp, mask);
    ++w.progress;
    if (operation.orders) warp.stamp += STAMP_MEETING;
    if (w.counting) traffic_flush(w, warp);
    if (uint32_t others = mask & ~bit) make_ready(w, me->view.linear / 32, others);
    make_current(w, me);
}

void run_block(Worker& w) {
    w.failed = false;
    w.ended = 0;
    w.block_atomic = false;
    w.static_bytes = w.static_objects = 0;
    w.progress = 0;
    ++w.serial;
    synchronise_block(w);
    w.floor = w.synchronised;
    for (uint32_t i = 0; i < w.warps; ++i) {
        w.warp[i].ended = 0;
        make_ready(w, i, w.warp[i].live);
    }
    for (uint32_t i = 0; i < w.threads; ++i) {
        w.lanes[i].sp = nullptr;
        w.lanes[i].did_atomic = false;
        w.lanes[i].groups = w.lanes[i].mbarrier = 0;
        w.lanes[i].fences = w.lanes[i].init_fences = 0;
    }
    if (w.async) std::memset(w.agents_seen, 0, sizeof w.agents_seen);
    w.dynamic_first = ARENA_FIRST;
    w.dynamic_bytes = w.block.dynamic_bytes;
    if (w.block.dynamic_bytes) std::memset(w.block.dynamic, 0xff, w.block.dynamic_bytes);

    uint64_t progress = 0;
    uint32_t idle = 0;
    for (;;) {
        if (Lane* next = pick(w)) {
            make_current(w, next);
            switch_to(&w.main_sp, next->sp ? next->sp : new_fiber(w));
        }
        if (w.failed) break;
        if (w.ended == w.threads) {
            if (w.async) end_async_block(w);
            break;
        }
        if (w.async && finish_load(w)) continue;
        for (uint32_t i = 0; i < w.warps; ++i) {
            if (uint32_t lanes = w.yielded[i]) make_ready(w, i, lanes);
            w.yielded[i] = 0;
        }
        if (!w.ready_warps) {
            report_deadlock(w, "deadlock: ");
            break;
        }
        idle = progress == w.progress ? idle + 1 : 0;
        progress = w.progress;
        if (idle > IDLE_ROUNDS) {
            report_deadlock(w, "endless wait: ");
            break;
        }
    }
    emu_current = w.current = nullptr;
    if (!w.failed) return;
    // Abandon the block: kernels own nothing that needs unwinding.
    for (uint32_t i = 0; i < w.warps; ++i) {
        w.ready[i] = w.yielded[i] = 0;
        for (Meeting& meeting : w.warp[i].meetings) meeting.arrived = 0;
    }
    w.ready_warps = 0;
    std::memset(w.barriers, 0, sizeof w.barriers);
    w.free_stacks = MAX_THREADS;
    for (uint32_t i = 0; i < MAX_THREADS; ++i) w.free_stack[i] = uint16_t(MAX_THREADS - 1 - i);
    drop_copies(w);
    drop_async(w);
    if (w.counting) traffic_drop(w);
}

void layout_block(Worker& w, const uint32_t shape[3]) {
    if (std::equal(shape, shape + 3, w.shape)) return;
    std::copy(shape, shape + 3, w.shape);
    for (uint32_t i = 0; i < w.warps; ++i) w.time = std::max(w.time, stamp_clock(w.warp[i].stamp));
    w.threads = shape[0] * shape[1] * shape[2];
    w.warps = (w.threads + 31) / 32;
    uint32_t i = 0;
    for (uint32_t z = 0; z < shape[2]; ++z)
        for (uint32_t y = 0; y < shape[1]; ++y)
            for (uint32_t x = 0; x < shape[0]; ++x, ++i) w.lanes[i].view = {{x, y, z}, i, &w.block};
    for (uint32_t i = 0; i < w.warps; ++i) {
        w.warp[i].lanes = &w.lanes[i * 32];
        uint32_t lanes = std::min(32u, w.threads - i * 32);
        w.warp[i].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    }
}

static void* map(size_t bytes) {
    void* memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

Worker* create_worker(uint32_t id) {
    size_t bytes = ARENA_BYTES + MAX_THREADS * STACK_BYTES;
    void* mapping = map(bytes);
    void* words = map(ARENA_BYTES / 4 * sizeof(Cell));
    void* halves = map(ARENA_BYTES / 4 * sizeof(Cell));
    void* odd = map(ARENA_BYTES / 2 * sizeof(Cell));
    void* record = map(sizeof(Worker));
    if (!mapping || !words || !halves || !odd || !record) return nullptr;
    Worker* w = new (record) Worker();
    w->arena = reinterpret_cast<uintptr_t>(mapping);
    w->mapping_bytes = bytes;
    w->words = static_cast<Cell*>(words);
    w->halves = static_cast<Cell*>(halves);
    w->bytes = static_cast<Cell*>(odd);
    w->id = id;
    w->free_stacks = MAX_THREADS;
    for (uint32_t i = 0; i < MAX_THREADS; ++i) w->free_stack[i] = uint16_t(MAX_THREADS - 1 - i);
    return w;
}

}  // namespace emu

using namespace emu;

extern "C" {

int emu_syncthreads(int vote, int predicate, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    void* pc = __builtin_return_address(0);
    Barrier& barrier = w.barriers[0];
    Site site{file, line};
    auto refuse = [&](std::string cause) { fail(w, position(site, pc), std::move(cause)); };
    if (w.ended) refuse(format("block barrier after %u of %u threads have ended", w.ended, w.threads));
    if (!barrier.arrived) {
        barrier.site = site;
        barrier.pc = pc;
        barrier.count = barrier.any = 0;
        barrier.all = 1;
    } else if (!barrier.site.same(site)) {
        refuse("divergence: this block barrier meets the one of " + position(barrier.site, barrier.pc) +
               format(", where %u thread(s) wait", barrier.arrived));
    }
    ++barrier.arrived;
    barrier.count += predicate != 0;
    barrier.any |= predicate != 0;
    barrier.all &= predicate != 0;
    if (barrier.arrived < w.threads) {
        wait_at(me, "the block barrier", site, pc);
        suspend(w);
        return barrier.vote;
    }
    barrier.arrived = 0;
    barrier.vote = vote == EMU_BLOCK_COUNT ? barrier.count : vote == EMU_BLOCK_AND ? barrier.all : barrier.any;
    ++w.progress;
    if (w.counting)
        for (uint32_t i = 0; i < w.warps; ++i) traffic_flush(w, w.warp[i]);
    synchronise_block(w);
    uint32_t mine = me->view.linear / 32, bit = 1u << me->view.linear % 32;
    for (uint32_t i = 0; i < w.warps; ++i) {
        uint32_t lanes = w.warp[i].live & ~(i == mine ? bit : 0);
        if (lanes) make_ready(w, i, lanes);
    }
    make_current(w, me);
    return barrier.vote;
}

void emu_barrier(int id, int threads, bool wait, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    void* pc = __builtin_return_address(0);
    Site site{file, line};
    auto refuse = [&](std::string cause) {
        fail(w, position(site, pc), format("named barrier %d of %d threads", id, threads) + std::move(cause));
    };
    if (id < 1 || id >= BARRIERS) refuse(": there are barriers 1 to 15");
    if (threads <= 0 || threads % 32 || uint32_t(threads) > w.threads)
        refuse(format(" in a block of %u: expected whole warps of the block", w.threads));
    Barrier& barrier = w.barriers[id];
    if (!barrier.arrived) {
        barrier.expected = uint32_t(threads);
        barrier.site = site;
    } else if (barrier.expected != uint32_t(threads)) {
        refuse(format(": others wait there for %u", barrier.expected));
    }
    uint32_t mine = me->view.linear / 32, bit = 1u << me->view.linear % 32;
    barrier.release[mine] = release(w);
    if (wait) barrier.waiting[mine] |= bit;
    ++w.progress;
    if (++barrier.arrived < barrier.expected) {
        make_current(w, me);
        if (!wait) return;
        wait_at(me, "a named barrier", site, pc);
        return suspend(w);
    }
    if (!w.partial) std::memset(w.seen, 0, sizeof w.seen);
    w.partial = true;
    for (uint32_t v = 0; v < w.warps; ++v) {
        if (!barrier.waiting[v]) continue;
        for (uint32_t u = 0; u < w.warps; ++u) {
            if (!barrier.release[u]) continue;
            w.seen[v][u] = std::max(w.seen[v][u], barrier.release[u]);
            for (uint32_t x = 0; x < w.warps; ++x) w.seen[v][x] = std::max(w.seen[v][x], w.seen[u][x]);
            for (int x = 0; w.async && x < AGENTS; ++x)
                w.agents_seen[v][x] = std::max(w.agents_seen[v][x], w.agents_seen[u][x]);
        }
        if (w.counting) traffic_flush(w, w.warp[v]);
        uint32_t lanes = barrier.waiting[v] & ~(v == mine ? bit : 0);
        if (lanes) make_ready(w, v, lanes);
    }
    barrier = Barrier{};
    make_current(w, me);
}

void emu_nanosleep() {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    w.yielded[me->view.linear / 32] |= 1u << me->view.linear % 32;
    wait_at(me, "__nanosleep", {"", 0}, __builtin_return_address(0));
    suspend(w);
}

void emu_trap(const char* what, const char*, int) { fail(*emu_worker, __builtin_return_address(0), what); }

void emu_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
