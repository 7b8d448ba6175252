#include "shim.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

// How many bytes of tensors are alive on the CPU, and how many there were at most. Every block carries its size in front
// of it, in a header as wide as the alignment, so that the tensor stays aligned.

namespace {

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};

constexpr size_t header = 64;

void release(void* data) {
  if (data == nullptr) return;
  auto* base = static_cast<char*>(data) - header;
  live_bytes -= *reinterpret_cast<int64_t*>(base);
  c10::free_cpu(base);
}

// libtorch's own error would carry a stack of C++ frames to the user.
void* allocate_or_explain(size_t byte_count) {
  try {
    return c10::alloc_cpu(byte_count);
  } catch (const std::exception&) {
    throw std::runtime_error("out of memory: a tensor of " + std::to_string(byte_count >> 20) +
                             " MiB cannot be allocated\nhint: a higher zero_stage, gradient_checkpointing, a smaller "
                             "per_device_train_batch_size or offload_optimizer_device: nvme need less; "
                             "`launch plan` tells how much");
  }
}

void count(int64_t change) {
  auto now = live_bytes += change;
  auto seen = peak_bytes.load();
  while (seen < now && !peak_bytes.compare_exchange_weak(seen, now)) {
  }
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t byte_count) override {
    if (byte_count == 0) return {nullptr, nullptr, &release, c10::Device(c10::kCPU)};
    auto* base = static_cast<char*>(allocate_or_explain(byte_count + header));
    *reinterpret_cast<int64_t*>(base) = static_cast<int64_t>(byte_count);
    count(static_cast<int64_t>(byte_count));
    auto* data = base + header;
    return {data, data, &release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, std::size_t count) const override {
    default_copy_data(target, source, count);
  }
};

}  // namespace

extern "C" {

// Counts all tensors that are allocated from now on. Calling it again changes nothing.
void zf_count_memory() {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/255);
}

// Counts memory of tensors that comes from elsewhere, or goes there again.
void zf_count_bytes(int64_t change) { count(change); }

void zf_memory(int64_t* live, int64_t* peak) {
  *live = live_bytes;
  *peak = peak_bytes;
}

// From now on the peak is that of what is alive now or later.
void zf_restart_peak() { peak_bytes = live_bytes.load(); }
}
