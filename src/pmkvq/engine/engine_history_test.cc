// R2: equal seed and equal history, equal text: a request of a crowded pool is repeated bit for bit
// in another load.
#include <gtest/gtest.h>

#include <map>

#include "pmkvq/base/error.h"
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
