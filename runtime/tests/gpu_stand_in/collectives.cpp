// Collectives: from the call through the queue of a stream to the result. See communicator.hpp.

#include "communicator.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace stand_in {

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

}  // namespace stand_in

using namespace stand_in;

extern "C" {

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
