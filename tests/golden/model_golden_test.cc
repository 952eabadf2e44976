// Forward and Profile against the Python reference (tests/golden/README.md), both models in
// float32: weights as stored, cache of plain floats.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/profile.h"

namespace pmkvq {
namespace {

constexpr double kLogitTolerance = 2e-4;
// Two float32 implementations that sum in different orders differ by a few units of 6e-8 per
// block, times the growth along it; relative, in the 2-norm of a tensor.
constexpr double kStateTolerance = 5e-5;
constexpr double kGradientTolerance = 5e-4;
constexpr double kLossTolerance = 1e-5;

const std::string kRoot = PMKVQ_SOURCE_DIR;

struct GoldenModel {
  const char* fixture;
  const char* folder;
};

class ModelGolden : public testing::TestWithParam<GoldenModel> {
 protected:
  std::vector<int32_t> Ids(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return std::vector<int32_t>(view.As<int64_t>(), view.As<int64_t>() + view.num_elements());
  }

  std::vector<int32_t> CalibrationSample(size_t index) const {
    const std::vector<int32_t> all = Ids("calib_ids");
    const auto length = tensors_.tensors().at("calib_ids").shape.at(1);
    const auto begin = all.begin() + static_cast<int64_t>(index) * length;
    return {begin, begin + length};
  }

  const std::string prefix_ = kRoot + "/tests/golden/" + GetParam().fixture;
  const SafetensorsFile tensors_ = SafetensorsFile::Open(prefix_ + ".safetensors");
  const JsonValue scalars_ = JsonValue::ParseFile(prefix_ + ".json");
  const std::shared_ptr<const Model> model_ = Model::Load(kRoot + GetParam().folder);
};

std::unique_ptr<KvStore> PlainFloatStore(const Model& model, int threads) {
  CacheConfig config;
  config.geometry = model.kv_geometry();
  config.float_type = DType::kF32;
  config.close_bits = 16;
  config.floor_bits = 16;
  config.num_threads = threads;
  config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                             BlockBytes(config, 0, /*num_tokens=*/160, 16, 16));
  return MakePackedKvCache(config);
}

void ExpectLogits(const float* actual, const TensorView& expected) {
  double worst = 0.0;
  for (int64_t i = 0; i < expected.num_elements(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i]));
    worst = std::max(worst, std::abs(double{actual[i]} - double{expected.As<float>()[i]}));
  }
  EXPECT_LE(worst, kLogitTolerance);
  testing::Test::RecordProperty("max_abs_error", std::to_string(worst));
}

TEST_P(ModelGolden, LogitsAndGreedyTokens) {
  for (const int threads : {1, 2}) {
    const std::unique_ptr<KvStore> store = PlainFloatStore(*model_, threads);
    const SequenceId seq = store->Open().value();
    ForwardWorkspace workspace;
    const auto forward = [&](std::span<const int32_t> tokens, ForwardChunk::Logits logits) {
      const ForwardChunk chunk{seq, tokens, store->NumTokens(seq), logits};
      ASSERT_EQ(store->Reserve(seq, static_cast<int64_t>(tokens.size())), ReserveResult::kReserved);
      ThrowIfFailed(model_->Forward({&chunk, 1}, *store, workspace, threads));
    };
    const int64_t vocab = model_->config().vocab_size;
    const std::vector<int32_t> prompt = Ids("prompt_ids");
    forward(prompt, ForwardChunk::Logits::kAll);
    ASSERT_EQ(workspace.num_logit_rows, static_cast<int64_t>(prompt.size()));
    ExpectLogits(workspace.logits.data(), tensors_.tensors().at("logits"));

    const float* last = workspace.logits.data() + (workspace.num_logit_rows - 1) * vocab;
    const std::vector<int32_t> expected = Ids("greedy_ids");
    std::vector<int32_t> greedy = {ArgMax(last, vocab)};
    while (greedy.size() < expected.size()) {
      forward({&greedy.back(), 1}, ForwardChunk::Logits::kLast);
      greedy.push_back(ArgMax(workspace.logits.data(), vocab));
    }
    EXPECT_EQ(greedy, expected);
    ExpectLogits(workspace.logits.data(), tensors_.tensors().at("last_logits"));
  }
}

// Relative distance of ours [N, heads, D] from the fixture's: keys are [heads, N, D] there, values
// [N, heads * D].
double RelativeDistance(const float* ours, const TensorView& expected, bool keys,
                        int64_t num_heads) {
  const int64_t dim = keys ? expected.shape.at(2) : expected.shape.at(1) / num_heads;
  const int64_t num_tokens = expected.shape.at(keys ? 1 : 0);
  const float* theirs = expected.As<float>();
  double difference = 0.0;
  double norm = 0.0;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t head = 0; head < num_heads; ++head) {
      for (int64_t i = 0; i < dim; ++i) {
        const int64_t at = (t * num_heads + head) * dim + i;
        const double value = theirs[keys ? (head * num_tokens + t) * dim + i : at];
        difference += (double{ours[at]} - value) * (double{ours[at]} - value);
        norm += value * value;
      }
    }
  }
  return std::sqrt(difference / norm);
}

// All samples' losses; keys, values and their gradients of the first and the last block of the
// first sample.
TEST_P(ModelGolden, LossesStatesAndGradients) {
  const int64_t effective_len = scalars_.At("effective_len").AsInt();
  for (const std::string tag : {"plain", "effective"}) {
    const std::vector<double> losses = scalars_.At(tag).At("loss").AsDoubleArray();
    for (size_t sample = 0; sample < losses.size(); ++sample) {
      SCOPED_TRACE(testing::Message() << tag << " sample " << sample);
      const std::vector<int32_t> tokens = CalibrationSample(sample);
      const auto length = static_cast<int64_t>(tokens.size());
      const std::vector<int64_t> positions =
          StretchedPositions(length, tag == "plain" ? length : effective_len);
      int num_compared = 0;
      const auto compare = [&](const std::string& name, int64_t layer, const float* ours,
                               double tolerance) {
        const TensorView* expected = tensors_.Find(tag + "." + name + "." + std::to_string(layer));
        if (expected == nullptr) return;
        ++num_compared;
        EXPECT_LE(RelativeDistance(ours, *expected, name[0] == 'k', model_->config().num_kv_heads),
                  tolerance)
            << name << " of block " << layer;
      };
      const auto visit = [&](const BlockStates<float>& states) {
        if (sample != 0) return;
        compare("k_states", states.layer, states.k, kStateTolerance);
        compare("v_states", states.layer, states.v, kStateTolerance);
        compare("k_grad", states.layer, states.dk, kGradientTolerance);
        compare("v_grad", states.layer, states.dv, kGradientTolerance);
      };
      Profile<float> profile(*model_, 2);
      const double loss = profile.ForwardBackward(tokens, positions, visit);
      EXPECT_NEAR(loss, losses[sample], kLossTolerance * losses[sample]);
      EXPECT_EQ(num_compared, sample == 0 ? 8 : 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelGolden,
                         testing::Values(GoldenModel{"tiny-llama", "/tests/golden/tiny-llama"},
                                         GoldenModel{"default-model", "/models/longcot-10m"}),
                         [](const auto& each) {
                           return each.index == 0 ? "TinyLlama" : "LongCot10m";
                         });

}  // namespace
}  // namespace pmkvq
