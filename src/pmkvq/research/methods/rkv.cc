// R-KV (arXiv 2505.24133; Zefan-Cai/R-KV): after every 128 tokens each KV head keeps the newest
// ones and those that matter and are not redundant, Z = lambda I - (1 - lambda) R.
//
// I: the newest `window` queries, the largest score of the query heads that share the KV head,
// softmax over the tokens before the window, mean over the queries, largest of `kernel` neighbours.
// R: cosines of the keys of all kept tokens, 0 on the diagonal; of the tokens that are alike (more
// than `similar`) to one token, the newest one counts 0 there; mean over rows, softmax over tokens.
//
// The rule runs at multiples of `every` tokens counted from the first token, prompt included; the
// authors count generated tokens, and keep a prompt whole until the first 128 are there.
#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

struct RkvState : MethodState {
  RkvState(int64_t window, int64_t row_values) : queries(window), row_size(row_values) {}
  void Truncate(int64_t num_tokens) override { queries.Truncate(num_tokens, row_size); }
  RecentQueries queries;
  int64_t row_size;
};

void Softmax(std::vector<double>& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - largest);
  for (double& value : x) value /= sum;
}

class Rkv final : public CacheMethod {
 public:
  Rkv(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    eviction_ = {spec.Integer("capacity", 1024), spec.Integer("every", 128)};
    window_ = spec.Integer("window", 8);
    kernel_ = spec.Integer("kernel", 7);
    lambda_ = spec.Real("lambda", spec.words.contains("reference") ? 0.07 : 0.1);
    similar_ = spec.Real("similar", 0.5);
    CheckCapacity(spec, eviction_.capacity, window_, "the window");
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.token_weights = true;
    needs.queries = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<RkvState>(window_, RowSize());
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    auto& state = static_cast<RkvState&>(*opaque);
    eviction_.ForEachPlace(tokens.first, tokens.count, [&](int64_t end) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        Evict(head, end, tokens, state.queries, block);
      }
    });
    state.queries.Push(tokens, state.row_size);
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * context_.FloatBytes(eviction_.NumKept(num_tokens)) +
           RecentQueries::Bytes(context_, std::min(num_tokens, window_));
  }
  ByteGrowth Growth(int64_t) const override { return eviction_.Growth(); }

 private:
  int64_t RowSize() const { return context_.geometry.num_heads * context_.geometry.head_dim; }

  void Evict(int64_t head, int64_t end, const AppendedTokens& tokens, const RecentQueries& queries,
             SimulatedBlock& block) const {
    const std::vector<int64_t> kept = KeptTokens(block, head, end);
    if (std::ssize(kept) <= eviction_.capacity) return;
    const auto num_old = std::lower_bound(kept.begin(), kept.end(), end - window_) - kept.begin();
    const std::vector<int64_t> old(kept.begin(), kept.begin() + num_old);
    std::vector<double> scores = Importance(head, end, old, tokens, queries, block);
    const std::vector<double> redundancy = Redundancy(head, kept, block);
    for (size_t i = 0; i < scores.size(); ++i) {
      scores[i] = lambda_ * scores[i] - (1 - lambda_) * redundancy[i];
    }
    KeepLargest(scores, old, eviction_.capacity - window_, head, block);
  }

  std::vector<double> Importance(int64_t head, int64_t end, const std::vector<int64_t>& old,
                                 const AppendedTokens& tokens, const RecentQueries& queries,
                                 const SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const int64_t group = context_.geometry.num_heads / context_.geometry.num_kv_heads;
    std::vector<double> sums(old.size(), 0.0);
    for (int64_t row = end - window_; row < end; ++row) {
      const float* const q = row < 0 ? nullptr : queries.At(row, tokens, RowSize());
      if (q == nullptr) continue;
      std::vector<double> weights;
      for (const int64_t token : old) {
        const float* const k = block.Key(token, head);
        double largest = -std::numeric_limits<double>::infinity();
        for (int64_t of_group = 0; of_group < group; ++of_group) {
          const float* const of_head = q + (head * group + of_group) * dim;
          double score = 0;
          for (int64_t i = 0; i < dim; ++i) score += double{of_head[i]} * double{k[i]};
          largest = std::max(largest, score);
        }
        weights.push_back(largest / std::sqrt(static_cast<double>(dim)));
      }
      Softmax(weights);
      for (size_t i = 0; i < sums.size(); ++i) {
        sums[i] += weights[i] / static_cast<double>(window_);
      }
    }
    return LargestOfNeighbours(sums);
  }

  std::vector<double> LargestOfNeighbours(const std::vector<double>& sums) const {
    std::vector<double> pooled;
    const auto count = std::ssize(sums);
    for (int64_t i = 0; i < count; ++i) {
      pooled.push_back(*std::max_element(sums.begin() + std::max<int64_t>(0, i - kernel_ / 2),
                                         sums.begin() + std::min(count, i + kernel_ / 2 + 1)));
    }
    return pooled;
  }

  std::vector<double> Redundancy(int64_t head, const std::vector<int64_t>& kept,
                                 const SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const auto count = std::ssize(kept);
    std::vector<float> keys;
    for (const int64_t token : kept) {
      const float* const k = block.Key(token, head);
      double norm = 0;
      for (int64_t i = 0; i < dim; ++i) norm += double{k[i]} * double{k[i]};
      const double factor = 1 / (std::sqrt(norm) + 1e-8);
      for (int64_t i = 0; i < dim; ++i) keys.push_back(static_cast<float>(double{k[i]} * factor));
    }
    std::vector<float> cosines(static_cast<size_t>(count * count));
    BlasGemm(false, true, count, count, dim, 1.0f, keys.data(), dim, keys.data(), dim, 0.0f,
             cosines.data(), count);
    std::vector<double> means(kept.size(), 0.0);
    for (int64_t row = 0; row < count; ++row) {
      float* const of_row = cosines.data() + row * count;
      of_row[row] = 0;
      int64_t newest = 0;  // Where none is alike the first one counts 0, as in the authors' code.
      for (int64_t i = 0; i < count; ++i) {
        if (double{of_row[i]} > similar_) newest = i;
      }
      of_row[newest] = 0;
      for (int64_t i = 0; i < count; ++i) {
        means[static_cast<size_t>(i)] += double{of_row[i]} / static_cast<double>(count);
      }
    }
    Softmax(means);
    return means;
  }

  MethodContext context_;
  PeriodicEviction eviction_;
  int64_t window_ = 0;
  int64_t kernel_ = 0;
  double lambda_ = 0;
  double similar_ = 0;
};

}  // namespace

SimulatedMethod RkvMethod() {
  return {
      "rkv",
      "keeps tokens that matter and are unlike others, for chains of thought",
      {CapacityKey("1024"), EveryKey("128", "tokens after which the surplus is evicted"),
       IntegerKey("window", 1, 512, "8", "newest tokens, whose queries score the others"),
       ChoiceKey("kernel", {"1", "3", "5", "7", "9", "11", "13"}, "7", "tokens that are pooled"),
       RealKey("lambda", 0, 1, "0.1", "weight of attention against redundancy"),
       RealKey("similar", -1, 1, "0.5", "cosine above which keys are alike"),
       WordKey("reference", "lambda 0.07, as in the authors' code")},
      [](const MethodSpec& spec, const MethodContext& context)
          -> std::shared_ptr<const CacheMethod> { return std::make_shared<Rkv>(spec, context); }};
}

}  // namespace pmkvq
