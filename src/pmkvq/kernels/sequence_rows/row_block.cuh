// A block of threads on one row: its sums, its largest value, its operand. Thread t has values t,
// t + kRowThreads, ...
#pragma once

#include <cuda_runtime.h>

#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/warp.cuh"
#include "pmkvq/kernels/sequence_rows/sequence_rows.h"

namespace pmkvq::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;

// All threads get the same value. `shared` is used again only behind another barrier.
template <class T, class Combine>
__device__ __forceinline__ T OverBlock(T x, T* shared, Combine combine) {
  x = OverWarp(x, combine);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  T all = shared[0];
#pragma unroll
  for (int warp = 1; warp < kRowWarps; ++warp) all = combine(all, shared[warp]);
  return all;
}

// Stores one value of an operand.
__device__ __forceinline__ void StoreScaled(const ScaledRows& out, int64_t at, int64_t part_stride,
                                            float value) {
  auto* const data = reinterpret_cast<__half*>(out.data);
  const __half rounded = Round<__half>(value);
  data[at] = rounded;
  if (out.parts == 2) data[at + part_stride] = Round<__half>(value - ToFloat(rounded));
}

// The power of two that brings a row's largest value into [2^14, 2^15). 1 for rows of zeros, and
// for those whose largest is not finite, which stay so.
__device__ __forceinline__ float FactorFor(float largest) {
  if (!(largest > 0.0f) || isinf(largest)) return 1.0f;
  int exponent = 0;
  frexpf(largest, &exponent);
  return ldexpf(1.0f, min(15 - exponent, 120));
}

// Row `row` of the operand; value(i) is called twice for each i of this thread.
template <class Value>
__device__ __forceinline__ void StoreRow(const ScaledRows& out, int64_t width, int64_t row,
                                         const Value& value) {
  __shared__ float shared[kRowWarps];
  if (out.type == DType::kF32) {
    auto* const data = reinterpret_cast<float*>(out.data) + row * width;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < width; i += kRowThreads) data[i] = value(i);
    if (threadIdx.x == 0) out.scales[row] = 1.0f;
    return;
  }
  float largest = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    largest = fmaxf(largest, fabsf(value(i)));
  }
  largest = OverBlock(largest, shared, Larger{});
  const float factor = FactorFor(largest);
  if (threadIdx.x == 0) out.scales[row] = 1.0f / factor;
  const int64_t stride = out.part_rows * width;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    StoreScaled(out, row * width + i, stride, value(i) * factor);
  }
}

__device__ __forceinline__ void Note(const FiniteCheck& check, int64_t row) {
  const unsigned long long code =
      static_cast<unsigned long long>(check.step) << 32 | static_cast<unsigned long long>(row);
  atomicMin(reinterpret_cast<unsigned long long*>(check.first), code);
}

}  // namespace pmkvq::cuda
