// SubGen's two samples of what one KV head has seen: keys in clusters, for the denominator of
// attention, and pairs of key and value, for its numerator.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pmkvq {

struct SubGenRule {
  int64_t samples_per_cluster = 4;  // t
  int64_t value_samples = 16;       // s
  int64_t most_clusters = 64;
  double delta = 4;  // Largest distance of a key to the centre of its cluster.
};

class SubGenHead {
 public:
  struct Cluster {
    std::vector<float> centre;     // [D], its first key.
    int64_t first = 0;             // The token of that.
    int64_t count = 0;             // Keys that joined.
    std::vector<int64_t> samples;  // [t], tokens.
  };
  struct ValueSlot {
    int64_t token = -1;  // -1: empty.
    double squares = 0;  // |v|^2
  };
  // Of one token in attention; a token that is in neither sample has both minus infinity.
  struct LogWeights {
    int64_t token = 0;
    double numerator = 0;
    double denominator = 0;
  };

  // The key of `token` joins the nearest cluster within delta (the first of equally near ones):
  // its count grows by 1, and each sample is replaced where its coin [t] is below 1 / count. Else
  // it opens a cluster, or, where there are as many as may be, joins the nearest one all the same.
  void AddKey(const SubGenRule& rule, int64_t token, std::span<const float> key,
              std::span<const double> coins);
  // Slot i is replaced where coins[i] [s] is below |v|^2 / (mu + |v|^2); then mu += |v|^2.
  void AddValue(const SubGenRule& rule, int64_t token, std::span<const float> value,
                std::span<const double> coins);

  // By token. Numerator: ln(copies * mu / (s |v|^2)); denominator: ln(sum over clusters of copies *
  // count / t). Of tokens in either sample.
  std::vector<LogWeights> Weights(const SubGenRule& rule) const;

  // Forgets tokens from `num_tokens` on. Samples that were such tokens become the first key of
  // their cluster; slots become empty.
  void Truncate(int64_t num_tokens);

  const std::vector<Cluster>& clusters() const { return clusters_; }
  const std::vector<ValueSlot>& slots() const { return slots_; }
  double mu() const { return mu_; }

 private:
  std::vector<Cluster> clusters_;
  std::vector<ValueSlot> slots_;
  double mu_ = 0;  // Sum of |v|^2.
};

}  // namespace pmkvq
