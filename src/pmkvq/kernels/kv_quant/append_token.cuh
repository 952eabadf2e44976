// Storing one token's keys, values and queries, value by value.
#pragma once

#include <cuda_runtime.h>

#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"

namespace pmkvq::cuda {

// Where keys or values of a token go.
struct TokenPlace {
  uint8_t* slot;
  AppendTarget target;
  bool is_values;
  int head_dim;

  __device__ __forceinline__ TokenPlace(const AppendOperands& op, const AppendTarget& to,
                                        bool values, int dim)
      : slot(reinterpret_cast<uint8_t*>(op.arena) +
             static_cast<size_t>(values ? to.v : to.k) * fragment::kArenaUnit),
        target(to),
        is_values(values),
        head_dim(dim) {}

  // The page's values are to be zeroed first.
  __device__ __forceinline__ bool BeginsPage() const {
    return is_values && target.index == 0 && target.capacity == AppendTarget::kPage;
  }
  // By `count` threads, which wait for each other behind it.
  __device__ __forceinline__ void ZeroHead(int head, int thread, int count) const {
    uint8_t* const block = Block(head);
    for (int i = thread * 16; i < fragment::BlockBytes(16, head_dim); i += 16 * count) {
      *reinterpret_cast<uint4*>(block + i) = make_uint4(0, 0, 0, 0);
    }
  }
  // Whether the rounded value is finite.
  template <class T>
  __device__ __forceinline__ bool Store(int head, int dim, float x) const {
    const T value = Round<T>(x);
    if (target.capacity > 0) {
      reinterpret_cast<T*>(slot)[(head * target.capacity + target.index) * head_dim + dim] = value;
    } else {
      const fragment::Place place =
          is_values ? fragment::PlaceOf(16, fragment::ShapeOf(true, head_dim), dim, target.index)
                    : fragment::PlaceOf(16, fragment::ShapeOf(false, head_dim), target.index, dim);
      *reinterpret_cast<T*>(Block(head) + place.byte + place.shift / 8) = value;
    }
    return isfinite(ToFloat(value));
  }

 private:
  __device__ __forceinline__ uint8_t* Block(int head) const {
    return slot + static_cast<size_t>(head) * fragment::BlockBytes(16, head_dim);
  }
};

// Whether the rounded value is finite. `at` in [B, H, D].
__device__ __forceinline__ bool StoreQuery(const AppendOperands& op, size_t at, float x) {
  const __half rounded = Round<__half>(x);
  reinterpret_cast<__half*>(op.q_rounded)[at] = rounded;
  return isfinite(ToFloat(rounded));
}

__device__ __forceinline__ void SayUnfit(const AppendOperands& op, int64_t sequence,
                                         UnfitRow kind) {
  atomicMin(op.unfit + sequence, kUnfitKinds * op.block + static_cast<uint32_t>(kind));
}

}  // namespace pmkvq::cuda
