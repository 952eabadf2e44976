// The layout of page bytes on the CPU, place by place as docs/formats.md has it. Other tests see
// page contents as floats only.
#include "pmkvq/kv/packed/page_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kv/cache_config.h"

namespace pmkvq {
namespace {

constexpr int64_t kHeads = 3;

struct Page {
  Page(const KvStream& stream, int width, QuantAxis quant_axis)
      : bits(width),
        axis(quant_axis),
        data(static_cast<size_t>(PageCodeBytes(stream, DType::kF16, width))),
        metadata(static_cast<size_t>(PageMetadataBytes(stream, DType::kF16, width, quant_axis))) {}
  KvTensorView view() const { return {data.data(), metadata.data(), bits, axis}; }

  int bits;
  QuantAxis axis;
  std::vector<std::byte> data;
  std::vector<std::byte> metadata;
};

// Code, step and minimum of one value, read by the formulas of docs/formats.md.
struct Place {
  int code = 0;
  float step = 0;
  float min = 0;
};

Place PlaceOf(const Page& page, int64_t dim, int64_t head, int64_t token, int64_t d) {
  const bool by_channel = page.axis == QuantAxis::kChannel;
  const int64_t group = by_channel ? 128 : std::min<int64_t>(dim, 128);
  const int64_t in_group = by_channel ? token : d % group;
  const int64_t groups = by_channel ? dim : 128 * (dim / group);  // Of a head.
  const int64_t index = by_channel ? d : token * (dim / group) + d / group;
  const int64_t group_bytes = group * page.bits / 8;
  const int64_t byte = (head * groups + index) * group_bytes + in_group % group_bytes;
  const auto shift = in_group / group_bytes * page.bits;
  const auto* bounds = reinterpret_cast<const F16*>(page.metadata.data()) + 2 * head * groups;
  const int max_code = (1 << page.bits) - 1;
  Place place;
  place.code = (std::to_integer<int>(page.data[static_cast<size_t>(byte)]) >> shift) & max_code;
  place.min = ToFloat(bounds[index]);
  place.step = ToFloat(bounds[groups + index]) / static_cast<float>(max_code);
  return place;
}

class PageCodecTest : public testing::TestWithParam<std::tuple<int64_t, QuantAxis>> {
 protected:
  PageCodecTest()
      : dim(std::get<0>(GetParam())),
        axis(std::get<1>(GetParam())),
        stream(StreamOf(kHeads, dim)),
        codec(stream, DType::kF16),
        values(static_cast<size_t>(codec.num_values())) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (float& value : values) value = ToFloat(ToF16(normal(random)));
  }
  // function(value index in [Hkv, 128, D], head, token, d)
  template <class Function>
  void ForEachValue(const Function& function) const {
    size_t i = 0;
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t token = 0; token < 128; ++token) {
        for (int64_t d = 0; d < dim; ++d) function(i++, head, token, d);
      }
    }
  }

  int64_t dim;
  QuantAxis axis;
  KvStream stream;
  PageCodec codec;
  std::vector<float> values;
};

TEST_P(PageCodecTest, EveryValueIsWhereTheFormatSays) {
  for (const int bits : {8, 4, 2}) {
    Page page(stream, bits, axis);
    ASSERT_TRUE(codec.Encode(values.data(), bits, axis, page.data.data(), page.metadata.data()));
    std::vector<float> decoded(values.size());
    codec.Decode(page.view(), 128, decoded.data());
    ForEachValue([&](size_t i, int64_t head, int64_t token, int64_t d) {
      const Place place = PlaceOf(page, dim, head, token, d);
      const float value = static_cast<float>(place.code) * place.step + place.min;
      ASSERT_NEAR(decoded[i], value, 1e-6f) << bits << " bits, head " << head << " token " << token;
      // The nearest code, so the value itself and no other one is there.
      ASSERT_LE(std::abs(values[i] - value), place.step * 0.501f) << bits << " bits, value " << i;
    });
  }
}

TEST_P(PageCodecTest, HalvingRoundsEveryCodeInItsPlace) {
  Page from(stream, 8, axis);
  ASSERT_TRUE(codec.Encode(values.data(), 8, axis, from.data.data(), from.metadata.data()));
  for (const auto& [from_bits, to_bits] : {std::pair{8, 4}, {4, 2}, {8, 2}}) {
    Page wide(stream, 8, axis);
    wide = from;
    if (from_bits == 4) {
      wide = Page(stream, 4, axis);
      codec.Halve(from.data.data(), 8, 4, axis, wide.data.data());
    }
    Page narrow(stream, to_bits, axis);
    codec.Halve(wide.data.data(), from_bits, to_bits, axis, narrow.data.data());
    const double ratio = ((1 << from_bits) - 1) / ((1 << to_bits) - 1);
    ForEachValue([&](size_t, int64_t head, int64_t token, int64_t d) {
      ASSERT_EQ(PlaceOf(narrow, dim, head, token, d).code,
                std::lround(PlaceOf(wide, dim, head, token, d).code / ratio))
          << from_bits << " to " << to_bits;
    });
  }
}

TEST_P(PageCodecTest, ExpandingGivesThePageThatDecodingReads) {
  Page page(stream, 4, axis);
  ASSERT_TRUE(codec.Encode(values.data(), 4, axis, page.data.data(), page.metadata.data()));
  Page expanded(stream, 16, QuantAxis::kToken);
  codec.Expand(page.view(), expanded.data.data());
  std::vector<float> decoded(values.size());
  codec.Decode(page.view(), 128, decoded.data());
  const auto* floats = reinterpret_cast<const F16*>(expanded.data.data());
  ForEachValue([&](size_t i, int64_t, int64_t, int64_t) {
    ASSERT_EQ(ToFloat(floats[i]), ToFloat(ToF16(decoded[i])));
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, PageCodecTest,
                         testing::Combine(testing::Values(8, 64, 128, 256),
                                          testing::Values(QuantAxis::kToken, QuantAxis::kChannel)));

}  // namespace
}  // namespace pmkvq
