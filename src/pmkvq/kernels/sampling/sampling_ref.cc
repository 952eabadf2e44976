#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/sampling/candidates.h"
#include "pmkvq/kernels/sampling/exp_constants.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kernels/sampling/sampling_vector.h"

namespace pmkvq::ref {
namespace {

using internal::Candidate;

// All tokens that have a probability, in order of their ids.
std::vector<Candidate> TemperedWeights(const float* logits, int64_t vocab_size, float max,
                                       double temperature) {
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<size_t>(vocab_size));
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double weight = internal::WeightOf(logits[i], max, temperature);
    if (weight > 0.0) candidates.push_back({weight, static_cast<int32_t>(i)});
  }
  return candidates;
}

float ExpFloat(float distance) {
  const float shifted = distance * internal::kLog2EFloat + internal::kRoundFloat;
  const float n = shifted - internal::kRoundFloat;
  const float r = (distance - n * internal::kLn2HighFloat) - n * internal::kLn2LowFloat;
  float p = internal::kExpFloatSeries[0];
  for (size_t i = 1; i < std::size(internal::kExpFloatSeries); ++i) {
    p = p * r + internal::kExpFloatSeries[i];
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

double SumOfLanes(double (&lanes)[internal::kExpSumLanes]) {
  for (int half = internal::kExpSumLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

}  // namespace

int32_t DrawToken(const SamplingParams& params, const float* logits, int64_t vocab_size, float max,
                  double uniform) {
  std::vector<Candidate> candidates = TemperedWeights(logits, vocab_size, max, params.temperature);
  if (params.top_k > 0) internal::KeepTopK(params.top_k, candidates);
  if (params.top_p < 1.0) internal::KeepTopP(params.top_p, candidates);
  if (params.min_p > 0.0) internal::KeepMinP(params.min_p, candidates);
  return internal::DrawOne(candidates, uniform);
}

std::optional<int32_t> SampleToken(const SamplingParams& params, const float* logits,
                                   int64_t vocab_size, Random& random) {
  internal::CheckSampling(params);
  bool has_nan = false;
  for (int64_t i = 0; i < vocab_size; ++i) has_nan |= logits[i] != logits[i];
  if (has_nan) return std::nullopt;
  const int32_t best = ArgMax(logits, vocab_size);
  if (!std::isfinite(logits[best])) return std::nullopt;
  if (params.temperature == 0.0) return best;
  return DrawToken(params, logits, vocab_size, logits[best], random.Uniform());
}

double ExpFixed(double x) {
  const double shifted = x * internal::kLog2E + internal::kRoundDouble;
  const double n = shifted - internal::kRoundDouble;
  const double r = (x - n * internal::kLn2High) - n * internal::kLn2Low;
  double p = internal::kExpSeries[0];
  for (size_t i = 1; i < std::size(internal::kExpSeries); ++i) {
    p = p * r + internal::kExpSeries[i];
  }
  return std::bit_cast<double>(std::bit_cast<uint64_t>(p) +
                               (std::bit_cast<uint64_t>(shifted) << 52));
}

void BlockExpSums(const float* x, int64_t count, const float* block_max, double* sums) {
  for (int64_t begin = 0; begin < count; begin += internal::kSampleBlock) {
    const int64_t size = std::min(internal::kSampleBlock, count - begin);
    const float max = block_max[begin / internal::kSampleBlock];
    double lanes[internal::kExpSumLanes] = {};
    for (int64_t i = 0; i < size; ++i) {
      const float distance = x[begin + i] - max;
      if (!(distance >= internal::kLowestFloatDistance)) continue;
      lanes[i % internal::kExpSumLanes] += static_cast<double>(ExpFloat(distance));
    }
    sums[begin / internal::kSampleBlock] = SumOfLanes(lanes);
  }
}

void ExpSums(const float* x, int64_t count, float max, double scale, float cut, double* sums) {
  for (int64_t begin = 0; begin < count; begin += internal::kSampleBlock) {
    const int64_t size = std::min(internal::kSampleBlock, count - begin);
    double lanes[internal::kExpSumLanes] = {};
    for (int64_t i = 0; i < size; ++i) {
      const float value = x[begin + i];
      if (value < cut) continue;
      lanes[i % internal::kExpSumLanes] +=
          ExpFixed((static_cast<double>(value) - static_cast<double>(max)) * scale);
    }
    sums[begin / internal::kSampleBlock] = SumOfLanes(lanes);
  }
}

TokenLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t drawn, int64_t num_top) {
  PMKVQ_CHECK(drawn >= 0 && drawn < vocab_size && num_top >= 0);
  std::vector<float> block_max;
  for (int64_t begin = 0; begin < vocab_size; begin += internal::kSampleBlock) {
    const int64_t end = std::min(vocab_size, begin + internal::kSampleBlock);
    block_max.push_back(*std::max_element(logits + begin, logits + end));
  }
  const double max = static_cast<double>(*std::max_element(block_max.begin(), block_max.end()));
  std::vector<double> sums(block_max.size());
  BlockExpSums(logits, vocab_size, block_max.data(), sums.data());
  double sum = 0;
  for (size_t b = 0; b < sums.size(); ++b) {
    const double distance = static_cast<double>(block_max[b]) - max;
    if (distance >= kLowestBlock) sum += sums[b] * ExpFixed(distance);
  }
  const double log_sum = max + std::log(sum);
  const auto logprob = [&](int32_t token) {
    return TokenLogprob{token, static_cast<double>(logits[token]) - log_sum};
  };
  std::vector<int32_t> order(static_cast<size_t>(vocab_size));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  TokenLogprobs result;
  result.drawn = logprob(drawn);
  for (int64_t i = 0; i < std::min(num_top, vocab_size); ++i) {
    result.top.push_back(logprob(order[static_cast<size_t>(i)]));
  }
  return result;
}

}  // namespace pmkvq::ref
