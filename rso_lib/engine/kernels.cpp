// The inner loops of a step on a CPU.
//
//   rows_conv     some output channels of a convolution, over all taps or some, from planes (+ base)
//   norm_changes  batch norm and activation of such channels, and the difference of some pairs of them
//
// and for images in channels-last layout and batch norm's blocks:
//
//   add_channels  base + the convolution of some input channels
//   norm_conv     batch norm with the statistics that follow from given moments, activation, and the next block's
//                 convolution
//   norm_max      the same batch norm and activation, and each channel's maximum over the picture
//   moments       the per-channel sum and sum of squares, which batch norm needs
//
// the last three for several groups of images, one after the other, each with its own moments.
//
// add_channels and norm_conv return the moments of what they wrote, so that every activation is written once and
// read once. One output channel is one lane of a vector; a block of pixels is held in registers while all input
// channels pass.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <omp.h>

#if defined(VECTOR_BYTES)  // by a test
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class T> using Vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
template <class T> constexpr int LANES = VECTOR_BYTES / sizeof(T);

// Sums over the pixels of one image.
template <class T, int CO> struct Moments {
    Vec<T> sum[CO / LANES<T>] = {}, squares[CO / LANES<T>] = {};

    void add(int v, Vec<T> z, Vec<T> square) {
        sum[v] += z;
        squares[v] += square;
    }

    void add_to(double* total) const {
        for (int c = 0; c < CO; c++) {
            total[c] += sum[c / LANES<T>][c % LANES<T>];
            total[CO + c] += squares[c / LANES<T>][c % LANES<T>];
        }
    }
};

// Over all images: `image(n, total)` adds the moments [2, channels] of one of them. totals is [2, channels].
template <class Image> void all_images(int images, int channels, double* totals, int threads, Image image) {
    std::vector<double> parts(threads * 2 * channels);  // added in the threads' order, so that equal runs give equal bits
#pragma omp parallel num_threads(threads)
    {
        std::vector<double> total(2 * channels);
#pragma omp for schedule(static)
        for (int n = 0; n < images; n++) image(n, total.data());
        std::copy(total.begin(), total.end(), parts.begin() + omp_get_thread_num() * total.size());
    }
    std::fill(totals, totals + 2 * channels, 0.0);
    for (size_t k = 0; k < parts.size(); k++) totals[k % (2 * channels)] += parts[k];
}

// Fetches what the next image will be read from, a few cache lines at a time, while this one is computed.
class Prefetch {
    static constexpr int64_t LINE = 64;  // bytes
    const char* from;
    int64_t bytes, done = 0, share;

  public:
    template <class T> Prefetch(const T* from, int64_t values, int calls)
        : from((const char*)from), bytes(values * sizeof(T)), share((bytes / LINE / (calls + 1) + 1) * LINE) {}

    void some() {
        for (const int64_t until = std::min(done + share, bytes); done < until; done += LINE)
            __builtin_prefetch(from + done, 0, 2);
    }
};

// Sums are held in registers, beside the factors that are multiplied: as many as fit, up to 16 (more gain nothing).
constexpr int REGISTERS = VECTOR_BYTES == 64 ? 32 : 16;

// A block of sums is for some vectors of output channels and some pixels, which want a vector of weights and one value.
template <class T, int CO> constexpr int ACROSS = std::min(2, CO / LANES<T>);
template <class T, int CO>
constexpr int PIXELS = std::min(16, REGISTERS - ACROSS<T, CO> - 1) / ACROSS<T, CO>;

// R × P output pixels of a 3×3 convolution with stride S, in the channels from vector v on; u has its border, base may be
// null.
template <class T, int CI, int CO, int S, int R, int P>
inline void pixels(const T* u, int pitch, const T* kernel, const T* base, T* out, int out_pitch, int v, Moments<T, CO>& m,
                   Prefetch& next) {
    constexpr int V = ACROSS<T, CO>;
    const int first = v * LANES<T>;
    Vec<T> acc[R][P][V] = {};
    if (base)
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++)
                for (int k = 0; k < V; k++)
                    acc[r][p][k] = *(const Vec<T>*)(base + r * out_pitch + p * CO + first + k * LANES<T>);
    for (int ky = 0; ky < 3; ky++)
        for (int kx = 0; kx < 3; kx++) {
            next.some();
            const T* corner = u + ky * pitch + kx * CI;
            const T* taps = kernel + (ky * 3 + kx) * CI * CO + first;
            for (int c = 0; c < CI; c++, taps += CO) {
                Vec<T> w[V];
#pragma GCC unroll 2
                for (int k = 0; k < V; k++) w[k] = *(const Vec<T>*)(taps + k * LANES<T>);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
                        for (int k = 0; k < V; k++) acc[r][p][k] += w[k] * corner[r * S * pitch + p * S * CI + c];
            }
        }
    for (int k = 0; k < V; k++) {
        Vec<T> sum = {}, squares = {};
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) {
                const Vec<T> z = acc[r][p][k];
                *(Vec<T>*)(out + r * out_pitch + p * CO + first + k * LANES<T>) = z;
                sum += z;
                squares += z * z;
            }
        m.add(v + k, sum, squares);
    }
}

template <class T, int CI, int CO, int S, int P>
inline void columns(const T* u, int pitch, const T* kernel, const T* base, T* out, int height, int width, int x, int v,
                    Moments<T, CO>& m, Prefetch& next) {
    const int out_pitch = width * CO;
    int y = 0;
    auto lines = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; y + R <= height; y += R)
            pixels<T, CI, CO, S, R, P>(u + y * S * pitch + x * S * CI, pitch, kernel,
                                       base ? base + y * out_pitch + x * CO : nullptr, out + y * out_pitch + x * CO,
                                       out_pitch, v, m, next);
    };
    constexpr int R = PIXELS<T, CO> / P;
    lines(std::integral_constant<int, R>());
    if constexpr (R > 2) lines(std::integral_constant<int, 2>());
    if constexpr (R > 1) lines(std::integral_constant<int, 1>());
}

// One image, in blocks as wide as registers allow and the width asks for.
template <class T, int CI, int CO, int S>
void convolve(const T* u, int pitch, const T* kernel, const T* base, T* out, int height, int width,
              Moments<T, CO>& m, Prefetch next) {
    for (int v = 0; v < CO / LANES<T>; v += ACROSS<T, CO>) {
        int x = 0;
        auto blocks = [&](auto count) {
            constexpr int P = decltype(count)::value;
            if constexpr (P <= PIXELS<T, CO>)
                for (; x + P <= width; x += P)
                    columns<T, CI, CO, S, P>(u, pitch, kernel, base, out, height, width, x, v, m, next);
        };
        if (width % 14 == 0) blocks(std::integral_constant<int, 14>());
        if (width % 7 == 0) blocks(std::integral_constant<int, 7>());
        blocks(std::integral_constant<int, 8>());
        blocks(std::integral_constant<int, 6>());
        blocks(std::integral_constant<int, 3>());
        blocks(std::integral_constant<int, 2>());
        blocks(std::integral_constant<int, 1>());
    }
}

// Zeroed memory for each thread, with room for two vectors more, and aligned like a vector: loads that cross a cache
// line cost twice.
template <class T> class Scratch {
    int64_t room;
    std::vector<T> all;

  public:
    Scratch(int threads, int64_t size) : room((size / LANES<T> + 3) * LANES<T>), all((threads + 1) * room) {}

    T* own() {
        const uintptr_t first = (uintptr_t)all.data();
        return (T*)((first + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES) + omp_get_thread_num() * room;
    }
};

// The mean of every 2×2 window of an image with its border, u [height + 2, width + 2, CI], at its upper left corner: a
// 3×3 convolution and the 2×2 average pooling after it are a 3×3 convolution of these means with stride 2. The last
// vector of a line may reach into the lines after it, which are written later, or into what `Scratch` has behind them.
template <class T, int CI> void box(const T* u, T* means, int height, int width) {
    const int pitch = (width + 2) * CI;
    for (int y = 0; y <= height; y++, u += pitch, means += pitch)
        for (int k = 0; k < (width + 1) * CI; k += LANES<T>) {
            auto pair = [=](const T* at) { return *(const Vec<T>*)at + *(const Vec<T>*)(at + CI); };
            *(Vec<T>*)(means + k) = T(0.25) * (pair(u + k) + pair(u + k + pitch));
        }
}

struct Shape {
    int images, height, width;  // of the input
};

// The convolution of all images: `fill` writes the rows of one into a border of zeros; S = 2 pools the result. It is the
// sum of some parts [parts], each of CI channels with a kernel of its own. Each image is read from so many values (of
// base, or what `fill` reads), one image after the other.
template <class T, int CI, int CO, int S, class Fill>
void convolve_all(int parts, Shape shape, const T* read, int64_t values, const T* kernels, const T* base, T* out,
                  double* moments, int threads, Fill fill) {
    const int height = shape.height / S, width = shape.width / S, pitch = (shape.width + 2) * CI;
    const int calls = 9 * height * width * CO / LANES<T> / ACROSS<T, CO> / PIXELS<T, CO>;
    const int64_t size = int64_t(height) * width * CO;
    Scratch<T> padded(threads, (shape.height + 2) * pitch), boxed(threads, S == 2 ? (shape.height + 2) * pitch : 0);
    all_images(shape.images, CO, moments, threads, [&](int n, double* total) {
        Moments<T, CO> m;
        T* u = padded.own();
        T* means = S == 2 ? boxed.own() : u;
        T* to = out + n * size;
        for (int k = 0; k < parts; k++) {
            for (int y = 0; y < shape.height; y++) fill(n, k, y, u + (y + 1) * pitch + CI);
            if (S == 2) box<T, CI>(u, means, shape.height, shape.width);
            const Prefetch next(read + (n + 1) * values, k == 0 && n + 1 < shape.images ? values : 0, calls);
            const T* sum = k ? to : base ? base + n * size : nullptr;
            m = {};
            convolve<T, CI, CO, S>(means, pitch, kernels + k * 9 * CI * CO, sum, to, height, width, m, next);
        }
        m.add_to(total);
    });
}

template <class T, int CO, int S>
void add_channels(const T* base, const T* planes, const T* kernels, T* out, double* moments, int channels, Shape shape,
                  int threads) {
    const int64_t outputs = int64_t(shape.height / S) * (shape.width / S) * CO;  // the planes are small beside them
    convolve_all<T, 1, CO, S>(channels, shape, base, outputs, kernels, base, out, moments, threads,
                              [=](int n, int k, int y, T* row) {
        const T* plane = planes + (int64_t(k) * shape.images + n) * shape.height * shape.width;
        std::memcpy(row, plane + y * shape.width, shape.width * sizeof(T));
    });
}

enum Activation { NONE, RELU, SIGN, STEP };

// An activation: `top` from `rise` on, `bottom` below `fall`, else the value itself. NaN stays NaN.
template <class T> struct Bounds {
    static constexpr T INF = std::numeric_limits<T>::infinity();
    T rise, top, fall, bottom;

    Bounds(Activation f)
        : rise(f == SIGN || f == STEP ? T(0) : INF), top(f == SIGN || f == STEP ? T(1) : INF),
          fall(f == NONE ? -INF : T(0)), bottom(f == NONE ? -INF : f == SIGN ? T(-1) : T(0)) {}
};

// Batch norm of one channel, with the statistics that follow from its sum and sum of squares, and the activation.
template <class T> struct Affine {
    T a, b;
    Bounds<T> to;

    Affine(double sum, double squares, double count, T scale, T shift, double eps, Activation f) : to(f) {
        const double mean = sum / count, variance = std::max(squares / count - mean * mean, 0.0);
        a = scale / std::sqrt(variance + eps);
        b = shift - mean * a;
    }

    T operator()(T z) const {
        const T value = a * z + b, high = value >= to.rise ? to.top : value;
        return value < to.fall ? to.bottom : high;
    }
};

// The same for all channels of a pixel.
template <class T, int C> struct Norm {
    Vec<T> a[C / LANES<T>], b[C / LANES<T>], rise, top, fall, bottom;

    Norm(const double* moments, double count, const T* scale, const T* shift, double eps, Activation f) {
        const Bounds<T> to(f);
        rise = Vec<T>{} + to.rise, top = Vec<T>{} + to.top, fall = Vec<T>{} + to.fall, bottom = Vec<T>{} + to.bottom;
        for (int c = 0; c < C; c++) {
            const Affine<T> norm(moments[c], moments[C + c], count, scale[c], shift[c], eps, f);
            a[c / LANES<T>][c % LANES<T>] = norm.a;
            b[c / LANES<T>][c % LANES<T>] = norm.b;
        }
    }

    Vec<T> of(int v, const T* z) const {
        const Vec<T> value = a[v] * *(const Vec<T>*)(z + v * LANES<T>) + b[v];
        const Vec<T> high = value >= rise ? top : value;
        return value < fall ? bottom : high;
    }

    void operator()(const T* z, int pixels, T* out) const {
        for (; pixels; pixels--, z += C, out += C)
            for (int v = 0; v < C / LANES<T>; v++) *(Vec<T>*)(out + v * LANES<T>) = of(v, z);
    }
};

template <class T, int CI, int CO, int S>
void norm_conv(const T* z, const double* in, double count, const T* scale, const T* shift, double eps, Activation f,
               const T* kernel, const T* base, T* out, double* moments, int groups, Shape shape, int threads) {
    const int row = shape.width * CI;
    const int64_t inputs = int64_t(shape.height) * row;
    const int64_t outputs = int64_t(shape.images) * (shape.height / S) * (shape.width / S) * CO;
    for (int g = 0; g < groups; g++, z += shape.images * inputs, out += outputs) {
        const Norm<T, CI> norm(in + g * 2 * CI, count, scale, shift, eps, f);
        convolve_all<T, CI, CO, S>(1, shape, z, inputs, kernel, base ? base + g * outputs : nullptr, out,
                                   moments + g * 2 * CO, threads, [=](int n, int, int y, T* to) {
            norm(z + n * inputs + y * row, shape.width, to);
        });
    }
}

template <class T, int C>
void norm_max(const T* z, const double* in, double count, const T* scale, const T* shift, double eps, Activation f, T* out,
              int groups, Shape shape, int threads) {
    const int64_t size = int64_t(shape.height) * shape.width * C;
    for (int g = 0; g < groups; g++, z += shape.images * size, out += shape.images * C) {
        const Norm<T, C> norm(in + g * 2 * C, count, scale, shift, eps, f);
#pragma omp parallel for num_threads(threads)
        for (int n = 0; n < shape.images; n++)
            for (int v = 0; v < C / LANES<T>; v++) {
                Vec<T> largest = norm.of(v, z + n * size);
                for (int64_t pixel = C; pixel < size; pixel += C) {
                    const Vec<T> value = norm.of(v, z + n * size + pixel);
                    largest = (largest >= value) | (largest != largest) ? largest : value;  // NaN stays NaN
                }
                *(Vec<T>*)(out + n * C + v * LANES<T>) = largest;
            }
    }
}

template <class T, int CO> void moments(const T* z, double* sums, int groups, Shape shape, int threads) {
    const int64_t size = int64_t(shape.height) * shape.width * CO;
    for (int g = 0; g < groups; g++, z += shape.images * size)
        all_images(shape.images, CO, sums + g * 2 * CO, threads, [=](int n, double* total) {
            Moments<T, CO> m;
            for (const T *pixel = z + n * size, *end = pixel + size; pixel < end; pixel += CO)
                for (int v = 0; v < CO / LANES<T>; v++) {
                    const Vec<T> z = *(const Vec<T>*)(pixel + v * LANES<T>);
                    m.add(v, z, z * z);
                }
            m.add_to(total);
        });
}

// Rows of a convolution without a border, which reads planes: each tap is a plane, shifted. All output pixels of an
// image are one stretch of lanes, with what lies between the lines of the output computed too and then left out.
struct Rows {
    const int64_t* shifts;  // of each tap
    int taps, rows, moved;
    const int64_t* like;  // [moved, 2]: the row that each moved row is like, but for one tap, and that tap
    int height, width, pitch;  // of the output, and how far its lines are apart in a plane

    int reach() const { return (height - 1) * pitch + width; }
    int64_t begin() const { return *std::min_element(shifts, shifts + taps); }  // of what is read of an image
    int64_t end() const { return *std::max_element(shifts, shifts + taps) + reach(); }
};

// How many vectors of some rows are summed at a time: beside these sums, as many of inputs and a weight.
constexpr int together(int rows) { return std::min(4, (REGISTERS - 1) / (rows + 1)); }

// R rows [R, taps] of one image by vectors of L values, K of them at a time; the last ones overlap the ones before.
template <class T, int L, int R>
void row_lanes(const Rows& rows, const T* x, const T* weights, T* out, int size, Prefetch& next) {
    using Lanes __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;
    constexpr int K = together(R);
    const int vectors = (rows.reach() + L - 1) / L;
    for (int v = 0; v < vectors; v += K) {
        int at[K];
        for (int k = 0; k < K; k++) at[k] = std::min((v + k) * L, rows.reach() - L);
        Lanes acc[R][K] = {};
        for (int t = 0; t < rows.taps; t++) {
            next.some();
            Lanes u[K];
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) u[k] = *(const Lanes*)(x + rows.shifts[t] + at[k]);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int k = 0; k < K; k++) acc[r][k] += weights[r * rows.taps + t] * u[k];
        }
        for (int r = 0; r < R; r++)
            for (int k = 0; k < K; k++) *(Lanes*)(out + r * size + at[k]) = acc[r][k];
    }
}

template <class T, int L>
void row_image(const Rows& rows, const T* x, const T* weights, T* out, int size, Prefetch next) {
    if constexpr (L > 1)
        if (rows.reach() < L) return row_image<T, L / 2>(rows, x, weights, out, size, next);
    for (int r = 0; r < rows.rows; r += 4, weights += 4 * rows.taps, out += 4 * size) {
        if (rows.rows - r == 1) row_lanes<T, L, 1>(rows, x, weights, out, size, next);
        else if (rows.rows - r == 2) row_lanes<T, L, 2>(rows, x, weights, out, size, next);
        else if (rows.rows - r == 3) row_lanes<T, L, 3>(rows, x, weights, out, size, next);
        else row_lanes<T, L, 4>(rows, x, weights, out, size, next);
    }
}

// x [N, size] and weights [rows + moved, taps] to out [N, rows + moved, height, width] and its moments. Row r is added to
// the plane of[r] of base [N, bases, height, width], which may be null.
template <class T>
void convolve_rows(const Rows& rows, const T* x, int64_t size, const T* weights, const T* base, const int64_t* of,
                   int bases, T* out, double* moments, int images, int threads) {
    const int all = rows.rows + rows.moved, plane = rows.height * rows.width, reach = std::max(rows.reach(), 0);
    const int64_t begin = rows.begin(), values = rows.end() - begin;
    int calls = 0;  // as `row_image` goes
    for (int r = 0; r < rows.rows; r += 4) {
        const int values = together(std::min(4, rows.rows - r)) * LANES<T>;
        calls += rows.taps * ((reach + values - 1) / values);
    }
    Scratch<T> stretches(threads, int64_t(all) * reach);
    all_images(images, all, moments, plane ? threads : 1, [&](int n, double* total) {
        if (!plane) return;
        const T* image = x + n * size;
        T* stretch = stretches.own();
        const Prefetch next(image + size + begin, n + 1 < images ? values : 0, calls);
        row_image<T, LANES<T>>(rows, image, weights, stretch, reach, next);
        for (int k = rows.rows; k < all; k++) {
            const int64_t row = rows.like[2 * (k - rows.rows)], tap = rows.like[2 * (k - rows.rows) + 1];
            const T move = weights[k * rows.taps + tap] - weights[row * rows.taps + tap];
            const T *from = stretch + row * reach, *moving = image + rows.shifts[tap];
#pragma omp simd
            for (int q = 0; q < reach; q++) stretch[k * reach + q] = from[q] + move * moving[q];
        }
        T* to = out + int64_t(n) * all * plane;
        for (int r = 0; r < all; r++, to += plane) {
            for (int y = 0; y < rows.height; y++)
                std::copy_n(stretch + r * reach + y * rows.pitch, rows.width, to + y * rows.width);
            const T* known = base ? base + (int64_t(n) * bases + of[r]) * plane : nullptr;
            T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
            for (int p = 0; p < plane; p++) {
                if (known) to[p] += known[p];
                sum += to[p];
                squares += to[p] * to[p];
            }
            total[r] += sum;
            total[all + r] += squares;
        }
    });
}

// z [N, rows, plane] to out [pairs, N, plane]: batch norm and activation of the second row of each pair, less those of
// the first.
template <class T>
void norm_changes(const T* z, const double* moments, double count, const T* scale, const T* shift, double eps, Activation f,
                  const int64_t* pairs, T* out, int changes, int images, int rows, int plane, int threads) {
    std::vector<Affine<T>> norms;
    for (int r = 0; r < rows; r++) norms.emplace_back(moments[r], moments[rows + r], count, scale[r], shift[r], eps, f);
#pragma omp parallel for num_threads(threads)
    for (int n = 0; n < images; n++)
        for (int k = 0; k < changes; k++) {
            const int64_t was = pairs[2 * k], now = pairs[2 * k + 1];
            const T *before = z + (int64_t(n) * rows + was) * plane, *after = z + (int64_t(n) * rows + now) * plane;
            T* to = out + (int64_t(k) * images + n) * plane;
            const Affine<T> old = norms[was], fresh = norms[now];
#pragma omp simd
            for (int q = 0; q < plane; q++) to[q] = fresh(after[q]) - old(before[q]);
        }
}

// The stride is 1, or 2 with pooling; channels are 16 or 32. Returns 0 where the sizes are others.
#define STRIDES(CALL) \
    if (stride == 1) { constexpr int S = 1; CALL; return 1; } \
    if (stride == 2) { constexpr int S = 2; CALL; return 1; }

#define EXPORT(T, NAME) \
    extern "C" int moments_##NAME(const T* z, double* sums, int groups, int images, int height, int width, int channels, int threads) { \
        const Shape shape{images, height, width}; \
        if (channels == 16) { moments<T, 16>(z, sums, groups, shape, threads); return 1; } \
        if (channels == 32) { moments<T, 32>(z, sums, groups, shape, threads); return 1; } \
        return 0; \
    } \
    extern "C" int rows_conv_##NAME(const T* x, const int64_t* shifts, const T* weights, const int64_t* like, const T* base, \
                                    const int64_t* of, T* out, double* moments, int bases, int taps, int rows, int moved, \
                                    int images, int size, int height, int width, int pitch, int threads) { \
        const Rows them{shifts, taps, rows, moved, like, height, width, pitch}; \
        convolve_rows<T>(them, x, size, weights, base, of, bases, out, moments, images, threads); \
        return 1; \
    } \
    extern "C" int norm_changes_##NAME(const T* z, const double* moments, double count, const T* scale, const T* shift, \
                                       double eps, int f, const int64_t* pairs, T* out, int changes, int images, int rows, \
                                       int plane, int threads) { \
        norm_changes<T>(z, moments, count, scale, shift, eps, Activation(f), pairs, out, changes, images, rows, plane, threads); \
        return 1; \
    } \
    extern "C" int add_channels_##NAME(const T* base, const T* planes, const T* kernels, T* out, double* moments, \
                                       int channels, int images, int height, int width, int co, int stride, int threads) { \
        const Shape shape{images, height, width}; \
        if (co == 16) { STRIDES((add_channels<T, 16, S>(base, planes, kernels, out, moments, channels, shape, threads))) } \
        if (co == 32) { STRIDES((add_channels<T, 32, S>(base, planes, kernels, out, moments, channels, shape, threads))) } \
        return 0; \
    } \
    extern "C" int norm_conv_##NAME(const T* z, const double* in, double count, const T* scale, const T* shift, \
                                    double eps, int f, const T* kernel, const T* base, T* out, double* moments, int groups, \
                                    int images, int height, int width, int ci, int co, int stride, int threads) { \
        const Shape shape{images, height, width}; \
        if (ci == 16 && co == 16) { STRIDES((norm_conv<T, 16, 16, S>(z, in, count, scale, shift, eps, Activation(f), kernel, base, out, moments, groups, shape, threads))) } \
        if (ci == 16 && co == 32) { STRIDES((norm_conv<T, 16, 32, S>(z, in, count, scale, shift, eps, Activation(f), kernel, base, out, moments, groups, shape, threads))) } \
        if (ci == 32 && co == 32) { STRIDES((norm_conv<T, 32, 32, S>(z, in, count, scale, shift, eps, Activation(f), kernel, base, out, moments, groups, shape, threads))) } \
        return 0; \
    } \
    extern "C" int norm_max_##NAME(const T* z, const double* in, double count, const T* scale, const T* shift, double eps, \
                                   int f, T* out, int groups, int images, int height, int width, int channels, int threads) { \
        const Shape shape{images, height, width}; \
        if (height * width == 0) return 0; \
        if (channels == 16) { norm_max<T, 16>(z, in, count, scale, shift, eps, Activation(f), out, groups, shape, threads); return 1; } \
        if (channels == 32) { norm_max<T, 32>(z, in, count, scale, shift, eps, Activation(f), out, groups, shape, threads); return 1; } \
        return 0; \
    }

EXPORT(float, float32)
EXPORT(double, float64)
