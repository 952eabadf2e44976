#include "pmkvq/research/calib/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/file.h"
#include "pmkvq/model/profile.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::ExpectError;
using testing_support::MakeTinyWeights;
using testing_support::RandomSamples;
using testing_support::RecordingLog;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModels;

// All values of a result in one list, so that results can be compared bit by bit.
std::vector<double> Flat(const std::vector<Tensor>& tensors) {
  std::vector<double> flat;
  for (const Tensor& tensor : tensors) {
    flat.insert(flat.end(), tensor.As<float>(), tensor.As<float>() + tensor.num_elements());
  }
  return flat;
}
std::vector<double> Flat(const std::vector<std::vector<double>>& lists) {
  std::vector<double> flat;
  for (const auto& list : lists) flat.insert(flat.end(), list.begin(), list.end());
  return flat;
}
std::vector<double> Flat(const Sensitivity& sensitivity) {
  std::vector<double> flat = Flat(sensitivity.k);
  const std::vector<double> v = Flat(sensitivity.v);
  flat.insert(flat.end(), v.begin(), v.end());
  return flat;
}

class CalibrationTest : public ::testing::Test {
 protected:
  CalibrationTest() : tiny_(TinyModels().at("qwen2_bf16_tied")), folder_(tiny_) {
    model_ = folder_.Load();
    samples_ = RandomSamples(tiny_.vocab, {40, 40, 40, 17, 40}, 7);
    context_.model = model_.get();
    context_.samples = &samples_;
    context_.num_threads = 1;
  }

  // One step by name, flattened.
  std::vector<double> Run(const std::string& step) const {
    if (step == "max-keys") return Flat(MeasureMaxKeys(context_));
    if (step == "sensitivity") return Flat(MeasureSensitivity(context_));
    if (step == "both") {
      const SensitivityAndKeys both = MeasureSensitivityAndKeys(context_);
      std::vector<double> flat = Flat(both.sensitivity);
      const std::vector<double> keys = Flat(both.max_keys);
      flat.insert(flat.end(), keys.begin(), keys.end());
      return flat;
    }
    std::vector<Tensor> max_keys;
    for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
      Tensor tensor(DType::kF32, {tiny_.kv_heads, tiny_.head_dim / 2});
      for (int64_t i = 0; i < tensor.num_elements(); ++i) {
        tensor.As<float>()[i] = 0.5f + 0.25f * static_cast<float>(i + layer);
      }
      max_keys.push_back(tensor);
    }
    const RepScales result = SearchRepScales(context_, max_keys, {});
    std::vector<double> flat = Flat(result.scales);
    const std::vector<double> loss = Flat(result.loss);
    flat.insert(flat.end(), loss.begin(), loss.end());
    flat.insert(flat.end(), result.alpha.begin(), result.alpha.end());
    return flat;
  }

  testing_support::TinyModel tiny_;
  TinyFolder folder_;
  std::shared_ptr<const Model> model_;
  Samples samples_;
  CalibrationContext context_;
};

const char* const kSteps[] = {"max-keys", "rep-scales", "sensitivity", "both"};

TEST_F(CalibrationTest, OnePassForBothGivesTheSameBits) {
  context_.effective_len = 120;
  std::vector<double> expected = Run("sensitivity");
  const std::vector<double> keys = Run("max-keys");
  expected.insert(expected.end(), keys.begin(), keys.end());
  EXPECT_EQ(Run("both"), expected);
}

TEST_F(CalibrationTest, MaxKeysAreTheLargestOfEachPairOverAllSamples) {
  context_.effective_len = 120;  // Positions 0, 3, 6, ...
  const std::vector<Tensor> max_keys = MeasureMaxKeys(context_);
  ASSERT_EQ(static_cast<int64_t>(max_keys.size()), tiny_.layers);
  const int64_t half = tiny_.head_dim / 2;
  std::vector<float> expected(static_cast<size_t>(tiny_.layers * tiny_.kv_heads * half));
  Profile<float> profile(*model_, 1);
  for (const auto& tokens : samples_.tokens) {
    std::vector<int64_t> positions;
    for (size_t t = 0; t < tokens.size(); ++t) positions.push_back(static_cast<int64_t>(3 * t));
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      for (int64_t i = 0; i < states.num_tokens * tiny_.kv_dim(); ++i) {
        const int64_t head = i / tiny_.head_dim % tiny_.kv_heads;
        const int64_t pair = i % half;
        float& largest =
            expected[static_cast<size_t>((states.layer * tiny_.kv_heads + head) * half + pair)];
        largest = std::max(largest, std::abs(states.k[i]));
      }
    });
  }
  EXPECT_EQ(Flat(max_keys), std::vector<double>(expected.begin(), expected.end()));
}

// mean |(Q_b(x) - x) g| from the definition, in double.
double Damage(int bits, const float* x, const float* g, int64_t count, int64_t group) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += group) {
    const auto [smallest, largest] = std::minmax_element(x + begin, x + begin + group);
    const double step = (static_cast<double>(*largest) - *smallest) / ((1 << bits) - 1);
    for (int64_t i = begin; i < begin + group; ++i) {
      double value = std::nearbyint((static_cast<double>(x[i]) - *smallest) / step) * step;
      value += *smallest;
      if (bits == 16) value = ToFloat(ToBF16(static_cast<float>(value)));
      sum += std::abs((value - x[i]) * g[i]);
    }
  }
  return sum / static_cast<double>(count);
}

TEST_F(CalibrationTest, SensitivityFollowsTheDefinition) {
  const Sensitivity sensitivity = MeasureSensitivity(context_);
  ASSERT_EQ(sensitivity.k.size(), kWidths.size());
  std::vector<double> k(kWidths.size() * static_cast<size_t>(tiny_.layers));
  std::vector<double> v(k.size());
  Profile<float> profile(*model_, 1);
  for (size_t sample = 0; sample < samples_.tokens.size(); ++sample) {
    profile.ForwardBackward(
        samples_.tokens[sample], samples_.Positions(sample, 0),
        [&](const BlockStates<float>& states) {
          const int64_t count = states.num_tokens * tiny_.kv_dim();
          for (size_t w = 0; w < kWidths.size(); ++w) {
            const size_t at =
                w * static_cast<size_t>(tiny_.layers) + static_cast<size_t>(states.layer);
            k[at] += Damage(kWidths[w], states.k, states.dk, count, tiny_.head_dim) / 5;
            v[at] += Damage(kWidths[w], states.v, states.dv, count, tiny_.head_dim) / 5;
          }
        });
  }
  const std::vector<double> measured_k = Flat(sensitivity.k);
  const std::vector<double> measured_v = Flat(sensitivity.v);
  for (size_t i = 0; i < k.size(); ++i) {
    // At 16 bits float rounding of the codes shows most; a flipped tie moves one of many terms.
    EXPECT_NEAR(measured_k[i], k[i], 1e-3 * k[i]) << i;
    EXPECT_NEAR(measured_v[i], v[i], 1e-3 * v[i]) << i;
  }
  // Fewer bits, more damage.
  for (size_t i = static_cast<size_t>(tiny_.layers); i < k.size(); ++i) {
    EXPECT_GT(measured_k[i], measured_k[i - static_cast<size_t>(tiny_.layers)]);
  }
}

TEST_F(CalibrationTest, ResultsDoNotDependOnThreads) {
  for (const char* step : kSteps) {
    context_.num_threads = 1;
    const std::vector<double> one = Run(step);
    context_.num_threads = 3;
    EXPECT_EQ(Run(step), one) << step;
  }
}

TEST_F(CalibrationTest, RepScalesTakeTheLeastLoss) {
  const std::vector<Tensor> max_keys = MeasureMaxKeys(context_);
  const RepScales result = SearchRepScales(context_, max_keys, {.k_bits = 2, .v_bits = 4});
  for (size_t layer = 0; layer < max_keys.size(); ++layer) {
    ASSERT_EQ(result.loss[layer].size(), 20u);
    const auto best =
        static_cast<size_t>(std::min_element(result.loss[layer].begin(), result.loss[layer].end()) -
                            result.loss[layer].begin());
    EXPECT_EQ(result.alpha[layer], 1.0 - static_cast<double>(best) / 20);
    for (int64_t i = 0; i < max_keys[layer].num_elements(); ++i) {
      const double expected = std::pow(max_keys[layer].As<float>()[i], result.alpha[layer]);
      EXPECT_NEAR(result.scales[layer].As<float>()[i], expected, 1e-6 * expected);
    }
  }
}

// Where a few key channels are much larger than the others, dividing by their size must help.
TEST_F(CalibrationTest, RepScalesTameLargeKeyChannels) {
  testing_support::TinyWeights weights = MakeTinyWeights(tiny_);
  Tensor& bias = weights.at("model.layers.1.self_attn.k_proj.bias");
  for (const int64_t channel : {7, 15}) {
    const BF16 large = ToBF16(40.0f);
    std::memcpy(bias.data() + channel * 2, &large, sizeof(large));
  }
  const TinyFolder folder(tiny_, weights);
  const std::shared_ptr<const Model> model = folder.Load();
  context_.model = model.get();
  const RepScales result = SearchRepScales(context_, MeasureMaxKeys(context_), {.v_bits = 16});
  const double chosen = *std::min_element(result.loss[1].begin(), result.loss[1].end());
  EXPECT_GE(result.alpha[1], 0.5);
  EXPECT_LT(2 * chosen, result.loss[1].back());  // alpha = 0.05: hardly any scaling.
}

TEST_F(CalibrationTest, RepScalesTieToTheLargerAlphaAndAreClamped) {
  std::vector<Tensor> max_keys;
  for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
    max_keys.emplace_back(DType::kF32, Shape{tiny_.kv_heads, tiny_.head_dim / 2});
    std::fill_n(max_keys.back().As<float>(), max_keys.back().num_elements(), 1.0f);
  }
  RepScales result = SearchRepScales(context_, max_keys, {.grid = 5});
  // Scales of 1 whatever alpha.
  for (const double alpha : result.alpha) EXPECT_EQ(alpha, 1.0);
  EXPECT_EQ(result.loss[0].size(), 5u);
  EXPECT_EQ(result.loss[0][0], result.loss[0][4]);
  max_keys[0].As<float>()[0] = 1e9f;
  max_keys[0].As<float>()[1] = 0.0f;
  result = SearchRepScales(context_, max_keys, {.grid = 1});
  EXPECT_EQ(result.scales[0].As<float>()[0], 1e4f);
  EXPECT_EQ(result.scales[0].As<float>()[1], 1e-4f);
}

TEST_F(CalibrationTest, RepScaleOptionsAreChecked) {
  const std::vector<Tensor> max_keys = MeasureMaxKeys(context_);
  const auto search = [&](RepScaleOptions options) {
    return [=, this] { SearchRepScales(context_, max_keys, options); };
  };
  ExpectError<InvalidInput>(search({.k_bits = 3}), {"k-bits", "found 3"});
  ExpectError<InvalidInput>(search({.v_bits = 0}), {"v-bits", "found 0"});
  ExpectError<InvalidInput>(search({.grid = 0}), {"grid", "found 0"});
}

TEST_F(CalibrationTest, ResumesBitIdentically) {
  const TempFolder scratch;
  for (const char* step : kSteps) {
    const std::vector<double> uninterrupted = Run(step);
    for (const int64_t stop_after : {0, 1, 3, 4}) {
      CancelFlag cancel = false;
      CancelAfter first(stop_after, &cancel);
      context_.cancel = &cancel;
      context_.progress = &first;
      context_.checkpoint_path = scratch.File("checkpoint.json");
      EXPECT_THROW(Run(step), Cancelled);
      EXPECT_TRUE(FileExists(context_.checkpoint_path));
      EXPECT_EQ(first.num_begun, first.num_ended);

      cancel = false;
      CancelAfter second(1000, &cancel);
      context_.progress = &second;
      EXPECT_EQ(Run(step), uninterrupted) << step << " after " << stop_after;
      EXPECT_EQ(second.resumed_at, stop_after);
      EXPECT_EQ(second.total, 5);
      EXPECT_EQ(second.advanced, 5 - stop_after);
      EXPECT_EQ(scratch.NumEntries(), 0u);  // The checkpoint is gone.
      context_.cancel = nullptr;
      context_.progress = nullptr;
      context_.checkpoint_path.clear();
    }
  }
}

TEST_F(CalibrationTest, AFinishedCheckpointAnswersAtOnce) {
  const TempFolder scratch;
  context_.checkpoint_path = scratch.File("checkpoint.json");
  context_.keep_checkpoint = true;
  const std::vector<double> first = Run("sensitivity");
  CancelFlag cancel = false;
  CancelAfter progress(1000, &cancel);
  context_.progress = &progress;
  EXPECT_EQ(Run("sensitivity"), first);
  EXPECT_EQ(progress.resumed_at, 5);
  EXPECT_EQ(progress.advanced, 0);
}

TEST_F(CalibrationTest, CheckpointsOfOtherRunsAreIgnoredWithAWarning) {
  const TempFolder scratch;
  const Samples other = RandomSamples(tiny_.vocab, {40, 40, 40, 17, 40}, 8);
  const auto leave_checkpoint = [&] {
    context_.samples = &samples_;
    context_.effective_len = 0;
    context_.fingerprint = "";
    context_.checkpoint_path = scratch.File("checkpoint.json");
    context_.keep_checkpoint = true;
    Run("max-keys");
  };
  const auto expect_fresh_run = [&](const std::string& warning) {
    RecordingLog log;
    CancelFlag cancel = false;
    CancelAfter progress(1000, &cancel);
    context_.log = &log;
    context_.progress = &progress;
    Run("max-keys");
    EXPECT_EQ(progress.resumed_at, 0) << warning;
    ASSERT_EQ(log.warnings.size(), 1u) << warning;
    EXPECT_NE(log.warnings[0].find(warning), std::string::npos) << log.warnings[0];
    context_.log = nullptr;
    context_.progress = nullptr;
  };
  leave_checkpoint();
  context_.samples = &other;
  expect_fresh_run("another run");
  leave_checkpoint();
  context_.effective_len = 80;
  expect_fresh_run("another run");
  leave_checkpoint();
  context_.fingerprint = "something else";
  expect_fresh_run("another run");

  leave_checkpoint();
  const std::string text = ReadFile(context_.checkpoint_path);
  const auto damage = [&](const std::string& from, const std::string& to) {
    std::string damaged = text;
    damaged.replace(damaged.find(from), from.size(), to);
    scratch.Write("checkpoint.json", damaged);
  };
  scratch.Write("checkpoint.json", text.substr(0, text.size() / 2));
  expect_fresh_run("starting anew");
  damage("pmkvq-calibration-checkpoint", "something");
  expect_fresh_run("format");
  damage("\"version\":1", "\"version\":2");
  expect_fresh_run("version");
  damage("\"values\":[", "\"values\":[0,");
  expect_fresh_run("values");
  damage("\"samples_done\":5", "\"samples_done\":6");
  expect_fresh_run("samples_done");
}

TEST_F(CalibrationTest, NanInWeightsNamesTheBlock) {
  for (const char* tensor : {"self_attn.k_proj.weight", "mlp.down_proj.weight"}) {
    testing_support::TinyWeights weights = MakeTinyWeights(tiny_);
    const BF16 nan = ToBF16(std::nanf(""));
    std::memcpy(weights.at(std::string("model.layers.1.") + tensor).data() + 10, &nan, sizeof(nan));
    const TinyFolder folder(tiny_, weights);
    const std::shared_ptr<const Model> model = folder.Load();
    context_.model = model.get();
    for (const char* step : kSteps) {
      ExpectError<InvalidInput>([&] { Run(step); }, {"block 1", "nan", "expected finite"});
    }
  }
}

}  // namespace
}  // namespace pmkvq
