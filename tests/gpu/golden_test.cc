// Forward on a CUDA device against the Python reference (tests/golden/README.md): the shipped model
// in float32, its cache at 16 bits.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

const std::string kRoot = PMKVQ_SOURCE_DIR;
// The reference's cache is float32, ours rounds to F16: docs/numerics.md.
constexpr double kLogitTolerance = 5e-3;

class GoldenOnCudaTest : public GpuTest {
 protected:
  std::vector<int32_t> Ids(const std::string& name) const {
    const TensorView& view = tensors_.tensors().at(name);
    return {view.As<int64_t>(), view.As<int64_t>() + view.num_elements()};
  }

  const SafetensorsFile tensors_ =
      SafetensorsFile::Open(kRoot + "/tests/golden/default-model.safetensors");
};

// |actual - expected| / |expected|.
double RelativeDistance(const float* actual, const TensorView& expected) {
  double difference = 0.0;
  double norm = 0.0;
  for (int64_t i = 0; i < expected.num_elements(); ++i) {
    const double value = expected.As<float>()[i];
    difference += (double{actual[i]} - value) * (double{actual[i]} - value);
    norm += value * value;
  }
  return std::sqrt(difference / norm);
}

TEST_F(GoldenOnCudaTest, LogitsAndGreedyTokens) {
  ModelOptions options;
  options.device = kDevice;
  const std::shared_ptr<const Model> model = Model::Load(kRoot + "/models/longcot-10m", options);
  CacheConfig config;
  config.geometry = model->kv_geometry();
  config.device = kDevice;
  config.close_bits = config.floor_bits = 16;
  config.max_len = 160;
  config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                             BlockBytes(config, 0, 160, 16, 16));
  const std::unique_ptr<KvStore> store = MakePackedKvCache(config);
  const SequenceId seq = store->Open().value();
  ForwardWorkspace workspace;
  const auto forward = [&](std::span<const int32_t> tokens, ForwardChunk::Logits logits) {
    const ForwardChunk chunk{seq, tokens, store->NumTokens(seq), logits};
    ASSERT_EQ(store->Reserve(seq, std::ssize(tokens)), ReserveResult::kReserved);
    ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, 1));
  };
  const int64_t vocab = model->config().vocab_size;
  const std::vector<int32_t> prompt = Ids("prompt_ids");
  forward(prompt, ForwardChunk::Logits::kAll);
  ASSERT_EQ(workspace.num_logit_rows, std::ssize(prompt));
  const double prompt_distance =
      RelativeDistance(workspace.logits.data(), tensors_.tensors().at("logits"));
  EXPECT_LE(prompt_distance, kLogitTolerance);
  RecordProperty("prompt_distance", std::to_string(prompt_distance));
  const std::vector<int32_t> expected = Ids("greedy_ids");
  std::vector<int32_t> greedy = {
      ArgMax(workspace.logits.data() + (workspace.num_logit_rows - 1) * vocab, vocab)};
  while (greedy.size() < expected.size()) {
    forward({&greedy.back(), 1}, ForwardChunk::Logits::kLast);
    greedy.push_back(ArgMax(workspace.logits.data(), vocab));
  }
  EXPECT_EQ(greedy, expected);
  const double last_distance =
      RelativeDistance(workspace.logits.data(), tensors_.tensors().at("last_logits"));
  EXPECT_LE(last_distance, kLogitTolerance);
  RecordProperty("last_distance", std::to_string(last_distance));
}

}  // namespace
}  // namespace pmkvq
