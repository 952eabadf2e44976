#include "pmkvq/engine/fit.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/model/model_size.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;

constexpr int64_t kLen = 900;
constexpr int64_t kSequences = 3;

FitModel ModelToFit(const Model& model) { return {model.config(), model.weight_bytes()}; }

FitOptions Options(int64_t memory_bytes) {
  FitOptions options;
  options.memory_bytes = memory_bytes;
  options.max_len = kLen;
  options.sequences = kSequences;
  options.chunk = 100;
  return options;
}

EngineOptions EngineFor(const FitOptions& fit) {
  EngineOptions options;
  options.max_sequences = fit.sequences;
  options.max_len = fit.max_len;
  options.chunk = fit.chunk;
  options.num_threads = fit.num_threads;
  return options;
}

KvOptions Kv(const std::string& spec, int64_t budget_bytes = 0) {
  KvOptions kv;
  kv.spec = spec;
  kv.budget_bytes = budget_bytes;
  return kv;
}

TEST(Fit, WeightsAreThoseOfTheModel) {
  for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
    for (const char* folder : {"/tests/golden/tiny-llama", "/models/longcot-10m"}) {
      const auto model = Model::Load(std::string(PMKVQ_SOURCE_DIR) + folder, {mode, 1});
      EXPECT_EQ(WeightBytesOf(model->config(), model->embedding().format, mode),
                model->weight_bytes())
          << folder;
    }
  }
}

TEST(Fit, ArenasAreThoseOfTheCache) {
  const auto model = LoadTinyLlama();
  const FitOptions options = Options(8 << 20);
  const Fit fit = FitInto(ModelToFit(*model), options);
  ASSERT_EQ(fit.methods.size(), 5u);
  for (const FitMethod& method : fit.methods) {
    const int64_t budget = method.spec == "pm-kvq" ? method.sequence_bytes : 0;
    const EngineCache cache = MakePackedCache(*model, Kv(method.spec, budget), EngineFor(options));
    EXPECT_EQ(static_cast<int64_t>(cache.store->StoreStats().arena_bytes), method.arena_bytes)
        << method.spec;
    if (budget == 0) {
      EXPECT_EQ(cache.budget.total_bytes(), method.sequence_bytes) << method.spec;
    }
    EXPECT_EQ(method.fits, method.arena_bytes <= fit.cache_bytes && cache.budget.Holds(kLen));
  }
  EXPECT_LE(fit.methods.back().arena_bytes, fit.cache_bytes);
}

// All that the engine takes when it decodes all sequences, each of full length, beside prompts.
TEST(Fit, TheEngineTakesWhatWasSaid) {
  const auto model = LoadTinyLlama();
  FitOptions options = Options(8 << 20);
  const Fit fit = FitInto(ModelToFit(*model), options);
  Engine engine(model, nullptr, MakePackedCache(*model, Kv("static-4"), EngineFor(options)),
                EngineFor(options));
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 5; ++i) {
    requests.push_back(MakeRequest(RandomPrompt(250, i), kLen - 250, i));
  }
  engine.Generate(requests, nullptr, nullptr);
  const auto working =
      static_cast<int64_t>(engine.workspace_bytes() + engine.store().StoreStats().scratch_bytes);
  // Besides, a page as floats, lists of moves and of rows.
  EXPECT_LE(working, fit.working_bytes + (int64_t{128} << 10));
  EXPECT_GE(working, fit.working_bytes * 9 / 10);
}

// A sequence grows until pages step below a width.
TEST(Fit, WidthsLastAsLongAsWasSaid) {
  const auto model = LoadTinyLlama();
  const Fit ample = FitInto(ModelToFit(*model), Options(8 << 20));
  // As much as pages of 4 bits would take.
  const FitOptions options =
      Options(ample.weight_bytes + ample.working_bytes + ample.methods[2].arena_bytes);
  const Fit fit = FitInto(ModelToFit(*model), options);
  const FitMethod& method = fit.methods.back();
  ASSERT_GT(method.sequence_bytes, 0);
  ASSERT_LT(fit.longest_at_width[WidthIndex(16)], kLen);  // Else nothing would step down.
  for (const char* policy : {"", ":policy=oldest-first"}) {
    const EngineCache cache = MakePackedCache(
        *model, Kv("pm-kvq" + std::string(policy), method.sequence_bytes), EngineFor(options));
    const SequenceId seq = cache.store->Open().value();
    std::array<int64_t, 4> longest{};
    const int64_t dim = model->config().kv_dim();
    std::vector<float> row(static_cast<size_t>(model->config().q_dim()), 0.5f);
    for (int64_t n = 1; n <= model->config().max_position_embeddings; ++n) {
      if (cache.store->Reserve(seq, 1) == ReserveResult::kBudgetExhausted) break;
      cache.store->BeginForward({{seq, 1}});
      std::vector<float> out(row.size());
      const std::vector<float> kv(static_cast<size_t>(dim), 0.25f);
      for (int64_t layer = 0; layer < model->config().num_layers; ++layer) {
        cache.store->AppendAndAttend(layer, row.data(), kv.data(), kv.data(), out.data());
      }
      cache.store->EndForward();
      const PagesPerWidth pages = cache.store->SequenceStats(seq).pages;
      for (size_t width = 0; width < 4; ++width) {
        const bool is_above = std::all_of(pages.begin() + static_cast<int64_t>(width) + 1,
                                          pages.end(), [](int64_t count) { return count == 0; });
        if (is_above) longest[width] = n;
      }
    }
    EXPECT_EQ(longest, fit.longest_at_width) << policy;
  }
}

TEST(Fit, MostSequencesAndLongestAreAtTheLimit) {
  const auto model = LoadTinyLlama();
  FitOptions options = Options(4 << 20);
  const Fit fit = FitInto(ModelToFit(*model), options);
  for (size_t i = 0; i < fit.methods.size(); ++i) {
    const auto fits = [&](int64_t sequences, int64_t max_len) {
      FitOptions other = options;
      other.sequences = sequences;
      other.max_len = max_len;
      return FitInto(ModelToFit(*model), other).methods[i].fits;
    };
    const FitMethod& method = fit.methods[i];
    ASSERT_GT(method.most_sequences, 0) << method.spec;
    EXPECT_TRUE(fits(method.most_sequences, kLen)) << method.spec;
    EXPECT_FALSE(fits(method.most_sequences + 1, kLen)) << method.spec;
    ASSERT_GT(method.longest, 0) << method.spec;
    EXPECT_TRUE(fits(kSequences, method.longest)) << method.spec;
    if (method.longest < model->config().max_position_embeddings) {
      EXPECT_FALSE(fits(kSequences, method.longest + 1)) << method.spec;
    }
  }
}

TEST(Fit, TooLittleMemory) {
  const auto model = LoadTinyLlama();
  const Fit fit = FitInto(ModelToFit(*model), Options(model->weight_bytes() / 2));
  EXPECT_LT(fit.cache_bytes, 0);
  for (const FitMethod& method : fit.methods) {
    EXPECT_FALSE(method.fits);
    EXPECT_EQ(method.most_sequences, 0);
    EXPECT_EQ(method.longest, 0);
  }
  const auto refused = [&](auto change) {
    FitOptions options = Options(8 << 20);
    change(options);
    EXPECT_THROW(FitInto(ModelToFit(*model), options), InvalidInput);
  };
  refused([](FitOptions& o) { o.memory_bytes = 0; });
  refused([](FitOptions& o) { o.max_len = int64_t{1} << 40; });
  refused([](FitOptions& o) { o.sequences = 0; });
  refused([](FitOptions& o) { o.chunk = 0; });
}

}  // namespace
}  // namespace pmkvq
