// Feature maps cut into square windows, zeros where a window leaves its map: y[(b·nh + j)·nw + i, wy, wx] =
// x[b, j·w + wy, i·w + wx]; and back. Reference and gradient: src/ops/window_partition.
#include "rows.cuh"

struct WindowPartition {
    const void* from;  // forward: x [B, height, width, channels] T; backward: y [windows, window, window, channels] T
    void* to;          // the other; windows = B · down · across
    unsigned lines;    // of all windows
    unsigned height, width, channels;
    unsigned window;        // side
    unsigned down, across;  // windows of a map
    unsigned pad;
};

// y[0..n] = x[0..n] by a warp, N elements at a time. Loads run ahead of stores.
template <int N, class T>
__device__ __forceinline__ void copy(T* y, const T* x, unsigned n) {
    constexpr int BATCH = 4;
    for (unsigned first = lane_id() * N; first < n; first += BATCH * WARP * N) {
        Vec<T, N> v[BATCH];
        UNROLL
        for (int j = 0; j < BATCH; ++j)
            if (first + j * WARP * N < n) v[j] = load_vec<T, N>(x + first + j * WARP * N);
        UNROLL
        for (int j = 0; j < BATCH; ++j)
            if (first + j * WARP * N < n) store_vec(y + first + j * WARP * N, v[j]);
    }
}

// A line of a window lies in one piece on either side; it is a warp's. N divides the channels, so a line starts and
// ends with a whole vector.
template <class T, int N, bool FORWARD>
__device__ __forceinline__ void move_line(const WindowPartition& a) {
    const unsigned line = warp_row();
    if (line >= a.lines) return;  // whole warps leave; no block barrier follows
    const unsigned window = line / a.window, row = window / a.across;  // `row` of windows, of all maps
    const unsigned y = row % a.down * a.window + line % a.window, x = window % a.across * a.window;
    const unsigned all = a.window * a.channels;
    const unsigned inside = y < a.height ? min(a.window, a.width - x) * a.channels : 0;
    const size_t map = ((size_t(row / a.down) * a.height + y) * a.width + x) * a.channels, cut = size_t(line) * all;
    if (!FORWARD) return copy<N>(out<T>(a.to) + map, in<T>(a.from) + cut, inside);
    copy<N>(out<T>(a.to) + cut, in<T>(a.from) + map, inside);
    Vec<T, N> zero;
    UNROLL
    for (int j = 0; j < N; ++j) zero[j] = from_f32<T>(0.f);
    for (unsigned i = inside + lane_id() * N; i < all; i += WARP * N) store_vec(out<T>(a.to) + cut + i, zero);
}

template <class T, bool FORWARD>
__device__ __forceinline__ void move_lines(const WindowPartition& a) {
    constexpr int N = 16 / int(sizeof(T));
    if (a.channels % N == 0)
        move_line<T, N, FORWARD>(a);
    else
        move_line<T, 1, FORWARD>(a);
}

template <class T>
__device__ void window_partition_fwd(const WindowPartition& a) {
    move_lines<T, true>(a);
}
ROW_KERNELS(window_partition_fwd, WindowPartition)

// The way back, which is the gradient: every pixel of a map lies in one window.
template <class T>
__device__ void window_partition_bwd(const WindowPartition& a) {
    move_lines<T, false>(a);
}
ROW_KERNELS(window_partition_bwd, WindowPartition)
