#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/kernels/softmax_xent/softmax_xent.h"
#include "pmkvq/research/eval/perplexity.h"
#include "pmkvq/research/methods/registry.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::RandomPrompt;

class CountingProgress : public ProgressSink {
 public:
  void Begin(const std::string& task, int64_t task_total, int64_t already) override {
    name = task;
    total = task_total;
    done = already;
  }
  void Advance(int64_t units) override {
    done += units;
    ++reports;
  }
  void End() override { ended = true; }

  std::string name;
  int64_t total = 0, done = 0, reports = 0;
  bool ended = false;
};

KvOptions OptionsFor(const std::string& spec) {
  KvOptions options;
  options.spec = spec;
  return options;
}

PerplexityResult Measure(const std::shared_ptr<const Model>& model,
                         const std::vector<std::vector<int32_t>>& sequences,
                         const KvOptions& options, int threads = 1) {
  return MeasurePerplexity(model, sequences, options, 512, threads, nullptr, nullptr);
}

// Mean loss from one Forward over the whole sequence, through a float32 cache.
double WholeSequenceLoss(const Model& model, const std::vector<int32_t>& tokens) {
  KvOptions options;
  options.kv_dtype = DType::kF32;
  const auto length = static_cast<int64_t>(tokens.size());
  const auto store = MakeKvStore(options, {model.kv_geometry(), 1, length, 1});
  const SequenceId seq = store->Open().value();
  EXPECT_EQ(store->Reserve(seq, length), ReserveResult::kReserved);
  ForwardWorkspace workspace;
  const ForwardChunk chunk{seq, tokens, 0, ForwardChunk::Logits::kAll};
  ThrowIfFailed(model.Forward({&chunk, 1}, *store, workspace, 1));
  const int64_t vocab = model.config().vocab_size;
  double sum = 0;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    sum += CrossEntropy(workspace.logits.data() + static_cast<int64_t>(i) * vocab, vocab,
                        tokens[i + 1]);
  }
  return sum / static_cast<double>(length - 1);
}

// Both are the loss of the same tokens: here from prompt chunks, there token by token. A chunk's
// rows see each other as floats. So with 16-bit floats in the cache the sums are equal where a
// chunk is a token, and else the means are as close as the rounding of keys and values allows.
TEST(Perplexity, EqualsThePromptLogprobsOfAnEngine) {
  const auto model = LoadTinyLlama();
  const std::vector<int32_t> tokens = RandomPrompt(400, 3);
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    KvOptions kv = OptionsFor("fp16");
    kv.kv_dtype = dtype;
    const PerplexityResult expected = Measure(model, {tokens}, kv);
    for (const int64_t chunk : {1, 64, 512}) {
      EngineOptions options;
      options.chunk = chunk;
      options.num_threads = 1;
      options.max_len = 400;
      Engine engine(model, nullptr, MakePackedCache(*model, kv, options), options);
      Request request = testing_support::MakeRequest(tokens, 1);
      request.num_prompt_logprobs = 0;
      double sum = 0;
      for (const TokenLogprobs& one : testing_support::RunOne(engine, request).prompt_logprobs) {
        sum += one.drawn.logprob;
      }
      const auto count = static_cast<double>(expected.num_tokens);
      const bool same_rows = chunk == 1 || dtype == DType::kF32;
      EXPECT_NEAR(-sum, expected.loss * count, same_rows ? 1e-4 : 1e-4 * count);
    }
  }
}

TEST(Perplexity, EqualsTheLossOfTheWholeSequence) {
  const auto model = LoadTinyLlama();
  const std::vector<int32_t> tokens = RandomPrompt(200, 1);
  KvOptions options = OptionsFor("fp16");
  options.kv_dtype = DType::kF32;
  const PerplexityResult result = Measure(model, {tokens}, options);
  EXPECT_EQ(result.num_tokens, 199);
  // Two orders of summation in float.
  EXPECT_NEAR(result.loss, WholeSequenceLoss(*model, tokens), 1e-5);
  EXPECT_EQ(result.kl_to_fp16, 0);
}

TEST(Perplexity, FewerBitsGiveMoreDivergence) {
  const auto model = LoadTinyLlama();
  const std::vector<std::vector<int32_t>> sequences = {RandomPrompt(500, 1), RandomPrompt(450, 2)};
  double previous = 0;
  for (const char* spec : {"static-8", "static-4", "static-2"}) {
    const double divergence = Measure(model, sequences, OptionsFor(spec)).kl_to_fp16;
    EXPECT_GT(divergence, previous) << spec;
    previous = divergence;
  }
  // A progressive cache at the budget of 4 bits lies below the static one at 2.
  const double progressive = Measure(model, sequences, OptionsFor("pm-kvq:bits=4")).kl_to_fp16;
  EXPECT_GT(progressive, 0);
  EXPECT_LT(progressive, previous);
}

TEST(Perplexity, DoesNotDependOnBatchingOrderOrThreads) {
  const auto model = LoadTinyLlama();
  std::vector<std::vector<int32_t>> sequences;
  for (uint64_t i = 0; i < 11; ++i) {  // More than run together.
    sequences.push_back(RandomPrompt(2 + static_cast<int64_t>(i * 53 % 170), i));
  }
  KvOptions fixed = OptionsFor("pm-kvq");  // Its budget does not follow from the longest sequence.
  fixed.budget_bytes = 50000;
  const PerplexityResult all = Measure(model, sequences, fixed);
  double loss = 0, divergence = 0;
  int64_t count = 0;
  for (const auto& sequence : sequences) {
    const PerplexityResult one = Measure(model, {sequence}, fixed);
    loss += one.loss * static_cast<double>(one.num_tokens);
    divergence += one.kl_to_fp16 * static_cast<double>(one.num_tokens);
    count += one.num_tokens;
  }
  EXPECT_EQ(all.num_tokens, count);
  // The same terms; only means were rounded in between.
  EXPECT_NEAR(all.loss, loss / static_cast<double>(count), 1e-12);
  EXPECT_NEAR(all.kl_to_fp16, divergence / static_cast<double>(count), 1e-12);
  EXPECT_GT(all.kl_to_fp16, 0);

  // Long enough to be quantised.
  const std::vector<std::vector<int32_t>> few = {RandomPrompt(150, 20), RandomPrompt(140, 21)};
  const PerplexityResult single = Measure(model, few, fixed, 1);
  const PerplexityResult threaded = Measure(model, few, fixed, 2);
  EXPECT_EQ(threaded.loss, single.loss);
  EXPECT_EQ(threaded.kl_to_fp16, single.kl_to_fp16);
}

// With an unquantised cache on both sides, what is left is the error of the weights.
TEST(Perplexity, QuantisedWeightsAreComparedWithTheModelAsStored) {
  const std::shared_ptr<const Model> model = LoadTinyLlama();
  const std::shared_ptr<const Model> quantised =
      Model::Load(model->checkpoint().folder(), {WeightMode::kQ8, 1});
  const std::vector<std::vector<int32_t>> sequences = {RandomPrompt(40, 3)};
  const KvOptions options = OptionsFor("fp16");
  const PerplexityResult alone = Measure(quantised, sequences, options);
  EXPECT_EQ(alone.kl_to_fp16, 0.0);
  const PerplexityResult compared =
      MeasurePerplexity(quantised, sequences, options, 512, 1, nullptr, nullptr, model.get());
  EXPECT_EQ(compared.loss, alone.loss);
  EXPECT_GT(compared.kl_to_fp16, 0.0);
  EXPECT_LT(compared.kl_to_fp16, 1e-2);
}

TEST(Perplexity, KeyScalesChangeNothingUnquantised) {
  const auto model = LoadTinyLlama();
  const std::vector<std::vector<int32_t>> sequences = {RandomPrompt(300, 3)};
  KvOptions options = OptionsFor("fp16");
  options.kv_dtype = DType::kF32;
  const double plain = Measure(model, sequences, options).loss;
  auto plan = std::make_shared<Plan>();
  plan->model_identity = model->checkpoint().Identity();
  plan->geometry = model->kv_geometry();
  for (int block = 0; block < 2; ++block) {
    Tensor scales(DType::kF32, {2, 8});
    for (int i = 0; i < 16; ++i) scales.As<float>()[i] = 0.3f + 0.2f * static_cast<float>(i);
    plan->key_scales.push_back(std::move(scales));
  }
  options.plan = plan;
  const PerplexityResult scaled = Measure(model, sequences, options);
  EXPECT_NE(scaled.loss, plain);
  EXPECT_NEAR(scaled.loss, plain, 1e-5);
  EXPECT_EQ(scaled.kl_to_fp16, 0) << "the unquantised cache has the same scales";
  options.spec = "fp16:scales=off";
  EXPECT_EQ(Measure(model, sequences, options).loss, plain);
}

TEST(Perplexity, ReportsProgressAndHeedsCancel) {
  const auto model = LoadTinyLlama();
  const std::vector<std::vector<int32_t>> sequences = {RandomPrompt(100, 1), RandomPrompt(51, 2)};
  CountingProgress progress;
  MeasurePerplexity(model, sequences, OptionsFor("fp16"), 40, 1, &progress, nullptr);
  EXPECT_EQ(progress.name, "perplexity");
  EXPECT_EQ(progress.total, 149);
  EXPECT_EQ(progress.done, 149);
  EXPECT_EQ(progress.reports, 4);
  EXPECT_TRUE(progress.ended);

  const CancelFlag cancel = true;
  EXPECT_THROW(MeasurePerplexity(model, sequences, OptionsFor("fp16"), 40, 1, nullptr, &cancel),
               Cancelled);
}

TEST(Perplexity, NamesWhatIsWrong) {
  const auto model = LoadTinyLlama();
  const auto expect = [&](const std::vector<std::vector<int32_t>>& sequences,
                          const KvOptions& options, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { Measure(model, sequences, options); }, parts);
  };
  const KvOptions fp16 = OptionsFor("fp16");
  expect({}, fp16, {"[perplexity] no sequences"});
  expect({{5, 6}, {5}}, fp16, {"[sequence 1] 1 tokens", "expected 2 to"});
  expect({RandomPrompt(4097, 1)}, fp16, {"[sequence 0] 4097 tokens", "4096"});
  expect({{5, 300}}, fp16, {"[sequence 0]", "token id 300 at index 1"});
  KvOptions small = OptionsFor("pm-kvq");
  small.budget_bytes = 50000;
  expect({RandomPrompt(2000, 1)}, small, {"[sequence 0] 1999 tokens do not fit", "--kv-budget"});
  KvOptions reference = OptionsFor("pm-kvq:bits=2");
  reference.reference_accounting = true;
  expect({RandomPrompt(600, 1)}, reference, {"--kv-budget", "of 600 tokens"});
}

TEST(Perplexity, LogitsThatAreNotFiniteNameModelAndPosition) {
  const testing_support::TinyModel tiny;
  testing_support::TinyWeights weights = testing_support::MakeTinyWeights(tiny);
  std::fill_n(weights.at("lm_head.weight").As<float>() + 7 * tiny.hidden, tiny.hidden,
              std::numeric_limits<float>::infinity());
  const testing_support::TempFolder folder;
  testing_support::WriteTinyModel(tiny, weights, folder);
  ExpectError<InvalidInput>(
      [&] {
        Measure(Model::Load(folder.path()), {{5, 6, 7, 8}}, KvOptions{});
      },
      {folder.path(), "position 0", "logits are not finite"});
}

}  // namespace
}  // namespace pmkvq
