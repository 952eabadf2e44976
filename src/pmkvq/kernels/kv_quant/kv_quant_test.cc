#include "pmkvq/kernels/kv_quant/kv_quant.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/kv_quant/kv_quant_internal.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(KvQuantTest, internal::KvQuantTarget, "kernels/kv_quant/kv_quant_cpu.cc");
PMKVQ_TARGET_SUITE(HalvingTest, internal::KvQuantTarget, "kernels/kv_quant/kv_quant_cpu.cc");
PMKVQ_TARGET_SUITE(QuantizeStoredTest, internal::QuantizeStoredTarget,
                   "kernels/kv_quant/quantize_stored.cc");
PMKVQ_TARGET_SUITE(FakeQuantizeTest, internal::KvQuantTarget, "kernels/kv_quant/kv_quant_cpu.cc");
PMKVQ_TARGET_SUITE(PackingTest, internal::KvQuantTarget);

constexpr int kWidths[] = {8, 4, 2};
constexpr DType kFloatTypes[] = {DType::kF16, DType::kBF16, DType::kF32};

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<std::byte> mins;
  std::vector<std::byte> ranges;
  bool operator==(const Quantized&) const = default;
};

using QuantizeFunction = decltype(&QuantizeGroups);

// `offset` bytes before the codes (and floats before x) make every pointer misaligned.
Quantized Quantize(QuantizeFunction quantize, const GroupFormat& format,
                   const std::vector<float>& x, int64_t offset = 0) {
  const auto num_groups = static_cast<int64_t>(x.size()) / format.group;
  const auto code_bytes =
      static_cast<size_t>(num_groups * PackedGroupBytes(format.group, format.bits));
  const size_t metadata_bytes = static_cast<size_t>(num_groups) * SizeOf(format.metadata);
  std::vector<float> moved(x.size() + static_cast<size_t>(offset));
  std::copy(x.begin(), x.end(), moved.begin() + offset);
  std::vector<uint8_t> codes(code_bytes + static_cast<size_t>(offset));
  Quantized result{
      {}, std::vector<std::byte>(metadata_bytes), std::vector<std::byte>(metadata_bytes)};
  quantize(format, moved.data() + offset, num_groups, codes.data() + offset, result.mins.data(),
           result.ranges.data());
  result.codes.assign(codes.begin() + offset, codes.end());
  return result;
}

std::vector<float> Dequantize(decltype(&DequantizeGroups) dequantize, const GroupFormat& format,
                              const Quantized& q, int64_t num_groups) {
  std::vector<float> out(static_cast<size_t>(num_groups * format.group));
  dequantize(format, q.codes.data(), q.mins.data(), q.ranges.data(), num_groups, out.data());
  return out;
}

// Groups of every kind that has gone wrong somewhere: normal, outliers, constant, zeros of both
// signs, subnormal ranges, far from zero, and the ends of F16.
std::vector<float> Samples(int64_t group, int64_t num_groups) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(group * num_groups));
  for (int64_t r = 0; r < num_groups; ++r) {
    float* row = x.data() + r * group;
    for (int64_t i = 0; i < group; ++i) {
      const float z = normal(random);
      switch (r % 9) {
        case 0:
          row[i] = z;
          break;
        case 1:
          row[i] = i % 7 == 3 ? 300.0f * z : 0.01f * z;
          break;
        case 2:
          row[i] = -1.2345f;
          break;
        case 3:
          row[i] = i % 2 == 0 ? 0.0f : -0.0f;
          break;
        case 4:
          row[i] = 1e-7f * z;
          break;
        case 5:
          row[i] = 1000.0f + 0.5f * z;
          break;
        case 6:
          row[i] = i % 2 == 0 ? kMaxF16 : -kMaxF16 + std::abs(z);
          break;
        case 7:
          row[i] = static_cast<float>(i % 17) * 0.25f;
          break;  // Ties when range is 4.
        default:
          row[i] = 1e-42f * z;
          break;
      }
    }
  }
  return x;
}

TEST_P(KvQuantTest, VectorKernelsEqualTheOracleBitForBit) {
  for (int64_t group = 8; group <= kMaxGroup; group += 8) {
    const std::vector<float> x = Samples(group, 27);
    for (const int bits : kWidths) {
      for (const DType metadata : kFloatTypes) {
        SCOPED_TRACE(testing::Message()
                     << "G " << group << " bits " << bits << " metadata " << NameOf(metadata));
        const GroupFormat format{group, bits, metadata};
        const Quantized expected = Quantize(ref::QuantizeGroups, format, x);
        ASSERT_EQ(Quantize(QuantizeGroups, format, x), expected);
        ASSERT_EQ(Quantize(QuantizeGroups, format, x, /*offset=*/1), expected);
        const auto values = Dequantize(DequantizeGroups, format, expected, 27);
        const auto expected_values = Dequantize(ref::DequantizeGroups, format, expected, 27);
        ASSERT_EQ(std::memcmp(values.data(), expected_values.data(), values.size() * sizeof(float)),
                  0);
      }
    }
  }
}

// x in the type, and the same values as floats. What would not be finite is left at the largest.
template <class T>
std::pair<std::vector<T>, std::vector<float>> Stored(const std::vector<float>& x) {
  std::vector<T> stored;
  std::vector<float> floats;
  for (const float value : x) {
    const float most = internal::MaxFinite<T>();
    stored.push_back(FromFloat<T>(std::clamp(value, -most, most)));
    floats.push_back(ToFloat(stored.back()));
  }
  return {stored, floats};
}

// Codes and bounds of stored values are those of the oracle on the values as floats.
void ExpectStoredEqualsTheOracle(const GroupFormat& format, const std::vector<float>& x) {
  internal::VisitFloatType(format.metadata, [&]<class T>(T) {
    const auto [stored, floats] = Stored<T>(x);
    const auto num_groups = static_cast<int64_t>(x.size()) / format.group;
    const Quantized expected = Quantize(ref::QuantizeGroups, format, floats);
    // One value, one byte in front: nothing is aligned.
    std::vector<T> moved(1);
    moved.insert(moved.end(), stored.begin(), stored.end());
    std::vector<uint8_t> codes(expected.codes.size() + 1);
    Quantized found = expected;
    std::fill(found.mins.begin(), found.mins.end(), std::byte{0x55});
    std::fill(found.ranges.begin(), found.ranges.end(), std::byte{0x55});
    QuantizeStoredGroups(format, moved.data() + 1, num_groups, codes.data() + 1, found.mins.data(),
                         found.ranges.data());
    found.codes.assign(codes.begin() + 1, codes.end());
    ASSERT_EQ(found.mins, expected.mins);
    ASSERT_EQ(found.ranges, expected.ranges);
    ASSERT_EQ(found.codes, expected.codes);
  });
}

TEST_P(QuantizeStoredTest, EqualsTheOracleBitForBit) {
  for (int64_t group = 8; group <= kMaxGroup; group += 8) {
    for (const int bits : kWidths) {
      for (const DType type : kFloatTypes) {
        SCOPED_TRACE(testing::Message()
                     << "G " << group << " bits " << bits << " type " << NameOf(type));
        ExpectStoredEqualsTheOracle({group, bits, type}, Samples(group, 45));
      }
    }
  }
}

// Every value of F16 stands in some group, and every pair of neighbouring exponents as bounds:
// ranges that are rounded up, subnormal ones among them.
TEST_P(QuantizeStoredTest, EqualsTheOracleOverTheWholeOfF16) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = ToFloat(F16{static_cast<uint16_t>(bits)});
    x.push_back(std::isfinite(value) ? value : 1.0f);
  }
  std::mt19937 random(3);
  for (const bool shuffled : {false, true}) {
    if (shuffled) std::shuffle(x.begin(), x.end(), random);
    for (const int bits : kWidths) {
      for (const DType type : kFloatTypes) ExpectStoredEqualsTheOracle({128, bits, type}, x);
    }
  }
}

// Values at, and one unit beside, the middle between two codes: where a product with 1 / step and
// the quotient may round to different codes.
TEST_P(QuantizeStoredTest, EqualsTheOracleNextToTies) {
  for (const float step : {1.0f, 0.1f, 0.7f, 3.0f / 255.0f, 1e-3f, 77.7f}) {
    for (const int bits : kWidths) {
      std::vector<float> x;
      const float max_code = internal::MaxCode(bits);
      for (int code = 0; code < (1 << bits) - 1; ++code) {
        const float tie = (static_cast<float>(code) + 0.5f) * step;
        const float around[] = {0.0f,
                                std::nextafter(tie, 0.0f),
                                tie,
                                std::nextafter(tie, 1e9f),
                                tie * (1.0f + 3e-7f),
                                tie * (1.0f - 3e-7f),
                                0.3f * step,
                                max_code * step};
        x.insert(x.end(), std::begin(around), std::end(around));
      }
      ExpectStoredEqualsTheOracle({8, bits, DType::kF32}, x);
    }
  }
}

TEST_P(KvQuantTest, ErrorIsAtMostHalfAStep) {
  for (const int64_t group : {8, 16, 64, 128}) {
    const std::vector<float> x = Samples(group, 27);
    for (const int bits : kWidths) {
      for (const DType metadata : kFloatTypes) {
        const GroupFormat format{group, bits, metadata};
        const Quantized q = Quantize(QuantizeGroups, format, x);
        const auto values = Dequantize(DequantizeGroups, format, q, 27);
        for (size_t i = 0; i < x.size(); ++i) {
          const auto r = static_cast<int64_t>(i) / group;
          // Spans 131008 in F16, which saturates; 1e-42: below the F16 step, metadata decides.
          if (r % 9 == 6 && metadata == DType::kF16) continue;
          const auto [min, range] = internal::VisitFloatType(metadata, [&]<class T>(T) {
            return std::pair(ToFloat(reinterpret_cast<const T*>(q.mins.data())[r]),
                             ToFloat(reinterpret_cast<const T*>(q.ranges.data())[r]));
          });
          EXPECT_LE(min, x[i]);
          const float step = range / internal::MaxCode(bits);
          // Half a step, plus rounding of x - min, of the quotient and of code * step + min: each
          // at most one unit (2^-24) of the largest magnitude that occurs, |min| + range; the
          // quotient's unit is one of `range`. 2^-149 is the unit of subnormals.
          const float slack = 4 * 0x1p-24f * (std::abs(min) + range) + 0x1p-148f * 256;
          EXPECT_LE(std::abs(values[i] - x[i]), step / 2 + slack) << x[i] << " bits " << bits;
        }
      }
    }
  }
}

TEST_P(KvQuantTest, ConstantGroupHasRangeZeroAndReproducesStoredValue) {
  for (const DType metadata : kFloatTypes) {
    for (const int bits : kWidths) {
      const GroupFormat format{16, bits, metadata};
      const std::vector<float> x(16, -0.75f);
      const Quantized q = Quantize(QuantizeGroups, format, x);
      EXPECT_EQ(q.codes, std::vector<uint8_t>(q.codes.size(), 0));
      EXPECT_EQ(q.ranges, std::vector<std::byte>(SizeOf(metadata), std::byte{0}));
      EXPECT_EQ(Dequantize(DequantizeGroups, format, q, 1), x);
    }
  }
}

TEST_P(KvQuantTest, RangeBeyondF16SaturatesAndStaysFinite) {
  std::vector<float> x(8, 0.0f);
  x[0] = -kMaxF16;
  x[1] = kMaxF16;
  const GroupFormat format{8, 8, DType::kF16};
  const Quantized q = Quantize(QuantizeGroups, format, x);
  const auto values = Dequantize(DequantizeGroups, format, q, 1);
  EXPECT_EQ(values[0], -kMaxF16);
  EXPECT_NEAR(values[1], 0.0f, 0.01f);  // The largest code: min + 65504, up to float rounding.
  EXPECT_NEAR(values[2], 0.0f, 0.01f);
}

// Eq. 3 against its meaning, round(q / (2^b + 1)), for every code of every width.
TEST(HalvingTest, IsNearestForEveryCode) {
  for (const int bits : {8, 4, 2}) {
    const uint32_t divisor = (1u << bits) + 1;
    for (uint32_t code = 0; code < (1u << (2 * bits)); ++code) {
      ASSERT_EQ(internal::HalveCode(code, bits), (2 * code + divisor) / (2 * divisor));
    }
  }
}

TEST(HalvingTest, ChainEqualsRoundingStraightToTheNarrowWidth) {
  std::vector<uint16_t> codes16(65536);
  for (size_t i = 0; i < codes16.size(); ++i) codes16[i] = static_cast<uint16_t>(i);
  std::vector<uint8_t> codes8(codes16.size());
  HalveCodes16To8(codes16.data(), 65536, codes8.data());
  for (uint64_t i = 0; i < 65536; ++i) {
    const uint32_t four = internal::HalveCode(codes8[i], 4);
    ASSERT_EQ(codes8[i], (2 * 255 * i + 65535) / (2 * 65535));
    ASSERT_EQ(four, (2 * 15 * i + 65535) / (2 * 65535));
    ASSERT_EQ(internal::HalveCode(four, 2), (2 * 3 * i + 65535) / (2 * 65535));
  }
}

std::vector<uint8_t> AllBytes(size_t count) {
  std::mt19937 random(11);
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i < 256 ? i : random());
  return bytes;
}

TEST_P(HalvingTest, PackedVectorsEqualTheOracleInPlaceToo) {
  for (int64_t group = 8; group <= kMaxGroup; group += 8) {
    for (const int from_bits : {8, 4}) {
      SCOPED_TRACE(testing::Message() << "G " << group << " from " << from_bits);
      const int64_t num_groups = 41;
      const auto in = AllBytes(static_cast<size_t>(num_groups * group * from_bits / 8));
      std::vector<uint8_t> expected(in.size() / 2);
      ref::HalvePackedCodes(group, from_bits, in.data(), num_groups, expected.data());
      std::vector<uint8_t> out(in.size() / 2 + 1);
      HalvePackedCodes(group, from_bits, in.data(), num_groups, out.data() + 1);
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), out.begin() + 1));
      std::vector<uint8_t> in_place = in;
      HalvePackedCodes(group, from_bits, in_place.data(), num_groups, in_place.data());
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), in_place.begin()));
    }
  }
}

// What the whole cache rests on: 8 -> 4 -> 2 of a group is what quantising it straight to 4 or 2
// bits gives, except next to a tie between two codes, where they may differ by 1: a float rounds
// (x - min) / step differently at each width. Ties are rare where values are spread, and common
// where they lie on a coarse grid: 40 of 5,760 here, in groups of few units in the last place.
TEST_P(HalvingTest, OfQuantisedGroupsKeepsMetadataAndStaysWithinOneCodeOfDirect) {
  const int64_t num_groups = 90;
  const std::vector<float> x = Samples(64, num_groups);
  Quantized q = Quantize(QuantizeGroups, {64, 8, DType::kF16}, x);
  for (const int bits : {4, 2}) {
    HalvePackedCodes(64, 2 * bits, q.codes.data(), num_groups, q.codes.data());
    const Quantized direct = Quantize(QuantizeGroups, {64, bits, DType::kF16}, x);
    EXPECT_EQ(q.mins, direct.mins);
    EXPECT_EQ(q.ranges, direct.ranges);
    std::vector<uint8_t> halved(x.size());
    std::vector<uint8_t> straight(x.size());
    UnpackCodes(64, bits, q.codes.data(), num_groups, halved.data());
    UnpackCodes(64, bits, direct.codes.data(), num_groups, straight.data());
    int different = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_LE(std::abs(halved[i] - straight[i]), 1);
      const bool is_spread = i / 64 % 9 == 0;  // See Samples.
      different += is_spread && halved[i] != straight[i] ? 1 : 0;
    }
    EXPECT_EQ(different, 0);
  }
}

RC_GTEST_PROP(PackingTest, UnpackInvertsPack, ()) {
  const int64_t group = 8 * *rc::gen::inRange<int64_t>(1, 17);
  const int bits = *rc::gen::element(8, 4, 2);
  const int64_t num_groups = *rc::gen::inRange<int64_t>(1, 5);
  const auto codes = *rc::gen::container<std::vector<uint8_t>>(
      static_cast<size_t>(group * num_groups),
      rc::gen::map(rc::gen::arbitrary<uint8_t>(), [bits](uint8_t code) {
        return static_cast<uint8_t>(code & ((1 << bits) - 1));
      }));
  std::vector<uint8_t> packed(static_cast<size_t>(num_groups * PackedGroupBytes(group, bits)));
  PackCodes(group, bits, codes.data(), num_groups, packed.data());
  std::vector<uint8_t> unpacked(codes.size());
  UnpackCodes(group, bits, packed.data(), num_groups, unpacked.data());
  RC_ASSERT(unpacked == codes);
}

// The byte example of docs/formats.md: eight values at three widths, each row the halving of the
// one before.
TEST_P(PackingTest, BytesAreAsDocumented) {
  const std::vector<float> x = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 2.5f, 3.0f, -0.5f};
  const std::vector<std::vector<uint8_t>> expected = {
      {0x24, 0x49, 0x6d, 0x92, 0xb6, 0xdb, 0xff, 0x00}, {0xb2, 0xd4, 0xf6, 0x09}, {0xe4, 0x39}};
  for (size_t i = 0; i < expected.size(); ++i) {
    const int bits = 8 >> i;
    std::vector<uint8_t> codes(expected[i].size());
    F16 min, range;
    QuantizeGroups({8, bits, DType::kF16}, x.data(), 1, codes.data(), &min, &range);
    EXPECT_EQ(codes, expected[i]) << bits;
    EXPECT_EQ(ToFloat(min), -0.5f);
    EXPECT_EQ(ToFloat(range), 3.5f);
    if (i > 0) {
      HalvePackedCodes(8, 2 * bits, expected[i - 1].data(), 1, codes.data());
      EXPECT_EQ(codes, expected[i]) << "halved to " << bits;
    }
  }
}

// Byte j holds dim j and dim j + 8.
TEST(PackingTest, PlanesAreInOrderOfDims) {
  std::vector<uint8_t> codes(16);
  for (size_t i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(i);
  uint8_t packed[16];
  PackCodes(16, 4, codes.data(), 1, packed);
  EXPECT_EQ(packed[0], 0x80);
  EXPECT_EQ(packed[7], 0xf7);
  for (auto& code : codes) code &= 3;
  PackCodes(16, 2, codes.data(), 1, packed);
  EXPECT_EQ(packed[1], 0b01010101);
}

TEST_P(FakeQuantizeTest, AtSixteenBitsGivesBfloat16CloseToTheValue) {
  const std::vector<float> x = Samples(16, 9);
  std::vector<float> out(x.size());
  FakeQuantize({16, 16, false}, x.data(), 9, out.data());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(out[i], ToFloat(ToBF16(out[i])));
    const auto group = x.begin() + static_cast<std::ptrdiff_t>(i / 16 * 16);
    const auto [lowest, highest] = std::minmax_element(group, group + 16);
    // Half a step of 16 bits, half a unit of bfloat16 (2^-9), and the float roundings.
    const float tolerance = (*highest - *lowest) / 65535 / 2 + std::abs(x[i]) * 0x1p-8f +
                            (std::abs(*lowest) + *highest - *lowest) * 0x1p-22f;
    EXPECT_LE(std::abs(out[i] - x[i]), tolerance + 1e-38f) << x[i];
  }
}

TEST_P(FakeQuantizeTest, EqualsQuantiseThenDequantiseWithFloatMetadata) {
  for (const int64_t group : {8, 24, 128}) {
    const std::vector<float> x = Samples(group, 27);
    for (const int bits : kWidths) {
      const GroupFormat format{group, bits, DType::kF32};
      const Quantized q = Quantize(ref::QuantizeGroups, format, x);
      const auto expected = Dequantize(ref::DequantizeGroups, format, q, 27);
      std::vector<float> out = x;
      FakeQuantize({group, bits, false}, out.data(), 27, out.data());
      ASSERT_EQ(out, expected);
    }
  }
}

TEST_P(FakeQuantizeTest, ReferenceClampBoundsSteps) {
  std::vector<float> x(8, 0.0f);
  x[0] = 1e-6f;
  x[1] = 8e-6f;  // Step 8e-6 / 3 is raised to 1e-5: 1e-6 -> code 0, 8e-6 -> code 1.
  std::vector<float> out(8);
  FakeQuantize({8, 2, true}, x.data(), 1, out.data());
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[1], 1e-5f);
  x[1] = 4e6f;  // Step 4e6 / 3 is lowered to 1e5: the largest code is 3.
  FakeQuantize({8, 2, true}, x.data(), 1, out.data());
  EXPECT_EQ(out[1], 3e5f);
}

}  // namespace
}  // namespace pmkvq
