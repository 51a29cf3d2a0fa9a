// Causal attention and its backward pass on tile instructions (AMX), for bfloat16. Backward is what training_attention.cpp
// does, but for short exponentials, and for weights and the gradients of scores, which are rounded to bfloat16 before they are
// multiplied.
//
// Scores lie as [keys, queries]: a query is a lane, so a softmax folds no lanes, and weights come out as the rows of 32
// numbers that tiles take. Every product is of 32 rows and 32 columns; what is past an edge is zero.
#include <cmath>

#include "tiles.h"

namespace tw {
namespace TW_ISA {

// What the softmax of 32 queries needs, each a lane.
struct Softmax {
    f32x16 most[2], sum[2] = {}, products[2] = {};
};

static inline __attribute__((always_inline)) f32x16 row(const float* x, int64_t i, int half) {
    return load<f32x16>(x + i * kBlock + half * kLanes);
}

// The diagonal block: key i is not seen by the queries before i.
static void hide_later_keys(float* scores) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = 1; i < kBlock; ++i)
        for (int half = 0; half < 2; ++half) {
            const f32x16 seen = row(scores, i, half);
            store(scores + i * kBlock + half * kLanes, lane + splat(half * kLanes) < splat(int32_t(i)) ? splat(-INFINITY) : seen);
        }
}

// Scores [keys, 32] of the 32 queries from `start`, which see keys 0..start + 31, and the largest of each query.
static Softmax score(const uint16_t* k, int64_t key, const uint16_t* q_columns, int64_t start, float* scores) {
    Softmax of;
    for (f32x16& most : of.most) most = splat(-INFINITY);
    for (int64_t at = 0; at <= start; at += kBlock, scores += kBlock * kBlock) {
        product(key, k + at * key, 2 * key, q_columns, 4 * kBlock, scores, 4 * kBlock, false);
        if (at == start) hide_later_keys(scores);
        for (int64_t i = 0; i < kBlock; ++i)
            for (int half = 0; half < 2; ++half) of.most[half] = maximum(row(scores, i, half), of.most[half]);
    }
    return of;
}

static inline __attribute__((always_inline)) f32x16 unscaled_weight(const float* scores, int64_t i, int half, float scale,
                                                                    const Softmax& of) {
    return short_exponential((row(scores, i, half) - of.most[half]) * splat(scale));
}

static inline __attribute__((always_inline)) u32x16 rounded(f32x16 low, f32x16 high) {
    return (u32x16)(__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// Of 32 keys: weights before they are divided by their sum, as pairs of rows [16, 32, 2].
static void unscaled_weights(const float* scores, float scale, Softmax& of, uint16_t* pairs) {
    for (int64_t i = 0; i < kBlock; i += 2) {
        u32x16 both[2], low, high;
        for (int64_t j = 0; j < 2; ++j) {
            f32x16 e[2];
            for (int half = 0; half < 2; ++half) of.sum[half] += e[half] = unscaled_weight(scores, i + j, half, scale, of);
            both[j] = rounded(e[0], e[1]);
        }
        zip(both[0], both[1], low, high);
        store(pairs + i * kBlock, low);
        store(pairs + (i + 1) * kBlock, high);
    }
}

// Of 32 keys: scores become weights before they are divided by their sum.
static void exponentials(float* scores, const float* dweights, float scale, Softmax& of) {
    for (int64_t i = 0; i < kBlock; ++i)
        for (int half = 0; half < 2; ++half) {
            const f32x16 e = unscaled_weight(scores, i, half, scale, of);
            of.sum[half] += e;
            of.products[half] += e * row(dweights, i, half);
            store(scores + i * kBlock + half * kLanes, e);
        }
}

// Of 32 keys: weights and the gradients of their scores [32, 32], those also as pairs of rows [16, 32, 2]. `sum` and
// `products` are by now 1 / sum and the mean of dweights.
static void weights_and_gradients(const float* e, const float* dweights, float scale, const Softmax& of, uint16_t* weights,
                                  uint16_t* dscores, uint16_t* pairs) {
    for (int64_t i = 0; i < kBlock; i += 2) {
        u32x16 both[2], low, high;
        for (int64_t j = 0; j < 2; ++j) {
            f32x16 p[2], ds[2];
            for (int half = 0; half < 2; ++half) {
                p[half] = row(e, i + j, half) * of.sum[half];
                ds[half] = splat(scale) * p[half] * (row(dweights, i + j, half) - of.products[half]);
            }
            both[j] = rounded(ds[0], ds[1]);
            store(weights + (i + j) * kBlock, rounded(p[0], p[1]));
            store(dscores + (i + j) * kBlock, both[j]);
        }
        zip(both[0], both[1], low, high);
        store(pairs + i * kBlock, low);
        store(pairs + (i + 1) * kBlock, high);
    }
}

// Memory of a thread, given out piece by piece; pieces in multiples of 16 floats, so that each begins a line.
struct Room {
    float* next;
    float* floats(int64_t count) { return next += count, next - count; }
    uint16_t* halves(int64_t count) { return (uint16_t*)floats(count / 2); }
};

// x [rows, width] as columns, 32 rows at a time: [rows / 32, width, 32]. `some` holds [32, width].
static void columns_of_blocks(const uint16_t* x, int64_t rows, int64_t width, uint16_t* some, uint16_t* columns) {
    for (int64_t at = 0; at < rows; at += kBlock) {
        pairs_of_rows(x + at * width, width, some);
        transpose((uint32_t*)some, kTile, width, (uint32_t*)(columns + at * width));
    }
}

void tile_attention(const Attention& of, int64_t first, int64_t length, int64_t head, float* scratch) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    const int64_t group = head / (of.heads / of.groups);
    Room room{scratch};
    float *scores = room.floats(keys * kBlock), *y_columns = room.floats(kBlock * value), *y = room.floats(kBlock * value);
    uint16_t *k = room.halves(keys * key), *v = room.halves(keys * value), *v_columns = room.halves(keys * value);
    uint16_t *q = room.halves(kBlock * key), *q_columns = room.halves(kBlock * key), *pairs = room.halves(kBlock * kBlock);

    begin_tiles();
    unpack(of.k, first, group, length, keys, of.key_width, k);
    unpack(of.v, first, group, length, keys, of.value_width, v);
    columns_of_blocks(v, keys, value, (uint16_t*)y, v_columns);
    for (int64_t start = 0; start < length; start += kBlock) {
        const int64_t count = length - start < kBlock ? length - start : kBlock;
        unpack(of.q, first + start, head, count, kBlock, of.key_width, q);
        transpose((uint32_t*)q, kBlock, key / 2, (uint32_t*)q_columns);
        Softmax softmax = score(k, key, q_columns, start, scores);
        for (int64_t at = 0; at <= start; at += kBlock) {
            unscaled_weights(scores + at * kBlock, of.scale, softmax, pairs);
            for (int64_t i = 0; i < value; i += kBlock)
                product(kBlock, v_columns + at * value + i * kBlock, 2 * kBlock, pairs, 4 * kBlock, y_columns + i * kBlock,
                        4 * kBlock, at > 0);
        }
        for (int64_t i = 0; i < value; ++i)
            for (int half = 0; half < 2; ++half)
                store(y_columns + i * kBlock + half * kLanes, row(y_columns, i, half) / softmax.sum[half]);
        transpose((uint32_t*)y_columns, value, kBlock, (uint32_t*)y);
        pack(y, of.y, first + start, head, count, of.value_width);
    }
    _tile_release();
}

int64_t tile_attention_scratch(const Attention& of, int64_t length) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    return keys * (kBlock + key / 2 + value) + kBlock * (2 * value + key + kBlock / 2);
}

void tile_attention_backward(const AttentionGradient& of, int64_t first, int64_t length, int64_t group, float* scratch) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    Room room{scratch};
    float *dk = room.floats(keys * key), *dv = room.floats(keys * value), *scores = room.floats(keys * kBlock), *dweights = room.floats(keys * kBlock);
    float *dq_columns = room.floats(kBlock * key), *dq = room.floats(kBlock * key);
    uint16_t *k = room.halves(keys * key), *k_columns = room.halves(keys * key), *v = room.halves(keys * value);
    uint16_t *q = room.halves(kBlock * key), *q_columns = room.halves(kBlock * key), *q_pairs = room.halves(kBlock * key);
    uint16_t *dy = room.halves(kBlock * value), *dy_columns = room.halves(kBlock * value), *dy_pairs = room.halves(kBlock * value);
    uint16_t *weights = room.halves(kBlock * kBlock), *dscores = room.halves(kBlock * kBlock), *pairs = room.halves(kBlock * kBlock);

    begin_tiles();
    unpack(of.v, first, group, length, keys, of.value_width, v);
    unpack(of.k, first, group, length, keys, of.key_width, k);
    columns_of_blocks(k, keys, key, (uint16_t*)dq, k_columns);
    std::memset(dk, 0, keys * key * sizeof(float));
    std::memset(dv, 0, keys * value * sizeof(float));
    const int64_t sharing = of.heads / of.groups;
    for (int64_t head = group * sharing; head < (group + 1) * sharing; ++head)
        for (int64_t start = 0; start < length; start += kBlock) {
            const int64_t count = length - start < kBlock ? length - start : kBlock;
            // queries past the last are zeros, as are the gradients that come to them: they add nothing
            unpack(of.q, first + start, head, count, kBlock, of.key_width, q);
            unpack(of.dy, first + start, head, count, kBlock, of.value_width, dy);
            transpose((uint32_t*)q, kBlock, key / 2, (uint32_t*)q_columns);
            transpose((uint32_t*)dy, kBlock, value / 2, (uint32_t*)dy_columns);
            pairs_of_rows(q, key, q_pairs);
            pairs_of_rows(dy, value, dy_pairs);
            Softmax softmax = score(k, key, q_columns, start, scores);
            for (int64_t at = 0; at <= start; at += kBlock) {
                float* block = dweights + at * kBlock;
                product(value, v + at * value, 2 * value, dy_columns, 4 * kBlock, block, 4 * kBlock, false);
                exponentials(scores + at * kBlock, block, of.scale, softmax);
            }
            for (int half = 0; half < 2; ++half) {
                softmax.sum[half] = splat(1.0f) / softmax.sum[half];
                softmax.products[half] *= softmax.sum[half];
            }
            for (int64_t at = 0; at <= start; at += kBlock) {
                weights_and_gradients(scores + at * kBlock, dweights + at * kBlock, of.scale, softmax, weights, dscores, pairs);
                for (int64_t i = 0; i < value; i += kBlock)
                    product(kBlock, weights, 2 * kBlock, dy_pairs + 2 * i, 4 * value, dv + at * value + i, 4 * value, true);
                for (int64_t i = 0; i < key; i += kBlock) {
                    product(kBlock, dscores, 2 * kBlock, q_pairs + 2 * i, 4 * key, dk + at * key + i, 4 * key, true);
                    product(kBlock, k_columns + at * key + i * kBlock, 2 * kBlock, pairs, 4 * kBlock, dq_columns + i * kBlock,
                            4 * kBlock, at > 0);
                }
            }
            transpose((uint32_t*)dq_columns, key, kBlock, (uint32_t*)dq);
            pack(dq, of.dq, first + start, head, count, of.key_width);
        }
    _tile_release();
    pack(dk, of.dk, first, group, length, of.key_width);
    pack(dv, of.dv, first, group, length, of.value_width);
}

int64_t tile_attention_backward_scratch(const AttentionGradient& of, int64_t length) {
    const int64_t keys = whole(length), key = whole(of.key_width), value = whole(of.value_width);
    const int64_t floats = keys * (key + value + 2 * kBlock) + 2 * kBlock * key;
    const int64_t halves = keys * (2 * key + value) + kBlock * (3 * key + 3 * value) + 3 * kBlock * kBlock;
    return floats + halves / 2;
}

}  // namespace TW_ISA
}  // namespace tw
