// Tiles shared by attention.cu and attention_bwd.cu.
//
// A block of 4 * B threads owns B rows and walks tiles of B columns of the score matrix. Eight neighbouring threads share
// two rows: thread t computes rows 2 (t / 8) + {0, 1} at columns t % 8 + 8 j, and of results with DIM columns the columns
// 4 (t % 8) + 32 j + {0, .., 3}. Tiles are f32 in shared memory; columns from the head dimension to DIM are zero.
#pragma once
#include "common.cuh"

#define ROWS_PER_THREAD 2
#define THREADS_PER_ROW 8

// Elements between rows of a tile: 16-byte aligned, and eight neighbouring rows start in different banks.
template <int COLS>
struct Pitch {
    static constexpr int value = COLS + 4;
};

template <int ROWS, int COLS>
struct alignas(16) Tile {
    float v[ROWS * Pitch<COLS>::value];
    __device__ __forceinline__ float* row(int r) { return v + r * Pitch<COLS>::value; }
    __device__ __forceinline__ const float* row(int r) const { return v + r * Pitch<COLS>::value; }
};

// Results of one thread: ROWS_PER_THREAD rows, DIM columns spread over eight threads.
template <int DIM>
struct Rows {
    float v[ROWS_PER_THREAD][DIM / 32][4];
    __device__ __forceinline__ void scale(int r, float factor) {
        UNROLL
        for (int j = 0; j < DIM / 32; ++j)
            UNROLL
            for (int i = 0; i < 4; ++i) v[r][j][i] *= factor;
    }
};

__device__ __forceinline__ int thread_row() { return int(threadIdx.x) / THREADS_PER_ROW * ROWS_PER_THREAD; }
__device__ __forceinline__ int thread_col() { return int(threadIdx.x) % THREADS_PER_ROW; }

struct Sequence {
    unsigned start, length;
};

// Sequence `i`, cut to the tokens there are: offsets come from device memory that the host did not check.
__device__ __forceinline__ Sequence sequence(const int* cu_seqlens, unsigned i, unsigned tokens) {
    const unsigned from = unsigned(cu_seqlens[i]), to = unsigned(cu_seqlens[i + 1]);
    const unsigned start = from < tokens ? from : tokens, end = to < tokens ? to : tokens;
    return {start, end > start ? end - start : 0};
}

// Both sides of sequence `i`: what asks, and what is asked.
struct SequencePair {
    Sequence queries, keys;
    template <class Args>
    __device__ __forceinline__ SequencePair(const Args& a, unsigned i)
        : queries(sequence(a.cu_q, i, a.queries)), keys(sequence(a.cu_k, i, a.keys)) {}
};

// tile[r][c] = factor * x[r * stride + c] for r < rows, c < dim; zero elsewhere. Called by the whole block.
template <class T, int B, int DIM>
__device__ __forceinline__ void load_tile(
    Tile<B, DIM>& tile, const T* x, size_t stride, unsigned rows, unsigned dim, float factor) {
    constexpr int N = 16 / int(sizeof(T));
    if (dim % N == 0) {  // then every row starts at a multiple of 16 bytes
        for (int i = int(threadIdx.x); i < B * DIM / N; i += 4 * B) {
            const int r = i / (DIM / N), c = i % (DIM / N) * N;
            Vec<float, N> y;
            if (unsigned(r) < rows && unsigned(c) < dim) {
                const Vec<T, N> packed = load_vec<T, N>(x + r * stride + c);
                UNROLL
                for (int k = 0; k < N; ++k) y[k] = factor * to_f32(packed[k]);
            } else {
                UNROLL
                for (int k = 0; k < N; ++k) y[k] = 0.f;
            }
            store_vec<float, N>(tile.row(r) + c, y);
        }
    } else {
        for (int i = int(threadIdx.x); i < B * DIM; i += 4 * B) {
            const int r = i / DIM, c = i % DIM;
            const bool inside = unsigned(r) < rows && unsigned(c) < dim;
            tile.row(r)[c] = inside ? factor * to_f32(x[r * stride + c]) : 0.f;
        }
    }
}

// s[r][j] = a's row of this thread . b's row thread_col() + 8 j, over `dim` columns in ascending order.
template <int B, int DIM>
__device__ __forceinline__ void dot_rows(
    float (&s)[ROWS_PER_THREAD][B / THREADS_PER_ROW], const Tile<B, DIM>& a, const Tile<B, DIM>& b, unsigned dim) {
    constexpr int COLS = B / THREADS_PER_ROW;
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r)
        UNROLL
        for (int j = 0; j < COLS; ++j) s[r][j] = 0.f;
    for (unsigned c = 0; c < dim; c += 4) {
        Vec<float, 4> x[ROWS_PER_THREAD];
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r) x[r] = load_vec<float, 4>(a.row(thread_row() + r) + c);
        UNROLL
        for (int j = 0; j < COLS; ++j) {
            const Vec<float, 4> y = load_vec<float, 4>(b.row(thread_col() + THREADS_PER_ROW * j) + c);
            UNROLL
            for (int r = 0; r < ROWS_PER_THREAD; ++r)
                UNROLL
                for (int k = 0; k < 4; ++k) s[r][j] += x[r][k] * y[k];
        }
    }
}

// sum += w's rows of this thread . x: [B rows, B] . [B, DIM].
template <int B, int DIM>
__device__ __forceinline__ void accumulate_rows(Rows<DIM>& sum, const Tile<B, B>& w, const Tile<B, DIM>& x) {
    for (int j = 0; j < B; j += 4) {
        Vec<float, 4> weight[ROWS_PER_THREAD];
        UNROLL
        for (int r = 0; r < ROWS_PER_THREAD; ++r) weight[r] = load_vec<float, 4>(w.row(thread_row() + r) + j);
        UNROLL
        for (int k = 0; k < 4; ++k)
            UNROLL
            for (int c = 0; c < DIM / 32; ++c) {
                const Vec<float, 4> y = load_vec<float, 4>(x.row(j + k) + 4 * thread_col() + 32 * c);
                UNROLL
                for (int r = 0; r < ROWS_PER_THREAD; ++r)
                    UNROLL
                    for (int i = 0; i < 4; ++i) sum.v[r][c][i] += weight[r][k] * y[i];
            }
    }
}

// w[row][col] = s: the scores of this thread, for accumulate_rows, which reads rows of the same warp only.
template <int B>
__device__ __forceinline__ void store_scores(
    Tile<B, B>& w, const float (&s)[ROWS_PER_THREAD][B / THREADS_PER_ROW]) {
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r)
        UNROLL
        for (int j = 0; j < B / THREADS_PER_ROW; ++j) w.row(thread_row() + r)[thread_col() + THREADS_PER_ROW * j] = s[r][j];
}

// y[r * stride + c] = factor * rows for r < rows, c < dim.
template <class T, int DIM>
__device__ __forceinline__ void store_rows(
    T* y, size_t stride, const Rows<DIM>& x, unsigned rows, unsigned dim, float factor) {
    UNROLL
    for (int r = 0; r < ROWS_PER_THREAD; ++r) {
        if (unsigned(thread_row() + r) >= rows) continue;
        UNROLL
        for (int j = 0; j < DIM / 32; ++j) {
            const unsigned c = 4 * thread_col() + 32 * j;
            T* to = y + (thread_row() + r) * stride + c;
            if (dim % 4 == 0 && c < dim) {
                Vec<T, 4> packed;
                UNROLL
                for (int i = 0; i < 4; ++i) packed[i] = from_f32<T>(factor * x.v[r][j][i]);
                store_vec<T, 4>(to, packed);
            } else {
                UNROLL
                for (int i = 0; i < 4; ++i)
                    if (c + i < dim) to[i] = from_f32<T>(factor * x.v[r][j][i]);
            }
        }
    }
}

// 1 / the sum of a row's exponentials; 0 without keys, so that o, a sum of nothing, is 0 and not NaN.
__device__ __forceinline__ float inverse_sum(float sum) { return sum == 0.f ? 0.f : 1.f / sum; }

// Over the eight threads of a row; the same in each of them.
__device__ __forceinline__ float row_max(float x) {
    UNROLL
    for (int step = THREADS_PER_ROW / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
    UNROLL
    for (int step = THREADS_PER_ROW / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

// name_<tile>_hd<dim><T>(a), for KERNEL_PER_DTYPE_BOUNDS.
#define ATTENTION_KERNEL(name, tile, dim, Args)                      \
    template <class T>                                               \
    __device__ void name##_##tile##x##tile##_hd##dim(const Args& a) { \
        name<T, tile, dim>(a);                                       \
    }                                                                \
    KERNEL_PER_DTYPE_BOUNDS(name##_##tile##x##tile##_hd##dim, Args, 4 * tile)
