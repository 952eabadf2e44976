// Reading the sums of products, and storing operands of products.
#pragma once

#include <cuda_runtime.h>

#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/device_rows/device_rows.h"

namespace pmkvq::cuda {

__device__ __forceinline__ float ToFloat(float x) { return x; }

__device__ __forceinline__ float SumOf(const ProductSums& sums, int64_t width, int64_t row,
                                       int64_t i) {
  float sum = sums.data[row * width + i];
  if (sums.parts == 2) sum += sums.data[(sums.part_rows + row) * width + i];
  return sum;
}

// The first of two parts. Of F16 at most 65504: the rest takes up as much again.
template <class T>
__device__ __forceinline__ T FirstPart(float value) {
  if constexpr (MaxFinite<T>() < 1e5f) {
    if (value > MaxFinite<T>()) return Round<T>(MaxFinite<T>());
    if (value < -MaxFinite<T>()) return Round<T>(-MaxFinite<T>());
  }
  return Round<T>(value);
}

template <class T>
__device__ __forceinline__ void StorePart(const ProductRows& out, int64_t width, int64_t row,
                                          int64_t i, float value) {
  T* const data = reinterpret_cast<T*>(out.data);
  const T rounded = out.parts == 2 ? FirstPart<T>(value) : Round<T>(value);
  data[row * width + i] = rounded;
  if (out.parts == 2) {
    data[(out.part_rows + row) * width + i] = Round<T>(value - ToFloat(rounded));
  }
}

__device__ __forceinline__ void Store(const ProductRows& out, int64_t width, int64_t row, int64_t i,
                                      float value) {
  switch (out.type) {
    case DType::kF16:
      return StorePart<__half>(out, width, row, i, value);
    case DType::kBF16:
      return StorePart<__nv_bfloat16>(out, width, row, i, value);
    default:
      reinterpret_cast<float*>(out.data)[row * width + i] = value;
  }
}

__device__ __forceinline__ float4 Add(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
// Four adjacent values; widths are multiples of 4.
__device__ __forceinline__ float4 FourSumsOf(const ProductSums& sums, int64_t width, int64_t row,
                                             int64_t four) {
  const auto* const data = reinterpret_cast<const float4*>(sums.data);
  const float4 first = __ldcg(data + row * width / 4 + four);
  if (sums.parts == 1) return first;
  return Add(first, __ldcg(data + (sums.part_rows + row) * width / 4 + four));
}

template <class T>
__device__ __forceinline__ void StoreFourParts(const ProductRows& out, int64_t width, int64_t row,
                                               int64_t four, const float4& value) {
  const float values[4] = {value.x, value.y, value.z, value.w};
  T rounded[4];
  T rest[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rounded[i] = out.parts == 2 ? FirstPart<T>(values[i]) : Round<T>(values[i]);
    rest[i] = Round<T>(values[i] - ToFloat(rounded[i]));
  }
  auto* const data = reinterpret_cast<uint2*>(out.data);
  data[row * width / 4 + four] = *reinterpret_cast<const uint2*>(rounded);
  if (out.parts == 2) {
    data[(out.part_rows + row) * width / 4 + four] = *reinterpret_cast<const uint2*>(rest);
  }
}
__device__ __forceinline__ void StoreFour(const ProductRows& out, int64_t width, int64_t row,
                                          int64_t four, const float4& value) {
  switch (out.type) {
    case DType::kF16:
      return StoreFourParts<__half>(out, width, row, four, value);
    case DType::kBF16:
      return StoreFourParts<__nv_bfloat16>(out, width, row, four, value);
    default:
      reinterpret_cast<float4*>(out.data)[row * width / 4 + four] = value;
  }
}

__device__ __forceinline__ float SiluMul(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

// act.h
__device__ __forceinline__ float GeluMul(float gate, float up) {
  constexpr float kLinear = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  constexpr float kCubic = 1.5957691216057308f * 0.044715f;
  return gate / (1.0f + expf(-gate * fmaf(kCubic * gate, gate, kLinear))) * up;
}

}  // namespace pmkvq::cuda
