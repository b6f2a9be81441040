// KoLeo regulariser: distances of normalised rows to their nearest neighbours. Equations: src/ops/koleo.
#include "rows.cuh"

// Of the norm, the difference and the logarithm.
#define KOLEO_EPS 1e-8f

// What a row of this norm is multiplied by.
__device__ __forceinline__ float koleo_inverse(float norm) { return 1.f / (norm < KOLEO_EPS ? KOLEO_EPS : norm); }

struct KoleoNormalise {
    const void* x;  // [rows, cols] T
    float* y;       // [rows, cols]
    float* stats;   // [rows, 2]: norm written to the first, or null
    unsigned rows, cols;
};

// One warp per row.
template <class T>
__device__ void koleo_normalise(const KoleoNormalise& a) {
    const unsigned row = warp_row();
    if (row >= a.rows) return;  // whole warps leave; no block barrier follows
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    float* y = a.y + size_t(row) * a.cols;
    float square = 0.f;
    for_each_in_row<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> v = load_vec<T, N>(x + c);
        UNROLL
        for (int j = 0; j < N; ++j) square += to_f32(v[j]) * to_f32(v[j]);
    });
    const float norm = sqrtf(warp_sum(square)), inverse = koleo_inverse(norm);
    // Four f32 to a store; the row of T is in the cache by now.
    for_each_in_row<float>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> v = load_vec<T, N>(x + c);
        Vec<float, N> scaled;
        UNROLL
        for (int j = 0; j < N; ++j) scaled[j] = to_f32(v[j]) * inverse;
        store_vec(y + c, scaled);
    });
    if (a.stats && lane_id() == 0) a.stats[2 * size_t(row)] = norm;
}
KERNEL_PER_DTYPE(koleo_normalise, KoleoNormalise)

struct KoleoNearest {
    const float* scores;  // [rows, group]: products of rows at.. of the group with all of it
    const float* all;     // [group, cols]: the normalised rows of the group
    float* stats;         // [rows, 2]: distance written to the second
    int* neighbours;      // [rows]
    unsigned group, cols;
    unsigned first;       // row of all groups that the group starts at
    unsigned at;
};

struct Nearest {
    float score[4];
    int index[4];
};

// The better of two: the larger score, of equals the lower index.
__device__ __forceinline__ void take_nearer(float& score, int& index, float other_score, int other_index) {
    if (other_score > score || (other_score == score && other_index < index)) {
        score = other_score;
        index = other_index;
    }
}

// Calls `body(c, Width<N>)` over `cols` columns with the threads of a block: always the same columns for a thread.
template <class T, class Body>
__device__ __forceinline__ void for_each_of_block(unsigned cols, Body body) {
    for_each_pack<T>(cols, threadIdx.x, blockDim.x, cols % (16 / sizeof(T)) == 0, body);
}

// One block of 4 warps per row.
__device__ void koleo_nearest_f32_body(const KoleoNearest& a) {
    SMEM(Nearest, found);
    const int own = int(a.at + blockIdx.x);
    const float* scores = a.scores + size_t(blockIdx.x) * a.group;
    float best = -INFINITY;
    int index = 0x7fffffff;
    for_each_of_block<float>(a.group, [&](size_t i, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> v = load_vec<float, N>(scores + i);
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float score = int(i) + j == own ? -1.f : v[j];
            if (score > best) {
                best = score;
                index = int(i) + j;
            }
        }
    });
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float score = __shfl_xor_sync(FULL_MASK, best, step);
        const int other = __shfl_xor_sync(FULL_MASK, index, step);
        take_nearer(best, index, score, other);
    }
    if (lane_id() == 0) {
        found.score[warp_id()] = best;
        found.index[warp_id()] = index;
    }
    __syncthreads();
    UNROLL
    for (int w = 0; w < 4; ++w) take_nearer(best, index, found.score[w], found.index[w]);
    if (index >= int(a.group)) index = own;  // no score is a number
    const float* x = a.all + size_t(own) * a.cols;
    const float* y = a.all + size_t(index) * a.cols;
    float square = 0.f;
    for_each_of_block<float>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<float, N> u = load_vec<float, N>(x + c), v = load_vec<float, N>(y + c);
        UNROLL
        for (int j = 0; j < N; ++j) {
            const float d = u[j] - v[j] + KOLEO_EPS;
            square += d * d;
        }
    });
    square = block_sum<4>(square);
    if (threadIdx.x == 0) {
        a.stats[2 * size_t(blockIdx.x) + 1] = sqrtf(square);
        a.neighbours[blockIdx.x] = int(a.first) + index;
    }
}
KERNEL_BOUNDS(koleo_nearest_f32, KoleoNearest, 128)

struct KoleoMean {
    const float* stats;  // [rows, 2]
    float* loss;         // [1]
    unsigned rows, group;
};

// One block.
__device__ void koleo_mean_f32_body(const KoleoMean& a) {
    float logs = 0.f;
    for (unsigned i = threadIdx.x; i < a.rows; i += blockDim.x) logs += logf(a.stats[2 * size_t(i) + 1] + KOLEO_EPS);
    logs = block_sum(logs);
    if (threadIdx.x == 0) a.loss[0] = -logs / a.group;
}
KERNEL(koleo_mean_f32, KoleoMean)

struct KoleoBwd {
    const float* dloss;     // [1]
    const void* x;          // [rows, cols] T
    const float* stats;     // [rows, 2]
    const int* neighbours;  // [rows]
    void* dx;               // [rows, cols] T
    unsigned rows, cols, group, pad;
};

struct Followers {
    unsigned mask[4];
};

// The gradient that row `from` sends through its distance to row `to`: into `from`; its opposite goes into `to`.
template <class T>
__device__ __forceinline__ void koleo_send(const KoleoBwd& a, float* g, unsigned from, unsigned to, float sign) {
    if (from == to) return;  // what it sends to itself cancels, but for rounding
    const float distance = a.stats[2 * size_t(from) + 1];
    const float factor =
        distance == 0.f ? 0.f : sign * (-a.dloss[0] / a.group / (distance + KOLEO_EPS) / distance);
    const T* x = in<T>(a.x) + size_t(from) * a.cols;
    const T* y = in<T>(a.x) + size_t(to) * a.cols;
    const float x_inverse = koleo_inverse(a.stats[2 * size_t(from)]), y_inverse = koleo_inverse(a.stats[2 * size_t(to)]);
    for_each_of_block<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> u = load_vec<T, N>(x + c), v = load_vec<T, N>(y + c);
        UNROLL
        for (int j = 0; j < N; ++j) g[c + j] += factor * (to_f32(u[j]) * x_inverse - to_f32(v[j]) * y_inverse + KOLEO_EPS);
    });
}

// One block of 4 warps per row. A thread alone touches its columns of g.
template <class T>
__device__ void koleo_bwd(const KoleoBwd& a) {
    DYN_SMEM(dynamic);
    SMEM(Followers, followers);
    float* g = reinterpret_cast<float*>(dynamic);  // [cols]
    const unsigned row = blockIdx.x, first = row / a.group * a.group;
    for_each_of_block<T>(a.cols, [&](size_t c, auto width) {
        UNROLL
        for (int j = 0; j < decltype(width)::value; ++j) g[c + j] = 0.f;
    });
    koleo_send<T>(a, g, row, unsigned(a.neighbours[row]), 1.f);
    for (unsigned start = 0; start < a.group; start += blockDim.x) {
        const unsigned j = start + threadIdx.x;
        const unsigned mask = __ballot_sync(FULL_MASK, j < a.group && a.neighbours[first + j] == int(row));
        if (lane_id() == 0) followers.mask[warp_id()] = mask;
        __syncthreads();
        for (unsigned w = 0; w < 4; ++w)
            for (unsigned left = followers.mask[w]; left; left &= left - 1)
                koleo_send<T>(a, g, first + start + w * WARP + __ffs(int(left)) - 1, row, -1.f);
        __syncthreads();  // the masks are read
    }
    const T* x = in<T>(a.x) + size_t(row) * a.cols;
    const float norm = a.stats[2 * size_t(row)], inverse = koleo_inverse(norm);
    float dot = 0.f;
    for_each_of_block<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> v = load_vec<T, N>(x + c);
        UNROLL
        for (int j = 0; j < N; ++j) dot += g[c + j] * (to_f32(v[j]) * inverse);
    });
    dot = block_sum<4>(dot);
    if (norm < KOLEO_EPS) dot = 0.f;
    T* dx = out<T>(a.dx) + size_t(row) * a.cols;
    for_each_of_block<T>(a.cols, [&](size_t c, auto width) {
        constexpr int N = decltype(width)::value;
        const Vec<T, N> v = load_vec<T, N>(x + c);
        Vec<T, N> y;
        UNROLL
        for (int j = 0; j < N; ++j) y[j] = from_f32<T>((g[c + j] - to_f32(v[j]) * inverse * dot) * inverse);
        store_vec(dx + c, y);
    });
}
KERNEL_PER_DTYPE_BOUNDS(koleo_bwd, KoleoBwd, 128)
