// Where the largest value of each row is: y[r] = r cols + argmax_c scores[r, c], the first of equal ones, NaN above all.
// Reference: src/ops/argmax.
// narrow-ok: argmax_* a few scores per row
#include "common.cuh"

struct Argmax {
    const void* scores;  // [rows, cols] T, cols >= 1
    int* y;              // [rows]
    unsigned rows, cols;
};

// A value and its column.
struct Scored {
    float value;
    unsigned col;
};

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// The one that is larger, or as large and further left.
__device__ __forceinline__ Scored better(Scored a, Scored b) {
    const bool equal = a.value == b.value || (is_nan(a.value) && is_nan(b.value));
    const bool less = is_nan(a.value) ? false : is_nan(b.value) || b.value > a.value;
    return less || (equal && b.col < a.col) ? b : a;
}

// One warp per row. A lane without a column holds the first: that changes nothing.
template <class T>
__device__ void argmax(const Argmax& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.scores) + size_t(row) * a.cols;
    Scored best = {to_f32(x[0]), 0};
    for (unsigned c = lane_id(); c < a.cols; c += WARP) best = better(best, {to_f32(x[c]), c});
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float value = __shfl_xor_sync(FULL_MASK, best.value, step);
        const unsigned col = __shfl_xor_sync(FULL_MASK, best.col, step);
        best = better(best, {value, col});
    }
    if (lane_id() == 0) a.y[row] = int(row * a.cols + best.col);
}
KERNEL_PER_DTYPE(argmax, Argmax)
