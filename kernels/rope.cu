// Rotary position embedding in place: pairs of channels turned by the angles of a table (arXiv 2104.09864, eq. 34).
// Reference: src/ops/rope.
#include "rows.cuh"

struct Rope {
    void* x;             // [tokens, parts, cols] T: heads side by side
    const float* table;  // [positions, dim / 2, 2]: cosine, sine
    unsigned tokens, parts, rotated, cols;
    unsigned dim;        // channels of a head, even
    unsigned positions;
    unsigned sequence;   // tokens of a sequence
    unsigned turned;     // of them, those that are rotated: the first; position: index mod positions
    float sign;          // 1, or -1 for the way back
    unsigned pad;
};

// Turns N channels; table: their angles.
template <class T, int N>
__device__ __forceinline__ void turn(T* x, const float* table, float sign) {
    Vec<T, N> v = load_vec<T, N>(x);
    const Vec<float, N> angle = load_vec<float, N>(table);
    UNROLL
    for (int j = 0; j < N; j += 2) {
        const float a = to_f32(v[j]), b = to_f32(v[j + 1]), c = angle[j], s = sign * angle[j + 1];
        v[j] = from_f32<T>(a * c - b * s);
        v[j + 1] = from_f32<T>(a * s + b * c);
    }
    store_vec(x, v);
}

// One warp per token and rotated part; a lane takes two pairs, whose angles are 16 bytes, where heads are made of such, else
// one.
template <class T>
__device__ void rope(const Rope& a) {
    const unsigned token = warp_row() / a.rotated, part = warp_row() % a.rotated;
    if (token >= a.tokens) return;  // whole warps leave; no block barrier follows
    const unsigned at = token % a.sequence;
    if (at >= a.turned) return;
    T* x = out<T>(a.x) + (size_t(token) * a.parts + part) * a.cols;
    const float* table = a.table + size_t(at % a.positions) * a.dim;
    if (a.dim % 4 == 0) {
        for (unsigned c = lane_id() * 4; c < a.cols; c += WARP * 4) turn<T, 4>(x + c, table + c % a.dim, a.sign);
    } else {
        for (unsigned c = lane_id() * 2; c < a.cols; c += WARP * 2) turn<T, 2>(x + c, table + c % a.dim, a.sign);
    }
}
KERNEL_PER_DTYPE(rope, Rope)
