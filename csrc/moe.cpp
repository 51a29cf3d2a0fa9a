// The DeepSeekMoE block in one pass: route, group tokens by expert, read each touched expert's weights once.
#include <algorithm>

#include "model.h"

namespace tw {

namespace {

// One expert and its tokens; the shared experts are one more, with all tokens and weight 1.
struct Job {
    const Matrix *gate, *up, *down;
    int64_t index;
    Activations input, hidden;
    const int32_t* tokens;  // null: all, in order
    const float* weights;
};

// Tokens in order of their experts: assignment a is token[a] with weight[a]; expert e owns first[e]..first[e + 1].
struct Grouping {
    int64_t* first;
    int32_t* token;
    float* weight;
};

Grouping route_tokens(Run& run, const Model& model, const Layer& layer, const float* normed, int64_t tokens) {
    const GateRule& rule = model.gate_rule;
    const int64_t total = tokens * rule.chosen;
    int32_t* ids = run.scratch.take<int32_t>(total);
    float* weights = run.scratch.take<float>(total);
    float* room = run.scratch.take<float>(tokens * 2 * rule.experts);
    parallel_ranges(run.pool, tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            float* logits = room + token * 2 * rule.experts;
            run.kernels.affinities(normed + token * model.hidden_size, model.hidden_size, layer.router, rule.experts, logits);
            route(rule, logits, layer.router_bias, logits + rule.experts, ids + token * rule.chosen,
                  weights + token * rule.chosen);
        }
    });
    Grouping grouping{run.scratch.take<int64_t>(rule.experts + 1), run.scratch.take<int32_t>(total),
                      run.scratch.take<float>(total)};
    std::fill_n(grouping.first, rule.experts + 1, 0);
    for (int64_t a = 0; a < total; ++a) ++grouping.first[ids[a] + 1];
    for (int64_t e = 0; e < rule.experts; ++e) grouping.first[e + 1] += grouping.first[e];
    int64_t* next = run.scratch.take<int64_t>(rule.experts);
    std::copy_n(grouping.first, rule.experts, next);
    for (int64_t a = 0; a < total; ++a) {
        const int64_t at = next[ids[a]]++;
        grouping.token[at] = int32_t(a / rule.chosen);
        grouping.weight[at] = weights[a];
    }
    return grouping;
}

void copy_row(const Activations& from, int64_t row, const Activations& to, int64_t to_row) {
    for (int64_t group = 0; group < from.groups; ++group) {
        const int64_t source = from.at(row, group), target = to.at(to_row, group);
        if (to.q) {
            std::copy_n(from.q + source * 32, 32, to.q + target * 32);
            to.scale[target] = from.scale[source];
            to.sum[target] = from.sum[source];
            to.total[target] = from.total[source];
        }
        if (to.half) std::copy_n(from.half + source * 32, 32, to.half + target * 32);
    }
    if (!to.outlier) return;
    std::copy_n(from.outlier + row * kOutliers, kOutliers, to.outlier + to_row * kOutliers);
    std::copy_n(from.outlier_value + row * kOutliers, kOutliers, to.outlier_value + to_row * kOutliers);
}

// f(job, begin, end) over pieces of every job's 0..size(job), taken as one range.
template <typename Size, typename F>
void for_pieces(Run& run, const Job* jobs, int64_t count, Size&& size, F&& f) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += size(jobs[i]);
    // pieces of experts with few and with many tokens cost differently: many small ones even that out
    const int64_t pieces = std::min<int64_t>(total, run.pool.threads() * 32);
    parallel(run.pool, pieces, [&](int64_t piece) {
        const int64_t begin = total * piece / pieces, end = total * (piece + 1) / pieces;
        for (int64_t i = 0, first = 0; i < count && first < end; ++i) {
            const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, size(jobs[i]));
            if (from < to) f(jobs[i], from, to);
            first += size(jobs[i]);
        }
    });
}

}  // namespace

// x += shared(n) + sum_k weight_k expert_k(n) with n = norm(x) (report equation 20). A token's experts are added in
// ascending order, the shared ones last, whatever else is in the batch.
void moe_block(Run& run, const Model& model, const Layer& layer, int64_t tokens, float* x) {
    const int64_t width = model.hidden_size, experts = model.gate_rule.experts;
    float* normed = run.scratch.take<float>(tokens * width);
    const bool integer = is_integer(layer.expert_gate) || is_integer(layer.gate);
    const bool bfloat16 = is_bfloat16(layer.expert_gate) || is_bfloat16(layer.gate);
    const Activations input =
        normalised(run, x, layer.post_attention_norm, tokens, width, model.eps, normed, integer, bfloat16);
    const Grouping grouping = route_tokens(run, model, layer, normed, tokens);

    Job* jobs = run.scratch.take<Job>(experts + 1);
    int64_t count = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const int64_t first = grouping.first[e], rows = grouping.first[e + 1] - first;
        if (!rows) continue;
        const Matrix &gate = layer.expert_gate, &down = layer.expert_down;
        jobs[count++] = {&gate, &layer.expert_up, &down, e,
                         take_activations(run, rows, width, is_integer(gate), is_bfloat16(gate), true),
                         take_activations(run, rows, down.columns, is_integer(down), is_bfloat16(down), false),
                         grouping.token + first, grouping.weight + first};
    }
    parallel(run.pool, count, [&](int64_t i) {
        for (int64_t row = 0; row < jobs[i].input.rows; ++row) copy_row(input, jobs[i].tokens[row], jobs[i].input, row);
    });
    if (layer.gate.rows)
        jobs[count++] = {&layer.gate, &layer.up, &layer.down, 0, input,
                         take_activations(run, tokens, layer.down.columns, is_integer(layer.down),
                                          is_bfloat16(layer.down), false),
                         nullptr, nullptr};

    for_pieces(
        run, jobs, count, [](const Job& job) { return job.hidden.groups; },
        [&](const Job& job, int64_t begin, int64_t end) {
            run.kernels.gate_up(*job.gate, *job.up, job.index, job.input, begin, end, job.hidden);
        });
    parallel_ranges(run.pool, (width + kRowBlock - 1) / kRowBlock, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < count; ++i) {
            const Job& job = jobs[i];
            const Output out{x, width, job.tokens, job.weights, true};
            run.kernels.linear(*job.down, job.index, job.hidden, begin, end, out);
        }
    });
}

}  // namespace tw
