#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "pmkvq/tensor/device/cuda_runtime.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

std::string VersionOf(int number) {
  return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
}

}  // namespace

std::string CudaVersionText() { return VersionOf(CUDART_VERSION); }

DeviceList ListDevices() {
  DeviceList list;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    list.versions = fmt::format("CUDA {}, no driver", CudaVersionText());
    list.problem = "there is no driver (libcuda.so.1)";
    return list;
  }
  list.versions = fmt::format("CUDA {}, driver for {}", CudaVersionText(), VersionOf(driver));
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    list.problem = cudaGetErrorString(status);
    // The error is not to be found by the next call's check.
    static_cast<void>(cudaGetLastError());
    return list;
  }
  if (count == 0) list.problem = "the driver lists none";
  for (int index = 0; index < count; ++index) {
    const internal::CudaDeviceScope scope({Device::kCuda, index});
    cudaDeviceProp properties{};
    internal::CheckCuda(cudaGetDeviceProperties(&properties, index), "asking for a device");
    DeviceInfo info;
    info.id = {Device::kCuda, index};
    info.name = properties.name;
    info.capability_major = properties.major;
    info.capability_minor = properties.minor;
    info.num_multiprocessors = properties.multiProcessorCount;
    info.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
    internal::CheckCuda(cudaMemGetInfo(&info.free_bytes, &info.total_bytes),
                        "asking for free memory");
    list.devices.push_back(info);
  }
  return list;
}

}  // namespace pmkvq
