#include "pmkvq/research/analysis/attention_recorder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "pmkvq/research/methods/registry.h"
#include "support/cache_driver.h"
#include "support/dense_kv_store.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;
using testing_support::MakeRows;
using testing_support::Rows;

const UniformKvGeometry kGeometry = {2, 4, 2, 16};
constexpr int64_t kMaxLen = 600;

RopeTable Rope() {
  RopeParams params;
  params.head_dim = kGeometry.head_dim;
  return RopeTable(params);
}

std::unique_ptr<KvStore> MakeStore(const std::string& spec, const RopeTable& rope) {
  KvOptions options;
  options.spec = spec;
  options.kv_dtype = DType::kF32;  // No rounding between what is stored and what is attended to.
  return MakeKvStore(options, {kGeometry, 1, kMaxLen, 1, &rope});
}

// One Forward of rows made by MakeRows, whose keys are taken as they are before RoPE. Returns the
// attention output per block.
std::vector<std::vector<float>> Forward(KvStore& store, const RopeTable& rope, SequenceId seq,
                                        int64_t num_tokens) {
  EXPECT_NE(store.Reserve(seq, num_tokens), ReserveResult::kBudgetExhausted);
  const int64_t position = store.NumTokens(seq);
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < num_tokens; ++t) positions.push_back(position + t);
  store.BeginForward({{seq, num_tokens}});
  std::vector<std::vector<float>> outputs;
  for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
    const Rows rows = MakeRows(kGeometry, 7, layer, position, num_tokens);
    std::vector<float> keys = rows.k;
    ApplyRope(rope, positions.data(), num_tokens, kGeometry.num_kv_heads, nullptr, keys.data(), 1);
    std::vector<float> input(static_cast<size_t>(num_tokens) * 8, 0.5f);
    if (store.ExtraNeeds().keys_before_rope || store.ExtraNeeds().block_input) {
      store.OfferExtras(layer, {rows.k.data(), input.data(), 8});
    }
    outputs.emplace_back(rows.q.size());
    store.AppendAndAttend(layer, rows.q.data(), keys.data(), rows.v.data(), outputs.back().data());
  }
  store.EndForward();
  return outputs;
}

// Values of a block as attention will read them.
std::vector<float> StoredValues(const KvStore& store, SequenceId seq, int64_t layer) {
  std::vector<float> values(static_cast<size_t>(store.NumTokens(seq) * kGeometry.kv_dim()));
  if (const auto* packed = dynamic_cast<const PackedKvCache*>(&store)) {
    std::vector<float> keys(values.size());
    packed->ReadTokens(seq, layer, keys.data(), values.data());
    return values;
  }
  const SimulatedBlock& block = dynamic_cast<const SimulatedKvCache&>(store).Block(seq, layer);
  float* row = values.data();
  for (int64_t token = 0; token < block.num_tokens(); ++token) {
    for (int64_t head = 0; head < kGeometry.num_kv_heads; ++head) {
      row = std::copy_n(block.Value(token, head), kGeometry.head_dim, row);
    }
  }
  return values;
}

class Recorder : public testing::TestWithParam<const char*> {};

// The oracle: recorded weights times the stored values are the cache's own attention output.
TEST_P(Recorder, WeightsExplainTheCachesOutput) {
  const RopeTable rope = Rope();
  std::unique_ptr<KvStore> made = MakeStore(GetParam(), rope);
  const KvStore& inner = *made;
  AttentionRecorder recorder(std::move(made), kGeometry, rope);
  const SequenceId seq = recorder.Open().value();
  // Past page openings, with a prompt; token 300 opens no page.
  Forward(recorder, rope, seq, 200);
  while (recorder.NumTokens(seq) < 300) Forward(recorder, rope, seq, 1);

  std::vector<std::vector<float>> values;
  for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
    values.push_back(StoredValues(inner, seq, layer));
  }
  recorder.RecordNext(seq);
  const std::vector<std::vector<float>> outputs = Forward(recorder, rope, seq, 1);
  for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
    const Rows own = MakeRows(kGeometry, 7, layer, 300, 1);
    std::vector<float>& stored = values[static_cast<size_t>(layer)];
    stored.insert(stored.end(), own.v.begin(), own.v.end());
    const std::vector<float>& logs = recorder.log_weights()[static_cast<size_t>(layer)];
    ASSERT_EQ(logs.size(), static_cast<size_t>(kGeometry.num_heads * 301));
    for (int64_t head = 0; head < kGeometry.num_heads; ++head) {
      const int64_t kv_head = head / 2;
      for (int64_t i = 0; i < kGeometry.head_dim; ++i) {
        double expected = 0;
        for (int64_t m = 0; m <= 300; ++m) {
          expected += std::exp(double{logs[static_cast<size_t>(head * 301 + m)]}) *
                      double{stored[static_cast<size_t>(m * kGeometry.kv_dim() +
                                                        kv_head * kGeometry.head_dim + i)]};
        }
        EXPECT_NEAR(
            outputs[static_cast<size_t>(layer)][static_cast<size_t>(head * kGeometry.head_dim + i)],
            expected, 2e-5)
            << "block " << layer << " head " << head << " channel " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Specs, Recorder,
                         testing::Values("fp16", "static-2", "pm-kvq:bits=2", "rtn:bits=3", "kivi",
                                         "rotatekv", "mikv", "window:recent=64",
                                         "h2o:capacity=80"));

// The same of latents, with key scales and without: the weights times what is stored of c, back at
// its size, are the output.
TEST(AttentionRecorder, WeightsOfLatentsExplainTheOutput) {
  const RopeTable rope = Rope();
  KvGeometry geometry;
  geometry.blocks.assign(2, LatentBlockOf(3, 32, 16));
  for (const bool has_scales : {false, true}) {
    CacheConfig config;
    config.geometry = geometry;
    config.float_type = DType::kF32;
    config.budget_bytes.assign(2, BlockBytes(config, 0, kMaxLen, 4, 8));
    std::vector<Tensor> scales;
    for (int layer = 0; has_scales && layer < 2; ++layer) {
      Tensor& tensor = scales.emplace_back(DType::kF32, Shape{48});
      for (int64_t i = 0; i < 48; ++i) {
        tensor.As<float>()[i] = 0.5f + 0.1f * static_cast<float>((i + layer) % 7);
      }
    }
    config.key_scales = KeyScales::Make(geometry, scales);
    auto made = std::make_unique<PackedKvCache>(config);
    const PackedKvCache& inner = *made;
    AttentionRecorder recorder(std::move(made), geometry, rope);
    const SequenceId seq = recorder.Open().value();
    const auto forward = [&](int64_t count, bool records) {
      const int64_t n = recorder.NumTokens(seq);
      std::vector<float> latents(static_cast<size_t>(n * 32));
      std::vector<float> rope_keys(static_cast<size_t>(n * 16));
      if (records) {
        inner.ReadTokens(seq, 1, latents.data(), rope_keys.data());
        recorder.RecordNext(seq);
      }
      EXPECT_NE(recorder.Reserve(seq, count), ReserveResult::kBudgetExhausted);
      recorder.BeginForward({{seq, count}});
      std::vector<float> out;
      Rows rows;
      for (int64_t layer = 0; layer < 2; ++layer) {
        rows = MakeRows(geometry, 7, layer, n, count);
        for (float& q : rows.q) q /= 8.0f;
        out.assign(static_cast<size_t>(count * 3 * 32), 0.0f);
        recorder.AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
      }
      recorder.EndForward();
      if (!records) return;
      for (size_t i = 0; has_scales && i < latents.size(); ++i) {
        latents[i] *= scales[1].As<float>()[i % 32];
      }
      latents.insert(latents.end(), rows.k.begin(), rows.k.end());
      const std::vector<float>& logs = recorder.log_weights()[1];
      ASSERT_EQ(logs.size(), static_cast<size_t>(3 * (n + 1)));
      for (int64_t i = 0; i < 3 * 32; ++i) {
        double expected = 0;
        for (int64_t m = 0; m <= n; ++m) {
          expected += std::exp(double{logs[static_cast<size_t>(i / 32 * (n + 1) + m)]}) *
                      double{latents[static_cast<size_t>(m * 32 + i % 32)]};
        }
        EXPECT_NEAR(out[static_cast<size_t>(i)], expected, 2e-5) << i;
      }
    };
    forward(300, false);
    forward(1, false);
    forward(1, true);
    EXPECT_GT(inner.LayerStats(seq, 1).k_pages[WidthIndex(8)] +
                  inner.LayerStats(seq, 1).k_pages[WidthIndex(4)],
              0);
  }
}

TEST(AttentionRecorder, ChangesNothing) {
  const RopeTable rope = Rope();
  AttentionRecorder recorder(MakeStore("pm-kvq:bits=2", rope), kGeometry, rope);
  const auto plain = MakeStore("pm-kvq:bits=2", rope);
  const SequenceId a = recorder.Open().value();
  const SequenceId b = plain->Open().value();
  for (int64_t i = 0; i < 500; ++i) {
    if (i % 3 == 1) recorder.RecordNext(a);
    ASSERT_EQ(Forward(recorder, rope, a, 1), Forward(*plain, rope, b, 1)) << "token " << i;
  }
  EXPECT_EQ(recorder.SequenceStats(a).bytes, plain->SequenceStats(b).bytes);
}

TEST(ReadStoredKeys, RefusesAStoreThatItDoesNotKnow) {
  DenseKvStore store(kGeometry);
  const SequenceId seq = store.Open().value();
  std::vector<float> keys;
  EXPECT_THROW(ReadStoredKeys(store, kGeometry, Rope(), seq, 0, keys), Unsupported);
}

}  // namespace
}  // namespace pmkvq
