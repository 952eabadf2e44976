// IEEE binary16 (F16) and bfloat16 (BF16) as storage types.
//
// Arithmetic is done in float; these only convert. Conversions from float
// round to nearest even; RoundDown/RoundUp give the neighbours used for the
// (min, range) metadata of a quantised group, which must bracket the data.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace pmkvq {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
static_assert(sizeof(BF16) == 2 && sizeof(F16) == 2);

// Largest finite F16 value. A float beyond it (after rounding) becomes infinite.
inline constexpr float kMaxF16 = 65504.0f;

inline float ToFloat(float x) { return x; }
inline float ToFloat(BF16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float ToFloat(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // Infinity or NaN.
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x400u) {  // Zero or subnormal: magnitude * 2^-24, exact in float.
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

inline BF16 ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN: keep the sign, make it quiet.
    return BF16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return BF16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline F16 ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return F16{static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 makes the float unit do the rounding to 2^-24.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return F16{static_cast<uint16_t>(
        sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return F16{static_cast<uint16_t>(sign | ((magnitude + 0xc8000fffu + odd) >> 13))};
}

template <class T>
T FromFloat(float x);
template <>
inline float FromFloat<float>(float x) {
  return x;
}
template <>
inline BF16 FromFloat<BF16>(float x) {
  return ToBF16(x);
}
template <>
inline F16 FromFloat<F16>(float x) {
  return ToF16(x);
}

namespace internal {
// Next 16-bit pattern towards +infinity (up) or -infinity; works for both formats
// because both order like sign-magnitude integers.
inline uint16_t StepBits(uint16_t bits, bool up) {
  if ((bits & 0x7fffu) == 0) return up ? 0x0001u : 0x8001u;
  const bool negative = (bits & 0x8000u) != 0;
  return static_cast<uint16_t>(up != negative ? bits + 1 : bits - 1);
}
}  // namespace internal

// Largest value of type T that is <= x. x must be finite.
template <class T>
T RoundDown(float x) {
  T value = FromFloat<T>(x);
  if (ToFloat(value) > x) value.bits = internal::StepBits(value.bits, /*up=*/false);
  return value;
}
template <>
inline float RoundDown<float>(float x) {
  return x;
}

// Smallest value of type T that is >= x. x must be finite.
template <class T>
T RoundUp(float x) {
  T value = FromFloat<T>(x);
  if (ToFloat(value) < x) value.bits = internal::StepBits(value.bits, /*up=*/true);
  return value;
}
template <>
inline float RoundUp<float>(float x) {
  return x;
}

}  // namespace pmkvq
