#include "pmkvq/research/eval/replicas.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

TEST(Replicas, AreChosenByCacheThreadsAndBatch) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 64), 16);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 16), 4);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 2, 64), 2);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 3), 1);
  EXPECT_EQ(ChooseReplicas(33 * kMiB, 32 * kMiB, 16, 64), 1) << "weights come from memory";
}

TEST(Replicas, SharesAreEqualUpToOne) {
  const std::vector<EngineShare> shares = ShareOut(3, 8, 10);
  ASSERT_EQ(shares.size(), 3u);
  EXPECT_EQ(shares[0].num_threads, 3);
  EXPECT_EQ(shares[1].num_threads, 3);
  EXPECT_EQ(shares[2].num_threads, 2);
  EXPECT_EQ(shares[0].max_sequences, 4);
  EXPECT_EQ(shares[1].max_sequences, 3);
  EXPECT_EQ(shares[2].max_sequences, 3);
  EXPECT_EQ(ShareOut(4, 2, 4).back().num_threads, 1) << "never none";
  ExpectError<InvalidInput>([] { ShareOut(5, 8, 4); }, {"--replicas", "found 5", "4"});
}

// Samples have the bits of requests alone, however many engines and places there are, and those
// that begin together compute their prompt once.
TEST(Replicas, SamplesOfOnePromptComputeItOnce) {
  constexpr int64_t kPrompt = 60;
  const auto model = testing_support::LoadTinyLlama();
  const auto open = [&](const EngineShare& share) {
    SpecEngineOptions options;
    options.kv.spec = "static-4";
    options.max_sequences = share.max_sequences;
    options.max_len = 400;
    options.num_threads = share.num_threads;
    return OpenEngine(model, nullptr, options);
  };
  std::vector<PromptSamples> prompts;
  for (uint64_t p = 0; p < 3; ++p) {
    Request request = testing_support::MakeRequest(testing_support::RandomPrompt(kPrompt, p), 150);
    request.sampling.temperature = 1;
    prompts.push_back({request, {10 * p, 10 * p + 1, 10 * p + 2, 10 * p + 3}});
  }
  std::vector<std::vector<int32_t>> expected;
  Engine alone = open({1, 1});
  for (const PromptSamples& prompt : prompts) {
    for (const uint64_t seed : prompt.seeds) {
      Request request = prompt.request;
      request.seed = seed;
      expected.push_back(testing_support::RunOne(alone, request).output_ids);
    }
  }
  // The first of them goes on from tokens of an earlier run, alone: it can share nothing.
  std::vector<PromptSamples> resumed = prompts;
  resumed[0].seeds.erase(resumed[0].seeds.begin());
  resumed.insert(resumed.begin(), {prompts[0].request, {0}});
  resumed[0].request.replay_ids = {expected[0].begin(), expected[0].begin() + 20};

  for (const int64_t count : {1, 2}) {
    for (const int64_t places : {4, 6, 12}) {
      for (const bool goes_on : {false, true}) {
        SCOPED_TRACE(testing::Message() << count << " engines, " << places << " places, "
                                        << (goes_on ? "resumed" : "whole"));
        std::vector<Replica> replicas;
        for (const EngineShare& share : ShareOut(count, 2, places)) {
          replicas.push_back({open(share), share});
        }
        testing_support::RecordingObserver observer;
        std::mutex mutex;
        RunReplicas(
            replicas, goes_on ? resumed : prompts, observer, mutex, [] {}, nullptr);
        ASSERT_EQ(observer.finished.size(), expected.size());
        for (const Completion& done : observer.finished) {
          EXPECT_EQ(done.output_ids, expected[static_cast<size_t>(done.id)]) << done.id;
        }
        if (count == 1 && places == 12) {
          EXPECT_EQ(replicas[0].engine.stats().prompt_tokens, (goes_on ? 4 : 3) * kPrompt);
        }
      }
    }
  }
}

// Of requests that an interrupt ends, some may have ended by themselves; what an observer does with
// their completions (an evaluation grades them) has CancelPoints, and is no error.
TEST(Replicas, CompletionsBehindAnInterruptAreTaken) {
  struct Interrupting : EngineObserver {
    CancelFlag cancel{false};
    std::set<RequestId> begun;
    std::set<RequestId> finished;
    void OnToken(RequestId id, int32_t, const std::string&) override { begun.insert(id); }
    void OnFinished(const Completion& completion) override {
      cancel = true;
      CancelPoint();
      finished.insert(completion.id);
    }
  };
  const auto model = testing_support::LoadTinyLlama();
  std::vector<Replica> replicas;
  std::vector<PromptSamples> prompts;
  for (const EngineShare& share : ShareOut(3, 3, 6)) {
    SpecEngineOptions options;
    options.kv.spec = "fp16";
    options.max_sequences = share.max_sequences;
    options.max_len = 400;
    replicas.push_back({OpenEngine(model, nullptr, options), share});
    for (const int64_t num_tokens : {20, 300}) {
      const uint64_t seed = prompts.size();
      prompts.push_back(
          {testing_support::MakeRequest(testing_support::RandomPrompt(5, seed), num_tokens),
           {seed}});
    }
  }
  Interrupting observer;
  std::mutex mutex;
  RunReplicas(
      replicas, prompts, observer, mutex, [] {}, &observer.cancel);
  EXPECT_FALSE(observer.begun.empty());
  EXPECT_TRUE(std::includes(observer.finished.begin(), observer.finished.end(),
                            observer.begun.begin(), observer.begun.end()));
}

}  // namespace
}  // namespace pmkvq
