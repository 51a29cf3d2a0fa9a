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

#define TW_STRING_(x) #x
#define TW_STRING(x) TW_STRING_(x)
extern const AttentionKernels attention_table;
extern const Kernels table = {TW_STRING(TW_ISA), &attention_table, quantise, linear};

}  // namespace TW_ISA
}  // namespace tw
