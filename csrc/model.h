// The packed model as Python describes it (tapwater/ops/packed.py mirrors these structures field by field), and the
// steps a forward pass is made of.
#pragma once

#include <cstdint>

#include "gate.h"
#include "kernels.h"
#include "scratch.h"
#include "threads.h"

namespace tw {

// Matrices a layer does not have are empty (rows = 0), vectors null.
struct Layer {
    const float* input_norm;
    const float* post_attention_norm;
    Matrix q, k, v, o;                           // grouped attention; q (or q_a, q_b) and o of latent attention
    Matrix q_a, q_b, kv_a;                       // latent attention
    Matrix key_up, kv_key, kv_value;             // stacks over heads: W_UK^T [C x N], W_UK [N x C], W_UV [V x C]
    const float* q_a_norm;
    const float* kv_a_norm;
    Matrix gate, up, down;                       // the dense block, or the shared experts
    Matrix expert_gate, expert_up, expert_down;  // stacks over experts
    const float* router;
    const float* router_bias;
};

struct Model {
    int64_t hidden_size, num_layers, num_heads;
    int64_t num_kv_heads, head_dim;              // grouped attention
    int64_t kv_lora_rank, nope, rope, value;     // latent attention; kv_lora_rank is 0 for grouped
    double eps, latent_eps, softmax_scale;
    GateRule gate_rule;
    const Layer* layers;
    Matrix embedding, head;
    const float* norm;
    int64_t positions;
    const float* cos;                            // [positions, rotated pairs]
    const float* sin;
};

// Flat tokens of one step over a paged cache; see CacheView in tapwater/model/context.py.
struct Step {
    int64_t tokens;
    const int64_t* token_ids;
    const int64_t* positions;
    const int64_t* slots;
    int64_t requests, absorbed;                  // the first `absorbed` requests take MLA's absorbed form
    const int64_t* query_lengths;
    const int64_t* context_lengths;
    const int64_t* page_table;
    int64_t pages_per_request;
    uint8_t* pages;                              // [layers, num_pages, page_size, entry_bytes]
    int64_t num_pages, page_size, entry_bytes, layer_bytes;
    int32_t cache_format;                        // a CacheFormat
};

// What a forward pass works with.
struct Run {
    Pool& pool;
    Scratch& scratch;
    const Kernels& kernels;
};

// One product of a list: `out` = x W^T with matrix `index` of the stack.
struct Product {
    const Matrix* matrix;
    int64_t index;
    Activations x;
    Output out;
};

// Room for rows of `columns` numbers, 8-bit, bfloat16 or both; `outliers` in float beside the 8-bit ones.
Activations take_activations(Run& run, int64_t rows, int64_t columns, bool integer, bool bfloat16, bool outliers);
// x [rows, columns] with `stride` floats a row, quantised.
Activations quantised(Run& run, const float* x, int64_t rows, int64_t columns, int64_t stride, bool integer, bool bfloat16);
// norm(x) of every row [rows, columns] quantised, and in float at `normed`.
Activations normalised(Run& run, const float* x, const float* weight, int64_t rows, int64_t columns, double eps,
                       float* normed, bool integer, bool bfloat16);
// All products of a list at once, row-blocks spread over the threads.
void multiply(Run& run, const Product* products, int64_t count);

inline bool is_integer(const Matrix& matrix) { return matrix.rows && matrix.format != kBf16; }
inline bool is_bfloat16(const Matrix& matrix) { return matrix.rows && matrix.format == kBf16; }

// One layer's pages and the segments of an entry: keys then values of all heads, or the latent and the rope key.
struct PagedCache {
    uint8_t* pages;
    CacheSpec spec;
    const Segment* segments;
    int64_t num_segments;
};

PagedCache paged_cache(Run& run, const Model& model, int64_t layer, const Step& step);
void store_entry(Run& run, const PagedCache& cache, int64_t slot, const float* x);
// Attention of the first `requests` requests' new tokens.
void attend(Run& run, const Model& model, const PagedCache& cache, const Step& step, int64_t requests, const float* q,
            const HeadSpec* heads, int64_t num_kv_heads, float* out);

// out = down(silu(gate x) * up x).
void swiglu(Run& run, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& x, const Output& out);

// Each adds its block's output to x [tokens, hidden_size].
void grouped_attention_block(Run& run, const Model& model, int64_t layer, const Step& step, float* x);
void latent_attention_block(Run& run, const Model& model, int64_t layer, const Step& step, float* x);
void dense_block(Run& run, const Model& model, const Layer& layer, int64_t tokens, float* x);
void moe_block(Run& run, const Model& model, const Layer& layer, int64_t tokens, float* x);

// Of every row its logits, the greatest one's token - the lowest of equals -, and whether all are finite numbers; the
// token of a row that is not is 0.
struct Logits {
    float* logits;                               // [rows, vocabulary]
    int64_t* likeliest;
    uint8_t* finite;
};

// Whether every token, position, slot and page of a step is one that there is: nothing else keeps kernels in bounds.
bool is_within(const Model& model, const Step& step);
// The hidden states of a step after the last layer, and the logits of some of its rows.
void forward(Run& run, const Model& model, const Step& step, float* x);
void logits(Run& run, const Model& model, const float* x, int64_t rows, const Logits& out);

}  // namespace tw
