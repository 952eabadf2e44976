// Repeated measurements of one quantity, their median and their spread.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace pmkvq {

// The middle of the measurements, and the bounds below and above which a tenth of them lies.
struct Spread {
  double median = 0;
  double p10 = 0;
  double p90 = 0;
};

inline Spread InMilliseconds(const Spread& seconds) {
  return {seconds.median * 1e3, seconds.p10 * 1e3, seconds.p90 * 1e3};
}

class Measurements {
 public:
  void Add(double value) { values_.push_back(value); }
  bool empty() const { return values_.empty(); }
  double Max() const;
  // Between two measurements the quantile is interpolated. There must be at least one.
  double Quantile(double fraction) const;
  double Median() const { return Quantile(0.5); }
  Spread ToSpread() const { return {Quantile(0.5), Quantile(0.1), Quantile(0.9)}; }

 private:
  std::vector<double> values_;
};

// Seconds that `action` takes.
template <class Action>
double TimeSeconds(const Action& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace pmkvq
