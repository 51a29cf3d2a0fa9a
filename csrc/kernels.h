// The table of kernels one instruction set provides. The files in per-set lists (CMakeLists.txt) are compiled once per set; cpu.cpp picks a table.
#pragma once

#include <cstdint>

#include "attention.h"

namespace tw {

// Weights in blocks of 16 rows x 32 columns, blocks of a row-block side by side (see tapwater/ops/quant.py).
enum Format : int32_t { kQ4 = 0, kQ4Min = 1, kQ8 = 2, kBf16 = 3 };

// Activations quantised per row and group of 32: x = scale * q, with the group's sum of q beside it.
//
// Rows lie in tiles of eight, and within a tile by group, so that a kernel walks all three arrays front to back and
// reaches every row of a group at a fixed offset: q is [tiles, groups, 8, 32], scale and sum are [tiles, groups, 8].
constexpr int kTileRows = 8;

struct Activations {
    const int8_t* q;
    const float* scale;
    const int32_t* sum;
    int64_t rows, groups;
};

struct Kernels {
    const char* name;
    const AttentionKernels* attention;
    void (*quantise)(const float* x, int64_t rows, int64_t columns, int64_t groups, int8_t* q, float* scale, int32_t* sum);
    // Rows-blocks begin..end of y = x W^T; y has `stride` floats a row and `outputs` columns that exist.
    void (*linear)(Format format, const uint8_t* weights, const Activations& x, int64_t begin, int64_t end, float* y,
                   int64_t stride, int64_t outputs);
};

int32_t force_kernels(const char* name);
const Kernels& kernels();

}  // namespace tw
