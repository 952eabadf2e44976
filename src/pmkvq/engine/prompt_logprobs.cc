#include "pmkvq/engine/prompt_logprobs.h"

#include <utility>

#include "pmkvq/base/check.h"

namespace pmkvq {

void PromptLogprobs::Read(int64_t first_row, int64_t num_rows, const float* logits) {
  if (failure_) return;
  const int64_t begin = chunk_begin_ + first_row;
  PMKVQ_CHECK(begin == std::ssize(logprobs_));
  const auto tokens =
      prompt_ids_.subspan(static_cast<size_t>(begin) + 1, static_cast<size_t>(num_rows));
  const int64_t vocab_size = model_->config().vocab_size;
  auto read = reader_.Read(logits, vocab_size, tokens, num_top_, num_threads_);
  for (int64_t row = 0; row < num_rows; ++row) {
    std::optional<TokenLogprobs>& one = read[static_cast<size_t>(row)];
    if (!one) {
      failure_ = model_->FailureOfLogits(logits + row * vocab_size, begin + row).value();
      return;
    }
    logprobs_.push_back(std::move(*one));
  }
}

}  // namespace pmkvq
