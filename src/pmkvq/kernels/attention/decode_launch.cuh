// The launches of decode_kernel.cuh and decode_combine.cuh. Included by the files that make its
// code, one per head size and kind.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/decode_combine.cuh"
#include "pmkvq/kernels/attention/decode_kernel.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

// Blocks of the attention kernel that a device holds at once. Asked once per device: the answer
// never changes.
template <int kDim, DecodeKind kKind>
int AskResidentBlocks(int device) {
  constexpr int kMemory = kWarps * WarpMemory<kDim>::kBytes;
  internal::CheckCuda(cudaFuncSetAttribute(DecodeKernel<kDim, kKind>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory),
                      "shared memory of attention");
  int per_multiprocessor = 0;
  internal::CheckCuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                          &per_multiprocessor, DecodeKernel<kDim, kKind>, kThreads, kMemory),
                      "occupancy of attention");
  return per_multiprocessor * FactsOf(device).multiprocessors;
}

template <int kDim, DecodeKind kKind>
int ResidentBlocks(int device) {
  constexpr size_t kMostDevices = 64;
  static std::array<std::atomic<int>, kMostDevices> known{};
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < kMostDevices);
  int blocks = known[index].load();
  if (blocks == 0) known[index].store(blocks = AskResidentBlocks<kDim, kKind>(device));
  return blocks;
}

// Blocks that are launched: as many as the device holds, or two a multiprocessor where the last
// round of items would leave many of three idle, as two are nearly as fast. Not so with pages of
// unlike widths: runs then end at unlike times anyway, and narrow pages wait for instructions. Not
// less than two: blocks that end at once leave multiprocessors with three beside others with one.
inline int NumBlocks(int resident, int multiprocessors, int most_items, bool has_unlike_widths) {
  const int two = 2 * multiprocessors;
  if (resident != 3 * multiprocessors || most_items <= two || has_unlike_widths) {
    return std::min(resident, most_items);
  }
  constexpr int kFaster = 104;  // Three against two, in per cent, where neither is idle.
  const int rounds = (most_items + resident - 1) / resident;
  const int rounds_of_two = (most_items + two - 1) / two;
  return 2 * kFaster * rounds_of_two < 3 * 100 * rounds ? two : std::min(resident, most_items);
}

template <int kDim, DecodeKind kKind>
void LaunchDecode(const DecodeArguments& arguments, int most_items, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  constexpr size_t kMemory = kWarps * WarpMemory<kDim>::kBytes;
  const int blocks = NumBlocks(ResidentBlocks<kDim, kKind>(stream.device().index),
                               FactsOf(stream.device().index).multiprocessors, most_items,
                               arguments.has_unlike_widths);
  // A small grid begins early. A large one would come to lie unevenly: 18.0 us became 21.5 (one
  // sequence of 32K tokens at 4 bits), 127 became 161 (128K at 16 bits).
  if (blocks <= FactsOf(stream.device().index).multiprocessors) {
    LaunchEarlyWith(DecodeKernel<kDim, kKind>, static_cast<unsigned>(blocks), kThreads, kMemory,
                    stream, "attention", arguments);
  } else {
    DecodeKernel<kDim, kKind>
        <<<static_cast<unsigned>(blocks), kThreads, kMemory, stream.handle()>>>(arguments);
    internal::CheckLaunch("attention");
  }
  LaunchEarly(
      CombineKernel<kDim, kKind>,
      static_cast<unsigned>(arguments.num_sequences * arguments.num_kv_heads * arguments.parts),
      kThreads, stream, "merging attention", arguments);
}

}  // namespace pmkvq::cuda
