#include "pmkvq/engine/request_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

template <class T>
void CheckField(bool valid, const std::string& field, const T& found, const char* expected) {
  if (!valid) throw InvalidInput(field, fmt::format("found {}, expected {}", found, expected));
}

void CheckSampling(const SamplingParams& params) {
  CheckField(std::isfinite(params.temperature) && params.temperature >= 0, "temperature",
             params.temperature, "a number >= 0");
  CheckField(params.top_k >= 0, "top_k", params.top_k, "a number >= 0 (0: off)");
  CheckField(params.top_p > 0 && params.top_p <= 1, "top_p", params.top_p, "a number in (0, 1]");
  CheckField(params.min_p >= 0 && params.min_p <= 1, "min_p", params.min_p, "a number in [0, 1]");
}

}  // namespace

int64_t CheckEngineOptions(const EngineOptions& options, const ModelConfig& model) {
  const int64_t limit = model.max_position_embeddings;
  CheckField(options.max_sequences >= 1 && options.max_sequences <= 4096, "max_sequences",
             options.max_sequences, "a number in [1, 4096]");
  CheckField(options.chunk >= 1, "--chunk", options.chunk, "a number >= 1");
  CheckField(options.num_threads >= 0, "--threads", options.num_threads,
             "a number >= 0 (0: all processors)");
  if (options.max_len < 0 || options.max_len > limit) {
    throw InvalidInput(
        "--max-len",
        fmt::format("found {}, expected at most the model's max_position_embeddings {}",
                    options.max_len, limit));
  }
  return options.max_len == 0 ? limit : options.max_len;
}

void CheckTokenIds(const std::vector<int32_t>& ids, int64_t vocab_size, const std::string& where) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      throw InvalidInput(where, fmt::format("token id {} at index {}, expected one in [0, {})",
                                            ids[i], i, vocab_size));
    }
  }
}

void CheckBudgetHolds(const CacheConfig& cache, int64_t num_tokens, const std::string& where) {
  if (cache.reference_accounting) return;
  const int64_t needed = BlockBytes(cache, num_tokens, cache.floor_bits, cache.floor_bits);
  const int64_t smallest = *std::min_element(cache.budget_bytes.begin(), cache.budget_bytes.end());
  if (needed <= smallest) return;
  const int64_t total =
      std::accumulate(cache.budget_bytes.begin(), cache.budget_bytes.end(), int64_t{0});
  int64_t works = SmallestBudget(cache, num_tokens);
  if (std::any_of(cache.budget_bytes.begin(), cache.budget_bytes.end(),
                  [&](int64_t bytes) { return bytes != smallest; })) {
    // Split in fixed proportion, so the block with the least decides. L covers what splitting into
    // whole bytes lost. In 128 bits: the product of two byte counts.
    const __int128 before_split = total + static_cast<int64_t>(cache.budget_bytes.size());
    works = static_cast<int64_t>((needed * before_split + smallest - 1) / smallest);
  }
  throw InvalidInput(
      where, fmt::format("{} tokens do not fit the KV budget of {} bytes ({}) even at {} bits, "
                         "expected --kv-budget of at least {} bytes ({})",
                         num_tokens, total, FormatByteSize(total), cache.floor_bits, works,
                         FormatByteSize(works)));
}

void CheckRequest(const Request& request, const ModelConfig& model, const CacheConfig& cache,
                  int64_t max_len, bool has_tokenizer) {
  const auto prompt_len = static_cast<int64_t>(request.prompt_ids.size());
  if (prompt_len == 0) throw InvalidInput("prompt", "empty, expected at least one token");
  CheckTokenIds(request.prompt_ids, model.vocab_size, "prompt");
  if (prompt_len > max_len) {
    throw InvalidInput(
        "prompt",
        fmt::format("{} tokens, expected at most {} ({})", prompt_len, max_len,
                    max_len == model.max_position_embeddings ? "the model's max_position_embeddings"
                                                             : "--max-len"));
  }
  CheckSampling(request.sampling);
  CheckField(request.max_tokens >= 0, "max_tokens", request.max_tokens,
             "a number >= 0 (0: up to the maximum length)");
  for (const std::string& stop : request.stop) {
    if (stop.empty()) throw InvalidInput("stop", "found an empty string, expected text");
    if (!has_tokenizer) {
      throw InvalidInput("stop",
                         fmt::format("found '{}' but there is no tokenizer, expected none", stop));
    }
  }
  CheckBudgetHolds(cache, prompt_len, "prompt");
}

}  // namespace pmkvq
