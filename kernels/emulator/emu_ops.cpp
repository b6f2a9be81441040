// Warp operations and atomics: what they compute. A warp operation is computed once, by the lane that arrives last.
#include <algorithm>
#include <cstring>

#include "emu_internal.h"

using namespace emu;

// ---- warp operations --------------------------------------------------------------------------------------------------

// f(lane number, lane) for the lanes of a mask.
template <class F>
static inline void each(Warp& warp, uint32_t mask, F f) {
    for (; mask; mask &= mask - 1) {
        int i = __builtin_ctz(mask);
        f(i, warp.lanes[i]);
    }
}

static void run_nothing(Warp&, uint32_t) {}
static const Operation SYNCWARP{"__syncwarp", run_nothing, false, true};

extern "C" void emu_syncwarp(uint32_t mask, const char* file, int line) {
    meet(*emu_worker, mask, SYNCWARP, {file, line}, __builtin_return_address(0));
}

static void run_shfl(Warp& warp, uint32_t mask) {
    each(warp, mask, [&](int i, Lane& lane) {
        int kind = lane.argument >> 16 & 0xff, width = lane.argument >> 24 & 0xff;
        int operand = int16_t(lane.argument), first = i & ~(width - 1), last = first + width - 1;
        int source = i;
        if (kind == EMU_SHFL_IDX) source = first | (operand & (width - 1));
        if (kind == EMU_SHFL_UP) source = i - operand < first ? i : i - operand;
        if (kind == EMU_SHFL_DOWN) source = i + operand > last ? i : i + operand;
        if (kind == EMU_SHFL_XOR) source = (i ^ operand) > last ? i : i ^ operand;
        // A lane outside the mask has nothing to give: NaN in every float type.
        lane.result = mask >> source & 1 ? warp.lanes[source].value : ~0ull;
    });
}
static const Operation SHFL{"__shfl_sync", run_shfl, true, false};

extern "C" uint64_t emu_shfl(uint32_t mask, uint64_t value, int argument, int kind_and_width, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    int width = kind_and_width & 0xff;
    void* pc = __builtin_return_address(0);
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail(w, position({file, line}, pc), format("__shfl_sync: width %d, expected a power of two up to 32", width));
    me->value = value;
    // An up or down distance above 32 leaves the segment in any case.
    int kind = kind_and_width >> 8;
    if (kind == EMU_SHFL_UP || kind == EMU_SHFL_DOWN) argument = int(std::min(uint32_t(argument), 32u));
    me->argument = (argument & 0xff) | kind << 16 | width << 24;
    meet(w, mask, SHFL, {file, line}, pc);
    return me->result;
}

static void run_vote(Warp& warp, uint32_t mask) {
    uint32_t ballot = 0;
    each(warp, mask, [&](int i, Lane& lane) { ballot |= uint32_t(lane.value != 0) << i; });
    each(warp, mask, [&](int, Lane& lane) {
        lane.result = lane.argument == EMU_VOTE_BALLOT ? ballot
                      : lane.argument == EMU_VOTE_ANY  ? ballot != 0
                                                       : ballot == mask;
    });
}
static const Operation VOTE{"a warp vote", run_vote, true, false};

extern "C" uint32_t emu_vote(uint32_t mask, int kind, int predicate, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    me->value = predicate != 0;
    me->argument = kind;
    meet(w, mask, VOTE, {file, line}, __builtin_return_address(0));
    return uint32_t(me->result);
}

static void run_reduce(Warp& warp, uint32_t mask) {
    uint32_t total = 0;
    bool first = true;
    each(warp, mask, [&](int, Lane& lane) {
        uint32_t x = uint32_t(lane.value);
        if (first) {
            total = x;
            first = false;
            return;
        }
        switch (lane.argument) {
            case EMU_REDUCE_ADD: total += x; break;
            case EMU_REDUCE_MIN_S: total = uint32_t(std::min(int32_t(total), int32_t(x))); break;
            case EMU_REDUCE_MIN_U: total = std::min(total, x); break;
            case EMU_REDUCE_MAX_S: total = uint32_t(std::max(int32_t(total), int32_t(x))); break;
            case EMU_REDUCE_MAX_U: total = std::max(total, x); break;
            case EMU_REDUCE_AND: total &= x; break;
            case EMU_REDUCE_OR: total |= x; break;
            case EMU_REDUCE_XOR: total ^= x; break;
        }
    });
    each(warp, mask, [&](int, Lane& lane) { lane.result = total; });
}
static const Operation REDUCE{"a warp reduction", run_reduce, true, false};

extern "C" uint32_t emu_reduce(uint32_t mask, int kind, uint32_t value, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    me->value = value;
    me->argument = kind;
    meet(w, mask, REDUCE, {file, line}, __builtin_return_address(0));
    return uint32_t(me->result);
}

static void run_match(Warp& warp, uint32_t mask) {
    each(warp, mask, [&](int, Lane& lane) {
        uint32_t equal = 0;
        each(warp, mask, [&](int i, Lane& other) { equal |= uint32_t(other.value == lane.value) << i; });
        lane.result = lane.argument && equal != mask ? 0 : equal;
    });
}
static const Operation MATCH{"a warp match", run_match, true, false};

extern "C" uint32_t emu_match(uint32_t mask, int all, uint64_t value, const char* file, int line) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    me->value = value;
    me->argument = all;
    meet(w, mask, MATCH, {file, line}, __builtin_return_address(0));
    return uint32_t(me->result);
}

// The order of additions is that of the shuffles on the GPU: x += shfl_xor(x, 16), then 8, 4, 2, 1.
template <class F>
static inline void butterfly(Warp& warp, F join) {
    float x[32], y[32];
    for (int i = 0; i < 32; ++i) {
        uint32_t bits = uint32_t(warp.lanes[i].value);
        std::memcpy(&x[i], &bits, 4);
    }
    for (int step = 16; step > 0; step /= 2) {
        for (int i = 0; i < 32; ++i) y[i] = join(x[i], x[i ^ step]);
        std::memcpy(x, y, sizeof x);
    }
    for (int i = 0; i < 32; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], 4);
        warp.lanes[i].result = bits;
    }
}
static void run_sum(Warp& warp, uint32_t) {
    butterfly(warp, [](float a, float b) { return a + b; });
}
static void run_max(Warp& warp, uint32_t) {
    butterfly(warp, [](float a, float b) { return b != b ? a : a != a || a < b ? b : a; });
}
static const Operation WARP_SUM{"warp_sum", run_sum, true, false};
static const Operation WARP_MAX{"warp_max", run_max, true, false};

static inline float warp_f32(const Operation& operation, float value, Site site, void* pc) {
    Worker& w = *emu_worker;
    Lane* me = w.current;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    me->value = bits;
    meet(w, ~0u, operation, site, pc);
    bits = uint32_t(me->result);
    std::memcpy(&value, &bits, 4);
    return value;
}
extern "C" float emu_warp_sum(float value, const char* file, int line) {
    return warp_f32(WARP_SUM, value, {file, line}, __builtin_return_address(0));
}
extern "C" float emu_warp_max(float value, const char* file, int line) {
    return warp_f32(WARP_MAX, value, {file, line}, __builtin_return_address(0));
}

// ---- atomics ----------------------------------------------------------------------------------------------------------

static float bf16_to_f32(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// Compiled without the CPU's half-float instructions: exact by construction, speed does not matter here.
static float f16_to_f32(uint16_t x) {
    int exponent = x >> 10 & 31, mantissa = x & 1023;
    float value = exponent == 31 ? (mantissa ? __builtin_nanf("") : __builtin_inff())
                  : exponent     ? __builtin_ldexpf(float(1024 + mantissa), exponent - 25)
                                 : __builtin_ldexpf(float(mantissa), -24);
    return x & 0x8000 ? -value : value;
}
static uint16_t f32_to_f16(float x) {
    if (x != x) return 0x7fff;
    uint16_t sign = __builtin_signbit(x) ? 0x8000 : 0;
    x = __builtin_fabsf(x);
    if (x >= 65520.0f) return sign | 0x7c00;
    int exponent = 0;
    if (x > 0) exponent = std::max(__builtin_ilogbf(x), -14);
    float steps = __builtin_rintf(__builtin_ldexpf(x, 10 - exponent));  // in units of the last place, nearest even
    return uint16_t(sign + (uint32_t(steps) < 1024 ? uint32_t(steps)
                                                   : (uint32_t(exponent + 15) << 10) + (uint32_t(steps) - 1024)));
}

template <class T>
static inline T cast(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T, class U>
static inline U uncast(T value) {
    U bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

// U: the word, S: its signed form, F: the float of its size.
template <class U, class S, class F>
static inline U updated(int kind, U old, U value, U other) {
    switch (kind) {
        case EMU_ATOMIC_ADD: return U(old + value);
        case EMU_ATOMIC_MIN_S: return U(std::min(S(old), S(value)));
        case EMU_ATOMIC_MIN_U: return std::min(old, value);
        case EMU_ATOMIC_MAX_S: return U(std::max(S(old), S(value)));
        case EMU_ATOMIC_MAX_U: return std::max(old, value);
        case EMU_ATOMIC_AND: return old & value;
        case EMU_ATOMIC_OR: return old | value;
        case EMU_ATOMIC_XOR: return old ^ value;
        case EMU_ATOMIC_EXCH: return value;
        case EMU_ATOMIC_CAS: return old == other ? value : old;
        case EMU_ATOMIC_INC: return old >= value ? U(0) : U(old + 1);
        case EMU_ATOMIC_DEC: return old == 0 || old > value ? value : U(old - 1);
        case EMU_ATOMIC_ADD_F: return uncast<F, U>(cast<F>(old) + cast<F>(value));
        case EMU_ATOMIC_ADD_BF16: return U(f32_to_bf16(bf16_to_f32(uint16_t(old)) + bf16_to_f32(uint16_t(value))));
        case EMU_ATOMIC_ADD_F16: return U(f32_to_f16(f16_to_f32(uint16_t(old)) + f16_to_f32(uint16_t(value))));
        default: return old;
    }
}

template <class U, class S, class F>
static inline U atomic(int kind, void* address, U value, U other, void* pc) {
    Worker& w = *emu_worker;
    if (uintptr_t(address) % sizeof(U))
        fail(w, pc, "misaligned: " + describe_address(uintptr_t(address), sizeof(U), "atomic"));
    if (emu_checked) check_access(w, address, sizeof(U), ATOMIC, pc);
    U* place = static_cast<U*>(address);
    if (in_arena(w, address)) {  // the block's own: nobody else runs
        U old = *place;
        *place = updated<U, S, F>(kind, old, value, other);
        return old;
    }
    w.current->did_atomic = w.block_atomic = true;
    U old = __atomic_load_n(place, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(place, &old, updated<U, S, F>(kind, old, value, other), true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}

extern "C" uint16_t emu_atomic16(int kind, void* address, uint16_t value, uint16_t other) {
    return atomic<uint16_t, int16_t, uint16_t>(kind, address, value, other, __builtin_return_address(0));
}
extern "C" uint32_t emu_atomic32(int kind, void* address, uint32_t value, uint32_t other) {
    return atomic<uint32_t, int32_t, float>(kind, address, value, other, __builtin_return_address(0));
}
extern "C" uint64_t emu_atomic64(int kind, void* address, uint64_t value, uint64_t other) {
    return atomic<uint64_t, int64_t, double>(kind, address, value, other, __builtin_return_address(0));
}
