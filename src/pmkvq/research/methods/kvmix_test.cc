// KVmix against its recursion run token by token, and its importance against gradients in double
// precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectError;
using testing_support::ExpectRefused;
using testing_support::ExpectRule;
using testing_support::KeysAndValues;
using testing_support::kMethodShape;
using testing_support::MethodDriver;
using testing_support::QuantizeChannel;
using testing_support::QuantizeToken;
using testing_support::RandomSamples;
using testing_support::RuleCase;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

// How many of n tokens are quantised: after every token, what exceeds the ratio of the tokens at
// full precision goes, in whole groups.
int64_t NumQuantized(int64_t n, double ratio, int64_t group) {
  int64_t full = 0;
  int64_t quantized = 0;
  for (int64_t t = 0; t < n; ++t) {
    ++full;
    const int64_t kept = static_cast<int64_t>(ratio * static_cast<double>(full));
    const int64_t gone = (full - kept) / group * group;
    full -= gone;
    quantized += gone;
  }
  return quantized;
}

// Eleven tokens of a channel at 3 bits. The last one has four codes: over the same range, or, when
// it is cut, the first four of the eight.
void QuantizeWord(std::vector<float>& x, int64_t first, int64_t head, int64_t channel, bool cut) {
  float low = INFINITY;
  float high = -INFINITY;
  for (int64_t i = 0; i < 11; ++i) {
    low = std::min(low, x[kMethodShape.At(first + i, head, channel)]);
    high = std::max(high, x[kMethodShape.At(first + i, head, channel)]);
  }
  const float range = ToFloat(RoundUp<F16>(high - low));
  for (int64_t i = 0; i < 11; ++i) {
    const float step = range / (i == 10 && !cut ? 3.0f : 7.0f);
    float& value = x[kMethodShape.At(first + i, head, channel)];
    value = std::min(std::nearbyint((value - low) / step), i == 10 ? 3.0f : 7.0f) * step + low;
  }
}

struct Rule {
  int k_bits = 2;
  int v_bits = 2;
  double k_ratio = 0.1;
  double v_ratio = 0.1;
  bool cut = false;  // The eleventh code of a word, at 3.
};

KeysAndValues Expected(const testing_support::Rows& given, int64_t n, const Rule& rule) {
  KeysAndValues expected{given.k, given.v};
  const int64_t group = rule.k_bits == 3 ? 11 : 32;
  for (int64_t token = 0; token < NumQuantized(n, rule.k_ratio, group); token += group) {
    for (int64_t head = 0; head < kMethodShape.heads; ++head) {
      for (int64_t channel = 0; channel < kMethodShape.dim; ++channel) {
        if (rule.k_bits == 3) {
          QuantizeWord(expected.first, token, head, channel, rule.cut);
        } else {
          QuantizeChannel(expected.first, kMethodShape, token, group, head, channel, rule.k_bits);
        }
      }
    }
  }
  for (int64_t token = 0; token < NumQuantized(n, rule.v_ratio, 32); ++token) {
    QuantizeToken(expected.second, kMethodShape, token, 32, rule.v_bits);
  }
  return expected;
}

using Case = RuleCase<Rule>;

class KvMixTest : public testing::TestWithParam<Case> {};

TEST_P(KvMixTest, PrefillAndDecodeFollowTheRecursion) {
  std::vector<int64_t> chunks(50, 1);
  chunks.insert(chunks.end(), {70, 1, 1, 128, 1, 9});
  ExpectRule(GetParam(), chunks, Expected);
}

INSTANTIATE_TEST_SUITE_P(Specs, KvMixTest,
                         testing::Values(Case{"kvmix:k=2+v=2", {2, 2, 0.1, 0.1}},
                                         Case{"kvmix:k=3+v=4", {3, 4, 0.2, 0.2}},
                                         Case{"kvmix:k=4+recent-high=0.5+recent-low=0",
                                              {4, 2, 0.5, 0.0}},
                                         Case{"kvmix:k=3+v=4+reference", {3, 4, 0.2, 0.3, true}},
                                         Case{"kvmix:v=2+reference", {2, 2, 0.2, 0.2}}));

TEST(KvMix, BytesByHand) {
  // At full precision a token takes 256 bytes of K and as many of V. 32 tokens of 128 channels of K
  // at 2 bits: 128 * (8 + 4) = 1536; eleven at 3 bits: 128 * (4 + 4) = 1024. A token of V in four
  // groups of 32 at 2 bits: 32 + 16, at 4 bits: 64 + 16.
  // Ratio 0.1: the first 32 go when there are 35 (35 - 3); 0.2: when there are 40 (40 - 8), and
  // eleven when there are 13 (13 - 2).
  EXPECT_EQ(BytesAfter("kvmix:k=2", 34), 34 * 512);
  EXPECT_EQ(BytesAfter("kvmix:k=2", 35), 1536 + 32 * 48 + 3 * 512);
  EXPECT_EQ(BytesAfter("kvmix:k=2", 66), 1536 + 32 * 48 + 34 * 512);
  EXPECT_EQ(BytesAfter("kvmix:k=2", 67), 2 * 1536 + 64 * 48 + 3 * 512);
  EXPECT_EQ(BytesAfter("kvmix:k=3+v=4", 12), 12 * 512);
  EXPECT_EQ(BytesAfter("kvmix:k=3+v=4", 13), 1024 + 2 * 256 + 13 * 256);
  EXPECT_EQ(BytesAfter("kvmix:k=3+v=4", 40), 3 * 1024 + 7 * 256 + 32 * 80 + 8 * 256);
}

MethodData FileOf(const std::vector<float>& k, const std::vector<float>& v) {
  MethodData data;
  data.method = "kvmix";
  data.geometry = {static_cast<int64_t>(k.size()), 4, 2, 64};
  for (const bool of_keys : {true, false}) {
    Tensor tensor(DType::kF32, {static_cast<int64_t>(k.size())});
    std::copy_n((of_keys ? k : v).data(), k.size(), tensor.As<float>());
    data.tensors.emplace(of_keys ? "k_importance" : "v_importance", std::move(tensor));
  }
  return data;
}

// Keys and values are ranked apart; of equal blocks the lower one is more important.
TEST(KvMix, TheMostImportantBlocksGetMoreBits) {
  const TempFolder folder;
  const std::string path = folder.File("importance");
  SaveMethodData(FileOf({1, 5, 2, 9, 5}, {7, 0, 7, 1, 7}), path);
  const UniformKvGeometry geometry{5, 4, 2, 64};
  const auto bytes = [&](const std::string& spec) {
    MethodDriver driver(spec, geometry);
    driver.Append(40);
    std::vector<int64_t> result;
    for (int64_t layer = 0; layer < 5; ++layer) {
      result.push_back(driver.store().LayerStats(driver.seq(), layer).bytes);
    }
    return result;
  };
  // At 40 tokens: K at 2 bits and ratio 0.1 has 8 at full precision, at 3 bits and 0.2 has 7; V at
  // either width has 8.
  const int64_t k2 = 1536 + 8 * 256;
  const int64_t k3 = 3 * 1024 + 7 * 256;
  const int64_t v2 = 32 * 48 + 8 * 256;
  const int64_t v4 = 32 * 80 + 8 * 256;
  EXPECT_EQ(bytes("kvmix:from=" + path),
            (std::vector<int64_t>{k2 + v4, k2 + v2, k2 + v2, k3 + v2, k2 + v2}));
  EXPECT_EQ(bytes("kvmix:share=0.4+from=" + path),
            (std::vector<int64_t>{k2 + v4, k3 + v2, k2 + v4, k3 + v2, k2 + v2}));
  EXPECT_EQ(bytes("kvmix:share=0+from=" + path), std::vector<int64_t>(5, k2 + v2));
}

TEST(KvMix, CalibrationIsTheMeanNormOfTheProjectionsGradients) {
  const TinyModel tiny;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {30, 30, 17}, 4);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  calibration.effective_len = 60;
  const MethodData data = CalibrateMethod("kvmix", DType::kF16, calibration, {});

  std::vector<double> k(3);
  std::vector<double> v(3);
  Profile<double> profile(*model, 1);
  for (size_t i = 0; i < 3; ++i) {
    profile.ProjectionBackward(
        samples.tokens[i], samples.Positions(i, 60), [&](const auto& gradients) {
          double k_squares = 0;
          double v_squares = 0;
          for (int64_t at = 0; at < tiny.kv_dim() * tiny.hidden; ++at) {
            k_squares += gradients.k[at] * gradients.k[at];
            v_squares += gradients.v[at] * gradients.v[at];
          }
          k[static_cast<size_t>(gradients.layer)] += std::sqrt(k_squares) / 3;
          v[static_cast<size_t>(gradients.layer)] += std::sqrt(v_squares) / 3;
        });
  }
  for (size_t layer = 0; layer < 3; ++layer) {
    EXPECT_NEAR(data.Get("k_importance", {3}).As<float>()[layer], k[layer], 1e-4 * k[layer]);
    EXPECT_NEAR(data.Get("v_importance", {3}).As<float>()[layer], v[layer], 1e-4 * v[layer]);
    EXPECT_GT(k[layer], 0);
  }
}

TEST(KvMix, NamesWhatIsWrong) {
  ExpectRefused(
      "kvmix",
      "no importance of blocks, expected from=FILE (made by pmkvq calibrate --kv kvmix --model "
      "MODEL --dataset TEXTS --out FILE), or k= and v=");
  ExpectRefused("kvmix:k=5", "k=5, expected one of 4, 3, 2");
  ExpectRefused("kvmix:v=3", "v=3, expected one of 4, 2");
  ExpectRefused("kvmix:k=2+recent-low=1", "recent-low=1, expected a number in [0, 0.9]");
  ExpectRefused("kvmix:k=2+bits=2", "unknown key 'bits' for kvmix");
  const TempFolder folder;
  const std::string path = folder.File("importance");
  MethodData data = FileOf({1}, {1});
  SaveMethodData(data, path);
  ExpectRefused("kvmix:k=2+from=" + path, "k= and v= are for all blocks, expected them or from=");
  data.tensors.erase("v_importance");
  SaveMethodData(data, path);
  ExpectError<InvalidInput>([&] { MethodDriver driver("kvmix:from=" + path); },
                            {path, "no tensor 'v_importance'"});
  ExpectError<InvalidInput>(
      [] {
        MethodDriver driver("kvmix:k=2", {1, 2, 2, 48});
      },
      {"--kv", "head_dim 48, expected a multiple of 32"});
}

}  // namespace
}  // namespace pmkvq
