// KVTuner against a scalar reading of its rule.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/methods/registry.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_rule.h"
#include "support/temp_folder.h"

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

struct Rule {
  int k_bits = 4;
  int v_bits = 2;
  int64_t group = 64;
  bool per_channel = false;
  int64_t residual = 32;
};

KeysAndValues Expected(const testing_support::Rows& given, int64_t n, const Rule& rule) {
  KeysAndValues expected{given.k, given.v};
  for (int64_t t = 0; t < n; ++t) {
    if (!rule.per_channel) QuantizeToken(expected.first, kMethodShape, t, rule.group, rule.k_bits);
    if (!rule.per_channel || t < n - rule.residual) {
      QuantizeToken(expected.second, kMethodShape, t, rule.group, rule.v_bits);
    }
  }
  if (!rule.per_channel) return expected;
  for (int64_t t = 0; t < n - n % rule.residual; t += rule.group) {
    for (int64_t column = 0; column < 128; ++column) {
      QuantizeChannel(expected.first, kMethodShape, t, rule.group, column / 64, column % 64,
                      rule.k_bits);
    }
  }
  return expected;
}

using Case = RuleCase<Rule>;

class KvTunerTest : public testing::TestWithParam<Case> {};

TEST_P(KvTunerTest, PrefillAndDecodeFollowTheRule) {
  ExpectRule(GetParam(), {1, 30, 1, 95, 1, 1, 128, 1}, Expected);
}

INSTANTIATE_TEST_SUITE_P(
    Specs, KvTunerTest,
    testing::Values(Case{"kvtuner", {}}, Case{"kvtuner:k=8+v=4", {.k_bits = 8, .v_bits = 4}},
                    Case{"kvtuner:k=2+v=8+group=16", {.k_bits = 2, .v_bits = 8, .group = 16}},
                    Case{"kvtuner:axis=channel", {.group = 32, .per_channel = true}},
                    Case{"kvtuner:axis=channel+k=2+group=64+residual=192",
                         {.k_bits = 2, .group = 64, .per_channel = true, .residual = 192}}));

TEST(KvTuner, BytesByHand) {
  // Per token 2 heads: 32 + 4 bytes of K at 4 bits, 16 + 4 of V at 2.
  EXPECT_EQ(BytesAfter("kvtuner", 1), 72 + 40);
  EXPECT_EQ(BytesAfter("kvtuner", 300), 300 * (72 + 40));
  EXPECT_EQ(BytesAfter("kvtuner:k=8+v=8", 300), 300 * 2 * (128 + 8));
  // Groups of 32: 4 of 16 + 4 bytes a token of K, 4 of 8 + 4 of V; at full precision 256.
  EXPECT_EQ(BytesAfter("kvtuner:axis=channel", 300), (288 * 80 + 12 * 256) + (268 * 48 + 32 * 256));
}

constexpr std::array<std::pair<int, int>, 5> kPairs = {{{8, 8}, {8, 4}, {4, 4}, {4, 2}, {2, 2}}};

// What is left of x [N, columns] when the values `at` of it are one group, with float metadata.
void AddError(const float* x, const std::vector<size_t>& at, int bits, std::vector<float>& error) {
  float low = x[at[0]];
  float high = low;
  for (const size_t i : at) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float step = (high - low) / static_cast<float>((1 << bits) - 1);
  for (const size_t i : at) error[i] = std::nearbyint((x[i] - low) / step) * step + low - x[i];
}

// Errors of keys and values of one layer with axis=channel, groups of 32 (values: head_dim 16), R
// = 32, for N = 70 tokens of 2 heads: keys 0 - 63 and values 0 - 37.
std::pair<std::vector<float>, std::vector<float>> ChannelErrors(const BlockStates<float>& states,
                                                                std::pair<int, int> bits) {
  std::vector<float> of_k(70 * 32, 0.0f);
  std::vector<float> of_v = of_k;
  for (size_t column = 0; column < 32; ++column) {
    for (size_t first = 0; first < 64; first += 32) {
      std::vector<size_t> at;
      for (size_t t = first; t < first + 32; ++t) at.push_back(t * 32 + column);
      AddError(states.k, at, bits.first, of_k);
    }
  }
  for (size_t begin = 0; begin < 38 * 32; begin += 16) {
    std::vector<size_t> at;
    for (size_t i = 0; i < 16; ++i) at.push_back(begin + i);
    AddError(states.v, at, bits.second, of_v);
  }
  return {of_k, of_v};
}

TEST(KvTuner, CalibrationMeasuresOneLayerAtATime) {
  const TinyModel tiny;  // 3 layers, 2 KV heads of 16.
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {70, 70}, 9);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const MethodData data = CalibrateMethod("kvtuner:axis=channel", DType::kF32, calibration, {});
  ASSERT_EQ(data.tensors.size(), 4u);

  Profile<float> profile(*model, 1);
  for (int64_t layer = 0; layer < 3; ++layer) {
    const float* found = data.Get(BlockTensorName("loss_change", layer), {5}).As<float>();
    for (size_t pair = 0; pair < 5; ++pair) {
      double change = 0;
      for (size_t sample = 0; sample < 2; ++sample) {
        const std::vector<int64_t> positions = samples.Positions(sample, 0);
        std::pair<std::vector<float>, std::vector<float>> errors;
        const double exact = profile.Forward(samples.tokens[sample], positions,
                                             [&](const BlockStates<float>& states) {
                                               if (states.layer != layer) return;
                                               errors = ChannelErrors(states, kPairs[pair]);
                                             });
        const double loss = profile.PerturbedLoss(samples.tokens[sample], positions, layer,
                                                  errors.first.data(), errors.second.data());
        change += std::abs(loss - exact);
      }
      EXPECT_NEAR(found[pair], change / 2, 1e-6) << layer << " " << pair;
    }
    EXPECT_GT(found[4], found[0]) << layer;
  }
}

// A file with these losses by layer and pair, made with axis=token.
void SaveLosses(const std::vector<std::array<float, 5>>& losses, const std::string& path) {
  MethodData data;
  data.method = "kvtuner";
  data.spec = "kvtuner";
  data.model_identity = "0123456789abcdef0123456789abcdef";
  data.geometry = {static_cast<int64_t>(losses.size()), 4, 2, 64};
  data.record = {"texts", "concat", 1, 20, 20, 42};
  for (size_t layer = 0; layer < losses.size(); ++layer) {
    Tensor tensor(DType::kF32, {5});
    std::copy(losses[layer].begin(), losses[layer].end(), tensor.As<float>());
    data.tensors.emplace(BlockTensorName("loss_change", static_cast<int64_t>(layer)),
                         std::move(tensor));
  }
  Tensor form(DType::kF32, {3});
  form.As<float>()[1] = 64;  // Per token, groups of 64.
  data.tensors.emplace("form", std::move(form));
  SaveMethodData(data, path);
}

// The pairs of least loss whose widths sum to at most `bits` on average, all of them tried.
std::vector<size_t> BruteForce(const std::vector<std::array<float, 5>>& losses, double bits) {
  std::vector<size_t> best;
  double best_loss = 1e9;
  for (size_t code = 0; code < 125; ++code) {
    const std::vector<size_t> pairs = {code % 5, code / 5 % 5, code / 25};
    double loss = 0;
    int sum = 0;
    for (size_t layer = 0; layer < 3; ++layer) {
      // Not less than a wider pair's.
      loss += double{
          *std::max_element(losses[layer].begin(), losses[layer].begin() + pairs[layer] + 1)};
      sum += kPairs[pairs[layer]].first + kPairs[pairs[layer]].second;
    }
    if (sum <= bits * 6 + 1e-9 && loss < best_loss) {
      best_loss = loss;
      best = pairs;
    }
  }
  return best;
}

TEST(KvTuner, LayersGetThePairsOfLeastLossUnderTheBits) {
  const TempFolder folder;
  const std::string path = folder.File("losses.safetensors");
  const std::vector<std::array<float, 5>> losses = {{0.001f, 0.02f, 0.03f, 0.31f, 0.9f},
                                                    {0.001f, 0.004f, 0.003f, 0.05f, 0.01f},
                                                    {0.0f, 0.001f, 0.2f, 0.21f, 0.22f}};
  SaveLosses(losses, path);
  for (const double bits : {2.0, 2.4, 3.0, 3.25, 4.0, 5.5, 8.0}) {
    MethodDriver driver("kvtuner:from=" + path + fmt::format("+bits={}", bits), {3, 4, 2, 64});
    driver.Append(10);
    const std::vector<size_t> expected = BruteForce(losses, bits);
    for (size_t layer = 0; layer < 3; ++layer) {
      const auto [k_bits, v_bits] = kPairs[expected[layer]];
      // 128 codes and two groups' metadata, of K and of V.
      EXPECT_EQ(driver.store().LayerStats(driver.seq(), static_cast<int64_t>(layer)).bytes,
                10 * (16 * k_bits + 8 + 16 * v_bits + 8))
          << bits << " " << layer;
    }
  }
  // The first layer is damaged at its own widths.
  MethodDriver driver("kvtuner:from=" + path, {3, 4, 2, 64});
  driver.Append(10);
  const auto [k_bits, v_bits] = kPairs[BruteForce(losses, 3.25)[0]];
  const KeysAndValues expected =
      Expected(driver.Given(10), 10, {.k_bits = k_bits, .v_bits = v_bits});
  for (size_t i = 0; i < expected.first.size(); ++i) {
    ASSERT_NEAR(driver.Stored().first[i], expected.first[i], 1e-5f) << i;
    ASSERT_NEAR(driver.Stored().second[i], expected.second[i], 1e-5f) << i;
  }
}

TEST(KvTuner, BudgetsFollowTheWidths) {
  // Layers at 8/8, 8/8 and 2/2: 272, 272 and 80 bytes a token. A budget for 10 tokens holds 10.
  const TempFolder folder;
  const std::string path = folder.File("losses.safetensors");
  SaveLosses({{0, 9, 9, 9, 9}, {0, 9, 9, 9, 9}, {0, 0, 0, 0, 0}}, path);
  KvOptions options;
  options.spec = "kvtuner:from=" + path + "+bits=6";
  options.budget_bytes = 10 * (272 + 272 + 80);
  const KvRequirements requirements{UniformKvGeometry{3, 4, 2, 64}, 1, 100, 1};
  const KvBudget budget = ResolveKvBudget(options, requirements);
  EXPECT_TRUE(budget.Holds(10));
  EXPECT_FALSE(budget.Holds(11));
  const std::unique_ptr<KvStore> store = MakeKvStore(options, requirements);
  const SequenceId seq = store->Open().value();
  EXPECT_EQ(store->LayerStats(seq, 0).budget_bytes, 2720);
  EXPECT_EQ(store->LayerStats(seq, 2).budget_bytes, 800);
  EXPECT_EQ(store->Reserve(seq, 11), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(store->Reserve(seq, 10), ReserveResult::kReserved);
}

TEST(KvTuner, NamesWhatDoesNotGoWithAFile) {
  const TempFolder folder;
  const std::string path = folder.File("losses.safetensors");
  SaveLosses(std::vector<std::array<float, 5>>(3), path);
  const auto expect = [&](const std::string& rest, const std::string& where,
                          const std::string& part) {
    ExpectError<InvalidInput>(
        [&] {
          MethodDriver driver("kvtuner:from=" + path + rest, {3, 4, 2, 64});
        },
        {where, part});
  };
  expect("+k=8", "--kv", "k=8, expected none with from=: the file says the widths");
  expect("+bits=1", "--kv", "bits=1, expected a number in [2, 8]");
  expect("+group=32", path, "made with axis=token+group=64, expected axis=token+group=32, as in");
  expect("+axis=channel", path, "expected axis=channel+group=32+residual=32");

  const TinyModel tiny;
  const TinyFolder model_folder(tiny);
  const std::shared_ptr<const Model> model = model_folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {20}, 9);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const auto expect_calibration = [&](const std::string& spec, const std::string& part) {
    ExpectError<InvalidInput>([&] { CalibrateMethod(spec, DType::kF16, calibration, {}); },
                              {"--kv", spec, part});
  };
  expect_calibration("kvtuner:k=8", "k=8, expected none: calibration measures all widths");
  expect_calibration("kvtuner:bits=9", "bits=9, expected a number in [2, 8]");
}

TEST(KvTuner, NamesWhatIsWrong) {
  ExpectRefused("kvtuner:k=3", "k=3, expected one of 8, 4, 2");
  ExpectRefused("kvtuner:axis=head", "axis=head, expected one of token, channel");
  ExpectRefused("kvtuner:group=48", "group 48, expected a divisor of head_dim 64");
  ExpectRefused("kvtuner:axis=channel+group=16",
                "group=16, expected 128, 64 or 32 with axis=channel");
  ExpectRefused("kvtuner:axis=channel+residual=40",
                "residual=40, expected a multiple of the group 32");
  ExpectRefused("kvtuner:residual=32", "residual=32, expected axis=channel with it");
  ExpectRefused("kvtuner:bits=4", "bits=4, expected from= with it, or k= and v= in its place");
  ExpectRefused(
      "kvtuner:key=4",
      "unknown key 'key' for kvtuner, expected k=, v=, from=, bits=, axis=, group=, residual=");
}

}  // namespace
}  // namespace pmkvq
