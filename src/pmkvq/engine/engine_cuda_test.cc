// The engine with a model and its cache on a CUDA device: texts of the shipped model, sampling,
// sessions, budgets that force halvings, published methods on the host.
#include "pmkvq/engine/engine.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "support/engine_fixture.h"
#include "support/gpu_test.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::DefaultModelFolder;
using testing_support::MakeRequest;
using testing_support::RunOne;

class EngineOnCudaTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ModelOptions options;
    options.device = kDevice;
    cuda_ = Model::Load(DefaultModelFolder(), options);
    cpu_ = Model::Load(DefaultModelFolder());
    tokenizer_ = Tokenizer::Load(DefaultModelFolder());
  }

  Request Ask(const std::string& problem) const {
    Request request;
    request.prompt_ids = tokenizer_->Encode("<|im_start|>user\n" + problem +
                                            "<|im_end|>\n<|im_start|>assistant\n<think>\n");
    return request;
  }

  std::shared_ptr<const Model> cuda_, cpu_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

SpecEngineOptions Options(const std::string& spec, int64_t max_sequences, int64_t max_len) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.max_sequences = max_sequences;
  options.max_len = max_len;
  options.num_threads = 2;
  return options;
}

const char* const kProblems[] = {"Compute 12 * 34. Work digit by digit.",
                                 "Compute 507 * 83. Work digit by digit.",
                                 "Compute 9 * 8. Work digit by digit."};

TEST_F(EngineOnCudaTest, GreedyTextsAreThoseOfTheCpu) {
  for (const char* const spec : {"fp16", "static-8", "pm-kvq"}) {
    SCOPED_TRACE(spec);
    SpecEngineOptions options = Options(spec, 3, 1024);
    if (options.kv.spec == "pm-kvq") options.kv.budget_bytes = 1'300'000;
    Engine cuda = OpenEngine(cuda_, tokenizer_, options);
    Engine cpu = OpenEngine(cpu_, tokenizer_, options);
    std::vector<Request> requests;
    for (const char* const problem : kProblems) requests.push_back(Ask(problem));
    const std::vector<Completion> a = cuda.Generate(requests, nullptr, nullptr);
    const std::vector<Completion> b = cpu.Generate(requests, nullptr, nullptr);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].text, b[i].text);
      EXPECT_EQ(a[i].finish_reason, b[i].finish_reason);
      EXPECT_EQ(a[i].kv.bytes, b[i].kv.bytes);
      EXPECT_EQ(a[i].kv.pages, b[i].kv.pages);
    }
  }
}

TEST_F(EngineOnCudaTest, ASeedGivesTheSameTextBesideOtherRequests) {
  const SpecEngineOptions options = Options("pm-kvq:bits=4", 5, 700);
  Request sampled = Ask(kProblems[0]);
  sampled.sampling.temperature = 0.8;
  sampled.sampling.top_p = 0.9;
  sampled.seed = 4;
  sampled.max_tokens = 200;
  Engine alone = OpenEngine(cuda_, tokenizer_, options);
  const std::string text = RunOne(alone, sampled).text;
  Engine together = OpenEngine(cuda_, tokenizer_, options);
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 9; ++i) {
    requests.push_back(Ask(kProblems[i % 3]));
    requests.back().sampling.temperature = 1.0;
    requests.back().seed = 100 + i;
    requests.back().max_tokens = 40 + static_cast<int64_t>(i) * 20;
  }
  requests.insert(requests.begin() + 4, sampled);
  EXPECT_EQ(together.Generate(requests, nullptr, nullptr)[4].text, text);
}

// While pages of two requests are halved, each step is one launch of what was recorded
// before.
TEST_F(EngineOnCudaTest, WidthsChangeAndAStepStaysOneLaunch) {
  SpecEngineOptions options = Options("pm-kvq", 2, 1024);
  options.kv.budget_bytes = 3'000'000;
  options.prefill_share = 1;  // Both prompts are stored before the first token is drawn.
  Engine engine = OpenEngine(cuda_, tokenizer_, options);
  testing_support::RecordingObserver observer;
  for (uint64_t seed : {1, 2}) {
    engine.Submit(MakeRequest(testing_support::RandomPrompt(100, seed, 540), 800, seed));
  }
  while (observer.tokens.size() < 20) engine.Step(&observer);
  observer = {};
  const CapturedWork::Counts before = CapturedWork::CountsSoFar();
  constexpr int64_t kSteps = 750;
  for (int64_t i = 0; i < kSteps; ++i) engine.Step(&observer);
  const CapturedWork::Counts after = CapturedWork::CountsSoFar();
  EXPECT_EQ(observer.tokens.size(), 2 * kSteps);
  EXPECT_FALSE(observer.halvings.empty());
  EXPECT_EQ(after.recorded, before.recorded);
  EXPECT_EQ(after.launched, before.launched + kSteps);
}

TEST_F(EngineOnCudaTest, SessionsGoOnAndAreSavedForTheCpu) {
  const SpecEngineOptions options = Options("static-8", 2, 1024);
  Engine cuda = OpenEngine(cuda_, tokenizer_, options);
  Request first = Ask(kProblems[1]);
  first.session = 3;
  first.max_tokens = 100;
  const Completion begun = RunOne(cuda, first);
  const testing_support::TempFolder folder;
  cuda.SaveSession(3, folder.File("session"));
  Request second = first;
  second.prompt_ids = begun.prompt_ids;
  second.prompt_ids.insert(second.prompt_ids.end(), begun.output_ids.begin(),
                           begun.output_ids.end());
  const Completion on_cuda = RunOne(cuda, second);
  Engine cpu = OpenEngine(cpu_, tokenizer_, options);
  cpu.LoadSession(3, folder.File("session"));
  EXPECT_EQ(RunOne(cpu, second).text, on_cuda.text);
}

TEST_F(EngineOnCudaTest, PublishedMethodsRunOnTheHost) {
  for (const char* const spec : {"kivi", "rotatekv"}) {
    SCOPED_TRACE(spec);
    const SpecEngineOptions options = Options(spec, 1, 512);
    Engine cuda = OpenEngine(cuda_, tokenizer_, options);
    Engine cpu = OpenEngine(cpu_, tokenizer_, options);
    Request request = Ask(kProblems[2]);
    request.max_tokens = 60;
    EXPECT_EQ(RunOne(cuda, request).text, RunOne(cpu, request).text);
  }
}

// Requests in a pool for about three of them, some with the same beginning: kept prompts are taken
// over, pages of all are halved, and whoever gives up its place comes back, as on the CPU.
TEST_F(EngineOnCudaTest, PoolsShareHalveAndKeepPromptsAsOnTheCpu) {
  for (const int64_t bytes : {int64_t{32} << 20, int64_t{2'500'000}}) {
    SCOPED_TRACE(bytes);
    SpecEngineOptions options = Options("pm-kvq", 6, 1024);
    options.kv.pool.bytes = bytes;
    options.kv.pool.prefix_bytes = bytes;
    options.chunk = 128;
    Engine cuda = OpenEngine(cuda_, tokenizer_, options);
    Engine cpu = OpenEngine(cpu_, tokenizer_, options);
    const auto ask = [&](uint64_t i) {
      Request request =
          MakeRequest(testing_support::RandomPrompt(300, i % 2 == 0 ? 7 : 100 + i, 540), 300, i);
      for (const int32_t id : testing_support::RandomPrompt(20, 200 + i, 540)) {
        request.prompt_ids.push_back(id);
      }
      return request;
    };
    std::vector<Request> requests;
    for (uint64_t i = 0; i < 10; ++i) requests.push_back(ask(i));
    const std::vector<Completion> a = cuda.Generate(requests, nullptr, nullptr);
    const std::vector<Completion> b = cpu.Generate(requests, nullptr, nullptr);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].finish_reason, b[i].finish_reason);
      EXPECT_EQ(a[i].output_ids.size(), b[i].output_ids.size());
      EXPECT_EQ(a[i].kv.pages, b[i].kv.pages);
      EXPECT_EQ(a[i].num_cached_tokens, b[i].num_cached_tokens);
    }
    const KvPoolStats on_cuda = cuda.store().StoreStats().pool;
    const KvPoolStats on_cpu = cpu.store().StoreStats().pool;
    EXPECT_LE(on_cuda.peak_bytes, bytes);
    EXPECT_EQ(on_cuda.prefix_hits, on_cpu.prefix_hits);
    EXPECT_EQ(on_cuda.prefix_hit_tokens, on_cpu.prefix_hit_tokens);
    EXPECT_EQ(cuda.stats().num_preemptions, cpu.stats().num_preemptions);
    // What a kept prompt holds is what computing gives: texts are the same again.
    if (bytes > (int64_t{16} << 20)) {
      EXPECT_GT(on_cuda.prefix_hits, 0);
      const Completion again = RunOne(cuda, requests[0]);
      EXPECT_GT(again.num_cached_tokens, 0);
      EXPECT_EQ(again.output_ids, a[0].output_ids);
      SpecEngineOptions alone = options;
      alone.kv.pool = {};
      alone.kv.spec = "fp16";
      Engine isolated = OpenEngine(cuda_, tokenizer_, alone);
      EXPECT_EQ(RunOne(isolated, requests[0]).output_ids, a[0].output_ids);
    }
  }
}

// Only the token behind the last one.
class Counting : public OutputGrammar {
 public:
  class Mask : public TokenMask {
   public:
    std::span<const int32_t> Forbidden() override {
      forbidden_.clear();
      for (int32_t id = 0; id < 576; ++id) {
        if (id != next_) forbidden_.push_back(id);
      }
      return forbidden_;
    }
    void Accept(int32_t token) override { next_ = token + 1; }

   private:
    int32_t next_ = 100;
    std::vector<int32_t> forbidden_;
  };
  std::unique_ptr<TokenMask> Start() const override { return std::make_unique<Mask>(); }
};

// A mask, a bias and the tokens before min_tokens decide on the host, beside requests that do not.
TEST_F(EngineOnCudaTest, RulesOfARequestHoldOnADevice) {
  Engine engine = OpenEngine(cuda_, nullptr, Options("fp16", 4, 300));
  std::vector<Request> requests(3, MakeRequest(testing_support::RandomPrompt(20, 1, 540), 30));
  requests[0].grammar = std::make_shared<Counting>();
  requests[1].rules.bias = {{77, 1e6f}};
  const std::vector<Completion> done = engine.Generate(requests, nullptr, nullptr);
  for (int32_t i = 0; i < 30; ++i) EXPECT_EQ(done[0].output_ids[static_cast<size_t>(i)], 100 + i);
  EXPECT_EQ(done[1].output_ids, std::vector<int32_t>(30, 77));
  Engine alone = OpenEngine(cuda_, nullptr, Options("fp16", 1, 300));
  EXPECT_EQ(done[2].output_ids, RunOne(alone, requests[2]).output_ids);
}

TEST_F(EngineOnCudaTest, PromptLogprobsAndRepliesOfSamplesAreThose) {
  const SpecEngineOptions options = Options("fp16", 4, 700);
  Engine cuda = OpenEngine(cuda_, tokenizer_, options);
  Engine cpu = OpenEngine(cpu_, tokenizer_, options);
  Request request = Ask(kProblems[0]);
  request.num_prompt_logprobs = 2;
  request.max_tokens = 30;
  const Completion a = RunOne(cuda, request);
  const Completion b = RunOne(cpu, request);
  ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size());
  request.num_prompt_logprobs = -1;
  const std::vector<uint64_t> seeds = {1, 2, 3};
  request.sampling.temperature = 0.7;
  const std::vector<Completion> samples = cuda.GenerateSamples(request, seeds, nullptr, nullptr);
  for (size_t i = 0; i < seeds.size(); ++i) {
    Request alone = request;
    alone.seed = seeds[i];
    EXPECT_EQ(RunOne(cuda, alone).text, samples[i].text);
  }
}

}  // namespace
}  // namespace pmkvq
