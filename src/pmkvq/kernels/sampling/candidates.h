// Tokens that may be drawn, and the filters on them. Internal to sampling/.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/kernels/sampling/sampling.h"

namespace pmkvq::internal {

struct Candidate {
  double weight;  // Probability relative to the likeliest token's.
  int32_t id;
};

// A type, which sorting inlines; a pointer to a function it does not.
struct MoreLikely {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  }
};

// Aborts unless the parameters are in the ranges of sampling.h.
void CheckSampling(const SamplingParams& params);

// The smallest finite float that is not below `value`: a float is at least `value` where it is at
// least this.
float FloatNotBelow(double value);

// std::exp of the distance to the largest logit, over the temperature.
double WeightOf(float logit, float max, double temperature);

// Keeps the k likeliest, sorted.
void KeepTopK(int64_t k, std::vector<Candidate>& candidates);
// Keeps the shortest prefix of the sorted order with at least `top_p` of the mass.
void KeepTopP(double top_p, std::vector<Candidate>& candidates);
void KeepMinP(double min_p, std::vector<Candidate>& candidates);
// The first whose weight, added to those before it, exceeds `uniform` of the total. `uniform` is in
// [0, 1). Not empty.
int32_t DrawOne(const std::vector<Candidate>& candidates, double uniform);

}  // namespace pmkvq::internal
