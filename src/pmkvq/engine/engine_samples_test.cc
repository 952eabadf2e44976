// Several samples of one prompt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/engine/forced_output.h"
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

constexpr int64_t kPrompt = 500;

SpecEngineOptions Options(const std::string& spec, int64_t max_sequences) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  if (spec.starts_with("pm-kvq")) options.kv.budget_bytes = 150000;
  options.max_sequences = max_sequences;
  options.max_len = 1000;
  options.num_threads = 2;
  options.chunk = 200;
  return options;
}

Request Sampled() {
  Request request = MakeRequest(RandomPrompt(kPrompt, 1), 200);
  request.sampling.temperature = 1;
  return request;
}

class EngineSamples : public testing::TestWithParam<std::string> {};

TEST_P(EngineSamples, HaveTheBitsOfRequestsAlone) {
  const std::vector<uint64_t> seeds = {3, 1, 4, 1, 5};
  const auto model = LoadTinyLlama();
  std::vector<Completion> expected;
  Engine alone = OpenEngine(model, nullptr, Options(GetParam(), 1));
  for (const uint64_t seed : seeds) {
    Request request = Sampled();
    request.seed = seed;
    expected.push_back(RunOne(alone, request));
  }
  ASSERT_NE(expected[0].output_ids, expected[1].output_ids);
  for (const int64_t max_sequences : {1, 3, 6}) {
    Engine engine = OpenEngine(model, nullptr, Options(GetParam(), max_sequences));
    const RequestId other = engine.Submit(MakeRequest(RandomPrompt(20, 7), 30));
    const std::vector<RequestId> ids = engine.SubmitSamples(Sampled(), seeds);
    RecordingObserver observer;
    while (engine.Step(&observer)) {
    }
    ASSERT_EQ(observer.finished.size(), seeds.size() + 1);
    for (const Completion& done : observer.finished) {
      if (done.id == other) continue;
      const auto i = static_cast<size_t>(std::find(ids.begin(), ids.end(), done.id) - ids.begin());
      EXPECT_EQ(done.output_ids, expected[i].output_ids) << i << " of " << max_sequences;
      EXPECT_EQ(observer.IdsOf(done.id), expected[i].output_ids);
      EXPECT_EQ(done.kv.pages, expected[i].kv.pages);
      EXPECT_EQ(done.kv.peak_bytes, expected[i].kv.peak_bytes);
    }
    if (max_sequences == 6 && GetParam() != "kivi") {
      EXPECT_EQ(engine.stats().prompt_tokens, kPrompt + 20) << "computed once";
    }
  }
}

// Whoever computes the prompt is cancelled: another sample takes over.
TEST_P(EngineSamples, OutliveTheOneThatComputesThePrompt) {
  const auto model = LoadTinyLlama();
  Engine engine = OpenEngine(model, nullptr, Options(GetParam(), 3));
  Request alone = Sampled();
  alone.seed = 2;
  const Completion expected = RunOne(engine, alone);
  const std::vector<uint64_t> seeds = {1, 2, 3};
  for (int steps = 0; steps < 4; ++steps) {
    const std::vector<RequestId> ids = engine.SubmitSamples(Sampled(), seeds);
    RecordingObserver observer;
    for (int i = 0; i < steps; ++i) engine.Step(&observer);
    EXPECT_TRUE(engine.Cancel(ids[0], &observer));
    while (engine.Step(&observer)) {
    }
    EXPECT_EQ(observer.IdsOf(ids[1]), expected.output_ids) << steps;
    EXPECT_EQ(observer.finished.size(), 3u);
  }
}

// Continuations to compare: each goes its own way, and has what it has alone.
TEST_P(EngineSamples, MayDifferInAllButThePrompt) {
  const auto model = LoadTinyLlama();
  const int64_t vocab_size = model->config().vocab_size;
  std::vector<Request> requests;
  for (const int64_t count : {1, 90, 40}) {
    requests.push_back(MakeForcedRequest(
        RandomPrompt(kPrompt, 1), RandomPrompt(count, static_cast<uint64_t>(count)), vocab_size));
  }
  Engine alone = OpenEngine(model, nullptr, Options(GetParam(), 1));
  Engine engine = OpenEngine(model, nullptr, Options(GetParam(), 3));
  const std::vector<RequestId> ids = engine.SubmitSamples(requests);
  RecordingObserver observer;
  while (engine.Step(&observer)) {
  }
  ASSERT_EQ(observer.finished.size(), requests.size());
  for (const Completion& done : observer.finished) {
    const auto i = static_cast<size_t>(std::find(ids.begin(), ids.end(), done.id) - ids.begin());
    const Completion expected = RunOne(alone, requests.at(i));
    EXPECT_EQ(done.output_ids, expected.output_ids) << i;
    ASSERT_EQ(done.logprobs.size(), expected.logprobs.size()) << i;
    for (size_t token = 0; token < done.logprobs.size(); ++token) {
      EXPECT_EQ(done.logprobs[token].drawn.logprob, expected.logprobs[token].drawn.logprob)
          << i << ", token " << token;
    }
    EXPECT_EQ(done.kv.pages, expected.kv.pages) << i;
  }
  if (GetParam() != "kivi") {
    EXPECT_EQ(engine.stats().prompt_tokens, kPrompt) << "computed once";
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, EngineSamples,
                         testing::Values("fp16", "static-4", "pm-kvq", "pm-kvq:policy=oldest-first",
                                         "kivi"),
                         [](const auto& store) {
                           std::string name = store.param;
                           std::erase_if(name, [](char c) {
                             return std::isalnum(static_cast<unsigned char>(c)) == 0;
                           });
                           return name;
                         });

TEST(EngineSamplesErrors, NoSessionsAndNoReplay) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Options("fp16", 2));
  const std::vector<uint64_t> seeds = {1, 2};
  Request request = Sampled();
  request.session = 1;
  ExpectError<InvalidInput>([&] { engine.SubmitSamples(request, seeds); }, {"session"});
  request = Sampled();
  request.replay_ids = {5};
  ExpectError<InvalidInput>([&] { engine.SubmitSamples(request, seeds); }, {"replay_ids"});
  request = Sampled();
  request.prompt_ids.back() ^= 1;
  ExpectError<InvalidInput>([&] { engine.SubmitSamples({Sampled(), request}); }, {"prompt_ids"});
  request = Sampled();
  request.num_prompt_logprobs = 1;
  ExpectError<InvalidInput>(
      [&] {
        engine.SubmitSamples({Sampled(), request});
      },
      {"num_prompt_logprobs"});
  EXPECT_FALSE(engine.Step(nullptr)) << "nothing was queued";
}

}  // namespace
}  // namespace pmkvq
