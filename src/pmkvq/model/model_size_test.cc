#include "pmkvq/model/model_size.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

// What is known of files before they are loaded is what a loaded model takes.
TEST(ModelSize, WeightBytesOfFilesAreThoseOfTheModel) {
  const std::string golden = PMKVQ_SOURCE_DIR "/tests/golden/";
  for (const char* path : {"tiny-llama", "gguf/tiny-llama-f32.gguf", "gguf/tiny-llama-q8_0.gguf",
                           "tiny-mixtral", "tiny-qwen3-moe", "tiny-deepseek", "tiny-deepseek-v3"}) {
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
      ModelOptions options;
      options.weights = mode;
      EXPECT_EQ(WeightBytesOf(Checkpoint::Open(golden + path), mode),
                Model::Load(golden + path, options)->weight_bytes())
          << path << " " << NameOf(mode);
    }
  }
}

// The published figures: 15.7 B parameters, 2.4 B of them per token (2.66 B with embedding and
// head), and 1,152 bytes a token and block at 16 bits, 31,104 in all.
TEST(ModelSize, OfDeepSeekV2Lite) {
  const ModelConfig config = ParseModelConfig(
      JsonValue::ParseFile(PMKVQ_SOURCE_DIR "/docs/configs/deepseek-v2-lite.json"));
  const KvGeometry geometry = KvGeometryOf(config);
  EXPECT_EQ(2 * geometry.block(0).values(), 1152);
  EXPECT_EQ(2 * geometry.values(), 31104);
  EXPECT_NEAR(static_cast<double>(NumMatrixWeights(config)), 15.7e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(NumActiveWeights(config)), 2.66e9, 0.03e9);
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
