// The C API of attention: see api.cpp.
#include "api.h"

// Attention of each request's last query_lengths[b] of context_lengths[b] cached tokens: query heads share key-value
// heads in order. `layouts` has one entry a key-value head; q is [T, query heads, key_width], out [T, query heads,
// value_width]; page_table is [requests, pages_per_request]; state is 2 * query heads floats a token.
TW_API void tw_paged_attention(void* pool_, const float* q, int64_t query_heads, const float* pages, int64_t page_size,
                               const int64_t* page_table, int64_t pages_per_request, const int64_t* query_lengths,
                               const int64_t* context_lengths, int64_t requests, const tw::HeadLayout* layouts,
                               int64_t kv_heads, float scale, float* out, float* state) {
    tw::Pool& pool = *static_cast<tw::Pool*>(pool_);
    const tw::Kernels& kernels = tw::kernels();
    const int64_t heads = query_heads / kv_heads;
    int64_t tokens = 0;
    for (int64_t request = 0; request < requests; ++request) tokens += query_lengths[request];
    tw::parallel(pool, tokens * kv_heads, [&](int64_t part) {
        const int64_t token = part / kv_heads, group = part % kv_heads;
        int64_t request = 0, first = 0;
        while (first + query_lengths[request] <= token) first += query_lengths[request++];
        const int64_t visible = context_lengths[request] - query_lengths[request] + (token - first) + 1;
        const tw::HeadLayout& layout = layouts[group];
        const int64_t at = token * query_heads + group * heads;
        kernels.attention->attend(q + at * layout.key_width, heads, pages, page_size, page_table + request * pages_per_request,
                       visible, layout, scale, out + at * layout.value_width, state + 2 * at);
    });
}

