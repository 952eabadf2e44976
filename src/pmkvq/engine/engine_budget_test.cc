// The KV budget seen from requests: never exceeded, spent at the floor only, wrong ones refused.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <algorithm>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

SpecEngineOptions Budgeted(int64_t budget_bytes, PolicyKind policy = PolicyKind::kLayerBudget) {
  SpecEngineOptions options;
  options.kv.spec = "pm-kvq";
  options.kv.budget_bytes = budget_bytes;
  options.kv.policy = policy;
  options.num_threads = 1;
  options.max_len = 3000;
  return options;
}

std::shared_ptr<const Model> SharedTinyLlama() {
  static const std::shared_ptr<const Model> model = LoadTinyLlama();
  return model;
}

std::shared_ptr<Plan> TinyPlan() {
  auto plan = std::make_shared<Plan>();
  plan->model_identity = SharedTinyLlama()->checkpoint().Identity();
  plan->geometry = SharedTinyLlama()->kv_geometry();
  plan->k_bits = {4, 2};
  plan->v_bits = {4, 2};
  plan->budget_bytes = {60000, 40000};
  for (int block = 0; block < 2; ++block) {
    Tensor scales(DType::kF32, {2, 8});
    for (int64_t i = 0; i < scales.num_elements(); ++i) {
      scales.As<float>()[i] = 0.5f + 0.25f * static_cast<float>((i + block) % 5);
    }
    plan->key_scales.push_back(std::move(scales));
  }
  return plan;
}

// Engines of different plans, and one without any, take turns on one model.
TEST(EngineBudget, EnginesWithDifferentPlansShareAModel) {
  std::vector<SpecEngineOptions> options(3, Budgeted(85000));
  for (size_t i = 0; i < 2; ++i) {
    const std::shared_ptr<Plan> plan = TinyPlan();
    for (Tensor& scales : plan->key_scales) {
      for (int64_t k = 0; i == 1 && k < scales.num_elements(); ++k) {
        scales.As<float>()[k] = k % 3 == 0 ? 0.1f : 8.0f;
      }
    }
    options[i].kv.plan = plan;
  }
  options[2].kv.spec = "static-4";
  options[2].kv.budget_bytes = 0;
  const Request request = MakeRequest(RandomPrompt(400, 3), 100);
  std::vector<std::vector<int32_t>> alone;
  for (const SpecEngineOptions& each : options) {
    Engine engine = OpenEngine(SharedTinyLlama(), nullptr, each);
    alone.push_back(RunOne(engine, request).output_ids);
  }
  // The scales do change what is quantised, or this test would show nothing.
  ASSERT_NE(alone[0], alone[1]);

  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<RecordingObserver> observers(options.size());
  for (const SpecEngineOptions& each : options) {
    engines.push_back(std::make_unique<Engine>(OpenEngine(SharedTinyLlama(), nullptr, each)));
    engines.back()->Submit(request);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (size_t i = 0; i < engines.size(); ++i) busy |= engines[i]->Step(&observers[i]);
  }
  for (size_t i = 0; i < engines.size(); ++i) {
    ASSERT_EQ(observers[i].finished.size(), 1u);
    EXPECT_EQ(observers[i].finished[0].output_ids, alone[i]) << i;
  }
}

TEST(EngineBudget, SpentAtTheFloorEndsTheRequestWithItsText) {
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    Engine engine = OpenEngine(SharedTinyLlama(), ByteTokenizer(), Budgeted(50000, policy));
    RecordingObserver observer;
    const Completion done = RunOne(engine, MakeRequest(RandomPrompt(40, 1), 0), &observer);
    EXPECT_EQ(done.finish_reason, FinishReason::kKvBudget);
    EXPECT_LE(done.kv.peak_bytes, 50000);
    const CacheConfig& config = *engine.kv_budget().packed();
    EXPECT_LE(SmallestBudget(config, done.kv.num_tokens), 50000) << "what is stored fits";
    EXPECT_GT(SmallestBudget(config, done.kv.num_tokens + 1), 50000) << "one more does not";
    EXPECT_EQ(static_cast<int64_t>(done.output_ids.size()), done.kv.num_tokens - 40 + 1);
    EXPECT_TRUE(done.text.starts_with(observer.TextOf(done.id)));
    EXPECT_GT(done.text.size(), 100u);
    EXPECT_GT(done.longest_pause_us, 0);
    EXPECT_EQ(done.kv.pages[WidthIndex(8)], 0) << "only the open pages are above 2 bits";
    EXPECT_EQ(done.kv.pages[WidthIndex(4)], 0);
    EXPECT_GT(done.kv.pages[WidthIndex(2)], 0);
  }
}

TEST(EngineBudget, ReportsTheLadderInOrder) {
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, Budgeted(50000));
  RecordingObserver observer;
  const Completion done = RunOne(engine, MakeRequest(RandomPrompt(40, 1), 0), &observer);
  ASSERT_FALSE(observer.halvings.empty());
  for (int64_t layer = 0; layer < 2; ++layer) {
    std::vector<int> from;
    int64_t previous = 0;
    for (const auto& [id, event] : observer.halvings) {
      EXPECT_EQ(id, done.id);
      EXPECT_GE(event.duration_us, 0);
      if (event.layer != layer) continue;
      from.push_back(event.from_bits);
      EXPECT_GE(event.num_tokens, previous);
      previous = event.num_tokens;
    }
    EXPECT_EQ(from, (std::vector<int>{16, 8, 4}));
  }
}

TEST(EngineBudget, OneRequestsEndLeavesTheOthersAlone) {
  SpecEngineOptions options = Budgeted(50000);
  options.max_sequences = 2;
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  const Request endless = MakeRequest(RandomPrompt(40, 1), 0);
  const Request late = MakeRequest(RandomPrompt(250, 2), 100);
  const std::vector<Completion> done = engine.Generate({endless, late, late}, nullptr, nullptr);
  EXPECT_EQ(done[0].finish_reason, FinishReason::kKvBudget);
  for (int i = 1; i < 3; ++i) {
    EXPECT_EQ(done[static_cast<size_t>(i)].finish_reason, FinishReason::kLength);
    EXPECT_EQ(done[static_cast<size_t>(i)].output_ids.size(), 100u);
  }
  EXPECT_EQ(done[1].output_ids, done[2].output_ids);
}

TEST(EngineBudget, PmKvqEqualsFp16UntilTheBudgetBites) {
  SpecEngineOptions options = Budgeted(0);
  options.kv.spec = "fp16";
  options.max_len = 600;
  options.kv.plan = TinyPlan();
  Request request = MakeRequest(RandomPrompt(40, 3), 150);
  Engine unquantised = OpenEngine(SharedTinyLlama(), nullptr, options);
  const Completion expected = RunOne(unquantised, request);
  options.kv.spec = "pm-kvq";
  Engine progressive = OpenEngine(SharedTinyLlama(), nullptr, options);
  RecordingObserver observer;
  const Completion found = RunOne(progressive, request, &observer);
  EXPECT_TRUE(observer.halvings.empty());
  EXPECT_EQ(found.output_ids, expected.output_ids);
  EXPECT_EQ(found.kv.budget_bytes, 100000);
}

TEST(EngineBudget, ReferenceAccountingEndsARequestToo) {
  SpecEngineOptions options = Budgeted(0);
  options.kv.spec = "pm-kvq:bits=4";
  options.kv.reference_accounting = true;
  options.max_len = 600;
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  RecordingObserver observer;
  const Completion done = RunOne(engine, MakeRequest(RandomPrompt(30, 4), 0), &observer);
  EXPECT_FALSE(observer.halvings.empty());
  EXPECT_GT(done.output_ids.size(), 300u);
}

TEST(EngineBudget, SimulatedMethodsCountTheirBytes) {
  // 2 blocks of 2 heads of 16 values. Keys and values of a token take 64 bytes each at full
  // precision; quantised, keys take 12 (groups of 32 tokens) and values 16 (one group a head).
  SpecEngineOptions options = Budgeted(0);
  options.kv.spec = "kivi:bits=2";
  options.max_len = 600;
  Engine roomy = OpenEngine(SharedTinyLlama(), nullptr, options);
  const Completion done = RunOne(roomy, MakeRequest(RandomPrompt(40, 3), 261));
  EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  ASSERT_EQ(done.kv.num_tokens, 300);
  EXPECT_EQ(done.kv.bytes, 2 * ((256 * 12 + 44 * 64) + (172 * 16 + 128 * 64)));
  EXPECT_EQ(done.kv.peak_bytes, 2 * ((128 * 12 + 127 * 64) + (127 * 16 + 128 * 64)));
  EXPECT_GE(done.kv.budget_bytes, done.kv.peak_bytes);

  options.kv.budget_bytes = done.kv.peak_bytes;
  Engine tight = OpenEngine(SharedTinyLlama(), nullptr, options);
  const Completion cut = RunOne(tight, MakeRequest(RandomPrompt(40, 3), 0));
  EXPECT_EQ(cut.finish_reason, FinishReason::kKvBudget);
  EXPECT_LE(cut.kv.peak_bytes, options.kv.budget_bytes);
  ASSERT_LE(done.output_ids.size(), cut.output_ids.size());
  EXPECT_EQ(
      std::vector<int32_t>(cut.output_ids.begin(),
                           cut.output_ids.begin() + static_cast<int64_t>(done.output_ids.size())),
      done.output_ids);
  ExpectError<InvalidInput>(
      [&] { tight.Submit(MakeRequest(RandomPrompt(590, 3), 1)); },
      {"prompt", "590 tokens do not fit the KV budget", "expected --kv-budget"});
}

RC_GTEST_PROP(EngineBudgetProperty, PeakBytesStayWithinTheBudget, ()) {
  const auto policy = *rc::gen::element(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst);
  const auto init_bits = *rc::gen::element(16, 16, 8, 4, 2);
  const auto max_sequences = *rc::gen::inRange<int64_t>(1, 5);
  const auto sink = *rc::gen::element<int64_t>(0, 1, 4, 40);
  const auto window = *rc::gen::element<int64_t>(128, 128, 256);
  // Two blocks, whose 16-bit pages of K and V take 16 KiB.
  const auto budget = *rc::gen::inRange<int64_t>(90000, 250000);
  SpecEngineOptions options = Budgeted(budget, policy);
  options.max_sequences = max_sequences;
  options.chunk = *rc::gen::element<int64_t>(1000, 128, 100, 37);
  options.kv.init_kv_bits = init_bits;
  options.kv.sink_tokens = sink;
  options.kv.window_tokens = window;
  if (*rc::gen::arbitrary<bool>()) options.kv.plan = TinyPlan();
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  const CacheConfig& config = *engine.kv_budget().packed();

  RecordingObserver observer;
  const auto num_requests = *rc::gen::inRange<int>(1, 6);
  int submitted = 0;
  for (int i = 0; i < num_requests; ++i) {
    const auto length = *rc::gen::inRange<int64_t>(1, 700);
    Request request = MakeRequest(RandomPrompt(length, static_cast<uint64_t>(i)),
                                  *rc::gen::inRange<int64_t>(1, 60));
    request.session = *rc::gen::inRange<int64_t>(-1, 2);
    try {
      engine.Submit(request);
      ++submitted;
    } catch (const InvalidInput&) {
      const int64_t smallest =
          *std::min_element(config.budget_bytes.begin(), config.budget_bytes.end());
      RC_ASSERT(BlockBytes(config, 0, length, config.floor_bits, config.floor_bits) > smallest);
    }
    for (int step = *rc::gen::inRange(0, 8); step > 0; --step) engine.Step(&observer);
  }
  while (engine.Step(&observer)) {
  }
  RC_ASSERT(observer.finished.size() == static_cast<size_t>(submitted));
  for (const Completion& done : observer.finished) {
    RC_ASSERT(done.kv.peak_bytes <= done.kv.budget_bytes);
    RC_ASSERT(done.kv.budget_bytes <= budget);
    if (done.finish_reason != FinishReason::kKvBudget) continue;
    const int64_t needed =
        BlockBytes(config, 0, done.kv.num_tokens + 1, config.floor_bits, config.floor_bits);
    RC_ASSERT(needed > *std::min_element(config.budget_bytes.begin(), config.budget_bytes.end()));
  }
}

TEST(EngineErrors, RequestsNameTheField) {
  SpecEngineOptions options = Budgeted(100000);
  options.max_len = 500;
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  const auto expect = [&](const Request& request, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { engine.Submit(request); }, parts);
    ExpectError<InvalidInput>(
        [&] {
          engine.Generate({MakeRequest({5}, 1), request}, nullptr, nullptr);
        },
        parts);
    EXPECT_FALSE(engine.Step(nullptr)) << "nothing is queued";
  };
  const Request good = MakeRequest(RandomPrompt(10, 1), 5);
  Request bad = good;
  bad.prompt_ids.clear();
  expect(bad, {"[prompt] empty"});
  bad = good;
  bad.prompt_ids[3] = 256;
  expect(bad, {"[prompt]", "token id 256 at index 3", "expected one in [0, 256)"});
  bad.prompt_ids[3] = -1;
  expect(bad, {"[prompt]", "token id -1"});
  expect(MakeRequest(RandomPrompt(501, 1), 5), {"[prompt] 501 tokens", "at most 500 (--max-len)"});
  bad = good;
  bad.max_tokens = -2;
  expect(bad, {"[max_tokens] found -2"});
  bad = good;
  bad.sampling.temperature = -0.5;
  expect(bad, {"[temperature] found -0.5"});
  bad.sampling.temperature = std::numeric_limits<double>::quiet_NaN();
  expect(bad, {"[temperature] found nan"});
  bad = good;
  bad.sampling.top_k = -1;
  expect(bad, {"[top_k] found -1"});
  bad = good;
  bad.sampling.top_p = 0;
  expect(bad, {"[top_p] found 0"});
  bad = good;
  bad.sampling.min_p = 1.5;
  expect(bad, {"[min_p] found 1.5"});
  bad = good;
  bad.stop = {"x"};
  expect(bad, {"[stop]", "no tokenizer"});
  bad.stop = {""};
  expect(bad, {"[stop] found an empty string"});
}

// The message ends in "at least N bytes (...)": that budget works and one byte less does not.
int64_t NamedBudget(const std::string& message) {
  const std::string before = "at least ";
  return std::stoll(message.substr(message.rfind(before) + before.size()));
}

TEST(EngineErrors, BudgetTooSmallForThePromptNamesTheSmallestThatWorks) {
  for (const bool with_plan : {false, true}) {
    const Request request = MakeRequest(RandomPrompt(1000, 1), 1);
    SpecEngineOptions options = Budgeted(50000);
    if (with_plan) options.kv.plan = TinyPlan();
    std::string message;
    try {
      Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
      engine.Submit(request);
    } catch (const InvalidInput& error) {
      message = error.what();
    }
    ASSERT_NE(message.find("[prompt] 1000 tokens do not fit the KV budget of"), std::string::npos)
        << message;
    options.kv.budget_bytes = NamedBudget(message);
    Engine enough = OpenEngine(SharedTinyLlama(), nullptr, options);
    EXPECT_EQ(RunOne(enough, request).finish_reason, FinishReason::kLength);
    options.kv.budget_bytes -= with_plan ? 8 : 1;
    Engine too_small = OpenEngine(SharedTinyLlama(), nullptr, options);
    EXPECT_THROW(too_small.Submit(request), InvalidInput);
  }
}

TEST(EngineErrors, PromptsLongerThanTheModelNameItsLimit) {
  SpecEngineOptions options = Budgeted(1 << 20);
  options.max_len = 0;
  Engine engine = OpenEngine(SharedTinyLlama(), nullptr, options);
  ExpectError<InvalidInput>([&] { engine.Submit(MakeRequest(RandomPrompt(4097, 1), 1)); },
                            {"4097 tokens", "at most 4096 (the model's max_position_embeddings)"});
}

TEST(EngineErrors, OptionsNameTheOption) {
  const auto expect = [](const SpecEngineOptions& options,
                         std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { OpenEngine(SharedTinyLlama(), nullptr, options); }, parts);
  };
  SpecEngineOptions options = Budgeted(100000);
  options.max_len = 4097;
  expect(options, {"[--max-len] found 4097", "4096"});
  options.max_len = -1;
  expect(options, {"[--max-len] found -1"});
  options = Budgeted(100000);
  options.chunk = 0;
  expect(options, {"[--chunk] found 0"});
  options = Budgeted(100000);
  options.max_sequences = 0;
  expect(options, {"[max_sequences] found 0"});
  options = Budgeted(100000);
  options.num_threads = -1;
  expect(options, {"[--threads] found -1"});
  options = Budgeted(100000);
  auto plan = TinyPlan();
  plan->model_identity = "0123456789abcdef0123456789abcdef";
  options.kv.plan = plan;
  expect(options, {"--plan", "0123456789abcdef0123456789abcdef",
                   SharedTinyLlama()->checkpoint().Identity()});
}

}  // namespace
}  // namespace pmkvq
