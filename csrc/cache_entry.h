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

TW_INLINE float scale_at(const uint8_t* halves, int64_t group) {
#if defined(TW_AVX512) || defined(TW_AVX2)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load<uint16_t>(halves + 2 * group))));
#else
    return half_to_float(load<uint16_t>(halves + 2 * group));
#endif
}

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

// GCC 12 converts vectors of bytes one by one where it is told to convert a vector, so registers are spelt out.
TW_INLINE int_lanes signed_bytes(const uint8_t* from) {
#if defined(TW_AVX512)
    return (int_lanes)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)from));
#elif defined(TW_AVX2)
    return (int_lanes)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return int_lanes{int8_t(from[0]), int8_t(from[1]), int8_t(from[2]), int8_t(from[3])};
#endif
}

TW_INLINE int_lanes bytes(const uint8_t* from) {
#if defined(TW_AVX512)
    return (int_lanes)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)from));
#elif defined(TW_AVX2)
    return (int_lanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return int_lanes{from[0], from[1], from[2], from[3]};
#endif
}

TW_INLINE int_lanes words(const uint8_t* from) {
#if defined(TW_AVX512)
    return (int_lanes)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(TW_AVX2)
    return (int_lanes)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    return int_lanes{load<uint16_t>(from), load<uint16_t>(from + 2), load<uint16_t>(from + 4), load<uint16_t>(from + 6)};
#endif
}

TW_INLINE lanes floats(int_lanes x) { return __builtin_convertvector(x, lanes); }

// Numbers i .. i + kWidth - 1 of 32 in a half group, less 32.
TW_INLINE int_lanes steps_q6(const uint8_t* half, int i) {
    const int_lanes low = bytes(half + i % 16) >> (i / 16 * 4) & 15;
#if defined(TW_AVX512)
    const __m128i twice = _mm_set1_epi64x(load<int64_t>(half + 16));
    const int_lanes high = (int_lanes)_mm512_maskz_cvtepu8_epi32(0xffff, twice) >>
                           (int_lanes{0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2} + i / 8 * 2);
#else
    const int_lanes high = bytes(half + 16 + i % 8) >> (i / 8 * 2);
#endif
    return (low | (high & 3) << 4) - 32;
}

// Scales of a segment begin after its numbers.
template <int32_t F>
TW_INLINE const uint8_t* scales_of(const uint8_t* from, int64_t width) {
    return from + (F == kCacheQ8 ? width : (width + kHalfGroupQ6 - 1) / kHalfGroupQ6 * kHalfGroupBytesQ6);
}

constexpr bool has_scales(int32_t format) { return format == kCacheQ8 || format == kCacheQ6; }

// Numbers that share a scale; without scales, numbers unpacked in one go.
constexpr int64_t group_of(int32_t format) { return format == kCacheQ8 ? kGroupQ8 : kGroupQ6; }

// Numbers that sixteen bytes (q6: a group) hold.
constexpr int64_t whole_numbers(int32_t format) {
    return format == kCacheFloat32 ? 4 : format == kCacheBfloat16 ? 8 : format == kCacheQ8 ? 16 : kGroupQ6;
}

// Where number i of a segment lies, i being a multiple of 32.
template <int32_t F>
TW_INLINE const uint8_t* at_number(const uint8_t* from, int64_t i) {
    if (F == kCacheQ6) return from + i / kHalfGroupQ6 * kHalfGroupBytesQ6;
    return from + i * (F == kCacheFloat32 ? 4 : F == kCacheBfloat16 ? 2 : 1);
}

template <int32_t F>
TW_INLINE lanes group_scale(const uint8_t* scales, int64_t i) {
    return has_scales(F) ? all(scale_at(scales, i / group_of(F))) : lanes{};
}

// Numbers i .. i + kWidth - 1 of those that begin at `from`, all of one group.
template <int32_t F>
TW_INLINE lanes load_lanes(const uint8_t* from, int i, lanes scale) {
    if constexpr (F == kCacheFloat32) return load<lanes>(from + 4 * i);
    if constexpr (F == kCacheBfloat16) return (lanes)(words(from + 2 * i) << 16);
    if constexpr (F == kCacheQ8) return floats(signed_bytes(from + i)) * scale;
    if constexpr (F == kCacheQ6)
        return floats(steps_q6(from + i / kHalfGroupQ6 * kHalfGroupBytesQ6, i % int(kHalfGroupQ6))) * scale;
}

// `count` < 64 numbers; zeros up to the next multiple of sixteen. Nothing is read past the segment.
template <int32_t F>
static void load_rest(const uint8_t* from, const uint8_t* scales, int64_t begin, int64_t count, float* to) {
    for (int i = 0; i < count; i += kWidth) {
        uint8_t copy[kLanes * 4] = {};
        const uint8_t* at = from;
        int offset = i;
        if (F != kCacheQ6 && count - i < kWidth) {  // q6 is stored in whole halves of groups
            const int64_t size = at_number<F>(copy, 32) - copy;
            std::memcpy(copy, from + i * size / 32, (count - i) * size / 32);
            at = copy, offset = 0;
        }
        tw::store(to + i, load_lanes<F>(at, offset, group_scale<F>(scales, begin + i)));
    }
    for (int64_t i = count; i % kLanes; ++i) to[i] = 0;
}

// Numbers begin .. end - 1 of a segment in floats, zeros up to the next multiple of sixteen; begin is a multiple of 64.
template <int32_t F>
TW_INLINE void load_part(const uint8_t* from, int64_t width, int64_t begin, int64_t end, float* to) {
    constexpr int64_t kGroup = group_of(F);
    const uint8_t* scales = scales_of<F>(from, width);
    from = at_number<F>(from, begin);
    for (; begin + kGroup <= end; begin += kGroup, from = at_number<F>(from, kGroup), to += kGroup) {
        const lanes scale = group_scale<F>(scales, begin);
#pragma GCC unroll 16
        for (int i = 0; i < kGroup; i += kWidth) tw::store(to + i, load_lanes<F>(from, i, scale));
    }
    if (begin < end) load_rest<F>(from, scales, begin, end - begin, to);
}

static void load_any(int32_t format, const uint8_t* from, int64_t width, float* to) {
    if (format == kCacheFloat32) load_part<kCacheFloat32>(from, width, 0, width, to);
    if (format == kCacheBfloat16) load_part<kCacheBfloat16>(from, width, 0, width, to);
    if (format == kCacheQ8) load_part<kCacheQ8>(from, width, 0, width, to);
    if (format == kCacheQ6) load_part<kCacheQ6>(from, width, 0, width, to);
}

#if defined(TW_AVX512)
// Scales of one group in sixteen entries `step` bytes apart.
TW_INLINE lanes load_scales(const uint8_t* scale, int64_t step) {
    const __m512i index = _mm512_mullo_epi32(_mm512_set1_epi32(int32_t(step)),
                                             _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    // two bytes before the scale belong to the entry, those after it may not
    const __m512i both = _mm512_mask_i32gather_epi32(__m512i{}, 0xffff, index, scale - 2, 1);
    return (lanes)_mm512_maskz_cvtph_ps(0xffff, _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_srli_epi32(both, 16)));
}

// Sixteen entries `step` bytes apart, numbers begin .. end - 1 of a segment: to[i * to_step] gets number begin + i of all
// sixteen. Whole registers are transposed before they are unpacked. Whole groups only.
template <int32_t F>
static void load_transposed(const uint8_t* from, int64_t step, int64_t width, int64_t begin, int64_t end, float* to,
                            int64_t to_step) {
    const uint8_t* scales = scales_of<F>(from, width);
    if constexpr (F == kCacheQ6) {
        for (; begin < end; begin += kGroupQ6) {
            const lanes scale = load_scales(scales + begin / kGroupQ6 * 2, step);
            int_lanes packed[12];
            for (int i = 0; i < 12; i += 4)
                transpose_columns(from + begin / kHalfGroupQ6 * kHalfGroupBytesQ6 + 4 * i, step, (lanes*)packed + i);
#pragma GCC unroll 64
            for (int i = 0; i < kGroupQ6; ++i, to += to_step) {
                const int_lanes* half = packed + i / kHalfGroupQ6 * 6;
                const int k = i % kHalfGroupQ6;
                const int_lanes low = half[k % 16 / 4] >> (8 * (k % 4) + 4 * (k / 16)) & 15;
                const int_lanes high = half[4 + k % 8 / 4] >> (8 * (k % 4) + 2 * (k / 8)) & 3;
                tw::store(to, floats((low | high << 4) - 32) * scale);
            }
        }
    } else {
        constexpr int64_t kNumbers = whole_numbers(F);
        lanes scale = {};
        for (; begin < end; begin += kNumbers) {
            if (F == kCacheQ8 && begin % kGroupQ8 == 0) scale = load_scales(scales + begin / kGroupQ8 * 2, step);
            lanes packed[4];
            transpose_columns(from + begin * 16 / kNumbers, step, packed);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const int_lanes bits = (int_lanes)packed[i];
                if (F == kCacheFloat32) tw::store(to + i * to_step, packed[i]);
                if (F == kCacheBfloat16) {
                    tw::store(to + 2 * i * to_step, bits << 16);
                    tw::store(to + (2 * i + 1) * to_step, bits & int32_t(0xffff0000));
                }
                if (F == kCacheQ8)
#pragma GCC unroll 4
                    for (int k = 0; k < 4; ++k)
                        tw::store(to + (4 * i + k) * to_step, floats(bits << (24 - 8 * k) >> 24) * scale);
            }
            to += kNumbers * to_step;
        }
    }
}
#endif

}  // namespace TW_ISA
}  // namespace tw
