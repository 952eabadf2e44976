// Prompts that are computed in turns between the tokens of other requests.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <limits>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/cpu_time.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;
using testing_support::TinyLlama;

// So small a share that a turn ends at its first chance to pause, as a rule.
constexpr double kTinyShare = 0.1;

SpecEngineOptions Options(const std::string& spec, double share = kTinyShare) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  if (spec.starts_with("pm-kvq")) options.kv.budget_bytes = 150000;
  options.max_sequences = 3;
  options.max_len = 1200;
  options.num_threads = 2;
  options.chunk = 300;
  options.prefill_share = share;
  return options;
}

class EngineMixed : public testing::TestWithParam<std::string> {};

// However prompts and tokens are mixed, every request has the bits that it has alone.
TEST_P(EngineMixed, RequestsKeepTheirBits) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back(MakeRequest(RandomPrompt(i % 2 == 0 ? 900 : 40, i), 120, i));
    requests.back().sampling.temperature = 1;
  }
  Engine alone = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
  std::vector<Completion> expected;
  for (const Request& request : requests) expected.push_back(RunOne(alone, request));
  for (const double share : {kTinyShare, 0.3, 0.9, 1.0}) {
    for (const int num_threads : {1, 3}) {
      SpecEngineOptions options = Options(GetParam(), share);
      options.num_threads = num_threads;
      Engine engine = OpenEngine(TinyLlama(), nullptr, options);
      const std::vector<Completion> found = engine.Generate(requests, nullptr, nullptr);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(found[i].output_ids, expected[i].output_ids) << share << " " << i;
        EXPECT_EQ(found[i].kv.pages, expected[i].kv.pages) << share << " " << i;
        EXPECT_EQ(found[i].kv.peak_bytes, expected[i].kv.peak_bytes) << share << " " << i;
      }
    }
  }
}

TEST_P(EngineMixed, TokensComeInEveryStepOfAnothersPrompt) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
  RecordingObserver observer;
  const RequestId first = engine.Submit(MakeRequest(RandomPrompt(20, 1), 1000));
  engine.Step(&observer);
  const RequestId second = engine.Submit(MakeRequest(RandomPrompt(900, 2), 5));
  int num_steps = 0;
  while (observer.IdsOf(second).empty()) {
    const size_t before = observer.IdsOf(first).size();
    ASSERT_TRUE(engine.Step(&observer));
    ASSERT_EQ(observer.IdsOf(first).size(), before + 1);
    ++num_steps;
  }
  EXPECT_GT(num_steps, 3) << "three chunks, each of several turns";
  engine.CancelAll(&observer);
}

// A prompt that is cancelled at any moment frees its place and leaves the others alone.
TEST_P(EngineMixed, APromptIsCancelledBetweenItsTurns) {
  const Request decoded = MakeRequest(RandomPrompt(20, 1), 200);
  const Request prompt = MakeRequest(RandomPrompt(900, 2), 5);
  Engine alone = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
  const Completion expected = RunOne(alone, decoded);
  const Completion expected_prompt = RunOne(alone, prompt);
  for (int steps = 1; steps < 60; steps += 9) {
    Engine engine = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
    RecordingObserver observer;
    engine.Submit(decoded);
    engine.Step(&observer);
    const RequestId cancelled = engine.Submit(prompt);
    for (int i = 0; i < steps; ++i) engine.Step(&observer);
    EXPECT_TRUE(engine.Cancel(cancelled, &observer));
    ASSERT_EQ(observer.finished.size(), 1u);
    EXPECT_EQ(observer.finished[0].finish_reason, FinishReason::kCancelled);
    const RequestId again = engine.Submit(prompt);
    while (engine.Step(&observer)) {
    }
    EXPECT_EQ(observer.IdsOf(again), expected_prompt.output_ids);
    EXPECT_EQ(observer.IdsOf(1), expected.output_ids);
  }
}

// The engine ends, or ends all requests, with a prompt half computed.
TEST_P(EngineMixed, AllIsCancelledBetweenTurns) {
  RecordingObserver observer;
  {
    Engine engine = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
    for (int round = 0; round < 2; ++round) {
      engine.Submit(MakeRequest(RandomPrompt(20, 1), 200));
      engine.Step(&observer);
      engine.Submit(MakeRequest(RandomPrompt(900, 2), 5));
      for (int i = 0; i < 3; ++i) engine.Step(&observer);
      if (round == 0) engine.CancelAll(&observer);
    }
  }
  EXPECT_EQ(observer.finished.size(), 2u);
}

TEST_P(EngineMixed, ASignalEndsThePromptAndNoToken) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
  RecordingObserver observer;
  const RequestId decoding = engine.Submit(MakeRequest(RandomPrompt(20, 1), 200));
  engine.Step(&observer);
  const RequestId prompt = engine.Submit(MakeRequest(RandomPrompt(900, 2), 5));
  for (int i = 0; i < 3; ++i) engine.Step(&observer);
  const size_t drawn = observer.IdsOf(decoding).size();
  CancelFlag flag = true;
  size_t num_steps = 0;
  {
    const CancelScope scope(&flag, "test");
    // A step without a turn does not look at the flag.
    for (int i = 0; i < 20 && observer.finished.empty(); ++i) {
      EXPECT_TRUE(engine.Step(&observer));
      ++num_steps;
    }
  }
  EXPECT_EQ(observer.IdsOf(decoding).size(), drawn + num_steps);
  ASSERT_EQ(observer.finished.size(), 1u);
  EXPECT_EQ(observer.finished[0].id, prompt);
  EXPECT_EQ(observer.finished[0].finish_reason, FinishReason::kCancelled);
}

// Where the last decoding request ends, the prompt under way goes on by itself.
TEST_P(EngineMixed, APromptOutlivesTheRequestsBesideIt) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(GetParam()));
  const Request prompt = MakeRequest(RandomPrompt(900, 2), 5);
  const Completion expected = RunOne(engine, prompt);
  RecordingObserver observer;
  engine.Submit(MakeRequest(RandomPrompt(20, 1), 4));
  engine.Step(&observer);
  const RequestId second = engine.Submit(prompt);
  while (engine.Step(&observer)) {
  }
  EXPECT_EQ(observer.IdsOf(second), expected.output_ids);
  EXPECT_EQ(engine.stats().prompt_tokens, 900 + 20 + 900);
}

INSTANTIATE_TEST_SUITE_P(Stores, EngineMixed,
                         testing::Values("fp16", "pm-kvq", "pm-kvq:policy=oldest-first", "kivi"),
                         [](const auto& store) {
                           std::string name = store.param;
                           std::erase_if(name, [](char c) {
                             return std::isalnum(static_cast<unsigned char>(c)) == 0;
                           });
                           return name;
                         });

TEST(EngineMixedOptions, RefusesSharesOutOfRange) {
  for (const double share : {0.0, -0.5, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    ExpectError<InvalidInput>([&] { OpenEngine(TinyLlama(), nullptr, Options("fp16", share)); },
                              {"prefill_share", "(0, 1]"});
  }
}

// Steps do not get longer with the queue: a walk over 20,000 waiting requests takes milliseconds.
TEST(EngineQueue, ManyWaitingRequestsCostNothing) {
  SpecEngineOptions options = Options("fp16");
  options.max_sequences = 2;
  options.max_len = 8;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  constexpr int kRequests = 20000;
  for (int i = 0; i < kRequests; ++i) {
    Request request = MakeRequest({5, 6}, 1);
    request.session = i % 3 == 0 ? 1 : -1;
    engine.Submit(std::move(request));
  }
  EXPECT_EQ(engine.stats().num_waiting, kRequests);
  int num_finished = 0;
  class Count : public EngineObserver {
   public:
    explicit Count(int* count) : count_(count) {}
    void OnFinished(const Completion&) override { ++*count_; }

   private:
    int* count_;
  } observer(&num_finished);
  const double begin = testing_support::CpuSeconds();
  while (engine.Step(&observer)) {
  }
  [[maybe_unused]] const double seconds = testing_support::CpuSeconds() - begin;
  EXPECT_EQ(num_finished, kRequests);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.num_waiting + stats.num_running, 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(NDEBUG)
  // A step of this model with two requests takes 15 us of processor time.
  EXPECT_LT(seconds / static_cast<double>(stats.num_steps), 200e-6);
#endif
}

}  // namespace
}  // namespace pmkvq
