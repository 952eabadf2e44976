// Log-probabilities of given tokens, many rows of logits at once.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/row_sampler.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// Keeps its memory from call to call, but for the results.
// Threads: one call at a time.
class TokenLogprobReader {
 public:
  // Of each row of `logits` [tokens, V]: log-probabilities of its token, as the `drawn` one, and of
  // the `num_top` likeliest, as ref::LogprobsOf. Nothing of a row in which a logit is NaN or
  // infinite. A row's result depends neither on other rows, the number of threads nor the
  // instruction set. All tokens are in [0, V) (check).
  std::vector<std::optional<TokenLogprobs>> Read(const float* logits, int64_t vocab_size,
                                                 std::span<const int32_t> tokens, int64_t num_top,
                                                 const ExecContext& exec);

 private:
  struct Worker {
    std::vector<float> block_max;
    std::vector<double> sums;
    internal::SampleScratch scratch;
  };
  std::vector<Worker> workers_;  // [thread]
};

}  // namespace pmkvq
