// Activations, lists of products, and the dense feed-forward block.
#include "model.h"

namespace tw {

Activations take_activations(Run& run, int64_t rows, int64_t columns, bool integer, bool bfloat16, bool outliers) {
    Activations x{};
    x.rows = rows, x.groups = (columns + 31) / 32, x.tile = Activations::tile_for(rows);
    const int64_t whole_rows = (rows + x.tile - 1) / x.tile * x.tile, padded = whole_rows * x.groups;
    if (integer) {
        x.q = run.scratch.take<int8_t>(padded * 32);
        x.scale = run.scratch.take<float>(padded);
        x.sum = run.scratch.take<int32_t>(padded);
        x.total = run.scratch.take<float>(padded);
    }
    if (integer && outliers) {
        x.outlier = run.scratch.take<int32_t>(rows * kOutliers);
        x.outlier_value = run.scratch.take<float>(rows * kOutliers);
    }
    if (bfloat16) x.half = run.scratch.take<uint16_t>(padded * 32);
    return x;
}

// f(row) for every row, four neighbours at a time.
template <typename F>
static void for_rows(Run& run, int64_t rows, F&& f) {
    constexpr int64_t kTogether = 4;
    parallel_ranges(run.pool, (rows + kTogether - 1) / kTogether, [&](int64_t begin, int64_t end) {
        const int64_t last = end * kTogether < rows ? end * kTogether : rows;
        for (int64_t row = begin * kTogether; row < last; ++row) f(row);
    });
}

Activations quantised(Run& run, const float* x, int64_t rows, int64_t columns, int64_t stride, bool integer, bool bfloat16) {
    const Activations out = take_activations(run, rows, columns, integer, bfloat16, true);
    for_rows(run, rows, [&](int64_t row) { run.kernels.quantise(x + row * stride, columns, out, row); });
    return out;
}

Activations normalised(Run& run, const float* x, const float* weight, int64_t rows, int64_t columns, double eps,
                       float* normed, bool integer, bool bfloat16) {
    const Activations out = take_activations(run, rows, columns, integer, bfloat16, true);
    for_rows(run, rows, [&](int64_t row) {
        run.kernels.normalise(x + row * columns, weight, columns, float(eps), normed + row * columns);
        run.kernels.quantise(normed + row * columns, columns, out, row);
    });
    return out;
}

void multiply(Run& run, const Product* products, int64_t count) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += products[i].matrix->row_blocks();
    parallel_ranges(run.pool, total, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0, first = 0; i < count && first < end; ++i) {
            const Product& product = products[i];
            const int64_t blocks = product.matrix->row_blocks();
            const int64_t from = begin > first ? begin - first : 0, to = end - first < blocks ? end - first : blocks;
            if (from < to) run.kernels.linear(*product.matrix, product.index, product.x, from, to, product.out);
            first += blocks;
        }
    });
}

void swiglu(Run& run, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& x, const Output& out) {
    const Activations hidden = take_activations(run, x.rows, down.columns, is_integer(down), is_bfloat16(down), false);
    parallel_ranges(run.pool, hidden.groups,
                    [&](int64_t begin, int64_t end) { run.kernels.gate_up(gate, up, 0, x, begin, end, hidden); });
    const Product product{&down, 0, hidden, out};
    multiply(run, &product, 1);
}

// x += down(silu(gate n) * up n) with n = norm(x).
void dense_block(Run& run, const Model& model, const Layer& layer, int64_t tokens, float* x) {
    const int64_t width = model.hidden_size;
    float* normed = run.scratch.take<float>(tokens * width);
    const Activations input = normalised(run, x, layer.post_attention_norm, tokens, width, model.eps, normed,
                                         is_integer(layer.gate), is_bfloat16(layer.gate));
    swiglu(run, layer.gate, layer.up, layer.down, input, {x, width, nullptr, nullptr, true});
}

}  // namespace tw
