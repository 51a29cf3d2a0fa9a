// The table of kernels one instruction set provides. linear.cpp, rows.cpp and attention.cpp are compiled once per set
// (CMakeLists.txt); cpu.cpp picks a table.
#pragma once

#include <cstdint>

#include "attention.h"

namespace tw {

// Weights in blocks of 16 rows x 32 columns, blocks of a row-block side by side (see tapwater/ops/quant.py).
enum Format : int32_t { kQ4 = 0, kQ4Min = 1, kQ8 = 2, kBf16 = 3 };

constexpr int64_t kRowBlock = 16;

// A stack of `count` packed matrices of one shape.
struct Matrix {
    const uint8_t* blocks;
    int64_t format;  // a Format
    int64_t rows, columns, count;

    int64_t row_blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
    int64_t groups() const { return (columns + 31) / 32; }
    int64_t row_block_bytes() const {
        constexpr int64_t bytes[] = {256 + 32, 256 + 64, 512 + 32, 1024};
        return groups() * bytes[format];
    }
    const uint8_t* at(int64_t index) const { return blocks + index * row_blocks() * row_block_bytes(); }
};

// The input of matrices: 8-bit rows for quantised weights, bfloat16 rows for bf16 weights, or both.
//
// x = scale * q per row and group of 32, with the group's sum of q, and of scale * q, beside it. Rows lie in tiles of 1 or 8,
// and within a tile by group, so that a kernel walks all arrays front to back and reaches every row of a group at a fixed
// offset: q and half are [tiles, groups, tile, 32], scale, sum and total are [tiles, groups, tile].
//
// A row's kOutliers largest numbers can be kept in float, `outlier` saying where: in the q's they are zero. A few channels
// of a residual stream are often hundreds of times larger than the others and would take the steps of their group away
// from its 31 others.
constexpr int64_t kOutliers = 4;
constexpr int64_t kMostTileRows = 8;

struct Activations {
    int8_t* q;
    float* scale;
    int32_t* sum;
    float* total;
    uint16_t* half;
    int32_t* outlier;  // [rows, kOutliers] columns, or null
    float* outlier_value;
    int64_t rows, groups, tile;

    static int64_t tile_for(int64_t rows) { return rows == 1 ? 1 : kMostTileRows; }
    // Where group `group` of row `row` is, in units of groups.
    int64_t at(int64_t row, int64_t group) const { return (row / tile * groups + group) * tile + row % tile; }
};

// Where results go: row m to y + (row ? row[m] : m) * stride, times weight[m] if there are weights, added if `add`.
struct Output {
    float* y;
    int64_t stride;
    const int32_t* row;
    const float* weight;
    bool add;
};

struct Kernels {
    const char* name;
    const AttentionKernels* attention;

    // rows.cpp
    void (*normalise)(const float* x, const float* weight, int64_t columns, float eps, float* y);
    // Row `row` of `out` from x, in the forms `out` has.
    void (*quantise)(const float* x, int64_t columns, const Activations& out, int64_t row);
    // RoPE in place on pairs (x_i, x_{i + width/2}), or on neighbours.
    void (*rotate_half)(float* x, int64_t width, const float* cos, const float* sin);
    void (*rotate_interleaved)(float* x, int64_t width, const float* cos, const float* sin);
    // x times each of the gate's rows.
    void (*affinities)(const float* x, int64_t columns, const float* gate, int64_t experts, float* logits);
    // Row `row` of a matrix in float.
    void (*unpack_row)(const Matrix& matrix, int64_t row, float* y);

    // Reads memory and does nothing with it: what the bandwidth of a machine is measured with.
    uint32_t (*read_all)(const uint8_t* from, int64_t bytes);

    // linear.cpp
    // Row-blocks begin..end of y = x W^T for one matrix of a stack.
    void (*linear)(const Matrix& matrix, int64_t index, const Activations& x, int64_t begin, int64_t end, const Output& out);
    // Groups of 32 begin..end of silu(x G^T) * (x U^T), written as activations for the matrix that comes next.
    void (*gate_up)(const Matrix& gate, const Matrix& up, int64_t index, const Activations& x, int64_t begin, int64_t end,
                    const Activations& out);
};

int32_t force_kernels(const char* name);
const Kernels& kernels();

}  // namespace tw
