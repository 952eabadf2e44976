#include "pmkvq/research/calib/fake_quant.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq {
namespace {

// Values per item of the loop. It does not depend on the number of threads, and partial sums are
// added in order of the items: so the result does not depend on threads either.
constexpr int64_t kRun = 8192;

template <class Function>
double SumOverRuns(int64_t count, int64_t run, int num_threads, const Function& sum_of_run) {
  const int64_t num_runs = (count + run - 1) / run;
  std::vector<double> partial(static_cast<size_t>(num_runs));
  ParallelFor(num_threads, num_runs, [&](int64_t r, int /*worker*/) {
    partial[static_cast<size_t>(r)] = sum_of_run(r * run, std::min(count, (r + 1) * run));
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

}  // namespace

void FakeQuantizeParallel(int64_t group, int bits, const float* x, int64_t num_groups, float* out,
                          int num_threads) {
  ParallelForRanges(num_threads, num_groups, kRun / group, [=](int64_t begin, int64_t end) {
    FakeQuantize({.group = group, .bits = bits}, x + begin * group, end - begin,
                 out + begin * group);
  });
}

double QuantizationDamage(int64_t group, int bits, const float* x, const float* gradient,
                          int64_t num_groups, int num_threads) {
  return SumOverRuns(num_groups, kRun / group, num_threads, [&](int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * group;
    const float* run_x = x + begin * group;
    const float* run_gradient = gradient + begin * group;
    float quantized[kRun];
    FakeQuantize({.group = group, .bits = bits}, run_x, end - begin, quantized);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float error = quantized[i] - run_x[i];
      sum += std::abs(static_cast<double>(error) * static_cast<double>(run_gradient[i]));
    }
    return sum;
  });
}

double SumOfSquares(const float* x, int64_t count, int num_threads) {
  return SumOverRuns(count, kRun, num_threads, [&](int64_t begin, int64_t end) {
    // Several sums, so that an addition need not wait for the one before.
    constexpr int64_t kSums = 16;
    double sums[kSums] = {};
    const auto add = [&](int64_t i, int64_t lane) {
      const auto value = static_cast<double>(x[i]);
      sums[lane] += value * value;
    };
    int64_t i = begin;
    for (; i + kSums <= end; i += kSums) {
      for (int64_t lane = 0; lane < kSums; ++lane) add(i + lane, lane);
    }
    for (; i < end; ++i) add(i, i % kSums);
    return std::accumulate(sums, sums + kSums, 0.0);
  });
}

}  // namespace pmkvq
