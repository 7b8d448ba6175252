// A stand-in for NCCL and the CUDA driver API, for tests on machines without a GPU.
//
// It is loaded under the names libnccl.so and libcuda.so.1 (two links to ONE file, so that both share one state) and is
// never shipped. The C names and the binary layout are those of CUDA 13.0 and NCCL 2.29; "device memory" is the memory
// of the process, and a communicator joins processes of one machine through a shared file.
//
// What it imitates
//   - streams: each is a thread with a first-in-first-out queue, so work is asynchronous; events, waits, elapsed times;
//   - virtual memory: one physical allocation can be mapped several times into one reserved range;
//   - the collectives, with sums in the order of the ranks, so that results do not depend on timing;
//   - order: the collectives of a communicator run in the order of the calls, on whatever streams they are;
//   - errors: argument checks, asynchronous errors, dead or aborted peers, ranks that call different collectives.
// What it adds, to catch races
//   - an output is filled with 0xFF bytes (NaN) until its collective has run, unless an earlier one still uses it;
//   - an input that changes between the call and the end of its collective is reported.
//
// What it does not imitate
//   - the NULL stream is the host: tests compute on the CPU at the time of the call. An event recorded there is
//     complete at once, a wait blocks the caller, a collective runs in the caller. It does not order other streams.
//   - calls do not need cuInit or a current context, priorities have no effect, CUDA_VISIBLE_DEVICES is not read;
//   - ncclGroupStart/End bundle collectives only: a communicator is made at the call, not at the end of a group;
//   - NCCL leaves a peer that aborts unnoticed on some transports; here its peers always get ncclRemoteError;
//   - after a dead peer or a mismatch, the queued collectives of the communicator complete without touching a buffer;
//   - a collective of zero elements meets its peers like any other.
//
// Environment
//   ZEROFOLD_STAND_IN_DIR         where communicators put their files (default /dev/shm)
//   ZEROFOLD_STAND_IN_LOG         a file that gets one line per call, in the order of the calls
//   ZEROFOLD_STAND_IN_DELAY_US    every collective sleeps this long before it runs (default 0)
//   ZEROFOLD_STAND_IN_DEVICES     number of devices (default 8)
//   ZEROFOLD_STAND_IN_CAPABILITY  compute capability (default 9.0)
//   ZEROFOLD_STAND_IN_MEMORY      bytes of memory of each device (default 16 GiB)
//   ZEROFOLD_STAND_IN_FAIL        one of
//     init       ncclCommInitRank gives ncclUnhandledCudaError
//     async:N    the N-th collective of the process gives its communicator ncclRemoteError, and completes when aborted
//     hang:N     the N-th collective of the process completes only when its communicator is aborted
//     no-device  cuInit gives CUDA_ERROR_NO_DEVICE, and there are 0 devices

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

// ---- The C interface ------------------------------------------------------------------------------------------------

enum CUresult : int {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_CONTEXT = 201,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_READY = 600,
};

enum ncclResult_t : int {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};

// Enumerations that callers pass in are plain integers, because a caller may pass a value that is not imitated.
using ncclDataType_t = int;
constexpr ncclDataType_t ncclInt8 = 0, ncclUint8 = 1, ncclInt32 = 2, ncclInt64 = 4, ncclFloat16 = 6, ncclFloat32 = 7,
                         ncclFloat64 = 8, ncclBfloat16 = 9;
using ncclRedOp_t = int;
constexpr ncclRedOp_t ncclSum = 0;
using CUdevice_attribute = int;
constexpr CUdevice_attribute CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
                             CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
                             CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102;
constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
constexpr int CU_MEM_ALLOCATION_TYPE_PINNED = 1, CU_MEM_LOCATION_TYPE_DEVICE = 1;
constexpr int CU_MEM_ACCESS_FLAGS_PROT_READ = 1, CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3;

using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUmemGenericAllocationHandle = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using ncclComm_t = struct ncclComm*;

struct CUuuid {
  char bytes[16];
};

struct CUmemLocation {
  int type;
  int id;
};

struct CUmemAllocationProp {
  int type;
  int requested_handle_types;
  CUmemLocation location;
  void* win32_handle_metadata;
  struct {
    unsigned char compression_type, gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
static_assert(sizeof(CUmemAllocationProp) == 32);

struct CUmemAccessDesc {
  CUmemLocation location;
  int flags;
};
static_assert(sizeof(CUmemAccessDesc) == 12);

struct ncclUniqueId {
  char internal[128];
};
static_assert(sizeof(ncclUniqueId) == 128);

// The part of ncclConfig_t that all versions of NCCL share and that is read here; `size` is that of the whole.
struct ncclConfig_t {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking;
};
constexpr unsigned nccl_config_magic = 0xcafebeef;
constexpr int nccl_config_undefined = INT32_MIN;

extern "C" {
CUresult cuInit(unsigned flags);
CUresult cuDriverGetVersion(int* version);
CUresult cuGetErrorName(CUresult error, const char** text);
CUresult cuGetErrorString(CUresult error, const char** text);
CUresult cuDeviceGetCount(int* count);
CUresult cuDeviceGet(CUdevice* device, int ordinal);
CUresult cuDeviceGetName(char* name, int length, CUdevice device);
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device);
CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device);
CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice device);
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device);
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device);
CUresult cuDeviceCanAccessPeer(int* can_access, CUdevice device, CUdevice peer);
CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes);
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuCtxGetCurrent(CUcontext* context);
CUresult cuCtxSynchronize();
CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest);
CUresult cuStreamCreate(CUstream* stream, unsigned flags);
CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority);
CUresult cuStreamDestroy_v2(CUstream stream);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuStreamQuery(CUstream stream);
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);
CUresult cuEventCreate(CUevent* event, unsigned flags);
CUresult cuEventDestroy_v2(CUevent event);
CUresult cuEventRecord(CUevent event, CUstream stream);
CUresult cuEventQuery(CUevent event);
CUresult cuEventSynchronize(CUevent event);
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end);
CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end);
CUresult cuMemsetD8_v2(CUdeviceptr pointer, unsigned char value, size_t bytes);
CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties, int option);
CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr wish,
                             unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes);
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long flags);
CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags);
CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes);
CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* descriptions, size_t count);

ncclResult_t ncclGetVersion(int* version);
ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
const char* ncclGetErrorString(ncclResult_t result);
const char* ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank);
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error);
ncclResult_t ncclCommCount(ncclComm_t comm, int* count);
ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank);
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device);
ncclResult_t ncclCommRegister(ncclComm_t comm, void* buffer, size_t bytes, void** handle);
ncclResult_t ncclCommDeregister(ncclComm_t comm, void* handle);
ncclResult_t ncclMemAlloc(void** pointer, size_t bytes);
ncclResult_t ncclMemFree(void* pointer);
ncclResult_t ncclGroupStart();
ncclResult_t ncclGroupEnd();
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           CUstream stream);
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, CUstream stream);
ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, CUstream stream);
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, CUstream stream);
}

// ---- What the files offer to each other -----------------------------------------------------------------------------

namespace stand_in {

struct Settings {
  std::string directory;
  std::string log_path;
  std::chrono::microseconds delay;
  int devices;
  int capability_major, capability_minor;
  size_t memory;
  bool fails_init = false;
  bool has_no_device = false;
  uint64_t failing_collective = 0;  // 0: none
  uint64_t hanging_collective = 0;
};
const Settings& settings();

// One line in the log file.
void log(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One line on stderr.
void complain(const std::string& text);

// Held by a call while it writes its line in the log and puts its work in a queue: the log has the order of the queues.
std::mutex& call_order();

class Stream;
// Nothing: no such stream. A null pointer: the NULL stream.
std::optional<std::shared_ptr<Stream>> find_stream(CUstream handle);
int stream_number(const std::shared_ptr<Stream>& stream);
void push(Stream& stream, std::function<void()> work);

bool is_device(CUdevice device);
int current_device();

// Notes the reason of an error for ncclGetLastError, and returns the error.
ncclResult_t refuse(ncclResult_t result, const std::string& reason);

// Takes from or gives back to the memory that cuMemGetInfo counts.
bool take_memory(size_t bytes);
void give_back_memory(size_t bytes);

// A piece of memory by what is behind the address, so that two mappings of one allocation are seen to overlap.
struct Region {
  uint64_t allocation;  // 0: memory that was not mapped by cuMemMap, with its addresses as begin and end
  uint64_t begin, end;
};
std::vector<Region> regions_of(const void* start, size_t bytes);
Region addresses_of(const void* start, size_t bytes);
bool overlap(const std::vector<Region>& left, const std::vector<Region>& right);

// Operations that were called and have not run to their end.
struct PendingOperation {
  std::string name;
  std::vector<Region> reads, writes;
  std::vector<Region> addresses;  // of both, whatever is mapped there
};
uint64_t add_pending(PendingOperation operation);
void remove_pending(uint64_t identifier);
bool pending_uses(const std::vector<Region>& regions);
bool pending_writes(const std::vector<Region>& regions);
// The name of an operation at these addresses. Other mappings of the same allocation do not count.
std::optional<std::string> pending_user_of_addresses(const void* start, size_t bytes);

// Handles are numbers that are never used twice, so that a stale one is always noticed.
template <class Handle>
Handle handle_of(int number) {
  constexpr uintptr_t first = 0x10000, distance = 64;
  return reinterpret_cast<Handle>(first + distance * static_cast<uintptr_t>(number));
}

}  // namespace stand_in
