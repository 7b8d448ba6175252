// A use of a buffer that does not wait for its collective is seen.

#include "self_test.hpp"

#include <cmath>

namespace {

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

}  // namespace

void test_races() {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    test("poison of outputs", ranks, poison, slow);
    test("changed input", ranks, changed_input, slow);
  }
  test("chained collectives", 2, chained_collectives, slow);
}
