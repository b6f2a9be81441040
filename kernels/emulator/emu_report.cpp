// Program addresses as source positions, and text.
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>

#include "emu_internal.h"

namespace emu {

std::string format(const char* pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

// Build machines' folders are nobody's business: positions start at `kernels/`.
std::string short_path(const std::string& path) {
    size_t at = path.rfind("kernels/");
    if (at != std::string::npos) return path.substr(at);
    at = path.rfind('/');
    return at == std::string::npos ? path : path.substr(at + 1);
}

// Offsets to a function of this file: kernels and emulator are linked into one image.
static const char* code_base() { return reinterpret_cast<const char*>(&code_base); }
uint32_t pc_offset(void* pc) { return uint32_t(static_cast<const char*>(pc) - code_base()); }

// Positions are looked up once, when the report is made: until then the text holds the address between marks.
std::string position_token(void* pc) { return format("\x01%zx\x02", reinterpret_cast<size_t>(pc)); }
std::string position_token(uint32_t offset) {
    return position_token(const_cast<char*>(code_base() + int32_t(offset)));
}

std::string position(Site site, void* pc) {
    std::string file = short_path(site.file);
    if (file.empty() || file == "kernels/common.cuh" || file.rfind("kernels/ptx", 0) == 0) return position_token(pc);
    return file + ":" + std::to_string(site.line);
}

namespace {

struct Image {
    std::string path;
    uintptr_t base = 0;  // to subtract from addresses
};

Image image_of(void* pc) {
    Dl_info info;
    Image image;
    if (!dladdr(pc, &info) || !info.dli_fname) return image;
    const auto* header = static_cast<const Elf64_Ehdr*>(info.dli_fbase);
    if (header->e_type == ET_DYN) image.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    image.path = info.dli_fname;
    // The main program may have been started by a name that is no path.
    if (access(image.path.c_str(), R_OK) != 0 || image.path.find('/') == std::string::npos)
        image.path = "/proc/self/exe";
    char target[4096];
    if (image.path == "/proc/self/exe") {
        ssize_t length = readlink("/proc/self/exe", target, sizeof target);
        if (length > 0) image.path.assign(target, size_t(length));
    }
    return image;
}

std::mutex& cache_lock() {
    static std::mutex* lock = new std::mutex;
    return *lock;
}
std::map<void*, Position>& cache() {
    static auto* positions = new std::map<void*, Position>;
    return *positions;
}

bool is_wrapper(const std::string& file) {
    for (const char* wrapper : {"common.cuh", "ptx.cuh", "ptx_sm90.cuh", "emulator/emu", "mmintrin.h"})
        if (file.find(wrapper) != std::string::npos) return true;
    return false;
}

// One run of addr2line for all. With -a -i it prints the address, then the innermost position and the positions it
// was inlined into; the first outside the wrapper headers is what the kernel's author wrote.
void look_up(const Image& image, const std::vector<void*>& pcs) {
    std::string command = "addr2line -a -i -e '" + image.path + "'";
    // The return address is behind the call.
    for (void* pc : pcs) command += format(" %zx", reinterpret_cast<size_t>(pc) - image.base - 1);
    command += " 2>/dev/null";
    FILE* pipe = popen(command.c_str(), "r");
    if (!pipe) return;
    char text[4096];
    size_t at = 0;
    bool settled = true;
    while (std::fgets(text, sizeof text, pipe)) {
        if (std::strncmp(text, "0x", 2) == 0) {
            ++at;
            settled = false;
            continue;
        }
        char* colon = std::strrchr(text, ':');
        if (!colon || at == 0 || at > pcs.size() || settled) continue;
        std::string file(text, size_t(colon - text));
        unsigned line = unsigned(std::strtoul(colon + 1, nullptr, 10));
        if (file.find('?') != std::string::npos || !line) continue;
        cache()[pcs[at - 1]] = {short_path(file), line};
        settled = !is_wrapper(file);
    }
    pclose(pipe);
}

}  // namespace

std::vector<Position> resolve(const std::vector<void*>& pcs) {
    std::lock_guard<std::mutex> guard(cache_lock());
    std::vector<void*> missing;
    for (void* pc : pcs)
        if (pc && !cache().count(pc)) missing.push_back(pc);
    constexpr size_t BATCH = 512;
    for (size_t first = 0; first < missing.size(); first += BATCH) {
        size_t last = std::min(missing.size(), first + BATCH);
        look_up(image_of(missing[first]), {missing.begin() + long(first), missing.begin() + long(last)});
    }
    std::vector<Position> positions;
    for (void* pc : pcs) {
        auto known = cache().find(pc);
        positions.push_back(known == cache().end()
                                ? Position{format("address %#zx", reinterpret_cast<size_t>(pc)), 0}
                                : known->second);
    }
    return positions;
}

std::string resolve_positions(const std::string& text) {
    std::vector<void*> pcs;
    for (size_t at = 0; (at = text.find('\x01', at)) != std::string::npos; ++at)
        pcs.push_back(reinterpret_cast<void*>(std::strtoull(text.c_str() + at + 1, nullptr, 16)));
    std::vector<Position> positions = resolve(pcs);
    std::string result;
    size_t at = 0, count = 0;
    while (at < text.size()) {
        size_t open = text.find('\x01', at);
        result += text.substr(at, open - at);
        if (open == std::string::npos) break;
        const Position& position = positions[count++];
        result += position.line ? position.file + ":" + std::to_string(position.line) : position.file;
        at = text.find('\x02', open) + 1;
    }
    return result;
}

}  // namespace emu
