// Attention over a paged cache: what one instruction set provides, and the calls that spread it over threads.
//
// A request's cached tokens are cut at absolute multiples of kSplit positions. What a query row - one query head of one
// new token - gets from each split (its largest score, the sum of weights, the weighted sum of values) is merged in order
// of position. That order is the definition of a row's result, so it is the same bits however many rows are computed
// together, where a prompt was cut into chunks, and whether one thread or several share a long context.
#pragma once

#include <cstdint>

namespace tw {

class Pool;
class Scratch;

constexpr int64_t kSplit = 512;
constexpr int64_t kMaxRows = 128;  // query rows computed together
constexpr int64_t kMostHeads = 8;  // key-value heads computed together

// How a segment - a run of numbers stored together - lies in a cache entry: see tapwater/ops/cache_format.py.
enum CacheFormat : int32_t { kCacheFloat32 = 0, kCacheBfloat16 = 1, kCacheQ8 = 2, kCacheQ6 = 3 };

inline int64_t segment_bytes(int32_t format, int64_t width) {
    switch (format) {
        case kCacheFloat32: return 4 * width;
        case kCacheBfloat16: return 2 * width;
        case kCacheQ8: return width + (width + 31) / 32 * 2;
        default: return (width + 31) / 32 * 24 + (width + 63) / 64 * 2;
    }
}

struct CacheSpec {
    int64_t entry_bytes;
    int64_t page_size;
};

struct Segment {
    int64_t offset;  // bytes from the start of the entry
    int64_t width;   // numbers
    int32_t format;  // a CacheFormat
};

// Where one key-value head lies in an entry: its key is the concatenation of one or two segments.
struct HeadSpec {
    Segment key[2];
    int64_t num_keys;
    Segment value;

    int64_t key_width() const { return key[0].width + (num_keys > 1 ? key[1].width : 0); }
};

struct Requests {
    int64_t count;
    const int64_t* query_lengths;    // the last query_lengths[b] of context_lengths[b] cached tokens ask
    const int64_t* context_lengths;
    const int64_t* page_table;       // [requests, pages_per_request]
    int64_t pages_per_request;
};

// Rows first .. first + count - 1, where row r is head r % heads of token r / heads; q is of token 0 and head 0.
struct QueryRows {
    const float* q;
    int64_t token_stride;  // numbers from one token to the next; a token's heads lie side by side
    int64_t heads;         // query heads that share the key-value head
    int64_t first, count;  // count <= kMaxRows
    int64_t visible;       // positions token 0 sees; every later token sees one more
    float scale;
};

// The entries of one request; without a page table they lie side by side, that of position `first` at `pages`.
struct Entries {
    const uint8_t* pages;
    CacheSpec cache;
    const int64_t* page_table;
    int64_t first;
};

struct AttentionKernels {
    // One segment of an entry, from floats and back. `load` writes zeros up to the next multiple of 16 numbers.
    void (*store)(int32_t format, const float* x, int64_t width, uint8_t* to);
    void (*load)(int32_t format, const uint8_t* from, int64_t width, float* x);

    int64_t (*split_scratch_floats)(const HeadSpec& head);
    // What rows get from positions begin .. end - 1 of one split, into `state`: [num_heads, rows] of state_floats(value
    // width) numbers. The heads are neighbours of one shape, num_heads <= kMostHeads and num_heads * rows <= kMaxRows, and
    // rows.q is of the first; `scratch` is split_scratch_floats(head) numbers on a cache line.
    void (*attend_split)(const QueryRows& rows, const Entries& entries, const HeadSpec* heads, int64_t num_heads,
                         int64_t begin, int64_t end, float* scratch, float* state);
    // Adds what rows got from a later split to what they got before it.
    void (*merge)(int64_t rows, int64_t value_width, const float* later, float* state);
    // The attended values; `out` is of token 0 and head 0, and laid out as q is, `token_stride` numbers to the next token.
    void (*finish)(const QueryRows& rows, int64_t value_width, const float* state, float* out, int64_t token_stride);
};

inline int64_t padded_lanes(int64_t width) { return (width + 15) / 16 * 16; }
inline int64_t state_floats(int64_t value_width) { return 16 + padded_lanes(value_width); }

// Writes tokens' entries to their slots (page * page_size + offset): x is [tokens, sum of widths].
void store_entries(Pool& pool, const AttentionKernels& kernels, const float* x, int64_t tokens, const Segment* segments,
                   int64_t num_segments, const CacheSpec& cache, const int64_t* slots, uint8_t* pages);

// Causal attention of all requests' new tokens: q is [T, heads, key width], out is [T, heads, value width]; query heads
// share key-value heads in order. All key-value heads are of the same widths.
void paged_attention(Pool& pool, Scratch& scratch, const AttentionKernels& kernels, const float* q, int64_t heads,
                     const uint8_t* pages, const CacheSpec& cache, const HeadSpec* kv_heads, int64_t num_kv_heads,
                     const Requests& requests, float scale, float* out);

}  // namespace tw
