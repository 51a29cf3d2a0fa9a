// Row kernels that linear.cpp fuses, and declarations for its table. Included once per instruction set.
#pragma once

#include "kernels.h"
#include "math.h"

namespace tw {
namespace TW_ISA {

void normalise(const float* x, const float* weight, int64_t columns, float eps, float* y);
void quantise(const float* x, int64_t columns, const Activations& out, int64_t row);
void rotate_half(float* x, int64_t width, const float* cos, const float* sin);
void rotate_interleaved(float* x, int64_t width, const float* cos, const float* sin);
void affinities(const float* x, int64_t columns, const float* gate, int64_t experts, float* logits);
void unpack_row(const Matrix& matrix, int64_t row, float* y);
uint32_t read_all(const uint8_t* from, int64_t bytes);

// 32 values as group `group` of row `row`.
static inline __attribute__((always_inline)) void write_bfloat16(f32x16 low, f32x16 high, const Activations& out,
                                                                 int64_t row, int64_t group) {
    uint16_t* to = out.half + out.at(row, group) * kGroup;
    store(to, __builtin_convertvector(to_bfloat16(low), u16x16));
    store(to + kLanes, __builtin_convertvector(to_bfloat16(high), u16x16));
}

// The scale is the largest magnitude over 127, rounding is to nearest, ties to even; NaN makes the scale NaN.
static inline __attribute__((always_inline)) void write_integers(f32x16 low, f32x16 high, const Activations& out,
                                                                 int64_t row, int64_t group) {
    const int64_t at = out.at(row, group);
    const float largest = largest_lane(maximum(magnitude(low), magnitude(high)));
    const float inverse = largest > 0 ? 127 / largest : 0;
    const i32x16 first = nearest(low * splat(inverse)), second = nearest(high * splat(inverse));
    store(out.q + at * kGroup, __builtin_convertvector(first, i8x16));
    store(out.q + at * kGroup + kLanes, __builtin_convertvector(second, i8x16));
    const float sum = sum_lanes(to_float(first) + to_float(second));  // of small integers: exact in any order
    // x - x is 0, or NaN where x is not finite: damage must reach the logits, where it is looked for
    out.scale[at] = largest / 127 + sum_lanes((low - low) + (high - high));
    out.sum[at] = int32_t(sum);
    out.total[at] = out.scale[at] * sum;
}

}  // namespace TW_ISA
}  // namespace tw
