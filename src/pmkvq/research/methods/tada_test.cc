// TaDA against golden data and a scalar reading of its rule.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_chunks.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectChunksDoNotMatter;
using testing_support::ExpectError;
using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::ExpectRule;
using testing_support::GoldenCache;
using testing_support::KeysAndValues;
using testing_support::kMethodShape;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::RandomSamples;
using testing_support::RuleCase;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

TEST(Tada, Golden) {
  const MethodGolden golden("tada");  // [Hkv, T, D]
  const UniformKvGeometry geometry{1, 4, 4, 64};
  for (const std::string mean : {"f32", "f16"}) {
    for (const std::string bits : {"8", "4", "2"}) {
      SCOPED_TRACE(mean + " " + bits);
      GoldenCache cache("tada:residual=24+bits=" + bits + "+mean=" + mean, geometry,
                        golden.Floats("k"), golden.Floats("v"));
      for (const int64_t count : {1, 20, 3}) cache.Append(count);
      const std::string end = "." + mean + ".b" + bits + ".read";
      ExpectGolden(cache.Keys(), golden.Floats("k" + end), 3);
      ExpectGolden(cache.Values(), golden.Floats("v" + end), 2);
    }
  }
}

struct Rule {
  int bits;
  int64_t residual;
};

// Two heads of 64: the means and the deviations of the first n - n % R tokens.
std::vector<float> Damaged(const std::vector<float>& x, int64_t n, const Rule& rule) {
  std::vector<float> deviations = x;
  std::vector<float> means(x.size());
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t channel = 0; channel < 64; ++channel) {
      const size_t a = kMethodShape.At(t, 0, channel);
      const size_t b = kMethodShape.At(t, 1, channel);
      means[a] = means[b] = ToFloat(ToF16(static_cast<float>((double{x[a]} + double{x[b]}) / 2)));
      // The quantiser of the tests rounds no minimum: deviations of f16 values need not be f16.
      deviations[a] = means[a] - x[a];
      deviations[b] = means[b] - x[b];
    }
  }
  std::vector<float> out = x;
  for (int64_t t = 0; t < n / rule.residual * rule.residual; ++t) {
    for (int64_t head = 0; head < 2; ++head) {
      float low = INFINITY;
      float high = -INFINITY;
      for (int64_t channel = 0; channel < 64; ++channel) {
        low = std::min(low, deviations[kMethodShape.At(t, head, channel)]);
        high = std::max(high, deviations[kMethodShape.At(t, head, channel)]);
      }
      const float min = ToFloat(RoundDown<F16>(low));
      const float range = ToFloat(RoundUp<F16>(high - min));
      const float step = range / static_cast<float>((1 << rule.bits) - 1);
      for (int64_t channel = 0; channel < 64; ++channel) {
        const size_t i = kMethodShape.At(t, head, channel);
        out[i] = means[i] - (std::nearbyint((deviations[i] - min) / step) * step + min);
      }
    }
  }
  return out;
}

KeysAndValues Expected(const testing_support::Rows& given, int64_t n, const Rule& rule) {
  return {Damaged(given.k, n, rule), Damaged(given.v, n, rule)};
}

using Case = RuleCase<Rule>;

class TadaTest : public testing::TestWithParam<Case> {};

TEST_P(TadaTest, PrefillAndDecodeFollowTheRule) {
  ExpectRule(GetParam(), {1, 30, 1, 95, 1, 1, 128, 1, 200, 1, 1}, Expected);
}

INSTANTIATE_TEST_SUITE_P(Specs, TadaTest,
                         testing::Values(Case{"tada", {4, 128}}, Case{"tada:bits=2", {2, 128}},
                                         Case{"tada:bits=8+residual=1", {8, 1}},
                                         Case{"tada:residual=50", {4, 50}}));

TEST(Tada, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("tada", 200);
  ExpectChunksDoNotMatter("tada:bits=2+residual=50", 110);
}

TEST(Tada, BytesByHand) {
  // A token at full precision: 256 bytes of K and as many of V. Quantised at 4 bits, each: the mean
  // 64 * 2, codes 64, two pairs of 4.
  EXPECT_EQ(BytesAfter("tada", 127), 127 * 512);
  EXPECT_EQ(BytesAfter("tada", 130), 128 * 2 * (128 + 64 + 8) + 2 * 512);
  EXPECT_EQ(BytesAfter("tada:bits=2+mean=f32+residual=10", 25), 20 * 2 * (256 + 32 + 8) + 5 * 512);
}

TEST(Tada, NamesWhatIsWrong) {
  ExpectRefused("tada:average=4", "average=4, expected from= with it");
  ExpectRefused("tada:bits=3", "bits=3, expected one of 8, 4, 2");
  ExpectError<InvalidInput>(
      [] {
        MethodDriver driver("tada", {1, 4, 1, 64});
      },
      {"--kv", "'tada'", "one KV head", "expected 2 KV heads or more"});
}

TEST(Tada, CalibratedWidthsHaveTheAverageAndFollowTheLoss) {
  const TinyModel tiny;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {40, 40}, 3);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  MethodData data = CalibrateMethod("tada:residual=8", DType::kF16, calibration,
                                    {"texts", "concat", 2, 40, 40, 42});
  const UniformKvGeometry geometry = UniformOf(model->kv_geometry());
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const float* loss = data.tensors.at(BlockTensorName("loss_change", layer)).As<float>();
    EXPECT_GT(loss[2], loss[0]) << "2 bits move the loss more than 8";
    // Only the last block matters.
    float* changed = data.tensors.at(BlockTensorName("loss_change", layer)).As<float>();
    for (int i = 0; i < 3; ++i) {
      changed[i] = layer + 1 == geometry.num_layers ? static_cast<float>(i) : 0.0f;
    }
  }
  const TempFolder files;
  SaveMethodData(data, files.File("tada"));
  const auto bytes = [&](double average, int64_t layer) {
    MethodDriver driver(
        "tada:residual=8+average=" + std::to_string(average) + "+from=" + files.File("tada"),
        geometry);
    driver.Append(8);
    return driver.store().LayerStats(driver.seq(), layer).bytes;
  };
  const auto at_width = [&](int bits) {
    MethodDriver driver("tada:residual=8+bits=" + std::to_string(bits), geometry);
    driver.Append(8);
    return driver.BlockBytes();
  };
  EXPECT_EQ(bytes(8, geometry.num_layers - 1), at_width(8));
  EXPECT_EQ(bytes(2, geometry.num_layers - 1), at_width(2));
  const auto layers = static_cast<double>(geometry.num_layers);
  EXPECT_EQ(bytes((8 + 2 * (layers - 1)) / layers, geometry.num_layers - 1), at_width(8));
  EXPECT_EQ(bytes((8 + 2 * (layers - 1)) / layers, 0), at_width(2));
  ExpectError<InvalidInput>(
      [&] { MethodDriver driver("tada:from=" + files.File("tada"), geometry); },
      {files.File("tada"), "made with residual=8, expected 128"});
}

}  // namespace
}  // namespace pmkvq
