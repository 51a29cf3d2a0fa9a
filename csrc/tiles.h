// Tile instructions (AMX) for bfloat16: products of 32 x 32 numbers, and matrices laid out as they want them. Included by
// training_*_tiles.cpp.
#pragma once

#include <immintrin.h>

#include "squares.h"
#include "storage.h"
#include "training.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kTile = 16;           // rows of a tile
constexpr int64_t kBlock = 2 * kTile;   // queries or keys that are taken together; numbers in a row of a tile

typedef u32x16 Square[kLanes];          // sixteen rows of sixteen floats, or of pairs of bfloat16

static int64_t whole(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

struct alignas(64) Shapes {  // of the tile registers: 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The compiler takes neither all of the shapes nor any rows for read by the intrinsics, and may leave out what was stored
// to them before: hence a constant, and the barrier in `product`.
static inline void begin_tiles() {
    static constexpr Shapes shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
}

// c [32, 32] (+)= a [32, depth] b [depth, 32], b as pairs of its rows: [depth / 2, 32, 2]. Distances of rows in bytes.
static inline __attribute__((always_inline)) void product(int64_t depth, const uint16_t* a, int64_t a_row, const uint16_t* b,
                                                          int64_t b_row, float* c, int64_t c_row, bool add) {
    asm volatile("" ::: "memory");
    char *top = (char*)c, *bottom = top + kTile * c_row;
    if (add) {
        _tile_loadd(0, top, c_row);
        _tile_loadd(1, top + 64, c_row);
        _tile_loadd(2, bottom, c_row);
        _tile_loadd(3, bottom + 64, c_row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i += kBlock) {
        const char *left = (const char*)(a + i), *right = (const char*)b + i / 2 * b_row;
        _tile_loadd(4, left, a_row);
        _tile_loadd(6, right, b_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + 64, b_row);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + kTile * a_row, a_row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, top, c_row);
    _tile_stored(1, top + 64, c_row);
    _tile_stored(2, bottom, c_row);
    _tile_stored(3, bottom + 64, c_row);
}

// Rows of a head, [rows, whole(width)]; numbers past `width` and rows past `count` are zero.
static void unpack(const Heads& x, int64_t token, int64_t head, int64_t count, int64_t rows, int64_t width, uint16_t* to) {
    const int64_t stride = whole(width);
    for (int64_t i = 0; i < count; ++i, to += stride) {
        std::memcpy(to, (const uint16_t*)x.data + (token + i) * x.row + head * x.head, width * sizeof *to);
        std::memset(to + width, 0, (stride - width) * sizeof *to);
    }
    std::memset(to, 0, (rows - count) * stride * sizeof *to);
}

static void pack(const float* from, const Heads& x, int64_t token, int64_t head, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; ++i, from += whole(width)) {
        bfloat16* to = (bfloat16*)x.data + (token + i) * x.row + head * x.head;
        for_lanes(width, [&](int64_t at, int64_t some) { write(to + at, load<f32x16>(from + at), some); });
    }
}

// 32 numbers of each of two rows, as pairs.
static inline __attribute__((always_inline)) void zip(u32x16 first, u32x16 second, u32x16& low, u32x16& high) {
    const u16x32 order = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                          8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    low = (u32x16)__builtin_shuffle((u16x32)first, (u16x32)second, order);
    high = (u32x16)__builtin_shuffle((u16x32)first, (u16x32)second, order + 16);
}

// x [32, width] as pairs of its rows, [16, width, 2].
static void pairs_of_rows(const uint16_t* x, int64_t width, uint16_t* y) {
    for (int64_t i = 0; i < kBlock; i += 2, x += 2 * width, y += 2 * width)
        for (int64_t j = 0; j < width; j += kBlock) {
            u32x16 low, high;
            zip(load<u32x16>(x + j), load<u32x16>(x + width + j), low, high);
            store(y + 2 * j, low);
            store(y + 2 * j + kBlock, high);
        }
}

// x [rows, columns] of floats or pairs, in sixteens, becomes y [columns, rows].
static void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* y) {
    for (int64_t i = 0; i < rows; i += kLanes)
        for (int64_t j = 0; j < columns; j += kLanes) {
            Square square;
#pragma GCC unroll 16
            for (int k = 0; k < kLanes; ++k) square[k] = load<u32x16>(x + (i + k) * columns + j);
            turn(square);
#pragma GCC unroll 16
            for (int k = 0; k < kLanes; ++k) store(y + (j + k) * rows + i, square[k]);
        }
}

}  // namespace TW_ISA
}  // namespace tw
