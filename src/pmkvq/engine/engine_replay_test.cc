// Request::replay_ids: what an interrupted run drew, taken over without a change of a bit.
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

std::shared_ptr<const Model> SharedTinyLlama() {
  static const std::shared_ptr<const Model> model = LoadTinyLlama();
  return model;
}

SpecEngineOptions Options(const std::string& spec, PolicyKind policy = PolicyKind::kLayerBudget) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.kv.policy = policy;
  if (spec == "pm-kvq") options.kv.budget_bytes = 60000;
  options.max_sequences = 3;
  options.max_len = 1200;
  options.num_threads = 1;
  options.chunk = 64;
  return options;
}

Request Replayed(const Request& request, const Completion& whole, size_t count) {
  Request again = request;
  again.replay_ids.assign(whole.output_ids.begin(),
                          whole.output_ids.begin() + static_cast<std::ptrdiff_t>(count));
  return again;
}

void ExpectSame(const Completion& found, const Completion& expected) {
  EXPECT_EQ(found.output_ids, expected.output_ids);
  EXPECT_EQ(found.text, expected.text);
  EXPECT_EQ(found.finish_reason, expected.finish_reason);
  EXPECT_EQ(found.kv.num_tokens, expected.kv.num_tokens);
  EXPECT_EQ(found.kv.pages, expected.kv.pages);
  EXPECT_EQ(found.kv.peak_bytes, expected.kv.peak_bytes);
}

class EngineReplay : public ::testing::TestWithParam<SpecEngineOptions> {};

// Three sampled requests, cut at different lengths and continued together.
TEST_P(EngineReplay, EqualsTheUninterruptedRun) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 3; ++i) {
    requests.push_back(MakeRequest(RandomPrompt(40 + 50 * static_cast<int64_t>(i), i), 400, i));
    requests.back().sampling.temperature = 0.8;
  }
  requests[1].max_tokens = 150;
  Engine whole = OpenEngine(SharedTinyLlama(), ByteTokenizer(), GetParam());
  RecordingObserver expected_events;
  const std::vector<Completion> expected = whole.Generate(requests, &expected_events, nullptr);
  for (const std::vector<size_t>& cuts :
       {std::vector<size_t>{1, 2, 3}, {399, 100, 250}, {129, 149, 0}, {300, 150, 128}}) {
    std::vector<Request> again;
    for (size_t i = 0; i < 3; ++i) again.push_back(Replayed(requests[i], expected[i], cuts[i]));
    Engine engine = OpenEngine(SharedTinyLlama(), ByteTokenizer(), GetParam());
    RecordingObserver observer;
    const std::vector<Completion> found = engine.Generate(again, &observer, nullptr);
    for (size_t i = 0; i < 3; ++i) {
      SCOPED_TRACE(i);
      ExpectSame(found[i], expected[i]);
      EXPECT_EQ(observer.IdsOf(found[i].id).size(), found[i].output_ids.size() - cuts[i])
          << "only what was drawn anew is reported";
    }
    EXPECT_EQ(observer.halvings.size(), expected_events.halvings.size());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Caches, EngineReplay,
    ::testing::Values(Options("fp16"), Options("static-2"), Options("pm-kvq"),
                      Options("pm-kvq", PolicyKind::kOldestFirst), Options("kivi"),
                      Options("rtn:bits=3"), Options("rotatekv")),
    [](const auto& one) {
      std::string name;
      for (const char c : one.param.kv.spec) {
        name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
      }
      return name + (one.param.kv.policy == PolicyKind::kOldestFirst ? "_oldest_first" : "");
    });

// Known tokens take a fraction of the Forwards that drawing them takes.
TEST(EngineReplaySteps, ManyTokensAreOneStep) {
  SpecEngineOptions options = Options("pm-kvq");
  options.chunk = 512;
  const Request request = MakeRequest(RandomPrompt(40, 1), 400);
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  const Completion whole = RunOne(engine, request);
  ASSERT_EQ(whole.output_ids.size(), 400u);
  engine.Submit(Replayed(request, whole, 399));
  RecordingObserver observer;
  int64_t num_steps = 0;
  while (engine.Step(&observer)) ++num_steps;
  EXPECT_LT(num_steps, 12);
  ExpectSame(observer.finished.at(0), whole);
}

TEST(EngineReplaySteps, EndsWhereTheReplayedTokensEnd) {
  Engine engine = OpenEngine(SharedTinyLlama(), ByteTokenizer(), Options("fp16"));
  Request request = MakeRequest(RandomPrompt(20, 5), 60);
  request.sampling.temperature = 1.0;
  const Completion whole = RunOne(engine, request);
  // All of its tokens, and some too many.
  Request again = Replayed(request, whole, 60);
  again.replay_ids.push_back(7);
  RecordingObserver observer;
  ExpectSame(RunOne(engine, again, &observer), whole);
  EXPECT_TRUE(observer.tokens.empty());
  // A stop string inside what is replayed.
  again.stop = {whole.text.substr(20, 6)};
  const Completion stopped = RunOne(engine, again);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.text, whole.text.substr(0, 20));
  again.stop.clear();
  again.replay_ids = {1, 256};
  ExpectError<InvalidInput>([&] { engine.Submit(again); }, {"replay_ids", "256"});
}

}  // namespace
}  // namespace pmkvq
