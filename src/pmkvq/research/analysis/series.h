// Small numerics of the analyses: means over bins, a power law, rank correlation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pmkvq {

// Equal parts of the positions [begin, end): bin i holds [edges[i], edges[i + 1]).
struct PositionBins {
  std::vector<int64_t> edges;

  size_t size() const { return edges.size() - 1; }
  // Middles of the bins, for charts.
  std::vector<double> Centres() const;
};
// At most `count` bins, none empty. begin < end, count >= 1.
PositionBins MakeBins(int64_t begin, int64_t end, int64_t count);

// Mean of the values whose position is in each bin; NaN where there is none. `positions` ascend.
std::vector<double> BinMeans(const PositionBins& bins, const std::vector<int64_t>& positions,
                             const std::vector<double>& values);

// y = coefficient * x^exponent, by least squares of log y on log x over the points with x, y > 0
// (others, NaN too, are left out).
struct PowerLaw {
  int64_t num_points = 0;  // Used. Fewer than 3: the rest is NaN.
  double exponent = 0;
  double coefficient = 0;
  double r_squared = 0;  // Of the logarithms; 1 when they do not vary.
};
PowerLaw FitPowerLaw(const std::vector<double>& x, const std::vector<double>& y);

// Spearman's rank correlation of two lists of the same length >= 2, equal values sharing their mean
// rank; NaN when one of them does not vary.
double RankCorrelation(const std::vector<double>& a, const std::vector<double>& b);

// KL(p || q) in nats of two distributions given as logarithms, of the same length.
double KlOfLogs(const std::vector<float>& log_p, const std::vector<float>& log_q);
// The same over part [begin, begin + count) of both.
double KlOfLogs(const float* log_p, const float* log_q, int64_t count);

// Logits to logarithms of their softmax, in place.
void LogSoftmax(float* logits, int64_t count);

double MeanOf(const std::vector<double>& values);  // NaN for none.

}  // namespace pmkvq
