// Softmax loss over all pairs of two sets of embeddings, panel by panel: a library product makes the cosines of a panel in
// f32, and what is here goes over them, bound by bytes: first for the largest logit and the sum of exponentials of each row
// and column, then for dL/dS. Reference and gradient: src/ops/softmax_pair_loss.
// no-mma-ok: softmax_pair_loss_grad_* its products are the library's, before and after it
// narrow-ok: softmax_pair_loss_* a lane per column, 128 bytes a warp
#include "ptx.cuh"
#include "rows.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)
#define ROW_SUMS 5  // numbers of a row: largest logit, sum of exponentials, logit of the positive, sum and largest of negatives

// e^x, x <= 0
__device__ __forceinline__ float tail(float x) { return expf(x); }

// A logit, rounded: products that were added to unrounded would differ from the largest one, which is kept.
__device__ __forceinline__ float logit(float t, float cosine) { return __fmul_rn(t, cosine); }

// The sum of exponentials from `most` of two sums from their own largest.
__device__ __forceinline__ float joined(float most, float most_a, float sum_a, float most_b, float sum_b) {
    const float a = sum_a > 0.f ? sum_a * tail(most_a - most) : 0.f;
    const float b = sum_b > 0.f ? sum_b * tail(most_b - most) : 0.f;
    return a + b;
}

struct SoftmaxPairLoss {
    const float* s;          // [rows, cols]: cosines of the panel
    const float* log_scale;  // [1]: t = exp(log_scale)
    float* sums;             // rows: [rows, ROW_SUMS]; columns: [cols, 2]: largest logit, sum; from the panel's first on
    unsigned rows, cols;
    int shift;               // pair (i, j) is the positive iff j - i == shift
    unsigned add;            // whether `sums` holds those of earlier panels
};

// A block per row.
__device__ void softmax_pair_loss_rows_f32_body(const SoftmaxPairLoss& a) {
    const unsigned row = blockIdx.x;
    const float t = expf(a.log_scale[0]);
    const float* s = a.s + size_t(row) * a.cols;
    const int at = int(row) + a.shift;
    float most = -INFINITY, cosines = 0.f, negative = -INFINITY;
    for (unsigned c = threadIdx.x; c < a.cols; c += THREADS) {
        const float x = s[c];
        most = fmaxf(most, x);
        if (int(c) != at) {
            cosines += x;
            negative = fmaxf(negative, x);
        }
    }
    most = logit(t, block_max<WARPS>(most));
    cosines = block_sum<WARPS>(cosines);
    negative = block_max<WARPS>(negative);
    float sum = 0.f;
    for (unsigned c = threadIdx.x; c < a.cols; c += THREADS) sum += tail(logit(t, s[c]) - most);
    sum = block_sum<WARPS>(sum);
    if (threadIdx.x != 0) return;
    float* to = a.sums + size_t(row) * ROW_SUMS;
    float positive = at >= 0 && at < int(a.cols) ? logit(t, s[at]) : 0.f;
    if (a.add) {
        const float both = fmaxf(most, to[0]);
        sum = joined(both, most, sum, to[0], to[1]);
        most = both;
        positive += to[2];
        cosines += to[3];
        negative = fmaxf(negative, to[4]);
    }
    to[0] = most;
    to[1] = sum;
    to[2] = positive;
    to[3] = cosines;
    to[4] = negative;
}
KERNEL_BOUNDS(softmax_pair_loss_rows_f32, SoftmaxPairLoss, THREADS)

// 32 columns per block; its warps take rows in turn.
__device__ void softmax_pair_loss_cols_f32_body(const SoftmaxPairLoss& a) {
    SMEM(Floats<THREADS>, held);
    const unsigned c = blockIdx.x * WARP + lane_id();
    const float t = expf(a.log_scale[0]);
    float most = -INFINITY, sum = 0.f;
    if (c < a.cols)
        for (unsigned r = warp_id(); r < a.rows; r += WARPS) most = fmaxf(most, a.s[size_t(r) * a.cols + c]);
    held.v[threadIdx.x] = most;
    __syncthreads();
    UNROLL
    for (int w = 0; w < WARPS; ++w) most = fmaxf(most, held.v[w * WARP + lane_id()]);
    most = logit(t, most);
    __syncthreads();  // all have read
    if (c < a.cols)
        for (unsigned r = warp_id(); r < a.rows; r += WARPS) sum += tail(logit(t, a.s[size_t(r) * a.cols + c]) - most);
    held.v[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() != 0 || c >= a.cols) return;
    sum = 0.f;
    UNROLL
    for (int w = 0; w < WARPS; ++w) sum += held.v[w * WARP + lane_id()];
    float* to = a.sums + size_t(c) * 2;
    if (a.add) {
        const float both = fmaxf(most, to[0]);
        sum = joined(both, most, sum, to[0], to[1]);
        most = both;
    }
    to[0] = most;
    to[1] = sum;
}
KERNEL_BOUNDS(softmax_pair_loss_cols_f32, SoftmaxPairLoss, THREADS)

struct SoftmaxPairLossGrad {
    const float* s;          // [rows, cols]: cosines of the panel
    const float* log_scale;  // [1]
    const float* by_row;     // [rows, ROW_SUMS]
    const float* by_col;     // [cols, 2], or null without softmax over columns
    void* g;                 // [rows, cols] T: n · gain · dL/dl; may be s
    double* part;            // [rows]: Σ n dL/dl s of each row, in f64 from panel to panel
    unsigned rows, cols;
    int shift;
    unsigned add;            // whether `part` holds the sums of earlier panels
    float gain, pad;
};

// A block per row.
template <class T>
__device__ void softmax_pair_loss_grad(const SoftmaxPairLossGrad& a) {
    const unsigned row = blockIdx.x;
    const float t = expf(a.log_scale[0]);
    const float* s = a.s + size_t(row) * a.cols;
    T* g = out<T>(a.g) + size_t(row) * a.cols;
    const float weight = a.by_col ? 0.5f : 1.f;
    const float most = a.by_row[size_t(row) * ROW_SUMS], factor = weight / a.by_row[size_t(row) * ROW_SUMS + 1];
    const int at = int(row) + a.shift;
    float gs = 0.f;
    for (unsigned c = threadIdx.x; c < a.cols; c += THREADS) {
        const float x = s[c], l = logit(t, x);
        float share = factor * tail(l - most);
        if (a.by_col) {
            const Vec<float, 2> of = load_vec<float, 2>(a.by_col + size_t(c) * 2);
            share += weight / of[1] * tail(l - of[0]);
        }
        if (int(c) == at) share -= 1.f;
        gs += share * x;
        g[c] = from_f32<T>(a.gain * share);
    }
    gs = block_sum<WARPS>(gs);
    if (threadIdx.x == 0) a.part[row] = (a.add ? a.part[row] : 0.0) + double(gs);
}
KERNEL_PER_DTYPE_BOUNDS(softmax_pair_loss_grad, SoftmaxPairLossGrad, THREADS)

struct SoftmaxPairLossReduce {
    const float* by_row;     // [rows, ROW_SUMS]
    const float* by_col;     // [cols, 2], or null
    const double* part;      // [parts]: of the gradient, or null
    const float* log_scale;  // [1]
    float* loss;             // [1]
    float* logits;           // [3]: mean of positives, mean and largest of negatives; NaN of none
    float* factor;           // [1]: t / (n · gain), or null, and with it
    float* dlog_scale;       // [1]
    double divisor;          // n
    double positives, negatives;  // how many
    double gain;
    unsigned rows, cols, parts, pad;
};

#define TOTALS 5  // Σ row logs, Σ column logs, Σ positive logits, Σ negative cosines, Σ n dL/dl s

struct TotalSums {
    double v[TOTALS + 1][THREADS];  // and the largest cosine of a negative
};

// One block.
__device__ void softmax_pair_loss_reduce_f32_body(const SoftmaxPairLossReduce& a) {
    SMEM(TotalSums, sums);
    double total[TOTALS + 1] = {0.0, 0.0, 0.0, 0.0, 0.0, double(-INFINITY)};
    for (unsigned i = threadIdx.x; i < a.rows; i += THREADS) {
        const float* row = a.by_row + size_t(i) * ROW_SUMS;
        total[0] += double(row[0]) + double(logf(row[1]));
        total[2] += double(row[2]);
        total[3] += double(row[3]);
        total[5] = max(total[5], double(row[4]));
    }
    if (a.by_col)
        for (unsigned i = threadIdx.x; i < a.cols; i += THREADS)
            total[1] += double(a.by_col[size_t(i) * 2]) + double(logf(a.by_col[size_t(i) * 2 + 1]));
    if (a.part)
        for (unsigned i = threadIdx.x; i < a.parts; i += THREADS) total[4] += a.part[i];
    UNROLL
    for (int q = 0; q <= TOTALS; ++q) sums.v[q][threadIdx.x] = total[q];
    __syncthreads();
    if (threadIdx.x <= TOTALS) {
        const bool largest = threadIdx.x == TOTALS;
        double sum = largest ? double(-INFINITY) : 0.0;
        for (int i = 0; i < THREADS; ++i) {
            const double x = sums.v[threadIdx.x][i];
            sum = largest ? max(sum, x) : sum + x;
        }
        sums.v[threadIdx.x][0] = sum;  // its own row
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const double t = expf(a.log_scale[0]), own = sums.v[2][0];
    const double logs = a.by_col ? 0.5 * (sums.v[0][0] + sums.v[1][0]) : sums.v[0][0];
    a.loss[0] = float((logs - own) / a.divisor);
    a.logits[0] = a.positives > 0.0 ? float(own / a.positives) : NAN;
    a.logits[1] = a.negatives > 0.0 ? float(t * sums.v[3][0] / a.negatives) : NAN;
    a.logits[2] = a.negatives > 0.0 ? float(t * sums.v[5][0]) : NAN;
    if (!a.factor) return;
    a.factor[0] = float(t / (a.divisor * a.gain));
    a.dlog_scale[0] = float(t * sums.v[4][0] / a.divisor);
}
KERNEL_BOUNDS(softmax_pair_loss_reduce_f32, SoftmaxPairLossReduce, THREADS)
