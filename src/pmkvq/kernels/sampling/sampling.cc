#include "pmkvq/kernels/sampling/sampling.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

struct Candidate {
  double weight;  // Probability relative to the likeliest token's.
  int32_t id;
};

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

double TotalWeight(const std::vector<Candidate>& candidates) {
  double total = 0.0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

// All tokens that have a probability, in order of their ids.
std::vector<Candidate> TemperedWeights(const float* logits, int64_t vocab_size, float max,
                                       double temperature) {
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<size_t>(vocab_size));
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double distance = static_cast<double>(logits[i]) - static_cast<double>(max);
    const double weight = std::exp(distance / temperature);
    if (weight > 0.0) candidates.push_back({weight, static_cast<int32_t>(i)});
  }
  return candidates;
}

// Keeps the k likeliest, sorted.
void KeepTopK(int64_t k, std::vector<Candidate>& candidates) {
  const auto size = static_cast<int64_t>(candidates.size());
  const auto middle = candidates.begin() + std::min(k, size);
  std::partial_sort(candidates.begin(), middle, candidates.end(), MoreLikely);
  candidates.erase(middle, candidates.end());
}

// Keeps the shortest prefix of the sorted order with at least `top_p` of the mass. Sorts only as
// far as needed: the prefix is usually a handful out of a vocabulary of 150,000.
void KeepTopP(double top_p, std::vector<Candidate>& candidates) {
  const double wanted = top_p * TotalWeight(candidates);
  const auto size = static_cast<int64_t>(candidates.size());
  double mass = 0.0;
  int64_t sorted = 0;
  for (int64_t step = 64; sorted < size; step *= 4) {
    const int64_t end = std::min(size, sorted + step);
    std::partial_sort(candidates.begin() + sorted, candidates.begin() + end, candidates.end(),
                      MoreLikely);
    for (; sorted < end; ++sorted) {
      mass += candidates[static_cast<size_t>(sorted)].weight;
      if (mass >= wanted) {
        candidates.erase(candidates.begin() + sorted + 1, candidates.end());
        return;
      }
    }
  }
}

void KeepMinP(double min_p, std::vector<Candidate>& candidates) {
  // The likeliest token has weight 1 and is never filtered before.
  std::erase_if(candidates, [=](const Candidate& c) { return c.weight < min_p; });
}

int32_t Draw(const std::vector<Candidate>& candidates, double uniform) {
  const double wanted = uniform * TotalWeight(candidates);
  double mass = 0.0;
  for (const Candidate& candidate : candidates) {
    mass += candidate.weight;
    if (mass > wanted) return candidate.id;
  }
  return candidates.back().id;  // Only by rounding.
}

}  // namespace

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
  PMKVQ_CHECK(params.temperature >= 0.0 && params.top_k >= 0);
  PMKVQ_CHECK(params.top_p > 0.0 && params.top_p <= 1.0);
  PMKVQ_CHECK(params.min_p >= 0.0 && params.min_p <= 1.0);
  bool has_nan = false;
  for (int64_t i = 0; i < vocab_size; ++i) has_nan |= logits[i] != logits[i];
  if (has_nan) return std::nullopt;
  const int32_t best = ArgMax(logits, vocab_size);
  if (!std::isfinite(logits[best])) return std::nullopt;
  if (params.temperature == 0.0) return best;
  std::vector<Candidate> candidates =
      TemperedWeights(logits, vocab_size, logits[best], params.temperature);
  if (params.top_k > 0) KeepTopK(params.top_k, candidates);
  if (params.top_p < 1.0) KeepTopP(params.top_p, candidates);
  if (params.min_p > 0.0) KeepMinP(params.min_p, candidates);
  return Draw(candidates, random.Uniform());
}

void SkipSamples(const SamplingParams& params, int64_t count, Random& random) {
  if (params.temperature == 0.0) return;
  for (int64_t i = 0; i < count; ++i) random.Uniform();
}

}  // namespace pmkvq
