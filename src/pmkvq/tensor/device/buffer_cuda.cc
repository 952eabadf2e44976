// CUDA's memory: plain allocations, given at once.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::internal {

std::byte* AllocateCudaMemory(DeviceId device, size_t num_bytes) {
  const CudaDeviceScope scope(device);
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, num_bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
    throw DeviceError(NameOf(device),
                      fmt::format("memory: asked for {} bytes, found {} free of {}; lower "
                                  "--kv-budget, --max-sequences or --max-len",
                                  num_bytes, free_bytes, total_bytes));
  }
  CheckCuda(status, "allocating memory");
  return static_cast<std::byte*>(memory);
}

void FreeCudaMemory(DeviceId device, std::byte* data) {
  // A failed device refuses; the process ends soon, and the memory with it.
  int earlier = 0;
  static_cast<void>(cudaGetDevice(&earlier));
  static_cast<void>(cudaSetDevice(device.index));
  static_cast<void>(cudaFree(data));
  static_cast<void>(cudaSetDevice(earlier));
}

}  // namespace pmkvq::internal
