// Matrix products, and the linear layers made of them.

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "kernels.h"
#include "shim.h"

#if defined(__x86_64__)
namespace at::native {
// Exported by libtorch, which takes it for 16-bit products; its header is not among those that are installed.
void mkldnn_matmul(const Tensor& left, const Tensor& right, const Tensor& result, float beta, float alpha);
}  // namespace at::native
#endif

namespace zf {

using at::Tensor;

#if defined(__x86_64__)
// Terms that oneDNN may add up in one go: it adds them one after the other, so long sums are less exact than those of MKL,
// which adds up blocks. (SmolLM2's logits, root mean square from float64: 1.7e-5 without a bound, 1.3e-5 with this one, 1.15e-5
// with 768 and with MKL; transformers' own 1.06e-5.)
constexpr int64_t ONEDNN_SUM = 1024;

// Whether oneDNN takes this type on this processor. libtorch asks for AVX-512 for float32 and bfloat16, for AVX512-FP16 or what is
// newer for float16, and may be built without oneDNN.
static bool onednn_takes(at::ScalarType type) {
  static const auto tried = [](at::ScalarType type) {
    if (!at::hasMKLDNN()) return false;
    auto one = at::ones({1, 1}, type), result = at::zeros({1, 1}, type);
    try {
      at::native::mkldnn_matmul(one, one, result, 0.0f, 1.0f);
    } catch (const std::exception&) {
      return false;
    }
    return true;
  };
  static const bool float32 = tried(at::kFloat), bfloat16 = tried(at::kBFloat16), float16 = tried(at::kHalf);
  return type == at::kFloat ? float32 : type == at::kBFloat16 ? bfloat16 : type == at::kHalf && float16;
}

// Rows and columns of a result, and terms of its sums, that are widened at a time (1.3 MiB).
constexpr int64_t TILE = 384, TILE_TERMS = 256;

// A part of a matrix in float32, its elements in the same order.
static Tensor widened(const Tensor& matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  auto part = matrix.narrow(0, row, rows).narrow(1, column, columns);
  bool transposed = part.stride(0) == 1 && part.stride(1) != 1;
  auto wide = (transposed ? part.t() : part).to(at::kFloat, false, false, at::MemoryFormat::Contiguous);
  return transposed ? wide.t() : wide;
}

// Products of 16 bits on a processor without instructions for them, which libtorch leaves to plain loops: in float32, tile by tile.
// Products of two such numbers are exact in float32 within its range, so this is what the instructions would do; sums are rounded once.
static void multiply_widened(const Tensor& result, const Tensor& left, const Tensor& right, bool add) {
  auto terms = left.size(1);
  for (int64_t row = 0; row < result.size(0); row += TILE) {
    auto rows = std::min(TILE, result.size(0) - row);
    for (int64_t column = 0; column < result.size(1); column += TILE) {
      auto columns = std::min(TILE, result.size(1) - column);
      auto to = result.narrow(0, row, rows).narrow(1, column, columns);
      auto sums = add ? to.to(at::kFloat) : at::empty({rows, columns}, result.options().dtype(at::kFloat));
      for (int64_t begin = 0; begin < terms; begin += TILE_TERMS) {
        auto count = std::min(TILE_TERMS, terms - begin);
        multiply(sums, widened(left, row, rows, begin, count), widened(right, begin, count, column, columns),
                 add || begin > 0);
      }
      to.copy_(sums);
    }
  }
}
#endif

void multiply(const Tensor& result, const Tensor& left, const Tensor& right, bool add) {
#if defined(__x86_64__)
  if (result.is_cpu() && result.numel() > 0 && left.size(1) > 0) {
    auto type = result.scalar_type();
    // libtorch gives float32 to MKL, which leaves AVX-512 alone on processors that are not Intel's; oneDNN does not.
    if (type == at::kFloat && onednn_takes(type)) {
      for (int64_t begin = 0; begin < left.size(1); begin += ONEDNN_SUM) {
        auto count = std::min(ONEDNN_SUM, left.size(1) - begin);
        at::native::mkldnn_matmul(left.narrow(1, begin, count), right.narrow(0, begin, count), result,
                                  add || begin > 0 ? 1.0f : 0.0f, 1.0f);
      }
      return;
    }
    if ((type == at::kBFloat16 || type == at::kHalf) && !onednn_takes(type)) {
      return multiply_widened(result, left, right, add);
    }
  }
#endif
  auto into = result;
  if (add) {
    into.addmm_(left, right);
  } else {
    at::mm_out(into, left, right);
  }
}

}  // namespace zf

namespace {

using namespace zf;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

Tensor product(const Tensor& left, const Tensor& right) {
  auto result = at::empty({left.size(0), right.size(1)}, left.options());
  multiply(result, left, right, /*add=*/false);
  return result;
}

// The weight is [O, I], or [I, O] where it is transposed.
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, bool transposed) {
    check(weight.dim() == 2 && x.size(-1) == weight.size(transposed ? 0 : 1) && x.scalar_type() == weight.scalar_type(),
          "linear: the weight does not fit the input");
    context->save_for_backward({x, weight});
    context->saved_data["transposed"] = transposed;
    auto by = transposed ? weight : weight.t();
    auto shape = x.sizes().vec();
    shape.back() = by.size(1);
    auto y = at::empty(shape, x.options());
    multiply(y.view({-1, by.size(1)}), x.reshape({-1, x.size(-1)}), by, /*add=*/false);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    bool transposed = context->saved_data["transposed"].toBool();
    auto gradient = gradients[0].reshape({-1, gradients[0].size(-1)});
    Tensor of_x, of_weight;
    if (context->needs_input_grad(1)) {
      auto rows = x.reshape({-1, x.size(-1)});
      of_weight = transposed ? product(rows.t(), gradient) : product(gradient.t(), rows);
    }
    if (context->needs_input_grad(0)) of_x = product(gradient, transposed ? weight.t() : weight).view(x.sizes());
    return {of_x, of_weight, Tensor()};
  }
};

}  // namespace

extern "C" {

// x [..., I], weight [O, I], or [I, O] where it is transposed: [..., O].
int zf_linear(void* x, void* weight, int transposed, void** result) {
  return zf_guarded([&] { own(Linear::apply(zf_tensor(x), zf_tensor(weight), transposed != 0), result); });
}

// result [M, N] = left [M, K] · right [K, N]. No graph.
int zf_multiply(void* result, void* left, void* right) {
  return zf_guarded([&] {
    auto &to = zf_tensor(result), &by = zf_tensor(left), &with = zf_tensor(right);
    check(to.dim() == 2 && by.dim() == 2 && with.dim() == 2 && to.size(0) == by.size(0) && by.size(1) == with.size(0) &&
              to.size(1) == with.size(1) && to.scalar_type() == by.scalar_type() && to.scalar_type() == with.scalar_type(),
          "product: shapes or types do not fit");
    multiply(to, by, with, /*add=*/false);
  });
}
}
