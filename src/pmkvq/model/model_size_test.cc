#include "pmkvq/model/model_size.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

// What is known of files before they are loaded is what a loaded model takes.
TEST(ModelSize, WeightBytesOfFilesAreThoseOfTheModel) {
  const std::string golden = PMKVQ_SOURCE_DIR "/tests/golden/";
  for (const char* path : {"tiny-llama", "gguf/tiny-llama-f32.gguf", "gguf/tiny-llama-q8_0.gguf",
                           "tiny-mixtral", "tiny-qwen3-moe"}) {
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
      ModelOptions options;
      options.weights = mode;
      EXPECT_EQ(WeightBytesOf(Checkpoint::Open(golden + path), mode),
                Model::Load(golden + path, options)->weight_bytes())
          << path << " " << NameOf(mode);
    }
  }
}

// By hand: of 4 experts 2, of 8 experts 2.
TEST(ModelSize, ActiveWeightsAreThoseOfATokensExperts) {
  const std::string golden = PMKVQ_SOURCE_DIR "/tests/golden/";
  constexpr int64_t kEmbeddings = 2 * 256 * 64;
  constexpr int64_t kAttention = 64 * (64 + 32 + 32 + 64);
  constexpr int64_t kMixtralExpert = 3 * 40 * 64;
  const ModelConfig mixtral = LoadModelConfig(golden + "tiny-mixtral");
  EXPECT_EQ(NumMatrixWeights(mixtral),
            kEmbeddings + 2 * (kAttention + 4 * 64 + 4 * kMixtralExpert));
  EXPECT_EQ(NumActiveWeights(mixtral),
            kEmbeddings + 2 * (kAttention + 4 * 64 + 2 * kMixtralExpert));
  constexpr int64_t kQwenExpert = 3 * 24 * 64;
  constexpr int64_t kDense = 3 * 96 * 64;
  const ModelConfig qwen = LoadModelConfig(golden + "tiny-qwen3-moe");
  EXPECT_EQ(NumMatrixWeights(qwen),
            kEmbeddings + 3 * kAttention + 2 * (8 * 64 + 8 * kQwenExpert) + kDense);
  EXPECT_EQ(NumActiveWeights(qwen),
            kEmbeddings + 3 * kAttention + 2 * (8 * 64 + 2 * kQwenExpert) + kDense);
  const ModelConfig llama = LoadModelConfig(golden + "tiny-llama");
  EXPECT_EQ(NumActiveWeights(llama), NumMatrixWeights(llama));
}

}  // namespace
}  // namespace pmkvq
