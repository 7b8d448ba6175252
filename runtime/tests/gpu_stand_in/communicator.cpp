// Communicators: how ranks meet, wait for each other and part. See communicator.hpp.

#include "communicator.hpp"

#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include <unistd.h>

namespace stand_in {

ncclResult_t Communicator::claim_rank() {
  if (!file.is_mapped()) return refuse(ncclSystemError, "the file of the communicator cannot be made");
  int known_ranks = 0;
  if (!file.header().ranks.compare_exchange_strong(known_ranks, ranks) && known_ranks != ranks) {
    return refuse(ncclInvalidArgument, "the ranks do not agree on their number");
  }
  RankSlot& slot = file.slot(rank);
  if (slot.is_claimed.exchange(1)) return refuse(ncclInvalidArgument, "the rank is taken");
  slot.process_start = start_of_process(getpid()).value_or(0);
  slot.process = getpid();
  slot.presence = present;
  return ncclSuccess;
}

void Communicator::wait_for_ranks() {
  const bool complete = meet();
  // Nobody needs the name any more, and a crash shall not leave it behind.
  file.remove_name();
  if (!complete) return leave(Presence::aborted);
  auto in_progress = ncclInProgress;
  async_error_.compare_exchange_strong(in_progress, ncclSuccess);
}

bool Communicator::meet() {
  const uint64_t meeting = ++step_;
  file.slot(rank).reached.store(meeting);
  file.tell_of_change();
  if (!wait_for_all(meeting)) return false;
  file.slot(rank).completed.store(meeting);
  return true;
}

bool Communicator::wait_for_all(uint64_t meeting) {
  bool look_at_processes = false;
  while (true) {
    const uint32_t seen = file.changes();
    if (broken_ || aborted_) return false;
    if (const auto missing = missing_rank(meeting, look_at_processes)) {
      break_with(ncclRemoteError, *missing);
      return false;
    }
    if (all_have_reached(meeting)) return true;
    look_at_processes = !file.wait_for_change(seen);
  }
}

bool Communicator::all_have_reached(uint64_t meeting) const {
  for (int other = 0; other < ranks; ++other) {
    if (file.slot(other).reached < meeting) return false;
  }
  return true;
}

// Who has left before this meeting was complete. Who left after it is not missed.
std::optional<std::string> Communicator::missing_rank(uint64_t meeting, bool look_at_processes) const {
  for (int other = 0; other < ranks; ++other) {
    const RankSlot& slot = file.slot(other);
    const std::string name = "rank " + std::to_string(other);
    const int presence = slot.presence;  // before `completed`, which a rank sets before it leaves
    const bool has_died = look_at_processes && presence == present && slot.process != getpid() &&
                          start_of_process(slot.process) != slot.process_start.load();
    if (slot.completed >= meeting) continue;
    if (presence == Presence::aborted) return name + " has aborted";
    if (presence == destroyed) return name + " has destroyed its communicator";
    if (has_died) return name + " has died";
  }
  return std::nullopt;
}

bool Communicator::begin_turn(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return serving_ == ticket || broken_ || aborted_; });
  is_running_ = !broken_ && !aborted_;
  return is_running_;
}

void Communicator::end_turn() {
  std::scoped_lock lock(mutex_);
  is_running_ = false;
  ++serving_;
  changed_.notify_all();
}

void Communicator::sleep(std::chrono::microseconds duration) {
  if (duration.count() == 0) return;
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, duration, [this] { return broken_ || aborted_; });
}

void Communicator::wait_for_abort() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return aborted_.load(); });
}

void Communicator::change(std::atomic<bool>& flag) {
  std::scoped_lock lock(mutex_);
  flag = true;
  changed_.notify_all();
}

void Communicator::set_error(ncclResult_t error, const std::string& text) {
  complain(text);
  refuse(error, text);
  auto expected = ncclSuccess;
  if (async_error_.compare_exchange_strong(expected, error)) return;
  if (expected == ncclInProgress) async_error_.compare_exchange_strong(expected, error);
}

void Communicator::break_with(ncclResult_t error, const std::string& text) {
  set_error(error, "rank " + std::to_string(rank) + " of c" + std::to_string(number) + ": " + text);
  change(broken_);
  file.tell_of_change();
}

void Communicator::leave(Presence how) {
  file.slot(rank).presence = how;
  file.tell_of_change();
}

void Communicator::abort() {
  change(aborted_);
  leave(Presence::aborted);
  file.remove_name();
  // When this returns, no collective touches a buffer any more.
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !is_running_; });
}

void Communicator::finish() {
  finished_ = true;
  std::unique_lock call_lock(call_order());
  const uint64_t called = tickets_;
  call_lock.unlock();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !is_running_ && (serving_ == called || broken_ || aborted_); });
}

void Communicator::destroy() {
  finish();
  if (!aborted_) leave(destroyed);
}

struct Communicators {
  std::mutex mutex;
  std::map<ncclComm_t, std::shared_ptr<Communicator>> known;
  int created = 0;
};

static Communicators& communicators() {
  static Communicators& all = *new Communicators;
  return all;
}

std::shared_ptr<Communicator> find_communicator(ncclComm_t handle) {
  std::scoped_lock lock(communicators().mutex);
  const auto found = communicators().known.find(handle);
  if (found != communicators().known.end()) return found->second;
  refuse(ncclInvalidArgument,
         handle ? "the communicator is unknown, aborted or destroyed" : "the communicator is NULL");
  return nullptr;
}

static void forget_communicator(ncclComm_t handle) {
  std::scoped_lock lock(communicators().mutex);
  communicators().known.erase(handle);
}

static std::optional<bool> wants_to_block(const ncclConfig_t* config) {
  if (!config) return true;
  if (config->magic != nccl_config_magic) return std::nullopt;
  if (config->blocking == nccl_config_undefined) return true;
  if (config->blocking != 0 && config->blocking != 1) return std::nullopt;
  return config->blocking == 1;
}

static std::string path_of(const ncclUniqueId& id) {
  const std::string name(id.internal, strnlen(id.internal, sizeof id.internal));
  return settings().directory + "/" + name;
}

static std::shared_ptr<Communicator> create_communicator(ncclComm_t* handle, int ranks, const ncclUniqueId& id,
                                                         int rank) {
  std::scoped_lock lock(call_order(), communicators().mutex);
  const int number = ++communicators().created;
  log("comm_init c%d rank=%d of %d", number, rank, ranks);
  *handle = handle_of<ncclComm_t>(number);
  return communicators().known[*handle] = std::make_shared<Communicator>(number, rank, ranks, path_of(id));
}

static ncclResult_t initialize(ncclComm_t* handle, int ranks, const ncclUniqueId& id, int rank,
                               const ncclConfig_t* config) {
  if (!handle) return refuse(ncclInvalidArgument, "the pointer to the communicator is NULL");
  *handle = nullptr;
  const auto blocks = wants_to_block(config);
  if (!blocks) return refuse(ncclInvalidArgument, "the configuration has no magic number or a wrong `blocking`");
  if (ranks < 1 || rank < 0 || rank >= ranks) return refuse(ncclInvalidArgument, "no such rank");
  if (settings().fails_init) return refuse(ncclUnhandledCudaError, "initialization fails as told");
  const auto communicator = create_communicator(handle, ranks, id, rank);
  ncclResult_t result = communicator->claim_rank();
  if (result == ncclSuccess && !*blocks) {
    std::thread([communicator] { communicator->wait_for_ranks(); }).detach();
    return ncclInProgress;
  }
  if (result == ncclSuccess) {
    communicator->wait_for_ranks();
    result = communicator->async_error();
  }
  if (result != ncclSuccess) {
    forget_communicator(*handle);
    *handle = nullptr;
  }
  return result;
}

}  // namespace stand_in

using namespace stand_in;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = 22907;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "zerofold-stand-in-%08x%08x%08x", random(), random(), random());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  return initialize(comm, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return initialize(comm, ranks, id, rank, config);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  log("comm_finalize c%d", communicator->number);
  communicator->finish();
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  log("comm_destroy c%d", communicator->number);
  // Known until the end of its work, so that another thread can abort it meanwhile.
  communicator->destroy();
  forget_communicator(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  log("comm_abort c%d", communicator->number);
  communicator->abort();
  forget_communicator(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  *error = communicator->async_error();
  return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  *count = communicator->ranks;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  *rank = communicator->rank;
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  *device = communicator->device;
  return ncclSuccess;
}

ncclResult_t ncclCommRegister(ncclComm_t comm, void* buffer, size_t bytes, void** handle) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  if (!buffer || bytes == 0 || !handle) return refuse(ncclInvalidArgument, "nothing to register");
  std::scoped_lock lock(communicator->registered_mutex);
  *handle = handle_of<void*>(++communicator->registrations);
  communicator->registered[*handle] = {buffer, bytes};
  log("register c%d bytes=%zu", communicator->number, bytes);
  return ncclSuccess;
}

ncclResult_t ncclCommDeregister(ncclComm_t comm, void* handle) {
  const auto communicator = find_communicator(comm);
  if (!communicator) return ncclInvalidArgument;
  std::scoped_lock lock(communicator->registered_mutex);
  const auto found = communicator->registered.find(handle);
  if (found == communicator->registered.end()) return refuse(ncclInvalidArgument, "the buffer is not registered");
  log("deregister c%d bytes=%zu", communicator->number, found->second.bytes);
  communicator->registered.erase(found);
  return ncclSuccess;
}

}  // extern "C"
