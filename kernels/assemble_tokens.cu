// The encoder's input: y[b, 0] = cls + pos[0], y[b, 1 + j] = patches[b, j] + pos[1 + ids_keep[b, j]].
// Reference and gradient: src/ops/assemble_tokens.
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
ROW_KERNELS(assemble_tokens_fwd, AssembleTokensFwd)

struct AssembleTokensBwd {
    const void* dy;          // [batch, 1 + keep, cols] T
    const int* ids_restore;  // [batch, len]: row of each patch; kept below `keep`
    void* dpatches;          // [batch, keep, cols] T; null: not wanted
    float* dcls;             // [cols]; null: not wanted
    float* dpos;             // [1 + len, cols]; null: not wanted
    unsigned batch, keep, len, cols;
};

#define SUM_WARPS 8  // of a block
// Rows loaded before the first is used: the compiler may not move a load of dy over a store to dpatches.
constexpr int BATCH = 4;

// Row of dy that position t has in image `image`; keep + 1 if none.
__device__ __forceinline__ unsigned kept_row(const AssembleTokensBwd& a, unsigned image, unsigned t) {
    if (image >= a.batch) return a.keep + 1;
    if (t == 0) return 0;
    const unsigned rank = unsigned(a.ids_restore[size_t(image) * a.len + t - 1]);
    return rank < a.keep ? 1 + rank : a.keep + 1;
}

// blockIdx.x is a row of the table, its warps take the images in turn: the rows that images keep of it are copied to
// dpatches and summed, so dy is read once.
template <class T>
__device__ void assemble_tokens_bwd(const AssembleTokensBwd& a) {
    const unsigned t = blockIdx.x;
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {};
#pragma unroll 1
        for (unsigned first = warp_id(); first < a.batch; first += WARP * SUM_WARPS) {
            const unsigned own = kept_row(a, first + lane_id() * SUM_WARPS, t);  // an image to a lane
            unsigned left = __ballot_sync(FULL_MASK, own <= a.keep);
#pragma unroll 1
            while (left) {
                const int count = __popc(left);
                Vec<T, N> dy[BATCH];
                unsigned image[BATCH], row[BATCH];
                UNROLL
                for (int j = 0; j < BATCH; ++j) {
                    const int lane = left ? __ffs(int(left)) - 1 : 0;
                    left &= left - 1;
                    image[j] = first + lane * SUM_WARPS;
                    row[j] = __shfl_sync(FULL_MASK, own, lane);
                    if (inside && j < count)
                        dy[j] = load_vec<T, N>(in<T>(a.dy) + (size_t(image[j]) * (a.keep + 1) + row[j]) * a.cols + c);
                }
                UNROLL
                for (int j = 0; j < BATCH; ++j) {
                    if (!inside || j >= count) continue;
                    accumulate(sum, dy[j]);
                    if (a.dpatches && t > 0)
                        store_vec(out<T>(a.dpatches) + (size_t(image[j]) * a.keep + row[j] - 1) * a.cols + c, dy[j]);
                }
            }
        }
        float* const dcls = t == 0 ? a.dcls : nullptr;
        if (!dcls && !a.dpos) return;  // the whole block
        add_warps<SUM_WARPS>(sum);
        if (warp_id() != 0 || !inside) return;
        if (dcls) store_sum(dcls + c, sum);
        if (a.dpos) store_sum(a.dpos + size_t(t) * a.cols + c, sum);
    });
}
// Three blocks to a multiprocessor: 80 registers.
KERNEL_DTYPE_BOUNDS(assemble_tokens_bwd, f32, float, AssembleTokensBwd, SUM_WARPS * WARP, 3)
KERNEL_DTYPE_BOUNDS(assemble_tokens_bwd, bf16, bf16, AssembleTokensBwd, SUM_WARPS * WARP, 3)
KERNEL_DTYPE_BOUNDS(assemble_tokens_bwd, f16, f16, AssembleTokensBwd, SUM_WARPS * WARP, 3)
