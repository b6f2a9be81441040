// Chosen rows of a matrix: y[m] = x[ids[m]], dx[ids[m]] = dy[m]. Reference and gradient: src/ops/gather_rows.
#include "rows.cuh"

struct GatherRows {
    const void* from;  // forward: x [rows, cols] T; backward: dy [picked, cols] T
    const int* ids;    // [picked], unique
    void* to;          // forward: y [picked, cols] T; backward: dx [rows, cols] T, zero before
    unsigned rows, picked, cols, pad;
};

// One warp per chosen row.
template <class T>
__device__ void gather_rows_fwd(const GatherRows& a) {
    const unsigned m = warp_row();
    if (m >= a.picked) return;  // whole warps leave; no block barrier follows
    const unsigned id = unsigned(a.ids[m]);
    T* y = out<T>(a.to) + size_t(m) * a.cols;
    if (id < a.rows)
        copy_row(y, in<T>(a.from) + size_t(id) * a.cols, a.cols);
    else
        fill_row(y, NAN, a.cols);
}
KERNEL_PER_DTYPE(gather_rows_fwd, GatherRows)

// One warp per chosen row; rows are unique, so nothing is written twice.
template <class T>
__device__ void gather_rows_bwd(const GatherRows& a) {
    const unsigned m = warp_row();
    if (m >= a.picked) return;  // whole warps leave; no block barrier follows
    const unsigned id = unsigned(a.ids[m]);
    if (id < a.rows) copy_row(out<T>(a.to) + size_t(id) * a.cols, in<T>(a.from) + size_t(m) * a.cols, a.cols);
}
KERNEL_PER_DTYPE(gather_rows_bwd, GatherRows)
