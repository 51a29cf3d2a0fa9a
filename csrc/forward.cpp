// A step through all layers.
#include "model.h"

#include <algorithm>
#include <limits>

namespace tw {

static bool all_below(const int64_t* indices, int64_t count, int64_t size) {
    // as unsigned numbers, negative ones are the greatest
    return std::all_of(indices, indices + count, [&](int64_t index) { return uint64_t(index) < uint64_t(size); });
}

bool is_within(const Model& model, const Step& step) {
    return all_below(step.token_ids, step.tokens, model.embedding.rows) &&
           all_below(step.positions, step.tokens, model.positions) &&
           all_below(step.slots, step.tokens, step.num_pages * step.page_size) &&
           all_below(step.page_table, step.requests * step.pages_per_request, step.num_pages);
}

void forward(Run& run, const Model& model, const Step& step, float* x) {
    parallel_ranges(run.pool, step.tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token)
            run.kernels.unpack_row(model.embedding, step.token_ids[token], x + token * model.hidden_size);
    });
    const Scratch::Mark mark = run.scratch.mark();
    for (int64_t index = 0; index < model.num_layers; ++index) {
        const Layer& layer = model.layers[index];
        if (model.kv_lora_rank)
            latent_attention_block(run, model, index, step, x);
        else
            grouped_attention_block(run, model, index, step, x);
        run.scratch.rewind(mark);
        if (layer.router)
            moe_block(run, model, layer, step.tokens, x);
        else
            dense_block(run, model, layer, step.tokens, x);
        run.scratch.rewind(mark);
    }
}

// Of the logits of one row in one stretch of the vocabulary. What is not finite makes `doubt` NaN; else it is 0.
struct Stretch {
    float greatest, doubt;
};

static Stretch look_through(const float* logits, int64_t count) {
    constexpr int64_t kLanes = 16;  // side by side, for compilers to put into vectors
    float greatest[kLanes], doubt[kLanes] = {}, tail[kLanes];
    std::fill_n(greatest, kLanes, -std::numeric_limits<float>::infinity());
    const auto look = [&](const float* at) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            greatest[lane] = at[lane] > greatest[lane] ? at[lane] : greatest[lane];
            doubt[lane] += at[lane] - at[lane];
        }
    };
    const int64_t whole = count / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) look(logits + i);
    std::fill_n(tail, kLanes, logits[0]);  // one that counts already
    std::copy(logits + whole, logits + count, tail);
    look(tail);
    Stretch found{greatest[0], doubt[0]};
    for (int64_t lane = 1; lane < kLanes; ++lane) {
        found.greatest = std::max(found.greatest, greatest[lane]);
        found.doubt += doubt[lane];
    }
    return found;
}

void logits(Run& run, const Model& model, const float* x, int64_t rows, const Logits& out) {
    const Matrix& head = model.head;
    constexpr int64_t kStretchBlocks = 16, kStretch = kStretchBlocks * kRowBlock;  // few enough to be in cache still
    const int64_t num_stretches = (head.rows + kStretch - 1) / kStretch;
    float* normed = run.scratch.take<float>(rows * model.hidden_size);
    const Activations input = normalised(run, x, model.norm, rows, model.hidden_size, model.eps, normed, is_integer(head),
                                         is_bfloat16(head));
    Stretch* stretches = run.scratch.take<Stretch>(rows * num_stretches);
    parallel_ranges(run.pool, num_stretches, [&](int64_t begin, int64_t end) {
        for (int64_t stretch = begin; stretch < end; ++stretch) {
            const int64_t block = stretch * kStretchBlocks, column = stretch * kStretch;
            run.kernels.linear(head, 0, input, block, std::min(block + kStretchBlocks, head.row_blocks()),
                               {out.logits, head.rows, nullptr, nullptr, false});
            for (int64_t row = 0; row < rows; ++row)
                stretches[row * num_stretches + stretch] =
                    look_through(out.logits + row * head.rows + column, std::min(kStretch, head.rows - column));
        }
    });
    for (int64_t row = 0; row < rows; ++row) {
        const Stretch* const first = stretches + row * num_stretches;
        const Stretch* const best = std::max_element(
            first, first + num_stretches, [](const Stretch& a, const Stretch& b) { return a.greatest < b.greatest; });
        out.finite[row] = std::all_of(first, first + num_stretches, [](const Stretch& each) { return each.doubt == 0; });
        const float* const logits = out.logits + row * head.rows;
        const float* const from = logits + (best - first) * kStretch;
        out.likeliest[row] = out.finite[row] ? std::find(from, logits + head.rows, best->greatest) - logits : 0;
    }
}

}  // namespace tw
