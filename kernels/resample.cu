// Maps at another size: y[b, i, j, c] = sum_p sum_q R[i, p] S[j, q] x[b, p, q, c], R and S sparse, by tables of ranges and
// weights. The gradient is the same with the tables of the transposed map. Reference and gradient: src/ops/resample.
#include "rows.cuh"

#define THREADS 256  // of a block

struct Resample {
    const void* x;             // [batch, height, width, channels] T
    const int* row_range;      // [out_height, 2]: first row that is read, and how many, row_step apart
    const float* row_weights;  // [out_height, row_taps]
    const int* col_range;      // [out_width, 2]
    const float* col_weights;  // [out_width, col_taps]
    void* y;                   // [batch, out_height, out_width, channels] T
    unsigned height, width, channels;
    unsigned out_height, out_width;
    unsigned row_taps, col_taps, row_step, col_step;
    unsigned rows;             // of the result, for a block
    unsigned part;             // channels for a block
    unsigned groups;           // of rows: out_height / rows, rounded up
};

// A block's rows of the result, `rows` from row `row` of map `map`, and its channels, `part` from `channel`.
struct Tile {
    unsigned map, row, rows, channel, part;
};

__device__ __forceinline__ float* lines() {
    DYN_SMEM(shared);
    return reinterpret_cast<float*>(shared);  // [rows, width, part]
}

// sum += weight * x
template <class T, int N>
__device__ __forceinline__ void add(float (&sum)[N], float weight, const Vec<T, N>& x) {
    UNROLL
    for (int j = 0; j < N; ++j) sum[j] = fmaf(weight, to_f32(x[j]), sum[j]);
}

// lines[r] = sum_p R[row + r, p] x[p]: N elements at a time, which lie side by side in x as in the line.
template <class T, int N>
__device__ __forceinline__ void along_rows(const Resample& a, const Tile& t) {
    const unsigned length = a.width * t.part, vectors = length / N;
    const size_t stride = size_t(a.width) * a.channels;
    const T* x = in<T>(a.x) + size_t(t.map) * a.height * stride + t.channel;
    for (unsigned i = threadIdx.x; i < t.rows * vectors; i += THREADS) {
        const unsigned r = i / vectors, e = (i - r * vectors) * N, row = t.row + r;
        const unsigned at = t.part == a.channels ? e : e / t.part * a.channels + e % t.part;
        const int first = a.row_range[2 * row], count = a.row_range[2 * row + 1];
        const float* weights = a.row_weights + size_t(row) * a.row_taps;
        const T* from = x + first * stride + at;
        float sum[N] = {};
        for (int k = 0; k < count; ++k, from += a.row_step * stride) add(sum, weights[k], load_vec<T, N>(from));
        store_sum(lines() + r * length + e, sum);
    }
}

// y[row + r, j] = sum_q S[j, q] lines[r, q]: N channels of a column at a time.
template <class T, int N>
__device__ __forceinline__ void along_columns_of_channels(const Resample& a, const Tile& t) {
    const unsigned vectors = t.part / N, per_row = a.out_width * vectors;
    T* y = out<T>(a.y) + (size_t(t.map) * a.out_height + t.row) * a.out_width * a.channels + t.channel;
    for (unsigned i = threadIdx.x; i < t.rows * per_row; i += THREADS) {
        const unsigned column = i / vectors, c = (i - column * vectors) * N;  // of all rows
        const unsigned r = column / a.out_width, j = column - r * a.out_width;
        const int first = a.col_range[2 * j], count = a.col_range[2 * j + 1];
        const float* weights = a.col_weights + size_t(j) * a.col_taps;
        const float* from = lines() + (r * a.width + first) * t.part + c;
        float sum[N] = {};
        for (int k = 0; k < count; ++k, from += a.col_step * t.part) add(sum, weights[k], load_vec<float, N>(from));
        Vec<T, N> v;
        UNROLL
        for (int n = 0; n < N; ++n) v[n] = from_f32<T>(sum[n]);
        store_vec(y + size_t(column) * a.channels + c, v);
    }
}

// The same for N values that lie side by side whatever their columns are: few channels, all of them in the block.
template <class T, int N>
__device__ __forceinline__ void along_columns(const Resample& a, const Tile& t) {
    const unsigned length = a.out_width * t.part, vectors = length / N;
    T* y = out<T>(a.y) + (size_t(t.map) * a.out_height + t.row) * a.out_width * a.channels + t.channel;
    for (unsigned i = threadIdx.x; i < t.rows * vectors; i += THREADS) {
        const unsigned r = i / vectors, e = (i - r * vectors) * N;
        const float* line = lines() + r * a.width * t.part;
        const size_t row = size_t(r) * a.out_width * a.channels;
        Vec<T, N> v;
        UNROLL
        for (int n = 0; n < N; ++n) {
            const unsigned j = t.part == 1 ? e + n : (e + n) / t.part, c = e + n - j * t.part;
            const int first = a.col_range[2 * j], count = a.col_range[2 * j + 1];
            const float* weights = a.col_weights + size_t(j) * a.col_taps;
            const float* from = line + first * t.part + c;
            float sum = 0.f;
            for (int k = 0; k < count; ++k) sum = fmaf(weights[k], from[k * a.col_step * t.part], sum);
            v[n] = from_f32<T>(sum);
            if (N == 1) y[row + size_t(j) * a.channels + c] = v[n];
        }
        if (N > 1) store_vec(y + row + e, v);
    }
}

// Groups of rows of every map in x, parts of the channels in y.
template <class T>
__device__ void resample(const Resample& a) {
    constexpr int N = 16 / int(sizeof(T));
    Tile t;
    t.map = blockIdx.x / a.groups;
    t.row = (blockIdx.x - t.map * a.groups) * a.rows;
    t.rows = min(a.rows, a.out_height - t.row);
    t.channel = blockIdx.y * a.part;
    t.part = min(a.part, a.channels - t.channel);
    const bool whole = a.part == a.channels;                           // lines are rows of x as they lie
    const bool of_channels = a.channels % N == 0 && a.part % N == 0;  // then t.part is a multiple as well
    if (of_channels || (whole && a.width * a.channels % N == 0))
        along_rows<T, N>(a, t);
    else
        along_rows<T, 1>(a, t);
    __syncthreads();
    if (of_channels)
        along_columns_of_channels<T, N>(a, t);
    // A thread's columns of a shrunken row are read far apart, from the same banks of shared memory as other threads': one each.
    else if (whole && a.out_width * a.channels % N == 0 && a.out_width > a.width)
        along_columns<T, N>(a, t);
    else
        along_columns<T, 1>(a, t);
}
KERNEL_PER_DTYPE_BOUNDS(resample, Resample, THREADS)
