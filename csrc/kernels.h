// The table of kernels one instruction set provides. kernels.cpp is compiled once per set; cpu.cpp picks a table.
#pragma once

#include <cstdint>

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

// Where the keys and values of one key-value head lie in a cache entry, and how wide they are.
struct HeadLayout {
    int64_t entry;                       // numbers per cache entry
    int64_t key, key_width;              // offset and width of this head's key
    int64_t value, value_width;          // offset and width of its value
};

struct Kernels {
    const char* name;
    // Attention of `heads` queries of one token, which share a key-value head, over the first `visible` cached tokens:
    // q is [heads, key_width], out is [heads, value_width], state has room for 2 * heads floats.
    void (*attend)(const float* q, int64_t heads, const float* pages, int64_t page_size, const int64_t* page_table,
                   int64_t visible, const HeadLayout& layout, float scale, float* out, float* state);
    void (*quantise)(const float* x, int64_t rows, int64_t columns, int64_t groups, int8_t* q, float* scale, int32_t* sum);
    // Rows-blocks begin..end of y = x W^T; y has `stride` floats a row and `outputs` columns that exist.
    void (*linear)(Format format, const uint8_t* weights, const Activations& x, int64_t begin, int64_t end, float* y,
                   int64_t stride, int64_t outputs);
};

int32_t force_kernels(const char* name);
const Kernels& kernels();

}  // namespace tw
