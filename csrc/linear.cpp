// Products with packed weights. Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
#include "blocks.h"
#include "kernels.h"
#include "math.h"
#include "rows.h"

namespace tw {
namespace TW_ISA {

// M rows of x from row `first`, a multiple of eight, against one row-block: every row sees the same operations in the
// same order whatever M is, so a row's result does not depend on its neighbours.
template <Format F, int M>
static inline __attribute__((always_inline)) void integer_rows(const uint8_t* block, const Activations& x, int64_t first,
                                                               f32x16 out[M]) {
    const int64_t at = x.at(first, 0);
    const int8_t* q = x.q + at * kGroup;
    const float* scale = x.scale + at;
    const int32_t* sum = x.sum + at;
    const float* total = x.total + at;
    f32x16 acc[M] = {};
    for (int64_t group = 0; group < x.groups; ++group) {
        if (!first) prefetch_block<F>(block);
        u8x64 weights[8];
        unpack<F>(block, weights);
        const uint16_t* halves = (const uint16_t*)(block + (F == kQ8 ? kBlockQ8 : kBlockQ4));
        const f32x16 step = load_half(halves);
        f32x16 low = {};
        if (F == kQ4Min) low = load_half(halves + kLanes);
        i32x16 dot[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            dot[m] = i32x16{};
            if (F == kQ4) dot[m] = splat(-8 * sum[m]);
#if defined(TW_AVX512)
            if (F == kQ8) dot[m] = splat(-128 * sum[m]);
#endif
        }
        // rows innermost: eight sums side by side hide how long a dot product takes
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const int8_t* four = q + m * kGroup + 4 * j;
                dot[m] = F == kQ8 ? dot4_signed(dot[m], weights[j], four) : dot4_small(dot[m], weights[j], four);
            }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            acc[m] += to_float(dot[m]) * (step * splat(scale[m]));
            if (F == kQ4Min) acc[m] += low * splat(total[m]);
        }
        block += kBytes<F>;
        q += x.tile * kGroup;
        scale += x.tile;
        sum += x.tile;
        total += x.tile;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) out[m] = acc[m];
}

template <int M>
static inline __attribute__((always_inline)) void bfloat16_rows(const uint8_t* block, const Activations& x, int64_t first,
                                                                f32x16 out[M]) {
    const uint16_t* half = x.half + x.at(first, 0) * kGroup;
    f32x16 even[M] = {}, odd[M] = {};  // two chains: the dot product takes longer than eight rows keep busy
    for (int64_t group = 0; group < x.groups; ++group) {
        if (!first) prefetch_block<kBf16>(block);
        for (int pair = 0; pair < kGroup / 2; pair += 2) {
            const u32x16 one = load<u32x16>(block + 64 * pair), two = load<u32x16>(block + 64 * pair + 64);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                even[m] = dot2_bfloat16(even[m], one, half + m * kGroup + 2 * pair);
                odd[m] = dot2_bfloat16(odd[m], two, half + m * kGroup + 2 * pair + 2);
            }
        }
        block += kBytes<kBf16>;
        half += x.tile * kGroup;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) out[m] = even[m] + odd[m];
}

template <Format F, int M>
static __attribute__((noinline)) void rows_of(const uint8_t* block, const Activations& x, int64_t first, f32x16* out) {
    if constexpr (F == kBf16)
        bfloat16_rows<M>(block, x, first, out);
    else
        integer_rows<F, M>(block, x, first, out);
}

// Rows first .. first + rows - 1 of a tile, 1 to 8 of them, without their outliers.
template <Format F>
static void rounded_rows(const uint8_t* block, const Activations& x, int64_t first, int64_t rows, f32x16* out) {
    switch (rows) {
        case 1: return rows_of<F, 1>(block, x, first, out);
        case 2: return rows_of<F, 2>(block, x, first, out);
        case 3: return rows_of<F, 3>(block, x, first, out);
        case 4: return rows_of<F, 4>(block, x, first, out);
        case 5: return rows_of<F, 5>(block, x, first, out);
        case 6: return rows_of<F, 6>(block, x, first, out);
        case 7: return rows_of<F, 7>(block, x, first, out);
        default: return rows_of<F, 8>(block, x, first, out);
    }
}

// What a row's numbers in float add to the sums of its 8-bit ones. Neighbours often have the same channels for outliers.
template <Format F>
static void add_outliers(const uint8_t* block, const Activations& x, int64_t first, int64_t rows, f32x16* y) {
    const int32_t* outlier = x.outlier + first * kOutliers;
    const float* value = x.outlier_value + first * kOutliers;
    for (int64_t i = 0; i < kOutliers; ++i) {
        f32x16 weights = column_of<F>(block, outlier[i]);
        for (int64_t m = 0; m < rows; ++m) {
            const int64_t at = m * kOutliers + i;
            if (m && outlier[at] != outlier[at - kOutliers]) weights = column_of<F>(block, outlier[at]);
            y[m] += weights * splat(value[at]);
        }
    }
}

// One tile's rows against one row-block.
template <Format F>
static void tile_rows(const uint8_t* block, const Activations& x, int64_t first, int64_t rows, f32x16 y[kMostTileRows]) {
    rounded_rows<F>(block, x, first, rows, y);
    if (F != kBf16 && x.outlier) add_outliers<F>(block, x, first, rows, y);
}

// Calls f(first, rows) for every tile.
template <typename F>
static inline __attribute__((always_inline)) void for_tiles(const Activations& x, F&& f) {
    for (int64_t first = 0; first < x.rows; first += x.tile) f(first, x.rows - first < x.tile ? x.rows - first : x.tile);
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
        for_tiles(x, [&](int64_t first, int64_t rows) {
            f32x16 y[kMostTileRows];
            tile_rows<F>(block, x, first, rows, y);
            for (int64_t m = 0; m < rows; ++m) write(out, first + m, rb * kLanes, count, y[m]);
        });
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
        for_tiles(x, [&](int64_t first, int64_t rows) {
            f32x16 h[2][kMostTileRows] = {};
            for (int64_t half = 0; half < 2 && 2 * group + half < row_blocks; ++half) {
                const int64_t offset = (2 * group + half) * bytes;
                f32x16 g[kMostTileRows], u[kMostTileRows];
                tile_rows<F>(gate.at(index) + offset, x, first, rows, g);
                tile_rows<F>(up.at(index) + offset, x, first, rows, u);
                for (int64_t m = 0; m < rows; ++m) h[half][m] = silu(g[m]) * u[m];
            }
            for (int64_t m = 0; m < rows; ++m) {
                if (out.half) write_bfloat16(h[0][m], h[1][m], out, first + m, group);
                if (out.q) write_integers(h[0][m], h[1][m], out, first + m, group);
            }
        });
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
