// A step through all layers.
#include "model.h"

namespace tw {

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

void logits(Run& run, const Model& model, const float* x, int64_t rows, float* out) {
    const Matrix& head = model.head;
    float* normed = run.scratch.take<float>(rows * model.hidden_size);
    const Activations input = normalised(run, x, model.norm, rows, model.hidden_size, model.eps, normed, is_integer(head),
                                         is_bfloat16(head));
    const Product product{&head, 0, input, {out, head.rows, nullptr, nullptr, false}};
    multiply(run, &product, 1);
}

}  // namespace tw
