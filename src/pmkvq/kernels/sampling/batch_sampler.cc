#include "pmkvq/kernels/sampling/batch_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

using internal::kInfinityBits;
using internal::kSampleBlock;

// Blocks that a thread takes at a time where rows are shared out in pieces: 16,384 tokens, 5 to 10
// us.
constexpr int64_t kPieceBlocks = 64;
// With this many rows per thread whole rows are shared out: a row is then read from memory once and
// its second pass finds it in the L2 cache.
constexpr int64_t kRowsPerThread = 4;
// Of the maximum, a sum of rough exponentials, and the rest.
constexpr double kNsPerToken = 0.5;

// Calls `visit` for every token whose logit rules and `forbidden` change; for some more than once.
template <class Visit>
void ForChangedTokens(const SamplingRow& row, const Visit& visit) {
  if (row.rules != nullptr) {
    if (row.rules->has_penalties()) {
      for (const auto& [token, count] : *row.counts) visit(token);
    }
    for (const auto& [token, bias] : row.rules->bias) visit(token);
  }
  for (const int32_t token : row.forbidden) visit(token);
}

}  // namespace

// One call of Sample.
struct BatchSampler::Pass {
  BatchSampler& own;
  std::span<const SamplingRow> rows;
  int64_t vocab_size;
  int64_t num_blocks = internal::NumSampleBlocks(vocab_size);
  int64_t num_pieces = (num_blocks + kPieceBlocks - 1) / kPieceBlocks;

  float* BlockMax(int64_t r) const { return own.block_max_.data() + r * num_blocks; }
  std::span<double> Sums(int64_t r) const {
    return {own.sums_.data() + r * num_blocks, static_cast<size_t>(num_blocks)};
  }
  std::span<double> SumsOfPiece(int64_t r, int64_t piece) const {
    const int64_t first = piece * kPieceBlocks;
    return Sums(r).subspan(static_cast<size_t>(first),
                           static_cast<size_t>(std::min(kPieceBlocks, num_blocks - first)));
  }
  const SamplingRow& At(int64_t r) const { return rows[static_cast<size_t>(r)]; }
  SampledRow& Result(int64_t r) const { return own.results_[static_cast<size_t>(r)]; }
  internal::SampleScratch& Scratch(int worker) const {
    return own.scratch_[static_cast<size_t>(worker)];
  }
  internal::SampleRow View(int64_t r) const {
    return {At(r).logits, vocab_size, BlockMax(r), own.row_max_[static_cast<size_t>(r)]};
  }
  bool IsDrawn(int64_t r) const { return Result(r).outcome == SamplingOutcome::kDrawn; }
  bool WantsLogprobs(int64_t r) const { return IsDrawn(r) && At(r).num_logprobs >= 0; }
  bool NeedsMass(int64_t r) const { return IsDrawn(r) && internal::NeedsMass(*At(r).params); }

  // Maxima of the piece's blocks and, where log-probabilities are wanted, their sums.
  void Scan(int64_t r, int64_t piece) const {
    const int64_t first = piece * kPieceBlocks;
    const int64_t begin = first * kSampleBlock;
    own.magnitudes_[static_cast<size_t>(r * num_pieces + piece)] = internal::ScanAndSum(
        At(r).logits + begin, std::min(kPieceBlocks * kSampleBlock, vocab_size - begin),
        BlockMax(r) + first, At(r).num_logprobs >= 0 ? Sums(r).data() + first : nullptr);
  }

  void FindMax(int64_t r) const {
    own.row_max_[static_cast<size_t>(r)] = *std::max_element(BlockMax(r), BlockMax(r) + num_blocks);
  }

  // After all pieces of the row were scanned.
  void Check(int64_t r) const {
    const uint32_t* const magnitudes = own.magnitudes_.data() + r * num_pieces;
    const bool is_finite = *std::max_element(magnitudes, magnitudes + num_pieces) < kInfinityBits;
    Result(r) = {is_finite ? SamplingOutcome::kDrawn : SamplingOutcome::kNotFinite, 0, {}};
    FindMax(r);
  }

  void SumWeights(int64_t r, int64_t piece) const {
    internal::SumWeights(*At(r).params, View(r), piece * kPieceBlocks, SumsOfPiece(r, piece));
  }

  // Of the likeliest tokens. Puts off the drawn one: its place takes the logarithm of the sum.
  void TakeLogprobs(int64_t r, internal::SampleScratch& scratch) const {
    const double log_sum = internal::LogSumExp(View(r), Sums(r));
    TokenLogprobs& logprobs = Result(r).logprobs.emplace();
    logprobs.top = internal::TopLogprobs(View(r), At(r).num_logprobs, log_sum, scratch);
    logprobs.drawn.logprob = log_sum;
  }

  // Rules and forbidden tokens, with the largest logits of their blocks.
  void ApplyRules(int64_t r, internal::SampleScratch& scratch) const {
    const SamplingRow& row = At(r);
    auto& changed = own.changed_[static_cast<size_t>(r)];
    changed.clear();
    ForChangedTokens(row, [&](int32_t token) {
      PMKVQ_CHECK(token >= 0 && token < vocab_size);
      changed.emplace_back(token, row.logits[token]);
    });
    if (changed.empty()) return;
    if (row.rules != nullptr) {
      static const TokenCounts kNone;
      ApplyLogitRules(*row.rules, row.counts != nullptr ? *row.counts : kNone, row.logits);
    }
    for (const int32_t token : row.forbidden) {
      row.logits[token] = -std::numeric_limits<float>::infinity();
    }
    if (!UpdateMaxima(r, scratch)) Result(r).outcome = SamplingOutcome::kNoneLeft;
  }

  // The largest logits of blocks and row after changes. Blocks that lost their largest one are
  // scanned again. False where no logit is left, or one is NaN or +inf.
  bool UpdateMaxima(int64_t r, internal::SampleScratch& scratch) const {
    const SamplingRow& row = At(r);
    const auto& changed = own.changed_[static_cast<size_t>(r)];
    float* const block_max = BlockMax(r);
    scratch.marks.assign(static_cast<size_t>(num_blocks), false);
    for (const auto& [token, as_given] : changed) {
      const int64_t block = token / kSampleBlock;
      if (as_given == block_max[block]) scratch.marks[static_cast<size_t>(block)] = true;
    }
    bool has_nan = false;
    for (const auto& [token, as_given] : changed) {
      const int64_t block = token / kSampleBlock;
      const float logit = row.logits[token];
      has_nan |= logit != logit;
      block_max[block] = std::max(block_max[block], logit);
    }
    for (int64_t block = 0; block < num_blocks; ++block) {
      if (scratch.marks[static_cast<size_t>(block)] == 0) continue;
      const int64_t begin = block * kSampleBlock;
      internal::ScanBlocks(row.logits + begin, std::min(kSampleBlock, vocab_size - begin),
                           block_max + block);
    }
    FindMax(r);
    return !has_nan && std::isfinite(View(r).max);
  }

  void Draw(int64_t r, internal::SampleScratch& scratch) const {
    const SamplingRow& row = At(r);
    SampledRow& result = Result(r);
    if (!IsDrawn(r)) {
      result.logprobs.reset();
      return;
    }
    result.token =
        row.params->temperature == 0.0
            ? internal::LikeliestToken(View(r))
            : internal::DrawToken(*row.params, View(r), Sums(r), row.random->Uniform(), scratch);
    if (!result.logprobs) return;
    const auto& changed = own.changed_[static_cast<size_t>(r)];
    const auto found = std::find_if(changed.begin(), changed.end(),
                                    [&](const auto& entry) { return entry.first == result.token; });
    const float as_given = found != changed.end() ? found->second : row.logits[result.token];
    TokenLogprob& drawn = result.logprobs->drawn;
    drawn = {result.token, static_cast<double>(as_given) - drawn.logprob};
  }

  void RunWholeRow(int64_t r, internal::SampleScratch& scratch) const {
    for (int64_t piece = 0; piece < num_pieces; ++piece) Scan(r, piece);
    Check(r);
    if (WantsLogprobs(r)) TakeLogprobs(r, scratch);
    if (IsDrawn(r)) ApplyRules(r, scratch);
    if (NeedsMass(r)) {
      for (int64_t piece = 0; piece < num_pieces; ++piece) SumWeights(r, piece);
    }
    Draw(r, scratch);
  }

  // The same steps, each shared out over pieces of all rows.
  void RunInPieces(int num_threads) const {
    const auto for_pieces = [&](const auto& run) {
      ParallelFor(num_threads, std::ssize(rows) * num_pieces,
                  [&](int64_t item, int /*worker*/) { run(item / num_pieces, item % num_pieces); });
    };
    const auto any_row = [&](bool (Pass::*holds)(int64_t) const) {
      for (int64_t r = 0; r < std::ssize(rows); ++r) {
        if ((this->*holds)(r)) return true;
      }
      return false;
    };
    for_pieces([&](int64_t r, int64_t piece) { Scan(r, piece); });
    for (int64_t r = 0; r < std::ssize(rows); ++r) Check(r);
    for (int64_t r = 0; r < std::ssize(rows); ++r) {
      if (WantsLogprobs(r)) TakeLogprobs(r, Scratch(0));
      if (IsDrawn(r)) ApplyRules(r, Scratch(0));
    }
    if (any_row(&Pass::NeedsMass)) {
      for_pieces([&](int64_t r, int64_t piece) {
        if (NeedsMass(r)) SumWeights(r, piece);
      });
    }
    ParallelFor(num_threads, std::ssize(rows),
                [&](int64_t r, int worker) { Draw(r, Scratch(worker)); });
  }
};

std::span<SampledRow> BatchSampler::Sample(std::span<const SamplingRow> rows, int64_t vocab_size,
                                           const ExecContext& exec) {
  PMKVQ_CHECK(vocab_size > 0);
  for (const SamplingRow& row : rows) {
    PMKVQ_CHECK(row.logits != nullptr && row.params != nullptr && row.random != nullptr);
    PMKVQ_CHECK(row.rules == nullptr || !row.rules->has_penalties() || row.counts != nullptr);
    internal::CheckSampling(*row.params);
  }
  const Pass pass{*this, rows, vocab_size};
  const int64_t num_rows = std::ssize(rows);
  const int threads =
      UsefulThreads(exec.num_threads, static_cast<double>(num_rows * vocab_size) * kNsPerToken);
  const auto grow = [](auto& values, int64_t size) {
    if (std::ssize(values) < size) values.resize(static_cast<size_t>(size));
  };
  grow(block_max_, num_rows * pass.num_blocks);
  grow(sums_, num_rows * pass.num_blocks);
  grow(magnitudes_, num_rows * pass.num_pieces);
  grow(row_max_, num_rows);
  grow(changed_, num_rows);
  grow(scratch_, threads);
  grow(results_, num_rows);
  if (threads > 1 && num_rows < kRowsPerThread * threads) {
    pass.RunInPieces(threads);
  } else {
    ParallelFor(threads, num_rows,
                [&](int64_t r, int worker) { pass.RunWholeRow(r, pass.Scratch(worker)); });
  }
  return {results_.data(), rows.size()};
}

}  // namespace pmkvq
