// Mixtures of experts against a forward pass in float64 (README.md here): logits and greedy tokens,
// and block by block which experts are chosen, with which weights, and what comes out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/file.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/model/model.h"
#include "support/fused_model.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

// Float32 against float64, through two or three blocks: logits near 2, behind 100 roundings of
// 2^-24 of them, would err by 1e-5. The smallest gap between the scores of an expert that is chosen
// and one that is not is 9e-5, of two best logits 0.02.
constexpr double kLogitTolerance = 2e-5;
constexpr double kWeightTolerance = 1e-5;
constexpr double kBlockTolerance = 1e-5;

class MoeGolden : public testing::TestWithParam<const char*> {
 protected:
  std::vector<int32_t> Ids(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<int32_t>(), view.As<int32_t>() + view.num_elements()};
  }
  std::vector<float> Floats(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<float>(), view.As<float>() + view.num_elements()};
  }

  std::unique_ptr<KvStore> Store() const {
    CacheConfig config;
    config.geometry = model_->kv_geometry();
    config.float_type = DType::kF32;
    config.close_bits = 16;
    config.floor_bits = 16;
    config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                               BlockBytes(config, 0, /*num_tokens=*/160, 16, 16));
    return MakePackedKvCache(config);
  }

  // Logits of all tokens, in chunks of `step`.
  std::vector<float> Logits(const std::vector<int32_t>& tokens, size_t step, int threads) const {
    return Logits(*model_, tokens, step, threads);
  }
  std::vector<float> Logits(const Model& model, const std::vector<int32_t>& tokens, size_t step,
                            int threads) const {
    const std::unique_ptr<KvStore> store = Store();
    const SequenceId seq = store->Open().value();
    ForwardWorkspace workspace;
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += step) {
      const ForwardChunk chunk{seq, std::span(tokens).subspan(begin, step),
                               static_cast<int64_t>(begin), ForwardChunk::Logits::kAll};
      EXPECT_EQ(store->Reserve(seq, static_cast<int64_t>(step)), ReserveResult::kReserved);
      ThrowIfFailed(model.Forward({&chunk, 1}, *store, workspace, threads));
      const auto count = static_cast<int64_t>(step) * model.config().vocab_size;
      logits.insert(logits.end(), workspace.logits.begin(), workspace.logits.begin() + count);
    }
    return logits;
  }

  const std::string prefix_ = std::string(PMKVQ_SOURCE_DIR "/tests/golden/") + GetParam();
  const SafetensorsFile tensors_ = SafetensorsFile::Open(prefix_ + ".safetensors");
  const std::shared_ptr<const Model> model_ = Model::Load(prefix_);
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

TEST_P(MoeGolden, LogitsTokenByTokenAndAtOnce) {
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  const std::vector<float> expected = Floats("logits");
  for (const size_t step : {size_t{1}, size_t{16}, tokens.size()}) {
    const std::vector<float> logits = Logits(tokens, step, 1);
    const double error = LargestDifference(logits, expected);
    EXPECT_LE(error, kLogitTolerance) << step;
    RecordProperty("max_abs_error", std::to_string(error));
    EXPECT_EQ(Logits(tokens, step, 2), logits) << "any number of threads";
  }
}

// The same model as newer versions of transformers hold it in memory, and may save it.
TEST_P(MoeGolden, FusedExpertsHaveTheSameLogits) {
  const testing_support::TinyWeights fused = testing_support::WithFusedExperts(
      SafetensorsFile::Open(prefix_ + "/model.safetensors").tensors());
  const testing_support::TempFolder folder;
  folder.Write("config.json", ReadFile(prefix_ + "/config.json"));
  std::map<std::string, TensorView> views;
  int num_stacks = 0;
  for (const auto& [name, tensor] : fused) {
    views[name] = tensor.view();
    num_stacks += tensor.shape().size() == 3 ? 1 : 0;
  }
  EXPECT_EQ(num_stacks, 4) << "two matrices in each of two blocks";
  WriteSafetensors(folder.File("model.safetensors"), views);
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  EXPECT_EQ(Logits(*Model::Load(folder.path()), tokens, 16, 1), Logits(tokens, 16, 1));
}

TEST_P(MoeGolden, GreedyTokens) {
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

// Each block from its golden input, so that errors do not add up.
TEST_P(MoeGolden, RoutingAndResultsOfBlocks) {
  const ModelConfig& config = model_->config();
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  const auto rows = std::ssize(tokens);
  const auto count = static_cast<size_t>(rows * config.hidden_size);
  std::vector<float> x(count);
  for (int64_t row = 0; row < rows; ++row) {
    ExpandRow(model_->embedding(), tokens[static_cast<size_t>(row)],
              x.data() + row * config.hidden_size);
  }
  int num_compared = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string suffix = "." + std::to_string(layer);
    std::vector<float> of_attention(count);
    model_->attention(layer).ProjectOutput(Floats("attention" + suffix).data(), rows,
                                           of_attention.data(), 1);
    for (size_t i = 0; i < count; ++i) x[i] += of_attention[i];
    const auto* const moe = dynamic_cast<const MlpMoe*>(&model_->mlp(layer));
    EXPECT_EQ(moe != nullptr, tensors_.Find("experts" + suffix) != nullptr);
    if (moe != nullptr) {
      ++num_compared;
      std::vector<float> h(count);
      RmsNorm(x.data(), rows, config.hidden_size, moe->weights().norm.data(), config.rms_norm_eps,
              h.data(), 1);
      std::vector<float> scores(static_cast<size_t>(rows * config.moe->num_experts));
      std::vector<int32_t> experts(static_cast<size_t>(rows * config.moe->num_chosen));
      std::vector<float> weights(experts.size());
      moe->Route(h.data(), rows, scores.data(), experts.data(), weights.data(), 1);
      EXPECT_EQ(experts, Ids("experts" + suffix)) << layer;
      EXPECT_LE(LargestDifference(weights, Floats("expert_weights" + suffix)), kWeightTolerance);
    }
    Scratch<float> scratch;
    const std::vector<int64_t> positions(tokens.size());
    model_->mlp(layer).Forward(SequenceRows<float>{positions, &scratch, 1}, x.data());
    const std::vector<float> expected = Floats("block_out" + suffix);
    float largest = 0;
    for (const float value : expected) largest = std::max(largest, std::abs(value));
    EXPECT_LE(LargestDifference(x, expected), kBlockTolerance * double{largest}) << layer;
    x = expected;
  }
  EXPECT_EQ(num_compared, 2);
}

INSTANTIATE_TEST_SUITE_P(Models, MoeGolden, testing::Values("tiny-mixtral", "tiny-qwen3-moe"),
                         [](const auto& each) {
                           return each.index == 0 ? "TinyMixtral" : "TinyQwen3Moe";
                         });

}  // namespace
}  // namespace pmkvq
