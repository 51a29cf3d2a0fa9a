// Sixteen lanes of float and int32 on every instruction set, and the one primitive that differs: the int8 dot product.
//
// Float arithmetic is written with the compiler's vector extensions, which become one zmm, two ymm or whatever the
// target has. Only what they cannot say - u8 x s8 dot products, half-precision loads - is spelt per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define TW_AVX512 1
#if defined(__AVX512BF16__)
#define TW_BF16 1
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TW_AVX2 1
#endif

namespace tw {

constexpr int kLanes = 16;  // output rows computed side by side
constexpr int kGroup = 32;  // inputs that share a scale

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));

template <typename V, typename T>
inline __attribute__((always_inline)) V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename V, typename T>
inline __attribute__((always_inline)) void store(T* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

inline __attribute__((always_inline)) f32x16 splat(float x) { return x - f32x16{}; }  // 0 + x is not x for -0
inline __attribute__((always_inline)) i32x16 splat(int32_t x) { return i32x16{} + x; }

inline __attribute__((always_inline)) float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    uint32_t bits;
    if (magnitude >= 0x7c00) {
        bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
    } else if (magnitude >= 0x400) {
        bits = (magnitude << 13) + (uint32_t(127 - 15) << 23);
    } else {  // subnormal: exact as a float product
        const float value = float(magnitude) * 0x1p-24f;
        std::memcpy(&bits, &value, 4);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Sixteen half-precision numbers as floats.
inline __attribute__((always_inline)) f32x16 load_half(const uint16_t* from) {
#if defined(TW_AVX512)
    return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(TW_AVX2)
    f32x16 value;
    _mm256_storeu_ps((float*)&value, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
    _mm256_storeu_ps((float*)&value + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8))));
    return value;
#else
    f32x16 value;
    for (int lane = 0; lane < kLanes; ++lane) value[lane] = half_to_float(from[lane]);
    return value;
#endif
}

// acc[lane] += w[lane][0] * x[0] + w[lane][1] * x[1], for bfloat16 pairs.
inline __attribute__((always_inline)) f32x16 dot2_bfloat16(f32x16 acc, u32x16 weights, const uint16_t* x) {
#if defined(TW_BF16)
    const __m512i wide = _mm512_set1_epi32(load<int32_t>(x));
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)weights, (__m512bh)wide);
#else
    acc += (f32x16)(weights << 16) * (f32x16)(u32x16{} + (uint32_t(x[0]) << 16));
    return acc + (f32x16)(weights & 0xffff0000) * (f32x16)(u32x16{} + (uint32_t(x[1]) << 16));
#endif
}

inline __attribute__((always_inline)) f32x16 to_float(i32x16 x) { return __builtin_convertvector(x, f32x16); }

#if defined(TW_AVX512)
// Spelt out because GCC 12 does not fold the broadcast into the instruction, which makes two of one.
inline __attribute__((always_inline)) i32x16 dot4_broadcast(i32x16 acc, u8x64 weights, const int8_t* x) {
    typedef int32_t __attribute__((may_alias, aligned(1))) four_bytes;
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(*(const four_bytes*)x));
    return acc;
}
#endif

// acc[lane] += sum over four k of weight[lane][k] * x[k]. Weights are 0..15 here, so no pair of products overflows.
inline __attribute__((always_inline)) i32x16 dot4_small(i32x16 acc, u8x64 weights, const int8_t* x) {
#if defined(TW_AVX512)
    return dot4_broadcast(acc, weights, x);
#elif defined(TW_AVX2)
    const __m256i* half = (const __m256i*)&weights;
    __m256i* sum = (__m256i*)&acc;
    const __m256i wide = _mm256_set1_epi32(load<int32_t>(x)), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i)
        sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(half[i], wide), ones));
    return acc;
#else
    for (int lane = 0; lane < kLanes; ++lane)
        for (int k = 0; k < 4; ++k) acc[lane] += int32_t(weights[4 * lane + k]) * x[k];
    return acc;
#endif
}

// The same for signed weights -128..127 and x in -127..127. On AVX-512 the accumulator must start 128 * sum(x) low.
inline __attribute__((always_inline)) i32x16 dot4_signed(i32x16 acc, u8x64 weights, const int8_t* x) {
#if defined(TW_AVX512)
    return dot4_broadcast(acc, weights, x);
#elif defined(TW_AVX2)
    const __m256i* half = (const __m256i*)&weights;
    __m256i* sum = (__m256i*)&acc;
    const __m256i wide = _mm256_set1_epi32(load<int32_t>(x)), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i) {
        const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(half[i]), _mm256_sign_epi8(wide, half[i]));
        sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(products, ones));
    }
    return acc;
#else
    for (int lane = 0; lane < kLanes; ++lane)
        for (int k = 0; k < 4; ++k) acc[lane] += int32_t(int8_t(weights[4 * lane + k])) * x[k];
    return acc;
#endif
}

}  // namespace tw
