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

#if defined(__x86_64__)
// Terms that oneDNN may add up in one go: it adds them one after the other, so long sums are less exact than those of MKL,
// which adds up blocks. (SmolLM2's logits, root mean square from float64: 1.7e-5 without a bound, 1.3e-5 with this one, 1.15e-5
// with 768 and with MKL; transformers' own 1.06e-5.)
constexpr int64_t ONEDNN_SUM = 1024;

// Whether oneDNN takes float32 on this processor: libtorch asks for AVX-512 whatever the type, and may be built without it.
static bool onednn_takes_float32() {
  static const bool takes = [] {
    if (!at::hasMKLDNN()) return false;
    auto one = at::ones({1, 1}), result = at::zeros({1, 1});
    try {
      at::native::mkldnn_matmul(one, one, result, 0.0f, 1.0f);
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }();
  return takes;
}
#endif

void multiply(const at::Tensor& result, const at::Tensor& left, const at::Tensor& right, bool add) {
#if defined(__x86_64__)
  // libtorch gives float32 to MKL, which leaves AVX-512 alone on processors that are not Intel's; oneDNN does not.
  if (result.is_cpu() && result.scalar_type() == at::kFloat && result.numel() > 0 && left.size(1) > 0 &&
      onednn_takes_float32()) {
    for (int64_t begin = 0; begin < left.size(1); begin += ONEDNN_SUM) {
      auto count = std::min(ONEDNN_SUM, left.size(1) - begin);
      at::native::mkldnn_matmul(left.narrow(1, begin, count), right.narrow(0, begin, count), result,
                                add || begin > 0 ? 1.0f : 0.0f, 1.0f);
    }
    return;
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

using at::Tensor;
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
