// A model with sliding windows through the whole engine.
#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/fit.h"
#include "pmkvq/model/model_size.h"
#include "support/engine_fixture.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::MakeRequest;
using testing_support::MakeTinyWeights;
using testing_support::RandomTokens;
using testing_support::RunOne;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModelOracle;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

struct WindowModel {
  explicit WindowModel(const std::string& name)
      : tiny(TinyModels().at(name)), weights(MakeTinyWeights(tiny)) {
    const TempFolder folder;
    WriteTinyModel(tiny, weights, folder);
    model = Model::Load(folder.path());
  }
  TinyModel tiny;
  TinyWeights weights;
  std::shared_ptr<const Model> model;
};

SpecEngineOptions Options(const std::string& spec, int64_t chunk) {
  SpecEngineOptions options;
  options.max_sequences = 2;
  options.max_len = 1000;
  options.chunk = chunk;
  options.num_threads = 1;
  options.kv.spec = spec;
  options.kv.kv_dtype = DType::kF32;
  return options;
}

std::vector<int32_t> GreedyByOracle(const WindowModel& made, std::vector<int32_t> tokens,
                                    int64_t count) {
  const TinyModelOracle oracle(made.tiny, made.weights);
  std::vector<int32_t> drawn;
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<double> logits = oracle.Logits(tokens);
    const auto last = logits.end() - made.tiny.vocab;
    drawn.push_back(static_cast<int32_t>(std::max_element(last, logits.end()) - last));
    tokens.push_back(drawn.back());
  }
  return drawn;
}

TEST(EngineWindow, GreedyIdsAreThoseOfTheOracle) {
  for (const char* name : {"mistral_window_f32", "qwen2_window_bf16"}) {
    const WindowModel made(name);
    EXPECT_GT(made.model->config().sliding_window(2), 0);
    const std::vector<int32_t> prompt = RandomTokens(made.tiny.vocab, 70, 4);
    const std::vector<int32_t> expected = GreedyByOracle(made, prompt, 12);
    for (const int64_t chunk : {1, 16, 128, 512}) {
      Engine engine = OpenEngine(made.model, nullptr, Options("fp16", chunk));
      EXPECT_EQ(RunOne(engine, MakeRequest(prompt, 12)).output_ids, expected) << name << chunk;
    }
  }
}

// A session whose conversation was changed far back: its pages have been freed.
TEST(EngineWindow, SessionsBeginAnewWherePagesAreGone) {
  const WindowModel made("mistral_window_f32");
  std::vector<int32_t> prompt = RandomTokens(made.tiny.vocab, 400, 4);
  Engine kept = OpenEngine(made.model, nullptr, Options("fp16", 64));
  Request request = MakeRequest(prompt, 5);
  request.session = 1;
  const Completion first = RunOne(kept, request);
  // Goes on: the newest pages are there.
  request.prompt_ids.insert(request.prompt_ids.end(), first.output_ids.begin(),
                            first.output_ids.end());
  request.prompt_ids.push_back(7);
  const std::vector<int32_t> longer = RunOne(kept, request).output_ids;
  // Turns off after 20 tokens.
  request.prompt_ids.assign(prompt.begin(), prompt.begin() + 20);
  request.prompt_ids.resize(300, 9);
  const std::vector<int32_t> other = RunOne(kept, request).output_ids;

  Engine fresh = OpenEngine(made.model, nullptr, Options("fp16", 64));
  EXPECT_EQ(RunOne(fresh, MakeRequest(request.prompt_ids, 5)).output_ids, other);
  request.prompt_ids = prompt;
  request.prompt_ids.insert(request.prompt_ids.end(), first.output_ids.begin(),
                            first.output_ids.end());
  request.prompt_ids.push_back(7);
  EXPECT_EQ(RunOne(fresh, MakeRequest(request.prompt_ids, 5)).output_ids, longer);
}

TEST(EngineWindow, TheCacheHoldsTheWindowOnly) {
  const WindowModel made("mistral_window_f32");
  SpecEngineOptions options = Options("fp16", 64);
  options.max_len = 2000;
  Engine engine = OpenEngine(made.model, nullptr, options);
  const Completion done = RunOne(engine, MakeRequest(RandomTokens(made.tiny.vocab, 1500, 4), 100));
  EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  EXPECT_EQ(done.kv.num_tokens, 1599);
  // A window of 9 and a chunk of 64 touch two pages at most, K and V of three blocks.
  const int64_t page = PageBytes(made.model->kv_geometry().block(0).k(), DType::kF32, 16);
  EXPECT_LE(done.kv.peak_bytes, 3 * 2 * 2 * page + 3 * 2 * page / kPageTokens);
  EXPECT_EQ(done.kv.budget_bytes, engine.kv_budget().total_bytes());
  EXPECT_LE(done.kv.peak_bytes, done.kv.budget_bytes);

  FitOptions fit;
  fit.memory_bytes = 8 << 20;
  fit.max_len = 2000;
  fit.sequences = 2;
  fit.chunk = 64;
  fit.cache.kv_dtype = DType::kF32;
  const Fit known = FitInto({made.model->config(), made.model->weight_bytes()}, fit);
  EXPECT_EQ(known.methods[0].sequence_bytes, engine.kv_budget().total_bytes());
  EXPECT_EQ(known.methods[0].arena_bytes,
            static_cast<int64_t>(engine.store().StoreStats().arena_bytes));
}

TEST(EngineWindow, ProgressiveCachesStayInTheirBudget) {
  const WindowModel made("qwen2_window_bf16");
  SpecEngineOptions options = Options("pm-kvq", 64);
  options.kv.kv_dtype = DType::kF16;
  options.kv.budget_bytes = 200'000;
  options.max_len = 1000;
  Engine engine = OpenEngine(made.model, nullptr, options);
  const Completion done = RunOne(engine, MakeRequest(RandomTokens(made.tiny.vocab, 700, 4), 200));
  EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  EXPECT_LE(done.kv.peak_bytes, 200'000);
  EXPECT_GT(done.kv.pages[1] + done.kv.pages[2] + done.kv.pages[3], 0);
}

TEST(EngineWindow, SimulatedMethodsRefuseWindows) {
  const WindowModel made("mistral_window_f32");
  for (const char* spec : {"kivi", "rtn"}) {
    try {
      OpenEngine(made.model, nullptr, Options(spec, 64));
      ADD_FAILURE() << spec;
    } catch (const Unsupported& error) {
      EXPECT_NE(std::string(error.what()).find("sliding window of 9"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace pmkvq
