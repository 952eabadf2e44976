// Latent attention against a forward pass in float64 (README.md here): logits and greedy tokens in
// the plain and in the absorbed form, what is cached, routing, gradients and sensitivities; the
// same models from GGUF files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/fake_quant.h"
#include "support/dense_kv_store.h"
#include "support/gguf_deepseek.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

// Float32 against float64, through two or three blocks: logits near 7, behind some hundred
// roundings of 2^-24 of them, would err by 5e-5. The smallest gap between the scores of an expert
// that is chosen and one that is not is 1.6e-3.
constexpr double kLogitTolerance = 5e-5;
constexpr double kWeightTolerance = 1e-5;
constexpr double kBlockTolerance = 1e-5;  // Of the largest value.

// Where the weights come from: the folder, or GGUF files of it, of today and of before April 2025.
enum class Source { kFolder, kGguf, kOldGguf };

struct Case {
  const char* name;
  Source source;
};
std::string NameOf(const Case& each) {
  const std::string source = each.source == Source::kFolder ? "Folder"
                             : each.source == Source::kGguf ? "Gguf"
                                                            : "OldGguf";
  return (std::string(each.name).ends_with("v3") ? "V3" : "V2") + source;
}
void PrintTo(const Case& each, std::ostream* out) { *out << NameOf(each); }

std::shared_ptr<const Model> Load(const std::string& folder, Source source) {
  if (source == Source::kFolder) return Model::Load(folder);
  const testing_support::TempFolder made;
  const testing_support::GgufWriter writer =
      testing_support::GgufOfDeepSeek(Checkpoint::Open(folder), source == Source::kGguf);
  return Model::Load(made.Write("model.gguf", writer.Bytes()));  // The mapping outlives the file.
}

class MlaGolden : public testing::TestWithParam<Case> {
 protected:
  std::vector<int32_t> Ids(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<int32_t>(), view.As<int32_t>() + view.num_elements()};
  }
  std::vector<float> Floats(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<float>(), view.As<float>() + view.num_elements()};
  }

  std::unique_ptr<KvStore> Store(const std::vector<Tensor>& scales = {}) const {
    CacheConfig config;
    config.geometry = model_->kv_geometry();
    config.float_type = DType::kF32;
    config.close_bits = 16;
    config.floor_bits = 16;
    config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                               BlockBytes(config, 0, /*num_tokens=*/160, 16, 16));
    config.key_scales = KeyScales::Make(config.geometry, scales);
    return MakePackedKvCache(config);
  }

  // Logits of all tokens in the absorbed form, through a store, in chunks of `step`.
  std::vector<float> Logits(const std::vector<int32_t>& tokens, size_t step, int threads,
                            const std::vector<Tensor>& scales = {}) const {
    const std::unique_ptr<KvStore> store = Store(scales);
    const SequenceId seq = store->Open().value();
    ForwardWorkspace workspace;
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += step) {
      const ForwardChunk chunk{seq, std::span(tokens).subspan(begin, step),
                               static_cast<int64_t>(begin), ForwardChunk::Logits::kAll};
      EXPECT_EQ(store->Reserve(seq, static_cast<int64_t>(step)), ReserveResult::kReserved);
      ThrowIfFailed(model_->Forward({&chunk, 1}, *store, workspace, threads));
      const auto count = static_cast<int64_t>(step) * model_->config().vocab_size;
      logits.insert(logits.end(), workspace.logits.begin(), workspace.logits.begin() + count);
    }
    return logits;
  }

  std::vector<float> Embedded(const std::vector<int32_t>& tokens) const {
    const int64_t hidden = model_->config().hidden_size;
    std::vector<float> x(tokens.size() * static_cast<size_t>(hidden));
    for (size_t row = 0; row < tokens.size(); ++row) {
      ExpandRow(model_->embedding(), tokens[row], x.data() + static_cast<int64_t>(row) * hidden);
    }
    return x;
  }

  // The same in the plain form, without a store.
  std::vector<float> PlainLogits(const std::vector<int32_t>& tokens) const {
    const ModelConfig& config = model_->config();
    const auto num_tokens = std::ssize(tokens);
    std::vector<int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), int64_t{0});
    std::vector<float> x = Embedded(tokens);
    Scratch<float> scratch;
    const SequenceRows<float> rows{positions, &scratch, 1};
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const Scratch<float>::Frame frame(scratch);
      const auto pass = model_->attention(layer).Start(rows);
      pass->ComputeStates(x.data());
      pass->AddAttention(x.data());
      model_->mlp(layer).Forward(rows, x.data());
    }
    RmsNorm(x.data(), num_tokens, config.hidden_size, model_->final_norm().data(),
            config.rms_norm_eps, x.data(), 1);
    std::vector<float> logits(static_cast<size_t>(num_tokens * config.vocab_size));
    MatMul(x.data(), num_tokens, model_->output_head(), nullptr, logits.data(), 1);
    return logits;
  }

  void ExpectRouting(const MlpMoe& moe, const std::vector<float>& x,
                     const std::string& suffix) const;

  const std::string prefix_ = std::string(PMKVQ_SOURCE_DIR "/tests/golden/") + GetParam().name;
  const SafetensorsFile tensors_ = SafetensorsFile::Open(prefix_ + ".safetensors");
  const JsonValue json_ = JsonValue::ParseFile(prefix_ + ".json");
  const std::shared_ptr<const Model> model_ = Load(prefix_, GetParam().source);
};

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    worst = std::isfinite(difference) ? std::max(worst, difference) : 1e9;
  }
  return worst;
}

double Largest(const std::vector<float>& values) {
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(double{value}));
  return largest;
}

void ExpectNear(const float* found, const std::vector<float>& expected, double tolerance,
                const std::string& what) {
  const std::vector<float> values(found, found + expected.size());
  EXPECT_LE(LargestDifference(values, expected), tolerance * Largest(expected)) << what;
}

TEST_P(MlaGolden, ScalesAndFrequencies) {
  // Factors of GGUF files are floats.
  EXPECT_NEAR(model_->attention_scale(), json_.At("softmax_scale").AsDouble(), 1e-8);
  EXPECT_EQ(model_->rope().attention_factor(), json_.At("rope_attention_factor").AsDouble());
  const std::vector<double> frequencies = json_.At("inverse_frequencies").AsDoubleArray();
  ASSERT_EQ(model_->rope().frequencies().size(), frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    EXPECT_NEAR(model_->rope().frequencies()[i], frequencies[i], 1e-6 * frequencies[i]) << i;
  }
}

TEST_P(MlaGolden, PlainAndAbsorbedLogits) {
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  const std::vector<float> expected = Floats("logits");
  const std::vector<float> plain = PlainLogits(tokens);
  EXPECT_LE(LargestDifference(plain, expected), kLogitTolerance) << "plain";
  for (const size_t step : {size_t{1}, size_t{16}, tokens.size()}) {
    const std::vector<float> logits = Logits(tokens, step, 1);
    const double error = LargestDifference(logits, expected);
    EXPECT_LE(error, kLogitTolerance) << step;
    RecordProperty("max_abs_error", std::to_string(error));
    EXPECT_LE(LargestDifference(logits, plain), 1e-4) << step;
    EXPECT_EQ(Logits(tokens, step, 2), logits) << "any number of threads";
  }
}

// A search finds scales that lose no more than none in any block, and a cache of floats that has
// them gives the same logits.
TEST_P(MlaGolden, KeyScalesLeaveLogits) {
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  Samples samples;
  samples.tokens = {tokens};
  samples.seq_len = std::ssize(tokens);
  CalibrationContext context;
  context.model = model_.get();
  context.samples = &samples;
  const RepScales found = SearchRepScales(context, MeasureMaxKeys(context), {});
  bool has_scales = false;
  for (size_t layer = 0; layer < found.scales.size(); ++layer) {
    const auto least = [](const std::vector<double>& loss) {
      return *std::min_element(loss.begin(), loss.end());
    };
    EXPECT_LE(least(found.loss[layer]), found.loss[layer].back());
    EXPECT_LE(least(found.rope_loss[layer]), found.rope_loss[layer].back());
    EXPECT_GT(least(found.rope_loss[layer]), 0.0);
    has_scales |= found.alpha[layer] > 0 && found.rope_alpha[layer] > 0;
  }
  EXPECT_TRUE(has_scales);
  for (const size_t step : {size_t{1}, tokens.size()}) {
    const std::vector<float> scaled = Logits(tokens, step, 1, found.scales);
    const std::vector<float> plain = Logits(tokens, step, 1);
    EXPECT_NE(scaled, plain) << "scales are applied";
    EXPECT_LE(LargestDifference(scaled, plain), 1e-4) << step;
  }
}

TEST_P(MlaGolden, GreedyTokens) {
  const std::vector<int32_t> prompt = Ids("greedy_prompt_ids");
  const std::vector<int32_t> expected = Ids("greedy_ids");
  const std::unique_ptr<KvStore> store = Store();
  const SequenceId seq = store->Open().value();
  ForwardWorkspace workspace;
  std::vector<int32_t> greedy;
  std::span<const int32_t> tokens = prompt;
  while (greedy.size() < expected.size()) {
    const ForwardChunk chunk{seq, tokens, store->NumTokens(seq)};
    ASSERT_EQ(store->Reserve(seq, std::ssize(tokens)), ReserveResult::kReserved);
    ThrowIfFailed(model_->Forward({&chunk, 1}, *store, workspace, 1));
    greedy.push_back(ArgMax(workspace.logits.data(), model_->config().vocab_size));
    tokens = {&greedy.back(), 1};
  }
  EXPECT_EQ(greedy, expected);
}

void MlaGolden::ExpectRouting(const MlpMoe& moe, const std::vector<float>& x,
                              const std::string& suffix) const {
  const ModelConfig& config = model_->config();
  const int64_t rows = std::ssize(x) / config.hidden_size;
  std::vector<float> h(x.size());
  RmsNorm(x.data(), rows, config.hidden_size, moe.weights().norm.data(), config.rms_norm_eps,
          h.data(), 1);
  std::vector<float> scores(static_cast<size_t>(rows * config.moe->num_experts));
  std::vector<int32_t> experts(static_cast<size_t>(rows * config.moe->num_chosen));
  std::vector<float> weights(experts.size());
  moe.Route(h.data(), rows, scores.data(), experts.data(), weights.data(), 1);
  EXPECT_EQ(experts, Ids("experts" + suffix)) << suffix;
  EXPECT_LE(LargestDifference(weights, Floats("expert_weights" + suffix)), kWeightTolerance);
}

// Each block from its golden input, so that errors do not add up.
TEST_P(MlaGolden, WhatBlocksCacheRouteAndGive) {
  const ModelConfig& config = model_->config();
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  std::vector<int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), int64_t{0});
  std::vector<float> x = Embedded(tokens);
  int64_t num_routed = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string suffix = "." + std::to_string(layer);
    Scratch<float> scratch;
    const SequenceRows<float> rows{positions, &scratch, 1};
    const auto pass = model_->attention(layer).Start(rows);
    pass->ComputeStates(x.data());
    const BlockStates<float> states = pass->States();
    ExpectNear(states.k, Floats("latent" + suffix), kBlockTolerance, "latent" + suffix);
    ExpectNear(states.v, Floats("rope_key" + suffix), kBlockTolerance, "rope_key" + suffix);

    std::vector<float> of_attention(x.size());
    model_->attention(layer).ProjectOutput(Floats("attention" + suffix).data(), std::ssize(tokens),
                                           of_attention.data(), 1);
    std::vector<float> after = x;
    for (size_t i = 0; i < x.size(); ++i) after[i] += of_attention[i];
    pass->AddAttention(x.data());
    ExpectNear(x.data(), after, kBlockTolerance, "attention" + suffix);

    const auto* const moe = dynamic_cast<const MlpMoe*>(&model_->mlp(layer));
    ASSERT_EQ(moe != nullptr, tensors_.Find("experts" + suffix) != nullptr);
    if (moe != nullptr) {
      ++num_routed;
      ExpectRouting(*moe, after, suffix);
    }
    model_->mlp(layer).Forward(rows, after.data());
    x = Floats("block_out" + suffix);
    ExpectNear(after.data(), x, kBlockTolerance, "block_out" + suffix);
  }
  EXPECT_EQ(num_routed, config.num_layers - 1);
}

// The golden gradients are central differences, right to 1e-3 of the largest.
TEST_P(MlaGolden, Gradients) {
  const std::vector<int32_t> tokens = Ids("calib_ids");
  Profile<float> profile(*model_, 1);
  int64_t num_blocks = 0;
  profile.ForwardBackward(
      tokens, StretchedPositions(std::ssize(tokens), std::ssize(tokens)),
      [&](const BlockStates<float>& states) {
        ++num_blocks;
        const std::string suffix = "." + std::to_string(states.layer);
        ExpectNear(states.dk, Floats("grad_latent" + suffix), 1e-3, "latent" + suffix);
        ExpectNear(states.dv, Floats("grad_rope_key" + suffix), 1e-3, "rope_key" + suffix);
      });
  EXPECT_EQ(num_blocks, model_->config().num_layers);
  const std::vector<int32_t> prompt = Ids("prompt_ids");
  const int64_t length = std::ssize(prompt);
  EXPECT_NEAR(profile.Forward(prompt, StretchedPositions(length, length), nullptr),
              json_.At("loss").AsDouble(), 1e-5);
}

TEST_P(MlaGolden, Sensitivities) {
  Samples samples;
  samples.tokens = {Ids("calib_ids")};
  samples.seq_len = std::ssize(samples.tokens[0]);
  CalibrationContext context;
  context.model = model_.get();
  context.samples = &samples;
  context.effective_len = samples.seq_len;
  context.num_threads = 1;
  const Sensitivity sensitivity = MeasureSensitivity(context);
  for (const int bits : {8, 4, 2}) {
    for (size_t layer = 0; layer < static_cast<size_t>(model_->config().num_layers); ++layer) {
      const auto expect = [&](const char* what, double found) {
        const double expected = json_.At("sensitivity")
                                    .At(layer)
                                    .At(std::string(what) + "." + std::to_string(bits))
                                    .AsDouble();
        EXPECT_NEAR(found, expected, 5e-3 * expected) << what << " " << bits << " " << layer;
      };
      expect("latent", sensitivity.k[WidthIndex(bits)][layer]);
      expect("rope_key", sensitivity.v[WidthIndex(bits)][layer]);
    }
  }
}

// Quantises each latent and rope key by itself as soon as it is stored.
class QuantizingStore : public testing_support::DenseKvStore {
 public:
  QuantizingStore(const KvGeometry& geometry, int bits) : DenseKvStore(geometry), bits_(bits) {}

 private:
  void AfterToken(const KvBlockGeometry& block, float* k, float* v) override {
    FakeQuantizeParallel(block.k().group, bits_, k, block.k().values() / block.k().group, k, 1);
    FakeQuantizeParallel(block.v().group, bits_, v, block.v().values() / block.v().group, v, 1);
  }

  const int bits_;
};

// A code at a tie, or an expert that changes by it, may turn a row over: 95 % of the rows within
// 2e-2, as the goldens are described.
TEST_P(MlaGolden, LogitsOverADamagedCache) {
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  const int64_t vocab = model_->config().vocab_size;
  for (const int bits : {8, 4, 2}) {
    const std::vector<float> expected = Floats("rtn" + std::to_string(bits) + ".logits");
    QuantizingStore store(model_->kv_geometry(), bits);
    const SequenceId seq = store.Open().value();
    ForwardWorkspace workspace;
    int64_t num_near = 0;
    for (size_t t = 0; t < tokens.size(); ++t) {
      const ForwardChunk chunk{seq, std::span(tokens).subspan(t, 1), static_cast<int64_t>(t)};
      ASSERT_EQ(store.Reserve(seq, 1), ReserveResult::kReserved);
      ThrowIfFailed(model_->Forward({&chunk, 1}, store, workspace, 1));
      double worst = 0;
      for (int64_t i = 0; i < vocab; ++i) {
        const float golden = expected[t * static_cast<size_t>(vocab) + static_cast<size_t>(i)];
        worst =
            std::max(worst, std::abs(double{workspace.logits[static_cast<size_t>(i)]} - golden));
      }
      num_near += worst <= 2e-2 ? 1 : 0;
    }
    EXPECT_GE(num_near * 100, std::ssize(tokens) * 95) << bits << " bits";
    RecordProperty("near_rows_" + std::to_string(bits), std::to_string(num_near));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, MlaGolden,
                         testing::Values(Case{"tiny-deepseek", Source::kFolder},
                                         Case{"tiny-deepseek-v3", Source::kFolder},
                                         Case{"tiny-deepseek", Source::kGguf},
                                         Case{"tiny-deepseek-v3", Source::kGguf},
                                         Case{"tiny-deepseek", Source::kOldGguf},
                                         Case{"tiny-deepseek-v3", Source::kOldGguf}),
                         [](const auto& each) { return NameOf(each.param); });

}  // namespace
}  // namespace pmkvq
