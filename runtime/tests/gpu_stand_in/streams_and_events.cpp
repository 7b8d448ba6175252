// Streams and events of the driver. See stand_in.hpp.

#include "stand_in.hpp"

#include <atomic>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <map>
#include <thread>

namespace stand_in {

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

}  // extern "C"
