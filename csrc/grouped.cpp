// Grouped attention (MHA, GQA, MQA) over the paged cache.
#include "model.h"

namespace tw {

// x += o(attention(rotate(q n), rotate(k n), v n)) with n = norm(x); keys and values enter the cache first.
void grouped_attention_block(Run& run, const Model& model, int64_t layer_index, const Step& step, float* x) {
    const Layer& layer = model.layers[layer_index];
    const int64_t tokens = step.tokens, dim = model.head_dim, heads = model.num_heads, kv_heads = model.num_kv_heads;
    const bool integer = is_integer(layer.q) || is_integer(layer.k) || is_integer(layer.v);
    const bool bfloat16 = is_bfloat16(layer.q) || is_bfloat16(layer.k) || is_bfloat16(layer.v);
    float* normed = run.scratch.take<float>(tokens * model.hidden_size);
    const Activations input =
        normalised(run, x, layer.input_norm, tokens, model.hidden_size, model.eps, normed, integer, bfloat16);

    float* q = run.scratch.take<float>(tokens * heads * dim);
    const int64_t entry = 2 * kv_heads * dim;  // keys of all heads, then values
    float* kv = run.scratch.take<float>(tokens * entry);
    const Product products[] = {{&layer.q, 0, input, {q, heads * dim, nullptr, nullptr, false}},
                                {&layer.k, 0, input, {kv, entry, nullptr, nullptr, false}},
                                {&layer.v, 0, input, {kv + kv_heads * dim, entry, nullptr, nullptr, false}}};
    multiply(run, products, 3);

    const PagedCache cache = paged_cache(run, model, layer_index, step);
    parallel_ranges(run.pool, tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const float* cos = model.cos + step.positions[token] * (dim / 2);
            const float* sin = model.sin + step.positions[token] * (dim / 2);
            for (int64_t head = 0; head < heads; ++head)
                run.kernels.rotate_half(q + (token * heads + head) * dim, dim, cos, sin);
            for (int64_t head = 0; head < kv_heads; ++head)
                run.kernels.rotate_half(kv + token * entry + head * dim, dim, cos, sin);
            store_entry(run, cache, step.slots[token], kv + token * entry);
        }
    });

    float* attended = run.scratch.take<float>(tokens * heads * dim);
    HeadSpec* specs = run.scratch.take<HeadSpec>(kv_heads);
    for (int64_t head = 0; head < kv_heads; ++head)
        specs[head] = {{cache.segments[head]}, 1, cache.segments[kv_heads + head]};
    attend(run, model, cache, step, step.requests, q, specs, kv_heads, attended);
    const Activations output = quantised(run, attended, tokens, heads * dim, heads * dim, is_integer(layer.o), is_bfloat16(layer.o));
    const Product o{&layer.o, 0, output, {x, model.hidden_size, nullptr, nullptr, true}};
    multiply(run, &o, 1);
}

}  // namespace tw
