// Memory of the devices: what is taken of it, and virtual memory. See stand_in.hpp.

#include "stand_in.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>

#include <sys/mman.h>
#include <unistd.h>

namespace stand_in {

constexpr size_t granularity = size_t{2} << 20;

static std::atomic<size_t> used_memory{0};

bool take_memory(size_t bytes) {
  size_t used = used_memory.load();
  do {
    if (bytes > settings().memory - used) return false;
  } while (!used_memory.compare_exchange_weak(used, used + bytes));
  return true;
}

void give_back_memory(size_t bytes) { used_memory -= bytes; }

// Lives until it is released and no mapping is left, as in CUDA.
struct Allocation {
  Allocation(uint64_t number, size_t bytes, int file) : number(number), bytes(bytes), file(file) {}
  Allocation(const Allocation&) = delete;
  ~Allocation() {
    close(file);
    give_back_memory(bytes);
  }

  const uint64_t number;
  const size_t bytes;
  const int file;
};

struct Mapping {
  size_t bytes;
  std::shared_ptr<Allocation> allocation;
};

struct VirtualMemory {
  std::mutex mutex;
  std::map<CUdeviceptr, size_t> reservations;
  std::map<CUdeviceptr, Mapping> mappings;
  std::map<CUmemGenericAllocationHandle, std::shared_ptr<Allocation>> allocations;
  uint64_t created = 0;

  bool is_reserved(CUdeviceptr start, size_t bytes) const {
    auto after = reservations.upper_bound(start);
    if (after == reservations.begin()) return false;
    const auto& [reserved, size] = *std::prev(after);
    return start + bytes <= reserved + size;
  }

  std::vector<std::pair<CUdeviceptr, Mapping>> mapped_in(CUdeviceptr start, size_t bytes) const {
    std::vector<std::pair<CUdeviceptr, Mapping>> found;
    auto mapping = mappings.upper_bound(start);
    if (mapping != mappings.begin()) --mapping;
    for (; mapping != mappings.end() && mapping->first < start + bytes; ++mapping) {
      if (mapping->first + mapping->second.bytes > start) found.push_back(*mapping);
    }
    return found;
  }
};

static VirtualMemory& virtual_memory() {
  static VirtualMemory& memory = *new VirtualMemory;
  return memory;
}

Region addresses_of(const void* start, size_t bytes) {
  const auto begin = reinterpret_cast<uint64_t>(start);
  return {0, begin, begin + bytes};
}

std::vector<Region> regions_of(const void* start, size_t bytes) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  std::vector<Region> regions;
  uint64_t position = reinterpret_cast<uint64_t>(start);
  const uint64_t end = position + bytes;
  for (const auto& [mapped, mapping] : memory.mapped_in(position, bytes)) {
    if (position < mapped) regions.push_back({0, position, mapped});
    const uint64_t first = std::max<uint64_t>(position, mapped);
    const uint64_t last = std::min<uint64_t>(end, mapped + mapping.bytes);
    regions.push_back({mapping.allocation->number, first - mapped, last - mapped});
    position = last;
  }
  if (position < end) regions.push_back({0, position, end});
  return regions;
}

static void* address(CUdeviceptr pointer) { return reinterpret_cast<void*>(pointer); }

static bool is_multiple_of_granularity(CUdeviceptr value) { return value % granularity == 0; }

// Leaves the range reserved and out of reach.
static bool close_range(CUdeviceptr pointer, size_t bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap(address(pointer), bytes, PROT_NONE, flags, -1, 0) != MAP_FAILED;
}

static std::optional<CUdeviceptr> reserve_aligned(size_t bytes, size_t alignment) {
  const size_t larger = bytes + alignment;
  void* start = mmap(nullptr, larger, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return std::nullopt;
  const auto begin = reinterpret_cast<CUdeviceptr>(start);
  const CUdeviceptr aligned = (begin + alignment - 1) / alignment * alignment;
  if (aligned > begin) munmap(start, aligned - begin);
  if (begin + larger > aligned + bytes) munmap(address(aligned + bytes), begin + larger - aligned - bytes);
  return aligned;
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

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = settings().memory;
  *free_bytes = *total_bytes - used_memory.load();
  return CUDA_SUCCESS;
}

CUresult cuMemsetD8_v2(CUdeviceptr pointer, unsigned char value, size_t bytes) {
  std::memset(address(pointer), value, bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, int) {
  *bytes = granularity;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long) {
  const bool is_power_of_two = (alignment & (alignment - 1)) == 0;  // 0, the default, is one of them
  if (bytes == 0 || !is_multiple_of_granularity(bytes) || !is_power_of_two) return CUDA_ERROR_INVALID_VALUE;
  const auto reserved = reserve_aligned(bytes, std::max(alignment, granularity));
  if (!reserved) return CUDA_ERROR_OUT_OF_MEMORY;
  std::scoped_lock lock(virtual_memory().mutex);
  virtual_memory().reservations[*reserved] = bytes;
  *pointer = *reserved;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto reserved = memory.reservations.find(pointer);
  const bool is_whole = reserved != memory.reservations.end() && reserved->second == bytes;
  if (!is_whole || !memory.mapped_in(pointer, bytes).empty()) return CUDA_ERROR_INVALID_VALUE;
  memory.reservations.erase(reserved);
  munmap(address(pointer), bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long) {
  const bool is_on_device = properties && properties->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
                            properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
  if (!is_on_device || bytes == 0 || !is_multiple_of_granularity(bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (!is_device(properties->location.id)) return CUDA_ERROR_INVALID_DEVICE;
  if (!take_memory(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const int file = memfd_create("gpu-stand-in", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    close(file);
    give_back_memory(bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  *handle = ++memory.created;
  memory.allocations[*handle] = std::make_shared<Allocation>(*handle, bytes, file);
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  std::scoped_lock lock(virtual_memory().mutex);
  return virtual_memory().allocations.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto found = memory.allocations.find(handle);
  // CUDA demands an offset of zero, too.
  if (found == memory.allocations.end() || offset != 0 || bytes == 0 || bytes > found->second->bytes ||
      !is_multiple_of_granularity(bytes) || !is_multiple_of_granularity(pointer) ||
      !memory.is_reserved(pointer, bytes) || !memory.mapped_in(pointer, bytes).empty()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const int file = found->second->file;
  if (mmap(address(pointer), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  memory.mappings[pointer] = {bytes, found->second};
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
  if (const auto user = pending_user_of_addresses(address(pointer), bytes)) {
    complain("cuMemUnmap of memory that " + *user + " still uses");
    return CUDA_ERROR_INVALID_VALUE;
  }
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  const auto mapped = memory.mapped_in(pointer, bytes);
  size_t covered = 0;
  for (const auto& [start, mapping] : mapped) covered += start >= pointer ? mapping.bytes : bytes + 1;
  if (mapped.empty() || covered != bytes || !close_range(pointer, bytes)) return CUDA_ERROR_INVALID_VALUE;
  for (const auto& [start, mapping] : mapped) memory.mappings.erase(start);
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* descriptions, size_t count) {
  VirtualMemory& memory = virtual_memory();
  std::scoped_lock lock(memory.mutex);
  size_t covered = 0;
  for (const auto& [start, mapping] : memory.mapped_in(pointer, bytes)) {
    covered += std::min(start + mapping.bytes, pointer + bytes) - std::max(start, pointer);
  }
  if (covered != bytes) return CUDA_ERROR_INVALID_VALUE;
  int protection = PROT_NONE;
  for (const CUmemAccessDesc* description = descriptions; description != descriptions + count; ++description) {
    if (!is_device(description->location.id)) return CUDA_ERROR_INVALID_DEVICE;
    if (description->flags & CU_MEM_ACCESS_FLAGS_PROT_READ) protection |= PROT_READ;
    if (description->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) protection |= PROT_WRITE;
  }
  return mprotect(address(pointer), bytes, protection) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
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

}  // extern "C"
