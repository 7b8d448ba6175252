// What kernels.cpp, attention.cpp, products.cpp and sums.cpp share: checks, and the choice between loops and libtorch's
// operations.
#pragma once
#include <ATen/ATen.h>

#include <stdexcept>
#include <string>

#include "guard.h"
#include "vector.h"

namespace zf {

// Calls body with a value of the element type of `kind`.
template <class Body>
void of_type(at::ScalarType kind, Body&& body) {
  switch (kind) {
    case at::kFloat: return body(float());
    case at::kBFloat16: return body(c10::BFloat16());
    case at::kHalf: return body(c10::Half());
    default: throw std::runtime_error(std::string("float32, bfloat16 or float16 was expected, not ") + c10::toString(kind));
  }
}

inline void check(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

// Whether loops of ours are taken: for what lies on the CPU. Float64 is for tests, by libtorch's operations.
inline bool by_loops(const at::Tensor& tensor, bool plain) {
  return tensor.is_cpu() && !plain && tensor.scalar_type() != at::kDouble;
}

// What libtorch's operations compute in.
inline at::ScalarType wide_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// result [M, N] = left [M, K] · right [K, N], or added to it (products.cpp). No graph.
void multiply(const at::Tensor& result, const at::Tensor& left, const at::Tensor& right, bool add);

// to += from, rounded once.
template <class To, class From>
struct Add {
  ZF_INLINE void run(To* to, const From* from, int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = zf_round<To>(zf_widen(to[i]) + zf_widen(from[i]));
  }
};

// Hands a tensor over to Rust.
inline void own(const at::Tensor& tensor, void** result) { *result = new at::Tensor(tensor); }

}  // namespace zf
