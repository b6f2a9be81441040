// Residual connection through LayerScale and stochastic depth: y[t] = x[t] + s[q(r)] * gamma * branch[r] where the
// branch has a row r for token t, y[t] = x[t] elsewhere. Reference and gradient: src/ops/layer_scale.
// narrow-ok: layer_scale_bwd_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

struct LayerScaleFwd {
    const void* x;        // [tokens, cols] T
    const void* branch;   // [rows, cols] T
    const void* gamma;    // [cols] T, or null: 1
    const float* scale;   // [sequences], or null: 1
    const int* sequence;  // [rows], read with scale alone
    const int* source;    // [tokens]: row or -1; null: row t for token t
    void* y;              // [tokens, cols] T
    unsigned tokens, cols;
};

// One warp per token.
template <class T>
__device__ void layer_scale_fwd(const LayerScaleFwd& a) {
    const unsigned token = warp_row();
    if (token >= a.tokens) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(token) * a.cols;
    T* y = out<T>(a.y) + size_t(token) * a.cols;
    const int row = a.source ? a.source[token] : int(token);
    if (row < 0) return copy_row(y, x, a.cols);
    const T* branch = in<T>(a.branch) + size_t(row) * a.cols;
    const T* gamma = in<T>(a.gamma);
    const float scale = a.scale ? a.scale[a.sequence[row]] : 1.f;
    constexpr int BATCH = 2;
    for_each_batch_in_row<T, BATCH>(a.cols, [&](unsigned first, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> u[BATCH], b[BATCH];
        UNROLL
        for (int j = 0; j < BATCH; ++j) {
            const unsigned c = first + j * WARP * N;
            if (c < a.cols) u[j] = load_vec<T, N>(x + c), b[j] = load_vec<T, N>(branch + c);
        }
        UNROLL
        for (int j = 0; j < BATCH; ++j) {
            const unsigned c = first + j * WARP * N;
            if (c >= a.cols) break;
            Vec<T, N> g, sum;
            if (gamma) g = load_vec<T, N>(gamma + c);
            UNROLL
            for (int i = 0; i < N; ++i)
                sum[i] = from_f32<T>(to_f32(u[j][i]) + (gamma ? scale * to_f32(g[i]) : scale) * to_f32(b[j][i]));
            store_vec(y + c, sum);
        }
    });
}
ROW_KERNELS(layer_scale_fwd, LayerScaleFwd)

struct LayerScaleBwd {
    const void* dy;       // [tokens, cols] T
    const void* branch;   // [rows, cols] T, read with gamma alone
    const void* gamma;    // [cols] T, or null: 1
    const float* scale;   // [sequences], or null: 1
    const int* sequence;  // [rows], read with scale alone
    const int* token;     // [rows]; null: token r for row r
    void* dbranch;        // [rows, cols] T
    float* part;          // [gridDim.x, cols]: of dgamma, written with gamma alone
    unsigned rows, cols, rows_per_part, pad;
};

#define BWD_WARPS 8  // of a block
// Rows loaded before the first is used: the compiler may not move a load of dy over a store to dbranch.
constexpr int BWD_BATCH = 4;

// The warps of a block take the rows of blockIdx.x in turn: one pass gives both gradients, and a column is summed in a
// fixed order.
template <class T>
__device__ void layer_scale_bwd(const LayerScaleBwd& a) {
    const unsigned first = blockIdx.x * a.rows_per_part;
    const unsigned last = min(first + a.rows_per_part, a.rows);
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        Vec<T, N> gamma;
        float sum[N] = {};
        UNROLL
        for (int i = 0; i < N; ++i) gamma[i] = from_f32<T>(1.f);
        if (a.gamma && inside) gamma = load_vec<T, N>(in<T>(a.gamma) + c);
#pragma unroll 1
        for (unsigned start = first + warp_id(); inside && start < last; start += BWD_BATCH * BWD_WARPS) {
            Vec<T, N> dy[BWD_BATCH], branch[BWD_BATCH] = {};
            float scale[BWD_BATCH];
            UNROLL
            for (int j = 0; j < BWD_BATCH; ++j) {
                const unsigned row = start + j * BWD_WARPS;
                if (row >= last) break;
                scale[j] = a.scale ? a.scale[a.sequence[row]] : 1.f;
                const size_t token = a.token ? size_t(a.token[row]) : row;
                dy[j] = load_vec<T, N>(in<T>(a.dy) + token * a.cols + c);
                if (a.gamma) branch[j] = load_vec<T, N>(in<T>(a.branch) + size_t(row) * a.cols + c);
            }
            UNROLL
            for (int j = 0; j < BWD_BATCH; ++j) {
                const unsigned row = start + j * BWD_WARPS;
                if (row >= last) break;
                Vec<T, N> d;
                UNROLL
                for (int i = 0; i < N; ++i) {
                    const float through = scale[j] * to_f32(dy[j][i]);
                    sum[i] += through * to_f32(branch[j][i]);
                    d[i] = from_f32<T>(through * to_f32(gamma[i]));
                }
                store_vec(out<T>(a.dbranch) + size_t(row) * a.cols + c, d);
            }
        }
        if (!a.gamma) return;  // the whole block
        add_warps<BWD_WARPS>(sum);
        if (warp_id() == 0 && inside) store_sum(a.part + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE_BOUNDS(layer_scale_bwd, LayerScaleBwd, BWD_WARPS * WARP)

__device__ void layer_scale_bwd_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(layer_scale_bwd_reduce_f32, ColumnSum)
