// Requests that share a pool: nothing is lost, whatever the pool's size.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/admission.h"
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

constexpr int64_t kMaxLen = 1200;

SpecEngineOptions Options(int64_t pool_bytes, int64_t max_sequences = 16,
                          const std::string& spec = "pm-kvq") {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.kv.pool.bytes = pool_bytes;
  options.max_sequences = max_sequences;
  options.max_len = kMaxLen;
  options.num_threads = 1;
  options.chunk = 128;
  return options;
}

// Bytes of one request with so many tokens, closed pages at this width.
int64_t BytesOf(int64_t num_tokens, int bits) {
  SpecEngineOptions options = Options(1 << 24);
  const CacheConfig config = *CheckKvOptions(*TinyLlama(), options).packed();
  int64_t bytes = 0;
  for (size_t layer = 0; layer < 2; ++layer) {
    bytes += BlockBytes(config, layer, num_tokens, bits, bits);
  }
  return bytes;
}

// Also looks at the pool in each step.
class PoolRun : public RecordingObserver {
 public:
  explicit PoolRun(Engine& engine) : engine_(engine) {}

  void OnPreempted(RequestId id, int64_t num_tokens) override {
    preempted.emplace_back(id, num_tokens);
    drawn_before[id] = IdsOf(id).size();
  }

  // To the end of all requests. False: it took more steps than that.
  bool ToEnd(int64_t most_steps) {
    for (int64_t step = 0; step < most_steps; ++step) {
      const bool goes_on = engine_.Step(this);
      const KvPoolStats pool = engine_.store().StoreStats().pool;
      EXPECT_LE(pool.peak_bytes, pool.bytes);
      most_running = std::max(most_running, engine_.stats().num_running);
      if (!goes_on) {
        EXPECT_EQ(pool.used_bytes, pool.prefix_bytes);
        return true;
      }
    }
    return false;
  }

  const Completion& Of(RequestId id) const {
    return *std::find_if(finished.begin(), finished.end(),
                         [&](const Completion& completion) { return completion.id == id; });
  }

  std::vector<std::pair<RequestId, int64_t>> preempted;
  std::map<RequestId, size_t> drawn_before;  // Tokens drawn before the last preemption.
  int64_t most_running = 0;

 private:
  Engine& engine_;
};

std::vector<Request> Requests(int64_t count, int64_t prompt, int64_t tokens,
                              double temperature = 1) {
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; ++i) {
    const auto seed = static_cast<uint64_t>(i);
    requests.push_back(MakeRequest(RandomPrompt(prompt + i, seed), tokens, seed));
    requests.back().sampling.temperature = temperature;
  }
  return requests;
}

// R1: while nothing is halved and nobody gives up a place, a request has the text that it has
// alone, in whatever order requests come.
TEST(EnginePool, InAnAmplePoolEachHasTheTextThatItHasAlone) {
  std::vector<Request> requests = Requests(12, 50, 150);
  SpecEngineOptions alone_options = Options(0, 1, "fp16");
  Engine alone = OpenEngine(TinyLlama(), nullptr, alone_options);
  std::vector<std::vector<int32_t>> expected;
  for (const Request& request : requests) expected.push_back(RunOne(alone, request).output_ids);
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  Random random(1);
  for (int round = 0; round < 3; ++round) {
    for (const int num_threads : {1, 2}) {
      SpecEngineOptions options = Options(1 << 26);
      options.num_threads = num_threads;
      Engine engine = OpenEngine(TinyLlama(), nullptr, options);
      PoolRun run(engine);
      std::map<RequestId, size_t> submitted;
      for (const size_t i : order) submitted[engine.Submit(requests[i])] = i;
      ASSERT_TRUE(run.ToEnd(5000));
      for (const auto& [id, i] : submitted) EXPECT_EQ(run.Of(id).output_ids, expected[i]);
      EXPECT_TRUE(run.halvings.empty());
      EXPECT_TRUE(run.preempted.empty());
    }
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);
  }
}

// As "pressure" of the long test: 40 % of what they need at 16 bits.
TEST(EnginePool, UnderPressureWidthsGiveWayAndNobodyLosesItsPlace) {
  const int64_t pool = 16 * BytesOf(700, 16) * 4 / 10;
  SpecEngineOptions options = Options(pool);
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  PoolRun run(engine);
  for (const Request& request : Requests(48, 60, 600)) engine.Submit(request);
  ASSERT_TRUE(run.ToEnd(20000));
  ASSERT_EQ(run.finished.size(), 48u);
  for (const Completion& completion : run.finished) {
    EXPECT_EQ(completion.finish_reason, FinishReason::kLength);
    EXPECT_EQ(completion.output_ids.size(), 600u);
    EXPECT_EQ(completion.num_preemptions, 0);
  }
  EXPECT_TRUE(run.preempted.empty());
  EXPECT_FALSE(run.halvings.empty());
  EXPECT_GT(run.most_running, 6) << "more than fit at 16 bits";
  EXPECT_EQ(engine.stats().num_preemptions, 0);
}

// The same requests, the same order: widths depend on nothing else.
TEST(EnginePool, TheSameRunTwiceHasTheSameHistory) {
  const auto histories = [&](int num_threads) {
    SpecEngineOptions options = Options(6 * BytesOf(500, 8));
    options.num_threads = num_threads;
    options.prefill_share = 1;  // Turns depend on time.
    Engine engine = OpenEngine(TinyLlama(), nullptr, options);
    PoolRun run(engine);
    for (const Request& request : Requests(10, 60, 400)) engine.Submit(request);
    EXPECT_TRUE(run.ToEnd(20000));
    std::vector<std::tuple<RequestId, int64_t, int64_t, int, int64_t, int64_t>> events;
    for (const auto& [id, event] : run.halvings) {
      events.emplace_back(id, event.num_tokens, event.layer, event.from_bits, event.num_k_pages,
                          event.num_v_pages);
    }
    std::vector<std::vector<int32_t>> ids;
    for (RequestId id = 1; id <= 10; ++id) ids.push_back(run.Of(id).output_ids);
    EXPECT_FALSE(events.empty());
    return std::pair(events, ids);
  };
  const auto once = histories(1);
  EXPECT_EQ(once, histories(1));
  EXPECT_EQ(once, histories(2));
}

// A pool of one page more than one request needs.
TEST(EnginePool, EightRequestsInAPoolForOneAllEnd) {
  const int64_t page = BytesOf(129, 16) - BytesOf(1, 16);
  const int64_t pool = BytesOf(60 + 7 + 500, 4) + page;
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(pool, 8));
  PoolRun run(engine);
  for (const Request& request : Requests(8, 60, 500)) engine.Submit(request);
  // Each alone takes 500 steps, and may be computed three times at most.
  ASSERT_TRUE(run.ToEnd(8 * 3 * 520));
  ASSERT_EQ(run.finished.size(), 8u);
  for (const Completion& completion : run.finished) {
    EXPECT_EQ(completion.finish_reason, FinishReason::kLength);
    EXPECT_EQ(completion.output_ids.size(), 500u);
    EXPECT_LE(completion.num_preemptions, kMostPreemptions + 1);
    // Each token is told once.
    EXPECT_EQ(run.IdsOf(completion.id), completion.output_ids);
  }
}

// The forecast is wrong: all become longer than what was seen. Requests give up their places, and
// all end with all their tokens.
TEST(EnginePool, WhereForecastsFailRequestsComeBackAndAllEnd) {
  SpecEngineOptions options = Options(4 * BytesOf(700, 4), 16);
  options.kv.pool.floor_bits = 8;
  options.pool.target_bits = 16;
  options.kv.spec = "pm-kvq";
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  PoolRun short_run(engine);
  for (Request request : Requests(60, 20, 16)) engine.Submit(std::move(request));
  // They end by themselves: a stop id that is always drawn.
  ASSERT_TRUE(short_run.ToEnd(20000));
  PoolRun run(engine);
  std::vector<RequestId> ids;
  for (const Request& request : Requests(12, 60, 640)) ids.push_back(engine.Submit(request));
  ASSERT_TRUE(run.ToEnd(40000));
  for (const RequestId id : ids) {
    EXPECT_EQ(run.Of(id).finish_reason, FinishReason::kLength);
    EXPECT_EQ(run.Of(id).output_ids.size(), 640u);
    EXPECT_EQ(run.IdsOf(id), run.Of(id).output_ids);
  }
}

// A sample for whose fork the pool has no room computes the prompt itself, on the same terms.
TEST(EnginePool, SamplesWithoutRoomForAForkKeepTheirMinBits) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(2 * BytesOf(700, 8), 6));
  PoolRun run(engine);
  Request request = MakeRequest(RandomPrompt(500, 1), 150, 1);
  request.kv_min_bits = 8;
  std::vector<uint64_t> seeds(6);
  std::iota(seeds.begin(), seeds.end(), uint64_t{1});
  engine.SubmitSamples(request, seeds);
  ASSERT_TRUE(run.ToEnd(20000));
  ASSERT_EQ(run.finished.size(), 6u);
  for (const Completion& completion : run.finished) {
    EXPECT_EQ(completion.kv.pages[2] + completion.kv.pages[3], 0);
    EXPECT_EQ(completion.output_ids.size(), 150u);
  }
}

// Eight samples of a prompt in a pool that holds three of them.
TEST(EnginePool, EightSamplesInAPoolForThreeAllEnd) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(3 * BytesOf(200 + 500, 4), 8));
  PoolRun run(engine);
  Request request = MakeRequest(RandomPrompt(200, 1), 500, 1);
  request.sampling.temperature = 1;
  std::vector<uint64_t> seeds(8);
  std::iota(seeds.begin(), seeds.end(), uint64_t{1});
  engine.SubmitSamples(request, seeds);
  ASSERT_TRUE(run.ToEnd(8 * 3 * 520));
  ASSERT_EQ(run.finished.size(), 8u);
  for (const Completion& completion : run.finished) {
    EXPECT_EQ(completion.output_ids.size(), 500u);
    EXPECT_EQ(run.IdsOf(completion.id), completion.output_ids);
  }
}

// fp16 cannot be halved, so requests give up their places in a pool of expected lengths.
class PreemptedRun {
 public:
  explicit PreemptedRun(double temperature) : requests(Requests(6, 60, 400, temperature)) {
    SpecEngineOptions options = Options(3 * BytesOf(460, 16), 6, "fp16");
    engine.emplace(OpenEngine(TinyLlama(), nullptr, options));
    // Short answers, so that six are let in.
    for (Request request : Requests(200, 20, 30)) {
      request.stop_ids.resize(256);
      std::iota(request.stop_ids.begin(), request.stop_ids.end(), 0);
      engine->Submit(std::move(request));
    }
    while (engine->Step(nullptr)) {
    }
    run.emplace(*engine);
    for (const Request& request : requests) ids.push_back(engine->Submit(request));
    EXPECT_TRUE(run->ToEnd(20000));
  }

  std::vector<Request> requests;
  std::optional<Engine> engine;
  std::optional<PoolRun> run;
  std::vector<RequestId> ids;
};

// E7: a request that came back goes on as one whose prompt is all that it had by then.
TEST(EnginePool, AResumedRequestGoesOnAsFromAPromptOfAllItsTokens) {
  PreemptedRun tight(0);
  ASSERT_FALSE(tight.run->preempted.empty());
  EXPECT_EQ(tight.engine->stats().num_preemptions, std::ssize(tight.run->preempted));
  int64_t recomputed = 0;
  for (const auto& [id, num_tokens] : tight.run->preempted) recomputed += num_tokens;
  EXPECT_EQ(tight.engine->stats().recomputed_tokens, recomputed);
  Engine alone = OpenEngine(TinyLlama(), nullptr, Options(0, 1, "fp16"));
  int64_t num_resumed = 0;
  for (size_t i = 0; i < tight.ids.size(); ++i) {
    const Completion& done = tight.run->Of(tight.ids[i]);
    EXPECT_EQ(done.output_ids.size(), 400u);
    EXPECT_EQ(tight.run->IdsOf(done.id), done.output_ids);
    if (done.num_preemptions == 0) {
      EXPECT_EQ(done.output_ids, RunOne(alone, tight.requests[i]).output_ids);
      continue;
    }
    ++num_resumed;
    const size_t before = tight.run->drawn_before[done.id];
    Request rest = tight.requests[i];
    rest.prompt_ids.insert(rest.prompt_ids.end(), done.output_ids.begin(),
                           done.output_ids.begin() + static_cast<std::ptrdiff_t>(before));
    rest.max_tokens -= static_cast<int64_t>(before);
    const std::vector<int32_t> expected = RunOne(alone, rest).output_ids;
    EXPECT_EQ(std::vector<int32_t>(done.output_ids.begin() + static_cast<std::ptrdiff_t>(before),
                                   done.output_ids.end()),
              expected);
  }
  EXPECT_GT(num_resumed, 0);
}

// The random numbers go on where they were: a stream that began anew would draw other tokens.
TEST(EnginePool, AResumedRequestKeepsItsRandomNumbers) {
  PreemptedRun tight(1);
  Engine alone = OpenEngine(TinyLlama(), nullptr, Options(0, 1, "fp16"));
  int64_t num_resumed = 0;
  for (size_t i = 0; i < tight.ids.size(); ++i) {
    const Completion& done = tight.run->Of(tight.ids[i]);
    const std::vector<int32_t> expected = RunOne(alone, tight.requests[i]).output_ids;
    const size_t before = tight.run->drawn_before[done.id];
    if (done.num_preemptions == 0 || before == 0) continue;
    ++num_resumed;
    // Logits differ by rounding alone, so the next tokens are those that it would have drawn.
    const size_t end = std::min<size_t>(before + 20, 400);
    EXPECT_EQ(std::vector<int32_t>(done.output_ids.begin(),
                                   done.output_ids.begin() + static_cast<std::ptrdiff_t>(end)),
              std::vector<int32_t>(expected.begin(),
                                   expected.begin() + static_cast<std::ptrdiff_t>(end)));
  }
  EXPECT_GT(num_resumed, 0);
}

TEST(EnginePool, OneThatAloneExceedsThePoolEndsWithWhatItHas) {
  const int64_t pool = BytesOf(400, 4);
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(pool, 2));
  PoolRun run(engine);
  const RequestId too_long = engine.Submit(MakeRequest(RandomPrompt(60, 1), 1000));
  const RequestId next = engine.Submit(MakeRequest(RandomPrompt(60, 2), 100));
  ASSERT_TRUE(run.ToEnd(5000));
  EXPECT_EQ(run.Of(too_long).finish_reason, FinishReason::kKvBudget);
  EXPECT_GE(run.Of(too_long).output_ids.size(), 400u - 61u);
  EXPECT_EQ(run.IdsOf(too_long), run.Of(too_long).output_ids);
  EXPECT_EQ(run.Of(next).finish_reason, FinishReason::kLength);
}

TEST(EnginePool, GuaranteedRequestsNeverGiveUpTheirPlaces) {
  SpecEngineOptions options = Options(3 * BytesOf(60 + 8 + 500, 4), 8);
  options.pool.admission = PoolAdmission::kGuaranteed;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  PoolRun run(engine);
  for (const Request& request : Requests(9, 60, 500)) engine.Submit(request);
  ASSERT_TRUE(run.ToEnd(5000));
  EXPECT_TRUE(run.preempted.empty());
  EXPECT_EQ(run.most_running, 3);
  for (const Completion& done : run.finished) EXPECT_EQ(done.output_ids.size(), 500u);
}

// Three times as many requests as there is room for, of all lengths; some are cancelled, running,
// waiting or after they gave up their places.
TEST(EnginePool, ManyRequestsAtThreeTimesTheCapacityAllEnd) {
  SpecEngineOptions options = Options(6 * BytesOf(200, 4), 24);
  options.prefill_share = 0.5;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  PoolRun run(engine);
  Random random(5);
  int64_t submitted = 0;
  int64_t cancelled = 0;
  std::map<RequestId, int64_t> asked;
  for (int64_t step = 0; step < 200'000; ++step) {
    if (submitted < 1000 && engine.stats().num_waiting < 18) {
      const int64_t tokens =
          1 + static_cast<int64_t>(random.Below(random.Below(8) == 0 ? 300 : 40));
      Request request = MakeRequest(RandomPrompt(1 + static_cast<int64_t>(random.Below(200)),
                                                 static_cast<uint64_t>(submitted)),
                                    tokens, static_cast<uint64_t>(submitted));
      request.kv_min_bits = random.Below(10) == 0 ? 8 : 0;
      if (random.Below(10) == 0) request.num_prompt_logprobs = 1;
      asked[engine.Submit(std::move(request))] = tokens;
      ++submitted;
    }
    if (random.Below(100) == 0) {
      const auto id = static_cast<RequestId>(1 + random.Below(static_cast<uint64_t>(submitted)));
      if (engine.Cancel(id, &run)) ++cancelled;
    }
    const bool goes_on = engine.Step(&run);
    ASSERT_LE(engine.store().StoreStats().pool.peak_bytes, options.kv.pool.bytes);
    if (!goes_on && submitted == 1000) break;
  }
  ASSERT_EQ(run.finished.size(), 1000u);
  EXPECT_EQ(engine.store().StoreStats().pool.used_bytes, 0);
  int64_t num_ends = 0;
  for (const Completion& done : run.finished) {
    if (done.finish_reason == FinishReason::kCancelled) continue;
    ++num_ends;
    EXPECT_EQ(done.finish_reason, FinishReason::kLength);
    EXPECT_EQ(std::ssize(done.output_ids), asked[done.id]);
    EXPECT_EQ(run.IdsOf(done.id), done.output_ids);
    if (!done.prompt_logprobs.empty()) {
      EXPECT_EQ(done.prompt_logprobs.size(), done.prompt_ids.size() - 1);
    }
  }
  EXPECT_EQ(num_ends + cancelled, 1000);
}

TEST(EnginePool, PrioritiesDecideWhoIsHalvedAndWhoGivesUp) {
  SpecEngineOptions options = Options(2 * BytesOf(500, 8), 2);
  options.pool.priorities = true;
  Engine engine = OpenEngine(TinyLlama(), nullptr, options);
  PoolRun run(engine);
  Request low = MakeRequest(RandomPrompt(100, 1), 500);
  low.priority = 64;
  const RequestId low_id = engine.Submit(low);
  const RequestId high_id = engine.Submit(MakeRequest(RandomPrompt(100, 2), 500));
  ASSERT_TRUE(run.ToEnd(5000));
  EXPECT_GT(run.Of(low_id).kv.narrowed_bytes, run.Of(high_id).kv.narrowed_bytes);
}

TEST(EnginePool, WhatCannotBeIsRefusedAtSubmission) {
  const int64_t pool = BytesOf(300, 4);
  Engine engine = OpenEngine(TinyLlama(), nullptr, Options(pool, 2));
  ExpectError<InvalidInput>(
      [&] { engine.Submit(MakeRequest(RandomPrompt(600, 1), 10)); },
      {"prompt", "600 tokens", "--kv-pool of at least", std::to_string(BytesOf(601, 4))});
  const auto refuse = [&](auto change, const std::string& field) {
    Request request = MakeRequest(RandomPrompt(10, 1), 10);
    change(request);
    ExpectError<InvalidInput>([&] { engine.Submit(request); }, {field});
  };
  refuse([](Request& request) { request.session = 1; }, "session");
  refuse([](Request& request) { request.kv_min_bits = 2; }, "kv_min_bits");
  refuse([](Request& request) { request.priority = 1; }, "priority");
  Engine isolated = OpenEngine(TinyLlama(), nullptr, Options(0, 2, "fp16"));
  Request bits = MakeRequest(RandomPrompt(10, 1), 10);
  bits.kv_min_bits = 8;
  ExpectError<InvalidInput>([&] { isolated.Submit(bits); }, {"kv_min_bits"});
  SpecEngineOptions both = Options(pool, 2);
  both.kv.budget_bytes = 100'000;
  ExpectError<InvalidInput>([&] { OpenEngine(TinyLlama(), nullptr, both); }, {"--kv-budget"});
  ExpectError<InvalidInput>(
      [&] { OpenEngine(TinyLlama(), nullptr, Options(pool, 2, "pm-kvq:bits=4")); }, {"--kv"});
  SpecEngineOptions target = Options(pool, 2);
  target.pool.target_bits = 4;
  ExpectError<InvalidInput>([&] { OpenEngine(TinyLlama(), nullptr, target); }, {"--kv-floor"});
}

}  // namespace
}  // namespace pmkvq
