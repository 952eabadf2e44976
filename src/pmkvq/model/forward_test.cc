#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/profile.h"
#include "support/dense_kv_store.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;
using testing_support::MakeTinyWeights;
using testing_support::RandomTokens;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModelOracle;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;
using Logits = ForwardChunk::Logits;

// Sums of at most 64 products of values near 1, in float, through 3 blocks: 1e-4 of logits near 3
// is a hundred times the error seen.
constexpr double kLogitTolerance = 1e-4;

std::shared_ptr<const Model> LoadTiny(const TinyModel& tiny, const TinyWeights& weights) {
  TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  return Model::Load(folder.path());  // The mapping outlives the files.
}

std::unique_ptr<KvStore> Fp16KindStore(const Model& model, int64_t max_sequences, int threads) {
  CacheConfig config;
  config.geometry = model.kv_geometry();
  config.float_type = DType::kF32;
  config.max_sequences = max_sequences;
  config.close_bits = 16;
  config.floor_bits = 16;
  config.num_threads = threads;
  config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                             BlockBytes(config, 0, /*num_tokens=*/400, 16, 16));
  return MakePackedKvCache(config);
}

// A model, a store and what is needed to send it tokens.
class Runner {
 public:
  Runner(const Model& model, std::unique_ptr<KvStore> store, int threads)
      : model_(model), store_(std::move(store)), threads_(threads) {}

  SequenceId Open() { return store_->Open().value(); }

  ForwardChunk Chunk(SequenceId seq, std::span<const int32_t> tokens, Logits logits) {
    return {seq, tokens, store_->NumTokens(seq), logits};
  }

  // Logits of all chunks behind one another.
  std::vector<float> Run(const std::vector<ForwardChunk>& chunks) {
    for (const ForwardChunk& chunk : chunks) {
      EXPECT_EQ(store_->Reserve(chunk.seq, static_cast<int64_t>(chunk.tokens.size())),
                ReserveResult::kReserved);
    }
    ThrowIfFailed(model_.Forward(chunks, *store_, workspace_, threads_));
    const auto begin = workspace_.logits.begin();
    return {begin, begin + workspace_.num_logit_rows * model_.config().vocab_size};
  }

  KvStore& store() { return *store_; }
  const ForwardWorkspace& workspace() const { return workspace_; }

 private:
  const Model& model_;
  std::unique_ptr<KvStore> store_;
  ForwardWorkspace workspace_;
  const int threads_;
};

void ExpectNear(const std::vector<float>& actual, const double* expected, double tolerance) {
  double worst = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i]));
    worst = std::max(worst, std::abs(double{actual[i]} - expected[i]));
  }
  EXPECT_LE(worst, tolerance);
}

class ForwardOfEach : public testing::TestWithParam<std::string> {
 protected:
  const TinyModel tiny_ = TinyModels().at(GetParam());
  const TinyWeights weights_ = MakeTinyWeights(tiny_);
  const std::shared_ptr<const Model> model_ = LoadTiny(tiny_, weights_);
};

// One chunk, several chunks, and token by token, through both stores.
TEST_P(ForwardOfEach, LogitsAreThoseOfTheOracle) {
  const std::vector<int32_t> tokens = RandomTokens(tiny_.vocab, 45, 9);
  const std::vector<double> expected = TinyModelOracle(tiny_, weights_).Logits(tokens);
  for (const bool packed : {false, true}) {
    for (const size_t step : {45u, 20u, 1u}) {
      SCOPED_TRACE(testing::Message() << "packed " << packed << ", chunks of " << step);
      Runner runner(*model_,
                    packed ? Fp16KindStore(*model_, 1, 1)
                           : std::make_unique<DenseKvStore>(model_->kv_geometry()),
                    1);
      const SequenceId seq = runner.Open();
      std::vector<float> logits;
      for (size_t begin = 0; begin < tokens.size(); begin += step) {
        const size_t count = std::min(step, tokens.size() - begin);
        const std::vector<float> part =
            runner.Run({runner.Chunk(seq, std::span(tokens).subspan(begin, count), Logits::kAll)});
        logits.insert(logits.end(), part.begin(), part.end());
      }
      ASSERT_EQ(logits.size(), expected.size());
      ExpectNear(logits, expected.data(), kLogitTolerance);
      EXPECT_EQ(runner.store().NumTokens(seq), 45);
    }
  }
}

// The weights that a quantised model multiplies with, worked out by the oracle of the format.
TinyWeights Dequantized(const TinyModel& tiny, const TinyWeights& weights) {
  TinyWeights result = weights;
  if (tiny.tied) result["lm_head.weight"] = result.at("model.embed_tokens.weight");
  for (auto& [name, tensor] : result) {
    const bool is_of_experts = name.find(".experts.") != std::string::npos;
    const bool is_projection =
        name.ends_with("proj.weight") || name.ends_with("proj_with_mqa.weight");
    if (!is_projection && !is_of_experts && name != "lm_head.weight") continue;
    const int64_t rows = tensor.shape()[0];
    const int64_t cols = tensor.shape()[1];
    Q8Weight codes;
    EXPECT_TRUE(ref::QuantizeWeight(
        {tensor.view().data, *WeightFormatNamed(NameOf(tensor.dtype())), rows, cols}, codes));
    tensor = Tensor(DType::kF32, {rows, cols});
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < cols; ++k) {
        std::vector<float> unit(static_cast<size_t>(cols), 0.0f);
        unit[static_cast<size_t>(k)] = 1.0f;
        const WeightView row{codes.data.data() + n * RowBytes(WeightFormat::kQ8, cols),
                             WeightFormat::kQ8, 1, cols};
        ref::MatMul(unit.data(), 1, row, nullptr, tensor.As<float>() + n * cols + k);
      }
    }
  }
  return result;
}

TEST_P(ForwardOfEach, QuantisedWeightsAreThoseOfTheOracle) {
  TempFolder folder;
  WriteTinyModel(tiny_, weights_, folder);
  const std::shared_ptr<const Model> model = Model::Load(folder.path(), {WeightMode::kQ8, 2});
  EXPECT_EQ(model->weights(), WeightMode::kQ8);
  TinyModel untied = tiny_;
  untied.tied = false;
  const TinyWeights dequantized = Dequantized(tiny_, weights_);
  const std::vector<int32_t> tokens = RandomTokens(tiny_.vocab, 70, 9);
  const std::vector<double> expected = TinyModelOracle(untied, dequantized).Logits(tokens);
  for (const size_t step : {70u, 1u}) {
    Runner runner(*model, std::make_unique<DenseKvStore>(model->kv_geometry()), 2);
    const SequenceId seq = runner.Open();
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += step) {
      const std::vector<float> part =
          runner.Run({runner.Chunk(seq, std::span(tokens).subspan(begin, step), Logits::kAll)});
      logits.insert(logits.end(), part.begin(), part.end());
    }
    ASSERT_EQ(logits.size(), expected.size());
    ExpectNear(logits, expected.data(), kLogitTolerance);
  }
}

// The rotation and the scales cancel in q . k; the stored keys are divided by the scales.
// Memory is known without a Forward.
TEST_P(ForwardOfEach, TakesTheWorkspaceThatTheConfigTells) {
  TinyModel tiny = TinyModels().at(GetParam());
  const auto model = LoadTiny(tiny, MakeTinyWeights(tiny));
  const auto bytes = [](const ForwardWorkspace& workspace) {
    return static_cast<int64_t>(workspace.scratch.num_bytes() +
                                workspace.logits.size() * sizeof(float));
  };
  const std::vector<int32_t> tokens(30, 3);
  const auto store = Fp16KindStore(*model, 70, 1);
  ForwardWorkspace workspace;
  std::vector<ForwardChunk> singles;
  for (int i = 0; i < 70; ++i) {
    singles.push_back({store->Open().value(), std::span(tokens).first(1), 0});
    ASSERT_EQ(store->Reserve(singles.back().seq, 1), ReserveResult::kReserved);
  }
  ThrowIfFailed(model->Forward(singles, *store, workspace, 1));
  EXPECT_EQ(bytes(workspace), WorkspaceBytesOf(model->config(), 70, 0));
  const ForwardChunk chunk{singles[0].seq, tokens, 1};
  ASSERT_EQ(store->Reserve(chunk.seq, 30), ReserveResult::kReserved);
  ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, 1));
  EXPECT_EQ(bytes(workspace), WorkspaceBytesOf(model->config(), 70, 30));
  ForwardWorkspace other;
  ASSERT_EQ(store->Reserve(chunk.seq, 30), ReserveResult::kReserved);
  const ForwardChunk next{singles[0].seq, tokens, 31};
  ThrowIfFailed(model->Forward({&next, 1}, *store, other, 1));
  EXPECT_EQ(bytes(other), WorkspaceBytesOf(model->config(), 0, 30));
}

TEST_P(ForwardOfEach, KeyScalesChangeTheKeysButNotTheLogits) {
  if (tiny_.is_mla()) GTEST_SKIP() << "stores scale latents themselves";
  const std::vector<int32_t> tokens = RandomTokens(tiny_.vocab, 21, 4);
  const auto run = [&](DenseKvStore** store, const std::vector<Tensor>& with_scales) {
    auto dense = std::make_unique<DenseKvStore>(
        model_->kv_geometry(), KeyScales::Make(model_->kv_geometry(), with_scales));
    *store = dense.get();
    auto runner = std::make_unique<Runner>(*model_, std::move(dense), 1);
    const SequenceId seq = runner->Open();
    std::vector<float> logits = runner->Run({runner->Chunk(seq, tokens, Logits::kAll)});
    return std::make_pair(std::move(runner), std::move(logits));
  };
  DenseKvStore* plain_store;
  DenseKvStore* scaled_store;
  const auto plain = run(&plain_store, {});
  Random random(5);
  const int64_t half = tiny_.head_dim / 2;
  std::vector<Tensor> scales;
  for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
    scales.emplace_back(DType::kF32, Shape{tiny_.kv_heads, half});
    for (int64_t i = 0; i < scales.back().num_elements(); ++i) {
      scales.back().As<float>()[i] = static_cast<float>(0.2 + 5.0 * random.Uniform());
    }
  }
  const auto scaled = run(&scaled_store, scales);
  const std::vector<double> expected(plain.second.begin(), plain.second.end());
  ExpectNear(scaled.second, expected.data(), kLogitTolerance);

  for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
    const std::vector<float>& keys = scaled_store->Keys(0, layer);
    const std::vector<float>& unscaled = plain_store->Keys(0, layer);
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto dim = static_cast<int64_t>(i) % tiny_.head_dim;
      const int64_t head = static_cast<int64_t>(i) / tiny_.head_dim % tiny_.kv_heads;
      const float scale = scales[static_cast<size_t>(layer)].As<float>()[head * half + dim % half];
      ASSERT_NEAR(keys[i] * scale, unscaled[i], 1e-4) << layer << " " << i;
    }
  }
  // They belong to the store: another one on the same model has none.
  EXPECT_EQ(run(&plain_store, {}).second, plain.second);
}

// One sequence's rows in batches of 1, 7, 16 and 21 with other sequences, on 1 and 2 threads.
TEST_P(ForwardOfEach, ARowsBitsDoNotDependOnItsBatch) {
  const std::vector<int32_t> prompt = RandomTokens(tiny_.vocab, 24, 1);
  const std::vector<int32_t> next = RandomTokens(tiny_.vocab, 5, 2);
  const auto run = [&](int64_t batch, int64_t place, int threads) {
    Runner runner(*model_, Fp16KindStore(*model_, batch, threads), threads);
    std::vector<std::vector<int32_t>> prompts;
    std::vector<ForwardChunk> chunks;
    for (int64_t i = 0; i < batch; ++i) {
      prompts.push_back(i == place ? prompt
                                   : RandomTokens(tiny_.vocab, 1 + i, static_cast<uint64_t>(i)));
    }
    for (int64_t i = 0; i < batch; ++i) {
      chunks.push_back(runner.Chunk(runner.Open(), prompts[static_cast<size_t>(i)], Logits::kLast));
    }
    std::vector<float> rows;
    const auto keep_row = [&](const std::vector<float>& logits) {
      const auto begin = logits.begin() + place * tiny_.vocab;
      rows.insert(rows.end(), begin, begin + tiny_.vocab);
    };
    keep_row(runner.Run(chunks));
    for (const int32_t& token : next) {
      for (ForwardChunk& chunk : chunks)
        chunk = runner.Chunk(chunk.seq, {&token, 1}, Logits::kLast);
      keep_row(runner.Run(chunks));
    }
    return rows;
  };
  const std::vector<float> alone = run(1, 0, 1);
  ASSERT_EQ(alone.size(), static_cast<size_t>(6 * tiny_.vocab));
  EXPECT_EQ(run(1, 0, 2), alone);
  for (const int threads : {1, 2}) {
    EXPECT_EQ(run(7, 3, threads), alone);
    EXPECT_EQ(run(16, 15, threads), alone);
    EXPECT_EQ(run(21, 18, threads), alone);
  }
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, tiny] : TinyModels()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, ForwardOfEach, testing::ValuesIn(Names()),
                         [](const auto& each) { return each.param; });

class Forward : public testing::Test {
 protected:
  std::vector<double> Oracle(const std::vector<int32_t>& tokens) const {
    return TinyModelOracle(tiny_, weights_).Logits(tokens);
  }

  const TinyModel tiny_;
  const TinyWeights weights_ = MakeTinyWeights(tiny_);
  const std::shared_ptr<const Model> model_ = LoadTiny(tiny_, weights_);
};

// Decode rows are computed first inside; logits come in the caller's order all the same.
TEST_F(Forward, LogitsComeInTheOrderOfChunksForEveryMixture) {
  DenseKvStore* store = new DenseKvStore(model_->kv_geometry());
  Runner runner(*model_, std::unique_ptr<KvStore>(store), 2);
  struct Part {
    int64_t num_tokens;
    Logits logits;
    int64_t num_logit_rows;
  };
  std::vector<Part> parts = {{3, Logits::kLast, 1},  {1, Logits::kLast, 1}, {20, Logits::kAll, 20},
                             {1, Logits::kNone, 0},  {5, Logits::kNone, 0}, {1, Logits::kAll, 1},
                             {18, Logits::kLast, 1}, {2, Logits::kAll, 2}};
  for (int i = 0; i < 20; ++i) parts.push_back({1, Logits::kLast, 1});
  std::vector<std::vector<int32_t>> tokens;
  std::vector<ForwardChunk> chunks;
  for (size_t i = 0; i < parts.size(); ++i) {
    tokens.push_back(RandomTokens(tiny_.vocab, parts[i].num_tokens, 100 + i));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    chunks.push_back(runner.Chunk(runner.Open(), tokens[i], parts[i].logits));
  }
  const std::vector<float> logits = runner.Run(chunks);
  size_t begin = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    SCOPED_TRACE(i);
    const std::vector<double> expected = Oracle(tokens[i]);
    const auto count = static_cast<size_t>(parts[i].num_logit_rows * tiny_.vocab);
    ASSERT_LE(begin + count, logits.size());
    const std::vector<float> part(logits.begin() + static_cast<int64_t>(begin),
                                  logits.begin() + static_cast<int64_t>(begin + count));
    ExpectNear(part, expected.data() + (expected.size() - count), kLogitTolerance);
    begin += count;
  }
  EXPECT_EQ(begin, logits.size());
  // The end of the last block was computed for these rows alone.
  int64_t last_rows = 0;
  for (const RowSlice& slice : runner.workspace().last_slices) last_rows += slice.num_rows;
  EXPECT_EQ(last_rows * tiny_.vocab, std::ssize(logits));
  EXPECT_EQ(store->num_open_forwards(), 0);
  EXPECT_EQ(store->last_batch().size(), parts.size());
}

// Keeps what it is handed.
class KeepingReader : public LogitReader {
 public:
  explicit KeepingReader(int64_t vocab_size) : vocab_size_(vocab_size) {}
  void Read(int64_t first_row, int64_t num_rows, const float* logits) override {
    EXPECT_EQ(first_row * vocab_size_, std::ssize(values));
    EXPECT_GT(num_rows, 0);
    EXPECT_LE(num_rows, kMostReadRows);
    values.insert(values.end(), logits, logits + num_rows * vocab_size_);
  }
  std::vector<float> values;

 private:
  int64_t vocab_size_;
};

// A reader gets the rows before the last one, which keeps the bits that it has without a reader,
// as do other chunks.
TEST_F(Forward, AReaderGetsRowsWhileTheyAreComputed) {
  for (const int64_t length : {1, 2, 3, 65, 150}) {
    const std::vector<int32_t> tokens = RandomTokens(tiny_.vocab, length, 9);
    const std::vector<int32_t> other = RandomTokens(tiny_.vocab, 5, 10);
    const std::vector<double> expected = Oracle(tokens);
    for (const bool keeps : {true, false}) {
      SCOPED_TRACE(testing::Message() << length << (keeps ? ", last row kept" : ""));
      const Logits kept = keeps ? Logits::kLast : Logits::kNone;
      Runner plain(*model_, Fp16KindStore(*model_, 4, 1), 1);
      const std::vector<float> without =
          plain.Run({plain.Chunk(plain.Open(), {other.data(), 1}, Logits::kLast),
                     plain.Chunk(plain.Open(), tokens, kept),
                     plain.Chunk(plain.Open(), other, Logits::kLast)});
      Runner runner(*model_, Fp16KindStore(*model_, 4, 2), 2);
      KeepingReader reader(tiny_.vocab);
      std::vector<ForwardChunk> chunks = {
          runner.Chunk(runner.Open(), {other.data(), 1}, Logits::kLast),
          runner.Chunk(runner.Open(), tokens, kept),
          runner.Chunk(runner.Open(), other, Logits::kLast)};
      chunks[1].reader = &reader;
      chunks[1].num_read = keeps ? length - 1 : length;
      EXPECT_EQ(runner.Run(chunks), without);
      ASSERT_EQ(std::ssize(reader.values), chunks[1].num_read * tiny_.vocab);
      ExpectNear(reader.values, expected.data(), kLogitTolerance);
      // Never the logits of all rows of a chunk at once.
      const ForwardWorkspace& workspace = runner.workspace();
      EXPECT_EQ(std::ssize(workspace.read_logits),
                std::min(chunks[1].num_read, kMostReadRows) * tiny_.vocab);
      EXPECT_EQ(workspace.logits.size(), without.size());
    }
  }
}

TEST_F(Forward, OfNoChunksLeavesNoLogits) {
  DenseKvStore store(model_->kv_geometry());
  ForwardWorkspace workspace;
  workspace.num_logit_rows = 3;
  EXPECT_TRUE(model_->Forward({}, store, workspace, 1).empty());
  EXPECT_EQ(workspace.num_logit_rows, 0);
}

TEST_F(Forward, AllocatesNothingInTheSteadyState) {
  Runner runner(*model_, std::make_unique<DenseKvStore>(model_->kv_geometry()), 1);
  const std::vector<int32_t> prompt = RandomTokens(tiny_.vocab, 30, 1);
  const SequenceId seq = runner.Open();
  runner.Run({runner.Chunk(seq, prompt, Logits::kLast)});
  const size_t bytes = runner.workspace().num_bytes();
  EXPECT_GT(bytes, 30 * sizeof(float) * static_cast<size_t>(tiny_.hidden));
  for (int i = 0; i < 4; ++i) {
    runner.Run({runner.Chunk(seq, std::span(prompt).subspan(0, 1 + static_cast<size_t>(i)),
                             Logits::kLast)});
  }
  EXPECT_EQ(runner.workspace().num_bytes(), bytes);
}

// The keys that Forward stores are those that calibration sees.
TEST_F(Forward, StoresTheKeysOfProfile) {
  const std::vector<int32_t> tokens = RandomTokens(tiny_.vocab, 33, 8);
  DenseKvStore* store = new DenseKvStore(model_->kv_geometry());
  Runner runner(*model_, std::unique_ptr<KvStore>(store), 1);
  const SequenceId seq = runner.Open();
  runner.Run({runner.Chunk(seq, tokens, Logits::kNone)});
  Profile<float> profile(*model_, 1);
  profile.Forward(tokens, StretchedPositions(33, 33), [&](const BlockStates<float>& states) {
    const std::vector<float>& keys = store->Keys(seq, states.layer);
    ASSERT_EQ(keys.size(), static_cast<size_t>(33 * tiny_.kv_dim()));
    for (size_t i = 0; i < keys.size(); ++i) ASSERT_NEAR(keys[i], states.k[i], 1e-4);
  });
}

// Rotates the keys before RoPE that it is handed and compares them with those that it stores.
class ExtrasStore : public DenseKvStore {
 public:
  explicit ExtrasStore(const Model& model) : DenseKvStore(model.kv_geometry()), model_(model) {}

  KvExtraNeeds ExtraNeeds() const override { return {true, true, true, true}; }
  void OfferExtras(int64_t layer, const KvExtras& extras) override {
    offered_ = extras.keys_before_rope;
    ASSERT_EQ(extras.input_width, model_.config().hidden_size);
    if (layer == 0) {
      first_input.assign(extras.block_input, extras.block_input + extras.input_width);
      first_attention_input.assign(extras.attention_input,
                                   extras.attention_input + extras.input_width);
    }
  }
  void OfferLogits(SequenceId seq, std::span<const float> logits) override {
    EXPECT_EQ(num_open_forwards(), 1);
    offered_logits[seq].assign(logits.begin(), logits.end());
  }
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override {
    ASSERT_NE(offered_, nullptr);
    std::vector<int64_t> positions;
    for (const BatchChunk& chunk : last_batch()) {
      for (int64_t t = 0; t < chunk.num_tokens; ++t) positions.push_back(t);
    }
    const UniformKvGeometry geometry = UniformOf(model_.kv_geometry());
    const auto num_rows = static_cast<int64_t>(positions.size());
    std::vector<float> keys(offered_, offered_ + num_rows * geometry.kv_dim());
    ApplyRope(model_.rope(), positions.data(), num_rows, geometry.num_kv_heads, nullptr,
              keys.data(), 1);
    EXPECT_EQ(keys, std::vector<float>(k, k + num_rows * geometry.kv_dim()));
    offered_ = nullptr;
    ++num_checked;
    DenseKvStore::AppendAndAttend(layer, q, k, v, out);
  }

  int64_t num_checked = 0;
  std::vector<float> first_input;  // Of the first row, block 0.
  std::vector<float> first_attention_input;
  std::map<SequenceId, std::vector<float>> offered_logits;

 private:
  const Model& model_;
  const float* offered_ = nullptr;
};

TEST_F(Forward, HandsOverWhatAStoreNeeds) {
  auto* store = new ExtrasStore(*model_);
  Runner runner(*model_, std::unique_ptr<KvStore>(store), 1);
  const std::vector<int32_t> one = RandomTokens(tiny_.vocab, 1, 5);
  const std::vector<int32_t> many = RandomTokens(tiny_.vocab, 21, 6);
  const std::vector<float> logits = runner.Run({runner.Chunk(runner.Open(), many, Logits::kLast),
                                                runner.Chunk(runner.Open(), one, Logits::kNone)});
  EXPECT_EQ(store->num_checked, tiny_.layers);
  // Chunks of one token come first; block 0 reads the embedding.
  std::vector<float> embedding(static_cast<size_t>(tiny_.hidden));
  ExpandRow(model_->embedding(), one[0], embedding.data());
  EXPECT_EQ(store->first_input, embedding);
  std::vector<float> normed(embedding.size());
  const StoredWeight& norm =
      model_->checkpoint().weights().Get("blocks.0.attn.norm", {tiny_.hidden});
  std::vector<float> weight(embedding.size());
  ExpandRow(WeightView{norm.data, *norm.format, 1, tiny_.hidden}, 0, weight.data());
  RmsNorm(embedding.data(), 1, tiny_.hidden, weight.data(), model_->config().rms_norm_eps,
          normed.data(), 1);
  EXPECT_EQ(store->first_attention_input, normed);
  ASSERT_EQ(store->offered_logits.size(), 1u) << "the other one asked for no logits";
  EXPECT_EQ(store->offered_logits.at(0), logits);
  const std::vector<double> expected = Oracle(many);
  ExpectNear(logits, expected.data() + 20 * tiny_.vocab, kLogitTolerance);
}

using ForwardDeath = Forward;

TEST_F(ForwardDeath, ChecksTokens) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // Workers of earlier tests are alive.
  DenseKvStore store(model_->kv_geometry());
  const SequenceId seq = store.Open().value();
  ForwardWorkspace workspace;
  for (const int32_t token : {-1, 48}) {
    const ForwardChunk chunk = {seq, {&token, 1}, 0, Logits::kLast};
    EXPECT_DEATH(ThrowIfFailed(model_->Forward({&chunk, 1}, store, workspace, 1)),
                 "token id out of range");
  }
  const ForwardChunk empty = {seq, {}, 0, Logits::kLast};
  EXPECT_DEATH(ThrowIfFailed(model_->Forward({&empty, 1}, store, workspace, 1)), "empty chunk");
}

}  // namespace
}  // namespace pmkvq
