// Wrong calls, aborts, dead peers, and ranks that do not call the same.

#include "self_test.hpp"

#include <csignal>

namespace {

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

}  // namespace

void test_errors() {
  test("arguments", 2, arguments);
  test("init without blocking", 3, init_without_blocking);
  test("abort of init", 1, abort_of_init);
  for (int ranks = 2; ranks <= 4; ++ranks) {
    test("abort while blocked", ranks, abort_while_blocked);
    test("dead peer", ranks, dead_peer, {}, ranks - 1);
  }
  test("dead peer in init", 2, dead_peer_in_init, {}, 0);
  mismatches();
}
