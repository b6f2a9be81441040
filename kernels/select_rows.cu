// Rows of one matrix or of another by a flag each: y[r] = flags[r] > 0 ? x[r] : other[r], where other may be one row for all
// or one number. Reference and gradient: src/ops/select_rows.
// narrow-ok: select_rows_bwd_reduce_f32 a lane per column of a few partial sums
#include "rows.cuh"

#define THREADS 256    // of a block, at most
#define BWD_WARPS 8    // of a block that sums rows
#define OTHER_ROWS 0u  // forms of `other`
#define OTHER_ROW 1u
#define OTHER_ONE 2u

struct SelectRows {
    const float* flags;  // [rows]
    const void* x;       // [rows, cols] T, or null: zeros
    const void* other;   // [rows, cols], [cols] or [1] T by `form`, or null: zeros
    void* y;             // [rows, cols] T
    unsigned rows, cols;
    unsigned form;
    unsigned pad;
};

// Columns of blockIdx.x of the rows of blockIdx.y, in both directions: a gradient has zeros where the other has its rows.
template <class T>
__device__ void select_rows(const SelectRows& a) {
    constexpr int PACK = 16 / int(sizeof(T));
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = size_t(gridDim.x) * blockDim.x;
    const bool packed = a.cols % PACK == 0;
    for (unsigned row = blockIdx.y; row < a.rows; row += gridDim.y) {
        const size_t start = size_t(row) * a.cols;
        const bool chosen = a.flags[row] > 0.f;
        const T* from = in<T>(chosen ? a.x : a.other);
        const bool one = !chosen && a.form == OTHER_ONE;
        const T value = one && from ? from[0] : from_f32<T>(0.f);
        if (from && (chosen || a.form == OTHER_ROWS)) from += start;
        const bool copy = from && !one;
        T* y = out<T>(a.y) + start;
        for_each_pack<T>(a.cols, thread, threads, packed, [&](size_t c, auto width) {
            constexpr int N = decltype(width)::value;
            Vec<T, N> v;
            UNROLL
            for (int j = 0; j < N; ++j) v[j] = value;
            if (copy) v = load_vec<T, N>(from + c);
            store_vec(y + c, v);
        });
    }
}
KERNEL_PER_DTYPE_BOUNDS(select_rows, SelectRows, THREADS)

struct SelectRowsBwd {
    const float* flags;  // [rows]
    const void* dy;      // [rows, cols] T
    float* part;         // of the row: [gridDim.x, cols]; of the number: [gridDim.y, gridDim.x]
    unsigned rows, cols, rows_per_part, pad;
};

// Sums the rows of blockIdx.x that were not chosen; warps take them in turn, a column is summed in a fixed order.
template <class T>
__device__ void select_rows_bwd_row(const SelectRowsBwd& a) {
    const unsigned first = blockIdx.x * a.rows_per_part, last = min(first + a.rows_per_part, a.rows);
    for_each_lane_column<T>(a.cols, [&](unsigned c, bool inside, auto width) {
        constexpr int N = decltype(width)::value;
        float sum[N] = {};
        for (unsigned row = first + warp_id(); inside && row < last; row += BWD_WARPS)
            if (!(a.flags[row] > 0.f)) accumulate(sum, load_vec<T, N>(in<T>(a.dy) + size_t(row) * a.cols + c));
        add_warps<BWD_WARPS>(sum);
        if (warp_id() == 0 && inside) store_sum(a.part + size_t(blockIdx.x) * a.cols + c, sum);
    });
}
KERNEL_PER_DTYPE_BOUNDS(select_rows_bwd_row, SelectRowsBwd, BWD_WARPS * WARP)

// Sums the columns of blockIdx.x of the rows of blockIdx.y that were not chosen.
template <class T>
__device__ void select_rows_bwd_one(const SelectRowsBwd& a) {
    constexpr int PACK = 16 / int(sizeof(T));
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = size_t(gridDim.x) * blockDim.x;
    float sum = 0.f;
    for (unsigned row = blockIdx.y; row < a.rows; row += gridDim.y) {
        if (a.flags[row] > 0.f) continue;
        const T* dy = in<T>(a.dy) + size_t(row) * a.cols;
        for_each_pack<T>(a.cols, thread, threads, a.cols % PACK == 0, [&](size_t c, auto width) {
            constexpr int N = decltype(width)::value;
            const Vec<T, N> x = load_vec<T, N>(dy + c);
            UNROLL
            for (int j = 0; j < N; ++j) sum += to_f32(x[j]);
        });
    }
    sum = block_sum<THREADS / WARP>(sum);
    if (threadIdx.x == 0) a.part[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}
KERNEL_PER_DTYPE_BOUNDS(select_rows_bwd_one, SelectRowsBwd, THREADS)

__device__ void select_rows_bwd_reduce_f32_body(const ColumnSum& a) { column_sum(a); }
KERNEL(select_rows_bwd_reduce_f32, ColumnSum)
