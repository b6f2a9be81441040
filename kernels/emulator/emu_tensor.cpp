// Matrix operations of a warp, and asynchronous copies into shared memory.
//
// Layouts are those of the PTX manual (mma.m16n8k16, ldmatrix, stmatrix); g = lane / 4, t = lane % 4 throughout. A
// register of two 16-bit elements holds the one of lower index in its low half.
#include <immintrin.h>

#include <cstring>

#include "emu_internal.h"

using namespace emu;

// ---- products ---------------------------------------------------------------------------------------------------------

namespace {

struct Product {
    int kind;
    emu_words4 a;
    uint64_t b;
    emu_floats4 c;
};

// Compiled for what kernels are compiled for anyway: half-float conversion and fused multiply-add. Products of two
// 16-bit floats are exact in f32. Sums go over k in ascending order; the hardware's order is its own.
__attribute__((target("avx2,fma,f16c"))) void run_mma(Warp& warp, uint32_t) {
    alignas(32) uint16_t a[16][16], b[16][8];
    alignas(32) float c[16][8];
    const Product* of[32];
    for (int lane = 0; lane < 32; ++lane) {
        int g = lane / 4, t = lane % 4;
        const Product& x = *(of[lane] = reinterpret_cast<const Product*>(warp.lanes[lane].value));
        for (int r = 0; r < 4; ++r) {
            uint16_t* pair = &a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1)];
            pair[0] = uint16_t(x.a.v[r]);
            pair[1] = uint16_t(x.a.v[r] >> 16);
            c[g + 8 * (r >> 1)][2 * t + (r & 1)] = x.c.v[r];
        }
        for (int e = 0; e < 4; ++e) b[2 * t + 8 * (e >> 1) + (e & 1)][g] = uint16_t(x.b >> 16 * e);
    }
    bool half = of[0]->kind == EMU_MMA_F16;
    auto widen = [&](const uint16_t* x) __attribute__((target("avx2,fma,f16c"))) {
        __m128i bits = _mm_load_si128(reinterpret_cast<const __m128i*>(x));
        return half ? _mm256_cvtph_ps(bits)
                    : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    };
    __m256 wide[16];
    for (int k = 0; k < 16; ++k) wide[k] = widen(b[k]);
    for (int i = 0; i < 16; ++i) {
        alignas(32) float row[16];
        _mm256_store_ps(row, widen(a[i]));
        _mm256_store_ps(row + 8, widen(a[i] + 8));
        __m256 sum = _mm256_load_ps(c[i]);
        for (int k = 0; k < 16; ++k) sum = _mm256_fmadd_ps(_mm256_set1_ps(row[k]), wide[k], sum);
        _mm256_store_ps(c[i], sum);
    }
    for (int lane = 0; lane < 32; ++lane) {
        Product& x = *const_cast<Product*>(of[lane]);
        for (int r = 0; r < 4; ++r) x.c.v[r] = c[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)];
    }
}
const Operation MMA{"mma", run_mma, true, false};

// ---- matrices of 8 x 8 16-bit elements --------------------------------------------------------------------------------

struct Matrices {
    uint8_t* row;  // of lane 8 i + r: row r of matrix i
    emu_words4 x;
    int count;
    bool transposed;
};

Matrices& matrices_of(Warp& warp, int lane) { return *reinterpret_cast<Matrices*>(warp.lanes[lane].value); }

// f(half of a register, element in memory) for all lanes, registers and halves.
template <class F>
void each_element(Warp& warp, F f) {
    for (int lane = 0; lane < 32; ++lane) {
        Matrices& x = matrices_of(warp, lane);
        for (int i = 0; i < x.count; ++i)
            for (int e = 0; e < 2; ++e) {
                int major = lane / 4, minor = 2 * (lane % 4) + e;
                int row = x.transposed ? minor : major, col = x.transposed ? major : minor;
                f(reinterpret_cast<uint8_t*>(&x.x.v[i]) + 2 * e, matrices_of(warp, 8 * i + row).row + 2 * col);
            }
    }
}
void run_ldmatrix(Warp& warp, uint32_t) {
    each_element(warp, [](uint8_t* half, const uint8_t* element) { std::memcpy(half, element, 2); });
}
void run_stmatrix(Warp& warp, uint32_t) {
    each_element(warp, [](const uint8_t* half, uint8_t* element) { std::memcpy(element, half, 2); });
}
const Operation LDMATRIX{"ldmatrix", run_ldmatrix, true, false}, STMATRIX{"stmatrix", run_stmatrix, true, false};

void* shifted(void* pc, int by) { return static_cast<char*>(pc) - by; }

void meet_matrices(Worker& w, Matrices& x, const Operation& operation, Access kind, Site site, void* pc) {
    Lane* me = w.current;
    // Only the lanes of `count` matrices give an address.
    if (int(me->view.linear % 32) < 8 * x.count) {
        if (!in_arena(w, x.row)) fail(w, pc, std::string(operation.name) + " of an address that is not in shared memory");
        if (reinterpret_cast<uintptr_t>(x.row) % 16)
            fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(x.row), 16, operation.name) +
                            " is not aligned to 16");
        if (emu_checked) check_access(w, x.row, 16, kind, pc);
    }
    me->value = reinterpret_cast<uintptr_t>(&x);
    meet(w, ~0u, operation, site, pc);
}

// ---- asynchronous copies ----------------------------------------------------------------------------------------------

uint32_t& under_way(Worker& w, const void* to) {
    return w.under_way[(reinterpret_cast<uintptr_t>(to) - w.arena) / COPY_BYTES];
}

// Lets a copy happen: now the calling thread writes.
void complete(Worker& w, const Copy& copy, void* pc) {
    under_way(w, copy.to) &= 0xffff0000u;
    --w.pending;
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(copy.to + copy.bytes, 0, COPY_BYTES - copy.bytes);
    if (!emu_checked) return;
    bool counting = w.counting;
    w.counting = false;  // counted when it was issued
    check_access(w, copy.to, COPY_BYTES, WRITE, pc);
    w.counting = counting;
}

}  // namespace

namespace emu {

void end_copies(Worker& w, Lane& lane) {
    if (lane.copies.empty()) return;
    fail(w, lane.copies[0].pc,
         format("ended with %zu asynchronous copies that it has not waited for", lane.copies.size()));
}

void drop_copies(Worker& w) {
    for (Lane& lane : w.lanes) lane.copies.clear();
    std::memset(w.under_way, 0, sizeof w.under_way);
    w.pending = 0;
}

std::string copy_text(const Worker& w, size_t granule) {
    const uint8_t* to = reinterpret_cast<uint8_t*>(w.arena) + granule * COPY_BYTES;
    for (const Copy& copy : w.lanes[(w.under_way[granule] & 0xffff) - 1].copies)
        if (copy.to == to)
            return "an asynchronous copy of " + position_token(copy.pc) + " will write: its thread has not waited for it";
    return "an asynchronous copy will write";
}

}  // namespace emu

extern "C" {

emu_floats4 emu_mma(int kind, emu_words4 a, uint64_t b, emu_floats4 c, const char* file, int line) {
    Worker& w = *emu_worker;
    Product x{kind, a, b, c};
    w.current->value = reinterpret_cast<uintptr_t>(&x);
    meet(w, ~0u, MMA, {file, line}, __builtin_return_address(0));
    return x.c;
}

emu_words4 emu_ldmatrix(const void* row, int matrices, bool transposed, const char* file, int line) {
    Matrices x{static_cast<uint8_t*>(const_cast<void*>(row)), {}, matrices, transposed};
    meet_matrices(*emu_worker, x, LDMATRIX, READ, {file, line}, __builtin_return_address(0));
    return x.x;
}

void emu_stmatrix(void* row, emu_words4 words, int matrices, bool transposed, const char* file, int line) {
    Matrices x{static_cast<uint8_t*>(row), words, matrices, transposed};
    meet_matrices(*emu_worker, x, STMATRIX, WRITE, {file, line}, __builtin_return_address(0));
}

void emu_cp_async(void* to, const void* from, int bytes) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    void* pc = __builtin_return_address(0);
    if (bytes < 0 || bytes > int(COPY_BYTES)) fail(w, pc, format("cp.async of %d of 16 bytes", bytes));
    if (!in_arena(w, to)) fail(w, pc, "cp.async to an address that is not in shared memory");
    for (const void* address : {static_cast<const void*>(to), from})
        if (reinterpret_cast<uintptr_t>(address) % COPY_BYTES)
            fail(w, pc, "misaligned: " + describe_address(reinterpret_cast<uintptr_t>(address), COPY_BYTES, "cp.async") +
                            " is not aligned to 16");
    if (emu_checked) {
        if (bytes) check_access(w, from, uint32_t(bytes), READ, pc);
        // Another address of the same call, so that traffic counts tell the two sides apart.
        check_access(w, to, COPY_BYTES, WRITE, shifted(pc, 1));
    }
    std::memset(to, 0xff, COPY_BYTES);
    under_way(w, to) |= me->view.linear + 1;
    ++w.pending;
    me->copies.push_back({static_cast<uint8_t*>(to), from, uint32_t(bytes), me->groups, pc});
}

void emu_cp_async_commit() { ++emu_worker->current->groups; }

void emu_cp_async_wait(int groups) {
    Worker& w = *emu_worker;
    Lane& me = *w.current;
    void* pc = __builtin_return_address(0);
    size_t done = 0;  // copies are in the order of their groups
    while (done < me.copies.size() && me.copies[done].group + uint32_t(groups) < me.groups)
        complete(w, me.copies[done++], pc);
    me.copies.erase(me.copies.begin(), me.copies.begin() + long(done));
}
}
