// The gate: which experts see a token.
#pragma once

#include <cstdint>

namespace tw {

// A gate's rule: report equations 20-22 (V2), section 2.1.2 of the V3 report.
struct GateRule {
    int64_t experts, chosen, groups, chosen_groups;
    int64_t sigmoid;     // affinities by sigmoid and biased choice (V3); by softmax otherwise
    int64_t normalise;   // weights of the chosen sum to 1
    double scaling;
};

// The experts chosen for one token from its logits, in ascending order, and their weights; logits are overwritten and
// `room` holds as many floats.
void route(const GateRule& rule, float* logits, const float* bias, float* room, int32_t* ids, float* weights);

}  // namespace tw
