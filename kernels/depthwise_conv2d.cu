// Convolution of every channel by a kernel of its own, of side 2r + 1, zeros outside of the maps:
// y[b, i, j, c] = bias[c] + Σ w[c, u, v] · x[b, i + u - r, j + v - r, c].
// Reference and gradient: src/ops/depthwise_conv2d.
// Lanes have channels, 16 bytes each. Kernels are turned to [taps, channels] first, so that a tap is a vector as well;
// the gradient of x is the same convolution with the taps in reverse order. Gradients of the kernels are sums over all
// pixels in two launches: of a few lines each, and of those parts.
// narrow-ok: depthwise_conv2d_taps_* the kernels, a few kilobytes
// narrow-ok: depthwise_conv2d_bwd_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

#define ACROSS 4  // neighbouring pixels of a line that a thread works on at once, and taps of a row
#define LINES 8   // of a block of the forward, a warp each: neighbours read the same pixels

struct DepthwiseConv2dTaps {
    const void* w;      // [channels, taps] T
    void* to;           // [taps, channels] T
    unsigned channels, taps;
    unsigned reversed;  // 1: the last tap first
    unsigned pad;
};

template <class T>
__device__ void depthwise_conv2d_taps(const DepthwiseConv2dTaps& a) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.channels * a.taps) return;
    const unsigned tap = at / a.channels, c = at % a.channels;
    out<T>(a.to)[at] = in<T>(a.w)[size_t(c) * a.taps + (a.reversed ? a.taps - 1 - tap : tap)];
}
KERNEL_PER_DTYPE(depthwise_conv2d_taps, DepthwiseConv2dTaps)

// N channels of COUNT pixels from column `x` on of the line that begins at *line; zeros where the line has none. A
// column left of the line wraps around to one far right of it.
template <int COUNT, class T, int N>
__device__ __forceinline__ void load_pixels(
    Vec<T, N> (&to)[COUNT], const T* line, unsigned x, unsigned width, unsigned channels) {
    UNROLL
    for (int j = 0; j < COUNT; ++j) {
        to[j] = {};
        if (x + j < width) to[j] = load_vec<T, N>(line + size_t(x + j) * channels);
    }
}

// ACROSS pixels in a row as f32, of which the first makes room for the one after the last: pixel n is at place
// n % ACROSS.
template <int N>
struct Window {
    float pixel[ACROSS][N];
    __device__ __forceinline__ const float (&operator[](int n) const)[N] { return pixel[n % ACROSS]; }
    template <class T>
    __device__ __forceinline__ void put(int n, const Vec<T, N>& x) {
        UNROLL
        for (int i = 0; i < N; ++i) pixel[n % ACROSS][i] = to_f32(x[i]);
    }
    // The first pixels, all but the last: from column `x` on.
    template <class T>
    __device__ __forceinline__ void start(const T* line, unsigned x, unsigned width, unsigned channels) {
        Vec<T, N> first[ACROSS - 1];
        load_pixels(first, line, x, width, channels);
        UNROLL
        for (int n = 0; n < ACROSS - 1; ++n) put(n, first[n]);
    }
};

struct DepthwiseConv2dFwd {
    const void* x;     // [B, height, width, channels] T
    const void* taps;  // [kernel · kernel, channels] T
    const void* bias;  // [channels] T, or null: 0
    void* y;           // as x
    unsigned height, width, channels, kernel;
};

// A warp has ACROSS pixels of a line. A pixel under the kernels is loaded once per line of them.
template <class T>
__device__ void depthwise_conv2d_fwd(const DepthwiseConv2dFwd& a) {
    const unsigned across = (a.width + ACROSS - 1) / ACROSS, down = (a.height + LINES - 1) / LINES;
    const unsigned row = blockIdx.x / across, left = blockIdx.x % across * ACROSS;
    const unsigned image = row / down, top = row % down * LINES + warp_id(), reach = a.kernel / 2;
    if (top >= a.height) return;  // whole warps leave; no block barrier follows
    for_each_lane_column<T>(a.channels, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        if (!inside) return;
        float sum[ACROSS][N] = {};
        if (a.bias) {
            const Vec<T, N> bias = load_vec<T, N>(in<T>(a.bias) + c);
            UNROLL
            for (int t = 0; t < ACROSS; ++t) accumulate(sum[t], bias);
        }
#pragma unroll 1
        for (unsigned u = 0; u < a.kernel; ++u) {
            const unsigned below = top + u - reach;  // above the map it wraps around
            if (below >= a.height) continue;
            const T* line = in<T>(a.x) + (size_t(image) * a.height + below) * a.width * a.channels + c;
            const T* taps = in<T>(a.taps) + size_t(u) * a.kernel * a.channels + c;
            Window<N> window;
            window.start(line, left - reach, a.width, a.channels);
#pragma unroll 1
            for (unsigned v = 0; v < a.kernel; v += ACROSS) {
                Vec<T, N> next[ACROSS];
                load_pixels(next, line, left - reach + v + ACROSS - 1, a.width, a.channels);
                UNROLL
                for (int j = 0; j < ACROSS; ++j) {
                    if (v + j >= a.kernel) break;
                    window.put(j + ACROSS - 1, next[j]);
                    const Vec<T, N> tap = load_vec<T, N>(taps + size_t(v + j) * a.channels);
                    UNROLL
                    for (int t = 0; t < ACROSS; ++t)
                        UNROLL
                        for (int i = 0; i < N; ++i) sum[t][i] += to_f32(tap[i]) * window[j + t][i];
                }
            }
        }
        T* y = out<T>(a.y) + (size_t(image) * a.height + top) * a.width * a.channels + c;
        UNROLL
        for (int t = 0; t < ACROSS; ++t) {
            if (left + t >= a.width) break;
            Vec<T, N> pixel;
            UNROLL
            for (int i = 0; i < N; ++i) pixel[i] = from_f32<T>(sum[t][i]);
            store_vec(y + size_t(left + t) * a.channels, pixel);
        }
    });
}
KERNEL_PER_DTYPE_BOUNDS(depthwise_conv2d_fwd, DepthwiseConv2dFwd, LINES * WARP)

struct DepthwiseConv2dBwd {
    const void* dy;  // [B, height, width, channels] T
    const void* x;   // as dy
    float* part;     // [gridDim.x, kernel · kernel + 1, channels]: of the taps, then of the bias
    unsigned lines;  // of all maps
    unsigned lines_per_part;
    unsigned height, width, channels, kernel;
};

// A warp has ACROSS neighbouring taps in a row of the kernels, and walks over the lines of its block, ACROSS pixels at
// a time. The first warp of the middle row, under which all lines lie, has the bias as well.
template <class T>
__device__ void depthwise_conv2d_bwd(const DepthwiseConv2dBwd& a) {
    const unsigned groups = (a.kernel + ACROSS - 1) / ACROSS, reach = a.kernel / 2, warps = blockDim.x / WARP;
    const unsigned first = blockIdx.x * a.lines_per_part, last = min(first + a.lines_per_part, a.lines);
    for (unsigned group = blockIdx.z * warps + warp_id(); group < groups * a.kernel; group += gridDim.z * warps) {
        const unsigned u = group / groups, v = group % groups * ACROSS;
        const bool with_bias = u == reach && v == 0;
        for_each_lane_column<T>(a.channels, [&](unsigned c, bool inside, auto width) {
            constexpr int N = decltype(width)::value;
            if (!inside) return;
            float sum[ACROSS][N] = {}, bias[N] = {};
#pragma unroll 1
            for (unsigned line = first; line < last; ++line) {
                const unsigned y = line % a.height, below = y + u - reach;  // above the map it wraps around
                if (below >= a.height) continue;
                const T* dy = in<T>(a.dy) + size_t(line) * a.width * a.channels + c;
                const T* x = in<T>(a.x) + (size_t(line - y) + below) * a.width * a.channels + c;
                Window<N> window;
                window.start(x, v - reach, a.width, a.channels);
#pragma unroll 1
                for (unsigned left = 0; left < a.width; left += ACROSS) {
                    Vec<T, N> from[ACROSS], next[ACROSS];
                    load_pixels(from, dy, left, a.width, a.channels);
                    load_pixels(next, x, left + v - reach + ACROSS - 1, a.width, a.channels);
                    UNROLL
                    for (int t = 0; t < ACROSS; ++t) {
                        window.put(t + ACROSS - 1, next[t]);
                        UNROLL
                        for (int i = 0; i < N; ++i) {
                            const float d = to_f32(from[t][i]);
                            UNROLL
                            for (int j = 0; j < ACROSS; ++j) sum[j][i] += d * window[t + j][i];
                            if (with_bias) bias[i] += d;
                        }
                    }
                }
            }
            const unsigned taps = a.kernel * a.kernel;
            float* part = a.part + size_t(blockIdx.x) * (taps + 1) * a.channels + c;
            UNROLL
            for (int j = 0; j < ACROSS; ++j)
                if (v + j < a.kernel) store_sum(part + size_t(u * a.kernel + v + j) * a.channels, sum[j]);
            if (with_bias) store_sum(part + size_t(taps) * a.channels, bias);
        });
    }
}
KERNEL_PER_DTYPE_BOUNDS(depthwise_conv2d_bwd, DepthwiseConv2dBwd, 8 * WARP)

struct DepthwiseConv2dReduce {
    const float* part;  // [parts, taps + 1, channels]
    float* dw;          // [channels, taps]
    float* db;          // [channels]
    unsigned parts, taps, channels, pad;
};

// Sums the parts in their order; 32 columns per block, its warps take parts in turn.
__device__ void depthwise_conv2d_bwd_reduce_f32_body(const DepthwiseConv2dReduce& a) {
    SMEM(Floats<32 * WARP>, partial);  // [warps, 32]
    const unsigned cols = (a.taps + 1) * a.channels, at = blockIdx.x * WARP + lane_id(), warps = blockDim.x / WARP;
    float sum = 0.f;
    if (at < cols)
        for (unsigned p = warp_id(); p < a.parts; p += warps) sum += a.part[size_t(p) * cols + at];
    partial.v[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() != 0 || at >= cols) return;  // no barrier follows
    float total = 0.f;
    for (unsigned w = 0; w < warps; ++w) total += partial.v[w * WARP + lane_id()];
    const unsigned tap = at / a.channels, c = at % a.channels;
    *(tap < a.taps ? a.dw + size_t(c) * a.taps + tap : a.db + c) = total;
}
KERNEL(depthwise_conv2d_bwd_reduce_f32, DepthwiseConv2dReduce)
