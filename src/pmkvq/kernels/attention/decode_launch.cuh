// The launches of decode_kernel.cuh and decode_combine.cuh. Included by the files that make its
// code, one per head size.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/decode_combine.cuh"
#include "pmkvq/kernels/attention/decode_kernel.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

// What a device holds of the attention kernel at once, and whether a kernel may start before the
// one ahead has ended. Asked once per device: the answer never changes.
struct Residency {
  int blocks;
  bool has_dependent_launch;
};

template <int kDim>
Residency AskResidency(int device) {
  constexpr int kMemory = kWarps * WarpMemory<kDim>::kBytes;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    internal::CheckCuda(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device");
    return value;
  };
  internal::CheckCuda(cudaFuncSetAttribute(DecodeKernel<kDim>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory),
                      "shared memory of attention");
  int per_multiprocessor = 0;
  internal::CheckCuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                          &per_multiprocessor, DecodeKernel<kDim>, kThreads, kMemory),
                      "occupancy of attention");
  return {per_multiprocessor * ask(cudaDevAttrMultiProcessorCount),
          ask(cudaDevAttrComputeCapabilityMajor) >= 9};
}

template <int kDim>
Residency ResidencyOf(int device) {
  constexpr size_t kMostDevices = 64;
  static std::array<std::atomic<int>, kMostDevices> known{};  // blocks * 2 + has_dependent_launch
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < kMostDevices);
  int packed = known[index].load();
  if (packed == 0) {
    const Residency asked = AskResidency<kDim>(device);
    packed = asked.blocks * 2 + (asked.has_dependent_launch ? 1 : 0);
    known[index].store(packed);
  }
  return {packed / 2, packed % 2 == 1};
}

template <int kDim>
void LaunchDecode(const DecodeArguments& arguments, int most_items, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const Residency residency = ResidencyOf<kDim>(stream.device().index);
  constexpr size_t kMemory = kWarps * WarpMemory<kDim>::kBytes;
  const int blocks = std::min(residency.blocks, most_items);
  DecodeKernel<kDim>
      <<<static_cast<unsigned>(blocks), kThreads, kMemory, stream.handle()>>>(arguments);
  internal::CheckLaunch("attention");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(arguments.num_sequences * arguments.num_kv_heads));
  config.blockDim = dim3(kThreads);
  config.stream = stream.handle();
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = residency.has_dependent_launch ? 1 : 0;
  internal::CheckCuda(cudaLaunchKernelEx(&config, CombineKernel<kDim>, arguments),
                      "merging attention");
}

}  // namespace pmkvq::cuda
