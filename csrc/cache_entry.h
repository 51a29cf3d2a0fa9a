// Segments of cache entries, from floats and back: tapwater/ops/cache_format.py describes and defines the bytes.
// Included by attention.cpp alone, once per instruction set.
#pragma once

#include <cmath>

#include "attention.h"
#include "attention_tile.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kGroupQ8 = 32, kGroupQ6 = 64, kHalfGroupQ6 = 32;
constexpr int64_t kHalfGroupBytesQ6 = 24;

TW_INLINE float scale_at(const uint8_t* halves, int64_t group) { return half_to_float(load<uint16_t>(halves + 2 * group)); }

// IEEE binary16 of x, to nearest, ties to even; what is too large becomes infinite.
static uint16_t float_to_half(float x) {
    const uint32_t bits = load<uint32_t>(&x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {  // subnormal: the sum's last place is that of the smallest half
        const float sum = load<float>(&magnitude) + 0.5f;
        return uint16_t(sign | (load<uint32_t>(&sum) - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);  // may carry into infinity, as it should
    return uint16_t(sign | (rounded - (uint32_t(127 - 15) << 23)) >> 13);
}

// The scale of a group of `count` numbers with `most` steps to either side, written as a half; 1 / scale, or 0 for 0.
static float write_scale(const float* x, int64_t count, float most, uint8_t* to) {
    float largest = 0;
    bool is_nan = false;
    for (int64_t i = 0; i < count; ++i) {
        const float magnitude = std::fabs(x[i]);
        is_nan |= magnitude != magnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    const uint16_t half = is_nan ? 0x7e00 : float_to_half(largest / most);
    store(to, half);
    const float scale = half_to_float(half);
    return scale == 0 ? 0 : 1 / scale;
}

// x * inverse to the nearest integer within -most..most; NaN, whose group has a NaN for a scale, becomes anything.
TW_INLINE int32_t nearest_step(float x, float inverse, float most) {
    const float step = x * inverse;
    const float bounded = step > -most ? (step < most ? step : most) : -most;
    return int32_t(std::nearbyint(bounded));
}

static void store_q8(const float* x, int64_t width, uint8_t* to) {
    for (int64_t begin = 0; begin < width; begin += kGroupQ8) {
        const int64_t count = width - begin < kGroupQ8 ? width - begin : kGroupQ8;
        const float inverse = write_scale(x + begin, count, 127, to + width + begin / kGroupQ8 * 2);
        for (int64_t i = begin; i < begin + count; ++i) to[i] = uint8_t(nearest_step(x[i], inverse, 127));
    }
}

static void store_q6(const float* x, int64_t width, uint8_t* to) {
    const int64_t halves = (width + kHalfGroupQ6 - 1) / kHalfGroupQ6;
    std::memset(to, 0, halves * kHalfGroupBytesQ6);
    for (int64_t begin = 0; begin < width; begin += kGroupQ6) {
        const int64_t count = width - begin < kGroupQ6 ? width - begin : kGroupQ6;
        const float inverse = write_scale(x + begin, count, 31, to + halves * kHalfGroupBytesQ6 + begin / kGroupQ6 * 2);
        for (int64_t i = begin; i < begin + count; ++i) {
            uint8_t* half = to + i / kHalfGroupQ6 * kHalfGroupBytesQ6;
            const int64_t k = i % kHalfGroupQ6;
            const int32_t step = nearest_step(x[i], inverse, 31) + 32;
            half[k % 16] |= uint8_t((step & 15) << (k / 16 * 4));
            half[16 + k % 8] |= uint8_t((step >> 4) << (k / 8 * 2));
        }
    }
}

static uint16_t float_to_bfloat16(float x) {
    const uint32_t bits = load<uint32_t>(&x);
    return uint16_t(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
}

TW_INLINE float load_bfloat16(const uint8_t* from) {
    const uint32_t bits = uint32_t(load<uint16_t>(from)) << 16;
    return load<float>(&bits);
}

static void store_segment(int32_t format, const float* x, int64_t width, uint8_t* to) {
    if (format == kCacheFloat32) std::memcpy(to, x, width * sizeof(float));
    if (format == kCacheBfloat16)
        for (int64_t i = 0; i < width; ++i) tw::store(to + 2 * i, float_to_bfloat16(x[i]));
    if (format == kCacheQ8) store_q8(x, width, to);
    if (format == kCacheQ6) store_q6(x, width, to);
}

// Sixteen numbers of a segment, i being a multiple of sixteen.
template <int32_t F>
TW_INLINE f32x16 load_sixteen(const uint8_t* from, int64_t width, int64_t i) {
    if constexpr (F == kCacheFloat32) return load<f32x16>(from + 4 * i);
    if constexpr (F == kCacheBfloat16)
        return (f32x16)(__builtin_convertvector(load<u16x16>(from + 2 * i), u32x16) << 16);
    if constexpr (F == kCacheQ8)
        return to_float(__builtin_convertvector(load<i8x16>(from + i), i32x16)) * splat(scale_at(from + width, i / kGroupQ8));
    if constexpr (F == kCacheQ6) {
        typedef uint8_t u8x16 __attribute__((vector_size(16)));
        typedef uint64_t u64x2 __attribute__((vector_size(16)));
        const int64_t halves = (width + kHalfGroupQ6 - 1) / kHalfGroupQ6, second = i / 16 % 2;
        const uint8_t* half = from + i / kHalfGroupQ6 * kHalfGroupBytesQ6;
        const u32x16 low = __builtin_convertvector(load<u8x16>(half), u32x16) >> uint32_t(4 * second);
        const u8x16 bits = (u8x16)(u64x2{} + load<uint64_t>(half + 16));
        const u32x16 shift = u32x16{0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2} + uint32_t(4 * second);
        const u32x16 high = __builtin_convertvector(bits, u32x16) >> shift;
        const i32x16 step = (i32x16)((low & 15) | (high & 3) << 4) - 32;
        return to_float(step) * splat(scale_at(from + halves * kHalfGroupBytesQ6, i / kGroupQ6));
    }
}

template <int32_t F>
static void load_segment(const uint8_t* from, int64_t width, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) tw::store(to + i, load_sixteen<F>(from, width, i));
    if (i == width) return;
    float last[kLanes] = {};
    if constexpr (F == kCacheFloat32) {
        std::memcpy(last, from + 4 * i, (width - i) * 4);
    } else if constexpr (F == kCacheBfloat16 || F == kCacheQ8) {
        for (int64_t j = 0; j < width - i; ++j)
            last[j] = F == kCacheQ8 ? float(int8_t(from[i + j])) * scale_at(from + width, i / kGroupQ8)
                                    : load_bfloat16(from + 2 * (i + j));
    } else {
        const f32x16 whole = load_sixteen<F>(from, width, i);  // half groups are stored whole
        for (int64_t j = 0; j < width - i; ++j) last[j] = whole[j];
    }
    std::memcpy(to + i, last, sizeof last);
}

static void load_any(int32_t format, const uint8_t* from, int64_t width, float* to) {
    if (format == kCacheFloat32) load_segment<kCacheFloat32>(from, width, to);
    if (format == kCacheBfloat16) load_segment<kCacheBfloat16>(from, width, to);
    if (format == kCacheQ8) load_segment<kCacheQ8>(from, width, to);
    if (format == kCacheQ6) load_segment<kCacheQ6>(from, width, to);
}

}  // namespace TW_ISA
}  // namespace tw
