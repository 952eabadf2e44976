#include "pmkvq/research/analysis/lock_step.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/research/eval/perplexity.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::RandomPrompt;

KvOptions Cache(const std::string& spec, DType dtype = DType::kF16) {
  KvOptions options;
  options.spec = spec;
  options.kv_dtype = dtype;
  return options;
}

// Token by token it is what MeasurePerplexity measures.
TEST(RunLockStep, AgreesWithPerplexity) {
  const auto model = LoadTinyLlama();
  const std::vector<int32_t> tokens = RandomPrompt(200, 3);
  const std::vector<KvOptions> caches = {Cache("static-2"), Cache("rtn:bits=3"), Cache("kivi")};
  const LockStepResult result = RunLockStep(model, tokens, caches, {});
  const std::vector<CacheMeans> means = MeasureMeans(model, {tokens}, caches, {});
  for (size_t i = 0; i < caches.size(); ++i) {
    const PerplexityResult expected =
        MeasurePerplexity(model, {tokens}, caches[i], 512, 1, nullptr, nullptr);
    ASSERT_EQ(result.caches[i].predictions.size(), 199u);
    EXPECT_EQ(means[i].num_predictions, expected.num_tokens);
    EXPECT_NEAR(means[i].loss, expected.loss, 1e-12) << caches[i].spec;
    EXPECT_NEAR(means[i].kl, expected.kl_to_fp16, 1e-12) << caches[i].spec;
    EXPECT_GT(means[i].kl, 0) << caches[i].spec;
    EXPECT_EQ(result.caches[i].spent_at, -1);
  }
}

TEST(RunLockStep, Fp16BesideItselfDiffersInNothing) {
  const auto model = LoadTinyLlama();
  LockStepOptions options;
  options.first = 20;
  options.attention_stride = 10;
  const LockStepResult result = RunLockStep(model, RandomPrompt(100, 4), {Cache("fp16")}, options);
  const CacheTrace& trace = result.caches[0];
  ASSERT_EQ(trace.predictions.size(), 79u);  // Of tokens 21 to 99.
  for (size_t i = 0; i < trace.predictions.size(); ++i) {
    EXPECT_EQ(trace.predictions[i].kl, 0);
    EXPECT_EQ(trace.predictions[i].loss, result.unquantised[i].loss);
    EXPECT_EQ(trace.predictions[i].top, result.unquantised[i].top);
  }
  ASSERT_EQ(trace.attention.size(), 8u);  // Positions 25, 35, ... 95.
  EXPECT_EQ(trace.attention[0].position, 25);
  EXPECT_EQ(trace.attention[7].position, 95);
  for (const AttentionSample& sample : trace.attention) {
    for (const double kl : sample.kl) EXPECT_EQ(kl, 0);
    EXPECT_GT(sample.bytes, 0);
  }
}

TEST(RunLockStep, AttentionMovesOnlyOncePagesAreQuantised) {
  const auto model = LoadTinyLlama();
  LockStepOptions options;
  options.attention_stride = 4;
  const LockStepResult result =
      RunLockStep(model, RandomPrompt(200, 5), {Cache("static-2")}, options);
  for (const AttentionSample& sample : result.caches[0].attention) {
    // A sink of 1 and an open page of 128.
    EXPECT_EQ(sample.kl[0] > 0, sample.position > 129) << sample.position;
  }
  for (size_t i = 0; i < 129; ++i) EXPECT_EQ(result.caches[0].predictions[i].kl, 0) << i;
}

TEST(RunLockStep, ChunksComeCloseToSingleTokens) {
  const auto model = LoadTinyLlama();
  const std::vector<int32_t> tokens = RandomPrompt(500, 6);
  LockStepOptions chunks;
  chunks.chunk = 16;
  const CacheMeans single = MeasureMeans(model, {tokens}, {Cache("static-2")}, {})[0];
  const CacheMeans chunked = MeasureMeans(model, {tokens}, {Cache("static-2")}, chunks)[0];
  EXPECT_EQ(single.num_predictions, chunked.num_predictions);
  EXPECT_NEAR(chunked.fp16_loss, single.fp16_loss, 1e-4);
  // The last tokens of a chunk see up to 15 tokens of a full page at 16 bit still.
  EXPECT_NEAR(chunked.kl, single.kl, 0.1 * single.kl);
}

TEST(RunLockStep, AFullBudgetEndsOneCacheOnly) {
  const auto model = LoadTinyLlama();
  KvOptions small = Cache("fp16");
  // A page of 128 tokens of 2 blocks and the sink, and not another one.
  small.budget_bytes = 2 * (2 * 129 * 32 * 2);
  LockStepOptions options;
  const std::vector<int32_t> tokens = RandomPrompt(160, 7);
  const LockStepResult result = RunLockStep(model, tokens, {small, Cache("rtn")}, options);
  EXPECT_EQ(result.caches[0].spent_at, 129);
  EXPECT_EQ(result.caches[0].predictions.size(), 129u);
  EXPECT_EQ(result.caches[1].spent_at, -1);
  EXPECT_EQ(result.caches[1].predictions.size(), 159u);
  ExpectError<InvalidInput>([&] { MeasureMeans(model, {tokens}, {small}, options); },
                            {"fp16", "129", "160"});
}

TEST(RunLockStep, RefusesLengthsThatDoNotFit) {
  const auto model = LoadTinyLlama();
  LockStepOptions options;
  options.max_len = 50;
  ExpectError<InvalidInput>([&] { RunLockStep(model, RandomPrompt(51, 8), {}, options); },
                            {"51", "50"});
  ExpectError<InvalidInput>([&] { RunLockStep(model, RandomPrompt(1, 8), {}, options); },
                            {"found 1", "2"});
}

TEST(RunLockStep, Cancels) {
  const auto model = LoadTinyLlama();
  const CancelFlag cancel = true;
  LockStepOptions options;
  options.cancel = &cancel;
  EXPECT_THROW(RunLockStep(model, RandomPrompt(10, 8), {}, options), Cancelled);
}

}  // namespace
}  // namespace pmkvq
