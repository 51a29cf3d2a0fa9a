// Blocks of cache entries: where they lie, and a piece of each as rows or as columns of floats.
// Included by attention.cpp alone, once per instruction set.
#pragma once

#include "attention_tile.h"
#include "cache_entry.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kBlock = 64;  // tokens; a multiple of sixteen that divides kSplit
constexpr int64_t kBlockPiece = kBlock * kPieceStride;

struct Block {
    int64_t count, next_count;
    const uint8_t *entry[kBlock], *next[kBlock];  // of this block and the one after it
};

// Where entries position .. position + count - 1 lie.
static void find_entries(const Entries& entries, int64_t position, int64_t count, const uint8_t** found) {
    const CacheSpec& cache = entries.cache;
    for (int64_t token = 0; token < count;) {
        int64_t slot = position + token - entries.first, run = count - token;  // entries that lie side by side
        if (entries.page_table) {
            const int64_t at = position + token, offset = at % cache.page_size;
            slot = entries.page_table[at / cache.page_size] * cache.page_size + offset;
            if (run > cache.page_size - offset) run = cache.page_size - offset;
        }
        const uint8_t* entry = entries.pages + slot * cache.entry_bytes;
        for (; run; --run, ++token, entry += cache.entry_bytes) found[token] = entry;
    }
}

// One piece of a segment: numbers begin .. end - 1.
struct Piece {
    const Segment& segment;
    int64_t begin, end;
    int64_t index, before;  // pieces and numbers of the key that come before it
};

// A piece of a block's entries, as rows of floats.
template <int32_t F>
static void decode_rows(const Piece& piece, const Block& block, float* to, Ahead& ahead, int64_t entries) {
    for (int64_t token = 0; token < block.count; ++token, to += kPieceStride) {
        if (token % 8 == 0) ahead.fetch(entries);
        load_part<F>(block.entry[token] + piece.segment.offset, piece.segment.width, piece.begin, piece.end, to);
    }
}

static void decode_rows(int32_t format, const Piece& piece, const Block& block, float* to, Ahead& ahead, int64_t entries) {
    switch (format) {
        case kCacheFloat32: return decode_rows<kCacheFloat32>(piece, block, to, ahead, entries);
        case kCacheBfloat16: return decode_rows<kCacheBfloat16>(piece, block, to, ahead, entries);
        case kCacheQ8: return decode_rows<kCacheQ8>(piece, block, to, ahead, entries);
        default: return decode_rows<kCacheQ6>(piece, block, to, ahead, entries);
    }
}

#if defined(TW_AVX512)
static bool side_by_side(const uint8_t* const* entry, int64_t step) {
    bool yes = true;
    for (int64_t i = 1; i < kLanes; ++i) yes &= entry[i] - entry[0] == i * step;
    return yes;
}
#endif

// A piece of a block's entries, as columns: [kPiece, kBlock]. `rows` is room for sixteen rows.
template <int32_t F>
static void decode_columns(const Piece& piece, const Block& block, int64_t entry_bytes, float* rows, float* columns,
                           Ahead& ahead, int64_t entries) {
    const int64_t width = piece.end - piece.begin;
    for (int64_t first = 0; first < block.count; first += kLanes) {
        ahead.fetch(entries);
        float* to = columns + first;
        const uint8_t* const* entry = block.entry + first;
#if defined(TW_AVX512)
        if (block.count - first >= kLanes && width % whole_numbers(F) == 0 && side_by_side(entry, entry_bytes)) {
            load_transposed<F>(*entry + piece.segment.offset, entry_bytes, piece.segment.width, piece.begin,
                               piece.end, to, kBlock);
            continue;
        }
#endif
        for (int64_t i = 0; i < kLanes; ++i) {
            float* row = rows + i * kPieceStride;
            if (first + i < block.count)
                load_part<F>(entry[i] + piece.segment.offset, piece.segment.width, piece.begin, piece.end, row);
            else  // the scores of tokens that are not there are unused, but what lies here may be denormal, and slow
                std::memset(row, 0, padded_lanes(width) * sizeof(float));
        }
        for (int64_t i = 0; i < width; i += kLanes) transpose(rows + i, kPieceStride, to + i * kBlock, kBlock);
    }
}

static void decode_columns(const Piece& piece, const Block& block, int64_t entry_bytes, float* rows, float* columns,
                           Ahead& ahead, int64_t entries) {
    switch (piece.segment.format) {
        case kCacheFloat32: return decode_columns<kCacheFloat32>(piece, block, entry_bytes, rows, columns, ahead, entries);
        case kCacheBfloat16: return decode_columns<kCacheBfloat16>(piece, block, entry_bytes, rows, columns, ahead, entries);
        case kCacheQ8: return decode_columns<kCacheQ8>(piece, block, entry_bytes, rows, columns, ahead, entries);
        default: return decode_columns<kCacheQ6>(piece, block, entry_bytes, rows, columns, ahead, entries);
    }
}

// Calls f(piece) for every piece of `count` segments.
template <typename F>
TW_INLINE void for_pieces(const Segment* segments, int64_t count, F&& f) {
    int64_t index = 0, before = 0;
    for (int64_t i = 0; i < count; before += segments[i++].width)
        for (int64_t begin = 0; begin < segments[i].width; begin += kPiece) {
            const int64_t end = begin + kPiece < segments[i].width ? begin + kPiece : segments[i].width;
            f(Piece{segments[i], begin, end, index++, before + begin});
        }
}

}  // namespace TW_ISA
}  // namespace tw
