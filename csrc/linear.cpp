// Products with packed weights. Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
#include "kernels.h"
#include "math.h"
#include "rows.h"

namespace tw {
namespace TW_ISA {

constexpr int kBlockQ4 = kLanes * kGroup / 2;  // bytes of sixteen rows of 32 four-bit weights
constexpr int kBlockQ8 = kLanes * kGroup;

template <Format F>
constexpr int kBytes = F == kBf16 ? 2 * kLanes * kGroup : F == kQ8 ? kBlockQ8 + 32 : F == kQ4Min ? kBlockQ4 + 64 : kBlockQ4 + 32;

// The eight vectors of weights of one block: vector j holds columns 4j..4j+3 of each of the sixteen rows.
template <Format F>
static inline __attribute__((always_inline)) void unpack(const uint8_t* block, u8x64 weights[8]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        if (F == kQ8) {
            weights[2 * j] = load<u8x64>(block + 128 * j);
            weights[2 * j + 1] = load<u8x64>(block + 128 * j + 64);
#if defined(TW_AVX512)
            weights[2 * j] ^= 0x80;  // to unsigned; the accumulator starts 128 * sum(x) low to make up for it
            weights[2 * j + 1] ^= 0x80;
#endif
        } else {
            const u8x64 pairs = load<u8x64>(block + 64 * j);
            weights[j] = pairs & 15;
            weights[j + 4] = (u8x64)((u16x32)pairs >> 4) & 15;
        }
    }
}

// Rows 0..7 are the ones that find weights in memory, later ones find them in caches. The hardware's own prefetching stops
// at every page and is a third slower; past the end of the matrix nothing happens.
template <Format F>
static inline __attribute__((always_inline)) void prefetch_block(const uint8_t* block) {
    constexpr int kAhead = 4096;
#pragma GCC unroll 16
    for (int line = 0; line < kBytes<F>; line += 64) __builtin_prefetch(block + kAhead + line);
}

// Column `column` of sixteen rows, as floats.
template <Format F>
static inline __attribute__((always_inline)) f32x16 column_of(const uint8_t* row_block, int32_t column) {
    const uint8_t* block = row_block + column / kGroup * kBytes<F>;
    const int k = column % kGroup, vector = k / 4, byte = k % 4;
    const uint16_t* halves = (const uint16_t*)(block + (F == kQ8 ? kBlockQ8 : kBlockQ4));
    if (F == kQ8) {
        const i32x16 q = load<i32x16>(block + 64 * vector) << (24 - 8 * byte);
        return load_half(halves) * to_float(q >> 24);
    }
    const i32x16 q = (load<i32x16>(block + 64 * (vector % 4)) >> (8 * byte + vector / 4 * 4)) & 15;
    if (F == kQ4) return load_half(halves) * to_float(q - 8);
    return load_half(halves) * to_float(q) + load_half(halves + kLanes);
}

// M rows of x against one row-block: every row sees the same operations in the same order whatever M is, so a row's
// result does not depend on its neighbours.
template <Format F, int M>
static inline __attribute__((always_inline)) void integer_tile(const uint8_t* row_block, const Activations& x, int64_t tile,
                                                               f32x16 out[M]) {
    const uint8_t* block = row_block;
    const int8_t* q = x.q + tile * x.groups * kTileRows * kGroup;
    const float* scale = x.scale + tile * x.groups * kTileRows;
    const int32_t* sum = x.sum + tile * x.groups * kTileRows;
    const float* total = x.total + tile * x.groups * kTileRows;
    f32x16 acc[M] = {};
    for (int64_t group = 0; group < x.groups; ++group) {
        if (!tile) prefetch_block<F>(block);
        u8x64 weights[8];
        unpack<F>(block, weights);
        const uint16_t* halves = (const uint16_t*)(block + (F == kQ8 ? kBlockQ8 : kBlockQ4));
        const f32x16 step = load_half(halves);
        f32x16 low = {};
        if (F == kQ4Min) low = load_half(halves + kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            i32x16 dot = {};
            if (F == kQ4) dot = splat(-8 * sum[m]);
#if defined(TW_AVX512)
            if (F == kQ8) dot = splat(-128 * sum[m]);
#endif
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                const int8_t* four = q + m * kGroup + 4 * j;
                dot = F == kQ8 ? dot4_signed(dot, weights[j], four) : dot4_small(dot, weights[j], four);
            }
            acc[m] += to_float(dot) * (step * splat(scale[m]));
            if (F == kQ4Min) acc[m] += low * splat(total[m]);
        }
        block += kBytes<F>;
        q += kTileRows * kGroup;
        scale += kTileRows;
        sum += kTileRows;
        total += kTileRows;
    }
    if (x.outlier) {
        const int32_t* outlier = x.outlier + tile * kTileRows * kOutliers;
        const float* value = x.outlier_value + tile * kTileRows * kOutliers;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
            for (int64_t i = m * kOutliers; i < (m + 1) * kOutliers; ++i)
                acc[m] += column_of<F>(row_block, outlier[i]) * splat(value[i]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) out[m] = acc[m];
}

template <int M>
static inline __attribute__((always_inline)) void bfloat16_tile(const uint8_t* block, const Activations& x, int64_t tile,
                                                                f32x16 out[M]) {
    const uint16_t* half = x.half + tile * x.groups * kTileRows * kGroup;
    f32x16 even[M] = {}, odd[M] = {};  // two chains: the dot product takes longer than eight rows keep busy
    for (int64_t group = 0; group < x.groups; ++group) {
        if (!tile) prefetch_block<kBf16>(block);
        for (int pair = 0; pair < kGroup / 2; pair += 2) {
            const u32x16 first = load<u32x16>(block + 64 * pair), second = load<u32x16>(block + 64 * pair + 64);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                even[m] = dot2_bfloat16(even[m], first, half + m * kGroup + 2 * pair);
                odd[m] = dot2_bfloat16(odd[m], second, half + m * kGroup + 2 * pair + 2);
            }
        }
        block += kBytes<kBf16>;
        half += kTileRows * kGroup;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) out[m] = even[m] + odd[m];
}

template <Format F, int M>
static __attribute__((noinline)) void tile_of(const uint8_t* block, const Activations& x, int64_t tile, f32x16* out) {
    if constexpr (F == kBf16)
        bfloat16_tile<M>(block, x, tile, out);
    else
        integer_tile<F, M>(block, x, tile, out);
}

// Rows of one tile, 1 to 8 of them, against one row-block.
template <Format F>
static void tile_rows(const uint8_t* block, const Activations& x, int64_t tile, int64_t rows, f32x16 out[kTileRows]) {
    switch (rows) {
        case 1: return tile_of<F, 1>(block, x, tile, out);
        case 2: return tile_of<F, 2>(block, x, tile, out);
        case 3: return tile_of<F, 3>(block, x, tile, out);
        case 4: return tile_of<F, 4>(block, x, tile, out);
        case 5: return tile_of<F, 5>(block, x, tile, out);
        case 6: return tile_of<F, 6>(block, x, tile, out);
        case 7: return tile_of<F, 7>(block, x, tile, out);
        default: return tile_of<F, 8>(block, x, tile, out);
    }
}

static int64_t rows_in_tile(const Activations& x, int64_t tile) {
    const int64_t left = x.rows - tile * kTileRows;
    return left < kTileRows ? left : kTileRows;
}

static void write(const Output& out, int64_t m, int64_t column, int count, f32x16 value) {
    if (out.weight) value *= splat(out.weight[m]);
    float* to = out.y + (out.row ? out.row[m] : m) * out.stride + column;
    if (out.add) {
        f32x16 before = {};
        std::memcpy(&before, to, count * sizeof(float));
        value += before;
    }
    std::memcpy(to, &value, count * sizeof(float));
}

template <Format F>
static void linear_of(const Matrix& matrix, int64_t index, const Activations& x, int64_t begin, int64_t end,
                      const Output& out) {
    const int64_t bytes = matrix.row_block_bytes();
    for (int64_t rb = begin; rb < end; ++rb) {
        const uint8_t* block = matrix.at(index) + rb * bytes;
        const int64_t left = matrix.rows - rb * kLanes;
        const int count = int(left < kLanes ? left : kLanes);
        for (int64_t tile = 0; tile * kTileRows < x.rows; ++tile) {
            const int64_t rows = rows_in_tile(x, tile);
            f32x16 y[kTileRows];
            tile_rows<F>(block, x, tile, rows, y);
            for (int64_t m = 0; m < rows; ++m) write(out, tile * kTileRows + m, rb * kLanes, count, y[m]);
        }
    }
}

static void linear(const Matrix& matrix, int64_t index, const Activations& x, int64_t begin, int64_t end,
                   const Output& out) {
    switch (matrix.format) {
        case kQ4: return linear_of<kQ4>(matrix, index, x, begin, end, out);
        case kQ4Min: return linear_of<kQ4Min>(matrix, index, x, begin, end, out);
        case kQ8: return linear_of<kQ8>(matrix, index, x, begin, end, out);
        case kBf16: return linear_of<kBf16>(matrix, index, x, begin, end, out);
    }
}

static inline f32x16 silu(f32x16 x) { return x / (splat(1.0f) + exponential(-x)); }

template <Format F>
static void gate_up_of(const Matrix& gate, const Matrix& up, int64_t index, const Activations& x, int64_t begin,
                       int64_t end, const Activations& out) {
    const int64_t bytes = gate.row_block_bytes(), row_blocks = gate.row_blocks();
    for (int64_t group = begin; group < end; ++group)
        for (int64_t tile = 0; tile * kTileRows < x.rows; ++tile) {
            const int64_t rows = rows_in_tile(x, tile);
            f32x16 h[2][kTileRows] = {};
            for (int64_t half = 0; half < 2 && 2 * group + half < row_blocks; ++half) {
                const int64_t offset = (2 * group + half) * bytes;
                f32x16 g[kTileRows], u[kTileRows];
                tile_rows<F>(gate.at(index) + offset, x, tile, rows, g);
                tile_rows<F>(up.at(index) + offset, x, tile, rows, u);
                for (int64_t m = 0; m < rows; ++m) h[half][m] = silu(g[m]) * u[m];
            }
            for (int64_t m = 0; m < rows; ++m) {
                if (out.half) write_bfloat16(h[0][m], h[1][m], out, tile * kTileRows + m, group);
                if (out.q) write_integers(h[0][m], h[1][m], out, tile * kTileRows + m, group);
            }
        }
}

static void gate_up(const Matrix& gate, const Matrix& up, int64_t index, const Activations& x, int64_t begin, int64_t end,
                    const Activations& out) {
    switch (gate.format) {
        case kQ4: return gate_up_of<kQ4>(gate, up, index, x, begin, end, out);
        case kQ4Min: return gate_up_of<kQ4Min>(gate, up, index, x, begin, end, out);
        case kQ8: return gate_up_of<kQ8>(gate, up, index, x, begin, end, out);
        case kBf16: return gate_up_of<kBf16>(gate, up, index, x, begin, end, out);
    }
}

#define TW_STRING_(x) #x
#define TW_STRING(x) TW_STRING_(x)
extern const AttentionKernels attention_table;
extern const Kernels table = {TW_STRING(TW_ISA),
                              &attention_table,
                              normalise,
                              quantise,
                              rotate_half,
                              rotate_interleaved,
                              affinities,
                              unpack_row,
                              read_all,
                              linear,
                              gate_up};

}  // namespace TW_ISA
}  // namespace tw
