// What training does to rows between matrix products: tapwater/ops/row_loops.py says what each computes. Compiled once per
// instruction set, for float32 and bfloat16 storage; arithmetic is float32. Every function does rows begin..end.
#pragma once

#include <cstdint>

namespace tw {

// Numbers of heads in rows: number i of head h of row t is at data[t * row + h * head + i].
struct Heads {
    void* data;
    int64_t row, head;
};

// Widths of MLA's heads: the parts of queries and keys without and with position, and values.
struct LatentShape {
    int64_t heads, nope, rope, value;
};

struct TrainingLoops {
    void (*rms_norm)(const void* x, int64_t stride, const void* weight, int64_t width, float eps, void* y, float* inverse,
                     int64_t begin, int64_t end);
    // Adds to dweight [width].
    void (*rms_norm_backward)(const void* dy, int64_t dy_stride, const void* x, int64_t stride, const void* weight,
                              const float* inverse, int64_t width, void* dx, float* dweight, int64_t begin, int64_t end);
    void (*silu_product)(const void* gate, const void* up, int64_t width, void* y, int64_t begin, int64_t end);
    void (*silu_product_backward)(const void* gate, const void* up, const void* dy, const float* weight, int64_t width,
                                  void* product, void* dgate, void* dup, float* dweight, int64_t begin, int64_t end);
    void (*combine)(const void* y, const int64_t* rows, int64_t chosen, const float* weights, int64_t width, void* out,
                    int64_t begin, int64_t end);
    // `sign` -1 turns back.
    void (*rotate)(const Heads& x, int64_t heads, int64_t width, const float* cos, const float* sin, float sign,
                   int64_t interleaved, const Heads& y, int64_t begin, int64_t end);
    void (*cross_entropy)(void* logits, int64_t width, const int64_t* targets, float* loss, int64_t begin, int64_t end);
    // Numbers begin..end of total become x, or are added to; returns the sum of their squares.
    double (*add_gradient)(const void* x, int64_t is_first, float* total, int64_t begin, int64_t end);
    void (*round)(const float* x, void* y, int64_t begin, int64_t end);
    // Queries and keys as attention takes them, of queries [T, H, nope + rope], keys and values [T, H, nope + value] and
    // the rope key [T, rope]; values are [T, H, value].
    void (*latent_heads)(const LatentShape& shape, const void* q, const void* kv, const Heads& k_rope, const float* cos,
                         const float* sin, void* q_out, void* k_out, void* v_out, int64_t begin, int64_t end);
    void (*latent_heads_backward)(const LatentShape& shape, const Heads& dq_out, const Heads& dk_out, const Heads& dv_out,
                                  const float* cos, const float* sin, void* dq, void* dkv, void* dk_rope, int64_t begin,
                                  int64_t end);
};

// Causal attention. Widths are of one head; `heads` of queries share `groups` of keys and values.
struct Attention {
    Heads q, k, v, y;
    int64_t heads, groups, key_width, value_width;
    float scale;
};

// Its gradients: queries, keys, values and the gradient of the output come in, three gradients go out.
struct AttentionGradient {
    Heads q, k, v, dy, dq, dk, dv;
    int64_t heads, groups, key_width, value_width;
    float scale;
};

// Each works on the sequence of `length` tokens from `first`; scratch is in floats, a multiple of 16.
struct AttentionKernels {
    // With one head of queries. Null where torch's own is as good.
    void (*forward)(const Attention& of, int64_t first, int64_t length, int64_t head, float* scratch);
    int64_t (*forward_scratch)(const Attention& of, int64_t length);
    // With the heads of queries that share keys `group`.
    void (*backward)(const AttentionGradient& of, int64_t first, int64_t length, int64_t group, float* scratch);
    int64_t (*backward_scratch)(const AttentionGradient& of, int64_t length);
};

enum Storage : int64_t { kFloat32 = 0, kBfloat16 = 1 };

struct TrainingKernels {
    const char* name;
    TrainingLoops loops[2];  // by Storage
    // Rows begin..end of x become columns of y: [rows, width] to [width, rows].
    void (*transpose)(const uint16_t* x, int64_t stride, int64_t rows, int64_t width, uint16_t* y, int64_t begin, int64_t end);
    const AttentionKernels* attention;  // by Storage
};

}  // namespace tw
