// Traffic counters: accesses of a warp's lanes between two warp operations are matched by program address and
// occurrence; each match is one request, priced in 32-byte sectors (global) or passes over the banks (shared).
#include <algorithm>
#include <cstring>

#include "emu_internal.h"

namespace emu {

void TrafficCounts::add(const TrafficCounts& other) {
    global_requests += other.global_requests;
    sectors += other.sectors;
    ideal_sectors += other.ideal_sectors;
    shared_requests += other.shared_requests;
    wavefronts += other.wavefronts;
    ideal_wavefronts += other.ideal_wavefronts;
}

namespace {

struct Request {
    uint32_t lanes = 0;
    uint32_t bytes = 0;
    uintptr_t address[32];
};

struct Place {
    bool shared, atomic;
    uint32_t count[32] = {};
    std::vector<Request> requests;
    uint32_t used = 0;
};

template <class T>
uint64_t distinct(std::vector<T>& items) {
    std::sort(items.begin(), items.end());
    return uint64_t(std::unique(items.begin(), items.end()) - items.begin());
}

// Sectors touched, and sectors that as many distinct bytes need. Bytes are counted in units of the access.
void price_global(const Request& request, TrafficCounts& counts) {
    std::vector<uintptr_t> sectors, units;
    for (uint32_t i = 0; i < 32; ++i) {
        if (!(request.lanes >> i & 1)) continue;
        units.push_back(request.address[i] / request.bytes);
        for (uintptr_t s = request.address[i] / 32; s <= (request.address[i] + request.bytes - 1) / 32; ++s)
            sectors.push_back(s);
    }
    ++counts.global_requests;
    counts.sectors += distinct(sectors);
    counts.ideal_sectors += (distinct(units) * request.bytes + 31) / 32;
}

// A pass serves every bank once: 4-byte words of a warp together, 8-byte ones by half warps, 16-byte ones by quarters.
// Lanes that read one word share it; atomics on one word take turns.
void price_shared(const Request& request, bool atomic, TrafficCounts& counts) {
    ++counts.shared_requests;
    uint32_t words = std::max(1u, request.bytes / 4), lanes = std::max(1u, 32 / words);
    std::vector<uintptr_t> all;
    for (uint32_t first = 0; first < 32; first += lanes) {
        std::vector<uintptr_t> touched;
        for (uint32_t i = first; i < first + lanes; ++i)
            if (request.lanes >> i & 1)
                for (uint32_t word = 0; word < words; ++word) touched.push_back(request.address[i] / 4 + word);
        if (touched.empty()) continue;
        all.insert(all.end(), touched.begin(), touched.end());
        if (!atomic) touched.resize(distinct(touched));
        uint32_t bank[32] = {};
        for (uintptr_t word : touched) ++bank[word % 32];
        counts.wavefronts += *std::max_element(bank, bank + 32);
    }
    counts.ideal_wavefronts += (distinct(all) + 31) / 32;
}

}  // namespace

struct TrafficTable {
    std::unordered_map<void*, Place> places;
};

void traffic_record(Worker& w, const void* address, uint32_t bytes, Access kind, bool shared, void* pc) {
    Warp& warp = warp_of(w, w.current);
    if (!warp.traffic) warp.traffic = new TrafficTable;
    Place& place = warp.traffic->places[pc];
    place.shared = shared;
    place.atomic = kind == ATOMIC;
    uint32_t lane = w.current->view.linear % 32, occurrence = place.count[lane]++;
    if (occurrence >= place.requests.size()) place.requests.emplace_back();
    Request& request = place.requests[occurrence];
    place.used = std::max(place.used, occurrence + 1);
    request.lanes |= 1u << lane;
    request.bytes = std::max(request.bytes, bytes);
    request.address[lane] = reinterpret_cast<uintptr_t>(address);
}

void traffic_flush(Worker& w, Warp& warp) {
    if (!warp.traffic) return;
    for (auto& [pc, place] : warp.traffic->places) {
        if (!place.used) continue;
        TrafficCounts& counts = w.traffic[pc];
        for (uint32_t i = 0; i < place.used; ++i) {
            Request& request = place.requests[i];
            if (place.shared) price_shared(request, place.atomic, counts);
            else price_global(request, counts);
            request.lanes = request.bytes = 0;
        }
        place.used = 0;
        std::memset(place.count, 0, sizeof place.count);
    }
}

void traffic_drop(Worker& w) {
    for (Warp& warp : w.warp) {
        delete warp.traffic;
        warp.traffic = nullptr;
    }
    w.traffic.clear();
}

}  // namespace emu

struct EmuTraffic {
    std::vector<std::pair<emu::Position, emu::TrafficCounts>> rows;
};

namespace emu {

// Adds up what different copies of one source line did.
void traffic_store(EmuTraffic& out, const TrafficMap& counts) {
    std::vector<void*> pcs;
    for (const auto& entry : counts) pcs.push_back(entry.first);
    std::vector<Position> positions = resolve(pcs);
    for (size_t i = 0; i < pcs.size(); ++i) {
        const TrafficCounts& more = counts.at(pcs[i]);
        auto same = [&](const auto& row) {
            return row.first.line == positions[i].line && row.first.file == positions[i].file;
        };
        auto row = std::find_if(out.rows.begin(), out.rows.end(), same);
        if (row == out.rows.end()) out.rows.emplace_back(positions[i], more);
        else row->second.add(more);
    }
    std::sort(out.rows.begin(), out.rows.end(), [](const auto& a, const auto& b) {
        return a.first.file != b.first.file ? a.first.file < b.first.file : a.first.line < b.first.line;
    });
}

}  // namespace emu

extern "C" {
EmuTraffic* emu_traffic_new(void) { return new EmuTraffic; }
void emu_traffic_free(EmuTraffic* traffic) { delete traffic; }
int emu_traffic_row(const EmuTraffic* traffic, size_t index, EmuTrafficRow* row) {
    if (index >= traffic->rows.size()) return 0;
    const auto& [position, counts] = traffic->rows[index];
    *row = {position.file.c_str(), position.line, 0, counts.global_requests, counts.sectors, counts.ideal_sectors,
            counts.shared_requests, counts.wavefronts, counts.ideal_wavefronts};
    return 1;
}
}
