// What a request asks beyond sampling: penalties, biases, least lengths, stop ids,
// log-probabilities; and requests that are cancelled one by one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

SpecEngineOptions Options(const std::string& spec = "fp16", int64_t max_sequences = 3) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  if (spec == "pm-kvq") options.kv.budget_bytes = 60000;
  options.max_sequences = max_sequences;
  options.max_len = 600;
  options.num_threads = 1;
  return options;
}

Engine TinyEngine(const std::string& spec = "fp16") {
  return OpenEngine(LoadTinyLlama(), nullptr, Options(spec));
}

TEST(EngineRules, PenaltiesKeepTokensFromComingAgain) {
  Engine engine = TinyEngine();
  Request request = MakeRequest(RandomPrompt(30, 1), 100);
  const std::vector<int32_t> plain = RunOne(engine, request).output_ids;
  ASSERT_LT(std::set<int32_t>(plain.begin(), plain.end()).size(), plain.size());

  request.rules.presence_penalty = 1e4;
  const std::vector<int32_t> once = RunOne(engine, request).output_ids;
  EXPECT_EQ(std::set<int32_t>(once.begin(), once.end()).size(), once.size());
  EXPECT_TRUE(std::any_of(once.begin(), once.end(), [&](int32_t token) {
    return std::count(request.prompt_ids.begin(), request.prompt_ids.end(), token) > 0;
  })) << "tokens of the prompt are not penalised";

  request.rules = {};
  request.rules.repetition_penalty = 1e6;
  for (const int32_t token : RunOne(engine, request).output_ids) {
    EXPECT_EQ(std::count(request.prompt_ids.begin(), request.prompt_ids.end(), token), 0) << token;
  }
  // A replay goes on with the counts of what it replays.
  request.rules = {};
  request.rules.frequency_penalty = 0.7;
  const std::vector<int32_t> whole = RunOne(engine, request).output_ids;
  EXPECT_NE(whole, plain);
  request.replay_ids.assign(whole.begin(), whole.begin() + 40);
  EXPECT_EQ(RunOne(engine, request).output_ids, whole);
}

TEST(EngineRules, BiasesForceAndForbidTokens) {
  Engine engine = TinyEngine();
  Request request = MakeRequest(RandomPrompt(30, 1), 20);
  request.rules.bias = {{7, 1e4f}};
  EXPECT_EQ(RunOne(engine, request).output_ids, std::vector<int32_t>(20, 7));
  request.rules.bias = {};
  const int32_t first = RunOne(engine, request).output_ids.front();
  request.rules.bias = {{first, -1e4f}};
  const std::vector<int32_t> without = RunOne(engine, request).output_ids;
  EXPECT_EQ(std::count(without.begin(), without.end(), first), 0);
}

TEST(EngineRules, StopIdsEndARequestAndLeastLengthsHoldThemBack) {
  Engine engine = TinyEngine();
  Request request = MakeRequest(RandomPrompt(30, 1), 60);
  const std::vector<int32_t> plain = RunOne(engine, request).output_ids;
  request.stop_ids = {plain[5], 250};
  const auto first = std::find(plain.begin(), plain.end(), plain[5]);
  const Completion stopped = RunOne(engine, request);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.output_ids, std::vector<int32_t>(plain.begin(), first + 1));

  request.min_tokens = 25;
  const Completion later = RunOne(engine, request);
  EXPECT_GE(later.output_ids.size(), 25u);
  for (size_t i = 0; i < 25 && i + 1 < later.output_ids.size(); ++i) {
    EXPECT_NE(later.output_ids[i], plain[5]);
  }
}

TEST(EngineRules, LogprobsAreOfTheModelBeforeRules) {
  Engine engine = TinyEngine();
  Request request = MakeRequest(RandomPrompt(30, 1), 15);
  request.num_logprobs = 3;
  class Observer : public RecordingObserver {
   public:
    void OnLogprobs(RequestId, const TokenLogprobs& logprobs) override {
      EXPECT_EQ(told.size(), tokens.size()) << "right before its token";
      told.push_back(logprobs.drawn.token);
    }
    std::vector<int32_t> told;
  } observer;
  const Completion plain = RunOne(engine, request, &observer);
  ASSERT_EQ(plain.logprobs.size(), 15u);
  EXPECT_EQ(observer.told, plain.output_ids);
  for (size_t i = 0; i < 15; ++i) {
    const TokenLogprobs& logprobs = plain.logprobs[i];
    ASSERT_EQ(logprobs.top.size(), 3u);
    EXPECT_EQ(logprobs.drawn.token, plain.output_ids[i]);
    EXPECT_EQ(logprobs.top[0].token, plain.output_ids[i]) << "greedy";
    EXPECT_EQ(logprobs.top[0].logprob, logprobs.drawn.logprob);
    EXPECT_LT(logprobs.drawn.logprob, 0);
    EXPECT_GE(logprobs.top[0].logprob, logprobs.top[1].logprob);
  }
  // A bias changes what is drawn and not what the model says of it.
  request.rules.bias = {{plain.logprobs[0].top[2].token, 1e4f}};
  const Completion forced = RunOne(engine, request);
  EXPECT_EQ(forced.output_ids[0], plain.logprobs[0].top[2].token);
  EXPECT_EQ(forced.logprobs[0].drawn.logprob, plain.logprobs[0].top[2].logprob);
  EXPECT_EQ(forced.logprobs[0].top[0].logprob, plain.logprobs[0].top[0].logprob);
}

TEST(EngineRules, WrongOnesAreNamed) {
  Engine engine = TinyEngine();
  const auto expect = [&](const auto& change, std::initializer_list<std::string> parts) {
    Request request = MakeRequest(RandomPrompt(5, 1), 10);
    change(request);
    ExpectError<InvalidInput>([&] { engine.Submit(request); }, parts);
  };
  expect([](Request& r) { r.rules.repetition_penalty = 0; }, {"repetition_penalty", "> 0"});
  expect([](Request& r) { r.rules.presence_penalty = NAN; }, {"presence_penalty"});
  expect([](Request& r) { r.rules.frequency_penalty = INFINITY; }, {"frequency_penalty"});
  expect([](Request& r) { r.rules.bias = {{256, 1.0f}}; }, {"logit_bias", "256"});
  expect([](Request& r) { r.rules.bias = {{-1, 1.0f}}; }, {"logit_bias", "-1"});
  expect([](Request& r) { r.rules.bias = {{1, INFINITY}}; }, {"logit_bias", "finite"});
  expect([](Request& r) { r.stop_ids = {300}; }, {"stop_ids", "300"});
  expect([](Request& r) { r.min_tokens = 11; }, {"min_tokens", "max_tokens 10"});
  expect([](Request& r) { r.min_tokens = -1; }, {"min_tokens"});
  expect([](Request& r) { r.num_logprobs = 101; }, {"num_logprobs"});
  expect(
      [](Request& r) {
        r.num_logprobs = 0;
        r.replay_ids = {5};
      },
      {"num_logprobs", "replay_ids"});
}

TEST(EngineRules, WhereNoTokenIsLeftTheRequestEndsWithAnError) {
  Engine engine = TinyEngine();
  Request request = MakeRequest(RandomPrompt(5, 1), 10);
  request.min_tokens = 1;
  for (int32_t token = 0; token < 256; ++token) request.stop_ids.push_back(token);
  const Completion done = RunOne(engine, request);
  EXPECT_EQ(done.finish_reason, FinishReason::kError);
  EXPECT_NE(done.error.find("no token may be drawn"), std::string::npos) << done.error;
}

class EngineCancelOne : public testing::TestWithParam<std::string> {};

// At every step of a run: the one ends with what it has, the others keep their bits, and its place
// and its pages serve the next request.
TEST_P(EngineCancelOne, LeavesTheOthersAlone) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 3; ++i) requests.push_back(MakeRequest(RandomPrompt(40, i), 60));
  Engine alone = TinyEngine(GetParam());
  const std::vector<Completion> expected = alone.Generate(requests, nullptr, nullptr);
  Engine engine = TinyEngine(GetParam());
  for (int steps = 0; steps < 64; steps += 3) {
    RecordingObserver observer;
    std::vector<RequestId> ids;
    for (const Request& request : requests) ids.push_back(engine.Submit(request));
    for (int i = 0; i < steps; ++i) engine.Step(&observer);
    const bool was_running =
        std::none_of(observer.finished.begin(), observer.finished.end(),
                     [&](const Completion& done) { return done.id == ids[1]; });
    EXPECT_EQ(engine.Cancel(ids[1], &observer), was_running);
    EXPECT_FALSE(engine.Cancel(ids[1], &observer)) << "once only";
    EXPECT_FALSE(engine.Cancel(12345, &observer));
    if (was_running) {
      ASSERT_FALSE(observer.finished.empty());
      const Completion& last = observer.finished.back();
      EXPECT_EQ(last.id, ids[1]);
      EXPECT_EQ(last.finish_reason, FinishReason::kCancelled);
      EXPECT_EQ(last.output_ids, observer.IdsOf(ids[1]));
    }
    while (engine.Step(&observer)) {
    }
    ASSERT_EQ(observer.finished.size(), 3u);
    EXPECT_EQ(observer.IdsOf(ids[0]), expected[0].output_ids) << steps;
    EXPECT_EQ(observer.IdsOf(ids[2]), expected[2].output_ids) << steps;
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, EngineCancelOne, testing::Values("fp16", "pm-kvq", "kivi"),
                         [](const auto& store) {
                           return store.param == "pm-kvq" ? std::string("packed")
                                                          : std::string(store.param);
                         });

}  // namespace
}  // namespace pmkvq
