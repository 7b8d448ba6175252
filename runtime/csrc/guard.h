// Shared by the shim's files: no C++ exception crosses into Rust.
#pragma once
#include <ATen/core/Tensor.h>

#include <exception>

void zf_set_error(const char* text);

template <class F>
int zf_guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    zf_set_error(error.what());
  } catch (...) {
    zf_set_error("unknown C++ exception");
  }
  return 1;
}

inline at::Tensor& zf_tensor(void* handle) { return *static_cast<at::Tensor*>(handle); }
