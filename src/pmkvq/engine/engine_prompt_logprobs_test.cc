// Log-probabilities of prompts.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

constexpr int64_t kPrompt = 330;

SpecEngineOptions Options(const std::string& spec, int64_t chunk = 150) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  if (spec == "pm-kvq") options.kv.budget_bytes = 150000;
  options.max_sequences = 3;
  options.max_len = 600;
  options.num_threads = 1;
  options.chunk = chunk;
  return options;
}

Request Asking(int64_t num_top, int64_t num_tokens = kPrompt, int64_t max_tokens = 40) {
  Request request = MakeRequest(RandomPrompt(num_tokens, 1), max_tokens, 7);
  request.sampling.temperature = 1;
  request.num_prompt_logprobs = num_top;
  return request;
}

void ExpectSame(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].drawn.token, b[i].drawn.token);
    ASSERT_EQ(a[i].drawn.logprob, b[i].drawn.logprob) << i;
    ASSERT_EQ(a[i].top.size(), b[i].top.size());
    for (size_t j = 0; j < a[i].top.size(); ++j) {
      EXPECT_EQ(a[i].top[j].token, b[i].top[j].token);
      EXPECT_EQ(a[i].top[j].logprob, b[i].top[j].logprob);
    }
  }
}

// Hears of prompts.
class PromptObserver : public RecordingObserver {
 public:
  void OnPromptLogprobs(RequestId id, const std::vector<TokenLogprobs>& logprobs) override {
    EXPECT_TRUE(IdsOf(id).empty()) << "before the first token";
    prompts.emplace_back(id, logprobs);
  }
  std::vector<std::pair<RequestId, std::vector<TokenLogprobs>>> prompts;
};

// Token by token, through a float32 cache.
std::vector<TokenLogprobs> OneByOne(const Model& model, const std::vector<int32_t>& ids,
                                    int64_t num_top) {
  SpecEngineOptions options = Options("fp16");
  options.kv.kv_dtype = DType::kF32;
  const EngineCache cache = MakePackedCache(model, options.kv, options);
  const SequenceId seq = cache.store->Open().value();
  ForwardWorkspace workspace;
  std::vector<TokenLogprobs> logprobs;
  for (int64_t i = 0; i + 1 < std::ssize(ids); ++i) {
    EXPECT_EQ(cache.store->Reserve(seq, 1), ReserveResult::kReserved);
    const ForwardChunk chunk{seq, {ids.data() + i, 1}, i, ForwardChunk::Logits::kLast};
    ThrowIfFailed(model.Forward({&chunk, 1}, *cache.store, workspace, 1));
    logprobs.push_back(ref::LogprobsOf(workspace.logits.data(), model.config().vocab_size,
                                       ids[static_cast<size_t>(i) + 1], num_top));
  }
  return logprobs;
}

TEST(EnginePromptLogprobs, AreThoseOfTheTokensOneByOne) {
  const auto model = LoadTinyLlama();
  const std::vector<TokenLogprobs> expected = OneByOne(*model, RandomPrompt(kPrompt, 1), 3);
  for (const int64_t chunk : {1, 64, 150, 512}) {
    SpecEngineOptions options = Options("fp16", chunk);
    options.kv.kv_dtype = DType::kF32;
    Engine engine = OpenEngine(model, nullptr, options);
    const Completion done = RunOne(engine, Asking(3));
    ASSERT_EQ(done.prompt_logprobs.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const TokenLogprobs& found = done.prompt_logprobs[i];
      EXPECT_EQ(found.drawn.token, done.prompt_ids[i + 1]);
      // Two orders of summation in float, of logits below 10.
      EXPECT_NEAR(found.drawn.logprob, expected[i].drawn.logprob, 1e-4) << i;
      ASSERT_EQ(found.top.size(), 3u);
      EXPECT_NEAR(found.top[0].logprob, expected[i].top[0].logprob, 1e-4);
      EXPECT_GE(found.top[0].logprob, found.drawn.logprob);
    }
  }
}

class OfEachStore : public testing::TestWithParam<std::string> {};

// A request for log-probabilities has the answer that it has without them, and other requests
// change none of its log-probabilities, also where the prompt is computed in turns.
TEST_P(OfEachStore, ChangeNothingAndDependOnTheRequestOnly) {
  const auto model = LoadTinyLlama();
  Engine alone = OpenEngine(model, nullptr, Options(GetParam()));
  const Completion silent = RunOne(alone, Asking(-1));
  EXPECT_TRUE(silent.prompt_logprobs.empty());
  PromptObserver first;
  const Completion expected = RunOne(alone, Asking(2), &first);
  ASSERT_EQ(std::ssize(expected.prompt_logprobs), kPrompt - 1);
  EXPECT_EQ(expected.output_ids, silent.output_ids);
  EXPECT_EQ(expected.kv.pages, silent.kv.pages);
  ASSERT_EQ(first.prompts.size(), 1u);
  ExpectSame(first.prompts[0].second, expected.prompt_logprobs);

  for (const int threads : {1, 2}) {
    SpecEngineOptions options = Options(GetParam());
    options.num_threads = threads;
    Engine engine = OpenEngine(model, nullptr, options);
    PromptObserver observer;
    engine.Submit(MakeRequest(RandomPrompt(20, 7), 200));
    engine.Step(&observer);
    engine.Step(&observer);
    const RequestId id = engine.Submit(Asking(2));
    while (engine.Step(&observer)) {
    }
    for (const Completion& done : observer.finished) {
      if (done.id != id) continue;
      EXPECT_EQ(done.output_ids, expected.output_ids);
      ExpectSame(done.prompt_logprobs, expected.prompt_logprobs);
    }
    ASSERT_EQ(observer.prompts.size(), 1u);
    EXPECT_EQ(observer.prompts[0].first, id);
  }
}

TEST_P(OfEachStore, SamplesHaveThemAll) {
  const auto model = LoadTinyLlama();
  Engine engine = OpenEngine(model, nullptr, Options(GetParam()));
  const Completion expected = RunOne(engine, Asking(2));
  const std::vector<uint64_t> seeds = {7, 8, 9, 10};
  engine.SubmitSamples(Asking(2), seeds);
  PromptObserver observer;
  while (engine.Step(&observer)) {
  }
  ASSERT_EQ(observer.finished.size(), 4u);
  for (const Completion& done : observer.finished) {
    ExpectSame(done.prompt_logprobs, expected.prompt_logprobs);
  }
  EXPECT_EQ(observer.prompts.size(), 4u);
}

// A request of which nothing can be drawn is computed all the same.
TEST_P(OfEachStore, OfAPromptThatFillsTheLength) {
  const auto model = LoadTinyLlama();
  SpecEngineOptions options = Options(GetParam());
  options.max_len = kPrompt;
  Engine engine = OpenEngine(model, nullptr, options);
  Request request = Asking(0);
  request.max_tokens = 0;
  const Completion done = RunOne(engine, request);
  EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  EXPECT_TRUE(done.output_ids.empty());
  EXPECT_EQ(std::ssize(done.prompt_logprobs), kPrompt - 1);
  // One more token to draw, and an interrupted run's tokens.
  Request shorter = Asking(0, kPrompt - 1);
  const Completion drawn = RunOne(engine, shorter);
  ASSERT_EQ(drawn.output_ids.size(), 1u);
  shorter.replay_ids = drawn.output_ids;
  const Completion replayed = RunOne(engine, shorter);
  EXPECT_EQ(replayed.output_ids, drawn.output_ids);
  ExpectSame(replayed.prompt_logprobs, drawn.prompt_logprobs);
}

INSTANTIATE_TEST_SUITE_P(EnginePromptLogprobs, OfEachStore,
                         testing::Values("fp16", "static-4", "pm-kvq", "kivi"),
                         [](const auto& store) {
                           std::string name = store.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(EnginePromptLogprobs, OfShortPrompts) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options("fp16"));
  for (const int64_t length : {1, 2, 3, 150, 151, 152}) {
    const Completion silent = RunOne(engine, Asking(-1, length));
    const Completion done = RunOne(engine, Asking(1, length));
    EXPECT_EQ(std::ssize(done.prompt_logprobs), length - 1);
    EXPECT_EQ(done.output_ids, silent.output_ids) << length;
  }
}

TEST(EnginePromptLogprobs, LogitsThatAreNotFiniteEndTheRequest) {
  const testing_support::TinyModel tiny;
  auto weights = testing_support::MakeTinyWeights(tiny);
  weights.at("lm_head.weight").As<float>()[45 * tiny.hidden] =
      std::numeric_limits<float>::infinity();
  const testing_support::TempFolder folder;
  testing_support::WriteTinyModel(tiny, weights, folder);
  Engine engine = OpenEngine(Model::Load(folder.path()), nullptr, Options("fp16"));
  Request request = Asking(1, 20);
  for (int32_t& id : request.prompt_ids) id %= 40;
  const Completion done = RunOne(engine, request);
  EXPECT_EQ(done.finish_reason, FinishReason::kError);
  EXPECT_NE(done.error.find("output head, position 0] logits are not finite"), std::string::npos)
      << done.error;
  EXPECT_TRUE(done.output_ids.empty());
}

TEST(EnginePromptLogprobs, WhatIsRefused) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options("fp16"));
  ExpectError<InvalidInput>([&] { engine.Submit(Asking(-2)); }, {"num_prompt_logprobs", "-2"});
  ExpectError<InvalidInput>([&] { engine.Submit(Asking(101)); }, {"num_prompt_logprobs", "101"});
  Request request = Asking(1);
  request.session = 3;
  ExpectError<InvalidInput>([&] { engine.Submit(request); }, {"num_prompt_logprobs", "session"});
}

}  // namespace
}  // namespace pmkvq
