// Log-probabilities of a prompt's tokens, read from logits while its chunks are computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pmkvq/kernels/sampling/token_logprobs.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// Of one request. The row of a token gives the log-probability of the token after it, so the row of
// the prompt's last token, from which the first token is drawn, is not read.
class PromptLogprobs : public LogitReader {
 public:
  // `model` and `prompt_ids` must outlive the object. `num_top`: alternatives per token.
  PromptLogprobs(const Model* model, std::span<const int32_t> prompt_ids, int64_t num_top,
                 int num_threads)
      : model_(model), prompt_ids_(prompt_ids), num_top_(num_top), num_threads_(num_threads) {}

  // How many rows of a chunk of the tokens [begin, end) are read, from its first one on.
  int64_t NumRows(int64_t begin, int64_t end) const {
    return std::max<int64_t>(0, std::min(end, std::ssize(prompt_ids_) - 1) - begin);
  }
  // The next rows are those of the chunk that begins with this token. What was read from it on is
  // dropped.
  void StartChunk(int64_t begin) {
    chunk_begin_ = begin;
    if (begin < std::ssize(logprobs_)) logprobs_.resize(static_cast<size_t>(begin));
  }
  void Read(int64_t first_row, int64_t num_rows, const float* logits) override;

  // Entry i is of prompt token i + 1. Those that were read so far.
  const std::vector<TokenLogprobs>& logprobs() const { return logprobs_; }
  std::vector<TokenLogprobs> Take() { return std::move(logprobs_); }
  // Another request has computed the same prompt.
  void CopyFrom(const PromptLogprobs& other) { logprobs_ = other.logprobs_; }
  // The first row whose logits are not finite; nothing is read behind it.
  const std::optional<KvFailure>& failure() const { return failure_; }

 private:
  const Model* model_;
  std::span<const int32_t> prompt_ids_;
  int64_t num_top_;
  int num_threads_;
  int64_t chunk_begin_ = 0;
  TokenLogprobReader reader_;
  std::vector<TokenLogprobs> logprobs_;
  std::optional<KvFailure> failure_;
};

}  // namespace pmkvq
