// The kernel table, workers and helper threads, and the launch itself.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <thread>

#include "emu_internal.h"

namespace emu {

void traffic_store(EmuTraffic& out, const TrafficMap& counts);

namespace {

// Filled by static constructors of the kernel files, read-only afterwards.
std::map<std::string, EmuKernel>& kernels() {
    static auto* table = new std::map<std::string, EmuKernel>;
    return *table;
}

// ---- workers ------------------------------------------------------------------------------------------------------------

struct WorkerPool {
    std::mutex lock;
    std::condition_variable returned;
    std::vector<Worker*> idle;
    uint32_t created = 0;
};
WorkerPool& workers() {
    static auto* pool = new WorkerPool;
    return *pool;
}

Worker* take_worker() {
    WorkerPool& pool = workers();
    std::unique_lock<std::mutex> guard(pool.lock);
    if (pool.idle.empty() && pool.created < 255) {
        Worker* fresh = create_worker(pool.created + 1);
        if (!fresh) return nullptr;
        ++pool.created;
        return fresh;
    }
    pool.returned.wait(guard, [&] { return !pool.idle.empty(); });
    Worker* worker = pool.idle.back();
    pool.idle.pop_back();
    return worker;
}

void give_worker(Worker* worker) {
    WorkerPool& pool = workers();
    {
        std::lock_guard<std::mutex> guard(pool.lock);
        pool.idle.push_back(worker);
    }
    pool.returned.notify_one();
}

// ---- blocks ---------------------------------------------------------------------------------------------------------------

uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// Runs blocks until there are none left. The order of blocks does not depend on the number of threads, and neither
// does what a block does. `after_first` is called once, behind the first block.
template <class F>
void run_blocks(Launch& launch, F after_first) {
    Worker* taken = take_worker();
    if (!taken) {
        std::lock_guard<std::mutex> guard(launch.mutex);
        launch.fault.set = true;
        launch.fault.cause = "no memory for the emulator's stacks";
        return;
    }
    Worker& w = *taken;
    w.launch = &launch;
    layout_block(w, launch.block);
    std::copy(launch.block, launch.block + 3, w.block.block_dim);
    std::copy(launch.grid, launch.grid + 3, w.block.grid_dim);
    w.block.dynamic_bytes = launch.dynamic;
    w.block.dynamic = reinterpret_cast<unsigned char*>(w.arena + ARENA_FIRST);
    std::memcpy(w.args_copy, launch.args, launch.args_bytes);
    w.args = w.args_copy;
    w.thunk = launch.kernel->thunk;
    w.order = launch.options.order;
    w.counting = launch.options.checks >= EMU_CHECKS_TRAFFIC;
    std::memset(w.recent, 0, sizeof w.recent);
    w.fault = Fault();
    // Everything stamped before belongs to earlier launches.
    auto next_stamp = [&] {
        for (uint32_t i = 0; i < w.warps; ++i) w.time = std::max(w.time, stamp_clock(w.warp[i].stamp));
        return uint64_t(w.id) << STAMP_WORKER | uint64_t(w.time + 1) << STAMP_CLOCK;
    };
    launch.end[w.id].store(~0ull, std::memory_order_relaxed);
    launch.start[w.id].store(next_stamp(), std::memory_order_relaxed);
    emu_worker = &w;
    emu_checked = launch.options.checks >= EMU_CHECKS_ON ? &w : nullptr;
    bool first = true;
    for (;;) {
        uint64_t order = launch.next.fetch_add(1, std::memory_order_relaxed);
        // Blocks behind a failed one need not run; those before it do, so the first in order is reported.
        if (order >= launch.blocks || order > launch.failed_at.load(std::memory_order_relaxed)) break;
        uint64_t index = order;
        if (w.order == EMU_ORDER_REVERSE) index = launch.blocks - 1 - order;
        if (w.order == EMU_ORDER_SHUFFLED)
            index = uint64_t(((unsigned __int128)order * launch.multiplier + launch.offset) % launch.blocks);
        w.block_order = order;
        w.block.block[0] = uint32_t(index % launch.grid[0]);
        w.block.block[1] = uint32_t(index / launch.grid[0] % launch.grid[1]);
        w.block.block[2] = uint32_t(index / launch.grid[0] / launch.grid[1]);
        w.random = mix(launch.options.seed ^ mix(index)) | 1;
        run_block(w);
        if (w.failed) {
            std::lock_guard<std::mutex> guard(launch.mutex);
            if (!launch.fault.set || w.fault.order < launch.fault.order) launch.fault = w.fault;
            launch.failed_at.store(std::min(launch.failed_at.load(), order));
        }
        if (first) after_first();
        first = false;
    }
    emu_worker = emu_checked = nullptr;
    if (w.counting) {
        std::lock_guard<std::mutex> guard(launch.mutex);
        for (const auto& [pc, counts] : w.traffic) launch.traffic[pc].add(counts);
        w.traffic.clear();
    }
    launch.end[w.id].store(next_stamp(), std::memory_order_relaxed);
    w.launch = nullptr;
    give_worker(&w);
}

// ---- helper threads -------------------------------------------------------------------------------------------------------

// Idle threads that join launches with enough work. They live as long as the process.
struct Helpers {
    std::mutex lock;
    std::condition_variable wanted, done;
    std::deque<Launch*> jobs;
    uint32_t threads = 0;

    void serve() {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            wanted.wait(guard, [&] { return !jobs.empty(); });
            Launch* launch = jobs.front();
            jobs.pop_front();
            ++launch->helpers;
            guard.unlock();
            run_blocks(*launch, [] {});
            guard.lock();
            if (--launch->helpers == 0) done.notify_all();
        }
    }

    void ask(Launch& launch, uint32_t count) {
        std::lock_guard<std::mutex> guard(lock);
        for (uint32_t i = 0; i < count; ++i) {
            if (threads < count) {
                ++threads;
                std::thread([this] { serve(); }).detach();
            }
            jobs.push_back(&launch);
            wanted.notify_one();
        }
    }

    void finish(Launch& launch) {
        std::unique_lock<std::mutex> guard(lock);
        jobs.erase(std::remove(jobs.begin(), jobs.end(), &launch), jobs.end());
        done.wait(guard, [&] { return launch.helpers == 0; });
    }
};
Helpers& helpers() {
    static auto* the_helpers = new Helpers;
    return *the_helpers;
}

uint32_t cores() {
    static const uint32_t count = std::max(1u, std::thread::hardware_concurrency());
    return count;
}

// What is wrong with a launch before it starts; empty: nothing.
std::string refuse(const EmuKernel* kernel, const char* name, const uint32_t grid[3], const uint32_t block[3],
                   uint32_t dynamic, size_t args_bytes, const EmuOptions& options) {
    if (!kernel) return format("there is no kernel `%s`", name);
    if (args_bytes != kernel->args_bytes)
        return format("the arguments have %zu bytes, the kernel's struct has %zu", args_bytes, kernel->args_bytes);
    if (args_bytes > sizeof(Worker::args_copy))
        return format("the arguments have %zu bytes, at most %zu", args_bytes, sizeof(Worker::args_copy));
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
        return "the grid must be 1..2147483647 x 1..65535 x 1..65535";
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (!threads || block[0] > 1024 || block[1] > 1024 || block[2] > 64 || threads > 1024)
        return "the block must have 1 to 1024 threads";
    if (threads > kernel->max_threads)
        return format("the block has %u threads, the kernel's launch bound is %u", unsigned(threads),
                      kernel->max_threads);
    size_t limit = options.shared_limit ? options.shared_limit : SHARED_LIMIT;
    if (dynamic > std::min(limit, SHARED_LIMIT))
        return format("too much shared memory: %u bytes dynamic, at most %zu", dynamic, std::min(limit, SHARED_LIMIT));
    if (options.order > EMU_ORDER_SHUFFLED || options.checks > EMU_CHECKS_TRAFFIC) return "unknown options";
    return "";
}

std::string fault_text(const Launch& launch, const Fault& fault) {
    std::string text = format("%s: block (%u,%u,%u)", launch.kernel->name, fault.block[0], fault.block[1],
                              fault.block[2]);
    if (fault.has_thread) text += format(", thread (%u,%u,%u)", fault.thread[0], fault.thread[1], fault.thread[2]);
    if (!fault.where.empty()) text += ", " + fault.where;
    return resolve_positions(text + ": " + fault.cause);
}

std::atomic<uint64_t> launch_ids{0};

uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

}  // namespace

}  // namespace emu

using namespace emu;

extern "C" {

void emu_register_kernel(const char* name, size_t args_bytes, uint32_t max_threads, emu_thunk thunk) {
    kernels()[name] = {name, args_bytes, max_threads, thunk};
}

const EmuKernel* emu_find(const char* name) {
    auto place = kernels().find(name);
    return place == kernels().end() ? nullptr : &place->second;
}

const EmuKernel* emu_kernel_at(size_t index) {
    if (index >= kernels().size()) return nullptr;
    return &std::next(kernels().begin(), long(index))->second;
}

int emu_launch(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t dynamic_smem,
               const void* args, size_t args_bytes, const EmuOptions* options, EmuTraffic* traffic, char* err,
               size_t err_len) {
    auto report = [&](const std::string& text) {
        if (err && err_len) {
            size_t length = std::min(text.size(), err_len - 1);
            std::memcpy(err, text.data(), length);
            err[length] = 0;
        }
        return 1;
    };
    const EmuKernel* kernel = emu_find(name);
    std::string refusal = refuse(kernel, name, grid, block, dynamic_smem, args_bytes, *options);
    if (emu_worker) refusal = "launched from inside a kernel";
    if (!refusal.empty()) return report(std::string(name) + ": " + refusal);

    Launch launch;
    launch.kernel = kernel;
    launch.args = args;
    launch.args_bytes = args_bytes;
    std::copy(grid, grid + 3, launch.grid);
    std::copy(block, block + 3, launch.block);
    launch.dynamic = dynamic_smem;
    launch.options = *options;
    launch.id = ++launch_ids;
    launch.blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    for (auto& stamp : launch.start) stamp.store(~0ull, std::memory_order_relaxed);
    for (auto& stamp : launch.end) stamp.store(~0ull, std::memory_order_relaxed);
    if (options->order == EMU_ORDER_SHUFFLED) {
        launch.offset = mix(options->seed) % launch.blocks;
        launch.multiplier = mix(options->seed + 1) % launch.blocks;
        while (gcd(launch.multiplier, launch.blocks) != 1) ++launch.multiplier;
    }
    if (options->checks == EMU_CHECKS_OFF) assume_written(launch);

    // Waking a thread costs more than a small launch: the first block tells whether help pays.
    constexpr double WORTH_HELP = 200e-6;  // seconds
    uint32_t threads = options->threads ? options->threads : cores();
    auto begin = std::chrono::steady_clock::now();
    bool asked = false;
    run_blocks(launch, [&] {
        uint64_t left = launch.blocks - 1;
        std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
        if (threads < 2 || !left || spent.count() * double(left) < WORTH_HELP) return;
        helpers().ask(launch, uint32_t(std::min<uint64_t>(threads - 1, left)));
        asked = true;
    });
    if (asked) helpers().finish(launch);
    if (launch.fault.set) return report(fault_text(launch, launch.fault));
    if (traffic) traffic_store(*traffic, launch.traffic);
    return 0;
}
}
