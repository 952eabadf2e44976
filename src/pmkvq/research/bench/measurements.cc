#include "pmkvq/research/bench/measurements.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

namespace pmkvq {

double Measurements::Max() const {
  PMKVQ_CHECK(!values_.empty());
  return *std::max_element(values_.begin(), values_.end());
}

double Measurements::Quantile(double fraction) const {
  PMKVQ_CHECK(!values_.empty() && fraction >= 0.0 && fraction <= 1.0);
  std::vector<double> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(place));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - std::floor(place);
  return sorted[below] + part * (sorted[above] - sorted[below]);
}

}  // namespace pmkvq
