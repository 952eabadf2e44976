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

// R1: 64 requests in any order, beside each other, have the texts that they have where nothing is
// kept.
TEST(EnginePrefix, TextsAreThoseWithoutItInAnyOrder) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 64; ++i) {
    requests.push_back(
        RequestOf(100 * static_cast<int64_t>(i % 4), static_cast<int64_t>(i % 9) * 20 + 1, i, 20));
  }
  const auto texts_of = [&](bool keeps, uint64_t order_seed, int64_t* num_cached) {
    std::vector<size_t> order(requests.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    Random random(order_seed);
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<size_t>(random.Below(i))]);
    }
    Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26, keeps));
    RecordingObserver run;
    std::map<RequestId, size_t> indices;
    for (const size_t index : order) indices[engine.Submit(requests[index])] = index;
    while (engine.Step(&run)) {
    }
    std::vector<std::vector<int32_t>> texts(requests.size());
    for (const Completion& done : run.finished) {
      EXPECT_TRUE(done.history.empty());
      *num_cached += done.num_cached_tokens;
      texts[indices[done.id]] = done.output_ids;
    }
    return texts;
  };
  int64_t num_cached = 0;
  const auto expected = texts_of(false, 1, &num_cached);
  EXPECT_EQ(num_cached, 0);
  for (uint64_t order = 1; order <= 3; ++order) {
    EXPECT_EQ(texts_of(true, order, &num_cached), expected) << "order " << order;
  }
  EXPECT_GT(num_cached, 3000);
}

// A pool whose kept prompts may be halved as soon as they are not used, and a long prompt of which
// some pages were.
struct HalvedPrompt {
  explicit HalvedPrompt(int min_bits)
      : engine([&] {
          SpecEngineOptions options = Options(FullBytes(8000));
          // Room for all of them at 16 bits: eight chunks, each but the first in two pages.
          options.kv.pool.prefix_bytes = FullBytes(15 * kPageTokens + 1);
          options.kv.pool.prefix_idle_seconds = 0;
          options.kv.pool.prefix_min_bits = min_bits;
          return OpenEngine(TinyLlama(), nullptr, options);
        }()) {
    RunOne(engine, request);
    EXPECT_EQ(PoolOf(engine).prefix_tokens, kCached);
    // Another prompt, which is kept as well.
    EXPECT_TRUE(RunOne(engine, RequestOf(0, kChunk + 1, 50)).history.empty());
    EXPECT_EQ(PoolOf(engine).narrowed_bytes > 0, min_bits < 16);
  }
  static int64_t FullBytes(int64_t num_tokens) {
    const CacheConfig config = *CheckKvOptions(*TinyLlama(), Options(1 << 24)).packed();
    return 2 * BlockBytes(config, 0, num_tokens, 16, 16);
  }
  static constexpr int64_t kCached = 1024;
  Request request = RequestOf(1100, 30, 1, 60);
  Engine engine;
};

// R2: a history counts the pages that were taken over at less than 16 bits.
TEST(EnginePrefix, WhatHalvedPagesAnsweredIsRepeatedBitForBit) {
  HalvedPrompt pool(8);
  int64_t num_other = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Request request = pool.request;
    request.seed = seed;
    const Completion done = RunOne(pool.engine, request);
    EXPECT_EQ(done.num_cached_tokens, HalvedPrompt::kCached);
    EXPECT_GT(done.kv.pages[WidthIndex(8)], 0);
    ASSERT_FALSE(done.history.empty());
    EXPECT_EQ(done.history.front().num_tokens, HalvedPrompt::kCached);
    num_other += done.output_ids == IdsAlone(request) ? 0 : 1;
    Engine idle = OpenEngine(TinyLlama(), nullptr, Options(1 << 26, false));
    request.kv_history = done.history;
    const Completion again = RunOne(idle, request);
    EXPECT_EQ(again.error, "");
    EXPECT_EQ(again.num_cached_tokens, 0);
    EXPECT_EQ(again.output_ids, done.output_ids);
    EXPECT_EQ(again.history, done.history);
  }
  EXPECT_GT(num_other, 0) << "halved pages change answers";
}

TEST(EnginePrefix, SamplesThatShareHalvedPagesAreRepeatedOneByOne) {
  HalvedPrompt pool(8);
  const std::vector<uint64_t> seeds = {5, 6};
  for (const Completion& done :
       pool.engine.GenerateSamples(pool.request, seeds, nullptr, nullptr)) {
    ASSERT_FALSE(done.history.empty());
    Request request = pool.request;
    request.kv_history = done.history;
    bool is_repeated = false;
    for (const uint64_t seed : seeds) {
      request.seed = seed;
      Engine idle = OpenEngine(TinyLlama(), nullptr, Options(1 << 26, false));
      is_repeated |= RunOne(idle, request).output_ids == done.output_ids;
    }
    EXPECT_TRUE(is_repeated);
  }
}

// A request that wants more bits computes its prompt, has its own text, and is what is kept then.
TEST(EnginePrefix, HalvedPagesAreNotTakenByARequestThatWantsMoreBits) {
  HalvedPrompt pool(8);
  Request request = pool.request;
  request.kv_min_bits = 16;
  for (const int64_t cached : {int64_t{0}, HalvedPrompt::kCached}) {
    const Completion done = RunOne(pool.engine, request);
    EXPECT_EQ(done.num_cached_tokens, cached);
    EXPECT_TRUE(done.history.empty());
    EXPECT_EQ(done.output_ids, IdsAlone(pool.request));
  }
}

TEST(EnginePrefix, NothingKeptIsHalvedWhere16BitsAreAsked) {
  HalvedPrompt pool(16);
  const Completion done = RunOne(pool.engine, pool.request);
  EXPECT_LT(done.num_cached_tokens, HalvedPrompt::kCached) << "the last chunk was dropped";
  EXPECT_GT(done.num_cached_tokens, 0);
  EXPECT_TRUE(done.history.empty());
  EXPECT_EQ(done.output_ids, IdsAlone(pool.request));
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
    SpecEngineOptions options =
        Options((int64_t{2} + 2 * static_cast<int64_t>(round)) << 17, keeps);
    if (round % 2 == 1) options.kv.pool.prefix_idle_seconds = 0;
    Engine engine = OpenEngine(TinyLlama(), nullptr, options);
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
