#include "pmkvq/model/model_size.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

// What is known of files before they are loaded is what a loaded model takes.
TEST(ModelSize, WeightBytesOfFilesAreThoseOfTheModel) {
  const std::string golden = PMKVQ_SOURCE_DIR "/tests/golden/";
  for (const char* path : {"tiny-llama", "gguf/tiny-llama-f32.gguf", "gguf/tiny-llama-q8_0.gguf"}) {
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
      ModelOptions options;
      options.weights = mode;
      EXPECT_EQ(WeightBytesOf(Checkpoint::Open(golden + path), mode),
                Model::Load(golden + path, options)->weight_bytes())
          << path << " " << NameOf(mode);
    }
  }
}

}  // namespace
}  // namespace pmkvq
