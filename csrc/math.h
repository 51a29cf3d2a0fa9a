// Vector mathematics shared by the kernels of one instruction set.
#pragma once

#include "simd.h"

namespace tw {

inline __attribute__((always_inline)) f32x16 maximum(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline __attribute__((always_inline)) f32x16 magnitude(f32x16 x) { return (f32x16)((i32x16)x & splat(0x7fffffff)); }

// Sixteen lanes folded to one: halves first, in the same order on every instruction set.
template <typename F>
inline __attribute__((always_inline)) float fold_lanes(f32x16 x, F&& f) {
    typedef float f32x8 __attribute__((vector_size(32)));
    typedef float f32x4 __attribute__((vector_size(16)));
    f32x8 eight[2];
    std::memcpy(eight, &x, sizeof x);
    const f32x8 folded = f(eight[0], eight[1]);
    f32x4 four[2];
    std::memcpy(four, &folded, sizeof folded);
    const f32x4 last = f(four[0], four[1]);
    return f(f(last[0], last[2]), f(last[1], last[3]));
}

inline __attribute__((always_inline)) float sum_lanes(f32x16 x) {
    return fold_lanes(x, [](auto a, auto b) { return a + b; });
}

inline __attribute__((always_inline)) float largest_lane(f32x16 x) {
    return fold_lanes(x, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x to about one unit in the seventh digit for x in -87..88, where it is clamped: 2^n times a polynomial on
// [-ln2/2, ln2/2]. NaN stays NaN.
inline __attribute__((always_inline)) f32x16 exponential(f32x16 x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
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

#if defined(TW_AVX512)
constexpr __mmask16 kAllLanes = 0xffff;  // without a mask GCC 12 warns of what its own header leaves out
#endif

// e^x to five digits, where that takes fewer instructions; 0 from about -103 down, infinity from 89 on. NaN stays NaN.
// 2^fraction by the polynomial of degree 4 whose largest relative error on [0, 1] is least: 2.6e-6.
inline __attribute__((always_inline)) f32x16 short_exponential(f32x16 x) {
#if defined(TW_AVX512)
    const f32x16 power = x * splat(1.44269504f);
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const f32x16 fraction = (f32x16)_mm512_maskz_reduce_ps(kAllLanes, (__m512)power, kDown);
    f32x16 p = splat(1.353416787e-2f);
    p = p * fraction + splat(5.201146277e-2f);
    p = p * fraction + splat(2.414427539e-1f);
    p = p * fraction + splat(6.930038356e-1f);
    p = p * fraction + splat(1.000002593f);
    return (f32x16)_mm512_maskz_scalef_ps(kAllLanes, (__m512)p, (__m512)power);  // p * 2^floor(power)
#else
    return exponential(x);
#endif
}

// 1 / x to four digits, where that takes fewer instructions.
inline __attribute__((always_inline)) f32x16 short_reciprocal(f32x16 x) {
#if defined(TW_AVX512)
    return (f32x16)_mm512_maskz_rcp14_ps(kAllLanes, (__m512)x);
#else
    return splat(1.0f) / x;
#endif
}

// The nearest integers, ties to even; |x| must stay below 2^22.
inline __attribute__((always_inline)) i32x16 nearest(f32x16 x) {
    return (i32x16)(x + splat(12582912.0f)) - splat(0x4b400000);
}

// bfloat16 of x in the low half of each lane: to nearest, ties to even; NaN stays NaN.
inline __attribute__((always_inline)) u32x16 to_bfloat16(f32x16 x) {
    const u32x16 bits = (u32x16)x;
    const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x == x ? rounded : (bits >> 16) | 0x40;
}

}  // namespace tw
