// The paged cache of one layer, as a step sees it.
#include "model.h"

namespace tw {

PagedCache paged_cache(Run& run, const Model& model, int64_t layer, const Step& step) {
    const bool latent = model.kv_lora_rank;
    const int64_t count = latent ? 2 : 2 * model.num_kv_heads;
    Segment* segments = run.scratch.take<Segment>(count);
    int64_t offset = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t width = !latent ? model.head_dim : i ? model.rope : model.kv_lora_rank;
        segments[i] = {offset, width};
        offset += segment_bytes(step.cache_format, width);
    }
    return {step.pages + layer * step.layer_bytes, {step.cache_format, step.entry_bytes, step.page_size}, segments, count};
}

void store_entry(Run& run, const PagedCache& cache, int64_t slot, const float* x) {
    uint8_t* entry = cache.pages + slot * cache.spec.entry_bytes;
    for (int64_t i = 0; i < cache.num_segments; ++i) {
        const Segment& segment = cache.segments[i];
        run.kernels.attention->store(cache.spec.format, x, segment.width, entry + segment.offset);
        x += segment.width;
    }
}

void attend(Run& run, const Model& model, const PagedCache& cache, const Step& step, int64_t requests, const float* q,
            const HeadSpec* heads, int64_t num_kv_heads, float* out) {
    const Requests all{requests, step.query_lengths, step.context_lengths, step.page_table, step.pages_per_request};
    paged_attention(run.pool, run.scratch, *run.kernels.attention, q, model.num_heads, cache.pages, cache.spec, heads,
                    num_kv_heads, all, float(model.softmax_scale), out);
}

}  // namespace tw
