#include "pmkvq/kernels/sampling/token_logprobs.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

constexpr double kNsPerToken = 0.4;  // Of the maximum and the sum.

}  // namespace

std::vector<std::optional<TokenLogprobs>> TokenLogprobReader::Read(const float* logits,
                                                                   int64_t vocab_size,
                                                                   std::span<const int32_t> tokens,
                                                                   int64_t num_top,
                                                                   const ExecContext& exec) {
  PMKVQ_CHECK(vocab_size > 0 && num_top >= 0);
  for (const int32_t token : tokens) PMKVQ_CHECK(token >= 0 && token < vocab_size);
  const int64_t num_rows = std::ssize(tokens);
  const int threads =
      UsefulThreads(exec.num_threads, static_cast<double>(num_rows * vocab_size) * kNsPerToken);
  if (std::ssize(workers_) < threads) workers_.resize(static_cast<size_t>(threads));
  const auto num_blocks = static_cast<size_t>(internal::NumSampleBlocks(vocab_size));
  std::vector<std::optional<TokenLogprobs>> results(tokens.size());
  ParallelFor(threads, num_rows, [&](int64_t r, int worker) {
    Worker& own = workers_[static_cast<size_t>(worker)];
    own.block_max.resize(num_blocks);
    own.sums.resize(num_blocks);
    const float* const row = logits + r * vocab_size;
    const uint32_t magnitude =
        internal::ScanAndSum(row, vocab_size, own.block_max.data(), own.sums.data());
    if (magnitude >= internal::kInfinityBits) return;
    const internal::SampleRow view{row, vocab_size, own.block_max.data(),
                                   *std::max_element(own.block_max.begin(), own.block_max.end())};
    const double log_sum = internal::LogSumExp(view, own.sums);
    const int32_t token = tokens[static_cast<size_t>(r)];
    results[static_cast<size_t>(r)] = {{token, static_cast<double>(row[token]) - log_sum},
                                       internal::TopLogprobs(view, num_top, log_sum, own.scratch)};
  });
  return results;
}

}  // namespace pmkvq
