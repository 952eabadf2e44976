#include "pmkvq/base/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace pmkvq {
namespace {

constexpr uint32_t kNumPatterns = 1u << 16;

template <class T>
struct Format;
template <>
struct Format<F16> {
  static constexpr int kMantissaBits = 10;
  static constexpr int kBias = 15;
};
template <>
struct Format<BF16> {
  static constexpr int kMantissaBits = 7;
  static constexpr int kBias = 127;
};

// The value of a pattern by the definition of the format, without any bit tricks.
template <class T>
double Decode(uint32_t bits) {
  constexpr int kMantissa = Format<T>::kMantissaBits;
  constexpr int kExponentBits = 15 - kMantissa;
  const int exponent = static_cast<int>((bits >> kMantissa) & ((1u << kExponentBits) - 1));
  const double fraction = (bits & ((1u << kMantissa) - 1)) * std::ldexp(1.0, -kMantissa);
  const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
  if (exponent == (1 << kExponentBits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - Format<T>::kBias);
  return sign * std::ldexp(1 + fraction, exponent - Format<T>::kBias);
}

template <class T>
T Pattern(uint32_t bits) {
  return T{static_cast<uint16_t>(bits)};
}

// Finite values in ascending order: the patterns of -max .. -0, then +0 .. max.
template <class T>
std::vector<T> FiniteAscending() {
  const uint32_t infinity = ((1u << (15 - Format<T>::kMantissaBits)) - 1)
                            << Format<T>::kMantissaBits;
  std::vector<T> values;
  for (uint32_t bits = infinity; bits > 0; --bits)
    values.push_back(Pattern<T>(0x8000u | (bits - 1)));
  for (uint32_t bits = 0; bits < infinity; ++bits) values.push_back(Pattern<T>(bits));
  return values;
}

template <class T>
class Float16Test : public ::testing::Test {};
using Formats = ::testing::Types<F16, BF16>;
TYPED_TEST_SUITE(Float16Test, Formats);

TYPED_TEST(Float16Test, EveryPatternHasTheValueOfItsDefinition) {
  for (uint32_t bits = 0; bits < kNumPatterns; ++bits) {
    const float value = ToFloat(Pattern<TypeParam>(bits));
    const double expected = Decode<TypeParam>(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(ToFloat(FromFloat<TypeParam>(value)))) << bits;
      continue;
    }
    ASSERT_EQ(value, expected) << bits;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000u) != 0) << bits;
    ASSERT_EQ(FromFloat<TypeParam>(value).bits, bits) << bits;
  }
}

TYPED_TEST(Float16Test, RoundsToNearestEvenBetweenAllNeighbours) {
  const std::vector<TypeParam> values = FiniteAscending<TypeParam>();
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float low = ToFloat(values[i]);
    const float high = ToFloat(values[i + 1]);
    if (low == high) continue;  // -0 and +0.
    const double exact_middle = (static_cast<double>(low) + high) / 2;
    const auto middle = static_cast<float>(exact_middle);
    ASSERT_EQ(middle, exact_middle) << i;  // A float holds the middle exactly.
    const TypeParam even = (values[i].bits & 1u) == 0 ? values[i] : values[i + 1];
    ASSERT_EQ(FromFloat<TypeParam>(middle).bits, even.bits) << i;
    ASSERT_EQ(FromFloat<TypeParam>(std::nextafter(middle, low)).bits, values[i].bits) << i;
    ASSERT_EQ(FromFloat<TypeParam>(std::nextafter(middle, high)).bits, values[i + 1].bits) << i;
  }
}

TYPED_TEST(Float16Test, RoundDownAndRoundUpBracketTheValueTightly) {
  const std::vector<TypeParam> values = FiniteAscending<TypeParam>();
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float low = ToFloat(values[i]);
    const float high = ToFloat(values[i + 1]);
    if (low == high) continue;
    ASSERT_EQ(ToFloat(RoundDown<TypeParam>(low)), low) << i;
    ASSERT_EQ(ToFloat(RoundUp<TypeParam>(low)), low) << i;
    for (const float x :
         {std::nextafter(low, high), low / 2 + high / 2, std::nextafter(high, low)}) {
      ASSERT_EQ(ToFloat(RoundDown<TypeParam>(x)), low) << i;
      ASSERT_EQ(ToFloat(RoundUp<TypeParam>(x)), high) << i;
    }
  }
}

TEST(F16, BeyondTheLargestFiniteValue) {
  EXPECT_EQ(ToFloat(ToF16(65519.996f)), kMaxF16);
  EXPECT_TRUE(std::isinf(ToFloat(ToF16(65520.0f))));
  EXPECT_EQ(ToFloat(RoundDown<F16>(1e6f)), kMaxF16);
  EXPECT_TRUE(std::isinf(ToFloat(RoundUp<F16>(65504.01f))));
  EXPECT_EQ(ToFloat(RoundUp<F16>(-1e6f)), -kMaxF16);
  EXPECT_EQ(ToF16(-std::numeric_limits<float>::infinity()).bits, 0xfc00u);
}

TEST(BF16, BeyondTheLargestFiniteValue) {
  const float max_float = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isinf(ToFloat(ToBF16(max_float))));
  EXPECT_EQ(RoundDown<BF16>(max_float).bits, 0x7f7fu);
  EXPECT_EQ(RoundUp<BF16>(-max_float).bits, 0xff7fu);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::infinity()).bits, 0x7f80u);
}

TEST(Float32, PassesThrough) {
  for (const float x : {0.0f, -1.1f, 3e38f, 1e-45f}) {
    EXPECT_EQ(FromFloat<float>(x), x);
    EXPECT_EQ(RoundDown<float>(x), x);
    EXPECT_EQ(RoundUp<float>(x), x);
    EXPECT_EQ(ToFloat(x), x);
  }
}

}  // namespace
}  // namespace pmkvq
