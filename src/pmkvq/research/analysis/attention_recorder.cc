#include "pmkvq/research/analysis/attention_recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "pmkvq/research/analysis/series.h"
#include "pmkvq/research/methods/reference_cache.h"

namespace pmkvq {
namespace {

// Eight sums, so that the compiler may use vectors without reordering a single one.
float Dot(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 8;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

// Of an evicted token: log of the smallest normal float.
const float kSmallestLogWeight = std::log(std::numeric_limits<float>::min());

void ReadSimulatedKeys(const SimulatedKvCache& store, const UniformKvGeometry& geometry,
                       const RopeTable& rope, SequenceId seq, int64_t layer,
                       std::vector<float>& keys) {
  const SimulatedBlock& block = store.Block(seq, layer);
  float* row = keys.data();
  std::vector<int64_t> positions;
  for (int64_t token = 0; token < block.num_tokens(); ++token) {
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      const float* key = block.Key(token, head);
      row = std::copy(key, key + geometry.head_dim, row);
    }
    positions.push_back(token);
  }
  if (store.ExtraNeeds().keys_before_rope) {
    ApplyRope(rope, positions.data(), block.num_tokens(), geometry.num_kv_heads, nullptr,
              keys.data(), 1);
  }
}

// keys [tokens, r + dr] from c [tokens, r] and k_r [tokens, dr].
void JoinLatents(const KvBlockGeometry& block, int64_t num_tokens, const float* c,
                 const float* rope_keys, float* keys) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    keys = std::copy_n(c + t * block.latent_width(), block.latent_width(), keys);
    keys = std::copy_n(rope_keys + t * block.rope_width(), block.rope_width(), keys);
  }
}

void ReadStoredLatents(const PackedKvCache& store, const KvBlockGeometry& block, SequenceId seq,
                       int64_t layer, std::vector<float>& keys) {
  const int64_t num_tokens = store.NumTokens(seq);
  std::vector<float> c(static_cast<size_t>(num_tokens * block.latent_width()));
  std::vector<float> rope_keys(static_cast<size_t>(num_tokens * block.rope_width()));
  store.ReadTokens(seq, layer, c.data(), rope_keys.data());
  keys.resize(c.size() + rope_keys.size());
  JoinLatents(block, num_tokens, c.data(), rope_keys.data(), keys.data());
  if (store.key_scales() == nullptr) return;
  const float* const factors = store.key_scales()->query_factors(layer);
  const auto width = static_cast<size_t>(block.values());
  for (size_t i = 0; i < keys.size(); ++i) keys[i] *= factors[i % width];
}

}  // namespace

UniformKvGeometry AttendedKeysOf(const KvGeometry& geometry) {
  if (!HasLatents(geometry)) return UniformOf(geometry);
  const KvBlockGeometry& first = geometry.blocks.front();
  for (size_t i = 0; i < geometry.blocks.size(); ++i) {
    if (geometry.blocks[i] == first) continue;
    throw Unsupported("model", fmt::format("block {}: found {}, expected {}, as in block 0", i,
                                           Describe(geometry.blocks[i]), Describe(first)));
  }
  return {geometry.num_layers(), first.num_heads, 1, first.values()};
}

void ReadStoredKeys(const KvStore& store, const KvGeometry& blocks, const RopeTable& rope,
                    SequenceId seq, int64_t layer, std::vector<float>& keys) {
  const auto* const latent_store = dynamic_cast<const PackedKvCache*>(&store);
  if (latent_store != nullptr && blocks.block(layer).is_latent()) {
    return ReadStoredLatents(*latent_store, blocks.block(layer), seq, layer, keys);
  }
  const UniformKvGeometry geometry = UniformOf(blocks);
  const auto count = static_cast<size_t>(store.NumTokens(seq) * geometry.kv_dim());
  keys.resize(count);
  if (const auto* packed = dynamic_cast<const PackedKvCache*>(&store)) {
    std::vector<float> values(count);
    packed->ReadTokens(seq, layer, keys.data(), values.data());
  } else if (const auto* reference = dynamic_cast<const ReferenceKvCache*>(&store)) {
    std::vector<float> values(count);
    reference->ReadTokens(seq, layer, keys.data(), values.data());
  } else if (const auto* simulated = dynamic_cast<const SimulatedKvCache*>(&store)) {
    ReadSimulatedKeys(*simulated, geometry, rope, seq, layer, keys);
  } else {
    throw Unsupported("attention",
                      "found a cache whose keys cannot be read, expected a packed or "
                      "a simulated one");
  }
}

AttentionRecorder::AttentionRecorder(std::unique_ptr<KvStore> store, const KvGeometry& geometry,
                                     const RopeTable& rope)
    : store_(std::move(store)),
      blocks_(geometry),
      geometry_(AttendedKeysOf(geometry)),
      rope_(rope),
      keys_(static_cast<size_t>(geometry_.num_layers)),
      log_weights_(static_cast<size_t>(geometry_.num_layers)) {}

void AttentionRecorder::RecordNext(SequenceId seq) {
  evicting_ = dynamic_cast<const SimulatedKvCache*>(store_.get());
  seq_ = seq;
  for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
    ReadStoredKeys(*store_, blocks_, rope_, seq, layer, keys_[static_cast<size_t>(layer)]);
  }
  recording_ = true;
}

void AttentionRecorder::AppendAndAttend(int64_t layer, const float* q, const float* k,
                                        const float* v, float* out) {
  if (recording_) {
    const std::vector<float>& keys = keys_[static_cast<size_t>(layer)];
    const int64_t dim = geometry_.head_dim;
    const int64_t num_stored = static_cast<int64_t>(keys.size()) / geometry_.kv_dim();
    const KvBlockGeometry& block = blocks_.block(layer);
    // Queries of latents come with their scale.
    const float scale = block.is_latent() ? 1.0f : 1.0f / std::sqrt(static_cast<float>(dim));
    const float* own_key = k;
    if (block.is_latent()) {
      own_key_.resize(static_cast<size_t>(dim));
      JoinLatents(block, 1, k, v, own_key_.data());
      own_key = own_key_.data();
    }
    std::vector<float>& weights = log_weights_[static_cast<size_t>(layer)];
    weights.resize(static_cast<size_t>(geometry_.num_heads * (num_stored + 1)));
    for (int64_t head = 0; head < geometry_.num_heads; ++head) {
      const int64_t kv_head = head / (geometry_.num_heads / geometry_.num_kv_heads);
      float* row = weights.data() + head * (num_stored + 1);
      for (int64_t m = 0; m < num_stored; ++m) {
        const float* key = keys.data() + m * geometry_.kv_dim() + kv_head * dim;
        row[m] = scale * Dot(q + head * dim, key, dim);
      }
      row[num_stored] = scale * Dot(q + head * dim, own_key + kv_head * dim, dim);
      const auto is_evicted = [&](int64_t token) {
        return evicting_ != nullptr && !evicting_->Block(seq_, layer).IsKept(token, kv_head);
      };
      for (int64_t m = 0; m < num_stored; ++m) {
        if (is_evicted(m)) row[m] = -std::numeric_limits<float>::infinity();
      }
      LogSoftmax(row, num_stored + 1);
      for (int64_t m = 0; m < num_stored; ++m) {
        if (is_evicted(m)) row[m] = kSmallestLogWeight;
      }
    }
  }
  store_->AppendAndAttend(layer, q, k, v, out);
}

void AttentionRecorder::EndForward() {
  store_->EndForward();
  recording_ = false;
}

}  // namespace pmkvq
