// Sums: y = a + b as an operation, where b may repeat, its gradient then, and y += x in place, by which gradients and
// micro-batches accumulate. References: src/ops/add and src/tensor/convert.rs.
// narrow-ok: add_bwd_sum_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

struct AddFwd {
    const void* a;  // [n] T
    const void* b;  // [n] T
    void* y;        // [n] T
    unsigned long long n;
};

template <class T>
__device__ void add_fwd(const AddFwd& args) {
    elementwise<T>(args.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> a = load_vec<T, N>(in<T>(args.a) + i), b = load_vec<T, N>(in<T>(args.b) + i);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(a[j]) + to_f32(b[j]));
        store_vec(out<T>(args.y) + i, y);
    });
}
KERNEL_PER_DTYPE(add_fwd, AddFwd)

struct AddFwdRepeating {
    const void* a;  // [n] T
    const void* b;  // [len] T, read again and again
    void* y;        // [n] T
    unsigned long long n, len;
};

// A pack lies in one copy of b if those are whole packs.
template <class T>
__device__ void add_fwd_repeating(const AddFwdRepeating& args) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool packed = args.len % (16 / sizeof(T)) == 0;
    for_each_pack<T>(args.n, thread, size_t(gridDim.x) * blockDim.x, packed, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> a = load_vec<T, N>(in<T>(args.a) + i), b = load_vec<T, N>(in<T>(args.b) + i % args.len);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(a[j]) + to_f32(b[j]));
        store_vec(out<T>(args.y) + i, y);
    });
}
KERNEL_PER_DTYPE(add_fwd_repeating, AddFwdRepeating)

struct AddBwdSum {
    const void* x;  // [rows, cols] T
    float* part;    // [gridDim.x, cols]
    unsigned rows, cols, rows_per_part, pad;
};

#define SUM_WARPS 8  // of a block at most
#define SUM_BATCH 4  // rows of a warp loaded before the first is used

// The warps of a block take the rows of blockIdx.x in turn, so that a column is summed in a fixed order.
template <class T>
__device__ void add_bwd_sum(const AddBwdSum& a) {
    const unsigned first = blockIdx.x * a.rows_per_part, warps = blockDim.x / WARP;
    const unsigned last = min(first + a.rows_per_part, a.rows);
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {};
#pragma unroll 1
        for (unsigned start = first + warp_id(); inside && start < last; start += SUM_BATCH * warps) {
            Vec<T, N> x[SUM_BATCH];
            UNROLL
            for (int j = 0; j < SUM_BATCH; ++j) {
                const unsigned row = start + j * warps;
                if (row < last) x[j] = load_vec<T, N>(in<T>(a.x) + size_t(row) * a.cols + c);
            }
            UNROLL
            for (int j = 0; j < SUM_BATCH; ++j)
                if (start + j * warps < last) accumulate(sum, x[j]);
        }
        if (warps > 1) add_warps<SUM_WARPS>(sum);
        if (warp_id() == 0 && inside) store_sum(a.part + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE_BOUNDS(add_bwd_sum, AddBwdSum, SUM_WARPS * WARP)

__device__ void add_bwd_sum_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(add_bwd_sum_reduce_f32, ColumnSum)

struct AddAccumulate {
    void* y;        // [n] T, read and written
    const void* x;  // [n] T
    unsigned long long n;
};

template <class T>
__device__ void add_accumulate(const AddAccumulate& a) {
    elementwise<T>(a.n, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> x = load_vec<T, N>(in<T>(a.x) + i);
        Vec<T, N> y = load_vec<T, N>(in<T>(a.y) + i);
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>(to_f32(y[j]) + to_f32(x[j]));
        store_vec(out<T>(a.y) + i, y);
    });
}
KERNEL_PER_DTYPE(add_accumulate, AddAccumulate)
