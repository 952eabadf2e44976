// Prompts that a pool keeps: requests have the bits that they have without.
#include <gtest/gtest.h>

#include <map>

#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;
using testing_support::TinyLlama;

constexpr int64_t kChunk = 128;

SpecEngineOptions Options(int64_t pool_bytes, bool keeps = true) {
  SpecEngineOptions options;
  options.kv.spec = "pm-kvq";
  options.kv.pool.bytes = pool_bytes;
  options.kv.pool.prefix_bytes = keeps ? pool_bytes : 0;
  options.max_sequences = 8;
  options.max_len = 1200;
  options.num_threads = 1;
  options.chunk = kChunk;
  return options;
}

// A prompt that begins with the first tokens of a common one.
Request RequestOf(int64_t common, int64_t rest, uint64_t seed, int64_t tokens = 40) {
  std::vector<int32_t> ids = RandomPrompt(common, 1);
  const std::vector<int32_t> more = RandomPrompt(rest, 100 + seed);
  ids.insert(ids.end(), more.begin(), more.end());
  Request request = MakeRequest(std::move(ids), tokens, seed);
  request.sampling.temperature = 1;
  return request;
}

std::vector<int32_t> IdsAlone(const Request& request) {
  SpecEngineOptions options = Options(0, false);
  options.kv.spec = "fp16";
  options.max_sequences = 1;
  Engine alone = OpenEngine(TinyLlama(), nullptr, options);
  return RunOne(alone, request).output_ids;
}

KvPoolStats PoolOf(const Engine& engine) { return engine.store().StoreStats().pool; }

TEST(EnginePrefix, APromptThatBeginsAlikeComputesTheRestAndHasTheSameText) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  int64_t computed = 0;
  const std::vector<std::pair<Request, int64_t>> cases = {
      {RequestOf(400, 30, 1), 0},
      {RequestOf(400, 30, 1), 384},  // 430 tokens: three whole chunks.
      {RequestOf(400, 50, 2), 384},  // Other tokens behind 400.
      {RequestOf(300, 10, 3), 256},
      {RequestOf(384, 0, 4), 256},  // The last token is computed in any case.
      {RequestOf(0, 400, 5), 0},
  };
  for (const auto& [request, cached] : cases) {
    const Completion done = RunOne(engine, request);
    EXPECT_EQ(done.num_cached_tokens, cached);
    EXPECT_EQ(done.output_ids, IdsAlone(request));
    computed += std::ssize(request.prompt_ids) - cached;
    EXPECT_EQ(engine.stats().prompt_tokens, computed);
  }
  EXPECT_EQ(PoolOf(engine).prefix_hits, 4);
  EXPECT_EQ(PoolOf(engine).prefix_hit_tokens, 384 + 384 + 256 + 256);
}

TEST(EnginePrefix, WhoComesWhileAPromptIsComputedSharesItsFirstChunks) {
  SpecEngineOptions options = Options(1 << 26);
  options.prefill_share = 1;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  RecordingObserver run;
  std::map<RequestId, Request> requests;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const Request request = RequestOf(400, 20, seed);
    requests[engine.Submit(request)] = request;
  }
  while (engine.Step(&run)) {
  }
  int64_t cached = 0;
  for (const Completion& done : run.finished) {
    EXPECT_EQ(done.output_ids, IdsAlone(requests[done.id]));
    cached += done.num_cached_tokens;
  }
  EXPECT_EQ(cached, 5 * 384);
}

TEST(EnginePrefix, SaltsDoNotSeeEachOther) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  Request request = RequestOf(400, 0, 1);
  request.prefix_salt = "a";
  EXPECT_EQ(RunOne(engine, request).num_cached_tokens, 0);
  request.prefix_salt = "b";
  EXPECT_EQ(RunOne(engine, request).num_cached_tokens, 0);
  request.prefix_salt = "a";
  EXPECT_EQ(RunOne(engine, request).num_cached_tokens, 384);
}

TEST(EnginePrefix, LogprobsOfPromptsAreComputed) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  Request request = RequestOf(400, 0, 1);
  const Completion plain = RunOne(engine, request);
  request.num_prompt_logprobs = 0;
  const Completion done = RunOne(engine, request);
  EXPECT_EQ(done.num_cached_tokens, 0);
  EXPECT_EQ(done.prompt_logprobs.size(), 399u);
  EXPECT_EQ(done.output_ids, plain.output_ids);
}

TEST(EnginePrefix, SamplesOfOnePromptTakeItOnce) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  const Request request = RequestOf(400, 10, 1);
  RunOne(engine, request);
  const std::vector<uint64_t> seeds = {1, 2, 3};
  for (const Completion& done : engine.GenerateSamples(request, seeds, nullptr, nullptr)) {
    Request alone = request;
    alone.seed = seeds[static_cast<size_t>(done.id - 2)];
    EXPECT_EQ(done.output_ids, IdsAlone(alone));
  }
  EXPECT_EQ(PoolOf(engine).prefix_hits, 1);
}

// Random arrivals, samples, cancels, in a pool of any size: what was neither halved nor resumed has
// the text that it has alone, in a pool that keeps prompts as in one that does not.
TEST(EnginePrefix, RandomArrivalsForksAndCancelsKeepTheirBits) {
  std::map<uint64_t, std::vector<int32_t>> alone;
  const auto request_of = [](uint64_t kind) {
    return RequestOf(static_cast<int64_t>(100 * (kind % 5)),
                     static_cast<int64_t>(kind % 7) * 30 + 1, kind, 60);
  };
  for (uint64_t kind = 0; kind < 12; ++kind) alone[kind] = IdsAlone(request_of(kind));
  int64_t num_cached = 0;
  int64_t num_compared = 0;
  for (uint64_t round = 0; round < 12; ++round) {
    Random random(round);
    const bool keeps = round % 4 != 0;
    Engine engine = OpenEngine(
        TinyLlama(), nullptr, Options((int64_t{2} + 2 * static_cast<int64_t>(round)) << 17, keeps));
    RecordingObserver run;
    std::map<RequestId, uint64_t> kinds;
    for (int step = 0; step < 400; ++step) {
      if (random.Below(5) == 0 && kinds.size() < 30) {
        const uint64_t kind = random.Below(12);
        if (random.Below(4) == 0) {
          const std::vector<uint64_t> seeds = {kind, kind};
          for (const RequestId id : engine.SubmitSamples(request_of(kind), seeds)) kinds[id] = kind;
        } else {
          kinds[engine.Submit(request_of(kind))] = kind;
        }
      }
      if (random.Below(40) == 0 && !kinds.empty()) {
        engine.Cancel(static_cast<RequestId>(random.Below(kinds.size())) + 1, &run);
      }
      engine.Step(&run);
      ASSERT_LE(PoolOf(engine).peak_bytes, PoolOf(engine).bytes);
    }
    while (engine.Step(&run)) {
    }
    EXPECT_EQ(PoolOf(engine).used_bytes, PoolOf(engine).prefix_bytes);
    ASSERT_EQ(run.finished.size(), kinds.size());
    for (const Completion& done : run.finished) {
      EXPECT_TRUE(keeps || done.num_cached_tokens == 0);
      num_cached += done.num_cached_tokens;
      const bool was_halved = done.kv.pages[1] + done.kv.pages[2] + done.kv.pages[3] > 0;
      if (was_halved || done.num_preemptions > 0 || done.finish_reason != FinishReason::kLength) {
        continue;
      }
      EXPECT_EQ(done.output_ids, alone[kinds[done.id]]);
      ++num_compared;
    }
  }
  EXPECT_GT(num_cached, 2000);
  EXPECT_GT(num_compared, 100);
}

}  // namespace
}  // namespace pmkvq
