// The launches of decode_kernel.cuh and decode_combine.cuh. Included by the files that make its
// code, one per head size and kind.
#pragma once

#include <algorithm>
#include <array>
#include <mutex>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/decode_combine.cuh"
#include "pmkvq/kernels/attention/decode_kernel.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

// What launches of the attention kernel need to know of a device.
struct DecodeFacts {
  int blocks = 0;  // That a multiprocessor holds.
  int static_bytes = 0;
};

// Asked once per device: the answer never changes.
template <int kDim, DecodeKind kKind>
const DecodeFacts& DecodeFactsOf(int device) {
  constexpr size_t kMostDevices = 64;
  struct Known {
    std::once_flag once;
    DecodeFacts facts;
  };
  static std::array<Known, kMostDevices> all;
  PMKVQ_CHECK(device >= 0 && static_cast<size_t>(device) < kMostDevices);
  Known& known = all[static_cast<size_t>(device)];
  std::call_once(known.once, [&] {
    const auto kernel = DecodeKernel<kDim, kKind>;
    cudaFuncAttributes attributes{};
    internal::CheckCuda(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel");
    known.facts.static_bytes = static_cast<int>(attributes.sharedSizeBytes);
    internal::CheckCuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             FactsOf(device).shared_bytes - known.facts.static_bytes),
        "shared memory of attention");
    internal::CheckCuda(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&known.facts.blocks, kernel, kThreads,
                                                      kWarps * WarpMemory<kDim>::kBytes),
        "occupancy of attention");
  });
  return known.facts;
}

// Shared memory with which `blocks` fit a multiprocessor and no more. A grid that begins early then
// lies evenly, where else some multiprocessors took blocks while others were still busy.
inline int BytesFor(int blocks, int needed, const DeviceFacts& facts) {
  constexpr int kReserved = 1024;  // Of each block.
  return std::max(needed, (facts.shared_bytes + kReserved) / (blocks + 1) / 128 * 128);
}

template <int kDim, DecodeKind kKind>
void LaunchDecode(const DecodeArguments& arguments, int most_items, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const DeviceFacts& facts = FactsOf(stream.device().index);
  const DecodeFacts& kernel_facts = DecodeFactsOf<kDim, kKind>(stream.device().index);
  constexpr int kBytes = kWarps * WarpMemory<kDim>::kBytes;
  const int per_multiprocessor =
      std::min({arguments.most_blocks, kernel_facts.blocks,
                (most_items + facts.multiprocessors - 1) / facts.multiprocessors});
  const auto blocks =
      static_cast<unsigned>(std::min(per_multiprocessor * facts.multiprocessors, most_items));
  // Three blocks do not begin early: they would meet those that merge, and lie unevenly.
  if (per_multiprocessor <= 2) {
    const int bytes = std::min(BytesFor(per_multiprocessor, kBytes, facts),
                               facts.shared_bytes - kernel_facts.static_bytes);
    LaunchEarlyWith(DecodeKernel<kDim, kKind>, blocks, kThreads, static_cast<size_t>(bytes), stream,
                    "attention", arguments);
  } else {
    DecodeKernel<kDim, kKind><<<blocks, kThreads, kBytes, stream.handle()>>>(arguments);
    internal::CheckLaunch("attention");
  }
  LaunchCombine<kDim, kKind>(arguments, stream);
}

}  // namespace pmkvq::cuda
