// What goes wrong with one request ends that request: the others keep their bits, and the engine
// goes on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::MakeTinyWeights;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::shared_ptr<const Model> LoadChanged(const TinyModel& tiny, const TinyWeights& weights) {
  const TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  return Model::Load(folder.path());
}

// A model whose embedding of `token` is `value`. Without `is_drawn` its logit is 0, below the
// largest.
std::shared_ptr<const Model> WithEmbedding(int32_t token, float value, bool is_drawn) {
  const TinyModel tiny;
  TinyWeights weights = MakeTinyWeights(tiny);
  std::fill_n(weights.at("model.embed_tokens.weight").As<float>() + token * tiny.hidden,
              tiny.hidden, value);
  if (!is_drawn) {
    std::fill_n(weights.at("lm_head.weight").As<float>() + token * tiny.hidden, tiny.hidden, 0.0f);
  }
  return LoadChanged(tiny, weights);
}

// Ids below 40, so that the tokens above can be poisoned.
std::vector<int32_t> Prompt(int64_t num_tokens, uint64_t seed) {
  return RandomPrompt(num_tokens, seed, 40);
}

SpecEngineOptions Options(const std::string& spec, int64_t budget_bytes = 0) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.kv.budget_bytes = budget_bytes;
  options.max_sequences = 3;
  options.max_len = 700;
  options.chunk = 50;
  options.num_threads = 1;
  options.prefill_share = 0.9;  // Prompts pause wherever they can while others decode.
  return options;
}

std::vector<SpecEngineOptions> AllOptions() {
  std::vector<SpecEngineOptions> all;
  for (const char* spec : {"fp16", "static-8", "static-2", "rtn", "kivi", "mikv", "rotatekv",
                           "mixkvq", "kitty", "oscar:hadamard"}) {
    all.push_back(Options(spec));
  }
  all.push_back(Options("pm-kvq", 110000));
  all.push_back(Options("pm-kvq:policy=oldest-first+axis=channel+rotate=values", 110000));
  all.push_back(Options("pm-kvq", 110000));
  all.back().kv.reference_accounting = true;
  return all;
}

// Token 45 is poisoned: in a prompt's second chunk, and drawn while decoding by nobody.
TEST(EngineError, EndsItsRequestAndNoOther) {
  for (const float value : {kNan, kInfinity, 1e30f}) {
    const std::shared_ptr<const Model> model = WithEmbedding(45, value, false);
    for (const SpecEngineOptions& options : AllOptions()) {
      SCOPED_TRACE(testing::Message() << options.kv.spec << " " << value);
      std::vector<Request> requests = {MakeRequest(Prompt(130, 1), 150),
                                       MakeRequest(Prompt(90, 2), 150),
                                       MakeRequest(Prompt(10, 3), 150)};
      Engine engine = OpenEngine(model, nullptr, options);
      const std::vector<Completion> expected =
          engine.Generate({requests[0], requests[2]}, nullptr, nullptr);
      requests[1].prompt_ids[70] = 45;
      RecordingObserver observer;
      const std::vector<Completion> found = engine.Generate(requests, &observer, nullptr);
      EXPECT_EQ(found[0].output_ids, expected[0].output_ids);
      EXPECT_EQ(found[2].output_ids, expected[1].output_ids);
      EXPECT_EQ(found[0].finish_reason, expected[0].finish_reason);
      EXPECT_EQ(found[0].kv.peak_bytes, expected[0].kv.peak_bytes);
      EXPECT_EQ(found[0].error, "");
      ASSERT_NE(found[0].finish_reason, FinishReason::kError);
      if (value == 1e30f) continue;  // RMS norm makes a fine vector of it.
      EXPECT_EQ(found[1].finish_reason, FinishReason::kError);
      EXPECT_TRUE(found[1].output_ids.empty());
      EXPECT_EQ(found[1].error.find("[kv cache, block 0, position 70] the model produced a "
                                    "non-finite "),
                0u)
          << found[1].error;
      EXPECT_EQ(found[1].error.find('\n'), std::string::npos);
      ASSERT_EQ(observer.finished.size(), 3u);
      EXPECT_EQ(observer.finished[0].id, found[1].id);
      // Nothing of it is left behind.
      EXPECT_EQ(engine.Generate({requests[0], requests[2]}, nullptr, nullptr)[1].output_ids,
                expected[1].output_ids);
    }
  }
}

// The token that one request draws is a poisoned one: it fails within a batch of decoding.
TEST(EngineError, WhileDecodingLeavesTheBatchAlone) {
  const Request victim = MakeRequest(Prompt(20, 9), 60);
  const Request other = MakeRequest(Prompt(33, 4), 60);
  const TinyModel tiny;
  const TinyWeights weights = MakeTinyWeights(tiny);
  Engine healthy = OpenEngine(LoadChanged(tiny, weights), nullptr, Options("static-4"));
  const std::vector<Completion> clean = healthy.Generate({other, victim, other}, nullptr, nullptr);
  // A token that only the victim draws.
  const std::vector<int32_t>& drawn = clean[1].output_ids;
  const auto only_of_victim = std::find_if(drawn.begin(), drawn.end(), [&](int32_t token) {
    return std::count(clean[0].output_ids.begin(), clean[0].output_ids.end(), token) == 0 &&
           std::count(other.prompt_ids.begin(), other.prompt_ids.end(), token) == 0 &&
           std::count(victim.prompt_ids.begin(), victim.prompt_ids.end(), token) == 0;
  });
  ASSERT_NE(only_of_victim, drawn.end());
  const int64_t place = only_of_victim - drawn.begin();
  Engine engine =
      OpenEngine(WithEmbedding(*only_of_victim, kNan, true), nullptr, Options("static-4"));
  const std::vector<Completion> found = engine.Generate({other, victim, other}, nullptr, nullptr);
  EXPECT_EQ(found[0].output_ids, clean[0].output_ids);
  EXPECT_EQ(found[2].output_ids, clean[2].output_ids);
  EXPECT_EQ(found[1].finish_reason, FinishReason::kError);
  EXPECT_EQ(found[1].output_ids, std::vector<int32_t>(drawn.begin(), drawn.begin() + place + 1));
  const std::string position = std::to_string(20 + place);
  EXPECT_EQ(found[1].error.find("[kv cache, block 0, position " + position + "]"), 0u)
      << found[1].error;
}

// A bad weight anywhere ends requests with a message, at every temperature.
TEST(EngineError, BadWeightsAnywhereAreNoCrash) {
  const TinyModel tiny{.qkv_bias = true, .o_bias = true};
  const TinyWeights weights = MakeTinyWeights(tiny);
  for (const auto& [name, tensor] : weights) {
    for (const float value : {kNan, kInfinity, -kInfinity}) {
      SCOPED_TRACE(testing::Message() << name << " " << value);
      TinyWeights changed = MakeTinyWeights(tiny);
      // A whole row where there are rows: of the embedding, that of token 5.
      const int64_t columns = tensor.shape().size() == 2 ? tensor.shape()[1] : 1;
      std::fill_n(changed.at(name).As<float>() + 5 * columns, columns, value);
      const std::shared_ptr<const Model> model = LoadChanged(tiny, changed);
      for (const char* spec : {"fp16", "static-2", "mikv", "rotatekv"}) {
        Engine engine = OpenEngine(model, nullptr, Options(spec));
        for (const double temperature : {0.0, 1.0}) {
          Request request = MakeRequest({7, 8, 5, 9}, 3);
          request.sampling.temperature = temperature;
          const Completion done = RunOne(engine, request);
          EXPECT_EQ(done.finish_reason, FinishReason::kError) << spec;
          EXPECT_NE(done.error.find("position"), std::string::npos) << done.error;
          EXPECT_NE(done.error.find("finite"), std::string::npos) << done.error;
        }
      }
    }
  }
}

TEST(EngineError, LogitsNameModelTokenAndPosition) {
  const TinyModel tiny;
  for (const float value : {kNan, kInfinity, 3e38f}) {
    TinyWeights weights = MakeTinyWeights(tiny);
    std::fill_n(weights.at("lm_head.weight").As<float>() + 7 * tiny.hidden, tiny.hidden, value);
    const TempFolder folder;
    WriteTinyModel(tiny, weights, folder);
    Engine engine = OpenEngine(Model::Load(folder.path()), nullptr, Options("fp16"));
    const Completion done = RunOne(engine, MakeRequest({5, 6, 7}, 4));
    if (done.finish_reason != FinishReason::kError) continue;  // 3e38 may cancel itself out.
    EXPECT_EQ(done.error.find("[" + folder.path() +
                              ", output head, position 2] logits are not "
                              "finite: found "),
              0u)
        << done.error;
    EXPECT_NE(done.error.find("for token 7"), std::string::npos) << done.error;
  }
}

// Scales keys (or values) so that each fits f16 and groups do not.
std::shared_ptr<const Model> WithWideGroups(const std::string& projection) {
  const TinyModel tiny;
  TinyWeights weights = MakeTinyWeights(tiny);
  for (int64_t layer = 0; layer < tiny.layers; ++layer) {
    Tensor& weight = weights.at("model.layers." + std::to_string(layer) + ".self_attn." +
                                projection + ".weight");
    for (int64_t i = 0; i < weight.num_elements(); ++i) weight.As<float>()[i] *= 11000.0f;
  }
  return LoadChanged(tiny, weights);
}

TEST(EngineError, RangesBeyondF16EndTheRequestAndBf16HoldsThem) {
  for (const char* projection : {"k_proj", "v_proj"}) {
    const std::shared_ptr<const Model> model = WithWideGroups(projection);
    for (SpecEngineOptions options : AllOptions()) {
      SCOPED_TRACE(testing::Message() << projection << " " << options.kv.spec);
      const Request request = MakeRequest(Prompt(400, 1), 200);
      Engine engine = OpenEngine(model, nullptr, options);
      const Completion done = RunOne(engine, request);
      // Rotatekv stores the step of a group, which fits; mikv divides keys by a balancer.
      const std::string& spec = options.kv.spec;
      if (spec == "fp16" || spec == "rotatekv" ||
          (spec == "mikv" && projection == std::string("k_proj"))) {
        EXPECT_EQ(done.finish_reason, FinishReason::kLength);
      } else {
        EXPECT_EQ(done.finish_reason, FinishReason::kError);
        EXPECT_EQ(done.error.find("[kv cache, block "), 0u) << done.error;
        EXPECT_NE(done.error.find("--kv-dtype bf16 holds it"), std::string::npos) << done.error;
      }
      options.kv.kv_dtype = DType::kBF16;
      Engine wider = OpenEngine(model, nullptr, options);
      EXPECT_NE(RunOne(wider, request).finish_reason, FinishReason::kError);
    }
  }
}

TEST(EngineError, ASessionBeginsAnewAfterIt) {
  const std::shared_ptr<const Model> model = WithEmbedding(45, kNan, false);
  Engine engine = OpenEngine(model, nullptr, Options("static-4"));
  Request request = MakeRequest(Prompt(140, 1), 20);
  request.session = 0;
  const Completion first = RunOne(engine, request);
  Request bad = request;
  bad.prompt_ids.push_back(45);
  EXPECT_EQ(RunOne(engine, bad).finish_reason, FinishReason::kError);
  Request next = request;
  next.prompt_ids.push_back(5);
  const Completion found = RunOne(engine, next);
  Engine fresh = OpenEngine(model, nullptr, Options("static-4"));
  EXPECT_EQ(found.output_ids, RunOne(fresh, next).output_ids);
  EXPECT_EQ(found.finish_reason, FinishReason::kLength);
}

// An observer that throws loses no event but the one that it was given, and no request.
TEST(EngineError, AnObserverThatThrowsEndsTheStepOnly) {
  class Throwing : public RecordingObserver {
   public:
    void OnToken(RequestId id, int32_t token, const std::string& text) override {
      RecordingObserver::OnToken(id, token, text);
      if (tokens.size() % 3 == 0) throw std::runtime_error("token");
    }
    void OnHalving(RequestId id, const HalvingEvent& event) override {
      RecordingObserver::OnHalving(id, event);
      if (halvings.size() % 2 == 0) throw std::runtime_error("halving");
    }
    void OnFinished(const Completion& completion) override {
      RecordingObserver::OnFinished(completion);
      throw std::runtime_error("finished");
    }
  };
  SpecEngineOptions options = Options("pm-kvq", 60000);
  const std::vector<Request> requests = {MakeRequest(Prompt(130, 1), 200),
                                         MakeRequest(Prompt(60, 2), 170),
                                         MakeRequest(Prompt(5, 3), 100)};
  const auto model = LoadTinyLlama();
  Engine quiet = OpenEngine(model, nullptr, options);
  RecordingObserver expected;
  const std::vector<Completion> whole = quiet.Generate(requests, &expected, nullptr);
  Engine engine = OpenEngine(model, nullptr, options);
  for (const Request& request : requests) engine.Submit(request);
  Throwing observer;
  int64_t num_thrown = 0;
  for (bool busy = true; busy;) {
    try {
      busy = engine.Step(&observer);
    } catch (const std::runtime_error&) {
      ++num_thrown;
    }
  }
  EXPECT_GT(num_thrown, 100);
  ASSERT_EQ(observer.finished.size(), 3u);
  ASSERT_FALSE(expected.halvings.empty());
  EXPECT_EQ(observer.halvings.size(), expected.halvings.size());
  for (const Completion& done : whole) {
    const auto found = std::find_if(observer.finished.begin(), observer.finished.end(),
                                    [&](const Completion& each) { return each.id == done.id; });
    ASSERT_NE(found, observer.finished.end());
    EXPECT_EQ(found->output_ids, done.output_ids);
    EXPECT_EQ(observer.IdsOf(done.id), done.output_ids);
  }
}

// A request that is being decoded waits while the prompt of another is stored.
TEST(Engine, TimesCountTheWaitForAnothersPrompt) {
  SpecEngineOptions options = Options("fp16");
  options.chunk = 20;
  options.prefill_share = 1;
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, options);
  RecordingObserver observer;
  const RequestId first = engine.Submit(MakeRequest(Prompt(10, 1), 30));
  engine.Step(&observer);
  engine.Submit(MakeRequest(Prompt(400, 2), 1));
  while (engine.Step(&observer)) {
  }
  ASSERT_EQ(observer.finished.size(), 2u);
  const bool is_first = observer.finished[0].id == first;
  const Completion& waited = observer.finished[is_first ? 0 : 1];
  const Completion& prefilled = observer.finished[is_first ? 1 : 0];
  EXPECT_GT(prefilled.prefill_seconds, 0);
  EXPECT_GE(waited.decode_seconds, prefilled.prefill_seconds);
}

}  // namespace
}  // namespace pmkvq
