// Squares of numbers turned in registers: rows become columns. Included once per instruction set.
#pragma once

#include "math.h"

namespace tw {
namespace TW_ISA {

// One step of a transpose of 16 rows: of squares of 2 * Size numbers, the upper right and the lower left quarter change places.
template <int Size, typename V>
static inline __attribute__((always_inline)) void swap_quarters(V* rows) {
    constexpr int other = kLanes, back = kLanes - Size;
    const V lane = V{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const V low = (lane & Size) != 0 ? lane + back : lane, high = (lane & Size) != 0 ? lane + other : lane + Size;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        if (i & Size) continue;
        const V upper = rows[i], lower = rows[i + Size];
        rows[i] = __builtin_shuffle(upper, lower, low);
        rows[i + Size] = __builtin_shuffle(upper, lower, high);
    }
}

// Sixteen rows of sixteen numbers.
template <typename V>
static inline __attribute__((always_inline)) void turn(V* rows) {
    swap_quarters<8>(rows), swap_quarters<4>(rows), swap_quarters<2>(rows), swap_quarters<1>(rows);
}

}  // namespace TW_ISA
}  // namespace tw
