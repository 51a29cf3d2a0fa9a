// The gate's choice, in scalar code: it is small beside the logits it starts from.
#include "gate.h"

#include <algorithm>
#include <cmath>

namespace tw {

// The best `count` of `scores`, best first, ties to the lower index; the chosen scores become -infinity.
static void take_best(float* scores, int64_t size, int64_t count, int32_t* ids) {
    for (int64_t k = 0; k < count; ++k) {
        ids[k] = int32_t(std::max_element(scores, scores + size) - scores);
        scores[ids[k]] = -INFINITY;
    }
}

// A group is as good as its best expert; with a bias, as its best two together.
static float group_score(const float* scores, int64_t size, bool two) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; ++i) {
        second = std::max(second, std::min(best, scores[i]));
        best = std::max(best, scores[i]);
    }
    return two ? best + second : best;
}

static void keep_best_groups(const GateRule& rule, float* scores) {
    const int64_t size = rule.experts / rule.groups;
    for (int64_t dropped = rule.groups - rule.chosen_groups; dropped > 0; --dropped) {
        float worst = INFINITY;
        int64_t worst_group = -1;
        for (int64_t group = 0; group < rule.groups; ++group) {
            const float score = group_score(scores + group * size, size, rule.sigmoid);
            if (score > -INFINITY && score <= worst) worst = score, worst_group = group;  // ties drop the higher index
        }
        std::fill_n(scores + worst_group * size, size, -INFINITY);
    }
}

void route(const GateRule& rule, float* scores, const float* bias, float* choice, int32_t* ids, float* weights) {
    const int64_t experts = rule.experts;
    if (rule.sigmoid) {
        for (int64_t e = 0; e < experts; ++e) scores[e] = 1 / (1 + std::exp(-scores[e]));
    } else {
        const float largest = *std::max_element(scores, scores + experts);
        float total = 0;
        for (int64_t e = 0; e < experts; ++e) total += scores[e] = std::exp(scores[e] - largest);
        for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
    }
    for (int64_t e = 0; e < experts; ++e) {
        choice[e] = bias ? scores[e] + bias[e] : scores[e];
        if (!(choice[e] > -INFINITY)) choice[e] = -3e38f;  // NaN: chosen last, and seen in the logits all the same
    }
    if (rule.chosen_groups < rule.groups) keep_best_groups(rule, choice);
    take_best(choice, experts, rule.chosen, ids);
    float total = 0;
    for (int64_t k = 0; k < rule.chosen; ++k) total += scores[ids[k]];
    std::sort(ids, ids + rule.chosen);
    const float factor = float(rule.scaling) / (rule.normalise ? total + 1e-20f : 1.0f);
    for (int64_t k = 0; k < rule.chosen; ++k) weights[k] = scores[ids[k]] * factor;
}

}  // namespace tw
