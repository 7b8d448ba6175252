// What the files of NCCL's stand-in share: element types, the file of a communicator, and communicators.

#pragma once

#include "stand_in.hpp"

#include <atomic>
#include <condition_variable>
#include <map>

namespace stand_in {

// An element type, and how it is added up.
struct DataType {
  ncclDataType_t code;
  const char* name;
  size_t bytes;
  void (*sum)(const std::vector<const std::byte*>& sources, std::byte* target, size_t bytes);
};
// Null: none that is imitated.
const DataType* find_type(ncclDataType_t code);

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
std::optional<uint64_t> start_of_process(int process);

// The file of a communicator, mapped. All ranks see zeros at first, so it needs no one to set it up.
class SharedFile {
 public:
  SharedFile(std::string path, int ranks);
  SharedFile(const SharedFile&) = delete;
  ~SharedFile();

  bool is_mapped() const { return start_ != nullptr; }
  void remove_name() const;

  SharedHeader& header() const;
  RankSlot& slot(int rank) const;
  // Each rank has two stages and uses them in turn. That makes one meeting per step enough: who fills a stage again has
  // seen all ranks arrive at the step in between, and they had read the stage before that.
  Stage& stage(int rank, uint64_t step) const;

  uint32_t changes() const { return header().changes.load(); }
  void tell_of_change() const;
  // Returns false after a while without a change.
  bool wait_for_change(uint32_t seen) const;

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

// Null, with the reason as the last error: no such communicator.
std::shared_ptr<Communicator> find_communicator(ncclComm_t handle);

}  // namespace stand_in
