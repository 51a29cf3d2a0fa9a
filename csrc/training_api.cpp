// The C API of training.h, rows shared out to the threads of OpenMP: torch's own, which would fight a second pool.
//
// Thread i of n takes the i-th of n equal parts, so results are the same bits for the same number of threads. Attention takes
// sequences as they come: nothing is added across them.
#include <omp.h>

#include <atomic>
#include <cstring>

#include "processor.h"
#include "training.h"

#if defined(_WIN32)
#define TW_API extern "C" __declspec(dllexport)
#else
#define TW_API extern "C" __attribute__((visibility("default")))
#endif

namespace tw {

#if defined(TW_HAS_AMX)
namespace amx {
extern const TrainingKernels training;
}
#endif
#if defined(TW_HAS_AVX512_BF16)
namespace avx512_bf16 {
extern const TrainingKernels training;
}
#endif
#if defined(TW_HAS_AVX512)
namespace avx512 {
extern const TrainingKernels training;
}
#endif
#if defined(TW_HAS_AVX2)
namespace avx2 {
extern const TrainingKernels training;
}
#endif
namespace portable {
extern const TrainingKernels training;
}

struct Choice {
    const TrainingKernels* table;
    bool runs;
};

static const TrainingKernels* find(const char* name) {  // null: the best
    const Choice list[] = {
#if defined(TW_HAS_AMX)
        {&amx::training, has_amx()},
#endif
#if defined(TW_HAS_AVX512_BF16)
        {&avx512_bf16::training, has_avx512_bf16()},
#endif
#if defined(TW_HAS_AVX512)
        {&avx512::training, has_avx512()},
#endif
#if defined(TW_HAS_AVX2)
        {&avx2::training, has_avx2()},
#endif
        {&portable::training, true},
    };
    for (const Choice& each : list)
        if (each.runs && (!name || !std::strcmp(name, each.table->name))) return each.table;
    return nullptr;
}

static std::atomic<const TrainingKernels*> chosen{find(nullptr)};

// Runs f(begin, end, part) for `threads` parts of 0..rows; fewer numbers than are worth waking a thread for stay here.
template <typename F>
static void in_parts(int64_t threads, int64_t rows, int64_t width, F&& f) {
    const int64_t parts = rows * width < 16384 ? 1 : threads, size = (rows + parts - 1) / parts;
#pragma omp parallel for num_threads(int(parts)) schedule(static, 1) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * size, end = begin + size < rows ? begin + size : rows;
        if (begin < end) f(begin, end, part);
    }
}

// Runs f(first token, length, part) for all `parts` of every sequence, as threads get to them.
template <typename F>
static void for_sequences(int64_t threads, int64_t sequences, int64_t parts, const int64_t* bounds, F&& f) {
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 1)
    for (int64_t unit = 0; unit < sequences * parts; ++unit) {
        const int64_t sequence = unit / parts, first = bounds[sequence];
        f(first, bounds[sequence + 1] - first, unit % parts);
    }
}

static const TrainingLoops& loops(int64_t storage) { return chosen.load(std::memory_order_relaxed)->loops[storage]; }
static const AttentionKernels& attention(int64_t storage) { return chosen.load()->attention[storage]; }

}  // namespace tw

using tw::Heads;
using tw::in_parts;
using tw::loops;

TW_API const char* tw_training_set() { return tw::chosen.load()->name; }
TW_API int32_t tw_training_force(const char* name) {
    const tw::TrainingKernels* table = tw::find(name);
    if (table) tw::chosen.store(table);
    return table ? 0 : 1;
}

TW_API void tw_transpose(int64_t threads, int64_t rows, int64_t width, const uint16_t* x, int64_t stride, uint16_t* y) {
    const int64_t lines = (rows + 31) / 32;  // so that no two threads write to the same
    in_parts(threads, lines, 32 * width, [&](int64_t begin, int64_t end, int64_t) {
        tw::chosen.load()->transpose(x, stride, rows, width, y, 32 * begin, 32 * end < rows ? 32 * end : rows);
    });
}

TW_API void tw_rms_norm(int64_t threads, int64_t storage, int64_t rows, int64_t width, const void* x, int64_t stride,
                        const void* weight, float eps, void* y, float* inverse) {
    in_parts(threads, rows, width, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).rms_norm(x, stride, weight, width, eps, y, inverse, begin, end);
    });
}

// `dweights` is [threads, width]: the sum of each part of the rows. Zero before.
TW_API void tw_rms_norm_backward(int64_t threads, int64_t storage, int64_t rows, int64_t width, const void* dy,
                                 int64_t dy_stride, const void* x, int64_t stride, const void* weight, const float* inverse,
                                 void* dx, float* dweights) {
    in_parts(threads, rows, width, [&](int64_t begin, int64_t end, int64_t part) {
        loops(storage).rms_norm_backward(dy, dy_stride, x, stride, weight, inverse, width, dx, dweights + part * width,
                                         begin, end);
    });
}

TW_API void tw_silu_product(int64_t threads, int64_t storage, int64_t rows, int64_t width, const void* gate, const void* up,
                            void* y) {
    in_parts(threads, rows, width, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).silu_product(gate, up, width, y, begin, end);
    });
}

TW_API void tw_silu_product_backward(int64_t threads, int64_t storage, int64_t rows, int64_t width, const void* gate,
                                     const void* up, const void* dy, const float* weight, void* product, void* dgate,
                                     void* dup, float* dweight) {
    in_parts(threads, rows, width, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).silu_product_backward(gate, up, dy, weight, width, product, dgate, dup, dweight, begin, end);
    });
}

TW_API void tw_gather(int64_t threads, int64_t row_bytes, int64_t rows, const char* x, int64_t stride_bytes,
                      const int64_t* row, char* y) {
    in_parts(threads, rows, row_bytes, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i)
            if (row[i] < 0)
                std::memset(y + i * row_bytes, 0, row_bytes);
            else
                std::memcpy(y + i * row_bytes, x + row[i] * stride_bytes, row_bytes);
    });
}

TW_API void tw_combine(int64_t threads, int64_t storage, int64_t tokens, int64_t width, const void* y, const int64_t* rows,
                       int64_t chosen, const float* weights, void* out) {
    in_parts(threads, tokens, width * chosen, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).combine(y, rows, chosen, weights, width, out, begin, end);
    });
}

TW_API void tw_rotate(int64_t threads, int64_t storage, int64_t rows, int64_t heads, int64_t width, const Heads* x,
                      const float* cos, const float* sin, float sign, int64_t interleaved, const Heads* y) {
    in_parts(threads, rows, heads * width, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).rotate(*x, heads, width, cos, sin, sign, interleaved, *y, begin, end);
    });
}

TW_API void tw_cross_entropy(int64_t threads, int64_t storage, int64_t rows, int64_t width, void* logits,
                             const int64_t* targets, float* loss) {
    in_parts(threads, rows, width, [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).cross_entropy(logits, width, targets, loss, begin, end);
    });
}

// `squares` is [threads]: the sum of each part. Zero before.
TW_API void tw_add_gradient(int64_t threads, int64_t storage, int64_t count, const void* x, int64_t is_first, float* total,
                            double* squares) {
    in_parts(threads, count, 1, [&](int64_t begin, int64_t end, int64_t part) {
        squares[part] = loops(storage).add_gradient(x, is_first, total, begin, end);
    });
}

TW_API void tw_round(int64_t threads, int64_t storage, int64_t count, const float* x, void* y) {
    in_parts(threads, count, 1, [&](int64_t begin, int64_t end, int64_t) { loops(storage).round(x, y, begin, end); });
}

// Whether this processor has a kernel for the forward pass.
TW_API int32_t tw_has_attention(int64_t storage) { return tw::attention(storage).forward != nullptr; }

// Floats of scratch a thread needs for sequences of at most `length`.
TW_API int64_t tw_attention_scratch(int64_t storage, const tw::Attention* of, int64_t length) {
    return tw::attention(storage).forward_scratch(*of, length);
}
TW_API int64_t tw_attention_backward_scratch(int64_t storage, const tw::AttentionGradient* of, int64_t length) {
    return tw::attention(storage).backward_scratch(*of, length);
}

// Sequence i is tokens bounds[i] .. bounds[i + 1] - 1; `scratch` is [threads, floats].
TW_API void tw_attention(int64_t threads, int64_t storage, const tw::Attention* of, int64_t sequences, const int64_t* bounds,
                         float* scratch, int64_t floats) {
    tw::for_sequences(threads, sequences, of->heads, bounds, [&](int64_t first, int64_t length, int64_t head) {
        tw::attention(storage).forward(*of, first, length, head, scratch + omp_get_thread_num() * floats);
    });
}
TW_API void tw_attention_backward(int64_t threads, int64_t storage, const tw::AttentionGradient* of, int64_t sequences,
                                  const int64_t* bounds, float* scratch, int64_t floats) {
    tw::for_sequences(threads, sequences, of->groups, bounds, [&](int64_t first, int64_t length, int64_t group) {
        tw::attention(storage).backward(*of, first, length, group, scratch + omp_get_thread_num() * floats);
    });
}

TW_API void tw_latent_heads(int64_t threads, int64_t storage, int64_t rows, const tw::LatentShape* shape, const void* q,
                            const void* kv, const Heads* k_rope, const float* cos, const float* sin, void* q_out,
                            void* k_out, void* v_out) {
    in_parts(threads, rows, shape->heads * (shape->nope + shape->rope), [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).latent_heads(*shape, q, kv, *k_rope, cos, sin, q_out, k_out, v_out, begin, end);
    });
}

TW_API void tw_latent_heads_backward(int64_t threads, int64_t storage, int64_t rows, const tw::LatentShape* shape,
                                     const Heads* dq_out, const Heads* dk_out, const Heads* dv_out, const float* cos,
                                     const float* sin, void* dq, void* dkv, void* dk_rope) {
    in_parts(threads, rows, shape->heads * (shape->nope + shape->rope), [&](int64_t begin, int64_t end, int64_t) {
        loops(storage).latent_heads_backward(*shape, *dq_out, *dk_out, *dv_out, cos, sin, dq, dkv, dk_rope, begin, end);
    });
}
