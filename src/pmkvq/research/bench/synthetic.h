// Models and caches with made-up content: for speed only shapes count, and a cache of any depth is
// there without prefill.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/bench/bench.h"

namespace pmkvq {

// BF16 weights [rows, cols], uniform in sign and mantissa, of a size at which a product has the
// scale of its input. The same for every number of threads.
Tensor SyntheticMatrix(int64_t rows, int64_t cols, uint64_t seed, int num_threads);

// A model of that configuration in memory (SyntheticModelBytes).
std::shared_ptr<const Model> SyntheticModel(const ModelConfig& config, WeightMode weights,
                                            int num_threads, DeviceId device = {});

// Rows of normally distributed values, drawn from a table: far faster than drawing each.
class SyntheticRows {
 public:
  explicit SyntheticRows(uint64_t seed);
  void Fill(int64_t count, float* out);

 private:
  std::vector<float> table_;
  Random random_;
};

// A cache in which every page closes at once at `bits` (16: fp16; the rope part of latents at 8
// bits at least), with room for `max_tokens` in each of `max_sequences` sequences.
CacheConfig UniformCacheConfig(const KvGeometry& geometry, int bits, int64_t max_tokens,
                               int64_t max_sequences, int num_threads,
                               AttentionMode attention = AttentionMode::kAccurate);

// The same with widths of keys and values apart.
CacheConfig UniformCacheConfig(const KvGeometry& geometry, const KvBits& bits, int64_t max_tokens,
                               int64_t max_sequences, int num_threads,
                               AttentionMode attention = AttentionMode::kAccurate,
                               QuantAxis k_axis = QuantAxis::kToken);

// Appends `num_tokens` synthetic tokens to `seq` without attending to anything. The budget must
// hold them.
void FillCache(PackedKvCache& cache, const KvGeometry& geometry, SequenceId seq, int64_t num_tokens,
               SyntheticRows& rows);

// Bytes of stored keys and values of one sequence, as allocated.
int64_t StoredBytes(const PackedKvCache& cache, SequenceId seq);

}  // namespace pmkvq
