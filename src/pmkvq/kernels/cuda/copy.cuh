// Copies from device memory to shared memory that the threads need not wait for: bulk copies from
// sm_90 on, 16 bytes a thread below. The one place where code depends on the chip.
//
// A barrier counts copies. A warp uses it alone: Init; then again and again BeginCopy, CopyBytes or
// CopyPieces, EndCopy, and Wait with the parity of the turn (0, 1, 0, ...). All lanes call all of
// them together.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pmkvq::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasBulkCopies = false;
#else
inline constexpr bool kHasBulkCopies = true;
#endif

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int lane) {
  if (lane == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                 "r"(kHasBulkCopies ? 1 : 32));
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
}

// `num_bytes` in all that the copies until EndCopy bring.
__device__ __forceinline__ void BeginCopy(uint32_t barrier, uint32_t num_bytes, int lane) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (lane == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(num_bytes)
                 : "memory");
  }
#endif
}

__device__ __forceinline__ void BulkCopy(uint32_t target, const uint8_t* source, uint32_t num_bytes,
                                         uint32_t barrier) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(target),
      "l"(source), "r"(num_bytes), "r"(barrier)
      : "memory");
#endif
}
__device__ __forceinline__ void CopyByLanes(uint32_t target, const uint8_t* source,
                                            uint32_t num_bytes, int lane) {
  for (uint32_t at = static_cast<uint32_t>(lane) * 16; at < num_bytes; at += 512) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + at), "l"(source + at)
                 : "memory");
  }
}

// `num_bytes` a multiple of 16, addresses too.
__device__ __forceinline__ void CopyBytes(uint32_t target, const uint8_t* source,
                                          uint32_t num_bytes, uint32_t barrier, int lane) {
  if constexpr (kHasBulkCopies) {
    if (lane == 0) BulkCopy(target, source, num_bytes, barrier);
  } else {
    CopyByLanes(target, source, num_bytes, lane);
  }
}

// `count` pieces of `num_bytes`, `stride` apart in the source and side by side in the target. At
// most 32 pieces.
__device__ __forceinline__ void CopyPieces(uint32_t target, const uint8_t* source, int count,
                                           uint32_t stride, uint32_t num_bytes, uint32_t barrier,
                                           int lane) {
  if constexpr (kHasBulkCopies) {
    __syncwarp();  // The barrier must know the bytes before any of them comes.
    if (lane < count) {
      BulkCopy(target + static_cast<uint32_t>(lane) * num_bytes,
               source + static_cast<uint32_t>(lane) * stride, num_bytes, barrier);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      CopyByLanes(target + static_cast<uint32_t>(i) * num_bytes,
                  source + static_cast<uint32_t>(i) * stride, num_bytes, lane);
    }
  }
}

__device__ __forceinline__ void EndCopy(uint32_t barrier) {
  if constexpr (!kHasBulkCopies) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
  }
}

__device__ __forceinline__ void Wait(uint32_t barrier, uint32_t parity) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nWAIT_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred done;\nWAIT_%=:\n"
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

// Before a bulk copy overwrites what threads have written to shared memory.
__device__ __forceinline__ void FenceForCopies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Programmatic dependent launch: a kernel may start while the one before it ends. Without effect
// below sm_90, where no launch asks for it.
__device__ __forceinline__ void WaitForEarlierKernel() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextKernelStart() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace pmkvq::cuda
