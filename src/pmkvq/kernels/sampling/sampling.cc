#include "pmkvq/kernels/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/sampling/row_sampler.h"

namespace pmkvq {

int32_t ArgMax(const float* values, int64_t count) {
  PMKVQ_CHECK(count > 0);
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i) {
    if (values[i] > values[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

std::optional<int32_t> SampleToken(const SamplingParams& params, const float* logits,
                                   int64_t vocab_size, Random& random) {
  PMKVQ_CHECK(vocab_size > 0);
  internal::CheckSampling(params);
  const auto num_blocks = static_cast<size_t>(internal::NumSampleBlocks(vocab_size));
  std::vector<float> block_max(num_blocks);
  if (internal::ScanBlocks(logits, vocab_size, block_max.data()) > internal::kInfinityBits) {
    return std::nullopt;
  }
  const internal::SampleRow row{logits, vocab_size, block_max.data(),
                                *std::max_element(block_max.begin(), block_max.end())};
  if (!std::isfinite(row.max)) return std::nullopt;
  if (params.temperature == 0.0) return internal::LikeliestToken(row);
  std::vector<double> sums(internal::NeedsMass(params) ? num_blocks : 0);
  if (!sums.empty()) internal::SumWeights(params, row, 0, sums);
  internal::SampleScratch scratch;
  return internal::DrawToken(params, row, sums, random.Uniform(), scratch);
}

void SkipSamples(const SamplingParams& params, int64_t count, Random& random) {
  if (params.temperature == 0.0) return;
  for (int64_t i = 0; i < count; ++i) random.Uniform();
}

}  // namespace pmkvq
