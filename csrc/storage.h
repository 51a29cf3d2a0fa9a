// Rows of float32 or bfloat16 read and written as sixteen floats. Included by training*.cpp, once per instruction set.
#pragma once

#include "math.h"

namespace tw {
namespace TW_ISA {

struct bfloat16 {
    uint16_t bits;
};

static inline __attribute__((always_inline)) f32x16 read(const float* from) { return load<f32x16>(from); }
static inline __attribute__((always_inline)) f32x16 read(const bfloat16* from) {
    return (f32x16)(__builtin_convertvector(load<u16x16>(from), u32x16) << 16);
}
static inline __attribute__((always_inline)) void write(float* to, f32x16 x) { store(to, x); }
static inline __attribute__((always_inline)) void write(bfloat16* to, f32x16 x) {
#if defined(TW_BF16)
    store(to, _mm512_cvtneps_pbh((__m512)x));  // what is below 2^-126 becomes zero
#else
    store(to, __builtin_convertvector(to_bfloat16(x), u16x16));
#endif
}

// As exact as what is stored as T can show: bfloat16 keeps three digits.
template <typename T>
static inline __attribute__((always_inline)) f32x16 exponential_for(f32x16 x) {
    return sizeof(T) < sizeof(float) ? short_exponential(x) : exponential(x);
}
template <typename T>
static inline __attribute__((always_inline)) f32x16 sigmoid(f32x16 x) {
    if (sizeof(T) < sizeof(float)) return short_reciprocal(splat(1.0f) + short_exponential(-x));
    return splat(1.0f) / (splat(1.0f) + exponential(-x));
}

// The first `count` of sixteen numbers, the others zero.
template <typename T>
static inline __attribute__((always_inline)) f32x16 read(const T* from, int64_t count) {
    if (count >= kLanes) return read(from);
    T some[kLanes] = {};
    std::memcpy(some, from, count * sizeof(T));
    return read(some);
}
template <typename T>
static inline __attribute__((always_inline)) void write(T* to, f32x16 x, int64_t count) {
    if (count >= kLanes) return write(to, x);
    T some[kLanes];
    write(some, x);
    std::memcpy(to, some, count * sizeof(T));
}

// f(i, count) for every sixteen of `width` numbers, the last few alone.
template <typename F>
static inline __attribute__((always_inline)) void for_lanes(int64_t width, F&& f) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) f(i, int64_t(kLanes));
    if (i < width) f(i, width - i);
}

}  // namespace TW_ISA
}  // namespace tw
