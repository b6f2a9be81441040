// The maximum over squares of two by two pixels: y[b, i, j] = max x[b, 2i + u, 2j + v], a last odd row or column
// dropped. A byte says which of the four it was. Reference and gradient: src/ops/max_pool2d.
#include "common.cuh"

struct MaxPool2dFwd {
    const void* x;         // [B, height, width, channels] T
    void* y;               // [B, height / 2, width / 2, channels] T
    unsigned char* index;  // as y: 2u + v of the first maximum, or of the last NaN; null: not wanted
    unsigned height, width, channels;
    unsigned count;        // vectors of y
};

// N channels of one square by a thread; N divides the channels.
template <class T, int N>
__device__ __forceinline__ void pool(const MaxPool2dFwd& a) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.count) return;
    const unsigned vectors = a.channels / N, down = a.height / 2, across = a.width / 2;
    const unsigned square = at / vectors, c = at % vectors * N, line = square / across, column = square % across * 2;
    const size_t row = size_t(line / down) * a.height + line % down * 2;
    const T* x = in<T>(a.x) + (row * a.width + column) * a.channels + c;
    Vec<T, N> from[4];
    UNROLL
    for (int place = 0; place < 4; ++place)
        from[place] = load_vec<T, N>(x + (size_t(place / 2) * a.width + place % 2) * a.channels);
    Vec<T, N> y;
    Vec<unsigned char, N> index;
    UNROLL
    for (int i = 0; i < N; ++i) {
        float most = to_f32(from[0][i]);
        index[i] = 0;
        UNROLL
        for (int place = 1; place < 4; ++place) {
            const float value = to_f32(from[place][i]);
            if (value > most || value != value) most = value, index[i] = (unsigned char)(place);
        }
        y[i] = from_f32<T>(most);
    }
    store_vec(out<T>(a.y) + size_t(at) * N, y);
    if (a.index) store_vec(a.index + size_t(at) * N, index);
}

template <class T>
__device__ void max_pool2d_fwd(const MaxPool2dFwd& a) {
    constexpr int N = 16 / int(sizeof(T));
    if (a.channels % N == 0)
        pool<T, N>(a);
    else
        pool<T, 1>(a);
}
KERNEL_PER_DTYPE(max_pool2d_fwd, MaxPool2dFwd)

struct MaxPool2dBwd {
    const void* dy;              // [B, height / 2, width / 2, channels] T
    const unsigned char* index;  // as dy
    void* dx;                    // [B, height, width, channels] T
    unsigned height, width, channels;
    unsigned count;              // vectors of squares, those of a last odd row or column among them
};

// N channels of the pixels of one square by a thread: it reads a gradient once and writes every pixel.
template <class T, int N>
__device__ __forceinline__ void put_back(const MaxPool2dBwd& a) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.count) return;
    const unsigned vectors = a.channels / N, down = (a.height + 1) / 2, across = (a.width + 1) / 2;
    const unsigned square = at / vectors, c = at % vectors * N, line = square / across, column = square % across;
    const unsigned image = line / down, row = line % down;
    const bool pooled = row < a.height / 2 && column < a.width / 2;
    Vec<T, N> dy = {};
    Vec<unsigned char, N> index = {};
    if (pooled) {
        const size_t from = ((size_t(image) * (a.height / 2) + row) * (a.width / 2) + column) * a.channels + c;
        dy = load_vec<T, N>(in<T>(a.dy) + from);
        index = load_vec<unsigned char, N>(a.index + from);
    }
    UNROLL
    for (int place = 0; place < 4; ++place) {
        const unsigned y = 2 * row + place / 2, x = 2 * column + place % 2;
        if (y >= a.height || x >= a.width) continue;
        Vec<T, N> dx;
        UNROLL
        for (int i = 0; i < N; ++i) dx[i] = pooled && index[i] == place ? dy[i] : from_f32<T>(0.f);
        store_vec(out<T>(a.dx) + ((size_t(image) * a.height + y) * a.width + x) * a.channels + c, dx);
    }
}

template <class T>
__device__ void max_pool2d_bwd(const MaxPool2dBwd& a) {
    constexpr int N = 16 / int(sizeof(T));
    if (a.channels % N == 0)
        put_back<T, N>(a);
    else
        put_back<T, 1>(a);
}
KERNEL_PER_DTYPE(max_pool2d_bwd, MaxPool2dBwd)
