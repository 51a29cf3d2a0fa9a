// What Python calls, by ctypes: plain C, pointers and sizes, nothing allocated that outlives a call but the pool.
#include "api.h"

namespace {

constexpr int64_t kLanes = 16;

// Row-blocks a thread takes at a time: enough to amortise the hand-over, few enough that both cores end together.
int64_t part_size(int64_t row_blocks, int threads) {
    const int64_t size = row_blocks / (threads * 4);
    return size < 1 ? 1 : size;
}

}  // namespace

TW_API const char* tw_instruction_set() { return tw::kernels().name; }

// 0 when `name` is an instruction set of this build that this processor runs; it is used from then on.
TW_API int32_t tw_force_instruction_set(const char* name) { return tw::force_kernels(name); }

TW_API void* tw_pool_create(int32_t threads) { return new tw::Pool(threads); }
TW_API void tw_pool_destroy(void* pool) { delete static_cast<tw::Pool*>(pool); }

TW_API void tw_quantise(const float* x, int64_t rows, int64_t columns, int64_t groups, int8_t* q, float* scale,
                        int32_t* sum) {
    tw::kernels().quantise(x, rows, columns, groups, q, scale, sum);
}

// y [rows, outputs] = x W^T, x quantised into the scratch the caller brings.
TW_API void tw_linear(void* pool_, int32_t format, const uint8_t* weights, int64_t outputs, const float* x, int64_t rows,
                      int64_t columns, int8_t* q, float* scale, int32_t* sum, float* y) {
    tw::Pool& pool = *static_cast<tw::Pool*>(pool_);
    const tw::Kernels& kernels = tw::kernels();
    const int64_t groups = (columns + 31) / 32, row_blocks = (outputs + kLanes - 1) / kLanes;
    const int64_t tiles = (rows + tw::kTileRows - 1) / tw::kTileRows;
    tw::parallel(pool, tiles, [&](int64_t tile) {
        const int64_t first = tile * tw::kTileRows, count = rows - first < tw::kTileRows ? rows - first : tw::kTileRows;
        const int64_t at = tile * groups * tw::kTileRows;
        kernels.quantise(x + first * columns, count, columns, groups, q + at * 32, scale + at, sum + at);
    });
    const tw::Activations activations{q, scale, sum, rows, groups};
    const int64_t size = part_size(row_blocks, pool.threads());
    tw::parallel(pool, (row_blocks + size - 1) / size, [&](int64_t part) {
        const int64_t begin = part * size, end = begin + size < row_blocks ? begin + size : row_blocks;
        kernels.linear(tw::Format(format), weights, activations, begin, end, y, outputs, outputs);
    });
}
