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

#if defined(TW_AVX512)
// Four columns of four bytes of sixteen rows `step` bytes apart: register i gets column i.
TW_INLINE void transpose_columns(const void* from, int64_t step, lanes columns[4]) {
    typedef int32_t order __attribute__((vector_size(64)));
    typedef double pairs __attribute__((vector_size(64)));
    typedef int64_t pair_order __attribute__((vector_size(64)));
    // 4 x 4 blocks are gathered into quarters of registers by loads, then transposed within them
    __m512 r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const char* at = (const char*)from + i * step;
        r[i] = _mm512_castps128_ps512(_mm_loadu_ps((const float*)at));
        r[i] = _mm512_mask_broadcast_f32x4(r[i], 0x00f0, _mm_loadu_ps((const float*)(at + 4 * step)));
        r[i] = _mm512_mask_broadcast_f32x4(r[i], 0x0f00, _mm_loadu_ps((const float*)(at + 8 * step)));
        r[i] = _mm512_mask_broadcast_f32x4(r[i], 0xf000, _mm_loadu_ps((const float*)(at + 12 * step)));
    }
    const order low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}, high = low + 2;
    const pair_order low_pair = {0, 8, 2, 10, 4, 12, 6, 14}, high_pair = low_pair + 1;
    const pairs low01 = (pairs)__builtin_shuffle(r[0], r[1], low), low23 = (pairs)__builtin_shuffle(r[2], r[3], low);
    const pairs high01 = (pairs)__builtin_shuffle(r[0], r[1], high), high23 = (pairs)__builtin_shuffle(r[2], r[3], high);
    columns[0] = (lanes)__builtin_shuffle(low01, low23, low_pair);
    columns[1] = (lanes)__builtin_shuffle(low01, low23, high_pair);
    columns[2] = (lanes)__builtin_shuffle(high01, high23, low_pair);
    columns[3] = (lanes)__builtin_shuffle(high01, high23, high_pair);
}
#endif

// to[j * to_step + i] = from[i * from_step + j] for i, j in 0..15.
TW_INLINE void transpose(const float* from, int64_t from_step, float* to, int64_t to_step) {
#if defined(TW_AVX512)
#pragma GCC unroll 4
    for (int column = 0; column < kLanes; column += 4) {
        lanes columns[4];
        transpose_columns(from + column, from_step * int64_t(sizeof(float)), columns);
        for (int i = 0; i < 4; ++i) store(to + (column + i) * to_step, columns[i]);
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

// Calls memory that is needed soon into the cache, a few entries at a time, so that it comes in while there is work to do.
struct Ahead {
    const uint8_t* const* entry;
    int64_t count;
    int64_t offset[3] = {}, bytes[3] = {};
    int64_t segments = 0, next = 0;

    void add(int64_t from, int64_t size) { offset[segments] = from, bytes[segments++] = size; }

    void fetch(int64_t entries) {
        for (const int64_t end = next + entries < count ? next + entries : count; next < end; ++next)
            for (int64_t i = 0; i < segments; ++i)
                for (int64_t at = 0; at < bytes[i]; at += 64) __builtin_prefetch(entry[next] + offset[i] + at, 0, 3);
    }
};

// The one product of attention: c[j] += sum over s of b[j][s] * a[s], c[j] and a[s] being rows of lanes.
//
//   scores of many rows: lanes are query rows,    j is a token,     s runs over the key's numbers
//   scores of few rows:  lanes are tokens,        j is a query row, s runs over the key's numbers
//   values:              lanes are value numbers, j is a query row, s runs over tokens
//
// A lane of c[j] sees the same operations in the same order in all of them, whatever the size of the tile.
//
// The distance from b[j] to b[j + 1] is a constant: with one pointer for all rows of b a tile reaches 97% of the peak,
// with a pointer and an index for each it is half as fast.
constexpr int64_t kPiece = 128;  // numbers of a key or value decoded at a time; a multiple of 64
constexpr int64_t kPieceStride = kPiece + kLanes;  // an odd number of cache lines, so that rows do not compete for them

struct Operands {
    const float* a;
    int64_t a_step;       // from s to s + 1
    const float* b;
    int64_t b_step;       // from s to s + 1
    int64_t steps;
    float* c;
    int64_t c_row;        // from j to j + 1
    const float* factor;  // c[j] is multiplied with factor[j * factor_step] first; null: c starts at zero
    int64_t factor_step;
};

template <int Groups, int Rows, int64_t Stride>
static __attribute__((noinline)) void tile(const Operands& x, int64_t first) {
    constexpr int kCount = Groups * kRegisters;
    const float *a = x.a, *b = x.b + first * Stride;
    float* c = x.c + first * x.c_row;
    lanes sum[Rows][kCount];
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i)
            sum[j][i] = x.factor ? load<lanes>(c + j * x.c_row + i * kWidth) * all(x.factor[(first + j) * x.factor_step]) : lanes{};
    const int64_t a_step = x.a_step, b_step = x.b_step;
    for (int64_t s = x.steps; s; --s, a += a_step, b += b_step) {
        lanes vector[kCount];
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) vector[i] = load<lanes>(a + i * kWidth);
#pragma GCC unroll 16
        for (int j = 0; j < Rows; ++j) {
            const lanes number = all(b[j * Stride]);
#pragma GCC unroll 16
            for (int i = 0; i < kCount; ++i) sum[j][i] = fused(vector[i], number, sum[j][i]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) store(c + j * x.c_row + i * kWidth, sum[j][i]);
}

// Tiles of 1, 2 or 4 groups of lanes side by side, with as many rows of b as registers hold sums for.
#if defined(TW_AVX512)
constexpr int kMostGroups = 4, kSums = 16;
#elif defined(TW_AVX2) || !defined(__x86_64__)
constexpr int kMostGroups = 1, kSums = 4;
#else
constexpr int kMostGroups = 1, kSums = 2;
#endif

template <int Groups, int Rows, int64_t Stride>
TW_INLINE void rows_left(const Operands& x, int64_t first, int64_t count) {
    if constexpr (Rows > 0) {
        if (count == Rows) tile<Groups, Rows, Stride>(x, first);
        else rows_left<Groups, Rows - 1, Stride>(x, first, count);
    }
}

template <int Groups, int64_t Stride>
static void multiply_groups(Operands& x, int64_t& groups, int64_t rows, Ahead& ahead, int64_t entries) {
    constexpr int kRows = kSums / Groups;
    for (; groups >= Groups; groups -= Groups, x.a += Groups * kLanes, x.c += Groups * kLanes) {
        int64_t first = 0;
        for (; first + kRows <= rows; first += kRows) {
            ahead.fetch(entries);
            tile<Groups, kRows, Stride>(x, first);
        }
        rows_left<Groups, kRows - 1, Stride>(x, first, rows - first);
    }
}

// The product for any number of groups of lanes and rows of b; with every tile, `entries` are called for ahead.
template <int64_t Stride>
static void multiply(Operands x, int64_t groups, int64_t rows, Ahead& ahead, int64_t entries) {
    if constexpr (kMostGroups == 4) {
        multiply_groups<4, Stride>(x, groups, rows, ahead, entries);
        multiply_groups<2, Stride>(x, groups, rows, ahead, entries);
    }
    multiply_groups<1, Stride>(x, groups, rows, ahead, entries);
}

}  // namespace TW_ISA
}  // namespace tw
