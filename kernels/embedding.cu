// Rows of a table by index: y[m] = table[ids[m]] (+ x[m]), dtable[v] = sum of dy[m] over ids[m] = v.
// Reference and gradient: src/ops/embedding.
// narrow-ok: embedding_bwd_runs_f32 a lane per column of a few partial sums
#include "rows.cuh"

struct EmbeddingFwd {
    const void* table;  // [rows, cols] T
    const int* ids;     // [picked]
    const void* x;      // [picked, cols] T, or null
    void* y;            // [picked, cols] T
    unsigned rows, picked, cols, pad;
};

// One warp per row of y.
template <class T>
__device__ void embedding_fwd(const EmbeddingFwd& a) {
    const unsigned m = warp_row();
    if (m >= a.picked) return;  // whole warps leave; no block barrier follows
    const unsigned id = unsigned(a.ids[m]);
    T* y = out<T>(a.y) + size_t(m) * a.cols;
    const T* row = in<T>(a.table) + size_t(id) * a.cols;
    if (id >= a.rows)
        fill_row(y, NAN, a.cols);
    else if (a.x)
        add_rows(y, in<T>(a.x) + size_t(m) * a.cols, row, a.cols);
    else
        copy_row(y, row, a.cols);
}
KERNEL_PER_DTYPE(embedding_fwd, EmbeddingFwd)

struct EmbeddingBwd {
    const void* dy;    // [picked, cols] T
    const int* ids;    // [picked]
    const int* order;  // [picked]: positions in ascending order of their index
    float* sums;       // [parts, 2, cols]: of the run a part begins with, and of one that begins later and goes on
    float* dtable;     // [rows, cols], zero before
    unsigned rows, picked, cols;
    unsigned part;     // sorted positions per part
};

// Index of sorted position i; of a broken order, none.
__device__ __forceinline__ int sorted_id(const EmbeddingBwd& a, unsigned i) {
    const unsigned m = unsigned(a.order[i]);
    return m < a.picked ? a.ids[m] : -1;
}

// First sorted position whose index is above `id` (or, with `equal`, at least `id`).
__device__ __forceinline__ unsigned bound(const EmbeddingBwd& a, int id, bool equal) {
    unsigned first = 0, last = a.picked;
    while (first < last) {
        const unsigned middle = first + (last - first) / 2;
        const int other = sorted_id(a, middle);
        if (other < id || (!equal && other == id))
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

// First stage: blockIdx.x, of one warp, adds up the runs of equal indices in its part. A run that lies in it whole is done.
template <class T>
__device__ void embedding_bwd(const EmbeddingBwd& a) {
    const unsigned first = blockIdx.x * a.part, last = min(first + a.part, a.picked);
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        if (!inside) return;
        float sum[N] = {};
        unsigned begin = first;  // of the run
        for (unsigned i = first; i < last; ++i) {
            const int id = sorted_id(a, i);
            const unsigned m = unsigned(a.order[i]);
            if (m < a.picked) accumulate(sum, load_vec<T, N>(in<T>(a.dy) + size_t(m) * a.cols + c));
            const bool more = i + 1 < a.picked && sorted_id(a, i + 1) == id;
            if (more && i + 1 < last) continue;
            const bool before = begin == first && first > 0 && sorted_id(a, first - 1) == id;
            if (more || before)
                store_sum(a.sums + (size_t(blockIdx.x) * 2 + (begin != first)) * a.cols + c, sum);
            else if (unsigned(id) < a.rows)
                store_sum(a.dtable + size_t(id) * a.cols + c, sum);
            UNROLL
            for (int j = 0; j < N; ++j) sum[j] = 0.f;
            begin = i + 1;
        }
    });
}
KERNEL_PER_DTYPE(embedding_bwd, EmbeddingBwd)

// Second stage: if the last run of part blockIdx.x begins in it and goes on, its partial sums are added up, 32 columns at
// a time; the warps take parts in turn.
__device__ void embedding_bwd_runs_f32_body(const EmbeddingBwd& a) {
    SMEM(Floats<32 * WARP>, partial);  // [warps, 32]
    const unsigned first = blockIdx.x * a.part, last = min(first + a.part, a.picked);
    const int id = sorted_id(a, last - 1);
    if (last == a.picked || sorted_id(a, last) != id || unsigned(id) >= a.rows) return;  // the whole block
    const unsigned begin = bound(a, id, true), end = bound(a, id, false);
    if (begin < first) return;  // the whole block
    const unsigned parts = (end - 1) / a.part - blockIdx.x + 1, warps = blockDim.x / WARP;
    for (unsigned from = blockIdx.y * WARP; from < a.cols; from += gridDim.y * WARP) {
        const unsigned c = from + lane_id();
        float sum = 0.f;
        if (c < a.cols)
            for (unsigned p = warp_id(); p < parts; p += warps)
                sum += a.sums[(size_t(blockIdx.x + p) * 2 + (p == 0 && begin != first)) * a.cols + c];
        __syncthreads();  // an earlier use of `partial` is over
        partial.v[threadIdx.x] = sum;
        __syncthreads();
        if (warp_id() == 0 && c < a.cols) {
            float total = 0.f;
            for (unsigned w = 0; w < warps; ++w) total += partial.v[w * WARP + lane_id()];
            a.dtable[size_t(id) * a.cols + c] = total;
        }
    }
}
KERNEL(embedding_bwd_runs_f32, EmbeddingBwd)
