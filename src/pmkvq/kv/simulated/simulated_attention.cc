// Attention of the simulated cache: over pages in the float type, or dense over the method's
// floats.
#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/kernels/attention/few_rows.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kv/simulated/simulated_cache.h"

namespace pmkvq {
namespace {

// scores = weights exp(score - max) / sum.
void Softmax(float* scores, int64_t count) {
  const float largest = *std::max_element(scores, scores + count);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - largest);
    total += double{scores[i]};
  }
  const auto factor = static_cast<float>(1.0 / total);
  for (int64_t i = 0; i < count; ++i) scores[i] *= factor;
}

// The same with weights (SimulatedBlock::SetLogWeights) of the first `weighted` tokens. The others
// are there with their scores, so that the sum is never 0.
void WeightedSoftmax(const float* log_numerators, const float* log_denominators, int64_t weighted,
                     float* scores, int64_t count) {
  constexpr float kGone = -std::numeric_limits<float>::infinity();
  float largest = kGone;
  for (int64_t i = 0; i < count; ++i) {
    const float raise = i < weighted ? std::max(log_numerators[i], log_denominators[i]) : 0.0f;
    largest = std::max(largest, scores[i] + raise);
  }
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i < weighted && log_numerators[i] == kGone && log_denominators[i] == kGone) {
      scores[i] = 0.0f;
      continue;
    }
    const float score = scores[i] - largest;
    const float weight = std::exp(i < weighted ? score + log_numerators[i] : score);
    total += double{i < weighted && log_denominators[i] != log_numerators[i]
                        ? std::exp(score + log_denominators[i])
                        : weight};
    scores[i] = weight;
  }
  const auto factor = static_cast<float>(1.0 / total);
  for (int64_t i = 0; i < count; ++i) scores[i] *= factor;
}

// Chunks of at most so many tokens go through products that pack nothing.
constexpr int64_t kFewTokens = 4;
constexpr int64_t kFewColumns = 16;  // What few_rows.h asks for.

// [count, dim] as [dim, kFewColumns].
void Transpose(const std::vector<float>& rows, int64_t count, int64_t dim, std::vector<float>& to) {
  to.assign(static_cast<size_t>(dim * kFewColumns), 0.0f);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t i = 0; i < dim; ++i) {
      to[static_cast<size_t>(i * kFewColumns + t)] = rows[static_cast<size_t>(t * dim + i)];
    }
  }
}

}  // namespace

void SimulatedKvCache::AttendPaged(size_t layer, const float* q, const float* k, const float* v,
                                   float* out) {
  attention_sequences_.clear();
  first_views_.clear();
  for (size_t i = 0; i < forward_.chunks.size(); ++i) {
    const Chunk& chunk = forward_.chunks[i];
    if (chunk.seq->failure) continue;
    const SimulatedBlock& block = chunk.seq->blocks[layer];
    std::vector<KvPageView>& views = views_[i];
    std::vector<PageTokens>& tokens = page_tokens_[i];
    views.clear();
    tokens.clear();
    for (size_t page = 0; page < block.values_.size(); ++page) {
      const int64_t begin = static_cast<int64_t>(page) * kPageTokens;
      KvPageView view;
      view.k.data = block.attended_keys_[page].data();
      view.v.data = block.attended_values_[page].data();
      views.push_back(view);
      tokens.push_back({static_cast<int32_t>(std::min(block.num_tokens() - begin, kPageTokens)),
                        static_cast<int32_t>(kPageTokens)});
    }
    attention_sequences_.push_back({tokens, chunk.num_tokens, chunk.first_row});
    first_views_.push_back(views.data());
  }
  if (attention_sequences_.empty()) return;
  PlanAttention(attention_shape_, attention_sequences_, config_.num_threads,
                AttentionMode::kAccurate, attention_plan_);
  RunAttention(attention_plan_, {first_views_, q, k, v, out}, attention_scratch_);
}

// Attention with weights of tokens that keeps their sums; reads the method's floats. On one thread.
void SimulatedKvCache::AttendDense(const Chunk& chunk, const SimulatedBlock& block,
                                   const Rows& rows) {
  const auto num_tokens = static_cast<size_t>(block.num_tokens() + chunk.num_tokens);
  attention_sums_.assign(static_cast<size_t>(config_.geometry.num_kv_heads) * num_tokens, 0.0);
  for (int64_t kv_head = 0; kv_head < config_.geometry.num_kv_heads; ++kv_head) {
    AttendDenseHead(chunk, block, rows, kv_head);
  }
}

void SimulatedKvCache::AttendDenseHead(const Chunk& chunk, const SimulatedBlock& block,
                                       const Rows& rows, int64_t kv_head) {
  const UniformKvGeometry& geometry = config_.geometry;
  const int64_t dim = geometry.head_dim;
  const int64_t group = geometry.num_heads / geometry.num_kv_heads;
  const int64_t num_rows = chunk.num_tokens * group;
  const int64_t stored = block.num_tokens();
  const int64_t num_tokens = stored + chunk.num_tokens;
  // Rows of one KV head: the heads of the group lie side by side in a token.
  const auto head_rows = [&](const float* from, int64_t row_size, int64_t run, float* to) {
    for (int64_t t = 0; t < chunk.num_tokens; ++t) {
      std::copy_n(from + t * row_size + kv_head * run, run, to + t * run);
    }
  };
  // Whether no token of a page is in the sums.
  const auto is_gone = [](const SimulatedBlock::Weights& weights, int64_t first, int64_t count) {
    const auto all_gone = [&](const std::vector<float>& logs) {
      return std::all_of(logs.begin() + first, logs.begin() + first + count,
                         [](float log) { return log == SimulatedBlock::kEvicted; });
    };
    return !weights.numerators.empty() && all_gone(weights.numerators) &&
           all_gone(weights.denominators);
  };
  // Calls function(rows of K or V, how many, index of the first) for stored pages, then the chunk.
  const auto for_each_run = [&](const SimulatedBlock::Pages& pages, const float* own,
                                auto function) {
    for (int64_t token = 0; token < stored; token += kPageTokens) {
      function(block.Row(pages, token, kv_head), std::min(kPageTokens, stored - token), token);
    }
    head_rows(own, geometry.kv_dim(), dim, chunk_rows_.data());
    function(chunk_rows_.data(), chunk.num_tokens, stored);
  };
  queries_.resize(static_cast<size_t>(num_rows * dim));
  head_out_.resize(static_cast<size_t>(num_rows * dim));
  chunk_rows_.resize(static_cast<size_t>(chunk.num_tokens * dim));
  scores_.resize(static_cast<size_t>(num_rows * num_tokens));

  head_rows(rows.q, geometry.num_heads * dim, group * dim, queries_.data());
  const SimulatedBlock::Weights& weights = block.weights_[static_cast<size_t>(kv_head)];
  const bool is_few = chunk.num_tokens <= kFewTokens;
  for_each_run(block.keys_, rows.k, [&](const float* keys, int64_t count, int64_t first) {
    float* const scores = scores_.data() + first;
    if (!is_few) {
      BlasGemm(false, true, num_rows, count, dim, attention_shape_.scale, queries_.data(), dim,
               keys, dim, 0.0f, scores, num_tokens);
    } else if (first == stored) {
      Transpose(chunk_rows_, count, dim, rotated_);
      FewRowScores(queries_.data(), num_rows, dim, rotated_.data(), kFewColumns, count,
                   attention_shape_.scale, scores, num_tokens);
    } else if (is_gone(weights, first, count)) {
      for (int64_t row = 0; row < num_rows; ++row) {
        std::fill_n(scores + row * num_tokens, count, 0.0f);
      }
    } else {
      const auto* const page = reinterpret_cast<const float*>(
          block.attended_keys_[static_cast<size_t>(first / kPageTokens)].data());
      FewRowScores(queries_.data(), num_rows, dim, page + kv_head * kPageTokens * dim, kPageTokens,
                   count, attention_shape_.scale, scores, num_tokens);
    }
  });
  WeightRows(weights, num_rows, stored, num_tokens, attention_sums_.data() + kv_head * num_tokens);
  if (is_few) std::fill(head_out_.begin(), head_out_.end(), 0.0f);
  for_each_run(block.values_, rows.v, [&](const float* values, int64_t count, int64_t first) {
    if (is_few) {
      FewRowValues(scores_.data() + first, num_tokens, num_rows, dim, values, count,
                   head_out_.data());
    } else {
      BlasGemm(false, false, num_rows, dim, count, 1.0f, scores_.data() + first, num_tokens, values,
               dim, first == 0 ? 0.0f : 1.0f, head_out_.data(), dim);
    }
  });
  for (int64_t t = 0; t < chunk.num_tokens; ++t) {
    std::copy_n(head_out_.data() + t * group * dim, group * dim,
                rows.out + (t * geometry.num_heads + kv_head * group) * dim);
  }
}

// Scores to weights, causal in the chunk, and their sums over rows for each token.
void SimulatedKvCache::WeightRows(const SimulatedBlock::Weights& weights, int64_t num_rows,
                                  int64_t stored, int64_t num_tokens, double* sums) {
  const int64_t group = config_.geometry.num_heads / config_.geometry.num_kv_heads;
  for (int64_t row = 0; row < num_rows; ++row) {
    float* scores = scores_.data() + row * num_tokens;
    const int64_t visible = stored + row / group + 1;
    if (weights.numerators.empty()) {
      Softmax(scores, visible);
    } else {
      WeightedSoftmax(weights.numerators.data(), weights.denominators.data(), stored, scores,
                      visible);
    }
    std::fill(scores + visible, scores + num_tokens, 0.0f);
    for (int64_t m = 0; m < visible; ++m) sums[m] += double{scores[m]};
  }
}

}  // namespace pmkvq
