// The parts of a decoder block that are not matrix products: each a single pass over memory, in float32 whatever the type,
// rounded once. On the CPU they are the loops below; elsewhere, and where `plain` asks for it, the same sums out of libtorch's
// operations. Both forms save the same tensors for backward.

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "shim.h"

namespace {

using at::Tensor;
using namespace zf;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows are added up by each thread on its own, then the threads' sums in order.
struct Partial {
  std::vector<float> sums;
  int64_t width;

  explicit Partial(int64_t width) : sums(at::get_num_threads() * width, 0.0f), width(width) {}

  float* mine() {
    auto begin = at::get_thread_num() * width;
    check(begin + width <= static_cast<int64_t>(sums.size()), "more threads than libtorch tells of: two OpenMP libraries");
    return sums.data() + begin;
  }

  Tensor total(const at::TensorOptions& options) {
    for (size_t part = width; part < sums.size(); ++part) sums[part % width] += sums[part];
    auto result = at::empty({width}, options);
    of_type(result.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto* to = result.data_ptr<T>();
      for (int64_t i = 0; i < width; ++i) to[i] = zf_round<T>(sums[i]);
    });
    return result;
  }
};

// --- RMSNorm: y = x / sqrt(mean(x²) + ε) · (w + offset) ---

template <class T>
struct NormForward {
  ZF_INLINE void run(const T* x, const T* weight, T* y, float* scales, int64_t rows, int64_t width, float epsilon,
                     float offset) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
      float sum = 0;
      #pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) sum += zf_widen(x[i]) * zf_widen(x[i]);
      float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + epsilon);
      #pragma omp simd
      for (int64_t i = 0; i < width; ++i) y[i] = zf_round<T>(zf_widen(x[i]) * scale * (zf_widen(weight[i]) + offset));
      scales[row] = scale;
    }
  }
};

// With g the gradient of y, r the scale and w with its offset: dx = r·(g·w) − x · r³ · mean(g·w·x), dw = Σ over rows of g·x·r.
template <class T>
struct NormBackward {
  ZF_INLINE void run(const T* g, const T* x, const T* weight, const float* scales, T* dx, float* dw, int64_t rows,
                     int64_t width, float offset) {
    for (int64_t row = 0; row < rows; ++row, g += width, x += width, dx += width) {
      float dot = 0, scale = scales[row];
      #pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < width; ++i) dot += zf_widen(g[i]) * (zf_widen(weight[i]) + offset) * zf_widen(x[i]);
      float factor = dot * scale * scale * scale / static_cast<float>(width);
      #pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        float scaled = zf_widen(g[i]) * scale;
        dw[i] += scaled * zf_widen(x[i]);
        dx[i] = zf_round<T>(scaled * (zf_widen(weight[i]) + offset) - zf_widen(x[i]) * factor);
      }
    }
  }
};

struct Norm : Function<Norm> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, double epsilon, double offset,
                        bool plain) {
    auto width = x.size(-1);
    check(weight.numel() == width && weight.is_contiguous() && weight.scalar_type() == x.scalar_type(),
          "RMSNorm: the weight does not fit the input");
    Tensor input = x.contiguous(), y, scales;
    if (by_loops(x, plain)) {
      y = at::empty_like(input);
      auto rows = input.numel() / std::max<int64_t>(1, width);
      scales = at::empty({rows}, input.options().dtype(at::kFloat));
      of_type(x.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T *from = input.data_ptr<T>(), *by = weight.data_ptr<T>();
        T* to = y.data_ptr<T>();
        float* kept = scales.data_ptr<float>();
        zf_parallel(rows, width, [&](int64_t begin, int64_t end) {
          zf_run<NormForward<T>>(from + begin * width, by, to + begin * width, kept + begin, end - begin, width,
                                 static_cast<float>(epsilon), static_cast<float>(offset));
        });
      });
    } else {
      auto wide = input.to(wide_type(input));
      scales = wide.square().mean({-1}, /*keepdim=*/true).add_(epsilon).rsqrt_();
      y = (wide * scales).mul_(with_offset(weight, offset)).to(x.scalar_type());
    }
    context->save_for_backward({input, weight, scales});
    context->saved_data["plain"] = plain;
    context->saved_data["offset"] = offset;
    return y;
  }

  // Operations widen 16-bit weights by themselves; with an offset they are widened first, so that the sum is not rounded.
  static Tensor with_offset(const Tensor& weight, double offset) {
    return offset == 0 ? weight : weight.to(wide_type(weight)) + offset;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &scales = saved[2];
    auto gradient = gradients[0].contiguous();
    auto width = x.size(-1);
    auto offset = context->saved_data["offset"].toDouble();
    Tensor dx, dw;
    if (by_loops(x, context->saved_data["plain"].toBool())) {
      dx = at::empty_like(x);
      Partial partial(width);
      of_type(x.scalar_type(), [&](auto zero) {
        using T = decltype(zero);
        const T *g = gradient.data_ptr<T>(), *from = x.data_ptr<T>(), *by = weight.data_ptr<T>();
        T* to = dx.data_ptr<T>();
        const float* kept = scales.data_ptr<float>();
        zf_parallel(scales.numel(), width, [&](int64_t begin, int64_t end) {
          zf_run<NormBackward<T>>(g + begin * width, from + begin * width, by, kept + begin, to + begin * width,
                                  partial.mine(), end - begin, width, static_cast<float>(offset));
        });
      });
      if (context->needs_input_grad(1)) dw = partial.total(weight.options());
    } else {
      // `to` may give the tensor itself, so nothing is written into before a product made it anew.
      auto normalized = x.to(wide_type(x)) * scales;
      auto wide = gradient.to(wide_type(x));
      if (context->needs_input_grad(1)) dw = (wide * normalized).reshape({-1, width}).sum(0).to(weight.scalar_type());
      wide = wide * with_offset(weight, offset);
      auto mean = (wide * normalized).mean({-1}, /*keepdim=*/true);
      dx = wide.sub_(normalized.mul_(mean)).mul_(scales).to(x.scalar_type());
    }
    return {dx, dw, Tensor(), Tensor(), Tensor()};
  }
};

// --- Gated linear units: a(gate) · up, gate and up side by side, where a(x) = x · sigmoid(inner(x)) ---

// inner(x) = x.
struct Silu {
  ZF_INLINE float inner(float x) { return x; }
  ZF_INLINE float slope(float) { return 1.0f; }
};

// GELU by its approximation with tanh: x · ½ · (1 + tanh(√(2/π) · (x + 0.044715 x³))), and ½ · (1 + tanh(y)) is sigmoid(2 y).
struct GeluTanh {
  ZF_INLINE float inner(float x) { return 1.5957691216057308f * (x + 0.044715f * x * x * x); }
  ZF_INLINE float slope(float x) { return 1.5957691216057308f * (1.0f + 3.0f * 0.044715f * x * x); }
};

template <class T, class Activation>
struct GatedForward {
  ZF_INLINE void run(const T* gate_up, T* gated, int64_t rows, int64_t inner) {
    for (int64_t row = 0; row < rows; ++row, gate_up += 2 * inner, gated += inner) {
      const T *gates = gate_up, *ups = gate_up + inner;
      #pragma omp simd
      for (int64_t i = 0; i < inner; ++i) {
        float gate = zf_widen(gates[i]);
        gated[i] = zf_round<T>(gate * zf_sigmoid(Activation::inner(gate)) * zf_widen(ups[i]));
      }
    }
  }
};

template <class T, class Activation>
struct GatedBackward {
  ZF_INLINE void run(const T* g, const T* gate_up, T* gradient, int64_t rows, int64_t inner) {
    for (int64_t row = 0; row < rows; ++row, g += inner, gate_up += 2 * inner, gradient += 2 * inner) {
      const T *gates = gate_up, *ups = gate_up + inner;
      T *of_gates = gradient, *of_ups = gradient + inner;
      #pragma omp simd
      for (int64_t i = 0; i < inner; ++i) {
        float gate = zf_widen(gates[i]), sigmoid = zf_sigmoid(Activation::inner(gate)), seed = zf_widen(g[i]);
        float slope = sigmoid * (1.0f + gate * (1.0f - sigmoid) * Activation::slope(gate));
        of_gates[i] = zf_round<T>(seed * zf_widen(ups[i]) * slope);
        of_ups[i] = zf_round<T>(seed * gate * sigmoid);
      }
    }
  }
};

struct Gated : Function<Gated> {
  static Tensor forward(AutogradContext* context, const Tensor& both, bool gelu, bool plain) {
    auto gate_up = both.contiguous();
    auto inner = gate_up.size(-1) / 2;
    check(gate_up.size(-1) == 2 * inner, "gated linear unit: gate and up are not of one width");
    context->save_for_backward({gate_up});
    context->saved_data["plain"] = plain;
    context->saved_data["gelu"] = gelu;
    if (!by_loops(gate_up, plain)) {
      auto parts = gate_up.chunk(2, -1);
      return (gelu ? at::gelu(parts[0], "tanh") : at::silu(parts[0])).mul_(parts[1]);
    }
    auto shape = gate_up.sizes().vec();
    shape.back() = inner;
    auto gated = at::empty(shape, gate_up.options());
    of_type(gate_up.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const T* from = gate_up.data_ptr<T>();
      T* to = gated.data_ptr<T>();
      zf_parallel(gated.numel() / std::max<int64_t>(1, inner), inner, [&](int64_t begin, int64_t end) {
        const T* begin_from = from + begin * 2 * inner;
        if (gelu) {
          zf_run<GatedForward<T, GeluTanh>>(begin_from, to + begin * inner, end - begin, inner);
        } else {
          zf_run<GatedForward<T, Silu>>(begin_from, to + begin * inner, end - begin, inner);
        }
      });
    });
    return gated;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto gate_up = context->get_saved_variables()[0];
    auto seed = gradients[0].contiguous();
    auto inner = seed.size(-1);
    bool gelu = context->saved_data["gelu"].toBool();
    auto gradient = at::empty_like(gate_up);
    if (!by_loops(gate_up, context->saved_data["plain"].toBool())) {
      auto parts = gate_up.chunk(2, -1);
      auto halves = gradient.chunk(2, -1);
      // Straight into their places and in the input's type, since memory is at its fullest here.
      if (gelu) {
        at::gelu_backward_out(halves[0], seed * parts[1], parts[0], "tanh");
        at::mul_out(halves[1], at::gelu(parts[0], "tanh"), seed);
      } else {
        at::silu_backward_out(halves[0], seed * parts[1], parts[0]);
        at::mul_out(halves[1], at::silu(parts[0]), seed);
      }
      return {gradient, Tensor(), Tensor()};
    }
    of_type(gate_up.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const T *g = seed.data_ptr<T>(), *from = gate_up.data_ptr<T>();
      T* to = gradient.data_ptr<T>();
      zf_parallel(seed.numel() / std::max<int64_t>(1, inner), inner, [&](int64_t begin, int64_t end) {
        const T *seeds = g + begin * inner, *begin_from = from + begin * 2 * inner;
        if (gelu) {
          zf_run<GatedBackward<T, GeluTanh>>(seeds, begin_from, to + begin * 2 * inner, end - begin, inner);
        } else {
          zf_run<GatedBackward<T, Silu>>(seeds, begin_from, to + begin * 2 * inner, end - begin, inner);
        }
      });
    });
    return {gradient, Tensor(), Tensor()};
  }
};

// --- Rotary position embedding, which also parts queries, keys and values ---

enum Layout { BY_POSITION, BY_HEAD, GROUPED };

// Where the heads of one position lie: all side by side in the projection, and by head, then position, in each part.
struct Heads {
  int64_t length, heads, key_heads, width;

  int64_t all() const { return heads + 2 * key_heads; }
};

// Query, key or value [rows, heads, T, D], or queries by group [rows, groups, T, sharing, D], or its gradient: the elements
// of a head lie side by side.
template <class T>
struct Part {
  T* data;
  int64_t row, group, position, sharing = 1, within = 0;

  explicit Part(const Tensor& tensor)
      : data(tensor.data_ptr<T>()), row(tensor.stride(0)), group(tensor.stride(1)), position(tensor.stride(2)) {
    if (tensor.dim() == 5) sharing = tensor.size(3), within = tensor.stride(3);
  }

  inline __attribute__((always_inline)) T* of(int64_t row_number, int64_t head, int64_t place) const {
    return data + row_number * row + head / sharing * group + head % sharing * within + place * position;
  }
};

template <class T, bool backward>
struct Turn {
  // Forward reads `projected` and writes the parts; backward the other way, turning back.
  ZF_INLINE void run(T* projected, Part<T> query, Part<T> key, Part<T> value, const float* cosines, const float* sines,
                     Heads shape, int64_t half, int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      int64_t row = place / shape.length, position = place % shape.length;
      const float *cosine = cosines + position * half, *sine = sines + position * half;
      T* beside = projected + place * shape.all() * shape.width;
      for (int64_t head = 0; head < shape.all(); ++head, beside += shape.width) {
        bool turned = head < shape.heads + shape.key_heads;
        const Part<T>& part = head < shape.heads ? query : (turned ? key : value);
        int64_t number = head < shape.heads ? head : (head - shape.heads) % shape.key_heads;
        T* apart = part.of(row, number, position);
        const T* from = backward ? apart : beside;
        T* to = backward ? beside : apart;
        if (!turned) {
          std::copy_n(from, shape.width, to);
          continue;
        }
        #pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          float first = zf_widen(from[i]), second = zf_widen(from[i + half]);
          float cos = cosine[i], sin = backward ? -sine[i] : sine[i];
          to[i] = zf_round<T>(first * cos - second * sin);
          to[i + half] = zf_round<T>(second * cos + first * sin);
        }
        std::copy(from + 2 * half, from + shape.width, to + 2 * half);
      }
    }
  }
};

template <bool backward>
void turn(const Tensor& projected, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cosines,
          const Tensor& sines, Heads shape) {
  of_type(projected.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* all = projected.data_ptr<T>();
    Part<T> q(query), k(key), v(value);
    const float *cos = cosines.data_ptr<float>(), *sin = sines.data_ptr<float>();
    auto width = shape.all() * shape.width;
    zf_parallel(projected.numel() / std::max<int64_t>(1, width), width, [&](int64_t begin, int64_t end) {
      zf_run<Turn<T, backward>>(all, q, k, v, cos, sin, shape, cosines.size(1), begin, end);
    });
  });
}

// [rows, T, heads, D] turned by tables [T, turned/2], in float32.
Tensor turned_plainly(const Tensor& heads, const Tensor& cosines, const Tensor& sines) {
  auto half = cosines.size(1), rest = heads.size(-1) - 2 * half;
  if (half == 0) return heads.clone();
  auto wide = heads.narrow(-1, 0, 2 * half).to(wide_type(heads));
  auto halves = wide.chunk(2, -1);
  auto cos = cosines.unsqueeze(1), sin = sines.unsqueeze(1);
  auto turned =
      at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1).to(heads.scalar_type());
  return rest == 0 ? turned : at::cat({turned, heads.narrow(-1, 2 * half, rest)}, -1);
}

struct Rotary : Function<Rotary> {
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& cosines, const Tensor& sines,
                               int64_t heads, int64_t key_heads, int layout, bool plain) {
    auto projected = input.contiguous();
    auto rows = projected.size(0), length = projected.size(1);
    Heads shape{length, heads, key_heads, projected.size(2) / (heads + 2 * key_heads)};
    check(shape.width % 2 == 0 && shape.all() * shape.width == projected.size(2), "rotary: heads do not fit the projection");
    check(cosines.is_contiguous() && sines.is_contiguous() && cosines.dim() == 2 && cosines.size(0) == length &&
              2 * cosines.size(1) <= shape.width && sines.sizes() == cosines.sizes() &&
              cosines.scalar_type() == at::kFloat && sines.scalar_type() == at::kFloat,
          "rotary: the tables do not fit");
    context->save_for_backward({cosines, sines});
    context->saved_data["shape"] = std::vector<int64_t>{length, heads, key_heads, shape.width};
    context->saved_data["plain"] = plain;
    check(layout != GROUPED || heads % key_heads == 0, "rotary: key heads are not shared by as many query heads each");
    if (!by_loops(projected, plain)) {
      check(layout != GROUPED, "rotary: libtorch's operations do not group queries");
      auto parts = projected.view({rows, length, shape.all(), shape.width}).split_with_sizes({heads, key_heads, key_heads}, 2);
      auto laid_out = [&](const Tensor& part) {
        return layout == BY_HEAD ? part.transpose(1, 2).contiguous() : part.contiguous().transpose(1, 2);
      };
      return {laid_out(turned_plainly(parts[0], cosines, sines)), laid_out(turned_plainly(parts[1], cosines, sines)),
              laid_out(parts[2])};
    }
    auto room = [&](int64_t count) {
      return layout == BY_POSITION ? at::empty({rows, length, count, shape.width}, projected.options()).transpose(1, 2)
                                   : at::empty({rows, count, length, shape.width}, projected.options());
    };
    auto grouped = [&] { return at::empty({rows, key_heads, length, heads / key_heads, shape.width}, projected.options()); };
    auto query = layout == GROUPED ? grouped() : room(heads), key = room(key_heads), value = room(key_heads);
    turn<false>(projected, query, key, value, cosines, sines, shape);
    return {query, key, value};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    auto numbers = context->saved_data["shape"].toIntVector();
    Heads shape{numbers[0], numbers[1], numbers[2], numbers[3]};
    auto rows = gradients[0].size(0);
    Tensor gradient;
    if (!by_loops(gradients[0], context->saved_data["plain"].toBool())) {
      auto back = [&](const Tensor& part) { return turned_plainly(part.transpose(1, 2), saved[0], -saved[1]); };
      gradient = at::cat({back(gradients[0]), back(gradients[1]), gradients[2].transpose(1, 2)}, 2)
                     .view({rows, shape.length, shape.all() * shape.width});
    } else {
      gradient = at::empty({rows, shape.length, shape.all() * shape.width}, gradients[0].options());
      for (auto& part : gradients)
        if (part.stride(-1) != 1) part = part.contiguous();
      turn<true>(gradient, gradients[0], gradients[1], gradients[2], saved[0], saved[1], shape);
    }
    return {gradient, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// x [..., H], weight [H], of one type; `offset` is added to the weight.
int zf_rms_norm(void* x, void* weight, double epsilon, double offset, int plain, void** result) {
  return zf_guarded([&] { own(Norm::apply(zf_tensor(x), zf_tensor(weight), epsilon, offset, plain != 0), result); });
}

// gate_up [..., 2 I]: [..., I]; the gate by GELU with tanh, else by SiLU.
int zf_gated(void* gate_up, int gelu, int plain, void** result) {
  return zf_guarded([&] { own(Gated::apply(zf_tensor(gate_up), gelu != 0, plain != 0), result); });
}

// projected [rows, T, (heads + 2 key_heads) D] and float32 tables [T, turned/2], of the first elements of a head that turn: query [rows, heads, T, D], key and value
// [rows, key_heads, T, D], whose elements lie position by position (layout 0) or in that order (1); or (2) in that order
// with query [rows, key_heads, T, heads / key_heads, D].
int zf_rotary(void* projected, void* cosines, void* sines, int64_t heads, int64_t key_heads, int layout, int plain,
              void** results) {
  return zf_guarded([&] {
    auto parts = Rotary::apply(zf_tensor(projected), zf_tensor(cosines), zf_tensor(sines), heads, key_heads, layout,
                               plain != 0);
    for (size_t i = 0; i < parts.size(); ++i) own(parts[i], results + i);
  });
}
}
