// Weighted sums of values straight from cache entries: for rows so few that decoded values would hardly be read twice.
// Included by attention.cpp alone, once per instruction set.
#pragma once

#include "attention_tile.h"
#include "cache_entry.h"

namespace tw {
namespace TW_ISA {

// A segment of a block's entries, and weights for rows of b as in Operands.
struct EntryOperands {
    const Segment& segment;
    const uint8_t* const* entry;
    int64_t tokens;
    const float* weights;  // [rows, kPieceStride]
    float* sum;            // [rows, sum_row]
    int64_t sum_row;
    const float* factor;   // [rows]
};

// Numbers i .. i + Groups * 16 - 1 of the segment for rows first .. first + Rows - 1: operation for operation what
// `tile` does with decoded values. With four groups, i is a multiple of 64.
template <int32_t F, int Groups, int Rows>
static __attribute__((noinline)) void tile_of_entries(const EntryOperands& x, int64_t i, int64_t first) {
    constexpr int kCount = Groups * kRegisters;
    float* c = x.sum + first * x.sum_row + i;
    lanes sum[Rows][kCount];
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j)
#pragma GCC unroll 16
        for (int k = 0; k < kCount; ++k) sum[j][k] = load<lanes>(c + j * x.sum_row + k * kWidth) * all(x.factor[first + j]);
    const int64_t begin = i / 64 * 64, offset = x.segment.offset;
    const int rest = Groups == 4 ? 0 : int(i % 64);
    const float* b = x.weights + first * kPieceStride;
    for (int64_t t = 0; t < x.tokens; ++t, ++b) {
        const uint8_t* segment = x.entry[t] + offset;
        const uint8_t* scales = scales_of<F>(segment, x.segment.width) + (begin + rest) / group_of(F) * 2;
        const uint8_t* numbers = at_number<F>(segment, begin);
        lanes vector[kCount];
#pragma GCC unroll 16
        for (int k = 0; k < kCount; ++k)
            vector[k] = load_lanes<F>(numbers, rest + k * kWidth, group_scale<F>(scales, k * kWidth));
#pragma GCC unroll 16
        for (int j = 0; j < Rows; ++j) {
            const lanes weight = all(b[j * kPieceStride]);
#pragma GCC unroll 16
            for (int k = 0; k < kCount; ++k) sum[j][k] = fused(vector[k], weight, sum[j][k]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < Rows; ++j)
#pragma GCC unroll 16
        for (int k = 0; k < kCount; ++k) store(c + j * x.sum_row + k * kWidth, sum[j][k]);
}

template <int32_t F, int Groups, int Rows>
static void rows_of_entries(const EntryOperands& x, int64_t i, int64_t first, int64_t rows) {
    for (; first + Rows <= rows; first += Rows) tile_of_entries<F, Groups, Rows>(x, i, first);
    if constexpr (Rows > 1) rows_of_entries<F, Groups, Rows - 1>(x, i, first, rows);
}

// For widths of whole groups of lanes.
template <int32_t F>
static void add_entries(const EntryOperands& x, int64_t rows) {
    int64_t i = 0;
    if constexpr (kMostGroups == 4)
        for (; i + 64 <= x.segment.width; i += 64) rows_of_entries<F, 4, kSums / 4>(x, i, 0, rows);
    for (; i < x.segment.width; i += kLanes) rows_of_entries<F, 1, kSums < 4 ? kSums : 4>(x, i, 0, rows);
}

static void add_entries(int32_t format, const EntryOperands& x, int64_t rows) {
    switch (format) {
        case kCacheFloat32: return add_entries<kCacheFloat32>(x, rows);
        case kCacheBfloat16: return add_entries<kCacheBfloat16>(x, rows);
        case kCacheQ8: return add_entries<kCacheQ8>(x, rows);
        default: return add_entries<kCacheQ6>(x, rows);
    }
}

}  // namespace TW_ISA
}  // namespace tw
