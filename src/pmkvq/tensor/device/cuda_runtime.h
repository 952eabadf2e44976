// For the files of the CUDA backend (*_cuda.cc, *.cu) only: the runtime's status as our errors.
#pragma once

#include <cuda_runtime_api.h>

#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq::internal {

// Throws DeviceError "[cuda] WHAT: the runtime's text" where the status is none of success.
void CheckCuda(cudaError_t status, const char* what);
// Of the launch just before.
inline void CheckLaunch(const char* what) { CheckCuda(cudaGetLastError(), what); }

// Makes a device the calling thread's, and the earlier one again at its end.
class CudaDeviceScope {
 public:
  explicit CudaDeviceScope(DeviceId device);
  ~CudaDeviceScope();
  CudaDeviceScope(const CudaDeviceScope&) = delete;
  CudaDeviceScope& operator=(const CudaDeviceScope&) = delete;

 private:
  int earlier_ = 0;
};

}  // namespace pmkvq::internal
