// What attention is built from: vectors of the target's own width, 2^x, a transpose, and one product of small tiles.
// Included by attention.cpp alone, once per instruction set.
#pragma once

#include <cmath>

#include "simd.h"

namespace tw {
namespace TW_ISA {

// Lanes of one register. Work is laid out in groups of sixteen lanes everywhere; a group is 1, 2 or 4 registers.
#if defined(TW_AVX512)
constexpr int kWidth = 16;
#elif defined(TW_AVX2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kRegisters = kLanes / kWidth;

typedef float lanes __attribute__((vector_size(kWidth * 4)));
typedef int32_t int_lanes __attribute__((vector_size(kWidth * 4)));

#define TW_INLINE static inline __attribute__((always_inline))

TW_INLINE lanes all(float x) { return x - lanes{}; }  // x + 0 would be an addition: -0 + 0 is not -0

// Spelt out, so that no compiler may choose which product of a sum is fused: rows must agree to the last bit.
TW_INLINE lanes fused(lanes a, lanes b, lanes c) {
#if defined(TW_AVX512)
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(TW_AVX2)
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The larger one; b where either is NaN.
TW_INLINE lanes larger(lanes a, lanes b) {
#if defined(TW_AVX512)
    return (lanes)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);  // GCC 12 warns of its own _mm512_max_ps
#elif defined(TW_AVX2)
    return (lanes)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// 2^x for x <= 0 to two units in the seventh digit, exact at 0, zero below -126: 2^n times a polynomial on [-1/2, 1/2].
TW_INLINE lanes power_of_two(lanes x) {
    const lanes bounded = larger(all(-127.0f), x);  // NaN stays NaN
    const lanes shifted = bounded + all(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const lanes r = bounded - (shifted - all(12582912.0f));
    lanes p = all(0x1.5bba14p-10f);
    p = fused(p, r, all(0x1.3cea88p-7f));
    p = fused(p, r, all(0x1.c6b752p-5f));
    p = fused(p, r, all(0x1.ebf9bcp-3f));
    p = fused(p, r, all(0x1.62e42ap-1f));
    p = fused(p, r, all(1.0f));
    const int_lanes power = ((int_lanes)shifted - (0x4b400000 - 127)) << 23;
    return x < all(-126.0f) ? lanes{} : p * (lanes)power;
}

TW_INLINE float largest_of(const float* x) {
    float largest = x[0];
    for (int lane = 1; lane < kLanes; ++lane) largest = x[lane] > largest ? x[lane] : largest;
    return largest;
}

// x[0] = the sum of sixteen values `step` apart, in one order for every layout.
template <typename T>
TW_INLINE T sum_of_sixteen(T* x) {
#pragma GCC unroll 4
    for (int half = 8; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

// to[j * to_step + i] = from[i * from_step + j] for i, j in 0..15.
TW_INLINE void transpose(const float* from, int64_t from_step, float* to, int64_t to_step) {
#if defined(TW_AVX512)
    // Four 4 x 4 blocks are gathered into one register by loads, then transposed within its quarters.
#pragma GCC unroll 4
    for (int column = 0; column < kLanes; column += 4) {
        __m512 r[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const float* at = from + i * from_step + column;
            r[i] = _mm512_castps128_ps512(_mm_loadu_ps(at));
            r[i] = _mm512_mask_broadcast_f32x4(r[i], 0x00f0, _mm_loadu_ps(at + 4 * from_step));
            r[i] = _mm512_mask_broadcast_f32x4(r[i], 0x0f00, _mm_loadu_ps(at + 8 * from_step));
            r[i] = _mm512_mask_broadcast_f32x4(r[i], 0xf000, _mm_loadu_ps(at + 12 * from_step));
        }
        typedef int32_t order __attribute__((vector_size(64)));
        typedef double pairs __attribute__((vector_size(64)));
        typedef int64_t pair_order __attribute__((vector_size(64)));
        const order low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}, high = low + 2;
        const pair_order low_pair = {0, 8, 2, 10, 4, 12, 6, 14}, high_pair = low_pair + 1;
        const pairs low01 = (pairs)__builtin_shuffle(r[0], r[1], low), low23 = (pairs)__builtin_shuffle(r[2], r[3], low);
        const pairs high01 = (pairs)__builtin_shuffle(r[0], r[1], high), high23 = (pairs)__builtin_shuffle(r[2], r[3], high);
        float* row = to + column * to_step;
        store(row, __builtin_shuffle(low01, low23, low_pair));
        store(row + to_step, __builtin_shuffle(low01, low23, high_pair));
        store(row + 2 * to_step, __builtin_shuffle(high01, high23, low_pair));
        store(row + 3 * to_step, __builtin_shuffle(high01, high23, high_pair));
    }
#else
    typedef float four __attribute__((vector_size(16)));
    typedef int32_t order __attribute__((vector_size(16)));
    for (int column = 0; column < kLanes; column += 4)
        for (int row = 0; row < kLanes; row += 4) {
            const float* at = from + row * from_step + column;
            const four a = load<four>(at), b = load<four>(at + from_step);
            const four c = load<four>(at + 2 * from_step), d = load<four>(at + 3 * from_step);
            const four low_ab = __builtin_shuffle(a, b, order{0, 4, 1, 5}), high_ab = __builtin_shuffle(a, b, order{2, 6, 3, 7});
            const four low_cd = __builtin_shuffle(c, d, order{0, 4, 1, 5}), high_cd = __builtin_shuffle(c, d, order{2, 6, 3, 7});
            float* out = to + column * to_step + row;
            store(out, __builtin_shuffle(low_ab, low_cd, order{0, 1, 4, 5}));
            store(out + to_step, __builtin_shuffle(low_ab, low_cd, order{2, 3, 6, 7}));
            store(out + 2 * to_step, __builtin_shuffle(high_ab, high_cd, order{0, 1, 4, 5}));
            store(out + 3 * to_step, __builtin_shuffle(high_ab, high_cd, order{2, 3, 6, 7}));
        }
#endif
}

// The one product of attention: c[j] = sum over s of b[j][s] * a[s], c[j] and a[s] being rows of lanes.
//
//   scores, many rows:  lanes are query rows,   j is a token,      s runs over the key's numbers
//   scores, few rows:   lanes are tokens,       j is a query row,  s runs over the key's numbers
//   values:             lanes are value numbers, j is a query row, s runs over tokens; c[j] starts at factor[j] * c[j]
//
// A lane of c[j] sees the same operations in the same order in all of them, whatever the size of the tile.
struct Operands {
    const float* a;
    int64_t a_step;   // from s to s + 1
    const float* b;
    int64_t b_row;    // from j to j + 1
    int64_t b_step;   // from s to s + 1
    int64_t steps;
    float* c;
    int64_t c_row;    // from j to j + 1
    const float* factor;  // null: c starts at zero
};

template <int Groups, int Rows>
static __attribute__((noinline)) void tile(const Operands& x, int64_t first) {
    constexpr int kCount = Groups * kRegisters;
    const float *a = x.a, *b[Rows];
    float* c = x.c + first * x.c_row;
    lanes sum[Rows][kCount];
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j) {
        b[j] = x.b + (first + j) * x.b_row;
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i)
            sum[j][i] = x.factor ? load<lanes>(c + j * x.c_row + i * kWidth) * all(x.factor[first + j]) : lanes{};
    }
    const int64_t a_step = x.a_step, b_step = x.b_step, end = x.steps * b_step;
    for (int64_t s = 0; s != end; s += b_step, a += a_step) {
        lanes vector[kCount];
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) vector[i] = load<lanes>(a + i * kWidth);
#pragma GCC unroll 16
        for (int j = 0; j < Rows; ++j) {
            const lanes number = all(b[j][s]);
#pragma GCC unroll 16
            for (int i = 0; i < kCount; ++i) sum[j][i] = fused(vector[i], number, sum[j][i]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) store(c + j * x.c_row + i * kWidth, sum[j][i]);
}

// Tiles as large as the target's registers hold: groups of lanes side by side, and rows of b for that many groups.
#if defined(TW_AVX512)
constexpr int kMostGroups = 4;
constexpr int kMostRows[kMostGroups + 1] = {0, 10, 8, 6, 4};
#elif defined(TW_AVX2) || !defined(__x86_64__)
constexpr int kMostGroups = 1;
constexpr int kMostRows[kMostGroups + 1] = {0, 4};
#else
constexpr int kMostGroups = 1;
constexpr int kMostRows[kMostGroups + 1] = {0, 2};
#endif

template <int Groups, int Rows>
TW_INLINE void rows_left(const Operands& x, int64_t first, int64_t count) {
    if constexpr (Rows > 0) {
        if (count == Rows) tile<Groups, Rows>(x, first);
        else rows_left<Groups, Rows - 1>(x, first, count);
    }
}

template <int Groups>
static void multiply_groups(const Operands& x, int64_t rows) {
    constexpr int kRows = kMostRows[Groups];
    int64_t first = 0;
    for (; first + kRows <= rows; first += kRows) tile<Groups, kRows>(x, first);
    rows_left<Groups, kRows - 1>(x, first, rows - first);
}

// The product for `groups` <= kMostGroups groups of lanes and any number of rows of b.
static void multiply(const Operands& x, int64_t groups, int64_t rows) {
    if (groups == 1) return multiply_groups<1>(x, rows);
#if defined(TW_AVX512)
    if (groups == 2) return multiply_groups<2>(x, rows);
    if (groups == 3) return multiply_groups<3>(x, rows);
    return multiply_groups<4>(x, rows);
#endif
}

}  // namespace TW_ISA
}  // namespace tw
