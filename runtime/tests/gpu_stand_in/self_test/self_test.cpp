// Checks the stand-in for NCCL and the CUDA driver API by itself: processes are forked and call it as ranks.
//
//   c++ -std=c++20 -O1 -g -Wall -Wextra -I.. self_test.cpp ../driver.cpp ../nccl.cpp -o /tmp/self_test -lpthread
//   /tmp/self_test

#include "stand_in.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

// ---- Processes and checks -------------------------------------------------------------------------------------------

// What the processes of one test share besides the stand-in.
struct Shared {
  std::atomic<int> arrived;
  std::atomic<bool> has_id[4];
  ncclUniqueId id[4];
  std::atomic<int> process[4];
};

int failures = 0;  // of this process

void check(bool is_right, const char* what, int line) {
  if (is_right) return;
  ++failures;
  std::printf("    line %d of process %d: not so: %s\n", line, getpid(), what);
}
#define CHECK(condition) check(static_cast<bool>(condition), #condition, __LINE__)

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void pause_for(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

struct Rank {
  int rank, ranks;
  Shared& shared;
  std::string directory;

  // A barrier apart from the stand-in, for tests that need an order of events.
  void meet() {
    const int goal = (shared.arrived.fetch_add(1) / ranks + 1) * ranks;
    while (shared.arrived < goal) pause_for(1);
  }
  ncclUniqueId unique_id(int number = 0) {
    if (rank == 0) {
      CHECK(ncclGetUniqueId(&shared.id[number]) == ncclSuccess);
      shared.has_id[number] = true;
    }
    while (!shared.has_id[number]) pause_for(1);
    return shared.id[number];
  }
  ncclComm_t communicator(int number = 0) {
    ncclComm_t comm = nullptr;
    CHECK(ncclCommInitRank(&comm, ranks, unique_id(number), rank) == ncclSuccess);
    return comm;
  }
  std::string file(const std::string& name) const { return directory + "/" + name + "." + std::to_string(rank); }
  // What this process says on stderr from now on goes to a file.
  void catch_stderr() {
    const int target = open(file("stderr").c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(target, STDERR_FILENO);
    close(target);
  }
  std::string read(const std::string& name) const {
    std::ifstream stream(file(name));
    return {std::istreambuf_iterator<char>(stream), {}};
  }
};

using Environment = std::vector<std::pair<std::string, std::string>>;
using Body = std::function<void(Rank&)>;

[[noreturn]] void be_rank(Rank rank, const Environment& environment, const Body& body) {
  alarm(120);
  setenv("ZEROFOLD_STAND_IN_DIR", (rank.directory + "/comms").c_str(), 1);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  if (std::getenv("TEST_WANTS_LOG")) setenv("ZEROFOLD_STAND_IN_LOG", rank.file("log").c_str(), 1);
  rank.shared.process[rank.rank] = getpid();
  body(rank);
  std::fflush(stdout);
  std::exit(failures ? 1 : 0);
}

bool ended_well(int process, int expected_signal) {
  int status = 0;
  waitpid(process, &status, 0);
  if (WIFSIGNALED(status)) return WTERMSIG(status) == expected_signal;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool is_empty_now(const std::string& directory) { return std::filesystem::is_empty(directory); }

// Rank `killed` is expected to die of SIGKILL.
bool run_ranks(int ranks, const Body& body, const Environment& environment, int killed) {
  char pattern[] = "/tmp/gpu_stand_in.XXXXXX";
  const std::string directory = mkdtemp(pattern);
  std::filesystem::create_directory(directory + "/comms");
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* shared = new (memory) Shared{};
  std::vector<int> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    const int process = fork();
    if (process == 0) be_rank({rank, ranks, *shared, directory}, environment, body);
    processes.push_back(process);
  }
  // The killed one last: the others must see the end of a process that nobody has waited for.
  bool is_well = true;
  for (int rank = 0; rank < ranks; ++rank) is_well &= rank == killed || ended_well(processes[rank], 0);
  if (killed >= 0) is_well &= ended_well(processes[killed], SIGKILL);
  if (!is_empty_now(directory + "/comms")) {
    std::printf("    a communicator has left its file behind\n");
    is_well = false;
  }
  for (int rank = 0; !is_well && rank < ranks; ++rank) {
    std::ifstream said(directory + "/stderr." + std::to_string(rank));
    for (std::string line; std::getline(said, line);) std::printf("    rank %d said: %s\n", rank, line.c_str());
  }
  munmap(memory, sizeof(Shared));
  std::filesystem::remove_all(directory);
  return is_well;
}

int failed_tests = 0;

void test(const char* name, int ranks, const Body& body, const Environment& environment = {}, int killed = -1) {
  const auto start = Clock::now();
  const bool is_well = run_ranks(ranks, body, environment, killed);
  std::printf("%-4s %s, %d rank%s (%.2f s)\n", is_well ? "ok" : "FAIL", name, ranks, ranks == 1 ? "" : "s",
              seconds_since(start));
  std::fflush(stdout);
  failed_tests += !is_well;
}

CUstream new_stream() {
  CUstream stream = nullptr;
  CHECK(cuStreamCreateWithPriority(&stream, 1, -5) == CUDA_SUCCESS);
  return stream;
}

CUevent new_event() {
  CUevent event = nullptr;
  CHECK(cuEventCreate(&event, 0) == CUDA_SUCCESS);
  return event;
}

ncclResult_t async_error(ncclComm_t comm) {
  ncclResult_t error = ncclInternalError;
  CHECK(ncclCommGetAsyncError(comm, &error) == ncclSuccess);
  return error;
}

bool becomes(const std::function<bool()>& condition, double seconds) {
  const auto start = Clock::now();
  while (!condition()) {
    if (seconds_since(start) > seconds) return false;
    pause_for(2);
  }
  return true;
}

// Reads and writes that race with the stand-in on purpose.
#define RACES_ON_PURPOSE __attribute__((noinline, no_sanitize("thread")))
RACES_ON_PURPOSE float peek(const volatile float* value) { return *value; }
RACES_ON_PURPOSE void poke(volatile float* value, float written) { *value = written; }

// ---- Results --------------------------------------------------------------------------------------------------------

struct TypeUnderTest {
  ncclDataType_t code;
  size_t bytes;
};
constexpr TypeUnderTest types[] = {{ncclInt8, 1},    {ncclUint8, 1},    {ncclInt32, 4},   {ncclInt64, 8},
                                   {ncclFloat16, 2}, {ncclBfloat16, 2}, {ncclFloat32, 4}, {ncclFloat64, 8}};

using Bytes = std::vector<unsigned char>;

// A number of any rank that every rank can compute, with fractions that make the order of a sum visible.
double value_of(int rank, size_t index) {
  const uint64_t mixed = (index * 2654435761u + static_cast<uint64_t>(rank) * 40503u + 12345u) % 100003;
  return (static_cast<double>(mixed) - 50000.0) / (rank % 2 ? 777.0 : 3.0);
}

// Rounds to nearest even by searching among the float16 numbers: independent of the conversion under test.
uint16_t nearest_half(float value, float (*decode)(uint16_t)) {
  uint16_t low = 0, high = 0x7c00;
  const float magnitude = std::fabs(value);
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (decode(middle) <= magnitude ? low : high) = middle;
  }
  const double below = decode(low), above = high == 0x7c00 ? 65536.0 : decode(high);
  const double to_low = magnitude - below, to_high = above - magnitude;
  const bool takes_low = to_low < to_high || (to_low == to_high && low % 2 == 0);
  return static_cast<uint16_t>((takes_low ? low : high) | (std::signbit(value) ? 0x8000 : 0));
}

float decode_half(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const float magnitude = exponent ? std::ldexp(1.0f + mantissa / 1024.0f, exponent - 15) : std::ldexp(mantissa, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

float decode_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t encode_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rest = bits & 0xffff;
  uint32_t kept = bits >> 16;
  if (rest > 0x8000 || (rest == 0x8000 && kept % 2 == 1)) ++kept;
  return static_cast<uint16_t>(kept);
}

template <class Value>
void put(Bytes& bytes, size_t index, Value value) {
  std::memcpy(bytes.data() + index * sizeof value, &value, sizeof value);
}

void put_number(Bytes& bytes, size_t index, ncclDataType_t type, double number) {
  const auto whole = static_cast<int64_t>(number);
  switch (type) {
    case ncclInt8:
    case ncclUint8: return put(bytes, index, static_cast<uint8_t>(whole));
    case ncclInt32: return put(bytes, index, static_cast<uint32_t>(whole * 40000));
    case ncclInt64: return put(bytes, index, static_cast<uint64_t>(whole) << 40);
    case ncclFloat16: return put(bytes, index, nearest_half(static_cast<float>(number), decode_half));
    case ncclBfloat16: return put(bytes, index, encode_bfloat16(static_cast<float>(number)));
    case ncclFloat32: return put(bytes, index, static_cast<float>(number));
    default: return put(bytes, index, number);
  }
}

Bytes input_of(int rank, size_t count, TypeUnderTest type) {
  Bytes bytes(count * type.bytes);
  for (size_t index = 0; index < count; ++index) put_number(bytes, index, type.code, value_of(rank, index));
  return bytes;
}

template <class Value, class Sum>
void add_up(Bytes& result, const std::vector<Bytes>& inputs, Sum (*decode)(Value), Value (*encode)(Sum)) {
  for (size_t index = 0; index < result.size() / sizeof(Value); ++index) {
    Sum total{};
    for (size_t rank = 0; rank < inputs.size(); ++rank) {
      Value value;
      std::memcpy(&value, inputs[rank].data() + index * sizeof value, sizeof value);
      total = rank == 0 ? decode(value) : static_cast<Sum>(total + decode(value));
    }
    put(result, index, encode(total));
  }
}

template <class Value>
Value same(Value value) {
  return value;
}

Bytes sum_of_all(int ranks, size_t count, TypeUnderTest type) {
  std::vector<Bytes> inputs;
  for (int rank = 0; rank < ranks; ++rank) inputs.push_back(input_of(rank, count, type));
  Bytes result(count * type.bytes);
  switch (type.code) {
    case ncclInt8:
    case ncclUint8: add_up<uint8_t, uint8_t>(result, inputs, same, same); break;
    case ncclInt32: add_up<uint32_t, uint32_t>(result, inputs, same, same); break;
    case ncclInt64: add_up<uint64_t, uint64_t>(result, inputs, same, same); break;
    case ncclFloat16:
      add_up<uint16_t, float>(result, inputs, decode_half, [](float sum) { return nearest_half(sum, decode_half); });
      break;
    case ncclBfloat16: add_up<uint16_t, float>(result, inputs, decode_bfloat16, encode_bfloat16); break;
    case ncclFloat32: add_up<float, float>(result, inputs, same, same); break;
    default: add_up<double, double>(result, inputs, same, same);
  }
  return result;
}

Bytes part(const Bytes& whole, size_t index, size_t bytes) {
  const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(index * bytes);
  return Bytes(begin, begin + static_cast<std::ptrdiff_t>(bytes));
}

void check_all_reduce(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type,
                      const Bytes& sum) {
  const Bytes input = input_of(rank.rank, count, type);
  Bytes in_place = input, output(input.size());
  CHECK(ncclAllReduce(input.data(), output.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(in_place.data(), in_place.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(output == sum);
  CHECK(in_place == sum);
  CHECK(input == input_of(rank.rank, count, type));
}

// A reduce-scatter and a gather must give the bits of an all-reduce.
void check_scatter_and_gather(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type) {
  const size_t whole = count * rank.ranks, bytes = count * type.bytes;
  const Bytes sum = sum_of_all(rank.ranks, whole, type);
  const Bytes input = input_of(rank.rank, whole, type);
  Bytes in_place = input, slice(bytes), gathered(whole * type.bytes);
  unsigned char* own = in_place.data() + rank.rank * bytes;
  CHECK(ncclReduceScatter(input.data(), slice.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclReduceScatter(in_place.data(), own, count, type.code, ncclSum, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(slice == part(sum, rank.rank, bytes));
  CHECK(part(in_place, rank.rank, bytes) == slice);
  CHECK(ncclAllGather(slice.data(), gathered.data(), count, type.code, comm, stream) == ncclSuccess);
  CHECK(ncclAllGather(own, in_place.data(), count, type.code, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(gathered == sum);
  CHECK(in_place == sum);
}

void check_broadcast(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type) {
  const int root = rank.ranks - 1;
  const Bytes expected = input_of(root, count, type);
  Bytes buffer = input_of(rank.rank, count, type), input = buffer, output(buffer.size());
  const void* send = rank.rank == root ? input.data() : nullptr;
  CHECK(ncclBroadcast(buffer.data(), buffer.data(), count, type.code, root, comm, stream) == ncclSuccess);
  CHECK(ncclBroadcast(send, output.data(), count, type.code, root, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(buffer == expected);
  CHECK(output == expected);
}

void results(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  for (const TypeUnderTest type : types) {
    // Around the size of a stage, 256 KiB, and none at all.
    for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{1000}, 262144 / type.bytes + 5}) {
      check_all_reduce(rank, comm, stream, count, type, sum_of_all(rank.ranks, count, type));
      check_scatter_and_gather(rank, comm, stream, count, type);
      check_broadcast(rank, comm, stream, count, type);
    }
  }
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclCommFinalize(comm) == ncclSuccess);
  float value = 0;
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, stream) == ncclInvalidUsage);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclInvalidArgument);
  CHECK(cuStreamDestroy_v2(stream) == CUDA_SUCCESS);
  CHECK(cuStreamDestroy_v2(stream) == CUDA_ERROR_INVALID_HANDLE);
}

// Sums of one rank pass every number of a 16-bit type through its conversions.
void special_numbers(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  for (const ncclDataType_t type : {ncclFloat16, ncclBfloat16}) {
    std::vector<uint16_t> input(65536), output(65536);
    for (size_t bits = 0; bits < input.size(); ++bits) input[bits] = static_cast<uint16_t>(bits);
    CHECK(ncclAllReduce(input.data(), output.data(), input.size(), type, ncclSum, comm, nullptr) == ncclSuccess);
    const int infinity = type == ncclFloat16 ? 0x7c00 : 0x7f80;
    size_t wrong = 0;
    for (size_t bits = 0; bits < input.size(); ++bits) {
      const bool is_nan = (bits & 0x7fff) > static_cast<size_t>(infinity);
      wrong += is_nan ? (output[bits] & 0x7fff) <= infinity : output[bits] != bits;
    }
    CHECK(wrong == 0);
  }
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// ---- Order ----------------------------------------------------------------------------------------------------------

void events(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream(), follower = new_stream();
  const CUevent start = new_event(), end = new_event(), never = new_event();
  CHECK(cuEventQuery(never) == CUDA_SUCCESS);
  CHECK(cuStreamWaitEvent(nullptr, never, 0) == CUDA_SUCCESS);
  std::vector<float> values(8, 1.0f);
  CHECK(cuEventRecord(start, stream) == CUDA_SUCCESS);
  CHECK(ncclAllReduce(values.data(), values.data(), 8, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(cuEventRecord(end, stream) == CUDA_SUCCESS);
  CHECK(cuEventQuery(end) == CUDA_ERROR_NOT_READY);
  CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
  CHECK(cuStreamWaitEvent(follower, end, 0) == CUDA_SUCCESS);
  CHECK(cuStreamQuery(follower) == CUDA_ERROR_NOT_READY);
  // A wait keeps the record that was the latest when it was called.
  CHECK(cuEventRecord(end, nullptr) == CUDA_SUCCESS);
  CHECK(cuEventQuery(end) == CUDA_SUCCESS);
  CHECK(cuStreamQuery(follower) == CUDA_ERROR_NOT_READY);
  CHECK(cuEventRecord(end, follower) == CUDA_SUCCESS);
  float milliseconds = 0;
  CHECK(cuEventElapsedTime_v2(&milliseconds, start, end) == CUDA_ERROR_NOT_READY);
  CHECK(cuStreamWaitEvent(reinterpret_cast<CUstream>(1), end, 0) == CUDA_SUCCESS);
  CHECK(values[0] == static_cast<float>(rank.ranks));
  CHECK(cuEventElapsedTime(&milliseconds, start, end) == CUDA_SUCCESS);
  CHECK(milliseconds >= 195 && milliseconds < 5000);
  CHECK(cuEventElapsedTime(&milliseconds, start, never) == CUDA_ERROR_INVALID_HANDLE);
  CHECK(cuEventSynchronize(end) == CUDA_SUCCESS);
  CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
  CHECK(cuStreamQuery(follower) == CUDA_SUCCESS);
  CHECK(cuEventDestroy_v2(end) == CUDA_SUCCESS);
  CHECK(cuEventRecord(end, stream) == CUDA_ERROR_INVALID_HANDLE);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// Collectives on several streams must meet their partners in the order of the calls.
void streams_in_order(Rank& rank) {
  const ncclComm_t comm = rank.communicator(), other = rank.communicator(1);
  CUstream streams[3] = {new_stream(), new_stream(), new_stream()};
  std::vector<std::vector<float>> values(60);
  for (int call = 0; call < 60; ++call) {
    values[call].assign(10 + call, static_cast<float>(call));
    // Each rank takes other streams.
    const CUstream stream = streams[(call * 7 + rank.rank * call) % 3];
    const ncclComm_t chosen = call % 5 == 0 ? other : comm;
    CHECK(ncclAllReduce(values[call].data(), values[call].data(), values[call].size(), ncclFloat32, ncclSum, chosen,
                        stream) == ncclSuccess);
  }
  CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
  for (int call = 0; call < 60; ++call) CHECK(values[call].back() == static_cast<float>(call * rank.ranks));
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(other) == ncclSuccess);
}

void groups(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  std::vector<float> first(4, 1.0f), second(4, 2.0f);
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclAllReduce(first.data(), first.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclGroupEnd() == ncclSuccess);
  CHECK(cuStreamQuery(stream) == CUDA_SUCCESS);
  CHECK(ncclAllReduce(second.data(), second.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  second.assign(4, 3.0f);  // allowed: nothing is in a queue before the end of the group
  CHECK(ncclGroupEnd() == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(first[3] == static_cast<float>(rank.ranks));
  CHECK(second[3] == 3.0f * static_cast<float>(rank.ranks));
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  // A wrong call spoils its group.
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclAllReduce(first.data(), first.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(first.data(), first.data(), 4, 77, ncclSum, comm, stream) == ncclInvalidArgument);
  CHECK(ncclGroupEnd() == ncclInvalidArgument);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(first[3] == static_cast<float>(rank.ranks));
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// ---- Errors ---------------------------------------------------------------------------------------------------------

void arguments(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  float value = 1;
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, nullptr, nullptr) == ncclInvalidArgument);
  CHECK(std::string(ncclGetLastError(nullptr)).find("NULL") != std::string::npos);
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, 2, comm, nullptr) == ncclInvalidArgument);
  CHECK(ncclAllReduce(&value, &value, 1, 3, ncclSum, comm, nullptr) == ncclInvalidArgument);
  CHECK(ncclAllReduce(nullptr, &value, 1, ncclFloat32, ncclSum, comm, nullptr) == ncclInvalidArgument);
  CHECK(ncclBroadcast(&value, &value, 1, ncclFloat32, rank.ranks, comm, nullptr) == ncclInvalidArgument);
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, reinterpret_cast<CUstream>(64)) ==
        ncclUnhandledCudaError);
  ncclComm_t none = nullptr;
  ncclConfig_t config{sizeof config, 0, 22907, 1};
  CHECK(ncclCommInitRank(&none, 2, ncclUniqueId{}, 2) == ncclInvalidArgument);
  CHECK(ncclCommInitRankConfig(&none, 1, ncclUniqueId{}, 0, &config) == ncclInvalidArgument);
  int count = 0, own = -1, device = -1, version = 0;
  CHECK(ncclCommCount(comm, &count) == ncclSuccess && count == rank.ranks);
  CHECK(ncclCommUserRank(comm, &own) == ncclSuccess && own == rank.rank);
  CHECK(ncclCommCuDevice(comm, &device) == ncclSuccess && device == 0);
  CHECK(ncclGetVersion(&version) == ncclSuccess && version == 22907);
  void *registered = nullptr, *allocated = nullptr;
  CHECK(ncclMemAlloc(&allocated, 10000) == ncclSuccess);
  CHECK(ncclCommRegister(comm, allocated, 10000, &registered) == ncclSuccess);
  CHECK(ncclCommDeregister(comm, registered) == ncclSuccess);
  CHECK(ncclCommDeregister(comm, registered) == ncclInvalidArgument);
  CHECK(ncclMemFree(allocated) == ncclSuccess);
  CHECK(ncclMemFree(&value) == ncclInvalidArgument);
  CHECK(std::string(ncclGetErrorString(ncclRemoteError)).starts_with("remote process"));
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

void init_without_blocking(Rank& rank) {
  const ncclUniqueId id = rank.unique_id();
  ncclConfig_t config{sizeof config, nccl_config_magic, 22907, 0};
  ncclComm_t comm = nullptr;
  if (rank.rank > 0) rank.meet();
  CHECK(ncclCommInitRankConfig(&comm, rank.ranks, id, rank.rank, &config) == ncclInProgress);
  float value = 1;
  if (rank.rank == 0) {
    CHECK(async_error(comm) == ncclInProgress);
    CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, nullptr) == ncclInvalidArgument);
    rank.meet();
  }
  CHECK(becomes([&] { return async_error(comm) == ncclSuccess; }, 5));
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, nullptr) == ncclSuccess);
  CHECK(value == static_cast<float>(rank.ranks));
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// Nobody else joins.
void abort_of_init(Rank& rank) {
  ncclConfig_t config{sizeof config, nccl_config_magic, 22907, 0};
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRankConfig(&comm, 2, rank.unique_id(), 0, &config) == ncclInProgress);
  pause_for(50);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  CHECK(ncclCommAbort(comm) == ncclInvalidArgument);
}

// Rank 0 waits for the others, which never call, and aborts from another thread.
void abort_while_blocked(Rank& rank) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream(), other = new_stream();
  if (rank.rank == 0) {
    std::vector<float> values(4, 1.0f), next(4, 2.0f);
    CHECK(ncclAllReduce(values.data(), values.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
    CHECK(ncclAllReduce(next.data(), next.data(), 4, ncclFloat32, ncclSum, comm, other) == ncclSuccess);
    const CUevent event = new_event();
    CHECK(cuEventRecord(event, other) == CUDA_SUCCESS);
    std::thread watchdog([&] {
      pause_for(100);
      CHECK(ncclCommAbort(comm) == ncclSuccess);
    });
    const auto start = Clock::now();
    CHECK(cuStreamWaitEvent(nullptr, event, 0) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
    CHECK(seconds_since(start) > 0.09 && seconds_since(start) < 1);
    watchdog.join();
    CHECK(values[0] == 1.0f && next[0] == 2.0f);
    CHECK(ncclAllReduce(values.data(), values.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclInvalidArgument);
  }
  rank.meet();
  if (rank.rank > 0) {
    float value = 1;
    CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, nullptr) == ncclSuccess);
    CHECK(async_error(comm) == ncclRemoteError);
    CHECK(value == 1.0f);
    CHECK(rank.read("stderr").find("has aborted") != std::string::npos);
    CHECK(ncclCommAbort(comm) == ncclSuccess);
  }
}

void dead_peer(Rank& rank) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const int victim = rank.ranks - 1;
  if (rank.rank == victim) {
    rank.meet();
    pause();
  }
  const CUstream stream = new_stream();
  std::vector<float> values(4, 1.0f), next(4, 2.0f);
  CHECK(ncclAllReduce(values.data(), values.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(next.data(), next.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  pause_for(100);
  CHECK(async_error(comm) == ncclSuccess);
  rank.meet();
  if (rank.rank == 0) kill(rank.shared.process[victim], SIGKILL);
  const auto start = Clock::now();
  CHECK(becomes([&] { return async_error(comm) == ncclRemoteError; }, 1));
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(seconds_since(start) < 1.2);
  CHECK(values[0] == 1.0f && next[0] == 2.0f);
  CHECK(ncclAllReduce(values.data(), values.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclRemoteError);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
}

void dead_peer_in_init(Rank& rank) {
  rank.catch_stderr();
  if (rank.rank == 0) {
    ncclComm_t comm = nullptr;
    ncclCommInitRank(&comm, 3, rank.unique_id(), 0);
  }
  const ncclUniqueId id = rank.unique_id();
  CHECK(becomes([&] { return !is_empty_now(rank.directory + "/comms"); }, 5));
  pause_for(100);
  kill(rank.shared.process[0], SIGKILL);
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRank(&comm, 3, id, 1) == ncclRemoteError);
  CHECK(comm == nullptr);
}

using Caller = std::function<ncclResult_t(ncclComm_t comm, float* buffer, CUstream stream)>;

void mismatch(Rank& rank, const Caller& first, const Caller& second, const std::string& text) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  std::vector<float> values(64, 1.0f);
  CHECK((rank.rank == 0 ? first : second)(comm, values.data(), stream) == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(async_error(comm) == ncclInvalidUsage);
  if (rank.rank == 0) CHECK(rank.read("stderr").find("stand-in: " + text) != std::string::npos);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
}

ncclResult_t gather_eight(ncclComm_t comm, float* buffer, CUstream stream) {
  return ncclAllGather(buffer, buffer + 32, 8, ncclFloat32, comm, stream);
}

void mismatches() {
  const Caller scatter = [](ncclComm_t comm, float* buffer, CUstream stream) {
    return ncclReduceScatter(buffer, buffer + 32, 4, ncclFloat32, ncclSum, comm, stream);
  };
  const Caller longer = [](ncclComm_t comm, float* buffer, CUstream stream) {
    return ncclAllGather(buffer, buffer + 32, 9, ncclFloat32, comm, stream);
  };
  const Caller integers = [](ncclComm_t comm, float* buffer, CUstream stream) {
    return ncclAllGather(buffer, buffer + 32, 8, ncclInt32, comm, stream);
  };
  const auto from = [](int root) {
    return [root](ncclComm_t comm, float* buffer, CUstream stream) {
      return ncclBroadcast(buffer, buffer, 8, ncclFloat32, root, comm, stream);
    };
  };
  test("mismatch of the kind", 2, [&](Rank& rank) {
    mismatch(rank, gather_eight, scatter, "rank 0 called all_gather of 8, rank 1 reduce_scatter of 4");
  });
  test("mismatch of the count", 2, [&](Rank& rank) {
    mismatch(rank, gather_eight, longer, "rank 0 called all_gather of 8, rank 1 all_gather of 9");
  });
  test("mismatch of the type", 2, [&](Rank& rank) {
    mismatch(rank, gather_eight, integers, "rank 0 called all_gather of 8, rank 1 all_gather of 8 (float32 and int32)");
  });
  test("mismatch of the root", 2, [&](Rank& rank) {
    mismatch(rank, from(0), from(1), "rank 0 called broadcast of 8, rank 1 broadcast of 8 (roots 0 and 1)");
  });
}

// ---- Races ----------------------------------------------------------------------------------------------------------

void poison(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  std::vector<float> gathered(2 * rank.ranks, 5.0f), sent(2, 1.0f);
  float* own = gathered.data() + 2 * rank.rank;
  own[0] = own[1] = static_cast<float>(rank.rank);
  CHECK(ncclAllGather(own, gathered.data(), 2, ncclFloat32, comm, stream) == ncclSuccess);
  for (int index = 0; index < 2 * rank.ranks; ++index) {
    const float seen = peek(&gathered[index]);
    CHECK(index / 2 == rank.rank ? seen == static_cast<float>(rank.rank) : std::isnan(seen));
  }
  // The second collective writes what the first still reads: it may not poison it.
  std::vector<float> first_result(2, 0.0f);
  CHECK(ncclAllReduce(sent.data(), first_result.data(), 2, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(std::isnan(peek(&first_result[0])));
  CHECK(ncclAllReduce(own, sent.data(), 2, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(peek(&sent[0]) == 1.0f);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  for (int index = 0; index < 2 * rank.ranks; ++index) CHECK(gathered[index] == static_cast<float>(index / 2));
  CHECK(first_result[1] == static_cast<float>(rank.ranks));
  CHECK(sent[1] == static_cast<float>(rank.ranks * (rank.ranks - 1) / 2));
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

void changed_input(Rank& rank) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  std::vector<float> values(4 * rank.ranks, 1.0f), result(4);
  CHECK(ncclReduceScatter(values.data(), result.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  if (rank.rank == 0) poke(&values[1], 2.0f);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  const bool is_reported =
      rank.read("stderr").find("stand-in: the input of reduce_scatter #1 was changed before it was sent\n") !=
      std::string::npos;
  CHECK(is_reported == (rank.rank == 0));
  CHECK(async_error(comm) == (rank.rank == 0 ? ncclInvalidUsage : ncclSuccess));
  // The others are not left waiting.
  CHECK(result[2] == static_cast<float>(rank.ranks));
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// A collective may send what an earlier one, still in the queue, will write.
void chained_collectives(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream(), other = new_stream();
  const CUevent done = new_event();
  std::vector<float> values(4, 1.0f), copy(4, 0.0f);
  CHECK(ncclAllReduce(values.data(), values.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(cuEventRecord(done, stream) == CUDA_SUCCESS);
  CHECK(cuStreamWaitEvent(other, done, 0) == CUDA_SUCCESS);
  CHECK(ncclAllReduce(values.data(), copy.data(), 4, ncclFloat32, ncclSum, comm, other) == ncclSuccess);
  CHECK(cuStreamSynchronize(other) == CUDA_SUCCESS);
  CHECK(copy[0] == static_cast<float>(rank.ranks * rank.ranks));
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// ---- Virtual memory -------------------------------------------------------------------------------------------------

constexpr size_t page = size_t{2} << 20;
constexpr CUmemAllocationProp on_device = {
    CU_MEM_ALLOCATION_TYPE_PINNED, 0, {CU_MEM_LOCATION_TYPE_DEVICE, 0}, nullptr, {}};
constexpr CUmemAccessDesc read_and_write = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

float* at(CUdeviceptr pointer) { return reinterpret_cast<float*>(pointer); }

// One allocation at three places of a reserved range of four pages.
CUdeviceptr map_three_times(CUmemGenericAllocationHandle handle) {
  CUdeviceptr base = 0;
  CHECK(cuMemAddressReserve(&base, 4 * page, 0, 0, 0) == CUDA_SUCCESS);
  CHECK(base % page == 0);
  for (int place = 0; place < 3; ++place) CHECK(cuMemMap(base + place * page, page, 0, handle, 0) == CUDA_SUCCESS);
  CHECK(cuMemSetAccess(base, 3 * page, &read_and_write, 1) == CUDA_SUCCESS);
  return base;
}

void virtual_memory(Rank&) {
  size_t granularity = 0, free_bytes = 0, total = 0;
  CHECK(cuMemGetAllocationGranularity(&granularity, &on_device, 0) == CUDA_SUCCESS && granularity == page);
  CUmemGenericAllocationHandle handle = 0, too_large = 0;
  CHECK(cuMemCreate(&handle, page + 1, &on_device, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemCreate(&too_large, 4 * page, &on_device, 0) == CUDA_ERROR_OUT_OF_MEMORY);
  CHECK(cuMemCreate(&handle, page, &on_device, 0) == CUDA_SUCCESS);
  const CUdeviceptr base = map_three_times(handle);
  at(base)[3] = 7.0f;
  CHECK(at(base + page)[3] == 7.0f && at(base + 2 * page)[3] == 7.0f);
  CHECK(cuMemsetD8_v2(base + page, 0, 64) == CUDA_SUCCESS);
  CHECK(at(base)[3] == 0.0f);
  CHECK(cuMemMap(base, page, 0, handle, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemMap(base + 4 * page, page, 0, handle, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemSetAccess(base, 4 * page, &read_and_write, 1) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemRelease(handle) == CUDA_SUCCESS);
  CHECK(cuMemRelease(handle) == CUDA_ERROR_INVALID_VALUE);
  at(base)[5] = 9.0f;  // the mappings keep the memory
  CHECK(at(base + page)[5] == 9.0f);
  CHECK(cuMemGetInfo_v2(&free_bytes, &total) == CUDA_SUCCESS && free_bytes == total - page && total == 3 * page);
  CHECK(cuMemAddressFree(base, 4 * page) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemUnmap(base, page / 2) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemUnmap(base, 3 * page) == CUDA_SUCCESS);
  CHECK(cuMemGetInfo_v2(&free_bytes, &total) == CUDA_SUCCESS && free_bytes == total);
  CHECK(cuMemAddressFree(base, 4 * page) == CUDA_SUCCESS);
}

// Two mappings of one allocation are one memory for the guards against races.
void guards_know_mappings(Rank& rank) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  CUmemGenericAllocationHandle handle = 0;
  CHECK(cuMemCreate(&handle, page, &on_device, 0) == CUDA_SUCCESS);
  const CUdeviceptr base = map_three_times(handle);
  std::vector<float> result(4), sent(4, 3.0f);
  std::fill_n(at(base), 4, 2.0f);
  CHECK(ncclAllReduce(at(base), result.data(), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(sent.data(), at(base + page), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(peek(at(base)) == 2.0f);
  CHECK(cuMemUnmap(base, page) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuMemUnmap(base + 2 * page, page) == CUDA_SUCCESS);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(result[0] == 2.0f * static_cast<float>(rank.ranks));
  CHECK(at(base)[0] == 3.0f * static_cast<float>(rank.ranks));
  // In place, through another mapping.
  CHECK(ncclAllReduce(at(base), at(base + page), 4, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(at(base)[0] == 3.0f * static_cast<float>(rank.ranks * rank.ranks));
  CHECK(rank.read("stderr") == "stand-in: cuMemUnmap of memory that all_reduce #1 still uses\n");
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

// ---- Settings -------------------------------------------------------------------------------------------------------

void devices(Rank&) {
  int count = 0, major = 0, minor = -1, maps = 0, other = 1, can_access = 0, least = 1, greatest = 1, version = 0;
  CHECK(cuInit(0) == CUDA_SUCCESS);
  CHECK(cuDriverGetVersion(&version) == CUDA_SUCCESS && version == 13000);
  CHECK(cuDeviceGetCount(&count) == CUDA_SUCCESS && count == 2);
  CUdevice device = -1;
  CHECK(cuDeviceGet(&device, 2) == CUDA_ERROR_INVALID_DEVICE);
  CHECK(cuDeviceGet(&device, 1) == CUDA_SUCCESS && device == 1);
  CHECK(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 1) == CUDA_SUCCESS && major == 7);
  CHECK(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 1) == CUDA_SUCCESS && minor == 5);
  CHECK(cuDeviceGetAttribute(&maps, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1) == CUDA_SUCCESS &&
        maps == 1);
  CHECK(cuDeviceGetAttribute(&other, 16, 1) == CUDA_SUCCESS && other == 0);
  char name[64], bus[16];
  CUuuid first, second;
  size_t bytes = 0;
  CHECK(cuDeviceGetName(name, sizeof name, 1) == CUDA_SUCCESS && std::strlen(name) > 0);
  CHECK(cuDeviceGetPCIBusId(bus, sizeof bus, 1) == CUDA_SUCCESS && std::string(bus) == "0000:02:00.0");
  CHECK(cuDeviceGetUuid(&first, 0) == CUDA_SUCCESS && cuDeviceGetUuid_v2(&second, 1) == CUDA_SUCCESS);
  CHECK(std::memcmp(&first, &second, sizeof first) != 0);
  CHECK(cuDeviceTotalMem_v2(&bytes, 1) == CUDA_SUCCESS && bytes == 1000);
  CHECK(cuDeviceCanAccessPeer(&can_access, 0, 1) == CUDA_SUCCESS && can_access == 1);
  CUcontext context = nullptr, current = nullptr;
  CHECK(cuDevicePrimaryCtxRetain(&context, 1) == CUDA_SUCCESS);
  CHECK(cuCtxSetCurrent(reinterpret_cast<CUcontext>(&count)) == CUDA_ERROR_INVALID_CONTEXT);
  CHECK(cuCtxSetCurrent(context) == CUDA_SUCCESS);
  CHECK(cuCtxGetCurrent(&current) == CUDA_SUCCESS && current == context);
  CHECK(cuDevicePrimaryCtxRelease_v2(1) == CUDA_SUCCESS);
  CHECK(cuCtxGetStreamPriorityRange(&least, &greatest) == CUDA_SUCCESS && least == 0 && greatest == -5);
  const char* text = nullptr;
  CHECK(cuGetErrorName(CUDA_ERROR_NOT_READY, &text) == CUDA_SUCCESS && std::string(text) == "CUDA_ERROR_NOT_READY");
  CHECK(cuGetErrorString(CUDA_ERROR_NO_DEVICE, &text) == CUDA_SUCCESS && std::strstr(text, "device"));
  CHECK(cuGetErrorName(static_cast<CUresult>(12345), &text) == CUDA_ERROR_INVALID_VALUE && text == nullptr);
}

void no_device(Rank&) {
  int count = -1;
  CHECK(cuInit(0) == CUDA_ERROR_NO_DEVICE);
  CHECK(cuDeviceGetCount(&count) == CUDA_SUCCESS && count == 0);
}

void failing_init(Rank& rank) {
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRank(&comm, 1, rank.unique_id(), 0) == ncclUnhandledCudaError);
}

// The second collective of the process does not complete until it is aborted.
void stuck_collective(Rank& rank, ncclResult_t expected_error) {
  rank.catch_stderr();
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  float value = 1, stuck = 1;
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclAllReduce(&stuck, &stuck, 1, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  CHECK(becomes([&] { return async_error(comm) == expected_error; }, 1));
  pause_for(100);
  CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
  CHECK(ncclCommAbort(comm) == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(value == static_cast<float>(rank.ranks) && stuck == 1.0f);
}

void log_file(Rank& rank) {
  const ncclComm_t comm = rank.communicator(), second = rank.communicator(1);
  const CUstream stream = new_stream();
  const CUevent event = new_event();
  std::vector<uint16_t> values(4 * rank.ranks, 0);
  void* handle = nullptr;
  CHECK(cuEventRecord(event, nullptr) == CUDA_SUCCESS);
  CHECK(cuStreamWaitEvent(stream, event, 0) == CUDA_SUCCESS);
  CHECK(ncclCommRegister(comm, values.data(), 16, &handle) == ncclSuccess);
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclAllGather(&values[4 * rank.rank], values.data(), 4, ncclBfloat16, comm, stream) == ncclSuccess);
  CHECK(ncclGroupEnd() == ncclSuccess);
  CHECK(ncclBroadcast(values.data(), values.data(), 2, ncclFloat16, 1, comm, stream) == ncclSuccess);
  CHECK(cuStreamSynchronize(stream) == CUDA_SUCCESS);
  CHECK(ncclCommDeregister(comm, handle) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
  CHECK(ncclCommAbort(second) == ncclSuccess);
  CHECK(cuStreamDestroy_v2(stream) == CUDA_SUCCESS);
  const std::string self = std::to_string(rank.rank);
  CHECK(rank.read("log") == "comm_init c1 rank=" + self + " of 2\ncomm_init c2 rank=" + self + " of 2\n" +
                                "stream_create s1 priority=-5\nevent_record e1 stream=s0\n"
                                "stream_wait stream=s1 event=e1\nregister c1 bytes=16\ngroup_start\n"
                                "all_gather c1 stream=s1 count=4 type=bfloat16 in_place\ngroup_end\n"
                                "broadcast c1 stream=s1 count=2 type=float16 root=1 in_place\n"
                                "stream_synchronize s1\nderegister c1 bytes=16\ncomm_destroy c1\ncomm_abort c2\n"
                                "stream_destroy s1\n");
}

}  // namespace

int main() {
  const Environment slow = {{"ZEROFOLD_STAND_IN_DELAY_US", "200000"}};
  for (int ranks = 1; ranks <= 4; ++ranks) {
    test("results of all types", ranks, results);
    test("streams in order", ranks, streams_in_order);
    test("poison of outputs", ranks, poison, slow);
    test("changed input", ranks, changed_input, slow);
  }
  test("special numbers", 1, special_numbers);
  test("events", 2, events, slow);
  test("groups", 3, groups);
  test("chained collectives", 2, chained_collectives, slow);
  test("arguments", 2, arguments);
  test("init without blocking", 3, init_without_blocking);
  test("abort of init", 1, abort_of_init);
  for (int ranks = 2; ranks <= 4; ++ranks) {
    test("abort while blocked", ranks, abort_while_blocked);
    test("dead peer", ranks, dead_peer, {}, ranks - 1);
  }
  test("dead peer in init", 2, dead_peer_in_init, {}, 0);
  mismatches();
  test("virtual memory", 1, virtual_memory, {{"ZEROFOLD_STAND_IN_MEMORY", std::to_string(3 * page)}});
  test("guards know mappings", 2, guards_know_mappings, slow);
  test("devices", 1, devices,
       {{"ZEROFOLD_STAND_IN_DEVICES", "2"},
        {"ZEROFOLD_STAND_IN_CAPABILITY", "7.5"},
        {"ZEROFOLD_STAND_IN_MEMORY", "1000"}});
  test("no device", 1, no_device, {{"ZEROFOLD_STAND_IN_FAIL", "no-device"}});
  test("failing init", 1, failing_init, {{"ZEROFOLD_STAND_IN_FAIL", "init"}});
  test("asynchronous error", 2, [](Rank& rank) { stuck_collective(rank, ncclRemoteError); },
       {{"ZEROFOLD_STAND_IN_FAIL", "async:2"}});
  test("hanging collective", 2, [](Rank& rank) { stuck_collective(rank, ncclSuccess); },
       {{"ZEROFOLD_STAND_IN_FAIL", "hang:2"}});
  test("log", 2, log_file, {{"TEST_WANTS_LOG", "1"}});
  if (failed_tests) std::printf("%d tests failed\n", failed_tests);
  else std::printf("all tests passed\n");
  return failed_tests ? 1 : 0;
}
