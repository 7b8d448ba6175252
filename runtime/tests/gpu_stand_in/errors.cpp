// What errors are called, and what was said last. See stand_in.hpp.

#include "stand_in.hpp"

namespace stand_in {

struct LastError {
  std::mutex mutex;
  std::string text;
};

static LastError& last_error() {
  static LastError& error = *new LastError;
  return error;
}

ncclResult_t refuse(ncclResult_t result, const std::string& reason) {
  std::scoped_lock lock(last_error().mutex);
  last_error().text = reason;
  return result;
}

struct ErrorText {
  CUresult error;
  const char* name;
  const char* description;
};
static constexpr ErrorText error_texts[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
};

static CUresult error_text(CUresult error, const char** text, const char* ErrorText::* part) {
  *text = nullptr;
  for (const ErrorText& known : error_texts) {
    if (known.error == error) *text = known.*part;
  }
  return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace stand_in

using namespace stand_in;

extern "C" {

CUresult cuGetErrorName(CUresult error, const char** text) { return error_text(error, text, &ErrorText::name); }

CUresult cuGetErrorString(CUresult error, const char** text) {
  return error_text(error, text, &ErrorText::description);
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) {
  static thread_local std::string text;
  std::scoped_lock lock(last_error().mutex);
  text = last_error().text;
  return text.c_str();
}

}  // extern "C"
