// Attention over a paged cache. Compiled once per instruction set, each time into a namespace of its own (TW_ISA).
//
// A split is worked through in blocks of 64 tokens: their entries are decoded to rows of floats, scores are the product
// of queries and keys, the online softmax turns scores into weights in place, and values are added up by their weights.
// Many query rows lie in lanes, and keys are taken as they come; few rows would leave lanes empty, so there tokens lie
// in lanes and keys are transposed. A row gets the same bits from both.
#include "attention.h"

#include <cfloat>

#include "attention_tile.h"
#include "cache_entry.h"

namespace tw {
namespace TW_ISA {

constexpr int64_t kBlock = 64;     // tokens; a multiple of sixteen that divides kSplit
constexpr int64_t kFewRows = 10;   // up to here transposing keys costs less than empty lanes do
constexpr int64_t kPanelRows = kMostGroups >= 2 ? 2 * kLanes : kLanes;  // query rows in lanes at a time
constexpr float kLog2E = 1.44269504f;

// Rows of floats an odd number of cache lines apart: rows a power of two apart would compete for the same lines.
static int64_t row_stride(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes + (((width + kLanes - 1) / kLanes) % 2 ? 0 : kLanes); }

struct Work {
    const QueryRows& rows;
    int64_t key_width, key_stride, value_stride, value_lanes;
    float* queries;     // [rows, key_stride], scaled
    float* transposed;  // queries in panels [key_width, rows of the panel], or keys [key_width, kBlock]
    float* keys;        // [kBlock, key_stride]
    float* values;      // [kBlock, value_stride]; the keys themselves where they begin with the value
    float* scores;      // panels [kBlock, rows of the panel], or [rows, kBlock]; weights after the softmax
    float* factor;      // [rows]: what earlier sums are multiplied with
    int32_t* seen;      // [rows]: how many tokens of the block a row sees
    int64_t* visible;   // [rows]: how many tokens of the context it sees
    float* largest;     // [rows]: the largest score so far
    float* total;       // [rows]: the sum of weights
    float* sum;         // [rows, sum_stride]: the weighted sum of values, in the rows of the state
    int64_t sum_stride;
};

static bool value_begins_key(const HeadSpec& head) {
    return head.value.offset == head.key[0].offset && head.value.width <= head.key[0].width;
}

static int64_t key_stride(const HeadSpec& head) { return row_stride(head.key_width() + kLanes - 1); }

static int64_t split_scratch_floats(const HeadSpec& head) {
    const int64_t values = value_begins_key(head) ? 0 : kBlock * row_stride(head.value.width);
    return (2 * kMaxRows + kBlock) * key_stride(head) + kMaxRows * kBlock + 6 * kMaxRows + values;
}

static Work make_work(const QueryRows& rows, const HeadSpec& head, float* scratch, float* state) {
    Work work{rows, head.key_width(), key_stride(head), row_stride(head.value.width), padded_lanes(head.value.width)};
    work.sum = state + kLanes;
    work.sum_stride = state_floats(head.value.width);
    work.queries = scratch;
    work.transposed = work.queries + kMaxRows * work.key_stride;
    work.keys = work.transposed + kMaxRows * work.key_stride;
    work.scores = work.keys + kBlock * work.key_stride;
    work.factor = work.scores + kMaxRows * kBlock;
    work.largest = work.factor + kMaxRows;
    work.total = work.largest + kMaxRows;
    work.seen = reinterpret_cast<int32_t*>(work.total + kMaxRows);
    work.visible = reinterpret_cast<int64_t*>(work.seen + kMaxRows);
    work.values = work.total + 4 * kMaxRows;
    if (value_begins_key(head)) work.values = work.keys, work.value_stride = work.key_stride;
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

static void multiply_all(Operands x, int64_t groups, int64_t rows) {
    for (int64_t group = 0; group < groups; group += kMostGroups) {
        multiply(x, groups - group < kMostGroups ? groups - group : kMostGroups, rows);
        x.a += kMostGroups * kLanes;
        x.c += kMostGroups * kLanes;
    }
}

static void prepare_queries(const Work& work, bool few) {
    const QueryRows& rows = work.rows;
    const int64_t padded = padded_lanes(work.key_width);
    const float scale = rows.scale * kLog2E;
    for (int64_t r = 0; r < (few ? rows.count : padded_lanes(rows.count)); ++r) {
        float* to = work.queries + r * work.key_stride;
        std::memset(to, 0, padded * sizeof(float));
        if (r >= rows.count) continue;
        const int64_t token = (rows.first + r) / rows.heads, head = (rows.first + r) % rows.heads;
        const float* from = rows.q + token * rows.token_stride + head * work.key_width;
        for (int64_t i = 0; i < work.key_width; ++i) to[i] = from[i] * scale;
    }
    if (few) return;
    for_panels(rows.count, [&](int64_t first, int64_t in_lanes, int64_t) {
        for (int64_t row = 0; row < in_lanes; row += kLanes)
            for (int64_t i = 0; i < padded; i += kLanes)
                transpose(work.queries + (first + row) * work.key_stride + i, work.key_stride,
                          work.transposed + first * work.key_stride + i * in_lanes + row, in_lanes);
    });
}

// Entries position .. position + count - 1 to rows of floats.
template <int32_t F>
static void decode_block(const Work& work, const Entries& entries, const HeadSpec& head, int64_t position, int64_t count) {
    const CacheSpec& cache = entries.cache;
    for (int64_t token = 0; token < count;) {
        int64_t slot = position + token - entries.first, run = count - token;  // entries that lie side by side
        if (entries.page_table) {
            const int64_t at = position + token, offset = at % cache.page_size;
            slot = entries.page_table[at / cache.page_size] * cache.page_size + offset;
            if (run > cache.page_size - offset) run = cache.page_size - offset;
        }
        const uint8_t* entry = entries.pages + slot * cache.entry_bytes;
        for (; run; --run, ++token, entry += cache.entry_bytes) {
            float* key = work.keys + token * work.key_stride;
            load_segment<F>(entry + head.key[0].offset, head.key[0].width, key);
            if (head.num_keys > 1) load_segment<F>(entry + head.key[1].offset, head.key[1].width, key + head.key[0].width);
            if (work.values != work.keys)
                load_segment<F>(entry + head.value.offset, head.value.width, work.values + token * work.value_stride);
        }
    }
}

static void decode(const Work& work, const Entries& entries, const HeadSpec& head, int64_t position, int64_t count) {
    switch (entries.cache.format) {
        case kCacheFloat32: return decode_block<kCacheFloat32>(work, entries, head, position, count);
        case kCacheBfloat16: return decode_block<kCacheBfloat16>(work, entries, head, position, count);
        case kCacheQ8: return decode_block<kCacheQ8>(work, entries, head, position, count);
        default: return decode_block<kCacheQ6>(work, entries, head, position, count);
    }
}

// New largest scores, and what sums so far are to be multiplied with. `most` holds the block's largest scores.
TW_INLINE void raise(lanes most, float* largest, float* factor) {
    const lanes before = load<lanes>(largest), now = larger(before, most);
    tw::store(factor, power_of_two(before - now));
    tw::store(largest, now);
}

TW_INLINE void add_up(lanes sum, const float* factor, float* total) {
    tw::store(total, fused(load<lanes>(total), load<lanes>(factor), sum));
}

// Scores [tokens, rows] of sixteen rows in lanes become weights. Up to the next multiple of sixteen, tokens a row does
// not see weigh nothing.
static void weigh_lanes(const Work& work, int64_t row, float* scores, int64_t step, int64_t count, bool all_seen) {
    const int64_t padded = padded_lanes(count);
    for (int part = 0; part < kLanes; part += kWidth, row += kWidth, scores += kWidth) {
        const int_lanes seen = load<int_lanes>(work.seen + row);
        if (!all_seen)
            for (int32_t t = 0; t < count; ++t)
                tw::store(scores + t * step, seen > t ? load<lanes>(scores + t * step) : all(-INFINITY));
        for (int64_t t = count; t < padded; ++t) tw::store(scores + t * step, all(-INFINITY));
        lanes most[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
        for (int64_t t = 0; t < padded; t += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) most[i] = larger(most[i], load<lanes>(scores + (t + i) * step));
        raise(larger(larger(most[0], most[1]), larger(most[2], most[3])), work.largest + row, work.factor + row);
        const lanes largest = load<lanes>(work.largest + row);
        lanes sums[kLanes] = {};
        for (int64_t t = 0; t < padded; t += kLanes)
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) {
                const lanes weight = power_of_two(load<lanes>(scores + (t + i) * step) - largest);
                tw::store(scores + (t + i) * step, weight);
                sums[i] += weight;
            }
        add_up(sum_of_sixteen(sums), work.factor + row, work.total + row);
    }
}

// Scores [rows, kBlock] of a few rows, with tokens in lanes, become weights: the same as weigh_lanes.
static void weigh_rows(const Work& work, int64_t rows, int64_t count) {
    alignas(64) float most[kLanes], sums[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) most[r] = -INFINITY, sums[r] = 0;
    const int64_t padded = padded_lanes(count);
    for (int64_t r = 0; r < rows; ++r) {
        float* scores = work.scores + r * kBlock;
        for (int64_t t = work.seen[r]; t < padded; ++t) scores[t] = -INFINITY;
        float largest[kLanes];
        std::memcpy(largest, scores, sizeof largest);
        for (int64_t t = kLanes; t < padded; t += kLanes)
            for (int i = 0; i < kLanes; i += kWidth)
                tw::store(largest + i, larger(load<lanes>(largest + i), load<lanes>(scores + t + i)));
        most[r] = largest_of(largest);
    }
    for (int64_t r = 0; r < kLanes; r += kWidth) raise(load<lanes>(most + r), work.largest + r, work.factor + r);
    for (int64_t r = 0; r < rows; ++r) {
        float* scores = work.scores + r * kBlock;
        float sum[kLanes] = {};
        for (int64_t t = 0; t < padded; t += kLanes)
            for (int i = 0; i < kLanes; i += kWidth) {
                const lanes weight = power_of_two(load<lanes>(scores + t + i) - all(work.largest[r]));
                tw::store(scores + t + i, weight);
                tw::store(sum + i, load<lanes>(sum + i) + weight);
            }
        sums[r] = sum_of_sixteen(sum);
    }
    for (int64_t r = 0; r < kLanes; r += kWidth) add_up(load<lanes>(sums + r), work.factor + r, work.total + r);
}

static void attend_few(const Work& work, int64_t count) {
    const int64_t rows = work.rows.count, groups = padded_lanes(count) / kLanes;
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t i = 0; i < work.key_width; i += kLanes)
            transpose(work.keys + group * kLanes * work.key_stride + i, work.key_stride,
                      work.transposed + i * kBlock + group * kLanes, kBlock);
    multiply_all({work.transposed, kBlock, work.queries, work.key_stride, 1, work.key_width, work.scores, kBlock, nullptr},
                 groups, rows);
    weigh_rows(work, rows, count);
    multiply_all({work.values, work.value_stride, work.scores, kBlock, 1, count, work.sum, work.sum_stride, work.factor},
                 work.value_lanes / kLanes, rows);
}

static void attend_many(const Work& work, int64_t) {
    for_panels(work.rows.count, [&](int64_t first, int64_t in_lanes, int64_t rows) {
        const int64_t count = work.seen[first + rows - 1];  // the last row sees most
        if (!count) return;
        float* scores = work.scores + first * kBlock;
        multiply_all({work.transposed + first * work.key_stride, in_lanes, work.keys, work.key_stride, 1, work.key_width,
                      scores, in_lanes, nullptr}, in_lanes / kLanes, count);
        for (int64_t row = 0; row < in_lanes; row += kLanes)
            weigh_lanes(work, first + row, scores + row, in_lanes, count, work.seen[first] == count);
        multiply_all({work.values, work.value_stride, scores, 1, in_lanes, count, work.sum + first * work.sum_stride,
                      work.sum_stride, work.factor + first}, work.value_lanes / kLanes, rows);
    });
}

static void attend_split(const QueryRows& rows, const Entries& entries, const HeadSpec& head, int64_t begin, int64_t end,
                         float* scratch, float* state) {
    const Work work = make_work(rows, head, scratch, state);
    const bool few = rows.count <= kFewRows;
    const int64_t padded = padded_lanes(rows.count);
    for (int64_t r = 0; r < padded; ++r) {
        work.largest[r] = -FLT_MAX, work.total[r] = 0;
        const int64_t row = r < rows.count ? r : rows.count - 1;  // what only fills the lanes does as the last row does
        work.visible[r] = rows.visible + (rows.first + row) / rows.heads;
    }
    for (int64_t r = 0; r < rows.count; ++r) std::memset(work.sum + r * work.sum_stride, 0, work.value_lanes * sizeof(float));
    const int64_t last = work.visible[padded - 1] < end ? work.visible[padded - 1] : end;
    if (last > begin) prepare_queries(work, few);
    for (int64_t position = begin; position < last; position += kBlock) {
        const int64_t count = last - position < kBlock ? last - position : kBlock;
        decode(work, entries, head, position, count);
        for (int64_t r = 0; r < padded; ++r) {
            const int64_t seen = work.visible[r] - position;
            work.seen[r] = int32_t(seen < 0 ? 0 : seen < count ? seen : count);
        }
        if (few) attend_few(work, count);
        else attend_many(work, count);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
        state[r * work.sum_stride] = work.largest[r];
        state[r * work.sum_stride + 1] = work.total[r];
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
