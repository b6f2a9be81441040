// The decoder's input: y[b, 0] = z[b, 0] + pos[0], y[b, 1 + i] = (r < keep ? z[b, 1 + r] : mask) + pos[1 + i] with
// r = ids_restore[b, i]. Reference and gradient: src/ops/masked_scatter.
// narrow-ok: masked_scatter_bwd_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

struct MaskedScatterFwd {
    const void* z;           // [B, 1 + keep, cols] T
    const void* mask;        // [cols] T
    const void* pos;         // [1 + len, cols] T
    const int* ids_restore;  // [B, len]
    void* y;                 // [B, 1 + len, cols] T
    unsigned rows;           // B * (1 + len)
    unsigned keep, len, cols;
};

// Row of z that row t of image `image` comes from; keep + 1 if it is masked.
__device__ __forceinline__ unsigned source(const int* ids_restore, unsigned image, unsigned t, unsigned keep, unsigned len) {
    if (t == 0) return 0;
    const unsigned rank = unsigned(ids_restore[size_t(image) * len + t - 1]);
    return rank < keep ? 1 + rank : keep + 1;
}

// One warp per row of y.
template <class T>
__device__ void masked_scatter_fwd(const MaskedScatterFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const unsigned image = row / (a.len + 1), t = row % (a.len + 1);
    const unsigned from = source(a.ids_restore, image, t, a.keep, a.len);
    const T* x = from > a.keep ? in<T>(a.mask) : in<T>(a.z) + (size_t(image) * (a.keep + 1) + from) * a.cols;
    add_rows(out<T>(a.y) + size_t(row) * a.cols, x, in<T>(a.pos) + size_t(t) * a.cols, a.cols);
}
ROW_KERNELS(masked_scatter_fwd, MaskedScatterFwd)

struct MaskedScatterBwd {
    const void* dy;          // [batch, 1 + len, cols] T
    const int* ids_restore;  // [batch, len]
    void* dz;                // [batch, 1 + keep, cols] T
    float* part;             // [1 + len, cols]: masked rows of a token, summed over the images; null: not wanted
    float* dpos;             // [1 + len, cols]; null: not wanted
    unsigned batch, keep, len, cols;
};

#define SUM_WARPS 8  // of a block
// Images loaded before the first is used: the compiler may not move a load of dy over a store to dz.
constexpr int BATCH = 4;

// blockIdx.x is a token of every image, its warps take the images in turn: each row is copied to dz or added to the
// mask token's gradient, and all of them are the gradient of the position, so dy is read once.
template <class T>
__device__ void masked_scatter_bwd(const MaskedScatterBwd& a) {
    const unsigned t = blockIdx.x;
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float kept[N] = {}, masked[N] = {};
#pragma unroll 1
        for (unsigned first = warp_id(); inside && first < a.batch; first += BATCH * SUM_WARPS) {
            Vec<T, N> dy[BATCH];
            unsigned to[BATCH];
            UNROLL
            for (int j = 0; j < BATCH; ++j) {
                const unsigned image = first + j * SUM_WARPS;
                if (image >= a.batch) break;
                to[j] = source(a.ids_restore, image, t, a.keep, a.len);
                dy[j] = load_vec<T, N>(in<T>(a.dy) + (size_t(image) * (a.len + 1) + t) * a.cols + c);
            }
            UNROLL
            for (int j = 0; j < BATCH; ++j) {
                const unsigned image = first + j * SUM_WARPS;
                if (image >= a.batch) break;
                if (to[j] <= a.keep) {
                    store_vec(out<T>(a.dz) + (size_t(image) * (a.keep + 1) + to[j]) * a.cols + c, dy[j]);
                    accumulate(kept, dy[j]);
                } else {
                    accumulate(masked, dy[j]);
                }
            }
        }
        if (a.part || a.dpos) add_warps<SUM_WARPS>(masked);
        if (a.dpos) add_warps<SUM_WARPS>(kept);
        if (warp_id() != 0 || !inside) return;
        if (a.part) store_sum(a.part + size_t(t) * a.cols + c, masked);
        UNROLL
        for (int j = 0; j < N; ++j) kept[j] += masked[j];
        if (a.dpos) store_sum(a.dpos + size_t(t) * a.cols + c, kept);
    });
}
KERNEL_PER_DTYPE_BOUNDS(masked_scatter_bwd, MaskedScatterBwd, SUM_WARPS * WARP)

__device__ void masked_scatter_bwd_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(masked_scatter_bwd_reduce_f32, ColumnSum)
