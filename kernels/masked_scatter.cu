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
KERNEL_PER_DTYPE(masked_scatter_fwd, MaskedScatterFwd)

struct MaskedScatterBwd {
    const void* dy;          // [batch, 1 + len, cols] T
    const int* ids_restore;  // [batch, len]
    void* dz;                // [batch, 1 + keep, cols] T
    float* part;             // [parts, cols]: masked rows of rows_per_part rows, summed; null: not wanted
    float* dpos;             // [1 + len, cols]
    unsigned rows;           // batch * (1 + len)
    unsigned keep, len, cols, rows_per_part, batch;
};

// Rows loaded before the first is used: the compiler may not move a load of dy over a store to dz.
constexpr int BATCH = 4;

// blockIdx.x owns rows_per_part rows: each is copied to dz or added to the block's share of the mask token's gradient,
// so dy is read once.
template <class T>
__device__ void masked_scatter_bwd(const MaskedScatterBwd& a) {
    const unsigned first = blockIdx.x * a.rows_per_part;
    const unsigned last = min(first + a.rows_per_part, a.rows);
    for_each_column<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {};
        unsigned image = first / (a.len + 1), t = first % (a.len + 1);
        for (unsigned row = first; row < last; row += BATCH) {
            Vec<T, N> dy[BATCH];
            UNROLL
            for (int j = 0; j < BATCH; ++j)
                dy[j] = load_vec<T, N>(in<T>(a.dy) + size_t(min(row + j, last - 1)) * a.cols + c);
            UNROLL
            for (int j = 0; j < BATCH; ++j) {
                if (row + j >= last) break;
                const unsigned to = source(a.ids_restore, image, t, a.keep, a.len);
                if (to <= a.keep)
                    store_vec(out<T>(a.dz) + (size_t(image) * (a.keep + 1) + to) * a.cols + c, dy[j]);
                else
                    accumulate(sum, dy[j]);
                if (++t > a.len) t = 0, ++image;
            }
        }
        if (a.part) store_sum(a.part + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE(masked_scatter_bwd, MaskedScatterBwd)

__device__ void masked_scatter_bwd_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(masked_scatter_bwd_reduce_f32, ColumnSum)

// dpos: blockIdx.x is a row of the table and sums it over the images.
template <class T>
__device__ void masked_scatter_bwd_pos(const MaskedScatterBwd& a) {
    for_each_column<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const T* dy = in<T>(a.dy) + size_t(blockIdx.x) * a.cols + c;
        float sum[N] = {};
        for (unsigned b = 0; b < a.batch; ++b)
            accumulate(sum, load_vec<T, N>(dy + size_t(b) * (a.len + 1) * a.cols));
        store_sum(a.dpos + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE(masked_scatter_bwd_pos, MaskedScatterBwd)
