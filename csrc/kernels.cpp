// Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
#include "kernels.h"

#include <cmath>

#include "simd.h"

namespace tw {
namespace TW_ISA {

constexpr int kBlockQ4 = kLanes * kGroup / 2;  // bytes of sixteen rows of 32 four-bit weights
constexpr int kBlockQ8 = kLanes * kGroup;

template <Format F>
constexpr int kBytes = F == kQ8 ? kBlockQ8 + 32 : F == kQ4Min ? kBlockQ4 + 64 : kBlockQ4 + 32;

// A group's scale is the largest magnitude over 127; rounding is to nearest, ties to even.
static void quantise(const float* x, int64_t rows, int64_t columns, int64_t groups, int8_t* q, float* scale, int32_t* sum) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t at = (row / kTileRows * groups + group) * kTileRows + row % kTileRows;
            float values[kGroup] = {};
            const int64_t count = columns - group * kGroup < kGroup ? columns - group * kGroup : kGroup;
            std::memcpy(values, x + row * columns + group * kGroup, count * sizeof(float));
            float largest = 0;
            for (float value : values) largest = std::fmax(largest, std::fabs(value));
            const float inverse = largest > 0 ? 127 / largest : 0;
            int32_t total = 0;
            int8_t* to = q + at * kGroup;
            for (int k = 0; k < kGroup; ++k) {
                const int32_t rounded = int32_t(std::nearbyint(values[k] * inverse));
                to[k] = int8_t(rounded);
                total += rounded;
            }
            scale[at] = largest / 127;
            sum[at] = total;
        }
}

// The eight vectors of weights of one block: vector j holds columns 4j..4j+3 of each of the sixteen rows.
template <Format F>
static inline __attribute__((always_inline)) void unpack(const uint8_t* block, u8x64 weights[8]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        if (F == kQ8) {
            weights[2 * j] = load<u8x64>(block + 128 * j);
            weights[2 * j + 1] = load<u8x64>(block + 128 * j + 64);
#if defined(TW_AVX512)
            weights[2 * j] ^= 0x80;  // to unsigned; the accumulator starts 128 * sum(x) low to make up for it
            weights[2 * j + 1] ^= 0x80;
#endif
        } else {
            const u8x64 pairs = load<u8x64>(block + 64 * j);
            weights[j] = pairs & 15;
            weights[j + 4] = (u8x64)((u16x32)pairs >> 4) & 15;
        }
    }
}

// M rows of x against one row-block: every row sees the same operations in the same order whatever M is, so a row's
// result does not depend on its neighbours.
template <Format F, int M>
static inline __attribute__((always_inline)) void tile(const uint8_t* block, const Activations& x, int64_t tile_index,
                                                       f32x16 out[M]) {
    const int8_t* q = x.q + tile_index * x.groups * kTileRows * kGroup;
    const float* scale = x.scale + tile_index * x.groups * kTileRows;
    const int32_t* sum = x.sum + tile_index * x.groups * kTileRows;
    f32x16 acc[M] = {};
    for (int64_t group = 0; group < x.groups; ++group) {
        u8x64 weights[8];
        unpack<F>(block, weights);
        const uint16_t* halves = (const uint16_t*)(block + (F == kQ8 ? kBlockQ8 : kBlockQ4));
        const f32x16 step = load_half(halves);
        f32x16 low = {};
        if (F == kQ4Min) low = load_half(halves + kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            i32x16 even = {}, odd = {};
            if (F == kQ4) even = splat(-8 * sum[m]);
#if defined(TW_AVX512)
            if (F == kQ8) even = splat(-128 * sum[m]);
#endif
#pragma GCC unroll 4
            for (int j = 0; j < 8; j += 2) {
                const int8_t* four = q + m * kGroup + 4 * j;
                even = F == kQ8 ? dot4_signed(even, weights[j], four) : dot4_small(even, weights[j], four);
                odd = F == kQ8 ? dot4_signed(odd, weights[j + 1], four + 4) : dot4_small(odd, weights[j + 1], four + 4);
            }
            acc[m] += to_float(even + odd) * (step * splat(scale[m]));
            if (F == kQ4Min) acc[m] += low * splat(scale[m] * float(sum[m]));
        }
        block += kBytes<F>;
        q += kTileRows * kGroup;
        scale += kTileRows;
        sum += kTileRows;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) out[m] = acc[m];
}

template <Format F, int M>
static __attribute__((noinline)) void rows_of(const uint8_t* block, const Activations& x, int64_t row, float* y, int64_t stride, int count) {
    f32x16 out[M];
    tile<F, M>(block, x, row / kTileRows, out);
    for (int m = 0; m < M; ++m) std::memcpy(y + (row + m) * stride, &out[m], count * sizeof(float));
}

template <Format F>
static void linear_of(const uint8_t* weights, const Activations& x, int64_t begin, int64_t end, float* y, int64_t stride,
                      int64_t outputs) {
    const int64_t row_block_bytes = x.groups * kBytes<F>;
    for (int64_t rb = begin; rb < end; ++rb) {
        const uint8_t* block = weights + rb * row_block_bytes;
        float* to = y + rb * kLanes;
        const int count = int(outputs - rb * kLanes < kLanes ? outputs - rb * kLanes : kLanes);
        int64_t row = 0;
        for (; row + kTileRows <= x.rows; row += kTileRows) rows_of<F, 8>(block, x, row, to, stride, count);
        switch (x.rows - row) {
            case 1: rows_of<F, 1>(block, x, row, to, stride, count); break;
            case 2: rows_of<F, 2>(block, x, row, to, stride, count); break;
            case 3: rows_of<F, 3>(block, x, row, to, stride, count); break;
            case 4: rows_of<F, 4>(block, x, row, to, stride, count); break;
            case 5: rows_of<F, 5>(block, x, row, to, stride, count); break;
            case 6: rows_of<F, 6>(block, x, row, to, stride, count); break;
            case 7: rows_of<F, 7>(block, x, row, to, stride, count); break;
        }
    }
}

static void linear(Format format, const uint8_t* weights, const Activations& x, int64_t begin, int64_t end, float* y,
                   int64_t stride, int64_t outputs) {
    if (format == kQ4) linear_of<kQ4>(weights, x, begin, end, y, stride, outputs);
    if (format == kQ4Min) linear_of<kQ4Min>(weights, x, begin, end, y, stride, outputs);
    if (format == kQ8) linear_of<kQ8>(weights, x, begin, end, y, stride, outputs);
}

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

#define TW_STRING_(x) #x
#define TW_STRING(x) TW_STRING_(x)
extern const Kernels table = {TW_STRING(TW_ISA), attend, quantise, linear};

}  // namespace TW_ISA
}  // namespace tw
