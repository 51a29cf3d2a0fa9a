// What is done to one row at a time. Compiled once per instruction set (TW_ISA), so nothing of the standard library's
// templates is used here: the linker would keep one copy, of whichever set.
#include <cmath>

#include "kernels.h"
#include "math.h"
#include "rows.h"

namespace tw {
namespace TW_ISA {

void normalise(const float* x, const float* weight, int64_t columns, float eps, float* y) {
    f32x16 squares = {};
    int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) squares += load<f32x16>(x + i) * load<f32x16>(x + i);
    float total = sum_lanes(squares);
    for (; i < columns; ++i) total += x[i] * x[i];
    const float factor = 1 / std::sqrt(total / float(columns) + eps);
    for (i = 0; i + kLanes <= columns; i += kLanes)
        store(y + i, load<f32x16>(weight + i) * (load<f32x16>(x + i) * splat(factor)));
    for (; i < columns; ++i) y[i] = weight[i] * (x[i] * factor);
}

constexpr int64_t kColumnSets = 64;  // set s: columns s, s + 64, ...

static bool is_among(int64_t column, const int32_t* columns, int64_t count) {
    bool yes = false;
    for (int64_t i = 0; i < count; ++i) yes |= columns[i] == column;
    return yes;
}

// The columns of the kOutliers largest magnitudes, largest first, ties to the lower column; rows shorter than that
// name column 0 with value 0. One pass finds the largest of every set, then only sets that have one are looked into.
static void find_outliers(const float* x, int64_t columns, int32_t* outlier, float* value) {
    f32x16 most[kColumnSets / kLanes] = {};
    int64_t i = 0;
    for (; i + kColumnSets <= columns; i += kColumnSets)
#pragma GCC unroll 4
        for (int j = 0; j < kColumnSets / kLanes; ++j) most[j] = maximum(magnitude(load<f32x16>(x + i + j * kLanes)), most[j]);
    float largest[kColumnSets];
    std::memcpy(largest, most, sizeof most);
    for (int64_t set = 0; i < columns; ++i, ++set) largest[set] = std::fabs(x[i]) > largest[set] ? std::fabs(x[i]) : largest[set];
    for (int64_t found = 0; found < kOutliers; ++found) {
        std::memcpy(most, largest, sizeof most);
        const float wanted = largest_lane(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
        outlier[found] = 0, value[found] = 0;
        if (!(wanted > 0)) continue;
        int64_t column = columns;
        for (int64_t set = 0; set < kColumnSets; ++set) {
            if (largest[set] != wanted) continue;
            int64_t at = set;
            while (std::fabs(x[at]) != wanted || is_among(at, outlier, found)) at += kColumnSets;
            column = at < column ? at : column;
        }
        outlier[found] = int32_t(column), value[found] = x[column];
        float rest = 0;
        for (int64_t at = column % kColumnSets; at < columns; at += kColumnSets)
            if (std::fabs(x[at]) > rest && !is_among(at, outlier, found + 1)) rest = std::fabs(x[at]);
        largest[column % kColumnSets] = rest;
    }
}

// Group `group` of a row in the forms `out` has; the q's of outliers are zero once they are known.
static void quantise_group(const float* x, int64_t columns, const Activations& out, int64_t row, int64_t group, bool known) {
    const int64_t first = group * kGroup, count = columns - first < kGroup ? columns - first : kGroup;
    float values[kGroup] = {};
    std::memcpy(values, x + first, count * sizeof(float));
    if (out.half) write_bfloat16(load<f32x16>(values), load<f32x16>(values + kLanes), out, row, group);
    for (int64_t i = row * kOutliers; known && i < (row + 1) * kOutliers; ++i)
        if (out.outlier[i] / kGroup == group && out.outlier_value[i] != 0) values[out.outlier[i] % kGroup] = 0;
    if (out.q) write_integers(load<f32x16>(values), load<f32x16>(values + kLanes), out, row, group);
}

// All groups first as if there were no outliers, then again those that have one.
void quantise(const float* x, int64_t columns, const Activations& out, int64_t row) {
    const int64_t whole = columns / kGroup;
    for (int64_t group = 0; group < whole; ++group) {
        const f32x16 low = load<f32x16>(x + group * kGroup), high = load<f32x16>(x + group * kGroup + kLanes);
        if (out.half) write_bfloat16(low, high, out, row, group);
        if (out.q) write_integers(low, high, out, row, group);
    }
    if (whole < out.groups) quantise_group(x, columns, out, row, whole, false);
    if (!out.outlier) return;
    int32_t* outlier = out.outlier + row * kOutliers;
    find_outliers(x, columns, outlier, out.outlier_value + row * kOutliers);
    for (int64_t i = 0; i < kOutliers; ++i) quantise_group(x, columns, out, row, outlier[i] / kGroup, true);
}

void rotate_half(float* x, int64_t width, const float* cos, const float* sin) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float low = x[i], high = x[i + half];
        x[i] = low * cos[i] - high * sin[i];
        x[i + half] = high * cos[i] + low * sin[i];
    }
}

void rotate_interleaved(float* x, int64_t width, const float* cos, const float* sin) {
    for (int64_t i = 0; i < width / 2; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cos[i] - odd * sin[i];
        x[2 * i + 1] = odd * cos[i] + even * sin[i];
    }
}

static float dot(const float* a, const float* b, int64_t width) {
    f32x16 even = {}, odd = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
        even += load<f32x16>(a + i) * load<f32x16>(b + i);
        odd += load<f32x16>(a + i + kLanes) * load<f32x16>(b + i + kLanes);
    }
    float total = sum_lanes(even + odd);
    for (; i < width; ++i) total += a[i] * b[i];
    return total;
}

void affinities(const float* x, int64_t columns, const float* gate, int64_t experts, float* logits) {
    for (int64_t e = 0; e < experts; ++e) logits[e] = dot(x, gate + e * columns, columns);
}

void unpack_row(const Matrix& matrix, int64_t row, float* y) {
    const uint8_t* block = matrix.blocks + row / kLanes * matrix.row_block_bytes();
    const int64_t lane = row % kLanes, block_bytes = matrix.row_block_bytes() / matrix.groups();
    for (int64_t column = 0; column < matrix.columns; ++column) {
        const uint8_t* at = block + column / kGroup * block_bytes;
        const int64_t k = column % kGroup;
        if (matrix.format == kBf16) {
            const uint32_t bits = uint32_t(load<uint16_t>(at + ((k / 2 * kLanes + lane) * 2 + k % 2) * 2)) << 16;
            std::memcpy(y + column, &bits, sizeof bits);
            continue;
        }
        const bool wide = matrix.format == kQ8;
        const int64_t vector = k / 4, byte = (wide ? vector : vector % 4) * 64 + lane * 4 + k % 4;
        const uint8_t* halves = at + (wide ? 512 : 256);
        const float scale = half_to_float(load<uint16_t>(halves + 2 * lane));
        const int q = wide ? int8_t(at[byte]) : (vector < 4 ? at[byte] & 15 : at[byte] >> 4) - (matrix.format == kQ4 ? 8 : 0);
        y[column] = scale * float(q);
        if (matrix.format == kQ4Min) y[column] += half_to_float(load<uint16_t>(halves + 32 + 2 * lane));
    }
}

uint32_t read_all(const uint8_t* from, int64_t bytes) {
    u32x16 seen[4] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 4; ++j) seen[j] ^= load<u32x16>(from + i + 64 * j);
    return ((seen[0] ^ seen[1]) ^ (seen[2] ^ seen[3]))[0];
}

}  // namespace TW_ISA
}  // namespace tw
