// An encoder's input: class token, registers, and patches with mask tokens for the hidden ones, positions added.
// Equation, reference and gradient: src/ops/prepare_tokens.
#include "rows.cuh"

struct PrepareTokensFwd {
    const void* patches;  // [N, len, cols] T
    const void* cls;      // [cols] T
    const void* mask;     // [cols] T
    const void* extra;    // [registers, cols] T; null without
    const void* pos;      // [1 + len, cols] T
    const int* masks;     // [N, len]: not 0 where hidden; null: nothing is
    void* y;              // [N, 1 + registers + len, cols] T
    unsigned rows;        // N * (1 + registers + len)
    unsigned registers, len, cols;
};

// One warp per row of y.
template <class T>
__device__ void prepare_tokens_fwd(const PrepareTokensFwd& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const unsigned tokens = 1 + a.registers + a.len;
    const unsigned image = row / tokens, t = row % tokens;
    T* y = out<T>(a.y) + size_t(row) * a.cols;
    if (t == 0) return add_rows(y, in<T>(a.cls), in<T>(a.pos), a.cols);
    if (t <= a.registers) return copy_row(y, in<T>(a.extra) + size_t(t - 1) * a.cols, a.cols);
    const unsigned l = t - 1 - a.registers;
    const size_t patch = size_t(image) * a.len + l;
    const bool hidden = a.masks && a.masks[patch] != 0;
    add_rows(y, hidden ? in<T>(a.mask) : in<T>(a.patches) + patch * a.cols, in<T>(a.pos) + (size_t(l) + 1) * a.cols,
             a.cols);
}
ROW_KERNELS(prepare_tokens_fwd, PrepareTokensFwd)

struct PrepareTokensBwd {
    const void* dy;     // [images, 1 + registers + len, cols] T
    const int* masks;   // [images, len]; null: nothing is hidden
    void* dpatches;     // [images, len, cols] T; null, as those below: not wanted
    float* dcls;        // [cols]
    float* dmask;       // [len, cols]: sum of the hidden rows of each patch
    float* dextra;      // [registers, cols]
    float* dpos;        // [1 + len, cols]
    unsigned images, registers, len, cols;
};

#define SUM_WARPS 8  // of a block
// Rows loaded before the first is used: the compiler may not move a load of dy over a store to dpatches.
constexpr int BATCH = 4;

// blockIdx.x is a token of an image, its warps take the images in turn: dy is read once, copied to dpatches and summed.
template <class T>
__device__ void prepare_tokens_bwd(const PrepareTokensBwd& a) {
    const unsigned t = blockIdx.x, tokens = 1 + a.registers + a.len;
    const bool of_patch = t > a.registers;
    const unsigned l = of_patch ? t - 1 - a.registers : 0;
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {}, hidden_sum[N] = {};
#pragma unroll 1
        for (unsigned first = warp_id(); first < a.images; first += BATCH * SUM_WARPS) {
            Vec<T, N> dy[BATCH];
            bool hidden[BATCH];
            UNROLL
            for (int j = 0; j < BATCH; ++j) {
                const unsigned image = first + j * SUM_WARPS;
                if (!inside || image >= a.images) continue;
                dy[j] = load_vec<T, N>(in<T>(a.dy) + (size_t(image) * tokens + t) * a.cols + c);
                hidden[j] = of_patch && a.masks && a.masks[size_t(image) * a.len + l] != 0;
            }
            UNROLL
            for (int j = 0; j < BATCH; ++j) {
                const unsigned image = first + j * SUM_WARPS;
                if (!inside || image >= a.images) continue;
                accumulate(sum, dy[j]);
                if (hidden[j]) accumulate(hidden_sum, dy[j]);
                if (!a.dpatches || !of_patch) continue;
                if (hidden[j]) {
                    UNROLL
                    for (int i = 0; i < N; ++i) dy[j][i] = from_f32<T>(0.f);
                }
                store_vec(out<T>(a.dpatches) + (size_t(image) * a.len + l) * a.cols + c, dy[j]);
            }
        }
        // Pointers are the same for the whole block: all its warps meet at the barriers of add_warps or none does.
        float* const dpos = a.dpos && t == 0 ? a.dpos : a.dpos && of_patch ? a.dpos + (size_t(l) + 1) * a.cols : nullptr;
        float* const token = t == 0 ? a.dcls : of_patch || !a.dextra ? nullptr : a.dextra + size_t(t - 1) * a.cols;
        if (dpos || token) {
            add_warps<SUM_WARPS>(sum);
            if (warp_id() == 0 && inside) {
                if (dpos) store_sum(dpos + c, sum);
                if (token) store_sum(token + c, sum);
            }
        }
        if (of_patch && a.dmask) {
            add_warps<SUM_WARPS>(hidden_sum);
            if (warp_id() == 0 && inside) store_sum(a.dmask + size_t(l) * a.cols + c, hidden_sum);
        }
    });
}
KERNEL_DTYPE_BOUNDS(prepare_tokens_bwd, f32, float, PrepareTokensBwd, SUM_WARPS * WARP, 2)
KERNEL_DTYPE_BOUNDS(prepare_tokens_bwd, bf16, bf16, PrepareTokensBwd, SUM_WARPS * WARP, 2)
KERNEL_DTYPE_BOUNDS(prepare_tokens_bwd, f16, f16, PrepareTokensBwd, SUM_WARPS * WARP, 2)
