#include "shim.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <algorithm>
#include <string>
#include <vector>

#include "guard.h"

// The stub headers of Gloo and the overridden virtual functions of c10d::Store fit this version alone.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 13, "this shim is written for libtorch 2.13");

static thread_local std::string last_error;

void zf_set_error(const char* text) { last_error = text; }

static std::vector<at::Tensor> tensors(void* const* handles, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(zf_tensor(handles[i]));
  return list;
}

extern "C" {

const char* zf_last_error() { return last_error.c_str(); }

const char* zf_version() { return TORCH_VERSION; }

// The processor's instructions that libtorch's kernels use, cut to what fits.
int zf_processor(char* text, size_t length) {
  return zf_guarded([&] {
    auto name = at::get_cpu_capability();
    name.resize(std::min(name.size(), length - 1));
    std::copy(name.c_str(), name.c_str() + name.size() + 1, text);
  });
}

// Gradients of `outputs`, seeded with `grad_outputs`, with respect to `inputs`. Nothing is written to .grad and the
// graph is freed. results[i] owns a new at::Tensor, or is null where no path leads to input i.
int zf_autograd_grad(void* const* outputs, void* const* grad_outputs, size_t output_count, void* const* inputs,
                     size_t input_count, void** results) {
  return zf_guarded([&] {
    auto gradients = torch::autograd::grad(tensors(outputs, output_count), tensors(inputs, input_count),
                                           tensors(grad_outputs, output_count), /*retain_graph=*/false,
                                           /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < input_count; ++i)
      results[i] = gradients[i].defined() ? new at::Tensor(gradients[i]) : nullptr;
  });
}

// Makes the storage of a tensor, and so of every view of it, point at memory of its device that it does not own. Autograd's
// version counters do not move: the caller promises that the bytes are what saved views expect whenever they are read.
int zf_repoint_storage(void* tensor, void* data, size_t byte_count) {
  return zf_guarded([&] {
    auto* storage = zf_tensor(tensor).storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(at::DataPtr(data, storage->device()));
    storage->set_nbytes(byte_count);
  });
}

// A flat tensor over memory that somebody else owns, with the type of `like`. `release(owner)` is called once, when its storage
// is gone or could not be made.
int zf_tensor_over(void* data, int64_t numel, void* like, void (*release)(void*), void* owner, void** out) {
  return zf_guarded([&] {
    at::DataPtr pointer(data, owner, release, at::Device(at::kCPU));
    auto type = zf_tensor(like).scalar_type();
    auto bytes = static_cast<size_t>(numel) * at::elementSize(type);
    auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(pointer),
                                                         /*allocator=*/nullptr, /*resizable=*/false);
    auto tensor = at::empty({0}, at::TensorOptions().dtype(type));
    tensor.set_(at::Storage(std::move(storage)), 0, {numel}, {1});
    *out = new at::Tensor(std::move(tensor));
  });
}

// One fused AdamW step (decoupled decay, no amsgrad) over lists of flat float32 pieces. `step` is a float32 scalar tensor
// where they are, that already counts this step: 1 at the first.
int zf_fused_adamw(void* const* parameters, void* const* gradients, void* const* first_moments,
                   void* const* second_moments, size_t count, void* step, double learning_rate, double beta1,
                   double beta2, double weight_decay, double epsilon) {
  return zf_guarded([&] {
    auto parameter_list = tensors(parameters, count);
    auto gradient_list = tensors(gradients, count);
    auto first_list = tensors(first_moments, count);
    auto second_list = tensors(second_moments, count);
    std::vector<at::Tensor> steps(count, zf_tensor(step));
    at::_fused_adamw_(parameter_list, gradient_list, first_list, second_list, /*max_exp_avg_sqs=*/{}, steps,
                      learning_rate, beta1, beta2, weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false,
                      /*grad_scale=*/std::nullopt, /*found_inf=*/std::nullopt);
  });
}
}
