// Both 16-bit float types under one set of names.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pmkvq::cuda {

template <class T>
struct Pair;  // Two values of a 32-bit word.
template <>
struct Pair<__half> {
  using Type = __half2;
};
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

template <class T>
__device__ __forceinline__ typename Pair<T>::Type AsPair(uint32_t word) {
  return *reinterpret_cast<typename Pair<T>::Type*>(&word);
}
template <class P>
__device__ __forceinline__ uint32_t AsWord(P pair) {
  return *reinterpret_cast<uint32_t*>(&pair);
}

__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float2 ToFloats(__half2 x) { return __half22float2(x); }
__device__ __forceinline__ float2 ToFloats(__nv_bfloat162 x) { return __bfloat1622float2(x); }

// To nearest even, and towards +infinity.
template <class T>
__device__ __forceinline__ T Round(float x);
template <>
__device__ __forceinline__ __half Round<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 Round<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <class T>
__device__ __forceinline__ T RoundUp(float x);
template <>
__device__ __forceinline__ __half RoundUp<__half>(float x) {
  return __float2half_ru(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 RoundUp<__nv_bfloat16>(float x) {
  return __float2bfloat16_ru(x);
}

template <class T>
__device__ constexpr float MaxFinite() {
  return 65504.0f;
}
template <>
__device__ constexpr float MaxFinite<__nv_bfloat16>() {
  return 0x1.fep127f;
}

template <class T>
__device__ __forceinline__ uint32_t MinOfPairs(uint32_t a, uint32_t b) {
  return AsWord(__hmin2(AsPair<T>(a), AsPair<T>(b)));
}
template <class T>
__device__ __forceinline__ uint32_t MaxOfPairs(uint32_t a, uint32_t b) {
  return AsWord(__hmax2(AsPair<T>(a), AsPair<T>(b)));
}

}  // namespace pmkvq::cuda
