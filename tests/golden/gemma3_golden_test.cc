// A random Gemma 3 against a forward pass in float64 that shares no code with ours
// (tools/make_gemma3_golden.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/io/json.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"

namespace pmkvq {
namespace {

// Logits of up to 6.4, 2^-24 of which is 4e-7, behind four blocks of ten roundings each.
constexpr double kTolerance = 2e-5;

TEST(Gemma3Golden, LogitsTokenByTokenAndAtOnce) {
  const std::string folder = PMKVQ_SOURCE_DIR "/tests/golden/tiny-gemma3";
  const auto model = Model::Load(folder);
  const JsonValue golden = JsonValue::ParseFile(folder + "/logits.json");
  std::vector<int32_t> tokens;
  for (const int64_t id : golden.At("tokens").AsIntArray()) {
    tokens.push_back(static_cast<int32_t>(id));
  }
  CacheConfig config;
  config.geometry = model->kv_geometry();
  config.float_type = DType::kF32;
  config.close_bits = 16;
  config.floor_bits = 16;
  config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                             BlockBytes(config, 0, /*num_tokens=*/160, 16, 16));
  const int64_t vocab = model->config().vocab_size;
  for (const size_t step : {size_t{1}, tokens.size()}) {
    const std::unique_ptr<KvStore> store = MakePackedKvCache(config);
    const SequenceId seq = store->Open().value();
    ForwardWorkspace workspace;
    double worst = 0;
    for (size_t begin = 0; begin < tokens.size(); begin += step) {
      const ForwardChunk chunk{seq, std::span(tokens).subspan(begin, step),
                               static_cast<int64_t>(begin), ForwardChunk::Logits::kAll};
      ASSERT_EQ(store->Reserve(seq, static_cast<int64_t>(step)), ReserveResult::kReserved);
      ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, 2));
      for (size_t row = 0; row < step; ++row) {
        const JsonValue expected = golden.At("logits").At(begin + row);
        for (int64_t i = 0; i < vocab; ++i) {
          const float logit =
              workspace.logits[row * static_cast<size_t>(vocab) + static_cast<size_t>(i)];
          worst = std::max(
              worst, std::abs(double{logit} - expected.At(static_cast<size_t>(i)).AsDouble()));
        }
      }
    }
    EXPECT_LE(worst, kTolerance) << step;
    RecordProperty("max_abs_error", std::to_string(worst));
  }
}

}  // namespace
}  // namespace pmkvq
