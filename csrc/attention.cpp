// Attention over a paged cache. Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
//
// A split is worked through in blocks of 64 tokens: keys are decoded to floats a piece at a time and multiplied with the
// queries, the online softmax turns scores into weights in place, values are decoded and added up by their weights.
// Many query rows lie in lanes, and keys are taken as they come; few rows would leave lanes empty, so there tokens lie
// in lanes and keys are transposed. A row gets the same bits from both.
#include "attention.h"

#include <cfloat>

#include "attention_block.h"
#include "attention_softmax.h"
#include "attention_values.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kFewRows = 10;  // up to here transposing keys costs less than empty lanes do
constexpr int64_t kMemoryBound = 32;  // rows: with more, arithmetic takes longer than entries take to come by themselves
constexpr int64_t kPanelRows = kMostGroups >= 2 ? 2 * kLanes : kLanes;  // query rows in lanes at a time
constexpr float kLog2E = 1.44269504f;
constexpr float kOne = 1;

static int64_t pieces(int64_t width) { return (width + kPiece - 1) / kPiece; }

static int64_t key_pieces(const HeadSpec& head) {
    return pieces(head.key[0].width) + (head.num_keys > 1 ? pieces(head.key[1].width) : 0);
}

// What one key-value head is worked on with.
struct Work {
    QueryRows rows;
    HeadSpec head;
    CacheSpec cache;
    bool few;
    bool value_is_key;  // the value is the key's first segment, decoded once
    int64_t state_stride;
    float* queries;     // scaled: [pieces of the key, rows, kPieceStride] if few, else [key width, rows in lanes] by panel
    float* piece;       // of keys: [kBlock, kPieceStride]
    float* transposed;  // of keys: [kPiece, kBlock], if few
    float* values;      // [pieces, kBlock, kPieceStride]; if few, in the place of the keys, which have had their use by then
    float* scores;      // [rows, kPieceStride] if few, else [kBlock, rows in lanes] by panel; later weights
    Softmax* softmax;   // of each sixteen rows
    float* state;       // rows of state_stride: largest, total, at kLanes the weighted sum of values
};

struct Sizes {
    int64_t queries, piece, values, scores, softmax;

    explicit Sizes(const HeadSpec& head)
        : queries(kMaxRows * kPieceStride * key_pieces(head)), piece(kBlockPiece),
          values(kBlockPiece * pieces(head.value.width)), scores(kMaxRows * kPieceStride),
          softmax(kMostHeads * int64_t(sizeof(Softmax) / sizeof(float))) {}
};

static int64_t split_scratch_floats(const HeadSpec& head) {
    const Sizes sizes(head);
    return sizes.queries + sizes.piece + sizes.values + sizes.scores + sizes.softmax;
}

// Head `index` of those worked on side by side: it has queries and a softmax of its own and shares the rest.
static Work make_work(const QueryRows& rows, const HeadSpec& head, const CacheSpec& cache, int64_t index, float* memory,
                      float* state) {
    const Sizes sizes(head);
    Work work{rows, head, cache, rows.count <= kFewRows};
    work.value_is_key = head.value.offset == head.key[0].offset && head.value.width == head.key[0].width;
    work.state_stride = state_floats(head.value.width);
    work.queries = memory + index * rows.count * kPieceStride * key_pieces(head), memory += sizes.queries;
    work.piece = memory, memory += sizes.piece;
    work.transposed = work.values = memory, memory += sizes.values;
    work.scores = memory, memory += sizes.scores;
    work.softmax = reinterpret_cast<Softmax*>(memory) + index;
    work.state = state;
    return work;
}

// Calls f(first row, rows in lanes, rows that exist) for every panel.
template <typename F>
TW_INLINE void for_panels(int64_t rows, F&& f) {
    for (int64_t first = 0; first < rows; first += kPanelRows) {
        const int64_t left = rows - first;
        f(first, left > kLanes ? kPanelRows : int64_t(kLanes), left < kPanelRows ? left : kPanelRows);
    }
}

// Row `row`'s part of a piece, scaled.
static void scaled_query(const Work& work, int64_t row, const Piece& piece, float* to) {
    const QueryRows& rows = work.rows;
    const int64_t token = (rows.first + row) / rows.heads, head = (rows.first + row) % rows.heads;
    const float* from = rows.q + token * rows.token_stride + head * work.head.key_width() + piece.before;
    const float scale = rows.scale * kLog2E;
    for (int64_t i = 0; i < piece.end - piece.begin; ++i) to[i] = from[i] * scale;
}

static void prepare_queries(const Work& work) {
    const int64_t rows = work.rows.count, panel_steps = padded_lanes(work.head.key_width()) + kLanes;
    for_pieces(work.head.key, work.head.num_keys, [&](const Piece& piece) {
        if (work.few) {
            for (int64_t r = 0; r < rows; ++r)
                scaled_query(work, r, piece, work.queries + (piece.index * rows + r) * kPieceStride);
            return;
        }
        for_panels(rows, [&](int64_t first, int64_t in_lanes, int64_t) {
            for (int64_t lane = 0; lane < in_lanes; lane += kLanes) {
                std::memset(work.piece, 0, kLanes * kPieceStride * sizeof(float));
                for (int64_t r = 0; r < kLanes && first + lane + r < rows; ++r)
                    scaled_query(work, first + lane + r, piece, work.piece + r * kPieceStride);
                float* to = work.queries + first * panel_steps + piece.before * in_lanes + lane;
                for (int64_t i = 0; i < piece.end - piece.begin; i += kLanes)
                    transpose(work.piece + i, kPieceStride, to + i * in_lanes, in_lanes);
            }
        });
    });
}

// state = state * factor + weights * values, for the values of a block.
template <int64_t Stride>
static void add_values(const Work& work, const float* weights, int64_t step, int64_t count, int64_t first, int64_t rows,
                       const Softmax& softmax, Ahead& ahead, int64_t entries) {
    float* sum = work.state + first * work.state_stride + kLanes;
    for (int64_t left = work.head.value.width, piece = 0; left > 0; left -= kPiece, ++piece)
        multiply<Stride>({work.values + piece * kBlockPiece, kPieceStride, weights, step, count, sum + piece * kPiece,
                          work.state_stride, softmax.factor, 1},
                         padded_lanes(left < kPiece ? left : kPiece) / kLanes, rows, ahead, entries);
}

static void decode_values(const Work& work, const Block& block, Ahead& ahead, int64_t entries) {
    for_pieces(&work.head.value, 1, [&](const Piece& piece) {
        decode_rows(piece.segment.format, piece, block, work.values + piece.index * kBlockPiece, ahead, entries);
    });
}

static void attend_few(const Work& work, const Block& block, Ahead& ahead) {
    const int64_t rows = work.rows.count, groups = padded_lanes(block.count) / kLanes;
    for_pieces(work.head.key, work.head.num_keys, [&](const Piece& piece) {
        decode_columns(piece, block, work.cache.entry_bytes, work.piece, work.transposed, ahead, 5);
        multiply<kPieceStride>({work.transposed, kBlock, work.queries + piece.index * rows * kPieceStride, 1,
                                piece.end - piece.begin, work.scores, kPieceStride, piece.index ? &kOne : nullptr, 0},
                               groups, rows, ahead, 5);
    });
    weigh_rows(work.softmax[0], rows, work.scores, kPieceStride, block.count);
    if (work.head.value.width % kLanes == 0) {
        ahead.fetch(16);
        return add_entries(work.head.value.format, {work.head.value, block.entry, block.count, work.scores, work.state + kLanes,
                                               work.state_stride, work.softmax[0].factor}, rows);
    }
    decode_values(work, block, ahead, 4);
    add_values<kPieceStride>(work, work.scores, 1, block.count, 0, rows, work.softmax[0], ahead, 5);
}

static void attend_many(const Work& work, const Block& block, Ahead& ahead) {
    const int64_t rows = work.rows.count, panel_steps = padded_lanes(work.head.key_width()) + kLanes;
    const auto tokens_seen = [&](int64_t row) { return int64_t(work.softmax[row / kLanes].seen[row % kLanes]); };
    for_pieces(work.head.key, work.head.num_keys, [&](const Piece& piece) {
        const bool keep = work.value_is_key && &piece.segment == work.head.key;
        float* keys = keep ? work.values + piece.index * kBlockPiece : work.piece;
        decode_rows(piece.segment.format, piece, block, keys, ahead, 0);
        for_panels(rows, [&](int64_t first, int64_t in_lanes, int64_t in_panel) {
            multiply<kPieceStride>({work.queries + first * panel_steps + piece.before * in_lanes, in_lanes, keys, 1,
                                    piece.end - piece.begin, work.scores + first * kBlock, in_lanes,
                                    piece.index ? &kOne : nullptr, 0},
                                   in_lanes / kLanes, tokens_seen(first + in_panel - 1), ahead, 2);
        });
    });
    if (!work.value_is_key) decode_values(work, block, ahead, 0);
    for_panels(rows, [&](int64_t first, int64_t in_lanes, int64_t in_panel) {
        const int64_t count = tokens_seen(first + in_panel - 1);  // the last row sees most
        float* scores = work.scores + first * kBlock;
        for (int64_t lane = 0; count && lane < in_lanes; lane += kLanes, scores += kLanes) {
            Softmax& softmax = work.softmax[(first + lane) / kLanes];
            weigh_lanes(softmax, scores, in_lanes, count, softmax.seen[0] == count);
            add_values<1>(work, scores, in_lanes, count, first + lane, in_panel - lane < kLanes ? in_panel - lane : kLanes,
                          softmax, ahead, 1);
        }
    });
}

static void look(const Work& work, int64_t position, int64_t count) {
    for (int64_t r = 0; r < padded_lanes(work.rows.count); ++r) {
        Softmax& softmax = work.softmax[r / kLanes];
        const int64_t seen = softmax.visible[r % kLanes] - position;
        softmax.seen[r % kLanes] = int32_t(seen < 0 ? 0 : seen < count ? seen : count);
    }
}

static void begin_state(const Work& work) {
    const QueryRows& rows = work.rows;
    for (int64_t r = 0; r < padded_lanes(rows.count); ++r) {
        Softmax& softmax = work.softmax[r / kLanes];
        const int64_t row = r < rows.count ? r : rows.count - 1;  // what only fills the lanes does as the last row does
        softmax.visible[r % kLanes] = rows.visible + (rows.first + row) / rows.heads;
        softmax.largest[r % kLanes] = -FLT_MAX;
        softmax.total[r % kLanes] = 0;
    }
    for (int64_t r = 0; r < rows.count; ++r)
        std::memset(work.state + r * work.state_stride, 0, work.state_stride * sizeof(float));
}

static void end_state(const Work& work) {
    for (int64_t r = 0; r < work.rows.count; ++r) {
        work.state[r * work.state_stride] = work.softmax[r / kLanes].largest[r % kLanes];
        work.state[r * work.state_stride + 1] = work.softmax[r / kLanes].total[r % kLanes];
    }
}

static void attend_block(const Work& work, const Block& block, int64_t position) {
    Ahead ahead{block.next, work.rows.count <= kMemoryBound ? block.next_count : 0};
    for (int64_t i = 0; i < work.head.num_keys; ++i)
        ahead.add(work.head.key[i].offset, segment_bytes(work.head.key[i].format, work.head.key[i].width));
    if (!work.value_is_key) ahead.add(work.head.value.offset, segment_bytes(work.head.value.format, work.head.value.width));
    look(work, position, block.count);
    if (work.few) attend_few(work, block, ahead);
    else attend_many(work, block, ahead);
    ahead.fetch(kBlock);
}

// Heads [num_heads] side by side, block after block.
static void attend_heads(const Work* heads, int64_t num_heads, const Entries& entries, int64_t begin, int64_t end) {
    for (int64_t h = 0; h < num_heads; ++h) begin_state(heads[h]), prepare_queries(heads[h]);
    Block block;
    block.next_count = end - begin < kBlock ? end - begin : kBlock;
    find_entries(entries, begin, block.next_count, block.next);
    for (int64_t position = begin; position < end; position += kBlock) {
        block.count = block.next_count;
        std::memcpy(block.entry, block.next, sizeof block.entry);
        const int64_t left = end - position - block.count;
        block.next_count = left < kBlock ? left : kBlock;
        find_entries(entries, position + block.count, block.next_count, block.next);
        for (int64_t h = 0; h < num_heads; ++h) attend_block(heads[h], block, position);
    }
    for (int64_t h = 0; h < num_heads; ++h) end_state(heads[h]);
}

static void attend_split(const QueryRows& rows, const Entries& entries, const HeadSpec* heads, int64_t num_heads,
                         int64_t begin, int64_t end, float* scratch, float* state) {
    const int64_t visible = rows.visible + (rows.first + rows.count - 1) / rows.heads;  // to the last row
    if (visible < end) end = visible > begin ? visible : begin;
    const int64_t together = rows.count <= kFewRows ? num_heads : 1;
    Work work[kMostHeads];
    for (int64_t first = 0; first < num_heads; first += together) {
        for (int64_t i = 0; i < together; ++i) {
            const HeadSpec& head = heads[first + i];
            QueryRows its = rows;
            its.q += (first + i) * rows.heads * head.key_width();
            work[i] = make_work(its, head, entries.cache, i, scratch,
                                state + (first + i) * rows.count * state_floats(head.value.width));
        }
        attend_heads(work, together, entries, begin, end);
    }
}

static void merge(int64_t rows, int64_t value_width, const float* later, float* state) {
    const int64_t stride = state_floats(value_width);
    for (int64_t r = 0; r < rows; ++r, later += stride, state += stride) {
        const lanes before = all(state[0]), after = all(later[0]), now = larger(before, after);
        const lanes keep = power_of_two(before - now), add = power_of_two(after - now);
        state[0] = now[0];
        state[1] = fused(all(later[1]), add, all(state[1]) * keep)[0];
        for (int64_t i = kLanes; i < stride; i += kWidth)
            tw::store(state + i, fused(load<lanes>(later + i), add, load<lanes>(state + i) * keep));
    }
}

static void finish(const QueryRows& rows, int64_t value_width, const float* state, float* out, int64_t token_stride) {
    for (int64_t r = 0; r < rows.count; ++r, state += state_floats(value_width)) {
        const float inverse = 1 / state[1];
        const int64_t token = (rows.first + r) / rows.heads, head = (rows.first + r) % rows.heads;
        float* to = out + token * token_stride + head * value_width;
        for (int64_t i = 0; i < value_width; ++i) to[i] = state[kLanes + i] * inverse;
    }
}

extern const AttentionKernels attention_table = {store_segment, load_any, split_scratch_floats, attend_split, merge, finish};

}  // namespace TW_ISA
}  // namespace tw
