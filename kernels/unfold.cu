// Windows of feature maps as rows of a matrix, and back: cols[b, oy, ox, (c·k + ky)·k + kx] = x[b, oy·s + ky - p,
// ox·s + kx - p, c], zero outside of the maps. Reference and gradient: src/ops/unfold.
// The matrix has up to (k / s)² times the elements of the maps. Writing it, the matrix is the side with whole vectors,
// and the maps, of which a block reads a few lines, come from the L1 cache. Summing it up, each sum is a lane's, and
// what neighbouring lanes and lines leave of a sector of the matrix is read by the same block: again from the L1 cache.
// narrow-ok: unfold_bwd_* a lane per element: channels lie k·k elements apart in the matrix
#include "common.cuh"

struct Unfold {
    const void* from;  // forward: x [B, height, width, channels] T; backward: cols [B, down, across, values] T
    void* to;          // the other; values = channels · kernel · kernel
    unsigned height, width, channels;
    unsigned down, across;  // positions of the window
    unsigned kernel, stride, padding;
    unsigned vector;  // forward: entries written at once
    unsigned rows;    // forward: of the matrix, that whole vectors make up; they divide `across`
    unsigned lines;   // backward: of x
    unsigned group;   // backward: of them, to a block
};

// Added to a coordinate, gives one that is right of every map: sides are below it.
#define OUTSIDE 0x80000000u

// A block has a line of positions of the window, or a part of it. A thread writes the same entries of one unit of
// `rows` positions after the other, so it works out once where they are. A column left of the map wraps around to one
// far right of it.
template <class T, int N>
__device__ __forceinline__ void unfold(const Unfold& a) {
    const unsigned area = a.kernel * a.kernel, values = a.channels * area;
    const unsigned vectors = a.rows * values / N, units = a.across / a.rows;  // of a unit; of a line
    const unsigned slots = max(1u, blockDim.x / vectors);                     // units that a block has at once
    const unsigned thread = blockIdx.y * blockDim.x + threadIdx.x, slot = thread / vectors, at = thread % vectors * N;
    if (slot >= slots) return;
    const unsigned image = blockIdx.x / a.down, top = blockIdx.x % a.down * a.stride;
    unsigned row = at / values, c = at % values / area, ky = at % area / a.kernel, kx = at % a.kernel;
    unsigned offset[N];  // from the first pixel under the unit, which may lie outside of the map
    unsigned column[N];  // likewise, or outside, where the line is
    UNROLL
    for (int j = 0; j < N; ++j) {
        const unsigned right = row * a.stride + kx;
        offset[j] = (ky * a.width + right) * a.channels + c;
        column[j] = top + ky - a.padding < a.height ? right : OUTSIDE;
        if (++kx == a.kernel) {
            kx = 0;
            if (++ky == a.kernel) {
                ky = 0;
                if (++c == a.channels) c = 0, ++row;
            }
        }
    }
    const long long line = (long long)(image)*a.height + top - a.padding;
    T* cols = out<T>(a.to) + size_t(blockIdx.x) * a.across * values + at;
#pragma unroll 1
    for (unsigned unit = blockIdx.z * slots + slot; unit < units; unit += gridDim.z * slots) {
        const unsigned left = unit * a.rows * a.stride - a.padding;
        const T* first = in<T>(a.from) + (line * a.width + int(left)) * a.channels;
        Vec<T, N> entries;
        UNROLL
        for (int j = 0; j < N; ++j) {
            entries[j] = from_f32<T>(0.f);
            if (left + column[j] < a.width) entries[j] = first[offset[j]];
        }
        store_vec(cols + size_t(unit) * a.rows * values, entries);
    }
}

template <class T>
__device__ void unfold_fwd(const Unfold& a) {
    constexpr int N = 16 / int(sizeof(T));
    if (a.vector == N)
        unfold<T, N>(a);
    else
        unfold<T, 1>(a);
}
KERNEL_PER_DTYPE(unfold_fwd, Unfold)

// A thread has one element of each line of its block. Over pixel y lie the positions oy with oy·s + ky = y + p: the
// taps ky have the remainder of y + p by the stride. A position above the first wraps around to one far below the last.
template <class T>
__device__ void unfold_bwd(const Unfold& a) {
    const unsigned length = a.width * a.channels, area = a.kernel * a.kernel;
    const size_t values = size_t(a.channels) * area;
    const unsigned first = blockIdx.x * a.group, last = min(first + a.group, a.lines);
    for (unsigned at = blockIdx.y * blockDim.x + threadIdx.x; at < length; at += gridDim.y * blockDim.x) {
        const unsigned x = at / a.channels + a.padding, c = at % a.channels;
        const unsigned position_x = x / a.stride, rest_x = x % a.stride;
        unsigned image = first / a.height, y = first % a.height;
        unsigned position_y = (y + a.padding) / a.stride, rest_y = (y + a.padding) % a.stride;
#pragma unroll 1
        for (unsigned line = first; line < last; ++line) {
            float sum = 0.f;
            for (unsigned ky = rest_y, oy = position_y; ky < a.kernel; ky += a.stride, --oy) {
                if (oy >= a.down) continue;
                const T* cols = in<T>(a.from) + (size_t(image) * a.down + oy) * a.across * values;
                cols += c * area + ky * a.kernel;
                for (unsigned kx = rest_x, ox = position_x; kx < a.kernel; kx += a.stride, --ox)
                    if (ox < a.across) sum += to_f32(cols[ox * values + kx]);
            }
            out<T>(a.to)[size_t(line) * length + at] = from_f32<T>(sum);
            if (++rest_y == a.stride) rest_y = 0, ++position_y;
            if (++y == a.height) ++image, y = 0, position_y = a.padding / a.stride, rest_y = a.padding % a.stride;
        }
    }
}
KERNEL_PER_DTYPE(unfold_bwd, Unfold)
