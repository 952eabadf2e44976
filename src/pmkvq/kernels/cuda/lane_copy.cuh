// Copies from device memory to shared memory by single lanes, each to a place of its choice; where
// whole rows are copied as they lie, copy.cuh costs fewer instructions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pmkvq::cuda {

// By a lane itself. What it has copied is seen behind a barrier that it arrives at when its copies
// have come.
template <int kBytes>
__device__ __forceinline__ void CopyLane(uint32_t target, const uint8_t* source) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(source), "n"(kBytes)
                 : "memory");
  }
}

// Barriers in shared memory between warps. Wait is that of copy.cuh.
__device__ __forceinline__ void InitArrivals(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" ::"r"(barrier)
      : "memory");
}
// When all copies of the lane so far have come.
__device__ __forceinline__ void ArriveWithCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// __syncthreads of the first kThreads threads of a block, and whether `any` is true in one of them.
template <int kThreads>
__device__ __forceinline__ void SyncFirst() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}
template <int kThreads>
__device__ __forceinline__ bool SyncFirstOr(bool any) {
  uint32_t result;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.u32 q, %1, 0;\nbar.red.or.pred p, 1, %2, q;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(result)
      : "r"(static_cast<uint32_t>(any)), "n"(kThreads)
      : "memory");
  return result != 0;
}

}  // namespace pmkvq::cuda
