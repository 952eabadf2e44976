#include "pmkvq/research/analysis/error_growth.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::RandomPrompt;

KvOptions Cache(const std::string& spec) {
  KvOptions options;
  options.spec = spec;
  return options;
}

Chain TinyChain(int64_t prompt_tokens, int64_t tokens) {
  Chain chain;
  chain.problem = "p";
  chain.origin = "given";
  chain.tokens = RandomPrompt(tokens, 11);
  chain.prompt_tokens = prompt_tokens;
  return chain;
}

ErrorGrowth TinyGrowth() {
  ErrorGrowthOptions options;
  options.caches = {Cache("fp16"), Cache("static-2")};
  options.attention_stride = 8;
  options.num_bins = 10;
  options.max_len = 400;
  return MeasureErrorGrowth(LoadTinyLlama(), TinyChain(40, 400), options);
}

// fp16's own greedy chain: what it predicts at each position is the chain's next token.
TEST(ErrorGrowth, TheChainOfFp16IsItsOwnPrediction) {
  const auto model = LoadTinyLlama();
  const std::vector<int32_t> prompt = RandomPrompt(30, 2);
  const Chain chain = GenerateChain(model, prompt, 120, 0, 1, nullptr);
  EXPECT_EQ(chain.prompt_tokens, 30);
  ASSERT_GT(chain.chain_tokens(), 0);
  EXPECT_LE(chain.tokens.size(), 120u);
  EXPECT_EQ(std::vector<int32_t>(chain.tokens.begin(), chain.tokens.begin() + 30), prompt);
  ErrorGrowthOptions options;
  options.caches = {Cache("fp16")};
  options.max_len = 120;
  const ErrorGrowth growth = MeasureErrorGrowth(model, chain, options);
  EXPECT_EQ(std::ssize(growth.unquantised), chain.chain_tokens());
  EXPECT_TRUE(growth.caches[0].gold_lost.empty());
  EXPECT_TRUE(growth.caches[0].disagreements.empty());
}

TEST(ErrorGrowth, SummarisesTheTraces) {
  const ErrorGrowth growth = TinyGrowth();
  EXPECT_EQ(growth.bins.edges.front(), 39);
  EXPECT_EQ(growth.bins.edges.back(), 399);
  EXPECT_EQ(growth.bins.size(), 10u);
  const CacheGrowth& exact = growth.caches[0];
  EXPECT_EQ(exact.mean_kl, 0);
  EXPECT_TRUE(exact.disagreements.empty());
  EXPECT_EQ(exact.kl_law.num_points, 0);
  const CacheGrowth& damaged = growth.caches[1];
  EXPECT_GT(damaged.mean_kl, 0);
  EXPECT_GT(damaged.mean_attention, 0);
  // Nothing is quantised before position 129: bins 0 and 1 (39 to 110) are exact.
  EXPECT_EQ(damaged.kl[0], 0);
  EXPECT_EQ(damaged.kl[1], 0);
  EXPECT_GT(damaged.kl[9], 0);
  EXPECT_GT(damaged.attention[9], 0);
  ASSERT_EQ(damaged.block_attention.size(), 2u);
  EXPECT_NEAR(damaged.attention[9],
              0.5 * (damaged.block_attention[0][9] + damaged.block_attention[1][9]), 1e-12);
  EXPECT_GE(damaged.kl_law.num_points, 7);
  double sum = 0;
  for (const Prediction& prediction : damaged.trace.predictions) sum += prediction.kl;
  EXPECT_NEAR(damaged.mean_kl, sum / 360, 1e-12);
  for (const int64_t position : damaged.disagreements) {
    const auto index = static_cast<size_t>(position - 39);
    EXPECT_NE(damaged.trace.predictions[index].top, growth.unquantised[index].top);
    EXPECT_GE(position, 129);
  }
}

TEST(ErrorGrowth, JsonHoldsEveryPosition) {
  const ErrorGrowth growth = TinyGrowth();
  const JsonValue json = JsonValue::Parse(ErrorGrowthJson(growth, "the command"), "json");
  EXPECT_EQ(json.At("analysis").AsString(), "error-growth");
  EXPECT_EQ(json.At("command").AsString(), "the command");
  EXPECT_EQ(json.At("first_position").AsInt(), 39);
  EXPECT_EQ(json.At("bin_edges").size(), 11u);
  ASSERT_EQ(json.At("caches").size(), 2u);
  const JsonValue cache = json.At("caches").At(size_t{1});
  EXPECT_EQ(cache.At("kv").AsString(), "static-2");
  EXPECT_EQ(cache.At("kl").size(), 360u);
  EXPECT_EQ(cache.At("loss").size(), 360u);
  EXPECT_TRUE(cache.Find("budget_spent_at").IsNull());
  const JsonValue attention = cache.At("attention");
  EXPECT_EQ(attention.At("positions").size(), 45u);
  EXPECT_EQ(attention.At("block_kl").At(size_t{0}).size(), 2u);
  EXPECT_EQ(cache.At("kl_growth").At("exponent").AsDouble(), growth.caches[1].kl_law.exponent);
}

TEST(ErrorGrowth, PageNamesEveryCacheAndEscapesTexts) {
  ErrorGrowth growth = TinyGrowth();
  growth.chain.problem = "<script>x</script>";
  const std::string html = ErrorGrowthPage(growth, UniformOf(LoadTinyLlama()->kv_geometry()),
                                           nullptr, {"c", "", "", "", ""})
                               .Render();
  EXPECT_NE(html.find("bits): attention KL (nats) by block and position"), std::string::npos);
  EXPECT_NE(html.find("\"name\":\"static-2 ("), std::string::npos);
  EXPECT_EQ(html.find("<script>x"), std::string::npos);
  EXPECT_NE(html.find("chart-4"), std::string::npos);
}

TEST(ErrorGrowth, VerdictByHand) {
  ErrorGrowth growth;
  growth.chain = TinyChain(10, 100);
  const UniformKvGeometry geometry = {1, 1, 1, 8};
  const auto add = [&](const std::string& spec, std::vector<int64_t> disagreements, int64_t bytes) {
    CacheGrowth& cache = growth.caches.emplace_back();
    cache.spec = spec;
    cache.disagreements = std::move(disagreements);
    cache.trace.predictions.resize(91);  // 9 + 91 = 100 tokens of 16 values.
    cache.trace.peak_bytes = bytes;
  };
  add("a", {}, 400);
  EXPECT_EQ(EffectiveBitsOf(growth, growth.caches[0], geometry), 2);
  EXPECT_EQ(ErrorGrowthVerdict(growth, geometry),
            "No cache changed a token of the 90 that fp16 chose.");
  add("a", {}, 400);
  EXPECT_EQ(
      ErrorGrowthVerdict(growth, geometry),
      "No cache changed a token of the 90 that fp16 chose. All take the same bytes: 2.00 bits "
      "per value.");
  growth.caches.pop_back();
  add("b", {40, 50, 60}, 420);
  add("c", {70}, 400);
  EXPECT_EQ(
      ErrorGrowthVerdict(growth, geometry),
      "a changed no token of the 90 that fp16 chose. c changed 1 token (first at position 71) and "
      "b changed 3 tokens (first at position 41). All take about the same bytes: 2.00 to 2.10 bits "
      "per value.");
  add("d", {20}, 800);
  EXPECT_NE(ErrorGrowthVerdict(growth, geometry)
                .find("They do not take equal bytes: 2.00 to 4.00 bits per value."),
            std::string::npos);
}

TEST(ErrorGrowth, QuotientsAndExponentsThatMeanNothingAreNotShown) {
  CacheGrowth cache;
  cache.early_kl = 0.5;
  cache.late_over_early = 4;
  EXPECT_EQ(FormatLateOverEarly(cache), "4");
  cache.early_kl = 1e-10;
  cache.late_over_early = 4.66e9;
  EXPECT_EQ(FormatLateOverEarly(cache), "from 0");
  cache.late_over_early = 2;
  EXPECT_EQ(FormatLateOverEarly(cache), "-") << "rounding only";
  EXPECT_EQ(FormatExponent({20, 1.5, 1, 0.9}), "1.5");
  EXPECT_EQ(FormatExponent({20, 1.5, 1, 1e-5}), "-");
}

TEST(ErrorGrowth, NeedsAPromptAndAChain) {
  const auto model = LoadTinyLlama();
  ExpectError<InvalidInput>([&] { MeasureErrorGrowth(model, TinyChain(0, 10), {}); }, {"chain"});
  ExpectError<InvalidInput>([&] { MeasureErrorGrowth(model, TinyChain(10, 10), {}); }, {"chain"});
}

}  // namespace
}  // namespace pmkvq
