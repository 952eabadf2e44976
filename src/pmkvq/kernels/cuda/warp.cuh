// Values of all lanes of a warp put together.
#pragma once

#include <cuda_runtime.h>

namespace pmkvq::cuda {

// Every lane gets the same value.
template <class T, class Combine>
__device__ __forceinline__ T OverWarp(T x, Combine combine) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x = combine(x, __shfl_xor_sync(~0u, x, distance));
  }
  return x;
}

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

}  // namespace pmkvq::cuda
