// What fits into a memory: weights, working memory and the cache side by side, known from a model's
// config without loading it. Bytes are those that the packed cache allocates and counts itself.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/spec/cache_settings.h"

namespace pmkvq {

// A model, or one that is still to be downloaded.
struct FitModel {
  ModelConfig config;
  int64_t weight_bytes = 0;  // In memory: Model::weight_bytes, or WeightBytesOf (model_size.h).
};

struct FitOptions {
  int64_t memory_bytes = 0;
  int64_t max_len = 0;    // Tokens of each sequence; 0: the model's maximum.
  int64_t sequences = 1;  // Decoded together.
  int64_t chunk = 512;    // EngineOptions::chunk
  int num_threads = 1;
  CacheSettings cache;  // Sink, window, float type; a plan and its widths are not known here.
};

// One method of the cache.
struct FitMethod {
  std::string spec;
  // Of one sequence of max_len tokens; pm-kvq: the budget of one sequence, its share of
  // cache_bytes.
  int64_t sequence_bytes = 0;
  int64_t arena_bytes = 0;  // Of all sequences, as the cache allocates it; 0: no cache fits.
  bool fits = false;        // All sequences of max_len tokens.
  // How many sequences of max_len tokens fit, and how long a sequence may be when `sequences` of
  // them are decoded; 0: not one, not one token. Up to kMostFitSequences and the model's positions.
  int64_t most_sequences = 0;
  int64_t longest = 0;
};
inline constexpr int64_t kMostFitSequences = 4096;

struct Fit {
  int64_t max_len = 0;
  int64_t weight_bytes = 0;
  int64_t working_bytes = 0;       // Activations, logits, scratch of attention.
  int64_t cache_bytes = 0;         // What is left for the cache; below 0: so much is missing.
  std::vector<FitMethod> methods;  // fp16, static-8, static-4, static-2, pm-kvq.
  // pm-kvq with the budget of its row: up to which length no page is below that width, by
  // WidthIndex. At most the model's positions.
  std::array<int64_t, 4> longest_at_width{};
};

// Throws InvalidInput naming the option: memory, max_len, sequences, chunk, and as
// ResolvePackedConfig for settings of the cache.
Fit FitInto(const FitModel& model, const FitOptions& options);

}  // namespace pmkvq
