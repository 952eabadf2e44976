// Choosing the next token of many sequences at once.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/row_sampler.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// One row of logits, and the parameters of its draw. Pointers are valid during the call, no two
// rows share `logits` or `random`.
struct SamplingRow {
  float* logits = nullptr;  // [V]. Rules and `forbidden` change it.
  const SamplingParams* params = nullptr;
  const LogitRules* rules = nullptr;    // May be null: none.
  const TokenCounts* counts = nullptr;  // With penalties.
  std::span<const int32_t> forbidden;   // Ids that are not drawn.
  Random* random = nullptr;
  // Log-probabilities of the drawn token and of this many of the likeliest ones, of the logits
  // before rules and `forbidden`. -1: none.
  int64_t num_logprobs = -1;
};

struct SampledRow {
  SamplingOutcome outcome = SamplingOutcome::kDrawn;
  int32_t token = 0;
  std::optional<TokenLogprobs> logprobs;
};

// Keeps its memory from call to call: further calls with rows of the same size allocate nothing
// (except for log-probabilities). About 12 bytes per row and 256 tokens.
// Threads: one call at a time.
class BatchSampler {
 public:
  // Of each row, in the order of `rows`: checks the logits, applies the rules, sets `forbidden` to
  // -inf and draws as SampleToken does. The results are valid until the next call.
  //
  // A row's token and log-probabilities depend on that row only, neither on other rows, the number
  // of threads, nor the instruction set. Log-probabilities are those of ref::LogprobsOf.
  std::span<SampledRow> Sample(std::span<const SamplingRow> rows, int64_t vocab_size,
                               const ExecContext& exec);

 private:
  struct Pass;
  std::vector<float> block_max_;      // [row, block]
  std::vector<double> sums_;          // [row, block]
  std::vector<uint32_t> magnitudes_;  // [row, piece]
  std::vector<float> row_max_;        // [row]
  // [row]: tokens whose logit the rules change, and their logits as given.
  std::vector<std::vector<std::pair<int32_t, float>>> changed_;
  std::vector<internal::SampleScratch> scratch_;  // [thread]
  std::vector<SampledRow> results_;               // [row]
};

}  // namespace pmkvq
