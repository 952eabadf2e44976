// R2: equal seed and equal history, equal text: a request of a crowded pool is repeated bit for bit
// in another load.
#include <gtest/gtest.h>

#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/engine/engine.h"
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

SpecEngineOptions Options(int64_t pool_bytes, int64_t max_sequences = 8, int floor_bits = 2) {
  SpecEngineOptions options;
  options.kv.spec = "pm-kvq";
  options.kv.pool.bytes = pool_bytes;
  options.kv.pool.floor_bits = floor_bits;
  options.max_sequences = max_sequences;
  options.max_len = 1200;
  options.num_threads = 1;
  options.chunk = 128;
  return options;
}

int64_t BytesOf(int64_t num_tokens, int bits) {
  const CacheConfig config = *CheckKvOptions(*TinyLlama(), Options(1 << 24)).packed();
  return 2 * BlockBytes(config, 0, num_tokens, bits, bits);
}

Request RequestOf(uint64_t seed) {
  Request request = MakeRequest(RandomPrompt(40 + 30 * static_cast<int64_t>(seed % 12), seed),
                                150 + 40 * static_cast<int64_t>(seed % 5), seed);
  request.sampling.temperature = 1;
  return request;
}

struct Told {
  Request request;
  Completion done;
};

// Requests that come one after the other into a pool that is too small for them, some as samples
// of one prompt.
std::vector<Told> RunCrowd(const SpecEngineOptions& options, uint64_t first, int count) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  RecordingObserver run;
  std::map<RequestId, Request> requests;
  for (int i = 0; i < count; ++i) {
    const Request request = RequestOf(first + static_cast<uint64_t>(i));
    const std::vector<uint64_t> seeds = {request.seed, request.seed + 1000};
    const std::vector<RequestId> ids =
        engine.SubmitSamples(request, std::span(seeds).first(i % 4 == 3 ? 2 : 1));
    for (size_t n = 0; n < ids.size(); ++n) {
      requests[ids[n]] = request;
      requests[ids[n]].seed = seeds[n];
    }
    for (int step = 0; step < 40; ++step) engine.Step(&run);
  }
  while (engine.Step(&run)) {
  }
  std::vector<Told> told;
  for (const Completion& done : run.finished) told.push_back({requests[done.id], done});
  return told;
}

// The pool of `repeats` differs; so does what runs there.
void ExpectRepeated(const std::vector<Told>& told, Engine& repeats, uint64_t others_from) {
  for (const Told& one : told) {
    Request again = one.request;
    again.kv_history = one.done.history;
    RecordingObserver run;
    const RequestId id = repeats.Submit(again);
    if (others_from > 0) {
      for (uint64_t i = 0; i < 3; ++i) repeats.Submit(RequestOf(others_from + i));
    }
    while (repeats.Step(&run)) {
    }
    for (const Completion& done : run.finished) {
      if (done.id != id) continue;
      EXPECT_EQ(done.error, "");
      EXPECT_EQ(done.output_ids, one.done.output_ids);
      EXPECT_EQ(done.history, one.done.history);
    }
  }
}

TEST(EngineHistory, RequestsOfACrowdedPoolAreRepeatedOnAnIdleOne) {
  const int64_t pool = 8 * BytesOf(400, 8) * 6 / 10;
  const std::vector<Told> told = RunCrowd(Options(pool), 1, 24);
  int64_t num_halved = 0;
  std::map<std::string, size_t> histories;
  for (const Told& one : told) {
    num_halved += one.done.history.empty() ? 0 : 1;
    EXPECT_EQ(one.done.finish_reason, FinishReason::kLength);
    ++histories[DigestOf(one.done.history)];
  }
  EXPECT_GT(num_halved, 15);
  EXPECT_GT(histories.size(), 10u);
  Engine idle = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  ExpectRepeated(told, idle, 0);
}

// Pages that requests share, as samples or by the prompt that they begin with, are halved for all
// of them at once: it is in the history of each, and each is repeated alone.
TEST(EngineHistory, RequestsThatShareTheirPromptsAreRepeated) {
  SpecEngineOptions options = Options(5 * BytesOf(700, 8) * 6 / 10);
  options.kv.pool.prefix_bytes = options.kv.pool.bytes;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  RecordingObserver run;
  std::map<RequestId, Request> requests;
  for (uint64_t i = 0; i < 12; ++i) {
    std::vector<int32_t> ids = RandomPrompt(400, 1);
    const std::vector<int32_t> more = RandomPrompt(10 + static_cast<int64_t>(7 * i), 100 + i);
    ids.insert(ids.end(), more.begin(), more.end());
    Request request = MakeRequest(std::move(ids), 400 + 20 * static_cast<int64_t>(i % 5), i);
    request.sampling.temperature = 1;
    if (i % 5 == 4) request.kv_min_bits = 4;
    const std::vector<uint64_t> seeds = {i, i + 1000, i + 2000};
    const std::vector<RequestId> sent =
        engine.SubmitSamples(request, std::span(seeds).first(i % 3 == 2 ? 3 : 1));
    for (size_t n = 0; n < sent.size(); ++n) {
      requests[sent[n]] = request;
      requests[sent[n]].seed = seeds[n];
    }
    for (int step = 0; step < 30; ++step) engine.Step(&run);
  }
  while (engine.Step(&run)) {
  }
  const KvPoolStats pool = engine.store().StoreStats().pool;
  EXPECT_GT(pool.prefix_hits, 4);
  EXPECT_EQ(pool.used_bytes, pool.prefix_bytes);
  EXPECT_LE(pool.peak_bytes, pool.bytes);
  int64_t num_behind_wider = 0;  // Requests some of whose pages were halved before older ones.
  std::vector<Told> told;
  for (const Completion& done : run.finished) {
    told.push_back({requests[done.id], done});
    std::map<int64_t, int64_t> num_halved;  // By block: pages of keys from 16 bits.
    bool is_behind_wider = false;
    for (const KvHistoryEvent& event : done.history) {
      if (event.is_resume()) num_halved.clear();
      if (event.is_resume() || event.from_bits != 16 || event.num_k_pages == 0) continue;
      is_behind_wider |= event.first_k_page > num_halved[event.layer];
      num_halved[event.layer] += event.num_k_pages;
    }
    num_behind_wider += is_behind_wider ? 1 : 0;
  }
  ASSERT_EQ(told.size(), 20u);
  EXPECT_GT(num_behind_wider, 0);
  Engine idle = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  ExpectRepeated(told, idle, 0);
}

// The same with random arrivals, samples, floors, priorities and cancels, in pools of random sizes.
TEST(EngineHistory, RandomCrowdsThatShareTheirPromptsAreRepeated) {
  SpecEngineOptions ample = Options(1 << 26);
  ample.pool.priorities = true;
  Engine idle = OpenEngine(TinyLlama(), nullptr, ample);
  int64_t num_resumed = 0;
  int64_t num_repeated = 0;
  for (uint64_t round = 0; round < 4; ++round) {
    Random random(round);
    // Every other pool is one in which requests give up their places.
    const bool is_tight = round % 2 == 1;
    const int64_t pool_bytes = (2 + static_cast<int64_t>(random.Below(3))) * BytesOf(500, 4);
    SpecEngineOptions options = Options(pool_bytes, 8, is_tight ? 8 : 2);
    options.kv.pool.prefix_bytes = options.kv.pool.bytes;
    options.kv.pool.prefix_min_bits = random.Below(2) == 0 ? 4 : 8;
    options.kv.pool.prefix_idle_seconds = random.Below(2) == 0 ? 0 : 10;
    options.pool.target_bits = is_tight ? 16 : 8;
    options.pool.priorities = true;
    options.num_threads = 1 + static_cast<int>(round / 2);
    Engine engine = OpenEngine(TinyLlama(), nullptr, options);
    RecordingObserver run;
    std::map<RequestId, Request> requests;
    for (int step = 0; step < 900; ++step) {
      if (random.Below(20) == 0 && requests.size() < 24) {
        std::vector<int32_t> ids =
            RandomPrompt(100 + 128 * static_cast<int64_t>(random.Below(4)), random.Below(2));
        ids.push_back(static_cast<int32_t>(random.Below(40)));
        Request request =
            MakeRequest(std::move(ids), 100 + static_cast<int64_t>(random.Below(400)), 0);
        request.sampling.temperature = 1;
        request.priority = static_cast<int>(random.Below(3)) * 16;
        if (random.Below(4) == 0) request.kv_min_bits = 8;
        const std::vector<uint64_t> seeds = {random.Below(1000), random.Below(1000),
                                             random.Below(1000)};
        const std::vector<RequestId> sent = engine.SubmitSamples(
            request, std::span(seeds).first(1 + static_cast<size_t>(random.Below(3))));
        for (size_t n = 0; n < sent.size(); ++n) {
          requests[sent[n]] = request;
          requests[sent[n]].seed = seeds[n];
        }
      }
      if (random.Below(100) == 0 && !requests.empty()) {
        engine.Cancel(static_cast<RequestId>(random.Below(requests.size())) + 1, &run);
      }
      engine.Step(&run);
    }
    while (engine.Step(&run)) {
    }
    const KvPoolStats pool = engine.store().StoreStats().pool;
    EXPECT_EQ(pool.used_bytes, pool.prefix_bytes);
    EXPECT_LE(pool.peak_bytes, pool.bytes);
    ASSERT_EQ(run.finished.size(), requests.size());
    std::vector<Told> told;
    for (const Completion& done : run.finished) {
      num_resumed += done.num_preemptions;
      if (done.finish_reason == FinishReason::kLength) told.push_back({requests[done.id], done});
    }
    num_repeated += std::ssize(told);
    ExpectRepeated(told, idle, 0);
  }
  EXPECT_GT(num_resumed, 0);
  EXPECT_GT(num_repeated, 50);
}

// Resumes are part of a history, and what crowds the other pool changes nothing.
TEST(EngineHistory, ResumesAreRepeatedAmongOtherRequests) {
  SpecEngineOptions tight = Options(2 * BytesOf(500, 4), 8, 8);
  tight.pool.target_bits = 16;
  const std::vector<Told> told = RunCrowd(tight, 1, 24);
  int64_t num_resumed = 0;
  for (const Told& one : told) {
    for (const KvHistoryEvent& event : one.done.history) num_resumed += event.is_resume() ? 1 : 0;
  }
  EXPECT_GT(num_resumed, 3);
  SpecEngineOptions options = Options(5 * BytesOf(600, 8), 8, 4);
  options.num_threads = 2;
  options.kv.pool.prefix_bytes = options.kv.pool.bytes;
  Engine crowded = OpenEngine(TinyLlama(), nullptr, options);
  ExpectRepeated(told, crowded, 500);
  EXPECT_GT(crowded.store().StoreStats().pool.narrowed_bytes, 0);
}

// Without its history a request draws something else: the test above can fail.
TEST(EngineHistory, AnotherHistoryIsAnotherText) {
  const std::vector<Told> told = RunCrowd(Options(8 * BytesOf(400, 4) * 6 / 10), 1, 12);
  Engine idle = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  int64_t num_other = 0;
  for (const Told& one : told) {
    Request again = one.request;
    again.kv_history.emplace();
    const Completion done = RunOne(idle, again);
    EXPECT_TRUE(done.history.empty());
    num_other += done.output_ids == one.done.output_ids ? 0 : 1;
  }
  EXPECT_GT(num_other, 3);
}

TEST(EngineHistory, AHistoryThatItCannotHaveEndsTheRequestByName) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(1 << 26));
  const auto error_of = [&](const KvHistory& history) {
    Request request = MakeRequest(RandomPrompt(300, 1), 100, 1);
    request.kv_history = history;
    const Completion done = RunOne(engine, request);
    EXPECT_EQ(done.finish_reason, FinishReason::kError);
    EXPECT_EQ(done.error.rfind("[kv_replay]", 0), 0u) << done.error;
    return done.error;
  };
  EXPECT_NE(error_of({{100, 0, 16, 1, 0}}).find("so many tokens"), std::string::npos);
  EXPECT_NE(error_of({{310, 0, 16, 3, 0}}).find("not so many pages"), std::string::npos);
  EXPECT_NE(error_of({{310, 0, 8, 1, 0}}).find("not so many pages"), std::string::npos);
  Request request = MakeRequest(RandomPrompt(300, 1), 100, 1);
  request.kv_history = KvHistory{{310, 9, 16, 1, 0}};
  ExpectError<InvalidInput>([&] { engine.Submit(request); }, {"kv_replay", "layer: found 9"});
  request.kv_history = KvHistory{};
  const std::vector<uint64_t> seeds = {1, 2};
  ExpectError<InvalidInput>([&] { engine.SubmitSamples(request, seeds); }, {"kv_replay"});
  SpecEngineOptions alone = Options(0);
  alone.kv.spec = "fp16";
  Engine isolated = OpenEngine(TinyLlama(), nullptr, alone);
  ExpectError<InvalidInput>([&] { isolated.Submit(request); }, {"kv_replay", "--kv-mode pool"});
}

// Two that follow wide histories in a pool for one: one of them ends by name, nobody waits for
// ever.
TEST(EngineHistory, WhereThereIsNoRoomForAHistoryItEndsByName) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(BytesOf(700, 16), 8, 4));
  RecordingObserver run;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    Request request = MakeRequest(RandomPrompt(100, seed), 400, seed);
    request.kv_history.emplace();
    engine.Submit(request);
  }
  for (int step = 0; step < 2000 && engine.Step(&run); ++step) {
  }
  ASSERT_EQ(run.finished.size(), 2u);
  int64_t num_whole = 0;
  for (const Completion& done : run.finished) {
    num_whole += done.output_ids.size() == 400 ? 1 : 0;
    if (done.finish_reason == FinishReason::kError) {
      EXPECT_NE(done.error.find("no room"), std::string::npos);
    }
  }
  EXPECT_EQ(num_whole, 1);
}

}  // namespace
}  // namespace pmkvq
