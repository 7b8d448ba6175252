// Real Gloo out of libtorch_cpu.so, bootstrapped through a store that Rust provides.
#define USE_C10D_GLOO 1  // the header is empty without it
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "guard.h"
#include "shim.h"

namespace {

using Group = c10::intrusive_ptr<c10d::ProcessGroupGloo>;
using Work = c10::intrusive_ptr<c10d::Work>;

// c10d's store interface on top of the callbacks. Errors become C++ exceptions here, on the C++ side.
class CallbackStore : public c10d::Store {
 public:
  CallbackStore(const zf_store& calls, std::chrono::milliseconds timeout) : c10d::Store(timeout), calls_(calls) {}

  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<CallbackStore>(calls_, timeout_); }

  void set(const std::string& key, const std::vector<uint8_t>& value) override {
    check_call([&](char* text) { return calls_.set(calls_.context, key.c_str(), value.data(), value.size(), text); });
  }

  std::vector<uint8_t> get(const std::string& key) override {
    std::vector<uint8_t> value;
    auto sink = [](void* target, const uint8_t* data, size_t length) {
      static_cast<std::vector<uint8_t>*>(target)->assign(data, data + length);
    };
    check_call([&](char* text) {
      return calls_.get(calls_.context, key.c_str(), static_cast<uint64_t>(timeout_.count()), sink, &value, text);
    });
    return value;
  }

  int64_t add(const std::string& key, int64_t amount) override {
    int64_t sum = 0;
    check_call([&](char* text) { return calls_.add(calls_.context, key.c_str(), amount, &sum, text); });
    return sum;
  }

  bool deleteKey(const std::string& key) override {
    int removed = 0;
    check_call([&](char* text) { return calls_.remove(calls_.context, key.c_str(), &removed, text); });
    return removed != 0;
  }

  bool check(const std::vector<std::string>& keys) override {
    int present = 0;
    auto names = pointers(keys);
    check_call([&](char* text) { return calls_.check(calls_.context, names.data(), names.size(), &present, text); });
    return present != 0;
  }

  int64_t getNumKeys() override { TORCH_CHECK(false, "the store does not count its keys"); }

  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }

  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override {
    auto names = pointers(keys);
    check_call([&](char* text) {
      return calls_.wait(calls_.context, names.data(), names.size(), static_cast<uint64_t>(timeout.count()), text);
    });
  }

 private:
  static std::vector<const char*> pointers(const std::vector<std::string>& keys) {
    std::vector<const char*> names;
    for (const auto& key : keys) names.push_back(key.c_str());
    return names;
  }

  template <class F>
  static void check_call(F&& call) {
    char text[ZF_STORE_TEXT] = {0};
    if (call(text) != 0) TORCH_CHECK(false, "store: ", text);
  }

  zf_store calls_;
};

Group& group(void* handle) { return *static_cast<Group*>(handle); }

template <class F>
int started(void** work, F&& start) {
  return zf_guarded([&] { *work = new Work(start()); });
}

}  // namespace

extern "C" {

int zf_gloo_new(const zf_store* store, int rank, int world_size, const char* host, uint64_t timeout_ms, void** out) {
  return zf_guarded([&] {
    auto timeout = std::chrono::milliseconds(timeout_ms);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    options->threads = 1;
    auto callbacks = c10::make_intrusive<CallbackStore>(*store, timeout);
    *out = new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(callbacks, rank, world_size, options));
  });
}

void zf_gloo_free(void* handle) { delete static_cast<Group*>(handle); }

int zf_gloo_send(void* handle, void* tensor, int destination, int tag, void** work) {
  return started(work, [&] {
    std::vector<at::Tensor> list{zf_tensor(tensor)};
    return group(handle)->send(list, destination, tag);
  });
}

int zf_gloo_receive(void* handle, void* tensor, int source, int tag, void** work) {
  return started(work, [&] {
    std::vector<at::Tensor> list{zf_tensor(tensor)};
    return group(handle)->recv(list, source, tag);
  });
}

int zf_work_wait(void* work) {
  return zf_guarded([&] { (*static_cast<Work*>(work))->wait(); });
}

void zf_work_free(void* work) { delete static_cast<Work*>(work); }
}
