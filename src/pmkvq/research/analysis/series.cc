#include "pmkvq/research/analysis/series.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Ranks from 1, equal values sharing the mean of theirs.
std::vector<double> Ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    const double rank = 0.5 * static_cast<double>(begin + 1 + end);
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = rank;
    begin = end;
  }
  return ranks;
}

// Sums of squares and products around the means.
struct Moments {
  double mean_x = 0, mean_y = 0;
  double xx = 0, yy = 0, xy = 0;
};

Moments MomentsOf(const std::vector<double>& x, const std::vector<double>& y) {
  Moments moments;
  moments.mean_x = MeanOf(x);
  moments.mean_y = MeanOf(y);
  for (size_t i = 0; i < x.size(); ++i) {
    const double dx = x[i] - moments.mean_x;
    const double dy = y[i] - moments.mean_y;
    moments.xx += dx * dx;
    moments.yy += dy * dy;
    moments.xy += dx * dy;
  }
  return moments;
}

}  // namespace

std::vector<double> PositionBins::Centres() const {
  std::vector<double> centres;
  for (size_t i = 0; i < size(); ++i) {
    centres.push_back(0.5 * static_cast<double>(edges[i] + edges[i + 1] - 1));
  }
  return centres;
}

PositionBins MakeBins(int64_t begin, int64_t end, int64_t count) {
  PMKVQ_CHECK(begin < end && count >= 1);
  count = std::min(count, end - begin);
  PositionBins bins;
  for (int64_t i = 0; i <= count; ++i) bins.edges.push_back(begin + (end - begin) * i / count);
  return bins;
}

std::vector<double> BinMeans(const PositionBins& bins, const std::vector<int64_t>& positions,
                             const std::vector<double>& values) {
  PMKVQ_CHECK(positions.size() == values.size());
  std::vector<double> means;
  size_t next = static_cast<size_t>(
      std::lower_bound(positions.begin(), positions.end(), bins.edges.front()) - positions.begin());
  for (size_t bin = 0; bin < bins.size(); ++bin) {
    double sum = 0;
    int64_t count = 0;
    for (; next < positions.size() && positions[next] < bins.edges[bin + 1]; ++next) {
      sum += values[next];
      ++count;
    }
    means.push_back(count > 0 ? sum / static_cast<double>(count) : kNaN);
  }
  return means;
}

PowerLaw FitPowerLaw(const std::vector<double>& x, const std::vector<double>& y) {
  PMKVQ_CHECK(x.size() == y.size());
  std::vector<double> log_x;
  std::vector<double> log_y;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!(x[i] > 0) || !(y[i] > 0) || !std::isfinite(x[i]) || !std::isfinite(y[i])) continue;
    log_x.push_back(std::log(x[i]));
    log_y.push_back(std::log(y[i]));
  }
  const Moments moments = MomentsOf(log_x, log_y);
  const auto num_points = static_cast<int64_t>(log_x.size());
  if (num_points < 3 || moments.xx == 0) return {num_points, kNaN, kNaN, kNaN};
  PowerLaw law;
  law.num_points = num_points;
  law.exponent = moments.xy / moments.xx;
  law.coefficient = std::exp(moments.mean_y - law.exponent * moments.mean_x);
  law.r_squared = moments.yy > 0 ? moments.xy * moments.xy / (moments.xx * moments.yy) : 1.0;
  return law;
}

double RankCorrelation(const std::vector<double>& a, const std::vector<double>& b) {
  PMKVQ_CHECK(a.size() == b.size() && a.size() >= 2);
  const Moments moments = MomentsOf(Ranks(a), Ranks(b));
  if (moments.xx == 0 || moments.yy == 0) return kNaN;
  return moments.xy / std::sqrt(moments.xx * moments.yy);
}

double KlOfLogs(const float* log_p, const float* log_q, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double p = std::exp(double{log_p[i]});
    // p = 0 adds 0, the limit of p log p; log_p is then -inf, and 0 * -inf would be NaN.
    if (p > 0) sum += p * (double{log_p[i]} - double{log_q[i]});
  }
  // Rounding may leave a little less than nothing between equal distributions.
  return std::max(sum, 0.0);
}

double KlOfLogs(const std::vector<float>& log_p, const std::vector<float>& log_q) {
  PMKVQ_CHECK(log_p.size() == log_q.size());
  return KlOfLogs(log_p.data(), log_q.data(), static_cast<int64_t>(log_p.size()));
}

void LogSoftmax(float* logits, int64_t count) {
  const float largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(double{logits[i]} - double{largest});
  const double offset = double{largest} + std::log(sum);
  for (int64_t i = 0; i < count; ++i) logits[i] = static_cast<float>(double{logits[i]} - offset);
}

double MeanOf(const std::vector<double>& values) {
  if (values.empty()) return kNaN;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace pmkvq
