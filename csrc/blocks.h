// Blocks of packed weights, sixteen rows by a group of 32 columns: see tapwater/ops/quant.py. Included by linear.cpp alone,
// once per instruction set.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace tw {
namespace TW_ISA {

constexpr int kBlockQ4 = kLanes * kGroup / 2;  // bytes of sixteen rows of 32 four-bit weights
constexpr int kBlockQ8 = kLanes * kGroup;

template <Format F>
constexpr int kBytes = F == kBf16 ? 2 * kLanes * kGroup : F == kQ8 ? kBlockQ8 + 32 : F == kQ4Min ? kBlockQ4 + 64 : kBlockQ4 + 32;

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

// Rows 0..7 are the ones that find weights in memory, later ones find them in caches. The hardware's own prefetching stops
// at every page and is a third slower; past the end of the matrix nothing happens.
template <Format F>
static inline __attribute__((always_inline)) void prefetch_block(const uint8_t* block) {
    constexpr int kAhead = 4096;
#pragma GCC unroll 16
    for (int line = 0; line < kBytes<F>; line += 64) __builtin_prefetch(block + kAhead + line);
}

// Column `column` of sixteen rows, as floats.
template <Format F>
static inline __attribute__((always_inline)) f32x16 column_of(const uint8_t* row_block, int32_t column) {
    const uint8_t* block = row_block + column / kGroup * kBytes<F>;
    const int k = column % kGroup, vector = k / 4, byte = k % 4;
    const uint16_t* halves = (const uint16_t*)(block + (F == kQ8 ? kBlockQ8 : kBlockQ4));
    if (F == kQ8) {
        const i32x16 q = load<i32x16>(block + 64 * vector) << (24 - 8 * byte);
        return load_half(halves) * to_float(q >> 24);
    }
    const i32x16 q = (load<i32x16>(block + 64 * (vector % 4)) >> (8 * byte + vector / 4 * 4)) & 15;
    if (F == kQ4) return load_half(halves) * to_float(q - 8);
    return load_half(halves) * to_float(q) + load_half(halves + kLanes);
}

}  // namespace TW_ISA
}  // namespace tw
