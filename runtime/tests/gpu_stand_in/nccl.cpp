// NCCL of the stand-in: communicators between processes and their collectives. See stand_in.hpp.

#include "stand_in.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace stand_in {

// ---- The last error -------------------------------------------------------------------------------------------------

struct LastError {
  std::mutex mutex;
  std::string text;
};

static LastError& last_error() {
  static LastError& error = *new LastError;
  return error;
}

static ncclResult_t refuse(ncclResult_t result, const std::string& reason) {
  std::scoped_lock lock(last_error().mutex);
  last_error().text = reason;
  return result;
}

// ---- Types and sums -------------------------------------------------------------------------------------------------

static float float_of_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

static uint16_t bfloat16_of_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could turn a NaN into infinity
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float float_of_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

static uint16_t float16_of_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (value != value) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // The sum has the spacing of the float16 numbers below 2^-14, so the addition itself rounds to them.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

struct Bfloat16 {
  using Stored = uint16_t;
  using Sum = float;
  static Sum load(Stored value) { return float_of_bfloat16(value); }
  static Stored store(Sum sum) { return bfloat16_of_float(sum); }
};

struct Float16 {
  using Stored = uint16_t;
  using Sum = float;
  static Sum load(Stored value) { return float_of_float16(value); }
  static Stored store(Sum sum) { return float16_of_float(sum); }
};

// Integers go by their unsigned type, because sums wrap around.
template <class Value>
struct Plain {
  using Stored = Value;
  using Sum = Value;
  static Sum load(Stored value) { return value; }
  static Stored store(Sum sum) { return sum; }
};

// The sources are in the order of the ranks. Callers may pass pointers that are not aligned.
template <class Format>
static void sum(const std::vector<const std::byte*>& sources, std::byte* target, size_t bytes) {
  using Stored = typename Format::Stored;
  using Sum = typename Format::Sum;
  const auto value_at = [](const std::byte* source) {
    Stored value;
    std::memcpy(&value, source, sizeof value);
    return Format::load(value);
  };
  for (size_t offset = 0; offset < bytes; offset += sizeof(Stored)) {
    Sum total = value_at(sources[0] + offset);
    for (size_t rank = 1; rank < sources.size(); ++rank) {
      total = static_cast<Sum>(total + value_at(sources[rank] + offset));
    }
    const Stored result = Format::store(total);
    std::memcpy(target + offset, &result, sizeof result);
  }
}

struct DataType {
  ncclDataType_t code;
  const char* name;
  size_t bytes;
  void (*sum)(const std::vector<const std::byte*>& sources, std::byte* target, size_t bytes);
};
static constexpr DataType data_types[] = {
    {ncclInt8, "int8", 1, sum<Plain<uint8_t>>},     {ncclUint8, "uint8", 1, sum<Plain<uint8_t>>},
    {ncclInt32, "int32", 4, sum<Plain<uint32_t>>},  {ncclInt64, "int64", 8, sum<Plain<uint64_t>>},
    {ncclFloat16, "float16", 2, sum<Float16>},      {ncclBfloat16, "bfloat16", 2, sum<Bfloat16>},
    {ncclFloat32, "float32", 4, sum<Plain<float>>}, {ncclFloat64, "float64", 8, sum<Plain<double>>},
};

static const DataType* find_type(ncclDataType_t code) {
  for (const DataType& type : data_types) {
    if (type.code == code) return &type;
  }
  return nullptr;
}

// ---- What the ranks share -------------------------------------------------------------------------------------------

enum class Kind : int { all_gather, reduce_scatter, all_reduce, broadcast };
constexpr const char* kind_names[] = {"all_gather", "reduce_scatter", "all_reduce", "broadcast"};

// What a rank has called, for the others to compare.
struct CallHeader {
  Kind kind;
  ncclDataType_t type;
  uint64_t count;
  int root;

  bool operator==(const CallHeader&) const = default;
};

constexpr size_t stage_bytes = 256 * 1024;
constexpr std::chrono::milliseconds look_around_every{20};

struct alignas(64) Stage {
  CallHeader header;
  alignas(64) std::byte data[stage_bytes];
};

enum Presence : int { absent, present, destroyed, aborted };

struct alignas(64) RankSlot {
  std::atomic<int> is_claimed;
  std::atomic<int> process;
  std::atomic<uint64_t> process_start;  // a number of a process is given again after its end
  std::atomic<int> presence;
  std::atomic<uint64_t> reached;    // the meetings of all ranks that this one has come to, and
  std::atomic<uint64_t> completed;  // those that it has seen complete
};

struct alignas(64) SharedHeader {
  std::atomic<int> ranks;
  std::atomic<uint32_t> changes;  // a futex: grows with everything that a waiting rank should look at
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

// The start time of a process that runs, nothing for one that has ended, even if nobody has waited for it yet.
static std::optional<uint64_t> start_of_process(int process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string state, skipped;
  uint64_t start = 0;
  fields >> state;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> start;
  if (state == "Z" || state == "X") return std::nullopt;
  return start;
}

// The file of a communicator, mapped. All ranks see zeros at first, so it needs no one to set it up.
class SharedFile {
 public:
  SharedFile(std::string path, int ranks) : path_(std::move(path)), ranks_(ranks) {
    bytes_ = sizeof(SharedHeader) + ranks * (sizeof(RankSlot) + 2 * sizeof(Stage));
    const int file = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (posix_fallocate(file, 0, static_cast<off_t>(bytes_)) == 0) {
      void* start = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      if (start != MAP_FAILED) start_ = static_cast<std::byte*>(start);
    }
    close(file);
  }
  SharedFile(const SharedFile&) = delete;
  ~SharedFile() {
    if (start_) munmap(start_, bytes_);
  }

  bool is_mapped() const { return start_ != nullptr; }
  void remove_name() const { unlink(path_.c_str()); }

  SharedHeader& header() const { return *reinterpret_cast<SharedHeader*>(start_); }
  RankSlot& slot(int rank) const { return reinterpret_cast<RankSlot*>(start_ + sizeof(SharedHeader))[rank]; }
  // Each rank has two stages and uses them in turn. That makes one meeting per step enough: who fills a stage again has
  // seen all ranks arrive at the step in between, and they had read the stage before that.
  Stage& stage(int rank, uint64_t step) const {
    std::byte* stages = start_ + sizeof(SharedHeader) + ranks_ * sizeof(RankSlot);
    return reinterpret_cast<Stage*>(stages)[2 * rank + static_cast<int>(step % 2)];
  }

  uint32_t changes() const { return header().changes.load(); }
  void tell_of_change() const {
    header().changes.fetch_add(1);
    syscall(SYS_futex, &header().changes, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
  // Returns false after a while without a change.
  bool wait_for_change(uint32_t seen) const {
    const timespec limit{0, std::chrono::nanoseconds(look_around_every).count()};
    const long result = syscall(SYS_futex, &header().changes, FUTEX_WAIT, seen, &limit, nullptr, 0);
    return result == 0 || errno != ETIMEDOUT;
  }

 private:
  std::string path_;
  int ranks_;
  size_t bytes_ = 0;
  std::byte* start_ = nullptr;
};

// ---- Communicators --------------------------------------------------------------------------------------------------

struct Range {
  void* start;
  size_t bytes;
};

class Communicator {
 public:
  Communicator(int number, int rank, int ranks, const std::string& path)
      : number(number), rank(rank), ranks(ranks), device(current_device()), file(path, ranks) {}

  ncclResult_t claim_rank();
  void wait_for_ranks();

  void abort();
  void destroy();
  void finish();

  // Turns follow the order of the calls. False: the communicator is broken, do not touch any buffer.
  uint64_t take_ticket() { return tickets_++; }
  bool begin_turn(uint64_t ticket);
  void end_turn();

  // All ranks have written their stages and see those of the others, or false.
  bool meet();
  uint64_t step() const { return step_; }

  void sleep(std::chrono::microseconds duration);
  void wait_for_abort();

  // The first error stays.
  void set_error(ncclResult_t error, const std::string& text);
  void break_with(ncclResult_t error, const std::string& text);
  ncclResult_t async_error() const { return async_error_.load(); }
  bool is_finished() const { return finished_.load(); }

  const int number, rank, ranks, device;
  const SharedFile file;

  std::mutex registered_mutex;
  std::map<void*, Range> registered;
  int registrations = 0;

 private:
  bool wait_for_all(uint64_t meeting);
  bool all_have_reached(uint64_t meeting) const;
  std::optional<std::string> missing_rank(uint64_t meeting, bool look_at_processes) const;
  void leave(Presence how);
  void change(std::atomic<bool>& flag);

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t tickets_ = 0;  // guarded by call_order()
  uint64_t serving_ = 0;
  bool is_running_ = false;
  uint64_t step_ = 0;  // belongs to the collective that has the turn
  std::atomic<bool> broken_{false}, aborted_{false}, finished_{false};
  std::atomic<ncclResult_t> async_error_{ncclInProgress};
};

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

static std::shared_ptr<Communicator> find_communicator(ncclComm_t handle) {
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

// ---- Collectives ----------------------------------------------------------------------------------------------------

struct Extent {
  std::byte* start;
  size_t bytes;

  std::byte* end() const { return start + bytes; }
};

// A collective that was called and not yet put into a queue.
struct Call {
  Kind kind;
  const std::byte* send;
  std::byte* receive;
  size_t count;
  const DataType* type;
  int root;
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<Stream> stream;

  // The bytes that each rank contributes or receives; one side of a gather or scatter is this times the ranks.
  size_t block() const { return count * type->bytes; }
  size_t own_offset() const { return communicator->rank * block(); }
  bool reads_input() const { return kind != Kind::broadcast || root == communicator->rank; }

  bool is_in_place() const {
    switch (kind) {
      case Kind::all_gather: return send == receive + own_offset();
      case Kind::reduce_scatter: return receive == send + own_offset();
      default: return send == receive;
    }
  }
  Extent input() const {
    auto* start = const_cast<std::byte*>(send);
    if (!reads_input()) return {start, 0};
    return {start, kind == Kind::reduce_scatter ? block() * communicator->ranks : block()};
  }
  Extent output() const { return {receive, kind == Kind::all_gather ? block() * communicator->ranks : block()}; }
  CallHeader header() const { return {kind, type->code, count, root}; }
};

enum class Fault { none, hangs, fails };

struct Operation : Call {
  explicit Operation(const Call& call) : Call(call) {}

  uint64_t number = 0;  // in the order of the calls of the process
  uint64_t ticket = 0;
  uint64_t pending = 0;
  Fault fault = Fault::none;
  std::optional<uint64_t> input_checksum;
  bool keeps_input = true;  // the input must still be the same when the collective has run

  std::string name() const { return std::string(kind_names[static_cast<int>(kind)]) + " #" + std::to_string(number); }
  uint64_t piece() const {
    if (kind != Kind::reduce_scatter) return stage_bytes;
    return stage_bytes / communicator->ranks / 64 * 64;  // the stage holds a piece for each rank
  }
};

static uint64_t checksum(Extent extent) {
  uint64_t hash = extent.bytes;
  for (size_t offset = 0; offset < extent.bytes; offset += sizeof hash) {
    uint64_t word = 0;
    std::memcpy(&word, extent.start + offset, std::min(sizeof word, extent.bytes - offset));
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return hash;
}

// The parts of `whole` before and after `hole`.
static std::array<Extent, 2> without(Extent whole, Extent hole) {
  if (hole.bytes == 0 || hole.start >= whole.end() || hole.end() <= whole.start) return {whole, {whole.start, 0}};
  const auto part = [](std::byte* begin, std::byte* end) {
    return Extent{begin, end > begin ? static_cast<size_t>(end - begin) : 0};
  };
  return {part(whole.start, hole.start), part(hole.end(), whole.end())};
}

// Makes a use of the output before the collective has run visible.
static void poison_output(const Operation& operation, const std::vector<Region>& reads) {
  for (const Extent part : without(operation.output(), operation.input())) {
    const std::vector<Region> regions = regions_of(part.start, part.bytes);
    if (part.bytes == 0 || pending_uses(regions) || overlap(regions, reads)) continue;
    std::memset(part.start, 0xff, part.bytes);
  }
}

static void guard_buffers(Operation& operation) {
  const Extent input = operation.input(), output = operation.output();
  PendingOperation pending{operation.name(),
                           regions_of(input.start, input.bytes),
                           regions_of(output.start, output.bytes),
                           {addresses_of(input.start, input.bytes), addresses_of(output.start, output.bytes)}};
  const bool reduces = operation.kind == Kind::all_reduce || operation.kind == Kind::reduce_scatter;
  operation.keeps_input = !reduces || !overlap(pending.reads, pending.writes);
  if (!pending_writes(pending.reads)) operation.input_checksum = checksum(input);
  poison_output(operation, pending.reads);
  operation.pending = add_pending(std::move(pending));
}

static void check_input(Operation& operation) {
  if (!operation.input_checksum || checksum(operation.input()) == *operation.input_checksum) return;
  operation.input_checksum.reset();
  // The collective goes on, so that the other ranks do not wait for it.
  operation.communicator->set_error(ncclInvalidUsage,
                                    "the input of " + operation.name() + " was changed before it was sent");
}

static void fill_stage(const Operation& operation, size_t offset, size_t length) {
  const Communicator& communicator = *operation.communicator;
  Stage& stage = communicator.file.stage(communicator.rank, communicator.step() + 1);
  stage.header = operation.header();
  if (length == 0 || !operation.reads_input()) return;
  if (operation.kind != Kind::reduce_scatter) {
    std::memcpy(stage.data, operation.send + offset, length);
    return;
  }
  for (int other = 0; other < communicator.ranks; ++other) {
    const std::byte* source = operation.send + other * operation.block() + offset;
    std::memcpy(stage.data + other * operation.piece(), source, length);
  }
}

static void sum_stages(const Operation& operation, size_t stage_offset, size_t offset, size_t length) {
  const Communicator& communicator = *operation.communicator;
  std::vector<const std::byte*> sources;
  for (int other = 0; other < communicator.ranks; ++other) {
    sources.push_back(communicator.file.stage(other, communicator.step()).data + stage_offset);
  }
  operation.type->sum(sources, operation.receive + offset, length);
}

static void gather_stages(const Operation& operation, size_t offset, size_t length) {
  const Communicator& communicator = *operation.communicator;
  for (int other = 0; other < communicator.ranks; ++other) {
    if (other == communicator.rank && operation.is_in_place()) continue;
    const Stage& stage = communicator.file.stage(other, communicator.step());
    std::memcpy(operation.receive + other * operation.block() + offset, stage.data, length);
  }
}

static void read_stages(const Operation& operation, size_t offset, size_t length) {
  if (length == 0) return;
  const Communicator& communicator = *operation.communicator;
  const bool is_root = operation.root == communicator.rank;
  switch (operation.kind) {
    case Kind::all_gather: return gather_stages(operation, offset, length);
    case Kind::all_reduce: return sum_stages(operation, 0, offset, length);
    case Kind::reduce_scatter: return sum_stages(operation, communicator.rank * operation.piece(), offset, length);
    case Kind::broadcast:
      if (is_root && operation.is_in_place()) return;
      const Stage& stage = communicator.file.stage(operation.root, communicator.step());
      std::memcpy(operation.receive + offset, stage.data, length);
  }
}

static std::string describe(const CallHeader& header) {
  return std::string(kind_names[static_cast<int>(header.kind)]) + " of " + std::to_string(header.count);
}

static std::string describe_mismatch(const CallHeader& own, int other_rank, const CallHeader& other) {
  std::string text = " called " + describe(own) + ", rank " + std::to_string(other_rank) + " " + describe(other);
  if (own.type != other.type) {
    text += std::string(" (") + find_type(own.type)->name + " and " + find_type(other.type)->name + ")";
  } else if (own.root != other.root) {
    text += " (roots " + std::to_string(own.root) + " and " + std::to_string(other.root) + ")";
  }
  return text;
}

static bool all_called_the_same(const Operation& operation) {
  Communicator& communicator = *operation.communicator;
  const CallHeader own = operation.header();
  for (int other = 0; other < communicator.ranks; ++other) {
    const CallHeader& header = communicator.file.stage(other, communicator.step()).header;
    if (header == own) continue;
    complain("rank " + std::to_string(communicator.rank) + describe_mismatch(own, other, header));
    communicator.break_with(ncclInvalidUsage, "mismatch in " + operation.name());
    return false;
  }
  return true;
}

static bool transfer(const Operation& operation) {
  size_t offset = 0;
  do {
    const size_t length = std::min(operation.piece(), operation.block() - offset);
    fill_stage(operation, offset, length);
    if (!operation.communicator->meet()) return false;
    if (offset == 0 && !all_called_the_same(operation)) return false;
    read_stages(operation, offset, length);
    offset += length;
  } while (offset < operation.block());
  return true;
}

static void run_with_turn(Operation& operation) {
  Communicator& communicator = *operation.communicator;
  communicator.sleep(settings().delay);
  if (operation.fault == Fault::fails) communicator.set_error(ncclRemoteError, operation.name() + " fails as told");
  if (operation.fault != Fault::none) return communicator.wait_for_abort();
  check_input(operation);
  if (transfer(operation) && operation.keeps_input) check_input(operation);
}

static void run(Operation& operation) {
  if (operation.communicator->begin_turn(operation.ticket)) {
    run_with_turn(operation);
    operation.communicator->end_turn();
  }
  remove_pending(operation.pending);
}

static Fault fault_of(uint64_t number) {
  if (number == settings().hanging_collective) return Fault::hangs;
  return number == settings().failing_collective ? Fault::fails : Fault::none;
}

static void enqueue(const Call& call) {
  static uint64_t called = 0;
  auto operation = std::make_shared<Operation>(call);
  std::unique_lock lock(call_order());
  operation->number = ++called;
  operation->fault = fault_of(operation->number);
  operation->ticket = call.communicator->take_ticket();
  guard_buffers(*operation);
  if (call.stream) return push(*call.stream, [operation] { run(*operation); });
  lock.unlock();
  run(*operation);
}

static void log_call(const Call& call) {
  const std::string root = call.kind == Kind::broadcast ? " root=" + std::to_string(call.root) : "";
  log("%s c%d stream=s%d count=%zu type=%s%s %s", kind_names[static_cast<int>(call.kind)], call.communicator->number,
      stream_number(call.stream), call.count, call.type->name, root.c_str(),
      call.is_in_place() ? "in_place" : "out_of_place");
}

struct Group {
  int depth = 0;
  ncclResult_t error = ncclSuccess;
  std::vector<Call> calls;
};
static thread_local Group group;

struct Request {
  Kind kind;
  const void* send;
  void* receive;
  size_t count;
  ncclDataType_t type;
  int root;
  ncclRedOp_t reduction;
  ncclComm_t communicator;
  CUstream stream;
};

static ncclResult_t check_communicator(const Communicator& communicator) {
  const ncclResult_t error = communicator.async_error();
  if (error == ncclInProgress) return refuse(ncclInvalidArgument, "the communicator is not ready");
  if (error == ncclSuccess && communicator.is_finished()) {
    return refuse(ncclInvalidUsage, "the communicator is finalized");
  }
  return error;
}

static ncclResult_t accept(const Request& request) {
  const auto communicator = find_communicator(request.communicator);
  if (!communicator) return ncclInvalidArgument;
  if (const ncclResult_t error = check_communicator(*communicator)) return error;
  const DataType* type = find_type(request.type);
  if (!type) return refuse(ncclInvalidArgument, "the data type is not one of those that the stand-in knows");
  if (request.reduction != ncclSum) return refuse(ncclInvalidArgument, "the reduction is not a sum");
  if (request.root < 0 || request.root >= communicator->ranks) return refuse(ncclInvalidArgument, "no such root");
  const auto stream = find_stream(request.stream);
  if (!stream) return refuse(ncclUnhandledCudaError, "no such stream");
  const Call call{request.kind,
                  static_cast<const std::byte*>(request.send),
                  static_cast<std::byte*>(request.receive),
                  request.count,
                  type,
                  request.root,
                  communicator,
                  *stream};
  const bool lacks_input = call.input().bytes > 0 && !request.send;
  const bool lacks_output = call.output().bytes > 0 && !request.receive;
  if (lacks_input || lacks_output) return refuse(ncclInvalidArgument, "a buffer is NULL");
  log_call(call);
  if (group.depth > 0) group.calls.push_back(call);
  else enqueue(call);
  return ncclSuccess;
}

static ncclResult_t submit(const Request& request) {
  const ncclResult_t result = accept(request);
  if (result != ncclSuccess && group.error == ncclSuccess && group.depth > 0) group.error = result;
  return result;
}

// ---- Making communicators -------------------------------------------------------------------------------------------

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

struct DeviceMemory {
  std::mutex mutex;
  std::map<void*, size_t> blocks;
};

static DeviceMemory& device_memory() {
  static DeviceMemory& memory = *new DeviceMemory;
  return memory;
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

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) {
  static thread_local std::string text;
  std::scoped_lock lock(last_error().mutex);
  text = last_error().text;
  return text.c_str();
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

ncclResult_t ncclMemAlloc(void** pointer, size_t bytes) {
  if (!pointer || bytes == 0) return refuse(ncclInvalidArgument, "nothing to allocate");
  constexpr size_t alignment = 4096;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (!take_memory(rounded)) return refuse(ncclUnhandledCudaError, "out of memory");
  *pointer = std::aligned_alloc(alignment, rounded);
  if (!*pointer) {
    give_back_memory(rounded);
    return refuse(ncclSystemError, "out of memory of the host");
  }
  std::scoped_lock lock(device_memory().mutex);
  device_memory().blocks[*pointer] = rounded;
  return ncclSuccess;
}

ncclResult_t ncclMemFree(void* pointer) {
  std::scoped_lock lock(device_memory().mutex);
  const auto found = device_memory().blocks.find(pointer);
  if (found == device_memory().blocks.end()) return refuse(ncclInvalidArgument, "not a pointer of ncclMemAlloc");
  give_back_memory(found->second);
  std::free(pointer);
  device_memory().blocks.erase(found);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  log("group_start");
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  log("group_end");
  if (--group.depth > 0) return ncclSuccess;
  const Group ended = std::exchange(group, Group{});
  if (ended.error != ncclSuccess) return ended.error;
  for (const Call& call : ended.calls) enqueue(call);
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           CUstream stream) {
  return submit({Kind::all_gather, send, receive, count, type, 0, ncclSum, comm, stream});
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, CUstream stream) {
  return submit({Kind::reduce_scatter, send, receive, count, type, 0, op, comm, stream});
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, CUstream stream) {
  return submit({Kind::all_reduce, send, receive, count, type, 0, op, comm, stream});
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, CUstream stream) {
  return submit({Kind::broadcast, send, receive, count, type, root, ncclSum, comm, stream});
}

}  // extern "C"
