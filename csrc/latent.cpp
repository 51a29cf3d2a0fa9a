// Multi-head Latent Attention over the paged cache, in both forms (report section 2.1 and appendix C).
#include <cstring>

#include "model.h"

namespace tw {

namespace {

struct Queries {
    const float* rows;  // [tokens, heads, nope + rope], rotated
    int64_t width;      // nope + rope
};

// Per head, `columns` numbers of every token's row as activations: x + head * head_stride, rows `stride` apart.
Activations* quantised_heads(Run& run, const float* x, int64_t rows, int64_t heads, int64_t columns, int64_t head_stride,
                             int64_t stride, const Matrix& matrix) {
    Activations* out = run.scratch.take<Activations>(heads);
    for (int64_t head = 0; head < heads; ++head)
        out[head] = take_activations(run, rows, columns, is_integer(matrix), is_bfloat16(matrix), true);
    parallel_ranges(run.pool, heads, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head)
            for (int64_t row = 0; row < rows; ++row)
                run.kernels.quantise(x + head * head_stride + row * stride, columns, out[head], row);
    });
    return out;
}

// One product per head: matrix `head` of the stack, results at y + head * head_stride, rows `stride` apart.
void multiply_heads(Run& run, const Matrix& matrix, const Activations* x, int64_t heads, float* y, int64_t head_stride,
                    int64_t stride) {
    Product* products = run.scratch.take<Product>(heads);
    for (int64_t head = 0; head < heads; ++head)
        products[head] = {&matrix, head, x[head], {y + head * head_stride, stride, nullptr, nullptr, false}};
    multiply(run, products, heads);
}

// q' = [W_UK^T q_nope, q_rope] attends to the cached entries as they are; W_UV makes values of what it attended to.
void absorb(Run& run, const Model& model, const Layer& layer, const PagedCache& cache, const Step& step, int64_t tokens,
            const Queries& q, float* out) {
    const int64_t heads = model.num_heads, rank = model.kv_lora_rank, entry = rank + model.rope;
    const Activations* nope =
        quantised_heads(run, q.rows, tokens, heads, model.nope, q.width, heads * q.width, layer.key_up);
    float* latent_q = run.scratch.take<float>(tokens * heads * entry);
    multiply_heads(run, layer.key_up, nope, heads, latent_q, entry, heads * entry);
    for (int64_t row = 0; row < tokens * heads; ++row)
        std::memcpy(latent_q + row * entry + rank, q.rows + row * q.width + model.nope, model.rope * sizeof(float));

    float* attended = run.scratch.take<float>(tokens * heads * rank);
    const HeadSpec head{{cache.segments[0], cache.segments[1]}, 2, cache.segments[0]};
    attend(run, model, cache, step, step.absorbed, latent_q, &head, 1, attended);
    const Activations* latents =
        quantised_heads(run, attended, tokens, heads, rank, rank, heads * rank, layer.kv_value);
    multiply_heads(run, layer.kv_value, latents, heads, out, model.value, heads * model.value);
}

// A request's cached entries as the up-projections want them: latents quantised, rope keys in float.
struct Context {
    Activations latents;
    float* rope;  // [context, rope]
};

Context read_context(Run& run, const Model& model, const Layer& layer, const PagedCache& cache, const int64_t* page_table,
                     int64_t context) {
    constexpr int64_t kPiece = kMostTileRows;
    const int64_t rank = model.kv_lora_rank, pieces = (context + kPiece - 1) / kPiece;
    const int64_t width = padded_lanes(rank) + padded_lanes(model.rope);
    const Context out{take_activations(run, context, rank, is_integer(layer.kv_key) || is_integer(layer.kv_value),
                                       is_bfloat16(layer.kv_key) || is_bfloat16(layer.kv_value), true),
                      run.scratch.take<float>(context * model.rope)};
    float* rows = run.scratch.take<float>(run.pool.threads() * width);
    const AttentionKernels& kernels = *run.kernels.attention;
    parallel_on_threads(run.pool, pieces, [&](int64_t piece, int thread) {
        float* latent = rows + thread * width;
        float* rope = latent + padded_lanes(rank);
        const int64_t end = (piece + 1) * kPiece < context ? (piece + 1) * kPiece : context;
        for (int64_t position = piece * kPiece; position < end; ++position) {
            const int64_t page = page_table[position / cache.spec.page_size];
            const int64_t slot = page * cache.spec.page_size + position % cache.spec.page_size;
            const uint8_t* entry = cache.pages + slot * cache.spec.entry_bytes;
            kernels.load(cache.segments[0].format, entry + cache.segments[0].offset, rank, latent);
            kernels.load(cache.segments[1].format, entry + cache.segments[1].offset, model.rope, rope);
            run.kernels.quantise(latent, rank, out.latents, position);
            std::memcpy(out.rope + position * model.rope, rope, model.rope * sizeof(float));
        }
    });
    return out;
}

// Positions begin..end of a context: a split is a multiple of the tile of activations.
Activations slice(const Activations& x, int64_t begin, int64_t end) {
    const int64_t at = x.at(begin, 0);
    Activations part{};
    part.rows = end - begin, part.groups = x.groups, part.tile = x.tile;
    if (x.q) {
        part.q = x.q + at * 32, part.scale = x.scale + at, part.sum = x.sum + at, part.total = x.total + at;
        part.outlier = x.outlier + begin * kOutliers, part.outlier_value = x.outlier_value + begin * kOutliers;
    }
    if (x.half) part.half = x.half + at * 32;
    return part;
}

// Keys and values of every head are rebuilt from one request's latents, split by split, and attended to by its queries:
// q and out are those of the request's first new token. One head is the unit of work.
void expand(Run& run, const Model& model, const Layer& layer, const PagedCache& cache, const int64_t* page_table,
            int64_t query_length, int64_t context, const Queries& q, float* out) {
    const Context cached = read_context(run, model, layer, cache, page_table, context);
    const AttentionKernels& kernels = *run.kernels.attention;
    const int64_t heads = model.num_heads, value = model.value, row = q.width + value;  // [K_nope, k_rope, V]
    const HeadSpec spec{{{0, q.width, kCacheFloat32}}, 1, {q.width * int64_t(sizeof(float)), value, kCacheFloat32}};
    const CacheSpec rebuilt{row * int64_t(sizeof(float)), 0};
    const int64_t blocks = (query_length + kMaxRows - 1) / kMaxRows, state_size = kMaxRows * state_floats(value);
    const int64_t split_room = kSplit * row, attend_room = kernels.split_scratch_floats(spec);
    float** rooms = run.scratch.take<float*>(run.pool.threads());
    for (int thread = 0; thread < run.pool.threads(); ++thread)
        rooms[thread] = run.scratch.take<float>(split_room + attend_room + 16 + (blocks + 1) * state_size);

    parallel_on_threads(run.pool, heads, [&](int64_t head, int thread) {
        float* entries = rooms[thread];
        float* states = entries + (split_room + 15) / 16 * 16;
        float* later = states + blocks * state_size;
        float* attend_scratch = later + state_size;
        const auto rows_of = [&](int64_t block) {
            const int64_t first = block * kMaxRows, left = query_length - first;
            return QueryRows{q.rows + head * q.width, heads * q.width, 1, first, left < kMaxRows ? left : kMaxRows,
                             context - query_length + 1, float(model.softmax_scale)};
        };
        for (int64_t begin = 0; begin < context; begin += kSplit) {
            const int64_t end = begin + kSplit < context ? begin + kSplit : context;
            const Activations latents = slice(cached.latents, begin, end);
            run.kernels.linear(layer.kv_key, head, latents, 0, layer.kv_key.row_blocks(), {entries, row, nullptr, nullptr, false});
            run.kernels.linear(layer.kv_value, head, latents, 0, layer.kv_value.row_blocks(),
                               {entries + q.width, row, nullptr, nullptr, false});
            for (int64_t position = begin; position < end; ++position)
                std::memcpy(entries + (position - begin) * row + model.nope, cached.rope + position * model.rope,
                            model.rope * sizeof(float));
            const Entries split{reinterpret_cast<const uint8_t*>(entries), rebuilt, nullptr, begin};
            for (int64_t block = 0; block < blocks; ++block) {
                const QueryRows rows = rows_of(block);
                float* state = states + block * state_size;
                kernels.attend_split(rows, split, &spec, 1, begin, end, attend_scratch, begin ? later : state);
                if (begin) kernels.merge(rows.count, value, later, state);
            }
        }
        for (int64_t block = 0; block < blocks; ++block)
            kernels.finish(rows_of(block), value, states + block * state_size, out + head * value, heads * value);
    });
}

}  // namespace

// x += o(attention) of norm(x); latents and rope keys enter the cache first.
void latent_attention_block(Run& run, const Model& model, int64_t layer_index, const Step& step, float* x) {
    const Layer& layer = model.layers[layer_index];
    const int64_t tokens = step.tokens, heads = model.num_heads, rank = model.kv_lora_rank;
    const int64_t width = model.nope + model.rope, entry = rank + model.rope;
    const Matrix& first = layer.q_a.rows ? layer.q_a : layer.q;
    float* normed = run.scratch.take<float>(tokens * model.hidden_size);
    const Activations input =
        normalised(run, x, layer.input_norm, tokens, model.hidden_size, model.eps, normed,
                   is_integer(first) || is_integer(layer.kv_a), is_bfloat16(first) || is_bfloat16(layer.kv_a));
    float* q = run.scratch.take<float>(tokens * heads * width);
    float* compressed_q = layer.q_a.rows ? run.scratch.take<float>(tokens * first.rows) : q;
    float* kv = run.scratch.take<float>(tokens * entry);
    const Product down[] = {{&first, 0, input, {compressed_q, first.rows, nullptr, nullptr, false}},
                            {&layer.kv_a, 0, input, {kv, entry, nullptr, nullptr, false}}};
    multiply(run, down, 2);
    if (layer.q_a.rows) {
        float* normed_q = run.scratch.take<float>(tokens * first.rows);
        const Activations latent_q = normalised(run, compressed_q, layer.q_a_norm, tokens, first.rows, model.latent_eps,
                                                normed_q, is_integer(layer.q_b), is_bfloat16(layer.q_b));
        const Product up{&layer.q_b, 0, latent_q, {q, heads * width, nullptr, nullptr, false}};
        multiply(run, &up, 1);
    }

    const PagedCache cache = paged_cache(run, model, layer_index, step);
    parallel_ranges(run.pool, tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const float* cos = model.cos + step.positions[token] * (model.rope / 2);
            const float* sin = model.sin + step.positions[token] * (model.rope / 2);
            float* latent = kv + token * entry;
            run.kernels.normalise(latent, layer.kv_a_norm, rank, float(model.latent_eps), latent);
            run.kernels.rotate_interleaved(latent + rank, model.rope, cos, sin);
            store_entry(run, cache, step.slots[token], latent);
            for (int64_t head = 0; head < heads; ++head)
                run.kernels.rotate_interleaved(q + (token * heads + head) * width + model.nope, model.rope, cos, sin);
        }
    });

    float* attended = run.scratch.take<float>(tokens * heads * model.value);
    int64_t generated = 0;
    for (int64_t request = 0; request < step.absorbed; ++request) generated += step.query_lengths[request];
    if (generated) absorb(run, model, layer, cache, step, generated, {q, width}, attended);
    int64_t token = generated;
    for (int64_t request = step.absorbed; request < step.requests; ++request) {
        const Scratch::Mark mark = run.scratch.mark();
        const int64_t count = step.query_lengths[request];
        expand(run, model, layer, cache, step.page_table + request * step.pages_per_request, count,
               step.context_lengths[request], {q + token * heads * width, width}, attended + token * heads * model.value);
        run.scratch.rewind(mark);
        token += count;
    }
    const Activations output = quantised(run, attended, tokens, heads * model.value, heads * model.value,
                                         is_integer(layer.o), is_bfloat16(layer.o));
    const Product o{&layer.o, 0, output, {x, model.hidden_size, nullptr, nullptr, true}};
    multiply(run, &o, 1);
}

}  // namespace tw
