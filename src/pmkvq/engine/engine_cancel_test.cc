// Requests whose Forward is cancelled in the middle: prompts and replays take seconds in a large
// model, and a signal must not wait for them.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

SpecEngineOptions Options(const std::string& spec) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  if (spec == "pm-kvq") options.kv.budget_bytes = 150000;
  options.max_sequences = 3;
  options.max_len = 1200;
  options.num_threads = 2;
  options.chunk = 512;
  return options;
}

class EngineCancel : public testing::TestWithParam<std::string> {};

TEST_P(EngineCancel, PromptsEndInTheMiddleOfTheirForward) {
  const auto model = LoadTinyLlama();
  Engine engine = OpenEngine(model, nullptr, Options(GetParam()));
  Request request = MakeRequest(RandomPrompt(500, 1), 20);
  request.session = 3;
  const Completion expected = RunOne(engine, request);
  engine.CloseSession(3);

  RecordingObserver observer;
  CancelFlag flag = true;
  {
    const CancelScope scope(&flag, "test");
    engine.Submit(request);
    EXPECT_FALSE(engine.Step(&observer));
  }
  ASSERT_EQ(observer.finished.size(), 1u);
  EXPECT_EQ(observer.finished[0].finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(observer.finished[0].output_ids.empty());

  // The session's half-stored prompt is gone, and nothing else is.
  const Completion again = RunOne(engine, request);
  EXPECT_EQ(again.output_ids, expected.output_ids);
  EXPECT_EQ(again.kv.pages, expected.kv.pages);
  EXPECT_EQ(again.kv.peak_bytes, expected.kv.peak_bytes);
}

TEST_P(EngineCancel, ReplaysEndInTheMiddleOfTheirForward) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options(GetParam()));
  const Request request = MakeRequest(RandomPrompt(40, 1), 300);
  const Completion expected = RunOne(engine, request);
  Request replay = request;
  replay.replay_ids.assign(expected.output_ids.begin(), expected.output_ids.begin() + 250);

  RecordingObserver observer;
  engine.Submit(replay);
  engine.Step(&observer);  // The prompt.
  CancelFlag flag = true;
  {
    const CancelScope scope(&flag, "test");
    engine.Step(&observer);
  }
  ASSERT_EQ(observer.finished.size(), 1u);
  EXPECT_EQ(observer.finished[0].finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(RunOne(engine, replay).output_ids, expected.output_ids);
}

// A token's Forward is short and is finished, so that the conversation's cache can be used again.
TEST_P(EngineCancel, DecodingOfATokenIsFinished) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options(GetParam()));
  RecordingObserver observer;
  engine.Submit(MakeRequest(RandomPrompt(40, 1), 20));
  engine.Step(&observer);
  CancelFlag flag = true;
  const CancelScope scope(&flag, "test");
  EXPECT_TRUE(engine.Step(&observer));
  EXPECT_EQ(observer.tokens.size(), 2u);
  EXPECT_TRUE(observer.finished.empty());
}

// The flag is set at some moment of the work, as a signal handler does.
TEST_P(EngineCancel, AtAnyMomentTheEngineStaysUsable) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options(GetParam()));
  const Request request = MakeRequest(RandomPrompt(1000, 1), 20);
  const Completion expected = RunOne(engine, request);
  for (int i = 0; i < 30; ++i) {
    CancelFlag flag = false;
    std::atomic<bool> started = false;
    std::thread signal([&] {
      while (!started) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(500 * i));
      flag = true;
    });
    started = true;
    const Completion cancelled = engine.Generate({request}, nullptr, &flag).front();
    signal.join();
    // What it had is a beginning of the whole answer.
    ASSERT_LE(cancelled.output_ids.size(), expected.output_ids.size());
    EXPECT_TRUE(std::equal(cancelled.output_ids.begin(), cancelled.output_ids.end(),
                           expected.output_ids.begin()));
  }
  EXPECT_EQ(RunOne(engine, request).output_ids, expected.output_ids);
}

INSTANTIATE_TEST_SUITE_P(Stores, EngineCancel, testing::Values("fp16", "pm-kvq", "kivi"),
                         [](const auto& store) {
                           return store.param == "pm-kvq" ? std::string("packed")
                                                          : std::string(store.param);
                         });

}  // namespace
}  // namespace pmkvq
