#include "pmkvq/research/methods/subgen_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace pmkvq {
namespace {

double Distance(std::span<const float> a, std::span<const float> b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = double{a[i]} - double{b[i]};
    squares += difference * difference;
  }
  return std::sqrt(squares);
}

}  // namespace

void SubGenHead::AddKey(const SubGenRule& rule, int64_t token, std::span<const float> key,
                        std::span<const double> coins) {
  double least = std::numeric_limits<double>::infinity();
  Cluster* nearest = nullptr;
  for (Cluster& cluster : clusters_) {
    const double distance = Distance(cluster.centre, key);
    if (distance >= least) continue;
    least = distance;
    nearest = &cluster;
  }
  if (nearest == nullptr || (least > rule.delta && std::ssize(clusters_) < rule.most_clusters)) {
    Cluster cluster{{key.begin(), key.end()}, token, 1, {}};
    cluster.samples.assign(static_cast<size_t>(rule.samples_per_cluster), token);
    clusters_.push_back(std::move(cluster));
    return;
  }
  ++nearest->count;
  const double chance = 1 / static_cast<double>(nearest->count);
  for (size_t i = 0; i < nearest->samples.size(); ++i) {
    if (coins[i] < chance) nearest->samples[i] = token;
  }
}

void SubGenHead::AddValue(const SubGenRule& rule, int64_t token, std::span<const float> value,
                          std::span<const double> coins) {
  slots_.resize(static_cast<size_t>(rule.value_samples));
  double squares = 0;
  for (const float x : value) squares += double{x} * double{x};
  if (squares <= 0) return;  // Adds nothing to any sum.
  const double chance = squares / (mu_ + squares);
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (coins[i] < chance) slots_[i] = {token, squares};
  }
  mu_ += squares;
}

std::vector<SubGenHead::LogWeights> SubGenHead::Weights(const SubGenRule& rule) const {
  struct Sums {
    double numerator = 0;
    double denominator = 0;
  };
  std::map<int64_t, Sums> sums;
  for (const ValueSlot& slot : slots_) {
    if (slot.token < 0) continue;
    sums[slot.token].numerator += mu_ / (static_cast<double>(rule.value_samples) * slot.squares);
  }
  for (const Cluster& cluster : clusters_) {
    const double share =
        static_cast<double>(cluster.count) / static_cast<double>(rule.samples_per_cluster);
    for (const int64_t token : cluster.samples) sums[token].denominator += share;
  }
  std::vector<LogWeights> weights;
  for (const auto& [token, sum] : sums) {
    weights.push_back({token, std::log(sum.numerator), std::log(sum.denominator)});
  }
  return weights;
}

void SubGenHead::Truncate(int64_t num_tokens) {
  std::erase_if(clusters_, [&](const Cluster& cluster) { return cluster.first >= num_tokens; });
  for (Cluster& cluster : clusters_) {
    for (int64_t& token : cluster.samples) {
      if (token >= num_tokens) token = cluster.first;
    }
  }
  for (ValueSlot& slot : slots_) {
    if (slot.token >= num_tokens) slot = {};
  }
}

}  // namespace pmkvq
