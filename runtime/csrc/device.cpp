// GPUs by libtorch's own device-independent interfaces, so that one source serves a libtorch with CUDA and one without.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guard.h"
#include "shim.h"

namespace {

c10::Device cuda(int index) { return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index)); }

c10::CachingAllocator::Stat allocated(int index) {
  auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

}  // namespace

extern "C" {

// The version of CUDA that libtorch was built with, as major * 1000 + minor * 10; 0 without CUDA.
int zf_cuda_version(int64_t* version) {
  return zf_guarded([&] {
    const auto& hooks = at::detail::getCUDAHooks();
    *version = hooks.hasCUDART() ? hooks.versionCUDART() : 0;
  });
}

// Makes a device current for this thread and lets libtorch start on it.
int zf_cuda_use(int index) {
  return zf_guarded([&] {
    at::globalContext().lazyInitDevice(c10::kCUDA);
    c10::impl::VirtualGuardImpl(c10::kCUDA).setDevice(cuda(index));
  });
}

// The handle of the stream that libtorch gives this thread's work on a device.
int zf_cuda_stream(int index, void** stream) {
  return zf_guarded(
      [&] { *stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(cuda(index)).native_handle(); });
}

// Bytes of live tensors on a device, now and at most since the peak was restarted.
int zf_cuda_memory(int index, int64_t* live, int64_t* peak) {
  return zf_guarded([&] {
    auto stat = allocated(index);
    *live = stat.current;
    *peak = stat.peak;
  });
}

int zf_cuda_restart_peak(int index) {
  return zf_guarded(
      [&] { c10::getDeviceAllocator(c10::kCUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}

// Whether float32 matrix products may round their factors to TF32.
int zf_cuda_allow_tf32(int allow) {
  return zf_guarded([&] { at::globalContext().setAllowTF32CuBLAS(allow != 0); });
}
}
