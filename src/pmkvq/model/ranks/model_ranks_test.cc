// Ranks as threads: 2, 4 and 8 ranks give bit for bit what one process gives with the same slices.
#include "pmkvq/model/ranks/model_ranks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/comm/thread_communicator.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/ranks/rank_size.h"
#include "support/expect_error.h"
#include "support/fp8_model.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::MakeTinyWeights;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;
using Logits = ForwardChunk::Logits;

constexpr int64_t kMaxTokens = 700;

struct Case {
  TinyModel model;
  WeightMode weights = WeightMode::kAsStored;
  std::vector<int> ranks;
};

std::map<std::string, Case> Cases() {
  std::map<std::string, Case> cases;
  const TinyModel wide{
      .vocab = 77, .hidden = 64, .inner = 264, .layers = 2, .heads = 8, .kv_heads = 8};
  cases["llama_f32"] = {wide, WeightMode::kAsStored, {2, 4, 8}};
  TinyModel shared = wide;  // More ranks than KV heads: copies.
  shared.kv_heads = 2;
  shared.architecture = "Qwen2ForCausalLM";
  shared.qkv_bias = true;
  shared.tied = true;
  shared.dtype = DType::kBF16;
  cases["qwen2_bf16_tied_copied_heads"] = {shared, WeightMode::kAsStored, {2, 4, 8}};
  TinyModel quantised = wide;
  quantised.kv_heads = 4;
  quantised.head_dim = 32;  // A rank's columns of o are whole groups of 32.
  quantised.inner = 320;
  quantised.o_bias = quantised.qkv_bias = true;
  cases["llama_q8"] = {quantised, WeightMode::kQ8, {2, 4, 8}};
  TinyModel q4 = quantised;
  q4.tied = true;
  cases["llama_q4_tied"] = {q4, WeightMode::kQ4, {2, 4}};
  TinyModel normed = wide;
  normed.architecture = "Qwen3ForCausalLM";
  normed.qk_norm = true;
  normed.heads = 4;
  normed.kv_heads = 1;
  cases["qwen3_one_kv_head"] = {normed, WeightMode::kAsStored, {2, 4}};
  TinyModel windowed = wide;
  windowed.architecture = "Gemma3ForCausalLM";
  windowed.tied = windowed.qk_norm = windowed.is_gemma = true;
  windowed.window = 150;
  windowed.full_layers = 1;
  windowed.dtype = DType::kBF16;
  cases["gemma3_windows"] = {windowed, WeightMode::kAsStored, {2, 4, 8}};
  TinyModel mixed = wide;  // Experts in all blocks; fewer of them than slices.
  mixed.architecture = "MixtralForCausalLM";
  mixed.experts = 6;
  mixed.kv_heads = 4;
  mixed.dtype = DType::kBF16;
  cases["mixtral"] = {mixed, WeightMode::kAsStored, {2, 4}};
  TinyModel sparse = wide;
  sparse.architecture = "Qwen3MoeForCausalLM";
  sparse.qk_norm = true;
  sparse.experts = 9;
  sparse.chosen = 3;
  sparse.expert_inner = 32;
  sparse.dense_layer = 1;
  cases["qwen3_moe"] = {sparse, WeightMode::kAsStored, {2, 8}};
  cases["qwen3_moe_q8"] = {sparse, WeightMode::kQ8, {4}};
  return cases;
}

CacheConfig ConfigFor(const Model& model, bool pool) {
  CacheConfig config;
  config.geometry = model.kv_geometry();
  config.max_sequences = 3;
  config.max_len = kMaxTokens;
  config.close_bits = 16;
  config.floor_bits = 2;
  config.policy = PolicyKind::kOldestFirst;
  std::vector<Tensor> scales;
  for (const KvBlockGeometry& block : config.geometry.blocks) {
    Tensor& tensor = scales.emplace_back(DType::kF32, KeyScales::ShapeOf(block));
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      tensor.As<float>()[i] = 0.5f + 0.07f * static_cast<float>(i % 11);
    }
  }
  config.key_scales = KeyScales::Make(config.geometry, scales);
  // Odd numbers of bytes, which hold the longest sequence at some 3 bits.
  for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, static_cast<size_t>(layer), kMaxTokens, 4, 2) +
                                  37 + layer);
  }
  if (pool) {
    for (const int64_t bytes : config.budget_bytes) config.pool.bytes += 2 * bytes;
    config.pool.bytes += 13;
  }
  return config;
}

std::vector<int32_t> Tokens(int64_t count, int64_t seed, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>((i * i * 7 + i * 13 + seed * 31) % vocab));
  }
  return tokens;
}

// All that a run tells.
struct Told {
  std::vector<float> logits;
  std::vector<int64_t> numbers;

  bool operator==(const Told&) const = default;
};

class Collector final : public LogitReader {
 public:
  Collector(std::vector<float>& logits, int64_t vocab) : logits_(logits), vocab_(vocab) {}
  void Read(int64_t /*first*/, int64_t num_rows, const float* logits) override {
    logits_.insert(logits_.end(), logits, logits + num_rows * vocab_);
  }

 private:
  std::vector<float>& logits_;
  int64_t vocab_;
};

// Prompts of several lengths, forks, single tokens of all sequences together, tokens one by one, a
// cut, and what the cache says of all that.
class Session {
 public:
  Session(const Model& model, const CacheConfig& config)
      : model_(model), store_(MakePackedStore(model, config)), pool_(config.pool.bytes > 0) {}

  Told Run() {
    const int64_t vocab = model_.config().vocab_size;
    const SequenceId a = store_->Open().value();
    const SequenceId b = store_->Open().value();
    Forward({Chunk(a, 300, Logits::kLast)});  // BLAS.
    Collector reader(told_.logits, vocab);
    ForwardChunk read = Chunk(b, 100, Logits::kLast);
    read.reader = &reader;
    read.num_read = 90;
    Forward({read});
    Forward({Chunk(b, 70, Logits::kAll)});
    const SequenceId c = store_->Fork(a).value();
    Forward({Chunk(c, 20, Logits::kNone)});
    for (int step = 0; step < 150; ++step) {
      Forward({Chunk(b, 1, Logits::kLast), Chunk(a, 1, Logits::kLast), Chunk(c, 1, Logits::kNone)});
    }
    if (!pool_) {
      const std::vector<int32_t> replayed = Tokens(40, 5, vocab);
      const int64_t room = store_->ReserveOneByOne(a, 40);
      told_.numbers.push_back(room);
      ForwardChunk chunk{a,
                         {replayed.data(), static_cast<size_t>(room)},
                         store_->NumTokens(a),
                         Logits::kNone,
                         room > 1};
      ThrowIfFailed(model_.Forward({&chunk, 1}, *store_, workspace_, 2));
      Tell(a);
    }
    store_->Close(c);
    if (store_->LongestTruncation(a, 333) == 333) store_->Truncate(a, 333);
    Forward({Chunk(a, 1, Logits::kLast), Chunk(b, 1, Logits::kLast)});
    for (const SequenceId seq : {a, b}) Tell(seq);
    const KvStoreStats stats = store_->StoreStats();
    for (const int64_t number : {stats.pool.bytes, stats.pool.used_bytes, stats.pool.peak_bytes,
                                 stats.pool.narrowed_bytes}) {
      told_.numbers.push_back(number);
    }
    return told_;
  }

 private:
  ForwardChunk Chunk(SequenceId seq, int64_t count, Logits logits) {
    tokens_.push_back(Tokens(count, seq + store_->NumTokens(seq), model_.config().vocab_size));
    return {seq, tokens_.back(), store_->NumTokens(seq), logits};
  }

  void Forward(const std::vector<ForwardChunk>& chunks) {
    if (pool_) {
      std::vector<BatchChunk> batch;
      for (const ForwardChunk& chunk : chunks) {
        batch.push_back({chunk.seq, static_cast<int64_t>(chunk.tokens.size())});
      }
      told_.numbers.push_back(static_cast<int64_t>(store_->ReserveAll(batch)));
    } else {
      for (const ForwardChunk& chunk : chunks) {
        const ReserveResult result = store_->Reserve(chunk.seq, std::ssize(chunk.tokens));
        told_.numbers.push_back(static_cast<int64_t>(result));
      }
    }
    ThrowIfFailed(model_.Forward(chunks, *store_, workspace_, 1));
    const auto begin = workspace_.logits.begin();
    told_.logits.insert(told_.logits.end(), begin,
                        begin + workspace_.num_logit_rows * model_.config().vocab_size);
    for (const ForwardChunk& chunk : chunks) Tell(chunk.seq);
    tokens_.clear();
  }

  void Tell(SequenceId seq) {
    const KvSequenceStats stats = store_->SequenceStats(seq);
    for (const int64_t number : {stats.num_tokens, stats.bytes, stats.peak_bytes,
                                 stats.budget_bytes, stats.narrowed_bytes}) {
      told_.numbers.push_back(number);
    }
    for (int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
      const KvLayerStats of_layer = store_->LayerStats(seq, layer);
      told_.numbers.push_back(of_layer.bytes);
      told_.numbers.push_back(of_layer.budget_bytes);
      for (const int64_t pages : of_layer.k_pages) told_.numbers.push_back(pages);
      for (const int64_t pages : of_layer.v_pages) told_.numbers.push_back(pages);
    }
    for (const HalvingEvent& event : store_->TakeHalvingEvents()) {
      for (const int64_t number :
           {int64_t{event.seq}, event.layer, event.num_tokens, int64_t{event.from_bits},
            event.num_k_pages, event.num_v_pages, event.first_k_page, event.first_v_page}) {
        told_.numbers.push_back(number);
      }
    }
  }

  const Model& model_;
  std::unique_ptr<KvStore> store_;
  bool pool_;
  ForwardWorkspace workspace_;
  std::list<std::vector<int32_t>> tokens_;
  Told told_;
};

// What `run` tells when `num_ranks` ranks compute it, 1: this process with 8 slices.
Told Compute(const std::string& folder, WeightMode weights, int num_ranks,
             const std::function<Told(const Model&)>& run) {
  if (num_ranks == 1) {
    return run(*Model::Load(folder, {.weights = weights, .tp_slices = kRankSlices}));
  }
  Told told;
  RunRanks(num_ranks, [&](Communicator& comm) {
    ModelRanks ranks(comm);
    if (comm.rank() > 0) {
      EXPECT_EQ(ranks.Serve(), 7);
      return;
    }
    {
      const auto model = Model::Load(folder, {.weights = weights, .ranks = &ranks});
      told = run(*model);
    }
    ranks.End(7);
  });
  return told;
}

class ModelRanksTest : public testing::TestWithParam<std::string> {};

TEST_P(ModelRanksTest, AnyNumberOfRanksGivesTheBitsOfOne) {
  const Case tested = Cases().at(GetParam());
  TempFolder folder;
  WriteTinyModel(tested.model, MakeTinyWeights(tested.model), folder);
  for (const bool pool : {false, true}) {
    if (pool && tested.model.window > 0) continue;
    const auto run = [&](const Model& model) {
      return Session(model, ConfigFor(model, pool)).Run();
    };
    const Told one = Compute(folder.path(), tested.weights, 1, run);
    for (const float logit : one.logits) ASSERT_TRUE(std::isfinite(logit));
    for (const int num_ranks : tested.ranks) {
      const Told many = Compute(folder.path(), tested.weights, num_ranks, run);
      EXPECT_EQ(many.numbers, one.numbers) << num_ranks << " ranks, pool " << pool;
      ASSERT_EQ(many.logits.size(), one.logits.size());
      for (size_t i = 0; i < one.logits.size(); ++i) {
        ASSERT_EQ(many.logits[i], one.logits[i])
            << num_ranks << " ranks, logit " << i << ", pool " << pool;
      }
    }
  }
}

// Sums in another order: some units in the last place of sums of 264 products, through two blocks.
TEST_P(ModelRanksTest, SlicesChangeRoundingOnly) {
  const Case tested = Cases().at(GetParam());
  TempFolder folder;
  WriteTinyModel(tested.model, MakeTinyWeights(tested.model), folder);
  const auto logits = [&](int slices) {
    const auto model = Model::Load(folder.path(), {.weights = tested.weights, .tp_slices = slices});
    CacheConfig config = ConfigFor(*model, false);
    config.close_bits = config.floor_bits = 16;  // Codes would turn roundings into steps.
    config.float_type = DType::kF32;
    config.budget_bytes.clear();
    for (size_t layer = 0; layer < 2; ++layer) {
      config.budget_bytes.push_back(BlockBytes(config, layer, kMaxTokens, 16, 16));
    }
    const auto store = MakePackedStore(*model, config);
    const SequenceId seq = store->Open().value();
    const std::vector<int32_t> tokens = Tokens(100, 1, model->config().vocab_size);
    const ForwardChunk chunk{seq, tokens, 0, Logits::kAll};
    EXPECT_EQ(store->Reserve(seq, 100), ReserveResult::kReserved);
    ForwardWorkspace workspace;
    ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, 1));
    return std::vector<float>(workspace.logits.begin(), workspace.logits.end());
  };
  const std::vector<float> plain = logits(0);
  const std::vector<float> sliced = logits(kRankSlices);
  ASSERT_EQ(plain.size(), sliced.size());
  for (size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(plain[i], sliced[i], 2e-4) << i;
}

INSTANTIATE_TEST_SUITE_P(Models, ModelRanksTest,
                         testing::Values("llama_f32", "qwen2_bf16_tied_copied_heads", "llama_q8",
                                         "llama_q4_tied", "qwen3_one_kv_head", "gemma3_windows",
                                         "mixtral", "qwen3_moe", "qwen3_moe_q8"),
                         [](const auto& tested) { return tested.param; });

TEST(ModelRanksFp8Test, RanksGiveTheBitsOfOne) {
  const testing_support::Fp8Model made(/*by_row=*/false,
                                       testing_support::TinyModels().at("llama_f32"));
  const TempFolder folder;
  made.WriteFp8(folder, R"({"quant_method": "fp8", "weight_block_size": [24, 24]})");
  const auto run = [](const Model& model) { return Session(model, ConfigFor(model, false)).Run(); };
  const Told one = Compute(folder.path(), WeightMode::kAsStored, 1, run);
  for (const int num_ranks : {2, 4}) {
    EXPECT_EQ(Compute(folder.path(), WeightMode::kAsStored, num_ranks, run), one) << num_ranks;
  }
}

// A value of the last head only: the ranks without it hear of the failure, and go on.
TEST(ModelRanksFailureTest, AValueOfOneRanksHeadFailsTheSequenceOnAll) {
  const TinyModel tiny = Cases().at("llama_f32").model;
  TinyWeights weights = MakeTinyWeights(tiny);
  Tensor& bad = weights.at("model.layers.1.self_attn.v_proj.weight");
  for (int64_t i = bad.num_elements() - tiny.hidden; i < bad.num_elements(); ++i) {
    bad.As<float>()[i] = 1e6f;
  }
  TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  std::string text;
  const auto run = [&](const Model& model) {
    const auto store = MakePackedStore(model, ConfigFor(model, false));
    ForwardWorkspace workspace;
    for (int round = 0; round < 2; ++round) {
      const SequenceId seq = store->Open().value();
      const std::vector<int32_t> tokens = Tokens(5, 1, model.config().vocab_size);
      const ForwardChunk chunk{seq, tokens, 0, Logits::kLast};
      EXPECT_EQ(store->Reserve(seq, 5), ReserveResult::kReserved);
      const auto failures = model.Forward({&chunk, 1}, *store, workspace, 1);
      EXPECT_EQ(failures.size(), 1u);
      EXPECT_NE(store->FailureOf(seq), nullptr);
      if (!failures.empty()) text = failures[0].failure.what;
      store->Close(seq);
    }
    return Told{};
  };
  Compute(folder.path(), WeightMode::kAsStored, 1, run);
  const std::string of_one = text;
  EXPECT_FALSE(of_one.empty());
  for (const int num_ranks : {2, 4}) {
    text.clear();
    Compute(folder.path(), WeightMode::kAsStored, num_ranks, run);
    EXPECT_EQ(text, of_one);
  }
}

TEST(ModelRanksErrorTest, WrongNumbersOfRanksNameTheLegalOnes) {
  const auto refused = [](TinyModel tiny, int num_ranks) {
    TempFolder folder;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    std::string message;
    RunRanks(num_ranks, [&](Communicator& comm) {
      ModelRanks ranks(comm);
      if (comm.rank() > 0) {
        ranks.Serve();
        return;
      }
      try {
        (void)Model::Load(folder.path(), {.ranks = &ranks});
      } catch (const Error& error) {
        message = error.what();
      }
      ranks.End(0);
    });
    return message;
  };
  TinyModel tiny{.layers = 1};
  EXPECT_EQ(refused(tiny, 3), "[ranks] found 3 ranks, expected 1 or 2 or 4 (4 heads, 2 KV heads)");
  EXPECT_EQ(refused(tiny, 8), "[ranks] found 8 ranks, expected 1 or 2 or 4 (4 heads, 2 KV heads)");
  EXPECT_EQ(refused(tiny, 2), "");
  TinyModel latent{.architecture = "DeepseekV2ForCausalLM", .layers = 1, .latent = 16};
  EXPECT_NE(refused(latent, 2).find("latent"), std::string::npos);
}

// Without a device: the parts of P ranks are the model, each once, KV heads as often as they are
// copied; all slices have sizes that do not depend on P.
TEST(ModelRanksShardTest, PartsOnDevicesAreTheModel) {
  struct Shape {
    int64_t hidden, inner, heads, kv_heads, vocab;
    std::vector<int> ranks;
  };
  const Shape shapes[] = {{128, 584, 8, 8, 200, {2, 4, 8}},  // As Llama: a head for each rank.
                          {128, 1184, 28, 4, 1000, {2, 4}},  // Qwen2-7B's heads.
                          {128, 576, 8, 2, 77, {2, 4, 8}}};  // Copies.
  for (const Shape& shape : shapes) {
    const TinyModel tiny{.vocab = shape.vocab,
                         .hidden = shape.hidden,
                         .inner = shape.inner,
                         .layers = 1,
                         .heads = shape.heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = 64};
    const TempFolder folder;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    const Checkpoint checkpoint = Checkpoint::Open(folder.path());
    const auto shard_of = [&](int rank, int size) {
      return MakeShardOf(checkpoint.config(), checkpoint.weights(), WeightMode::kAsStored, rank,
                         size, 0, /*on_device=*/true);
    };
    const ModelShard one = shard_of(0, 1);
    for (const int size : shape.ranks) {
      std::map<int64_t, int64_t> copies;  // Of each KV head.
      int64_t q = 0;
      int64_t inner = 0;
      int64_t vocab = 0;
      for (int rank = 0; rank < size; ++rank) {
        const ModelShard shard = shard_of(rank, size);
        EXPECT_EQ(shard.heads.begins, one.heads.begins);
        EXPECT_EQ(shard.kv.begins, one.kv.begins);
        EXPECT_EQ(shard.q.begins, one.q.begins);
        EXPECT_EQ(shard.inner.begins, one.inner.begins);
        EXPECT_EQ(shard.vocab.begins, one.vocab.begins);
        // Each begins where the one before ends; q's columns of o are its rows of q.
        EXPECT_EQ(shard.q.begin(), q);
        EXPECT_EQ(shard.heads.begin(), q);
        EXPECT_EQ(shard.heads.size(), shard.q.size());
        EXPECT_EQ(shard.inner.begin(), inner);
        EXPECT_EQ(shard.vocab.begin(), vocab);
        q += shard.q.size();
        inner += shard.inner.size();
        vocab += shard.vocab.size();
        EXPECT_GT(shard.inner.size(), 0);
        EXPECT_GT(shard.vocab.size(), 0);
        for (int64_t row = shard.kv.begin(); row < shard.kv.begin() + shard.kv.size(); row += 64) {
          ++copies[row / 64];
          // The KV head of each of the rank's query heads is there.
          const int64_t of_kv = shape.heads / shape.kv_heads;
          if (size >= shape.kv_heads) {
            EXPECT_EQ(shard.heads.begin() / 64 / of_kv, row / 64);
          }
        }
        for (size_t slice = 0; slice < shard.inner.num_slices(); ++slice) {
          EXPECT_EQ(shard.inner.size(slice) % 8, 0);  // What cuBLAS takes.
        }
        const CacheConfig local = LocalCacheConfig(
            [&] {
              CacheConfig config;
              config.geometry = UniformKvGeometry{1, shape.heads, shape.kv_heads, 64};
              config.budget_bytes = {1 << 20};
              return config;
            }(),
            shard);
        EXPECT_EQ(local.budget_bytes[0], (1 << 20) / std::min<int64_t>(size, shape.kv_heads));
        EXPECT_EQ(local.geometry.blocks[0].num_heads, shape.heads / size);
      }
      EXPECT_EQ(q, shape.heads * 64);
      EXPECT_EQ(inner, shape.inner);
      EXPECT_EQ(vocab, shape.vocab);
      EXPECT_EQ(std::ssize(copies), shape.kv_heads);
      for (const auto& [head, count] : copies) {
        EXPECT_EQ(count, std::max<int64_t>(1, size / shape.kv_heads)) << head;
      }
    }
  }
}

// Llama-3-70B on 8 GPUs, by hand.
TEST(ModelRanksShardTest, TheSizeOfARankIsKnownFromTheConfig) {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = 128256;
  config.hidden_size = 8192;
  config.intermediate_size = 28672;
  config.num_layers = 80;
  config.num_heads = 64;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  const RankSize size = LargestRankOf(config, nullptr, WeightFormat::kBF16, WeightMode::kAsStored,
                                      8, /*on_device=*/true);
  const int64_t of_block = (8 + 2) * 128 * 8192 + 8192 * 8 * 128 + 3 * 8192 * 3584;
  const int64_t norms = (2 * 80 + 1) * 8192 * 4;
  EXPECT_EQ(size.weight_bytes, (80 * of_block + 128256 / 8 * 8192 + 128256 * 8192) * 2 + norms);
  EXPECT_EQ(size.config.num_heads, 8);
  EXPECT_EQ(size.config.num_kv_heads, 1);
  EXPECT_EQ(size.kv_parts, 8);
  EXPECT_EQ(size.kv_copies, 1);
  EXPECT_EQ(size.sum_bytes, int64_t{160} * 8192 * 4 * 7);
  const RankSize many = LargestRankOf(config, nullptr, WeightFormat::kBF16, WeightMode::kAsStored,
                                      16, /*on_device=*/true);
  EXPECT_EQ(many.config.num_heads, 4);
  EXPECT_EQ(many.kv_parts, 8);
  EXPECT_EQ(many.kv_copies, 2);
}

TEST(ModelRanksErrorTest, WhatRanksCannotDoIsRefusedBeforeTheOthersHearOfIt) {
  const TinyModel tiny{.layers = 1};
  TempFolder folder;
  WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
  RunRanks(2, [&](Communicator& comm) {
    ModelRanks ranks(comm);
    if (comm.rank() > 0) {
      EXPECT_EQ(ranks.Serve(), 0);
      return;
    }
    const auto model = Model::Load(folder.path(), {.ranks = &ranks});
    CacheConfig config = ConfigFor(*model, true);
    config.pool.prefix_bytes = 1 << 20;
    EXPECT_THROW((void)MakePackedStore(*model, config), Unsupported);
    EXPECT_THROW(RefuseShards(*model, "here"), Unsupported);
    EXPECT_THROW((void)Model::Load(folder.File("missing"), {.ranks = &ranks}), Error);
    ranks.End(0);
  });
}

}  // namespace
}  // namespace pmkvq
