#include "pmkvq/research/methods/qaq_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/stored_float.h"

namespace pmkvq {
namespace {

int BitsFor(const QaqRule& rule, const QaqValues& values, double sigma) {
  const double range = double{values.highest} - double{values.lowest};
  const double ratio = rule.reference ? range / (4 * std::sqrt(3.0) * sigma) + 1
                                      : range / (2 * std::sqrt(3.0) * sigma);
  // log2 of 0 is minus infinity, of a sigma of 0 infinity: both ends are bounded.
  const double bits = std::ceil(std::log2(ratio));
  return static_cast<int>(std::clamp(bits, double(rule.least_bits), double(rule.most_bits)));
}

}  // namespace

int64_t QaqOutliersPerEnd(const QaqRule& rule, int64_t count) {
  return static_cast<int64_t>(std::ceil(rule.outliers / 2 * static_cast<double>(count)));
}

QaqValues QaqLookAt(const QaqRule& rule, std::span<const float> values) {
  CheckFinite(values.data(), std::ssize(values));
  const auto per_end = static_cast<size_t>(QaqOutliersPerEnd(rule, std::ssize(values)));
  std::vector<float> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  QaqValues looked_at;
  looked_at.lowest = sorted[per_end];
  looked_at.highest = sorted[sorted.size() - 1 - per_end];
  double sum = 0;
  int64_t count = 0;
  for (const float x : values) {
    const bool is_outlier = x < looked_at.lowest || x > looked_at.highest;
    looked_at.is_outlier.push_back(is_outlier);
    if (is_outlier) continue;
    sum += double{x};
    ++count;
  }
  looked_at.mean = sum / static_cast<double>(count);
  return looked_at;
}

int QaqKeyBits(const QaqRule& rule, const QaqValues& values, int64_t num_tokens) {
  const auto n = static_cast<double>(num_tokens);
  const double squared_error = rule.key_error * rule.key_error;
  const double sigma =
      std::sqrt(std::log(n * n * n / (n - 1) * squared_error + 1) / rule.query_power);
  return BitsFor(rule, values, sigma);
}

int QaqValueBits(const QaqRule& rule, const QaqValues& values, int64_t num_tokens,
                 double attention) {
  if (attention <= 0) return rule.least_bits;
  const double sigma = rule.value_error / (std::sqrt(static_cast<double>(num_tokens)) * attention);
  return BitsFor(rule, values, sigma);
}

void QaqDamage(const QaqRule& rule, const QaqValues& looked_at, int bits, std::span<float> values) {
  double min = 0;
  double range = 0;
  internal::VisitFloatType(rule.metadata_type, [&]<class T>(T) {
    const internal::StoredRange<T> stored =
        internal::RoundBounds<T>(looked_at.lowest, looked_at.highest);
    constexpr float kLargest = internal::MaxFinite<T>();
    if (looked_at.lowest < -kLargest || looked_at.highest - ToFloat(stored.min) > kLargest) {
      throw UnfitValues(
          UnfitRangeMessage("value", looked_at.lowest, looked_at.highest, rule.metadata_type));
    }
    min = double{ToFloat(stored.min)};
    range = double{ToFloat(stored.range)};
  });
  if (range <= 0) return;  // All values are alike.
  const auto segments = static_cast<double>(int64_t{1} << bits);
  const double step = range / segments;
  const auto mean =
      double{StoredAs(rule.metadata_type, static_cast<float>(looked_at.mean), "mean")};
  for (size_t i = 0; i < values.size(); ++i) {
    if (looked_at.is_outlier[i]) continue;
    const double x = double{values[i]};
    if (rule.reference) {
      const double code =
          std::clamp(std::nearbyint((x - mean) / step), -segments / 2, segments / 2 - 1);
      values[i] = static_cast<float>(code * step + mean);
    } else {
      const double code = std::clamp(std::floor((x - min) / step), 0.0, segments - 1);
      values[i] = static_cast<float>(min + (code + 0.5) * step);
    }
  }
}

std::vector<int> QaqFit(const QaqRule& rule, const std::vector<int>& wanted, int64_t room) {
  std::vector<int> given = wanted;
  int64_t sum = std::accumulate(given.begin(), given.end(), int64_t{0});
  while (sum != room) {
    const int step = sum > room ? -1 : 1;
    const int end = step < 0 ? rule.least_bits : rule.most_bits;
    int best = -1;
    for (int i = 0; i < std::ssize(given); ++i) {
      const auto distance = [&](int token) {
        return std::abs(wanted[static_cast<size_t>(token)] - given[static_cast<size_t>(token)]);
      };
      const int width = given[static_cast<size_t>(i)];
      if (width == end) continue;
      if (best >= 0 && distance(i) > distance(best)) continue;
      if (best >= 0 && distance(i) == distance(best) &&
          step * width >= step * given[static_cast<size_t>(best)]) {
        continue;
      }
      best = i;
    }
    if (best < 0) break;
    given[static_cast<size_t>(best)] += step;
    sum += step;
  }
  return given;
}

}  // namespace pmkvq
