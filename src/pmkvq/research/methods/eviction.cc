#include "pmkvq/research/methods/eviction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

// sums[i] becomes that of the kernel around i.
std::vector<double> Pooled(const std::vector<double>& sums, int64_t kernel, bool takes_largest) {
  const auto count = std::ssize(sums);
  std::vector<double> pooled;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = sums.begin() + std::max<int64_t>(0, i - kernel / 2);
    const auto end = sums.begin() + std::min(count, i + kernel / 2 + 1);
    pooled.push_back(takes_largest
                         ? *std::max_element(begin, end)
                         : std::accumulate(begin, end, 0.0) / static_cast<double>(kernel));
  }
  return pooled;
}

}  // namespace

std::vector<int64_t> KeptTokens(const SimulatedBlock& block, int64_t head, int64_t end) {
  std::vector<int64_t> kept;
  for (int64_t token = 0; token < end; ++token) {
    if (block.IsKept(token, head)) kept.push_back(token);
  }
  return kept;
}

void KeepLargest(std::span<const double> scores, std::span<const int64_t> tokens, int64_t num_kept,
                 int64_t head, SimulatedBlock& block) {
  PMKVQ_CHECK(scores.size() == tokens.size());
  std::vector<size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  for (auto i = static_cast<size_t>(std::max<int64_t>(num_kept, 0)); i < order.size(); ++i) {
    block.Evict(tokens[order[i]], head);
  }
}

void RecentQueries::Push(const AppendedTokens& tokens, int64_t row_size) {
  if (queries_.empty()) first_ = tokens.first;
  queries_.insert(queries_.end(), tokens.q, tokens.q + tokens.count * row_size);
  const int64_t surplus = std::max<int64_t>(0, std::ssize(queries_) / row_size - window_);
  queries_.erase(queries_.begin(), queries_.begin() + surplus * row_size);
  first_ += surplus;
}

void RecentQueries::Truncate(int64_t num_tokens, int64_t row_size) {
  const int64_t left = std::max<int64_t>(0, num_tokens - first_);
  if (left * row_size < std::ssize(queries_)) {
    queries_.resize(static_cast<size_t>(left * row_size));
  }
}

const float* RecentQueries::At(int64_t token, const AppendedTokens& tokens,
                               int64_t row_size) const {
  if (token >= tokens.first) return tokens.q + (token - tokens.first) * row_size;
  const int64_t row = token - first_;
  const bool is_known = row >= 0 && (row + 1) * row_size <= std::ssize(queries_);
  return is_known ? queries_.data() + row * row_size : nullptr;
}

int64_t RecentQueries::Bytes(const MethodContext& context, int64_t num_tokens) {
  return num_tokens * context.geometry.num_heads * context.geometry.head_dim *
         static_cast<int64_t>(SizeOf(context.float_type));
}

std::vector<double> SnapScore::Of(int64_t head, std::span<const int64_t> kept, int64_t end,
                                  const AppendedTokens& tokens, const RecentQueries& queries,
                                  const UniformKvGeometry& geometry,
                                  const SimulatedBlock& block) const {
  const int64_t dim = geometry.head_dim;
  const int64_t group = geometry.num_heads / geometry.num_kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  const auto num_before = std::lower_bound(kept.begin(), kept.end(), end - window) - kept.begin();
  std::vector<double> total(static_cast<size_t>(num_before), 0.0);
  std::vector<double> weights;
  for (int64_t query_head = head * group; query_head < (head + 1) * group; ++query_head) {
    std::vector<double> sums(total.size(), 0.0);
    for (int64_t row = std::max<int64_t>(0, end - window); row < end; ++row) {
      const float* q = queries.At(row, tokens, geometry.num_heads * dim);
      if (q == nullptr) continue;
      q += query_head * dim;
      weights.clear();
      double largest = -std::numeric_limits<double>::infinity();
      for (const int64_t token : kept) {
        if (token > row) break;
        const float* const k = block.Key(token, head);
        double score = 0;
        for (int64_t i = 0; i < dim; ++i) score += double{q[i]} * double{k[i]};
        weights.push_back(score * scale);
        largest = std::max(largest, weights.back());
      }
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      for (size_t i = 0; i < sums.size() && i < weights.size(); ++i) sums[i] += weights[i] / sum;
    }
    const std::vector<double> pooled = Pooled(sums, kernel, takes_largest);
    for (size_t i = 0; i < total.size(); ++i) total[i] += pooled[i];
  }
  return total;
}

SpecKey CapacityKey(const std::string& fallback) {
  return IntegerKey("capacity", 16, 1 << 20, fallback, "tokens of each KV head that are kept");
}

SpecKey EveryKey(const std::string& fallback, const std::string& help) {
  return IntegerKey("every", fallback == "0" ? 0 : 1, 4096, fallback, help);
}

std::vector<SpecKey> SnapScoreKeys() {
  return {IntegerKey("window", 1, 512, "8", "newest tokens, whose queries score the others"),
          ChoiceKey("kernel", {"1", "3", "5", "7", "9", "11", "13"}, "7", "tokens that are pooled"),
          ChoiceKey("pool", {"max", "avg"}, "max", "how")};
}

SnapScore ReadSnapScore(const MethodSpec& spec) {
  SnapScore score;
  score.window = spec.Integer("window", score.window);
  score.kernel = spec.Integer("kernel", score.kernel);
  score.takes_largest = spec.Text("pool", "max") == "max";
  return score;
}

void CheckCapacity(const MethodSpec& spec, int64_t capacity, int64_t always_kept,
                   const std::string& what) {
  if (capacity > always_kept) return;
  throw InvalidInput(
      "--kv", fmt::format("'{}': capacity={}, expected more than the {} tokens of {}", spec.text,
                          capacity, always_kept, what));
}

}  // namespace pmkvq
