// The paged cache of one layer, as a step sees it.
#include "model.h"

namespace tw {

PagedCache paged_cache(Run& run, const Model& model, int64_t layer, const Step& step) {
    const bool latent = model.kv_lora_rank;
    const int64_t count = latent ? 2 : 2 * model.num_kv_heads;
    Segment* segments = run.scratch.take<Segment>(count);
    // six bits are too few for keys that are attended to as they are: see for_keys in tapwater/ops/cache_format.py
    const int32_t keys = step.cache_format == kCacheQ6 ? int32_t(kCacheQ8) : step.cache_format;
    int64_t offset = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t width = !latent ? model.head_dim : i ? model.rope : model.kv_lora_rank;
        const bool is_key = latent ? i == 1 : i < model.num_kv_heads;
        segments[i] = {offset, width, is_key ? keys : step.cache_format};
        offset += segment_bytes(segments[i].format, width);
    }
    return {step.pages + layer * step.layer_bytes, {step.entry_bytes, step.page_size}, segments, count};
}

void store_entry(Run& run, const PagedCache& cache, int64_t slot, const float* x) {
    uint8_t* entry = cache.pages + slot * cache.spec.entry_bytes;
    for (int64_t i = 0; i < cache.num_segments; ++i) {
        const Segment& segment = cache.segments[i];
        run.kernels.attention->store(segment.format, x, segment.width, entry + segment.offset);
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
