// Attention spread over threads, and its C API.
#include "api.h"

namespace tw {

namespace {

// Query rows of one request and the key-value heads they share.
struct Item {
    int64_t request, first_token;  // first_token: where the request begins in q
    int64_t first_row, rows;
    int64_t first_head, heads;
    int64_t context;               // positions the last row sees
    float* states;                 // [splits, heads, rows] if its splits are work of their own, else null

    int64_t splits() const { return (context + kSplit - 1) / kSplit; }
    int64_t cost() const { return context * heads * rows; }
};

struct Task {
    const Item* item;
    int64_t split;  // -1: all of them, one after the other
};

struct Call {
    const AttentionKernels& kernels;
    const float* q;
    int64_t heads, heads_per_kv;
    const uint8_t* pages;
    const CacheSpec& cache;
    const HeadSpec* kv_heads;
    int64_t num_kv_heads;
    const Requests& requests;
    float scale;
    float* out;

    int64_t key_width() const { return kv_heads[0].key_width(); }
    int64_t value_width() const { return kv_heads[0].value.width; }
    int64_t query_rows(int64_t request) const { return requests.query_lengths[request] * heads_per_kv; }

    QueryRows rows(const Item& item, int64_t head, int64_t skip, int64_t count) const {
        const int64_t at = (item.first_token * heads + head * heads_per_kv) * key_width();
        const int64_t visible = requests.context_lengths[item.request] - requests.query_lengths[item.request] + 1;
        return {q + at, heads * key_width(), heads_per_kv, item.first_row + skip, count, visible, scale};
    }

    void attend(const Item& item, int64_t split, float* scratch, float* state) const {
        const Entries entries{pages, cache, requests.page_table + item.request * requests.pages_per_request, 0};
        const int64_t end = (split + 1) * kSplit < item.context ? (split + 1) * kSplit : item.context;
        kernels.attend_split(rows(item, item.first_head, 0, item.rows), entries, kv_heads + item.first_head, item.heads,
                             split * kSplit, end, scratch, state);
    }

    void finish(const Item& item, int64_t head, int64_t skip, int64_t count, const float* state) const {
        float* to = out + (item.first_token * heads + head * heads_per_kv) * value_width();
        kernels.finish(rows(item, head, skip, count), value_width(), state, to, heads * value_width());
    }
};

struct Plan {
    Item* items;
    int64_t num_items;
    Task* tasks;
    int64_t num_tasks;
};

// Decoding rows take all key-value heads together, so that an entry is read whole while it is at hand; with too little
// work for all threads, and for many rows, every head is an item.
Plan make_plan(const Call& call, Scratch& scratch, int threads) {
    const int64_t enough = threads == 1 ? 1 : 4 * threads;
    int64_t splits = 0, most_items = 0;
    for (int64_t r = 0; r < call.requests.count; ++r) {
        splits += (call.requests.context_lengths[r] + kSplit - 1) / kSplit;
        most_items += (call.query_rows(r) + kMaxRows - 1) / kMaxRows * call.num_kv_heads;
    }
    Plan plan{scratch.take<Item>(most_items), 0, nullptr, 0};
    int64_t token = 0, cost = 0, most_tasks = 0;
    for (int64_t r = 0; r < call.requests.count; token += call.requests.query_lengths[r++]) {
        const int64_t rows = call.query_rows(r);
        int64_t together = splits >= enough ? kMaxRows / rows : 1;
        if (together > kMostHeads) together = kMostHeads;
        if (together < 1) together = 1;
        for (int64_t first = 0; first < rows; first += kMaxRows)
            for (int64_t head = 0; head < call.num_kv_heads; head += together) {
                const int64_t count = rows - first < kMaxRows ? rows - first : kMaxRows;
                const int64_t before = call.requests.context_lengths[r] - call.requests.query_lengths[r];
                const int64_t context = before + (first + count - 1) / call.heads_per_kv + 1;
                const int64_t heads = call.num_kv_heads - head < together ? call.num_kv_heads - head : together;
                const Item item{r, token, first, count, head, heads, context, nullptr};
                plan.items[plan.num_items++] = item;
                cost += item.cost();
                most_tasks += item.splits();
            }
    }
    plan.tasks = scratch.take<Task>(most_tasks);
    for (Item* item = plan.items + plan.num_items; item-- != plan.items;) {  // the longest contexts of a prompt first
        if (threads == 1 || item->splits() == 1 || item->cost() * enough <= cost) {
            plan.tasks[plan.num_tasks++] = {item, -1};
            continue;
        }
        item->states = scratch.take<float>(item->splits() * item->heads * item->rows * state_floats(call.value_width()));
        for (int64_t split = 0; split < item->splits(); ++split) plan.tasks[plan.num_tasks++] = {item, split};
    }
    return plan;
}

// All of an item's splits, one after the other. `states` is [2, heads, rows].
void attend_all(const Call& call, const Item& item, float* scratch, float* states) {
    const int64_t size = item.rows * state_floats(call.value_width());
    float* later = states + item.heads * size;
    for (int64_t split = 0; split < item.splits(); ++split) {
        call.attend(item, split, scratch, split ? later : states);
        if (split) call.kernels.merge(item.heads * item.rows, call.value_width(), later, states);
    }
    for (int64_t head = 0; head < item.heads; ++head)
        call.finish(item, item.first_head + head, 0, item.rows, states + head * size);
}

// One head's rows first .. first + count - 1 of an item whose splits were attended to apart.
void merge_splits(const Call& call, const Item& item, int64_t head, int64_t first, int64_t count) {
    const int64_t row = state_floats(call.value_width());
    float* state = item.states + (head * item.rows + first) * row;
    for (int64_t split = 1; split < item.splits(); ++split)
        call.kernels.merge(count, call.value_width(), state + split * item.heads * item.rows * row, state);
    call.finish(item, item.first_head + head, first, count, state);
}

}  // namespace

void paged_attention(Pool& pool, Scratch& scratch, const AttentionKernels& kernels, const float* q, int64_t heads,
                     const uint8_t* pages, const CacheSpec& cache, const HeadSpec* kv_heads, int64_t num_kv_heads,
                     const Requests& requests, float scale, float* out) {
    const Call call{kernels, q, heads, heads / num_kv_heads, pages, cache, kv_heads, num_kv_heads, requests, scale, out};
    const Scratch::Mark mark = scratch.mark();
    const Plan plan = make_plan(call, scratch, pool.threads());
    const int64_t row = state_floats(call.value_width());
    const int64_t per_split = padded_lanes(kernels.split_scratch_floats(kv_heads[0]));
    const int64_t per_thread = per_split + 2 * kMaxRows * row;
    float* memory = scratch.take<float>(pool.threads() * per_thread);
    parallel_on_threads(pool, plan.num_tasks, [&](int64_t part, int thread) {
        const Task& task = plan.tasks[part];
        const Item& item = *task.item;
        float* mine = memory + thread * per_thread;
        if (task.split < 0) return attend_all(call, item, mine, mine + per_split);
        call.attend(item, task.split, mine, item.states + task.split * item.heads * item.rows * row);
    });
    for (int64_t i = 0; i < plan.num_items; ++i) {
        const Item& item = plan.items[i];
        if (!item.states) continue;
        constexpr int64_t kPart = 4;
        const int64_t parts = (item.rows + kPart - 1) / kPart;
        parallel(pool, item.heads * parts, [&](int64_t part) {
            const int64_t first = part % parts * kPart;
            merge_splits(call, item, part / parts, first, item.rows - first < kPart ? item.rows - first : kPart);
        });
    }
    scratch.rewind(mark);
}

void store_entries(Pool& pool, const AttentionKernels& kernels, const float* x, int64_t tokens, const Segment* segments,
                   int64_t num_segments, const CacheSpec& cache, const int64_t* slots, uint8_t* pages) {
    int64_t width = 0;
    for (int64_t i = 0; i < num_segments; ++i) width += segments[i].width;
    parallel_ranges(pool, tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const float* from = x + token * width;
            for (int64_t i = 0; i < num_segments; from += segments[i++].width)
                kernels.store(segments[i].format, from, segments[i].width, pages + slots[token] * cache.entry_bytes + segments[i].offset);
        }
    });
}

}  // namespace tw

TW_API int32_t tw_store_entries(void* runner, const float* x, int64_t tokens, const tw::Segment* segments,
                                int64_t num_segments, const tw::CacheSpec* cache, const int64_t* slots, uint8_t* pages) {
    return tw::guarded(runner, [&](tw::Run& run) {
        tw::store_entries(run.pool, *run.kernels.attention, x, tokens, segments, num_segments, *cache, slots, pages);
    });
}


TW_API int32_t tw_paged_attention(void* runner, const float* q, int64_t heads, const uint8_t* pages,
                                  const tw::CacheSpec* cache, const tw::HeadSpec* kv_heads, int64_t num_kv_heads,
                                  const tw::Requests* requests, float scale, float* out) {
    return tw::guarded(runner, [&](tw::Run& run) {
        tw::paged_attention(run.pool, run.scratch, *run.kernels.attention, q, heads, pages, *cache, kv_heads, num_kv_heads,
                            *requests, scale, out);
    });
}
