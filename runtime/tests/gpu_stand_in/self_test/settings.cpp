// What the environment can ask for: devices, failures, the log.

#include "self_test.hpp"

namespace {

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

void test_settings() {
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
}
