// See training.h. Compiled once per instruction set (TW_ISA), so nothing of the standard library's templates is used here.
#include "training.h"

#include <cmath>

#include "squares.h"
#include "storage.h"

namespace tw {
namespace TW_ISA {

static inline __attribute__((always_inline)) void transpose_square(const uint16_t* x, int64_t stride, uint16_t* y,
                                                                   int64_t y_stride) {
    u16x16 rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = load<u16x16>(x + i * stride);
    turn(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(y + i * y_stride, rows[i]);
}

static void transpose(const uint16_t* x, int64_t stride, int64_t rows, int64_t width, uint16_t* y, int64_t begin,
                      int64_t end) {
    constexpr int64_t kLine = 2 * kLanes;  // of y, written whole
    for (int64_t row = begin; row < end; row += kLine)
        for (int64_t column = 0; column < width; column += kLanes) {
            const int64_t count = end - row < kLine ? end - row : kLine;
            const int64_t across = width - column < kLanes ? width - column : int64_t(kLanes);
            const uint16_t* from = x + row * stride + column;
            uint16_t* to = y + column * rows + row;
            if (count == kLine && across == kLanes) {
                transpose_square(from, stride, to, rows);
                transpose_square(from + kLanes * stride, stride, to + kLanes, rows);
                continue;
            }
            for (int64_t j = 0; j < across; ++j)
                for (int64_t i = 0; i < count; ++i) to[j * rows + i] = from[i * stride + j];
        }
}

template <typename T>
struct Loops {
    static void rms_norm(const void* x_, int64_t stride, const void* weight_, int64_t width, float eps, void* y_,
                         float* inverse, int64_t begin, int64_t end) {
        const T* weight = (const T*)weight_;
        for (int64_t row = begin; row < end; ++row) {
            const T* x = (const T*)x_ + row * stride;
            T* y = (T*)y_ + row * width;
            f32x16 squares = {};
            for_lanes(width, [&](int64_t i, int64_t count) {
                const f32x16 v = read(x + i, count);
                squares += v * v;
            });
            const float factor = 1 / std::sqrt(sum_lanes(squares) / float(width) + eps);
            inverse[row] = factor;
            for_lanes(width, [&](int64_t i, int64_t count) {
                write(y + i, read(weight + i, count) * (read(x + i, count) * splat(factor)), count);
            });
        }
    }

    static void rms_norm_backward(const void* dy_, int64_t dy_stride, const void* x_, int64_t stride, const void* weight_,
                                  const float* inverse, int64_t width, void* dx_, float* dweight, int64_t begin,
                                  int64_t end) {
        const T* weight = (const T*)weight_;
        for (int64_t row = begin; row < end; ++row) {
            const T *x = (const T*)x_ + row * stride, *dy = (const T*)dy_ + row * dy_stride;
            T* dx = (T*)dx_ + row * width;
            const f32x16 factor = splat(inverse[row]);
            f32x16 products = {};
            for_lanes(width, [&](int64_t i, int64_t count) {
                const f32x16 normed = read(x + i, count) * factor, d = read(dy + i, count);
                products += d * read(weight + i, count) * normed;
                write(dweight + i, read(dweight + i, count) + d * normed, count);
            });
            const f32x16 mean = splat(sum_lanes(products) / float(width));
            for_lanes(width, [&](int64_t i, int64_t count) {
                const f32x16 normed = read(x + i, count) * factor;
                write(dx + i, factor * (read(dy + i, count) * read(weight + i, count) - normed * mean), count);
            });
        }
    }

    static void silu_product(const void* gate_, const void* up_, int64_t width, void* y_, int64_t begin, int64_t end) {
        const T *gate = (const T*)gate_ + begin * width, *up = (const T*)up_ + begin * width;
        T* y = (T*)y_ + begin * width;
        for_lanes((end - begin) * width, [&](int64_t i, int64_t count) {
            const f32x16 g = read(gate + i, count);
            write(y + i, g * sigmoid<T>(g) * read(up + i, count), count);
        });
    }

    static void silu_product_backward(const void* gate_, const void* up_, const void* dy_, const float* weight,
                                      int64_t width, void* product_, void* dgate_, void* dup_, float* dweight,
                                      int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *gate = (const T*)gate_ + row * width, *up = (const T*)up_ + row * width;
            const T* dy = (const T*)dy_ + row * width;
            T *product = (T*)product_ + row * width, *dgate = (T*)dgate_ + row * width, *dup = (T*)dup_ + row * width;
            const f32x16 factor = splat(weight ? weight[row] : 1.0f);
            f32x16 sum = {};
            for_lanes(width, [&](int64_t i, int64_t count) {
                const f32x16 g = read(gate + i, count), u = read(up + i, count), d = read(dy + i, count);
                const f32x16 s = sigmoid<T>(g), silu = g * s;
                const f32x16 y = silu * u, scaled = factor * d;
                sum += y * d;
                write(product + i, factor * y, count);
                write(dgate + i, scaled * u * s * (splat(1.0f) + g * (splat(1.0f) - s)), count);
                write(dup + i, scaled * silu, count);
            });
            if (weight) dweight[row] = sum_lanes(sum);
        }
    }

    static void combine(const void* y_, const int64_t* rows, int64_t chosen, const float* weights, int64_t width,
                        void* out_, int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            T* out = (T*)out_ + token * width;
            for_lanes(width, [&](int64_t i, int64_t count) {
                f32x16 sum = {};
                for (int64_t k = token * chosen; k < (token + 1) * chosen; ++k) {
                    if (rows[k] < 0) continue;
                    const f32x16 y = read((const T*)y_ + rows[k] * width + i, count);
                    sum += weights ? splat(weights[k]) * y : y;
                }
                write(out + i, sum, count);
            });
        }
    }

    // One head. `T` alone may be narrower than float, so results of both numbers of a pair are rounded once.
    static inline __attribute__((always_inline)) void turn(const T* x, int64_t width, const float* cos, const float* sin,
                                                           float sign, bool interleaved, T* y) {
        const int64_t half = width / 2;
        if (!interleaved) {
            for_lanes(half, [&](int64_t i, int64_t count) {
                const f32x16 a = read(x + i, count), b = read(x + half + i, count);
                const f32x16 c = read(cos + i, count), s = read(sin + i, count) * splat(sign);
                write(y + i, a * c - b * s, count);
                write(y + half + i, b * c + a * s, count);
            });
            return;
        }
        for_lanes(half, [&](int64_t i, int64_t count) {
            const int64_t low = 2 * count < kLanes ? 2 * count : int64_t(kLanes), high = 2 * count - low;
            const f32x16 first = read(x + 2 * i, low), second = high ? read(x + 2 * i + kLanes, high) : f32x16{};
            const i32x16 even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
            const f32x16 a = __builtin_shuffle(first, second, even), b = __builtin_shuffle(first, second, even + 1);
            const f32x16 c = read(cos + i, count), s = read(sin + i, count) * splat(sign);
            const f32x16 ra = a * c - b * s, rb = b * c + a * s;
            const i32x16 zip = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
            write(y + 2 * i, __builtin_shuffle(ra, rb, zip), low);
            if (high) write(y + 2 * i + kLanes, __builtin_shuffle(ra, rb, zip + 8), high);
        });
    }

    static void rotate(const Heads& x, int64_t heads, int64_t width, const float* cos, const float* sin, float sign,
                       int64_t interleaved, const Heads& y, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t head = 0; head < heads; ++head)
                turn((const T*)x.data + row * x.row + head * x.head, width, cos + row * (width / 2),
                     sin + row * (width / 2), sign, interleaved, (T*)y.data + row * y.row + head * y.head);
    }

    static void cross_entropy(void* logits, int64_t width, const int64_t* targets, float* loss, int64_t begin,
                              int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            T* x = (T*)logits + row * width;
            const int64_t target = targets[row];
            float chosen = 0;
            for_lanes(1, [&](int64_t, int64_t count) { chosen = read(x + target, count)[0]; });
            f32x16 most = splat(-INFINITY);
            int64_t i = 0;
            for (; i + kLanes <= width; i += kLanes) most = maximum(read(x + i), most);
            float largest = largest_lane(most);
            for (; i < width; ++i) {
                const float v = read(x + i, 1)[0];
                largest = v > largest ? v : largest;
            }
            f32x16 sum = {};
            for (i = 0; i + kLanes <= width; i += kLanes) sum += exponential_for<T>(read(x + i) - splat(largest));
            float total = sum_lanes(sum);
            if (i < width) {
                const f32x16 last = exponential_for<T>(read(x + i, width - i) - splat(largest));
                for (int64_t lane = 0; lane < width - i; ++lane) total += last[lane];
            }
            loss[row] = std::log(total) + largest - chosen;
            const f32x16 factor = splat(1 / total);
            for_lanes(width, [&](int64_t at, int64_t count) {
                f32x16 p = exponential_for<T>(read(x + at, count) - splat(largest)) * factor;
                if (target >= at && target < at + count) p[target - at] -= 1;
                write(x + at, p, count);
            });
        }
    }

    static double add_gradient(const void* x_, int64_t is_first, float* total, int64_t begin, int64_t end) {
        constexpr int64_t kPiece = 4096;  // summed in float32
        const T* x = (const T*)x_;
        double sum = 0;
        for (; begin < end; begin += kPiece) {
            f32x16 squares = {};
            for_lanes(end - begin < kPiece ? end - begin : kPiece, [&](int64_t i, int64_t count) {
                f32x16 v = read(x + begin + i, count);
                if (!is_first) v += read(total + begin + i, count);
                squares += v * v;
                write(total + begin + i, v, count);
            });
            sum += sum_lanes(squares);
        }
        return sum;
    }

    static void round(const float* x, void* y, int64_t begin, int64_t end) {
        for_lanes(end - begin, [&](int64_t i, int64_t count) { write((T*)y + begin + i, read(x + begin + i, count), count); });
    }

    static void latent_heads(const LatentShape& shape, const void* q_, const void* kv_, const Heads& k_rope,
                             const float* cos_, const float* sin_, void* q_out_, void* k_out_, void* v_out_,
                             int64_t begin, int64_t end) {
        const auto [heads, nope, rope, value] = shape;
        const int64_t width = nope + rope;
        for (int64_t row = begin; row < end; ++row) {
            const float *cos = cos_ + row * (rope / 2), *sin = sin_ + row * (rope / 2);
            T* shared = (T*)k_out_ + row * heads * width + nope;  // of head 0, for the others to copy
            turn((const T*)k_rope.data + row * k_rope.row, rope, cos, sin, 1, true, shared);
            for (int64_t head = 0; head < heads; ++head) {
                const int64_t at = (row * heads + head) * width;
                const T *q = (const T*)q_ + at, *kv = (const T*)kv_ + (row * heads + head) * (nope + value);
                T *q_out = (T*)q_out_ + at, *k_out = (T*)k_out_ + at, *v_out = (T*)v_out_ + (row * heads + head) * value;
                std::memcpy(q_out, q, nope * sizeof(T));
                turn(q + nope, rope, cos, sin, 1, true, q_out + nope);
                std::memcpy(k_out, kv, nope * sizeof(T));
                if (head) std::memcpy(k_out + nope, shared, rope * sizeof(T));
                std::memcpy(v_out, kv + nope, value * sizeof(T));
            }
        }
    }

    static void latent_heads_backward(const LatentShape& shape, const Heads& dq_out, const Heads& dk_out,
                                      const Heads& dv_out, const float* cos_, const float* sin_, void* dq_, void* dkv_,
                                      void* dk_rope_, int64_t begin, int64_t end) {
        const auto [heads, nope, rope, value] = shape;
        const int64_t width = nope + rope;
        for (int64_t row = begin; row < end; ++row) {
            const float *cos = cos_ + row * (rope / 2), *sin = sin_ + row * (rope / 2);
            for (int64_t head = 0; head < heads; ++head) {
                const T* q = (const T*)dq_out.data + row * dq_out.row + head * dq_out.head;
                T *dq = (T*)dq_ + (row * heads + head) * width, *dkv = (T*)dkv_ + (row * heads + head) * (nope + value);
                std::memcpy(dq, q, nope * sizeof(T));
                turn(q + nope, rope, cos, sin, -1, true, dq + nope);
                std::memcpy(dkv, (const T*)dk_out.data + row * dk_out.row + head * dk_out.head, nope * sizeof(T));
                std::memcpy(dkv + nope, (const T*)dv_out.data + row * dv_out.row + head * dv_out.head, value * sizeof(T));
            }
            T* dk_rope = (T*)dk_rope_ + row * rope;
            for_lanes(rope, [&](int64_t i, int64_t count) {
                f32x16 sum = {};
                for (int64_t head = 0; head < heads; ++head)
                    sum += read((const T*)dk_out.data + row * dk_out.row + head * dk_out.head + nope + i, count);
                write(dk_rope + i, sum, count);
            });
            turn(dk_rope, rope, cos, sin, -1, true, dk_rope);
        }
    }

    static constexpr TrainingLoops table = {rms_norm, rms_norm_backward, silu_product, silu_product_backward,
                                            combine,  rotate,            cross_entropy, add_gradient,
                                            round,    latent_heads,      latent_heads_backward};
};

#define TW_TEXT(x) #x
#define TW_NAME(x) TW_TEXT(x)
extern const AttentionKernels attention_kernels[2];
extern const TrainingKernels training;
const TrainingKernels training = {TW_NAME(TW_ISA), {Loops<float>::table, Loops<bfloat16>::table}, transpose, attention_kernels};

}  // namespace TW_ISA
}  // namespace tw
