// Forward on a CUDA device of models with latent attention and of mixtures of experts against
// forward passes in float64 (tests/golden/README.md). Their heads are smaller than what a cache on
// a device takes, so the host keeps their tokens, as floats: what is compared is all that the model
// computes.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/model/model.h"
#include "support/dense_kv_store.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;

// As on the CPU (mla_golden_test.cc): products are those of float.
constexpr double kLogitTolerance = 5e-4;

class TinyGoldenOnCudaTest : public GpuTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ModelOptions options;
    options.device = kDevice;
    model_ = Model::Load(prefix_, options);
  }
  std::vector<int32_t> Ids(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<int32_t>(), view.As<int32_t>() + view.num_elements()};
  }
  // Logits of all tokens, in chunks of `step`.
  std::vector<float> Logits(const std::vector<int32_t>& tokens, size_t step) const {
    DenseKvStore store(model_->kv_geometry());
    const SequenceId seq = store.Open().value();
    ForwardWorkspace workspace;
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += step) {
      const size_t count = std::min(step, tokens.size() - begin);
      const ForwardChunk chunk{seq, std::span(tokens).subspan(begin, count),
                               static_cast<int64_t>(begin), ForwardChunk::Logits::kAll};
      ThrowIfFailed(model_->Forward({&chunk, 1}, store, workspace, 1));
      const auto values = static_cast<int64_t>(count) * model_->config().vocab_size;
      logits.insert(logits.end(), workspace.logits.begin(), workspace.logits.begin() + values);
    }
    return logits;
  }

  const std::string prefix_ = std::string(PMKVQ_SOURCE_DIR "/tests/golden/") + GetParam();
  const SafetensorsFile tensors_ = SafetensorsFile::Open(prefix_ + ".safetensors");
  std::shared_ptr<const Model> model_;
};

TEST_P(TinyGoldenOnCudaTest, LogitsTokenByTokenAndAtOnce) {
  const std::vector<int32_t> tokens = Ids("prompt_ids");
  const TensorView& expected = tensors_.tensors().at("logits");
  double worst = 0.0;
  for (const size_t step : {size_t{1}, size_t{16}, tokens.size()}) {
    const std::vector<float> logits = Logits(tokens, step);
    ASSERT_EQ(std::ssize(logits), expected.num_elements());
    for (size_t i = 0; i < logits.size(); ++i) {
      const double error = std::abs(double{logits[i]} - expected.As<float>()[i]);
      ASSERT_TRUE(error <= kLogitTolerance) << "chunks of " << step << ", value " << i;
      worst = std::max(worst, error);
    }
  }
  RecordProperty("max_abs_error", std::to_string(worst));
}

TEST_P(TinyGoldenOnCudaTest, GreedyTokens) {
  const std::vector<int32_t> expected = Ids("greedy_ids");
  const std::vector<int32_t> prompt = Ids("greedy_prompt_ids");
  DenseKvStore store(model_->kv_geometry());
  const SequenceId seq = store.Open().value();
  ForwardWorkspace workspace;
  std::vector<int32_t> greedy;
  std::span<const int32_t> tokens = prompt;
  while (greedy.size() < expected.size()) {
    const ForwardChunk chunk{seq, tokens, store.NumTokens(seq)};
    ThrowIfFailed(model_->Forward({&chunk, 1}, store, workspace, 1));
    greedy.push_back(ArgMax(workspace.logits.data(), model_->config().vocab_size));
    tokens = {&greedy.back(), 1};
  }
  EXPECT_EQ(greedy, expected);
}

INSTANTIATE_TEST_SUITE_P(Models, TinyGoldenOnCudaTest,
                         testing::Values("tiny-deepseek", "tiny-deepseek-v3", "tiny-qwen3-moe",
                                         "tiny-mixtral"),
                         [](const auto& each) {
                           std::string name = each.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace pmkvq
