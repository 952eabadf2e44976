// The fields that both completion endpoints share: sampling, stops, lengths, streaming.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/server/api/body_fields.h"

namespace pmkvq::server {

// What holds where a request does not say: generation_config.json of the model, or 1, 1, 0, 0.
struct SamplingDefaults {
  double temperature = 1;
  double top_p = 1;
  int64_t top_k = 0;
  double min_p = 0;
  double repetition_penalty = 1;
};
// Of a model's folder; those of the struct where there is no generation_config.json. Throws
// InvalidInput naming file and field.
SamplingDefaults LoadSamplingDefaults(const std::string& folder);

enum class KvReportKind : uint8_t { kNone, kSummary, kEvents };

// What the fields kv_min_bits and priority may be: of a cache that all requests share.
struct PoolFields {
  bool has_pool = false;
  int floor_bits = 2;
  int close_bits = 16;
  bool priorities = false;
  bool replays = false;  // kv_replay is taken (--allow-replay).
};

struct GenerationFields {
  SamplingParams sampling;
  std::optional<uint64_t> seed;  // Empty: a random one.
  int64_t max_tokens = -1;       // -1: to the model's, or the server's, length.
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  LogitRules rules;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool include_stop = false;
  bool stop_in_reasoning = false;
  int64_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  KvReportKind kv_report = KvReportKind::kSummary;
  int kv_min_bits = 0;  // 0: the pool's floor.
  int64_t priority = 0;
  // kv_replay: of each choice; those behind the last one have empty histories.
  std::optional<std::vector<KvHistory>> kv_replay;
  std::string cache_salt;  // Kept prompts are shared with requests that have the same one.
};

// Bounds that keep a single request from taking all memory.
inline constexpr int64_t kMostChoices = 8;   // n
inline constexpr int64_t kMostPrompts = 64;  // of a completion; n * prompts as well
inline constexpr int64_t kMostReplayedEvents = 1 << 20;
inline constexpr size_t kMostSaltBytes = 256;
inline constexpr int64_t kMostLogprobs = 20;  // alternatives of a token

// Reads them and refuses those that are not supported. `vocab_size`: of ids in fields. Throws
// RefusedRequest.
GenerationFields ReadGenerationFields(BodyFields& body, const SamplingDefaults& defaults,
                                      int64_t vocab_size, const PoolFields& pool);

}  // namespace pmkvq::server
