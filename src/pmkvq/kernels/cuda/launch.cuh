// Launches that may begin while the kernel before them ends: programmatic dependent launch, from
// sm_90 on.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <mutex>

#include "pmkvq/base/check.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

// What launches depend on. Asked once per device: it never changes.
struct DeviceFacts {
  int multiprocessors = 0;
  int shared_bytes = 0;  // That a block may take.
  bool is_sm90 = false;  // Or later: dependent launches, tensor copies.
};
inline const DeviceFacts& FactsOf(int device) {
  constexpr size_t kMostDevices = 64;
  struct Known {
    std::once_flag once;
    DeviceFacts facts;
  };
  static std::array<Known, kMostDevices> all;
  PMKVQ_CHECK(device >= 0 && static_cast<size_t>(device) < kMostDevices);
  Known& known = all[static_cast<size_t>(device)];
  std::call_once(known.once, [&] {
    const auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      internal::CheckCuda(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device");
      return value;
    };
    known.facts = {ask(cudaDevAttrMultiProcessorCount),
                   ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                   ask(cudaDevAttrComputeCapabilityMajor) >= 9};
  });
  return known.facts;
}

// The kernel must call WaitForEarlierKernel before it reads what earlier kernels write, and before
// it writes what they read or write. With `shared_bytes` of dynamic shared memory.
template <class... Parameters, class... Arguments>
void LaunchEarlyWith(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                     Stream& stream, const char* what, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle();
  config.attrs = &early;
  config.numAttrs = FactsOf(stream.device().index).is_sm90 ? 1 : 0;
  internal::CheckCuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), what);
}
template <class Kernel, class... Arguments>
void LaunchEarly(Kernel* kernel, dim3 grid, dim3 block, Stream& stream, const char* what,
                 const Arguments&... arguments) {
  LaunchEarlyWith(kernel, grid, block, 0, stream, what, arguments...);
}

}  // namespace pmkvq::cuda
