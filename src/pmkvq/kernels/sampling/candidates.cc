#include "pmkvq/kernels/sampling/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/base/check.h"

namespace pmkvq::internal {
namespace {

double TotalWeight(const std::vector<Candidate>& candidates) {
  double total = 0.0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

}  // namespace

void CheckSampling(const SamplingParams& params) {
  PMKVQ_CHECK(params.temperature >= 0.0 && params.top_k >= 0);
  PMKVQ_CHECK(params.top_p > 0.0 && params.top_p <= 1.0);
  PMKVQ_CHECK(params.min_p >= 0.0 && params.min_p <= 1.0);
}

float FloatNotBelow(double value) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  if (value <= static_cast<double>(kLowest)) return kLowest;
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) >= value) return nearest;
  return std::nextafter(nearest, std::numeric_limits<float>::infinity());
}

double WeightOf(float logit, float max, double temperature) {
  const double distance = static_cast<double>(logit) - static_cast<double>(max);
  return std::exp(distance / temperature);
}

void KeepTopK(int64_t k, std::vector<Candidate>& candidates) {
  const auto size = static_cast<int64_t>(candidates.size());
  const auto middle = candidates.begin() + std::min(k, size);
  std::partial_sort(candidates.begin(), middle, candidates.end(), MoreLikely{});
  candidates.erase(middle, candidates.end());
}

// Sorts only as far as needed: the prefix is usually a handful out of a vocabulary of 150,000.
void KeepTopP(double top_p, std::vector<Candidate>& candidates) {
  const double wanted = top_p * TotalWeight(candidates);
  const auto size = static_cast<int64_t>(candidates.size());
  double mass = 0.0;
  int64_t sorted = 0;
  for (int64_t step = 64; sorted < size; step *= 4) {
    const int64_t end = std::min(size, sorted + step);
    std::partial_sort(candidates.begin() + sorted, candidates.begin() + end, candidates.end(),
                      MoreLikely{});
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

int32_t DrawOne(const std::vector<Candidate>& candidates, double uniform) {
  const double wanted = uniform * TotalWeight(candidates);
  double mass = 0.0;
  for (const Candidate& candidate : candidates) {
    mass += candidate.weight;
    if (mass > wanted) return candidate.id;
  }
  return candidates.back().id;  // Only by rounding.
}

}  // namespace pmkvq::internal
