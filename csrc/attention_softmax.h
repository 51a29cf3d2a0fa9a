// The online softmax of a block of tokens, with rows or with tokens in lanes: the same bits either way.
// Included by attention.cpp alone, once per instruction set.
#pragma once

#include "attention_tile.h"

namespace tw {
namespace TW_ISA {

// Sixteen rows' state. Scores are exponents of two.
struct Softmax {
    float largest[kLanes];  // score so far
    float total[kLanes];    // sum of weights, in units of 2^largest
    float factor[kLanes];   // what earlier sums are multiplied with when `largest` has grown
    int32_t seen[kLanes];   // how many tokens of the block a row sees
    int64_t visible[kLanes];  // how many of the context
};

// New largest scores and the factors they bring; `most` are the block's largest.
TW_INLINE void raise(lanes most, Softmax& rows, int first) {
    const lanes before = load<lanes>(rows.largest + first), now = larger(before, most);
    store(rows.factor + first, power_of_two(before - now));
    store(rows.largest + first, now);
}

TW_INLINE void add_up(lanes sum, Softmax& rows, int first) {
    store(rows.total + first, fused(load<lanes>(rows.total + first), load<lanes>(rows.factor + first), sum));
}

// Scores [tokens, step], sixteen rows in lanes, become weights. Up to the next multiple of sixteen, tokens that a row
// does not see weigh nothing.
static void weigh_lanes(Softmax& rows, float* scores, int64_t step, int64_t count, bool all_seen) {
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int first = 0; first < kLanes; first += kWidth, scores += kWidth) {
        const int_lanes seen = load<int_lanes>(rows.seen + first);
        if (!all_seen)
            for (int32_t t = 0; t < count; ++t)
                store(scores + t * step, seen > t ? load<lanes>(scores + t * step) : all(-INFINITY));
        for (int64_t t = count; t < padded; ++t) store(scores + t * step, all(-INFINITY));
        lanes most[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
        for (int64_t t = 0; t < padded; t += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) most[i] = larger(most[i], load<lanes>(scores + (t + i) * step));
        raise(larger(larger(most[0], most[1]), larger(most[2], most[3])), rows, first);
        const lanes largest = load<lanes>(rows.largest + first);
        lanes sums[kLanes] = {};
        for (int64_t t = 0; t < padded; t += kLanes)
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) {
                const lanes weight = power_of_two(load<lanes>(scores + (t + i) * step) - largest);
                store(scores + (t + i) * step, weight);
                sums[i] += weight;
            }
        add_up(sum_of_sixteen(sums), rows, first);
    }
}

// The same for scores [rows, step], up to sixteen rows with tokens in lanes.
static void weigh_rows(Softmax& rows, int64_t num_rows, float* scores, int64_t step, int64_t count) {
    alignas(64) float most[kLanes], sums[kLanes] = {};
    for (float& each : most) each = -INFINITY;
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t r = 0; r < num_rows; ++r) {
        float* row = scores + r * step;
        for (int64_t t = rows.seen[r]; t < padded; ++t) row[t] = -INFINITY;
        alignas(64) float largest[kLanes];
        std::memcpy(largest, row, sizeof largest);
        for (int64_t t = kLanes; t < padded; t += kLanes)
            for (int i = 0; i < kLanes; i += kWidth)
                store(largest + i, larger(load<lanes>(largest + i), load<lanes>(row + t + i)));
        most[r] = largest_of(largest);
    }
    for (int r = 0; r < kLanes; r += kWidth) raise(load<lanes>(most + r), rows, r);
    for (int64_t r = 0; r < num_rows; ++r) {
        float* row = scores + r * step;
        alignas(64) float sum[kLanes] = {};
        for (int64_t t = 0; t < padded; t += kLanes)
            for (int i = 0; i < kLanes; i += kWidth) {
                const lanes weight = power_of_two(load<lanes>(row + t + i) - all(rows.largest[r]));
                store(row + t + i, weight);
                store(sum + i, load<lanes>(sum + i) + weight);
            }
        sums[r] = sum_of_sixteen(sum);
    }
    for (int r = 0; r < kLanes; r += kWidth) add_up(load<lanes>(sums + r), rows, r);
}

}  // namespace TW_ISA
}  // namespace tw
