// The C API but for attention.
#include "api.h"

#include <atomic>
#include <exception>

TW_API const char* tw_instruction_set() { return tw::kernels().name; }

// 0 when `name` is an instruction set of this build that this processor runs; it is used from then on.
TW_API int32_t tw_force_instruction_set(const char* name) { return tw::force_kernels(name); }

// Null when that many threads, or their memory, are not to be had.
TW_API void* tw_runner_create(int32_t threads) {
    try {
        return new tw::Runner(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}
TW_API void tw_runner_destroy(void* runner) { delete static_cast<tw::Runner*>(runner); }

// y [rows, outputs] = x W^T.
TW_API int32_t tw_linear(void* runner, const tw::Matrix* matrix, int64_t index, const float* x, int64_t rows, float* y) {
    return tw::guarded(runner, [&](tw::Run& run) {
        const tw::Activations input = tw::quantised(run, x, rows, matrix->columns, matrix->columns,
                                                    tw::is_integer(*matrix), tw::is_bfloat16(*matrix));
        const tw::Product product{matrix, index, input, {y, matrix->rows, nullptr, nullptr, false}};
        tw::multiply(run, &product, 1);
    });
}

// y [rows, hidden] = down(silu(gate x) * up x).
TW_API int32_t tw_swiglu(void* runner, const tw::Matrix* gate, const tw::Matrix* up, const tw::Matrix* down, const float* x,
                         int64_t rows, float* y) {
    return tw::guarded(runner, [&](tw::Run& run) {
        const tw::Activations input =
            tw::quantised(run, x, rows, gate->columns, gate->columns, tw::is_integer(*gate), tw::is_bfloat16(*gate));
        tw::swiglu(run, *gate, *up, *down, input, {y, down->rows, nullptr, nullptr, false});
    });
}

// Hidden states x [tokens, hidden_size] of one step after the last layer, before the final norm; the cache is filled.
// 2, and nothing is touched, when a token, position, slot or page is out of range.
TW_API int32_t tw_forward(void* runner, const tw::Model* model, const tw::Step* step, float* x) {
    if (!tw::is_within(*model, *step)) return 2;
    return tw::guarded(runner, [&](tw::Run& run) { tw::forward(run, *model, *step, x); });
}

// Logits [rows, vocabulary] of rows of hidden states [rows, hidden_size]; of each row the likeliest token, and 1 if all
// its logits are finite.
TW_API int32_t tw_logits(void* runner, const tw::Model* model, const float* x, int64_t rows, float* logits,
                         int64_t* likeliest, uint8_t* finite) {
    return tw::guarded(runner, [&](tw::Run& run) { tw::logits(run, *model, x, rows, {logits, likeliest, finite}); });
}

// Reads `bytes` of memory with all threads.
TW_API int32_t tw_read(void* runner, const uint8_t* from, int64_t bytes) {
    return tw::guarded(runner, [&](tw::Run& run) {
        std::atomic<uint32_t> seen{0};
        tw::parallel_ranges(run.pool, bytes / 4096, [&](int64_t begin, int64_t end) {
            seen ^= run.kernels.read_all(from + begin * 4096, (end - begin) * 4096);
        });
    });
}
