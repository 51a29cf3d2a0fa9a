// Attention over a paged cache. Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
#include "attention.h"

#include <cmath>

#include "simd.h"

namespace tw {
namespace TW_ISA {

// e^x for x <= 0, to about one unit in the seventh digit: 2^n times a polynomial on [-ln2/2, ln2/2].
static inline f32x16 exponential(f32x16 x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    const f32x16 shifted = x * splat(1.44269504f) + splat(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const f32x16 n = shifted - splat(12582912.0f);
    const f32x16 r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    const i32x16 power = ((i32x16)shifted - splat(0x4b400000) + splat(127)) << 23;
    return p * (f32x16)power;
}

static inline float sum_lanes(f32x16 x) {
    float total = 0;  // one order for every instruction set
    for (int lane = 0; lane < kLanes; ++lane) total += x[lane];
    return total;
}

static inline float dot(const float* a, const float* b, int64_t width) {
    f32x16 acc = {};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) acc += load<f32x16>(a + i) * load<f32x16>(b + i);
    float tail = 0;
    for (; i < width; ++i) tail += a[i] * b[i];
    return sum_lanes(acc) + tail;
}

// out = out * factor + sum over 16 tokens of weights * values, tokens in order.
static inline void accumulate(float* out, const float* const* values, const float* weights, int count, int64_t width,
                              float factor) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        f32x16 acc = load<f32x16>(out + i) * splat(factor);
        for (int j = 0; j < count; ++j) acc += load<f32x16>(values[j] + i) * splat(weights[j]);
        store(out + i, acc);
    }
    for (; i < width; ++i) {
        float acc = out[i] * factor;
        for (int j = 0; j < count; ++j) acc += values[j][i] * weights[j];
        out[i] = acc;
    }
}

// Online softmax over blocks of sixteen tokens. A query's result depends on its own tokens alone: neither on its
// neighbours in the batch nor on where its chunk began.
static void attend(const float* q, int64_t heads, const float* pages, int64_t page_size, const int64_t* page_table,
                   int64_t visible, const HeadLayout& layout, float scale, float* out, float* state) {
    float* largest = state;
    float* total = state + heads;
    for (int64_t head = 0; head < heads; ++head) largest[head] = -INFINITY, total[head] = 0;
    std::memset(out, 0, heads * layout.value_width * sizeof(float));
    for (int64_t begin = 0; begin < visible; begin += kLanes) {
        const int count = int(visible - begin < kLanes ? visible - begin : kLanes);
        const float *keys[kLanes], *values[kLanes];
        for (int j = 0; j < count; ++j) {
            const int64_t position = begin + j;
            const int64_t slot = page_table[position / page_size] * page_size + position % page_size;
            keys[j] = pages + slot * layout.entry + layout.key;
            values[j] = pages + slot * layout.entry + layout.value;
        }
        for (int64_t head = 0; head < heads; ++head) {
            f32x16 scores = splat(-INFINITY);
            float block_largest = largest[head];
            for (int j = 0; j < count; ++j) {
                const float score = dot(q + head * layout.key_width, keys[j], layout.key_width) * scale;
                scores[j] = score;
                block_largest = score > block_largest ? score : block_largest;
            }
            const f32x16 weights = exponential(scores - splat(block_largest));
            float weight[kLanes], sum = 0;
            store(weight, weights);
            for (int j = 0; j < count; ++j) sum += weight[j];
            const float factor = begin ? exponential(splat(largest[head] - block_largest))[0] : 0.0f;
            total[head] = total[head] * factor + sum;
            largest[head] = block_largest;
            accumulate(out + head * layout.value_width, values, weight, count, layout.value_width, factor);
        }
    }
    for (int64_t head = 0; head < heads; ++head) {
        const float inverse = 1 / total[head];
        for (int64_t i = 0; i < layout.value_width; ++i) out[head * layout.value_width + i] *= inverse;
    }
}

extern const AttentionKernels attention_table = {attend};

}  // namespace TW_ISA
}  // namespace tw
