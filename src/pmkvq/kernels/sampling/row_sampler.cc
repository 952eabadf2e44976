#include "pmkvq/kernels/sampling/row_sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>

namespace pmkvq::internal {
namespace {

// Weights are exp(x), x = (logit - max) / temperature. For x >= -700 the rounding of the
// difference, of the quotient and of std::exp move a weight by less than 700 * 2^-51 in x.
constexpr double kOrderGap = 1e-12;
// exp(-40) < 2^-53: see the header.
constexpr double kLowestSorted = -40.0;
// exp(-44) V is less than the bounds of a sum allow for.
constexpr double kLowestSummed = -44.0;
// Top-p needs no such precision at first: rows of language models have few blocks above it.
constexpr double kLowestSummedForTopP = -22.0;
// How many tokens top-p looks at first.
constexpr int64_t kFirstTopP = 64;
// Levels of weights that top-p tells apart: 20 octaves. One more has all lower ones.
constexpr uint64_t kLevels = 1280;
// Temperatures for which the inverse and all products stay in the range of float.
bool IsUsual(double temperature) { return temperature >= 1e-30 && temperature <= 1e30; }

// The value at place k (from 1) in descending order, 1 <= k <= number of values.
float KthLargest(int64_t k, std::vector<float>& values) {
  const auto place = values.begin() + (k - 1);
  std::nth_element(values.begin(), place, values.end(), std::greater<>());
  return *place;
}

// A logit that at least k tokens reach, k <= V, and usually few more.
float ReachedBy(int64_t k, const SampleRow& row, SampleScratch& scratch) {
  const int64_t num_blocks = NumSampleBlocks(row.vocab_size);
  if (k <= num_blocks) {
    scratch.values.assign(row.block_max, row.block_max + num_blocks);
  } else {
    scratch.values.assign(row.logits, row.logits + row.vocab_size);
  }
  return KthLargest(k, scratch.values);
}

// Ids of all tokens with at least this logit, ascending.
std::span<const int32_t> IdsAtLeast(const SampleRow& row, float threshold, SampleScratch& scratch) {
  size_t num_ids = 0;
  const int64_t num_blocks = NumSampleBlocks(row.vocab_size);
  for (int64_t b = 0; b < num_blocks;) {
    int64_t end = b;  // Neighbours in one call.
    while (end < num_blocks && row.block_max[end] >= threshold) ++end;
    if (end > b) {
      const int64_t begin = b * kSampleBlock;
      const int64_t count = std::min(end * kSampleBlock, row.vocab_size) - begin;
      const size_t room = num_ids + static_cast<size_t>(count);
      if (scratch.ids.size() < room) scratch.ids.resize(room + num_ids);
      num_ids += static_cast<size_t>(GatherAtLeast(row.logits + begin, count, threshold,
                                                   static_cast<int32_t>(begin),
                                                   scratch.ids.data() + num_ids));
    }
    b = end + 1;
  }
  return {scratch.ids.data(), num_ids};
}

// scratch.candidates: all tokens with at least the logit `lowest`, and those below it whose order
// by weight rounding may change; in order of ids.
void TakeCandidates(const SampleRow& row, double temperature, double lowest,
                    SampleScratch& scratch) {
  const float threshold = FloatNotBelow(lowest - temperature * kOrderGap);
  scratch.candidates.clear();
  for (const int32_t id : IdsAtLeast(row, threshold, scratch)) {
    const double weight = WeightOf(row.logits[id], row.max, temperature);
    if (weight > 0.0) scratch.candidates.push_back({weight, id});
  }
}

double LogitAt(const SampleRow& row, double temperature, double x) {
  return static_cast<double>(row.max) + temperature * x;
}

// Bounds of the mass of all tokens as the definition adds it up.
struct Mass {
  double low;
  double high;
  double slack() const { return high - low; }
};

// Blocks below this logit are left out of rough sums.
float LowestSummedBlock(const SamplingParams& params, float max) {
  return FloatNotBelow(static_cast<double>(max) +
                       params.temperature *
                           (params.top_p < 1.0 ? kLowestSummedForTopP : kLowestSummed));
}

Mass BoundMass(const SamplingParams& params, const SampleRow& row, std::span<const double> sums,
               MassPrecision precision) {
  double sum = 0;
  for (const double block : sums) sum += block;
  const auto vocab_size = static_cast<double>(row.vocab_size);
  const bool rough = precision == MassPrecision::kRough;
  // The definition rounds V times by 2^-53. What kLowestSummed cuts, and the sums here, err by
  // less.
  const double relative = (rough ? kRoughSumError : 1e-13) + vocab_size * 0x1p-51;
  double left_out = 0;
  if (rough && params.top_p < 1.0) {
    const float lowest = LowestSummedBlock(params, row.max);
    const auto num_blocks = std::count_if(row.block_max, row.block_max + std::ssize(sums),
                                          [=](float block_max) { return block_max < lowest; });
    left_out = static_cast<double>(num_blocks * kSampleBlock) * std::exp(kLowestSummedForTopP);
  }
  return {sum * (1.0 - relative), sum * (1.0 + relative) + left_out};
}

enum class TopP : uint8_t { kKept, kTooFew, kUndecided };

// Sorts the heaviest candidates, which come first afterwards: those with about `wanted` of the
// weight, and a few more. Returns their number. By buckets: weights are told apart to a 64th of an
// octave, and few of them are alike.
int64_t SortHeaviest(double wanted, SampleScratch& scratch) {
  constexpr int kShift = 46;  // Leaves sign, exponent and six bits of the mantissa.
  constexpr uint64_t kHighest = std::bit_cast<uint64_t>(1.0) >> kShift;
  const auto level_of = [](double weight) {
    return std::min<uint64_t>(kHighest - (std::bit_cast<uint64_t>(weight) >> kShift), kLevels);
  };
  std::vector<Candidate>& candidates = scratch.candidates;
  std::array<double, kLevels + 1> masses{};
  std::array<uint32_t, kLevels + 1> counts{};
  for (const Candidate& candidate : candidates) {
    const uint64_t level = level_of(candidate.weight);
    masses[level] += candidate.weight;
    ++counts[level];
  }
  // Places of the levels up to `last`, and behind them those of all others, in `places`.
  std::array<uint32_t, kLevels + 1> places;
  uint32_t num_sorted = 0;
  double mass = 0;
  uint64_t last = 0;
  for (uint64_t level = 0; level < kLevels && (level == 0 || mass < wanted); ++level) {
    places[level] = num_sorted;
    num_sorted += counts[level];
    mass += masses[level];
    last = level;
  }
  scratch.sorted.resize(candidates.size());
  uint32_t next_other = num_sorted;
  for (const Candidate& candidate : candidates) {
    const uint64_t level = level_of(candidate.weight);
    scratch.sorted[level <= last ? places[level]++ : next_other++] = candidate;
  }
  candidates.swap(scratch.sorted);
  for (uint64_t level = 0; level <= last; ++level) {
    const auto end = candidates.begin() + places[level];
    std::sort(end - counts[level], end, MoreLikely{});
  }
  return num_sorted;
}

// KeepTopP of all tokens, of scratch.candidates: the tokens that reach `lowest`, or nearly.
TopP KeepTopPWithin(double top_p, const Mass& mass, const SampleRow& row, double lowest,
                    SampleScratch& scratch) {
  const double reached = top_p * mass.high * (1.0 + 0x1p-51);
  const double not_reached = top_p * mass.low * (1.0 - 0x1p-51);
  std::vector<Candidate>& candidates = scratch.candidates;
  const auto size = std::ssize(candidates);
  double sum = 0.0;
  int64_t place = 0;
  for (int64_t sorted = SortHeaviest(reached, scratch);; sorted = size) {
    for (; place < sorted; ++place) {
      const Candidate& candidate = candidates[static_cast<size_t>(place)];
      // Behind it tokens may follow that were not taken.
      if (static_cast<double>(row.logits[candidate.id]) < lowest) return TopP::kTooFew;
      sum += candidate.weight;
      if (sum < not_reached) continue;
      if (sum < reached) return TopP::kUndecided;
      candidates.erase(candidates.begin() + place + 1, candidates.end());
      return TopP::kKept;
    }
    if (sorted == size) return TopP::kTooFew;
    std::sort(candidates.begin() + sorted, candidates.end(), MoreLikely{});
  }
}

// Of the tokens in blocks that reach a logit.
double MassOfBlocks(const SampleRow& row, std::span<const double> sums, float lowest) {
  double mass = 0;
  for (size_t b = 0; b < sums.size(); ++b) {
    mass += row.block_max[b] >= lowest ? sums[b] : 0.0;
  }
  return mass;
}

bool TopPOfAll(const SamplingParams& params, const SampleRow& row, std::span<const double> sums,
               const Mass& mass, SampleScratch& scratch) {
  // Tokens with less than this weight together have less than 1 - top_p of the mass.
  const double rest = (1.0 - params.top_p) * mass.low / static_cast<double>(row.vocab_size);
  const double enough =
      LogitAt(row, params.temperature, std::max(std::log(0.999 * rest), kLowestSorted));
  // Usually fewer tokens are enough.
  const int64_t num_blocks = NumSampleBlocks(row.vocab_size);
  for (const int64_t first : {std::min(kFirstTopP, num_blocks), num_blocks - num_blocks / 8}) {
    const float reached = ReachedBy(first, row, scratch);
    const auto lowest = static_cast<double>(reached);
    if (lowest <= enough) break;
    if (1.001 * MassOfBlocks(row, sums, reached) < params.top_p * mass.low) continue;  // Too few.
    TakeCandidates(row, params.temperature, lowest, scratch);
    const TopP result = KeepTopPWithin(params.top_p, mass, row, lowest, scratch);
    if (result != TopP::kTooFew) return result == TopP::kKept;
  }
  TakeCandidates(row, params.temperature, enough, scratch);
  return KeepTopPWithin(params.top_p, mass, row, enough, scratch) == TopP::kKept;
}

// Without filters: the first token, in the order of ids, at which the mass exceeds `uniform` of the
// total.
std::optional<int32_t> DrawFromAll(const SampleRow& row, double temperature,
                                   std::span<const double> sums, const Mass& mass, double uniform) {
  const double wanted = uniform * (0.5 * mass.low + 0.5 * mass.high);
  const double margin = 2.0 * mass.slack();  // Of the wanted mass and of a partial sum.
  size_t block = 0;
  double before = 0.0;
  while (block + 1 < sums.size() && before + sums[block] <= wanted) before += sums[block++];
  const int64_t begin = static_cast<int64_t>(block) * kSampleBlock;
  const int64_t end = std::min(row.vocab_size, begin + kSampleBlock);
  for (int64_t id = begin; id < end; ++id) {
    const double after = before + WeightOf(row.logits[id], row.max, temperature);
    if (after > wanted) {
      if (after - margin > wanted && before + margin < wanted) return static_cast<int32_t>(id);
      return std::nullopt;
    }
    before = after;
  }
  return std::nullopt;
}

}  // namespace

bool NeedsMass(const SamplingParams& params) {
  return IsUsual(params.temperature) && params.top_k == 0 &&
         (params.top_p < 1.0 || params.min_p == 0.0);
}

void SumWeights(const SamplingParams& params, const SampleRow& row, int64_t first_block,
                std::span<double> sums) {
  const int64_t begin = first_block * kSampleBlock;
  const int64_t end =
      std::min(row.vocab_size, begin + static_cast<int64_t>(sums.size()) * kSampleBlock);
  RoughExpSums(row.logits + begin, end - begin, row.block_max + first_block, row.max,
               1.0 / params.temperature,
               FloatNotBelow(LogitAt(row, params.temperature, kLowestSummed)),
               LowestSummedBlock(params, row.max), sums.data());
}

std::optional<int32_t> DrawFast(const SamplingParams& params, const SampleRow& row,
                                std::span<const double> sums, MassPrecision precision,
                                double uniform, SampleScratch& scratch) {
  const double temperature = params.temperature;
  if (!IsUsual(temperature)) return std::nullopt;
  if (NeedsMass(params)) {
    const Mass mass = BoundMass(params, row, sums, precision);
    if (params.top_p == 1.0) return DrawFromAll(row, temperature, sums, mass, uniform);
    if (!TopPOfAll(params, row, sums, mass, scratch)) return std::nullopt;
  } else if (params.top_k > 0) {
    const float kth = ReachedBy(std::min(params.top_k, row.vocab_size), row, scratch);
    TakeCandidates(row, temperature,
                   std::max(static_cast<double>(kth), LogitAt(row, temperature, kLowestSorted)),
                   scratch);
    KeepTopK(params.top_k, scratch.candidates);
    if (params.top_p < 1.0) KeepTopP(params.top_p, scratch.candidates);
  } else {
    if (params.min_p < 1e-300)
      return std::nullopt;  // The logarithm would not bound the rounded weights.
    TakeCandidates(row, temperature, LogitAt(row, temperature, std::log(params.min_p)), scratch);
  }
  if (params.min_p > 0.0) KeepMinP(params.min_p, scratch.candidates);
  return DrawOne(scratch.candidates, uniform);
}

int32_t DrawToken(const SamplingParams& params, const SampleRow& row, std::span<const double> sums,
                  double uniform, SampleScratch& scratch) {
  std::optional<int32_t> token =
      DrawFast(params, row, sums, MassPrecision::kRough, uniform, scratch);
  if (!token && NeedsMass(params)) {
    scratch.sums.resize(sums.size());
    FineExpSums(row.logits, row.vocab_size, row.block_max, row.max, 1.0 / params.temperature,
                FloatNotBelow(LogitAt(row, params.temperature, kLowestSummed)),
                scratch.sums.data());
    token = DrawFast(params, row, scratch.sums, MassPrecision::kFine, uniform, scratch);
  }
  return token ? *token : ref::DrawToken(params, row.logits, row.vocab_size, row.max, uniform);
}

int32_t LikeliestToken(const SampleRow& row) {
  const int64_t num_blocks = NumSampleBlocks(row.vocab_size);
  const int64_t block =
      std::find(row.block_max, row.block_max + num_blocks, row.max) - row.block_max;
  const float* const begin = row.logits + block * kSampleBlock;
  return static_cast<int32_t>(std::find(begin, row.logits + row.vocab_size, row.max) - row.logits);
}

uint32_t ScanAndSum(const float* x, int64_t count, float* block_max, double* sums) {
  constexpr int64_t kCached = 16 * kSampleBlock;  // 16 KiB.
  uint32_t magnitude = 0;
  for (int64_t begin = 0; begin < count; begin += kCached) {
    const int64_t block = begin / kSampleBlock;
    const int64_t size = std::min(kCached, count - begin);
    magnitude = std::max(magnitude, ScanBlocks(x + begin, size, block_max + block));
    if (sums != nullptr) BlockExpSums(x + begin, size, block_max + block, sums + block);
  }
  return magnitude;
}

double LogSumExp(const SampleRow& row, std::span<const double> sums) {
  const auto max = static_cast<double>(row.max);
  double sum = 0;
  for (size_t b = 0; b < sums.size(); ++b) {
    const double distance = static_cast<double>(row.block_max[b]) - max;
    if (distance >= ref::kLowestBlock) sum += sums[b] * ref::ExpFixed(distance);
  }
  return max + std::log(sum);
}

std::vector<TokenLogprob> TopLogprobs(const SampleRow& row, int64_t num_top, double log_sum,
                                      SampleScratch& scratch) {
  const int64_t count = std::min(num_top, row.vocab_size);
  if (count == 0) return {};
  const std::span<const int32_t> ids = IdsAtLeast(row, ReachedBy(count, row, scratch), scratch);
  const auto end = scratch.ids.begin() + count;
  std::partial_sort(scratch.ids.begin(), end, scratch.ids.begin() + std::ssize(ids),
                    [&](int32_t a, int32_t b) {
                      const float x = row.logits[a];
                      const float y = row.logits[b];
                      return x != y ? x > y : a < b;
                    });
  std::vector<TokenLogprob> top;
  top.reserve(static_cast<size_t>(count));
  for (auto token = scratch.ids.begin(); token != end; ++token) {
    top.push_back({*token, static_cast<double>(row.logits[*token]) - log_sum});
  }
  return top;
}

}  // namespace pmkvq::internal
