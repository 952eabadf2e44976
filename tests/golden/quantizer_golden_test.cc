// Group quantisation and halving against what the Python reference's own code produced.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq {
namespace {

constexpr int kWidths[] = {8, 4, 2};
// The reference moves steps outside of these to them.
constexpr float kReferenceMinStep = 1e-5f;
constexpr float kReferenceMaxStep = 1e5f;

const SafetensorsFile& Golden() {
  static const SafetensorsFile file =
      SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/quantizer.safetensors");
  return file;
}

const TensorView& Find(const std::string& name) {
  const TensorView* view = Golden().Find(name);
  if (view == nullptr) throw std::runtime_error("no tensor " + name);
  return *view;
}

template <class T>
std::vector<T> Copy(const std::string& name) {
  const TensorView& view = Find(name);
  std::vector<T> out(static_cast<size_t>(view.num_elements()));
  EXPECT_EQ(view.num_bytes(), out.size() * sizeof(T)) << name;
  std::copy_n(reinterpret_cast<const T*>(view.data), out.size(), out.begin());
  return out;
}

// Codes of the reference's packing: 16-bit words, first element in the highest bits.
std::vector<uint8_t> UnpackReference(const std::vector<uint16_t>& words, int bits) {
  std::vector<uint8_t> codes;
  for (const uint16_t word : words) {
    for (int shift = 16 - bits; shift >= 0; shift -= bits) {
      codes.push_back(static_cast<uint8_t>((word >> shift) & ((1 << bits) - 1)));
    }
  }
  return codes;
}

struct Quantized {
  std::vector<uint8_t> codes;  // One byte each.
  std::vector<float> mins;
  std::vector<float> ranges;
  std::vector<float> values;
};

Quantized Quantize(const std::vector<float>& x, int64_t group, int bits) {
  const GroupFormat format{group, bits, DType::kF32};
  const auto num_groups = static_cast<int64_t>(x.size()) / group;
  const auto size = static_cast<size_t>(num_groups);
  std::vector<uint8_t> packed(size * static_cast<size_t>(PackedGroupBytes(group, bits)));
  Quantized q{std::vector<uint8_t>(x.size()), std::vector<float>(size), std::vector<float>(size),
              std::vector<float>(x.size())};
  QuantizeGroups(format, x.data(), num_groups, packed.data(), q.mins.data(), q.ranges.data());
  DequantizeGroups(format, packed.data(), q.mins.data(), q.ranges.data(), num_groups,
                   q.values.data());
  UnpackCodes(group, bits, packed.data(), num_groups, q.codes.data());
  return q;
}

// Compares groups with what the reference stored under `prefix`; gives the number compared. Groups
// whose step the reference clamped have other codes there.
int CompareGroups(const std::string& prefix, const std::vector<float>& x, int64_t group, int bits) {
  const auto scales = Copy<float>(prefix + ".scales");
  const auto zeros = Copy<float>(prefix + ".zeros");
  const auto expected = UnpackReference(Copy<uint16_t>(prefix + ".packed"), bits);
  const auto dequantized = Copy<BF16>(prefix + ".dequant");
  const Quantized q = Quantize(x, group, bits);
  int compared = 0;
  for (size_t r = 0; r < scales.size(); ++r) {
    EXPECT_EQ(q.mins[r], -zeros[r]) << "group " << r;
    if (scales[r] <= kReferenceMinStep || scales[r] >= kReferenceMaxStep) continue;
    ++compared;
    EXPECT_EQ(q.ranges[r] / static_cast<float>((1 << bits) - 1), scales[r]) << "group " << r;
    for (size_t i = r * static_cast<size_t>(group); i < (r + 1) * static_cast<size_t>(group); ++i) {
      EXPECT_EQ(q.codes[i], expected[i]) << "value " << i << ": " << x[i];
      EXPECT_EQ(ToBF16(q.values[i]).bits, dequantized[i].bits) << "value " << i;
    }
  }
  return compared;
}

TEST(QuantizerGolden, CodesAndValuesEqualTheReference) {
  for (const int64_t group : {128, 16}) {
    const std::string base = "f32.g" + std::to_string(group);
    const auto x = Copy<float>(base + ".x");
    for (const int bits : kWidths) {
      const std::string prefix = base + ".min.b" + std::to_string(bits);
      SCOPED_TRACE(prefix);
      const auto codes = Copy<int32_t>(prefix + ".codes");
      const auto unpacked = UnpackReference(Copy<uint16_t>(prefix + ".packed"), bits);
      EXPECT_TRUE(std::equal(codes.begin(), codes.end(), unpacked.begin(), unpacked.end()));
      EXPECT_GE(CompareGroups(prefix, x, group, bits), 50);
    }
  }
}

TEST(QuantizerGolden, SeveralGroupsARow) {
  const auto x = Copy<float>("multi.x");
  for (const int bits : kWidths) {
    const std::string prefix = "multi.b" + std::to_string(bits);
    SCOPED_TRACE(prefix);
    EXPECT_EQ(CompareGroups(prefix, x, 128, bits), 20);
  }
}

TEST(QuantizerGolden, FakeQuantizeWithTheReferenceClampEqualsTheReference) {
  for (const int64_t group : {128, 16}) {
    const std::string base = "f32.g" + std::to_string(group);
    const auto x = Copy<float>(base + ".x");
    const auto num_groups = static_cast<int64_t>(x.size()) / group;
    std::vector<float> out(x.size());
    for (const int bits : kWidths) {
      FakeQuantize({group, bits, /*reference_scale_clamp=*/true}, x.data(), num_groups, out.data());
      EXPECT_EQ(out, Copy<float>(base + ".min.b" + std::to_string(bits) + ".fake")) << bits;
    }
    FakeQuantize({group, 16, /*reference_scale_clamp=*/true}, x.data(), num_groups, out.data());
    const auto expected = Copy<BF16>(base + ".min.b16.fake");
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(ToBF16(out[i]).bits, expected[i].bits);
  }
}

TEST(QuantizerGolden, HalvingEveryCodeEqualsTheReference) {
  const auto in16 = Copy<uint16_t>("shrink.16.in_packed");
  std::vector<uint8_t> out(in16.size());
  HalveCodes16To8(in16.data(), static_cast<int64_t>(in16.size()), out.data());
  const auto expected16 = Copy<int32_t>("shrink.16.out_codes");
  EXPECT_TRUE(std::equal(out.begin(), out.end(), expected16.begin(), expected16.end()));

  for (const int bits : {8, 4}) {
    const std::string prefix = "shrink." + std::to_string(bits);
    const auto codes = UnpackReference(Copy<uint16_t>(prefix + ".in_packed"), bits);
    const auto expected = Copy<int32_t>(prefix + ".out_codes");
    ASSERT_EQ(codes.size(), expected.size());
    const int64_t group = 16;
    const auto num_groups = static_cast<int64_t>(codes.size()) / group;
    std::vector<uint8_t> packed(codes.size());
    PackCodes(group, bits, codes.data(), num_groups, packed.data());
    HalvePackedCodes(group, bits, packed.data(), num_groups, packed.data());
    std::vector<uint8_t> halved(codes.size());
    UnpackCodes(group, bits / 2, packed.data(), num_groups, halved.data());
    EXPECT_TRUE(std::equal(halved.begin(), halved.end(), expected.begin(), expected.end()));
  }
}

}  // namespace
}  // namespace pmkvq
