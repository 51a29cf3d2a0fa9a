// The backward pass of causal attention. Compiled once per instruction set (TW_ISA), as training.cpp.
//
// Scores are computed anew, a block of queries at a time, in float32 whatever the storage: without tile instructions (see
// training_attention_tiles.cpp) that is as fast as processors go, and nothing is rounded in between.
#include <cmath>

#include "storage.h"
#include "training.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kRows = 4;      // of a tile of products: four rows of four vectors stay in registers
constexpr int64_t kVectors = 4;

// Queries of a block: all keys and values pass once for each, and of the last keys a block sees half in vain.
static int64_t queries_of(int64_t length) { return length < 1024 ? 32 : length < 2048 ? 64 : 128; }

static int64_t whole(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// c [4 rows, V vectors] (+)= a b, where a's number of row i and step k is at a[i * row + k * step].
template <int V>
static inline __attribute__((always_inline)) void tile(int64_t steps, const float* a, int64_t row, int64_t step,
                                                       const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    f32x16 sums[kRows][V];
    for (int64_t i = 0; i < kRows; ++i)
        for (int v = 0; v < V; ++v) sums[i][v] = add ? load<f32x16>(c + i * c_row + v * kLanes) : f32x16{};
    for (int64_t k = 0; k < steps; ++k) {
        f32x16 of_b[V];
        for (int v = 0; v < V; ++v) of_b[v] = load<f32x16>(b + k * b_row + v * kLanes);
        for (int64_t i = 0; i < kRows; ++i) {
            const f32x16 factor = splat(a[i * row + k * step]);
            for (int v = 0; v < V; ++v) sums[i][v] += factor * of_b[v];
        }
    }
    for (int64_t i = 0; i < kRows; ++i)
        for (int v = 0; v < V; ++v) store(c + i * c_row + v * kLanes, sums[i][v]);
}

template <int V>
static void panel(int64_t rows, int64_t steps, const float* a, int64_t row, int64_t step, const float* b, int64_t b_row,
                  float* c, int64_t c_row, bool add) {
    for (int64_t i = 0; i < rows; i += kRows) tile<V>(steps, a + i * row, row, step, b, b_row, c + i * c_row, c_row, add);
}

// c [rows, columns] (+)= a [rows, steps] b [steps, columns]: rows in fours, columns in sixteens.
static void product(int64_t rows, int64_t columns, int64_t steps, const float* a, int64_t row, int64_t step, const float* b,
                    int64_t b_row, float* c, int64_t c_row, bool add) {
    int64_t at = 0;
    for (; at + kVectors * kLanes <= columns; at += kVectors * kLanes)
        panel<4>(rows, steps, a, row, step, b + at, b_row, c + at, c_row, add);
    switch ((columns - at) / kLanes) {
        case 3: return panel<3>(rows, steps, a, row, step, b + at, b_row, c + at, c_row, add);
        case 2: return panel<2>(rows, steps, a, row, step, b + at, b_row, c + at, c_row, add);
        case 1: return panel<1>(rows, steps, a, row, step, b + at, b_row, c + at, c_row, add);
    }
}

// Rows of a head as float32 [rows, stride]; numbers past `width` and rows past `count` are zero.
template <typename T>
static void unpack(const Heads& x, int64_t token, int64_t head, int64_t count, int64_t rows, int64_t width, float* to) {
    const int64_t stride = whole(width);
    for (int64_t i = 0; i < count; ++i, to += stride) {
        const T* from = (const T*)x.data + (token + i) * x.row + head * x.head;
        for_lanes(width, [&](int64_t at, int64_t some) { store(to + at, read(from + at, some)); });
    }
    std::memset(to, 0, (rows - count) * stride * sizeof(float));
}

template <typename T>
static void pack(const float* from, const Heads& x, int64_t token, int64_t head, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; ++i, from += whole(width)) {
        T* to = (T*)x.data + (token + i) * x.row + head * x.head;
        for_lanes(width, [&](int64_t at, int64_t some) { write(to + at, load<f32x16>(from + at), some); });
    }
}

static void transpose(const float* from, int64_t rows, int64_t columns, float* to) {  // both in sixteens
    for (int64_t i = 0; i < rows; i += kLanes)
        for (int64_t j = 0; j < columns; ++j) {
            f32x16 column;
            for (int64_t k = 0; k < kLanes; ++k) column[k] = from[(i + k) * columns + j];
            store(to + j * rows + i, column);
        }
}

// Scores become softmax(scale * scores), and the gradients of those weights in `dweights` that of the scores. Only the
// first `visible` of `keys` (in sixteens) count; the others become zero.
static void softmax_backward(float* scores, float* dweights, int64_t visible, int64_t keys, float scale) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 most = splat(-INFINITY);
    for (int64_t i = 0; i < visible; i += kLanes) {
        const f32x16 some = load<f32x16>(scores + i);
        most = maximum(lane < splat(int32_t(visible - i)) ? some : splat(-INFINITY), most);
    }
    const f32x16 largest = splat(largest_lane(most)), factor = splat(scale);
    f32x16 sum = {}, products = {};
    for (int64_t i = 0; i < visible; i += kLanes) {
        f32x16 e = exponential((load<f32x16>(scores + i) - largest) * factor);
        e = lane < splat(int32_t(visible - i)) ? e : f32x16{};
        sum += e;
        products += e * load<f32x16>(dweights + i);
        store(scores + i, e);
    }
    const f32x16 inverse = splat(1 / sum_lanes(sum)), mean = splat(sum_lanes(products)) * inverse;
    for (int64_t i = 0; i < visible; i += kLanes) {
        const f32x16 p = load<f32x16>(scores + i) * inverse;
        store(scores + i, p);
        store(dweights + i, factor * p * (load<f32x16>(dweights + i) - mean));
    }
    for (int64_t i = whole(visible); i < keys; i += kLanes) {
        store(scores + i, f32x16{});
        store(dweights + i, f32x16{});
    }
}

template <typename T>
static void attention_backward(const AttentionGradient& of, int64_t first, int64_t length, int64_t group, float* scratch) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    const int64_t queries = queries_of(length);
    const auto room = [&](int64_t numbers) { return scratch += numbers, scratch - numbers; };
    float *k = room(keys * key), *k_columns = room(keys * key), *v_columns = room(keys * value);
    float *dk = room(keys * key), *dv = room(keys * value);
    float *q = room(queries * key), *dq = room(queries * key), *dy = room(queries * value);
    float *weights = room(queries * keys), *dscores = room(queries * keys);

    unpack<T>(of.v, first, group, length, keys, of.value_width, dv);  // on the way to its transpose
    transpose(dv, keys, value, v_columns);
    unpack<T>(of.k, first, group, length, keys, of.key_width, k);
    transpose(k, keys, key, k_columns);
    std::memset(dk, 0, keys * key * sizeof(float));
    std::memset(dv, 0, keys * value * sizeof(float));
    const int64_t sharing = of.heads / of.groups;
    for (int64_t head = group * sharing; head < (group + 1) * sharing; ++head)
        for (int64_t start = 0; start < length; start += queries) {
            const int64_t count = length - start < queries ? length - start : queries;
            const int64_t seen = whole(start + count);
            unpack<T>(of.q, first + start, head, count, queries, of.key_width, q);
            unpack<T>(of.dy, first + start, head, count, queries, of.value_width, dy);
            product(queries, seen, key, q, key, 1, k_columns, keys, weights, seen, false);
            product(queries, seen, value, dy, value, 1, v_columns, keys, dscores, seen, false);
            // queries past the last are zeros, as are the gradients that come to them: they add nothing
            for (int64_t i = 0; i < queries; ++i)
                softmax_backward(weights + i * seen, dscores + i * seen, i < count ? start + i + 1 : 1, seen, of.scale);
            product(queries, key, seen, dscores, seen, 1, k, key, dq, key, false);
            product(seen, key, queries, dscores, 1, seen, q, key, dk, key, true);
            product(seen, value, queries, weights, 1, seen, dy, value, dv, value, true);
            pack<T>(dq, of.dq, first + start, head, count, of.key_width);
        }
    pack<T>(dk, of.dk, first, group, length, of.key_width);
    pack<T>(dv, of.dv, first, group, length, of.value_width);
}

static int64_t backward_scratch(const AttentionGradient& of, int64_t length) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    const int64_t queries = queries_of(length);
    return keys * (3 * key + 2 * value + 2 * queries) + queries * (2 * key + value);
}

#if defined(__AMX_BF16__)
void tile_attention(const Attention& of, int64_t first, int64_t length, int64_t head, float* scratch);
int64_t tile_attention_scratch(const Attention& of, int64_t length);
void tile_attention_backward(const AttentionGradient& of, int64_t first, int64_t length, int64_t group, float* scratch);
int64_t tile_attention_backward_scratch(const AttentionGradient& of, int64_t length);
constexpr AttentionKernels kOfBfloat16 = {tile_attention, tile_attention_scratch, tile_attention_backward,
                                          tile_attention_backward_scratch};
#else
constexpr AttentionKernels kOfBfloat16 = {nullptr, nullptr, attention_backward<bfloat16>, backward_scratch};
#endif

extern const AttentionKernels attention_kernels[2];
const AttentionKernels attention_kernels[2] = {{nullptr, nullptr, attention_backward<float>, backward_scratch}, kOfBfloat16};

}  // namespace TW_ISA
}  // namespace tw
