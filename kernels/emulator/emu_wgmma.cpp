// Products of a warpgroup (wgmma). Each warp issues by itself; the first that waits computes for all four, and each
// finds its rows in its accumulators when it has waited itself. Until then they are poison, and what the product reads
// may not be written.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "emu_async.h"

namespace emu {

namespace {

constexpr int MAJOR_K = 0;

struct Tile {
    uint32_t start, leading, stride, swizzle;
};

Tile tile_of(uint64_t bits) {
    constexpr uint32_t SWIZZLES[4] = {0, 128, 64, 32};
    auto field = [&](int shift) { return uint32_t(bits >> shift & 0x3fff) << 4; };
    return {field(0), field(16), field(32), SWIZZLES[bits >> 62]};
}

// Offset in the arena of the 16 bytes from element (mn, k) on: along k or, MN-major, along mn.
uint32_t chunk_at(const Tile& tile, int major, uint32_t mn, uint32_t k) {
    uint32_t row = tile.swizzle ? tile.swizzle : 16, x;
    if (major == MAJOR_K) {
        x = mn / 8 * tile.stride + mn % 8 * row + (tile.swizzle ? 2 * k : k / 8 * tile.leading);
    } else {
        uint32_t across = row / 2;
        x = mn / across * (tile.swizzle ? tile.leading : tile.stride) +
            k / 8 * (tile.swizzle ? tile.stride : tile.leading) + k % 8 * row + mn % across * 2;
    }
    return swizzled(tile.start + x, tile.swizzle);
}

// f(offset in the arena, mn, k) for every 16 bytes of rows `first` to `last` and 16 k.
template <class F>
void each_chunk(uint64_t bits, int major, uint32_t first, uint32_t last, F f) {
    Tile tile = tile_of(bits);
    uint32_t step_mn = major == MAJOR_K ? 1 : 8, step_k = major == MAJOR_K ? 8 : 1;
    for (uint32_t mn = first; mn < last; mn += step_mn)
        for (uint32_t k = 0; k < 16; k += step_k) f(chunk_at(tile, major, mn, k), mn, k);
}

// The same for all that a product reads.
template <class F>
void each_operand(const Product& product, F f) {
    if (!product.form.a_in_registers) each_chunk(product.tile_a, product.form.major_a, 0, 64, f);
    each_chunk(product.tile_b, product.form.major_b, 0, uint32_t(product.registers) * 2, f);
}

void* in_shared(const Worker& w, uint32_t offset) { return reinterpret_cast<void*>(w.arena + offset); }

struct Issue {
    float* d;
    int registers;
    emu_wgmma_form form;
    emu_words4 a;
    uint64_t tile_a, tile_b;
    Site site;
    void* pc;
    bool same(const Issue& x) const {
        return registers == x.registers && form.kind == x.form.kind && form.accumulate == x.form.accumulate &&
               form.a_in_registers == x.form.a_in_registers && form.major_a == x.form.major_a &&
               form.major_b == x.form.major_b && tile_a == x.tile_a && tile_b == x.tile_b && site.same(x.site);
    }
};

const Issue& issue_of(const Warp& warp, int lane) { return *reinterpret_cast<const Issue*>(warp.lanes[lane].value); }

struct Place {
    Warpgroup& group;
    uint32_t number;  // of the warp in it
    WarpProducts& mine;
};
Place place_of(Worker& w, const Warp& warp) {
    uint32_t at = uint32_t(&warp - w.warp);
    Async& async = async_of(w);
    Warpgroup& group = async.groups[at / 4];
    async.multiplied = true;
    return {group, at % 4, group.warp[at % 4]};
}

// ---- computing --------------------------------------------------------------------------------------------------------

// Sums go over k in ascending order; the hardware's order is its own.
__attribute__((target("avx2,fma,f16c"))) float widened(uint16_t x, bool half) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return half ? _cvtsh_ss(x) : value;
}

// values[mn * step_mn + k * step_k]
void widen(Worker& w, uint64_t bits, int major, uint32_t count, bool half, float* values, uint32_t step_mn,
           uint32_t step_k) {
    each_chunk(bits, major, 0, count, [&](uint32_t offset, uint32_t mn, uint32_t k) {
        uint16_t chunk[8];
        std::memcpy(chunk, in_shared(w, offset), 16);
        for (uint32_t i = 0; i < 8; ++i) {
            uint32_t at = major == MAJOR_K ? mn * step_mn + (k + i) * step_k : (mn + i) * step_mn + k * step_k;
            values[at] = widened(chunk[i], half);
        }
    });
}

__attribute__((target("avx2,fma"))) void multiply(const float* a, const float* b, float* sum, int columns) {
    for (int k = 0; k < 16; ++k) {
        __m256 x = _mm256_set1_ps(a[k]);
        for (int j = 0; j < columns; j += 8)
            _mm256_storeu_ps(sum + j, _mm256_fmadd_ps(x, _mm256_loadu_ps(b + k * columns + j), _mm256_loadu_ps(sum + j)));
    }
}

void compute(Worker& w, Product& product, int agent) {
    const emu_wgmma_form& form = product.form;
    bool half = form.kind == EMU_MMA_F16;
    int columns = 2 * product.registers;
    std::vector<float> a(64 * 16), b(size_t(16 * columns)), sum(static_cast<size_t>(columns));
    widen(w, product.tile_b, form.major_b, uint32_t(columns), half, b.data(), 1, uint32_t(columns));
    if (!form.a_in_registers) {
        widen(w, product.tile_a, form.major_a, 64, half, a.data(), 16, 1);
    } else {
        for (int row = 0; row < 64; ++row)
            for (int k = 0; k < 16; ++k) {
                const emu_words4& words = product.a[row / 16][row % 8 * 4 + k % 8 / 2];
                a[size_t(row * 16 + k)] = widened(uint16_t(words.v[row % 16 / 8 + k / 8 * 2] >> 16 * (k & 1)), half);
            }
    }
    for (int row = 0; row < 64; ++row) {
        std::vector<float>& values = product.d[row / 16]->values;
        auto at = [&](int column) -> float& {
            int lane = row % 8 * 4 + column % 8 / 2;
            return values[size_t(lane * product.registers + column / 8 * 4 + row % 16 / 8 * 2 + column % 2)];
        };
        for (int column = 0; column < columns; ++column) sum[size_t(column)] = form.accumulate ? at(column) : 0.0f;
        multiply(&a[size_t(row * 16)], b.data(), sum.data(), columns);
        for (int column = 0; column < columns; ++column) at(column) = sum[size_t(column)];
    }
    product.done = true;
    product.clock = ++w.time;
    --w.pending;
    each_operand(product, [&](uint32_t offset, uint32_t, uint32_t) {
        mark_reading(w, in_shared(w, offset), 16, false);
        if (emu_checked) record_agent(w, in_shared(w, offset), 16, READ, agent, product.clock, product.pc);
    });
}

// ---- issuing ----------------------------------------------------------------------------------------------------------

void check_tile(Worker& w, uint64_t bits, const char* name, void* pc) {
    Tile tile = tile_of(bits);
    if (tile.swizzle && tile.start & (8 * tile.swizzle - 1) & ~(tile.swizzle - 1))
        fail(w, pc, "misaligned: " + describe_address(w.arena + tile.start, 0, name) +
                        format(" is not aligned to %u, as a swizzle of %u bytes needs it", 8 * tile.swizzle, tile.swizzle));
}

// The accumulators that these pointers name, if products under way will write them.
std::shared_ptr<Accumulators> find_accumulators(Worker& w, const Place& at, const Issue& issue) {
    for (const Product& product : at.group.products) {
        const auto& d = product.d[at.number];
        if (!d || product.retired >> at.number & 1) continue;
        if (d->d[0] == issue.d && d->registers == issue.registers) return d;
        if (issue.d < d->d[0] + d->registers && d->d[0] < issue.d + issue.registers)
            fail(w, issue.pc, "wgmma into a part of the accumulators of the one at " + position(product.site, product.pc) +
                                  ", which is under way");
    }
    return nullptr;
}

void run_issue(Warp& warp, uint32_t) {
    Worker& w = *emu_worker;
    Place at = place_of(w, warp);
    const Issue& first = issue_of(warp, 0);
    for (int lane = 1; lane < 32; ++lane)
        if (!first.same(issue_of(warp, lane))) fail(w, first.pc, "wgmma: the lanes of a warp name different operands");
    uint32_t whole = uint32_t(&warp - w.warp) / 4 * 128 + 128;
    if (w.threads < whole) fail(w, first.pc, format("wgmma needs four whole warps, the block has %u threads", w.threads));

    std::shared_ptr<Accumulators> d = find_accumulators(w, at, first);
    if (!at.mine.fenced && !d)
        fail(w, first.pc, "missing wgmma_fence: wgmma into registers that were the program's since the last one");
    uint64_t number = at.mine.issued++;
    if (number - at.group.first == at.group.products.size()) {
        Product fresh = {};
        fresh.form = first.form;
        fresh.registers = first.registers;
        fresh.tile_a = first.tile_a;
        fresh.tile_b = first.tile_b;
        fresh.site = first.site;
        fresh.pc = first.pc;
        if (!fresh.form.a_in_registers) check_tile(w, fresh.tile_a, "tile of a", fresh.pc);
        check_tile(w, fresh.tile_b, "tile of b", fresh.pc);
        each_operand(fresh, [&](uint32_t offset, uint32_t, uint32_t) {
            check_shared_bounds(w, in_shared(w, offset), 16, READ, fresh.pc);
            mark_reading(w, in_shared(w, offset), 16, true);
        });
        ++w.pending;
        at.group.products.push_back(fresh);
    }
    Product& product = at.group.products[number - at.group.first];
    Issue other{first.d,        product.registers, product.form, {}, product.tile_a, product.tile_b, product.site,
                product.pc};
    if (!first.same(other))
        fail(w, first.pc, "divergence: the warps of a warpgroup issue different wgmma, here and at " +
                              position(product.site, product.pc));
    if (emu_checked) {
        auto check = [&](uint32_t offset, uint32_t, uint32_t) { check_async_read(w, in_shared(w, offset), 16, first.pc); };
        if (!first.form.a_in_registers)
            each_chunk(first.tile_a, first.form.major_a, 16 * at.number, 16 * at.number + 16, check);
        each_chunk(first.tile_b, first.form.major_b, 0, uint32_t(first.registers) * 2, check);
    }
    if (!d) {
        d = std::make_shared<Accumulators>();
        d->registers = first.registers;
        d->values.resize(size_t(32 * first.registers));
        for (int lane = 0; lane < 32; ++lane) {
            size_t bytes = sizeof(float) * size_t(first.registers);
            d->d[lane] = issue_of(warp, lane).d;
            std::memcpy(&d->values[size_t(lane * first.registers)], d->d[lane], bytes);
            std::memset(d->d[lane], 0xff, bytes);
        }
    }
    ++d->users;
    product.d[at.number] = d;
    product.group[at.number] = at.mine.groups;
    for (int lane = 0; lane < 32; ++lane) product.a[at.number][lane] = issue_of(warp, lane).a;
    product.issued |= 1u << at.number;
    if (product.issued != 15) return;
    for (uint32_t i = 0; i < 4; ++i)
        if (uint32_t lanes = at.group.waiting[i]) {
            at.group.waiting[i] = 0;
            make_ready(w, uint32_t(&warp - w.warp) / 4 * 4 + i, lanes);
        }
}

// ---- waiting ----------------------------------------------------------------------------------------------------------

bool is_due(const Product& product, const Place& at, uint32_t groups) {
    return product.issued >> at.number & 1 && !(product.retired >> at.number & 1) &&
           product.group[at.number] + groups < at.mine.groups;
}

void deliver(Worker& w, const Product& product, const Accumulators& d) {
    for (int lane = 0; lane < 32; ++lane) {
        size_t bytes = sizeof(float) * size_t(d.registers);
        const auto* now = reinterpret_cast<const uint8_t*>(d.d[lane]);
        if (std::any_of(now, now + bytes, [](uint8_t byte) { return byte != 0xff; }))
            fail(w, product.pc, "accumulators were written before wgmma_wait, while the product was under way");
        std::memcpy(d.d[lane], &d.values[size_t(lane * d.registers)], bytes);
    }
}

void run_wait(Warp& warp, uint32_t) {
    Worker& w = *emu_worker;
    Place at = place_of(w, warp);
    uint32_t groups = uint32_t(warp.lanes[0].value), number = uint32_t(&warp - w.warp);
    for (Product& product : at.group.products) {
        if (!is_due(product, at, groups)) continue;
        if (!product.done) compute(w, product, int(number / 4));
        uint32_t& seen = w.agents_seen[number][number / 4];
        seen = std::max(seen, product.clock + 1);
        product.retired |= 1u << at.number;
        ++at.mine.retired;
        at.mine.fenced = false;
        if (--product.d[at.number]->users == 0) deliver(w, product, *product.d[at.number]);
        product.d[at.number] = nullptr;
    }
    while (!at.group.products.empty() && at.group.products.front().retired == 15) {
        at.group.products.pop_front();
        ++at.group.first;
    }
}

void run_fence(Warp& warp, uint32_t) { place_of(*emu_worker, warp).mine.fenced = true; }
void run_commit(Warp& warp, uint32_t) { ++place_of(*emu_worker, warp).mine.groups; }

const Operation WGMMA{"wgmma", run_issue, true}, FENCE{"wgmma_fence", run_fence, false},
    COMMIT{"wgmma_commit", run_commit, false}, WAIT{"wgmma_wait", run_wait, false};

}  // namespace

void end_products(Worker& w, Lane& lane) {
    const Warpgroup& group = w.async->groups[lane.view.linear / 128];
    uint32_t number = lane.view.linear / 32 % 4;
    for (const Product& product : group.products) {
        if (!(product.issued >> number & 1) || product.retired >> number & 1) continue;
        bool committed = product.group[number] < group.warp[number].groups;
        fail(w, product.pc, std::string("ended with a wgmma that it has not ") + (committed ? "waited for" : "committed"));
    }
}

std::string product_text(const Worker& w, size_t granule) {
    std::string text = "an asynchronous operation has still to read";
    for (const Warpgroup& group : w.async->groups)
        for (const Product& product : group.products) {
            if (product.done) continue;
            bool reads = false;
            each_operand(product, [&](uint32_t offset, uint32_t, uint32_t) {
                reads = reads || offset / COPY_BYTES == granule;
            });
            if (reads) return "the wgmma of " + position(product.site, product.pc) + " has still to read";
        }
    return text;
}

}  // namespace emu

using namespace emu;

extern "C" {

uint32_t emu_shared_offset(const void* address) {
    Worker& w = *emu_worker;
    uint32_t offset = offset_of(w, address);
    void* pc = __builtin_return_address(0);
    if (!in_arena(w, address) || offset >= 1 << 18) fail(w, pc, "wgmma of an address that is not in shared memory");
    if (offset % 16)
        fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(address), 0, "wgmma") +
                        " is not aligned to 16");
    return offset;
}

void emu_wgmma(float* d, int registers, emu_wgmma_form form, emu_words4 a, uint64_t tile_a, uint64_t tile_b,
               const char* file, int line) {
    Worker& w = *emu_worker;
    void* pc = __builtin_return_address(0);
    Issue issue{d, registers, form, a, tile_a, tile_b, {file, line}, pc};
    w.current->value = reinterpret_cast<uintptr_t>(&issue);
    meet(w, ~0u, WGMMA, {file, line}, pc);
}

void emu_wgmma_fence() { meet(*emu_worker, ~0u, FENCE, {"", 0}, __builtin_return_address(0)); }
void emu_wgmma_commit() { meet(*emu_worker, ~0u, COMMIT, {"", 0}, __builtin_return_address(0)); }

void emu_wgmma_wait(int groups) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    void* pc = __builtin_return_address(0);
    Place at = place_of(w, warp_of(w, me));
    // A product is over when all four warps have issued it and it was computed.
    auto incomplete = [&](const Product& product) { return is_due(product, at, uint32_t(groups)) && product.issued != 15; };
    while (std::any_of(at.group.products.begin(), at.group.products.end(), incomplete)) {
        at.group.waiting[at.number] |= 1u << me->view.linear % 32;
        wait_at(me, "wgmma_wait, for warps that have not issued the product,", {"", 0}, pc);
        suspend(w);
    }
    me->value = uint64_t(groups);
    meet(w, ~0u, WAIT, {"", 0}, pc);
}
}
