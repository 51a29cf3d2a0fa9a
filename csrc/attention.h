// Attention over a paged cache: what one instruction set provides.
#pragma once

#include <cstdint>

namespace tw {

// Where the keys and values of one key-value head lie in a cache entry, and how wide they are.
struct HeadLayout {
    int64_t entry;                       // numbers per cache entry
    int64_t key, key_width;              // offset and width of this head's key
    int64_t value, value_width;          // offset and width of its value
};

struct AttentionKernels {
    // Attention of `heads` queries of one token, which share a key-value head, over the first `visible` cached tokens:
    // q is [heads, key_width], out is [heads, value_width], state has room for 2 * heads floats.
    void (*attend)(const float* q, int64_t heads, const float* pages, int64_t page_size, const int64_t* page_table,
                   int64_t visible, const HeadLayout& layout, float scale, float* out, float* state);
};

}  // namespace tw
