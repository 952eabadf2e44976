// Drawing from one row without a look at every token's weight. Internal to sampling/.
//
// The definition (ref::DrawToken) computes std::exp of all V tokens, adds them up in the order of
// ids and sorts. The same token follows from less:
// * std::exp, in double, and the sort are needed of tokens only that the filters may keep. Two
// tokens
//   whose logits / temperature differ by kOrderGap or more have weights in that order, rounding
//   included; of closer ones both are looked at.
// * In sorted order sums begin with weight 1, so a weight below 2^-53 changes none, and its token
// is
//   never drawn.
// * The mass of the whole vocabulary stands only on one side of comparisons. Vector code bounds it
//   on both sides; where the bounds do not decide a comparison, tighter ones do, and else the
//   definition itself runs.
// So the token is that of the definition for every seed. sampling_test.cc compares them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/kernels/sampling/candidates.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kernels/sampling/sampling_vector.h"

namespace pmkvq::internal {

// A row of logits [vocab_size] without NaN and +inf, and the largest one of each block and of all,
// which is finite.
struct SampleRow {
  const float* logits;
  int64_t vocab_size;
  const float* block_max;
  float max;
};

// Memory of one thread, used again from row to row.
struct SampleScratch {
  std::vector<Candidate> candidates;
  std::vector<Candidate> sorted;
  std::vector<int32_t> ids;
  std::vector<float> values;
  std::vector<double> sums;
  std::vector<uint8_t> marks;  // [block]
};

// Whether DrawFast needs `sums` for these parameters.
bool NeedsMass(const SamplingParams& params);
// Weights of the tokens, summed per block roughly, for DrawFast: those that matter for these
// parameters. The row's first block is `first_block`, of which and of the following ones as many
// are summed as `sums` has places.
void SumWeights(const SamplingParams& params, const SampleRow& row, int64_t first_block,
                std::span<double> sums);

// Draws as ref::DrawToken, temperature > 0. `sums`: of all blocks by SumWeights, where
// NeedsMass. Nothing when bounds do not decide.
enum class MassPrecision : uint8_t { kRough, kFine };
std::optional<int32_t> DrawFast(const SamplingParams& params, const SampleRow& row,
                                std::span<const double> sums, MassPrecision precision,
                                double uniform, SampleScratch& scratch);

// The token of ref::DrawToken, by bounds where they decide.
int32_t DrawToken(const SamplingParams& params, const SampleRow& row, std::span<const double> sums,
                  double uniform, SampleScratch& scratch);

// The lowest id of the largest logit.
int32_t LikeliestToken(const SampleRow& row);

// ScanBlocks and, where `sums` is not null, BlockExpSums of the same blocks while they are in the
// L1 cache.
uint32_t ScanAndSum(const float* x, int64_t count, float* block_max, double* sums);
// log of the sum of exp(logit), given the sums of all blocks by BlockExpSums.
double LogSumExp(const SampleRow& row, std::span<const double> sums);
// The `num_top` likeliest tokens as ref::LogprobsOf.
std::vector<TokenLogprob> TopLogprobs(const SampleRow& row, int64_t num_top, double log_sum,
                                      SampleScratch& scratch);

}  // namespace pmkvq::internal
