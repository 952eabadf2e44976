// Drives a PackedKvCache as a model would, with keys, values and queries that are a function of
// (seed, block, position), so that any two runs over the same positions append the same values.
#pragma once

#include <utility>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq::testing_support {

// A configuration of small shapes with budgets that hold `num_tokens` at (k_bits, v_bits).
inline CacheConfig SmallConfig(int64_t num_tokens, int k_bits, int v_bits) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 16};
  config.budget_bytes.assign(2, BlockBytes(config, 0, num_tokens, k_bits, v_bits));
  return config;
}

// Two blocks of small shapes in one pool of `bytes`; sequences of up to some thousand tokens.
inline CacheConfig SmallPool(int64_t bytes, int64_t max_sequences, int floor_bits = 2) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 16};
  config.max_sequences = max_sequences;
  config.chunk_tokens = 256;
  config.policy = PolicyKind::kOldestFirst;
  config.floor_bits = floor_bits;
  config.pool.bytes = bytes;
  config.budget_bytes = SplitBudget(bytes, EvenWeights(config));
  return config;
}

// Sets the width of uniform caches: fp16 (16) or static-b.
inline CacheConfig& SetUniform(CacheConfig& config, int bits) {
  config.close_bits = bits;
  config.floor_bits = bits;
  return config;
}

struct Rows {
  std::vector<float> q, k, v;
};

// What a model would hand over for `num_tokens` tokens from `position` on.
inline Rows MakeRows(const KvGeometry& geometry, uint64_t seed, int64_t layer, int64_t position,
                     int64_t num_tokens) {
  Rows rows;
  for (int64_t t = position; t < position + num_tokens; ++t) {
    Random random(StreamSeed(seed, static_cast<uint64_t>(t * geometry.num_layers() + layer)));
    const auto fill = [&](std::vector<float>& out, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        out.push_back(static_cast<float>(4.0 * random.Uniform() - 1.5));
      }
    };
    const KvBlockGeometry& block = geometry.block(layer);
    fill(rows.q, block.q_values());
    fill(rows.k, block.k().values());
    fill(rows.v, block.v().values());
  }
  return rows;
}

// Keys and values of one block, or c and k_r.
using KeysAndValues = std::pair<std::vector<float>, std::vector<float>>;

class CacheDriver {
 public:
  explicit CacheDriver(const CacheConfig& config) : config_(config), cache_(config) {}

  PackedKvCache& cache() { return cache_; }
  const CacheConfig& config() const { return config_; }

  // One Forward over several sequences. Each part: sequence, tokens, seed of its values, and
  // whether they are stored one by one. All must have been reserved.
  struct Part {
    SequenceId seq;
    int64_t num_tokens;
    uint64_t seed;
    bool one_by_one = false;
  };
  void Forward(const std::vector<Part>& parts) {
    Batch batch;
    for (const Part& part : parts) batch.push_back({part.seq, part.num_tokens, part.one_by_one});
    cache_.BeginForward(batch);
    outputs_.assign(static_cast<size_t>(config_.geometry.num_layers()), {});
    for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
      if (!config_.geometry.block(layer).has_cache()) continue;
      Rows all;
      for (const Part& part : parts) {
        const Rows rows = MakeRows(config_.geometry, part.seed, layer, cache_.NumTokens(part.seq),
                                   part.num_tokens);
        all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
        all.k.insert(all.k.end(), rows.k.begin(), rows.k.end());
        all.v.insert(all.v.end(), rows.v.begin(), rows.v.end());
      }
      std::vector<float>& out = outputs_[static_cast<size_t>(layer)];
      const KvBlockGeometry& block = config_.geometry.block(layer);
      out.resize(all.q.size() / static_cast<size_t>(block.q_values()) *
                 static_cast<size_t>(block.out_values()));
      cache_.AppendAndAttend(layer, all.q.data(), all.k.data(), all.v.data(), out.data());
    }
    cache_.EndForward();
  }

  ReserveResult Append(SequenceId seq, int64_t num_tokens, uint64_t seed) {
    const ReserveResult result = cache_.Reserve(seq, num_tokens);
    if (result != ReserveResult::kBudgetExhausted) Forward({{seq, num_tokens, seed}});
    return result;
  }

  // Of the last Forward, by block: [rows, H, D], or [rows, H, r].
  const std::vector<std::vector<float>>& outputs() const { return outputs_; }
  // The last row of the last Forward.
  std::vector<float> LastRow(int64_t layer) const {
    const auto& out = outputs_[static_cast<size_t>(layer)];
    return {out.end() - config_.geometry.block(layer).out_values(), out.end()};
  }

  KeysAndValues Read(SequenceId seq, int64_t layer) const {
    if (!config_.geometry.block(layer).has_cache()) return {};
    const KvBlockGeometry& block = config_.geometry.block(layer);
    const int64_t tokens = cache_.NumTokens(seq);
    KeysAndValues values{std::vector<float>(static_cast<size_t>(tokens * block.k().values())),
                         std::vector<float>(static_cast<size_t>(tokens * block.v().values()))};
    cache_.ReadTokens(seq, layer, values.first.data(), values.second.data());
    return values;
  }
  std::vector<KeysAndValues> ReadAll(SequenceId seq) const {
    std::vector<KeysAndValues> all;
    for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
      all.push_back(Read(seq, layer));
    }
    return all;
  }

 private:
  CacheConfig config_;
  PackedKvCache cache_;
  std::vector<std::vector<float>> outputs_;
};

}  // namespace pmkvq::testing_support
