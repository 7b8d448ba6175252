// The CUDA driver API of the stand-in: devices, streams, events and virtual memory. See stand_in.hpp.

#include "stand_in.hpp"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace stand_in {

// ---- Settings and the log -------------------------------------------------------------------------------------------

static std::string environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

static void read_failure(Settings& settings) {
  const std::string failure = environment("ZEROFOLD_STAND_IN_FAIL", "");
  const auto number_after = [&](const std::string& prefix) -> uint64_t {
    return failure.starts_with(prefix) ? std::stoull(failure.substr(prefix.size())) : 0;
  };
  settings.fails_init = failure == "init";
  settings.has_no_device = failure == "no-device";
  settings.failing_collective = number_after("async:");
  settings.hanging_collective = number_after("hang:");
}

static Settings* read_settings() {
  auto* read = new Settings;
  read->directory = environment("ZEROFOLD_STAND_IN_DIR", "/dev/shm");
  read->log_path = environment("ZEROFOLD_STAND_IN_LOG", "");
  read->delay = std::chrono::microseconds(std::stoll(environment("ZEROFOLD_STAND_IN_DELAY_US", "0")));
  read->devices = std::stoi(environment("ZEROFOLD_STAND_IN_DEVICES", "8"));
  read->memory = std::stoull(environment("ZEROFOLD_STAND_IN_MEMORY", "17179869184"));
  const std::string capability = environment("ZEROFOLD_STAND_IN_CAPABILITY", "9.0");
  std::sscanf(capability.c_str(), "%d.%d", &read->capability_major, &read->capability_minor);
  read_failure(*read);
  if (read->has_no_device) read->devices = 0;
  return read;
}

// This and every other state of the process is never destroyed: the threads of streams may outlive main().
const Settings& settings() {
  static const Settings& read = *read_settings();
  return read;
}

static int open_log() {
  const std::string& path = settings().log_path;
  return path.empty() ? -1 : open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

void log(const char* format, ...) {
  static const int file = open_log();
  if (file < 0) return;
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  length = std::min<int>(length, sizeof line - 2);
  line[length] = '\n';
  if (write(file, line, length + 1) < 0) complain(std::string("the log cannot be written: ") + strerror(errno));
}

void complain(const std::string& text) {
  const std::string line = "stand-in: " + text + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::mutex& call_order() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}

// ---- Streams and events ---------------------------------------------------------------------------------------------

// One recording of an event. A wait keeps the recording it was called for, whatever happens to the event later.
class Record {
 public:
  void complete() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    milliseconds_ = static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
    done_.store(1);
    done_.notify_all();
  }
  bool is_complete() const { return done_.load() != 0; }
  void wait() const { done_.wait(0); }
  double milliseconds() const { return milliseconds_; }

 private:
  std::atomic<int> done_{0};
  double milliseconds_ = 0;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(int number) : number(number) {}

  void start() {
    std::thread([self = shared_from_this()] { self->serve(); }).detach();
  }

  void push(std::function<void()> work) {
    std::scoped_lock lock(mutex_);
    queue_.push_back(std::move(work));
    ++pending_;
    changed_.notify_one();
  }

  bool is_idle() {
    std::scoped_lock lock(mutex_);
    return pending_ == 0;
  }

  // The work that is in the queue still runs, as in CUDA.
  void stop_when_idle() {
    push([this] { stopped_ = true; });
  }

  const int number;

 private:
  void serve() {
    while (!stopped_) {
      take()();
      std::scoped_lock lock(mutex_);
      --pending_;
    }
  }

  std::function<void()> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !queue_.empty(); });
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    return work;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  size_t pending_ = 0;    // in the queue or running
  bool stopped_ = false;  // belongs to the thread of the stream
};

struct Event {
  Event(int number, bool has_timing) : number(number), has_timing(has_timing) {}

  std::shared_ptr<Record> latest() {
    std::scoped_lock lock(mutex);
    return record;
  }
  void replace(std::shared_ptr<Record> newer) {
    std::scoped_lock lock(mutex);
    record = std::move(newer);
  }

  const int number;
  const bool has_timing;
  std::mutex mutex;
  std::shared_ptr<Record> record;  // null: never recorded
};

template <class Handle, class Object>
class Registry {
 public:
  template <class... Arguments>
  std::shared_ptr<Object> create(Handle* handle, Arguments... arguments) {
    std::scoped_lock lock(mutex_);
    const int number = ++created_;
    *handle = handle_of<Handle>(number);
    return objects_[*handle] = std::make_shared<Object>(number, arguments...);
  }
  std::shared_ptr<Object> find(Handle handle) {
    std::scoped_lock lock(mutex_);
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  void remove(Handle handle) {
    std::scoped_lock lock(mutex_);
    objects_.erase(handle);
  }
  std::vector<std::shared_ptr<Object>> all() {
    std::scoped_lock lock(mutex_);
    std::vector<std::shared_ptr<Object>> objects;
    for (const auto& [handle, object] : objects_) objects.push_back(object);
    return objects;
  }

 private:
  std::mutex mutex_;
  std::map<Handle, std::shared_ptr<Object>> objects_;
  int created_ = 0;
};

static Registry<CUstream, Stream>& streams() {
  static auto& registry = *new Registry<CUstream, Stream>;
  return registry;
}

static Registry<CUevent, Event>& events() {
  static auto& registry = *new Registry<CUevent, Event>;
  return registry;
}

std::optional<std::shared_ptr<Stream>> find_stream(CUstream handle) {
  const auto legacy = reinterpret_cast<CUstream>(1);
  if (handle == nullptr || handle == legacy) return std::shared_ptr<Stream>();
  std::shared_ptr<Stream> stream = streams().find(handle);
  if (!stream) return std::nullopt;
  return stream;
}

int stream_number(const std::shared_ptr<Stream>& stream) { return stream ? stream->number : 0; }

void push(Stream& stream, std::function<void()> work) { stream.push(std::move(work)); }

static std::shared_ptr<Record> record_on(const std::shared_ptr<Stream>& stream) {
  auto record = std::make_shared<Record>();
  if (stream) stream->push([record] { record->complete(); });
  else record->complete();
  return record;
}

// ---- Memory ---------------------------------------------------------------------------------------------------------

constexpr size_t granularity = size_t{2} << 20;

static std::atomic<size_t> used_memory{0};

bool take_memory(size_t bytes) {
  size_t used = used_memory.load();
  do {
    if (bytes > settings().memory - used) return false;
  } while (!used_memory.compare_exchange_weak(used, used + bytes));
  return true;
}

void give_back_memory(size_t bytes) { used_memory -= bytes; }

// Lives until it is released and no mapping is left, as in CUDA.
struct Allocation {
  Allocation(uint64_t number, size_t bytes, int file) : number(number), bytes(bytes), file(file) {}
  Allocation(const Allocation&) = delete;
  ~Allocation() {
    close(file);
    give_back_memory(bytes);
  }

  const uint64_t number;
  const size_t bytes;
  const int file;
};

struct Mapping {
  size_t bytes;
  std::shared_ptr<Allocation> allocation;
};

struct VirtualMemory {
  std::mutex mutex;
  std::map<CUdeviceptr, size_t> reservations;
  std::map<CUdeviceptr, Mapping> mappings;
  std::map<CUmemGenericAllocationHandle, std::shared_ptr<Allocation>> allocations;
  uint64_t created = 0;

  bool is_reserved(CUdeviceptr start, size_t bytes) const {
    auto after = reservations.upper_bound(start);
    if (after == reservations.begin()) return false;
    const auto& [reserved, size] = *std::prev(after);
    return start + bytes <= reserved + size;
  }

  std::vector<std::pair<CUdeviceptr, Mapping>> mapped_in(CUdeviceptr start, size_t bytes) const {
    std::vector<std::pair<CUdeviceptr, Mapping>> found;
    auto mapping = mappings.upper_bound(start);
    if (mapping != mappings.begin()) --mapping;
    for (; mapping != mappings.end() && mapping->first < start + bytes; ++mapping) {
      if (mapping->first + mapping->second.bytes > start) found.push_back(*mapping);
    }
    return found;
  }
};

static VirtualMemory& virtual_memory() {
  static VirtualMemory& memory = *new VirtualMemory;
  return memory;
}

Region addresses_of(const void* start, size_t bytes) {
  const auto begin = reinterpret_cast<uint64_t>(start);
  return {0, begin, begin + bytes};
}

std::vector<Region> regions_of(const void* start, size_t bytes) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  std::vector<Region> regions;
  uint64_t position = reinterpret_cast<uint64_t>(start);
  const uint64_t end = position + bytes;
  for (const auto& [mapped, mapping] : memory.mapped_in(position, bytes)) {
    if (position < mapped) regions.push_back({0, position, mapped});
    const uint64_t first = std::max<uint64_t>(position, mapped);
    const uint64_t last = std::min<uint64_t>(end, mapped + mapping.bytes);
    regions.push_back({mapping.allocation->number, first - mapped, last - mapped});
    position = last;
  }
  if (position < end) regions.push_back({0, position, end});
  return regions;
}

struct Pending {
  std::mutex mutex;
  std::map<uint64_t, PendingOperation> operations;
  uint64_t added = 0;
};

static Pending& pending() {
  static Pending& state = *new Pending;
  return state;
}

uint64_t add_pending(PendingOperation operation) {
  std::scoped_lock lock(pending().mutex);
  pending().operations.emplace(++pending().added, std::move(operation));
  return pending().added;
}

void remove_pending(uint64_t identifier) {
  std::scoped_lock lock(pending().mutex);
  pending().operations.erase(identifier);
}

bool overlap(const std::vector<Region>& left, const std::vector<Region>& right) {
  for (const Region& one : left) {
    for (const Region& other : right) {
      if (one.allocation == other.allocation && one.begin < other.end && other.begin < one.end) return true;
    }
  }
  return false;
}

template <class Matches>
static std::optional<std::string> find_pending(Matches matches) {
  std::scoped_lock lock(pending().mutex);
  for (const auto& [identifier, operation] : pending().operations) {
    if (matches(operation)) return operation.name;
  }
  return std::nullopt;
}

bool pending_writes(const std::vector<Region>& regions) {
  const auto matches = [&](const PendingOperation& operation) { return overlap(operation.writes, regions); };
  return find_pending(matches).has_value();
}

bool pending_uses(const std::vector<Region>& regions) {
  const auto matches = [&](const PendingOperation& operation) { return overlap(operation.reads, regions); };
  return pending_writes(regions) || find_pending(matches).has_value();
}

// Other mappings of the same allocation do not count.
static std::optional<std::string> pending_user_of_addresses(const void* start, size_t bytes) {
  const std::vector<Region> addresses = {addresses_of(start, bytes)};
  return find_pending([&](const PendingOperation& operation) { return overlap(operation.addresses, addresses); });
}

static void* address(CUdeviceptr pointer) { return reinterpret_cast<void*>(pointer); }

static bool is_multiple_of_granularity(CUdeviceptr value) { return value % granularity == 0; }

// Leaves the range reserved and out of reach.
static bool close_range(CUdeviceptr pointer, size_t bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap(address(pointer), bytes, PROT_NONE, flags, -1, 0) != MAP_FAILED;
}

static std::optional<CUdeviceptr> reserve_aligned(size_t bytes, size_t alignment) {
  const size_t larger = bytes + alignment;
  void* start = mmap(nullptr, larger, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return std::nullopt;
  const auto begin = reinterpret_cast<CUdeviceptr>(start);
  const CUdeviceptr aligned = (begin + alignment - 1) / alignment * alignment;
  if (aligned > begin) munmap(start, aligned - begin);
  if (begin + larger > aligned + bytes) munmap(address(aligned + bytes), begin + larger - aligned - bytes);
  return aligned;
}

// ---- Devices and contexts -------------------------------------------------------------------------------------------

static thread_local CUcontext current_context = nullptr;

static CUcontext context_of(CUdevice device) { return handle_of<CUcontext>(device + 1); }

static bool is_device(CUdevice device) { return device >= 0 && device < settings().devices; }

int current_device() {
  for (CUdevice device = 0; device < settings().devices; ++device) {
    if (context_of(device) == current_context) return device;
  }
  return 0;
}

struct ErrorText {
  CUresult error;
  const char* name;
  const char* description;
};
static constexpr ErrorText error_texts[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
};

static CUresult error_text(CUresult error, const char** text, const char* ErrorText::* part) {
  *text = nullptr;
  for (const ErrorText& known : error_texts) {
    if (known.error == error) *text = known.*part;
  }
  return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult elapsed(float* milliseconds, CUevent start, CUevent end) {
  const auto first = events().find(start), last = events().find(end);
  if (!first || !last || !first->has_timing || !last->has_timing) return CUDA_ERROR_INVALID_HANDLE;
  const auto from = first->latest(), until = last->latest();
  if (!from || !until) return CUDA_ERROR_INVALID_HANDLE;
  if (!from->is_complete() || !until->is_complete()) return CUDA_ERROR_NOT_READY;
  *milliseconds = static_cast<float>(until->milliseconds() - from->milliseconds());
  return CUDA_SUCCESS;
}

}  // namespace stand_in

using namespace stand_in;

extern "C" {

CUresult cuInit(unsigned) { return settings().has_no_device ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) { return error_text(error, text, &ErrorText::name); }

CUresult cuGetErrorString(CUresult error, const char** text) {
  return error_text(error, text, &ErrorText::description);
}

CUresult cuDeviceGetCount(int* count) {
  *count = settings().devices;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(name, length, "Zerofold GPU stand-in");
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  char text[sizeof uuid->bytes + 1];
  std::snprintf(text, sizeof text, "gpu-stand-in%04d", device);
  std::memcpy(uuid->bytes, text, sizeof uuid->bytes);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(text, length, "0000:%02X:00.0", device + 1);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = settings().capability_major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = settings().capability_minor; break;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: *value = 1; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = settings().memory;
  return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int* can_access, CUdevice device, CUdevice peer) {
  if (!is_device(device) || !is_device(peer)) return CUDA_ERROR_INVALID_DEVICE;
  *can_access = device != peer;
  return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = settings().memory;
  *free_bytes = *total_bytes - used_memory.load();
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *context = context_of(device);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  bool is_known = context == nullptr;
  for (CUdevice device = 0; device < settings().devices; ++device) is_known |= context == context_of(device);
  if (!is_known) return CUDA_ERROR_INVALID_CONTEXT;
  current_context = context;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current_context;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
  std::vector<std::shared_ptr<Record>> records;
  for (const auto& stream : streams().all()) records.push_back(record_on(stream));
  for (const auto& record : records) record->wait();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned, int priority) {
  std::scoped_lock lock(call_order());
  const std::shared_ptr<Stream> created = streams().create(stream);
  created->start();
  log("stream_create s%d priority=%d", created->number, priority);
  return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream handle) {
  const auto stream = streams().find(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  std::scoped_lock lock(call_order());
  log("stream_destroy s%d", stream->number);
  streams().remove(handle);
  stream->stop_when_idle();
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
  const auto stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  std::unique_lock lock(call_order());
  log("stream_synchronize s%d", stream_number(*stream));
  const auto record = record_on(*stream);
  lock.unlock();
  record->wait();
  return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream handle) {
  const auto stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  return !*stream || (*stream)->is_idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  const auto stream = find_stream(handle);
  const auto event = events().find(event_handle);
  if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
  std::unique_lock lock(call_order());
  log("stream_wait stream=s%d event=e%d", stream_number(*stream), event->number);
  const auto record = event->latest();
  if (!record) return CUDA_SUCCESS;
  if (*stream) {
    (*stream)->push([record] { record->wait(); });
    return CUDA_SUCCESS;
  }
  lock.unlock();
  record->wait();
  return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  events().create(event, (flags & CU_EVENT_DISABLE_TIMING) == 0);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event) {
  if (!events().find(event)) return CUDA_ERROR_INVALID_HANDLE;
  events().remove(event);
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event_handle, CUstream handle) {
  const auto stream = find_stream(handle);
  const auto event = events().find(event_handle);
  if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
  std::scoped_lock lock(call_order());
  log("event_record e%d stream=s%d", event->number, stream_number(*stream));
  event->replace(record_on(*stream));
  return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent handle) {
  const auto event = events().find(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  const auto record = event->latest();
  return !record || record->is_complete() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent handle) {
  const auto event = events().find(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  log("event_synchronize e%d", event->number);
  if (const auto record = event->latest()) record->wait();
  return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return elapsed(milliseconds, start, end);
}

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return elapsed(milliseconds, start, end);
}

CUresult cuMemsetD8_v2(CUdeviceptr pointer, unsigned char value, size_t bytes) {
  std::memset(address(pointer), value, bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, int) {
  *bytes = granularity;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long) {
  const bool is_power_of_two = (alignment & (alignment - 1)) == 0;  // 0, the default, is one of them
  if (bytes == 0 || !is_multiple_of_granularity(bytes) || !is_power_of_two) return CUDA_ERROR_INVALID_VALUE;
  const auto reserved = reserve_aligned(bytes, std::max(alignment, granularity));
  if (!reserved) return CUDA_ERROR_OUT_OF_MEMORY;
  std::scoped_lock lock(virtual_memory().mutex);
  virtual_memory().reservations[*reserved] = bytes;
  *pointer = *reserved;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto reserved = memory.reservations.find(pointer);
  const bool is_whole = reserved != memory.reservations.end() && reserved->second == bytes;
  if (!is_whole || !memory.mapped_in(pointer, bytes).empty()) return CUDA_ERROR_INVALID_VALUE;
  memory.reservations.erase(reserved);
  munmap(address(pointer), bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long) {
  const bool is_on_device = properties && properties->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
                            properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  if (!is_on_device || bytes == 0 || !is_multiple_of_granularity(bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (!is_device(properties->location.id)) return CUDA_ERROR_INVALID_DEVICE;
  if (!take_memory(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const int file = memfd_create("gpu-stand-in", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    close(file);
    give_back_memory(bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  *handle = ++memory.created;
  memory.allocations[*handle] = std::make_shared<Allocation>(*handle, bytes, file);
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  std::scoped_lock lock(virtual_memory().mutex);
  return virtual_memory().allocations.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto found = memory.allocations.find(handle);
  // CUDA demands an offset of zero, too.
  if (found == memory.allocations.end() || offset != 0 || bytes == 0 || bytes > found->second->bytes ||
      !is_multiple_of_granularity(bytes) || !is_multiple_of_granularity(pointer) ||
      !memory.is_reserved(pointer, bytes) || !memory.mapped_in(pointer, bytes).empty()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const int file = found->second->file;
  if (mmap(address(pointer), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  memory.mappings[pointer] = {bytes, found->second};
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
  if (const auto user = pending_user_of_addresses(address(pointer), bytes)) {
    complain("cuMemUnmap of memory that " + *user + " still uses");
    return CUDA_ERROR_INVALID_VALUE;
  }
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto mapped = memory.mapped_in(pointer, bytes);
  size_t covered = 0;
  for (const auto& [start, mapping] : mapped) covered += start >= pointer ? mapping.bytes : bytes + 1;
  if (mapped.empty() || covered != bytes || !close_range(pointer, bytes)) return CUDA_ERROR_INVALID_VALUE;
  for (const auto& [start, mapping] : mapped) memory.mappings.erase(start);
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* descriptions, size_t count) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  size_t covered = 0;
  for (const auto& [start, mapping] : memory.mapped_in(pointer, bytes)) {
    covered += std::min(start + mapping.bytes, pointer + bytes) - std::max(start, pointer);
  }
  if (covered != bytes) return CUDA_ERROR_INVALID_VALUE;
  int protection = PROT_NONE;
  for (const CUmemAccessDesc* description = descriptions; description != descriptions + count; ++description) {
    if (!is_device(description->location.id)) return CUDA_ERROR_INVALID_DEVICE;
    if (description->flags & CU_MEM_ACCESS_FLAGS_PROT_READ) protection |= PROT_READ;
    if (description->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) protection |= PROT_WRITE;
  }
  return mprotect(address(pointer), bytes, protection) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // extern "C"
