// Virtual memory, and what is known of it where races are looked for.

#include "self_test.hpp"

namespace {

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

}  // namespace

void test_memory() {
  test("virtual memory", 1, virtual_memory, {{"ZEROFOLD_STAND_IN_MEMORY", std::to_string(3 * page)}});
  test("guards know mappings", 2, guards_know_mappings, slow);
}
