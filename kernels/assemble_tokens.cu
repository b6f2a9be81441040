// The encoder's input: y[b, 0] = cls + pos[0], y[b, 1 + j] = patches[b, j] + pos[1 + ids_keep[b, j]].
// Reference and gradient: src/ops/assemble_tokens.
// narrow-ok: assemble_tokens_bwd_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

struct AssembleTokensFwd {
    const void* patches;  // [B, keep, cols] T
    const void* cls;      // [cols] T
    const void* pos;      // [1 + len, cols] T
    const int* ids_keep;  // [B, keep]
    void* y;              // [B, 1 + keep, cols] T
    unsigned rows;        // B * (1 + keep)
    unsigned keep, len, cols;
};

// One warp per row of y.
template <class T>
__device__ void assemble_tokens_fwd(const AssembleTokensFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const unsigned image = row / (a.keep + 1), t = row % (a.keep + 1);
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    if (t == 0) return add_rows(y, in<T>(a.cls), in<T>(a.pos), a.cols);
    const size_t patch = size_t(image) * a.keep + t - 1;
    const unsigned id = unsigned(a.ids_keep[patch]);
    if (id < a.len)
        add_rows(y, in<T>(a.patches) + patch * a.cols, in<T>(a.pos) + (size_t(id) + 1) * a.cols, a.cols);
    else
        fill_row(y, NAN, a.cols);
}
KERNEL_PER_DTYPE(assemble_tokens_fwd, AssembleTokensFwd)

struct AssembleTokensBwd {
    const void* dy;          // [batch, 1 + keep, cols] T
    const int* ids_restore;  // [batch, len]: row of each patch; kept below `keep`
    void* dpatches;          // [batch, keep, cols] T
    float* part;             // [parts, cols]: class rows of images_per_part images, summed
    float* dpos;             // [1 + len, cols]
    unsigned batch, keep, len, cols, images_per_part, pad;
};

// One warp per row of dpatches.
template <class T>
__device__ void assemble_tokens_bwd_patches(const AssembleTokensBwd& a) {
    const unsigned row = warp_row();
    if (row >= a.batch * a.keep) return;  // whole warps leave; no block barrier follows
    const size_t from = size_t(row) + row / a.keep + 1;  // a class row in front of each image
    copy_row(out<T>(a.dpatches) + size_t(row) * a.cols, in<T>(a.dy) + from * a.cols, a.cols);
}
KERNEL_PER_DTYPE(assemble_tokens_bwd_patches, AssembleTokensBwd)

// First stage of the class token's gradient: blockIdx.x sums its images.
template <class T>
__device__ void assemble_tokens_bwd_cls(const AssembleTokensBwd& a) {
    const unsigned first = blockIdx.x * a.images_per_part;
    const unsigned last = min(first + a.images_per_part, a.batch);
    for_each_column<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const T* dy = in<T>(a.dy) + c;
        float sum[N] = {};
        for (unsigned b = first; b < last; ++b)
            accumulate(sum, load_vec<T, N>(dy + size_t(b) * (a.keep + 1) * a.cols));
        store_sum(a.part + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE(assemble_tokens_bwd_cls, AssembleTokensBwd)

__device__ void assemble_tokens_bwd_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(assemble_tokens_bwd_reduce_f32, ColumnSum)

// dpos: blockIdx.x is a row of the table and sums over the images that keep its patch.
template <class T>
__device__ void assemble_tokens_bwd_pos(const AssembleTokensBwd& a) {
    const unsigned row = blockIdx.x;
    for_each_column<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {};
        for (unsigned b = 0; b < a.batch; ++b) {
            const unsigned rank = row == 0 ? 0 : unsigned(a.ids_restore[size_t(b) * a.len + row - 1]);
            if (row > 0 && rank >= a.keep) continue;  // removed from this image
            const size_t from = size_t(b) * (a.keep + 1) + (row == 0 ? 0 : 1 + rank);
            accumulate(sum, load_vec<T, N>(in<T>(a.dy) + from * a.cols + c));
        }
        store_sum(a.dpos + size_t(row) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE(assemble_tokens_bwd_pos, AssembleTokensBwd)
