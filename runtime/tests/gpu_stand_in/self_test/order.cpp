// Streams, events and groups keep the order that the calls say.

#include "self_test.hpp"

namespace {

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

}  // namespace

void test_order() {
  for (int ranks = 1; ranks <= 4; ++ranks) test("streams in order", ranks, streams_in_order);
  test("events", 2, events, slow);
  test("groups", 3, groups);
}
