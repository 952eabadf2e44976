// Shared by the scalar oracle and the vector kernels of group quantisation, so that both round
// alike: the choice of (min, range) and scalar code arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq::internal {

template <class T>
constexpr float MaxFinite() {
  return std::numeric_limits<float>::max();
}
template <>
constexpr float MaxFinite<F16>() {
  return kMaxF16;
}
template <>
constexpr float MaxFinite<BF16>() {
  return 0x1.fep127f;
}

// The values that the stored (min, range) of a group have.
template <class T>
struct StoredRange {
  T min;
  T range;
};

// Rounds the bounds of a group to the stored type: min down, range (above the stored min) up. Both
// saturate at the type's largest finite value: a group that spans more than that (65504 for F16)
// keeps its low end and the codes above clamp.
template <class T>
StoredRange<T> RoundBounds(float lowest, float highest) {
  constexpr float kMax = MaxFinite<T>();
  // Adding zero turns -0 into +0: which of the two a minimum or maximum yields depends on the order
  // of its terms.
  const T min = RoundDown<T>(std::max(lowest, -kMax) + 0.0f);
  const float range = std::clamp(highest - ToFloat(min), 0.0f, kMax) + 0.0f;
  return {min, RoundUp<T>(range)};
}

inline void CheckPackable(int64_t group, int bits) {
  PMKVQ_CHECK(bits == 8 || bits == 4 || bits == 2);
  PMKVQ_CHECK(group > 0 && group <= kMaxGroup && group % 8 == 0);
}

constexpr float MaxCode(int bits) { return static_cast<float>((1 << bits) - 1); }

// The code of x; `step` must be positive.
inline uint32_t CodeOf(float x, float min, float step, float max_code) {
  return static_cast<uint32_t>(
      std::nearbyint(std::min(std::max((x - min) / step, 0.0f), max_code)));
}

// Eq. 3: a code of 2 * `bits` bits to `bits`. Exact in 32 unsigned bits for every code.
constexpr uint32_t HalveCode(uint32_t code, int bits) {
  const uint32_t multiplier = (1u << (2 * bits)) - (1u << bits) + 1u;
  return (multiplier * (code + (1u << (bits - 1)))) >> (3 * bits);
}

// Code of dim `dim` in a packed group.
inline uint8_t PackedCode(const uint8_t* packed, int64_t group, int bits, int64_t dim) {
  const int64_t plane_bytes = group * bits / 8;
  const int shift = static_cast<int>(dim / plane_bytes) * bits;
  return static_cast<uint8_t>((packed[dim % plane_bytes] >> shift) & ((1 << bits) - 1));
}

// Calls `function(T{})` with the C++ type of a metadata or page element.
template <class Function>
decltype(auto) VisitFloatType(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kF16:
      return function(F16{});
    case DType::kBF16:
      return function(BF16{});
    default:
      PMKVQ_CHECK_MSG(dtype == DType::kF32, "expected F16, BF16 or F32");
      return function(float{});
  }
}

}  // namespace pmkvq::internal
