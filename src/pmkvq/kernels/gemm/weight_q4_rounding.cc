#include "pmkvq/kernels/gemm/weight_q4_rounding.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"
#include "pmkvq/kernels/linalg/inverse_factor.h"

namespace pmkvq {
namespace {

constexpr int64_t kGroup = LayoutOf(WeightFormat::kQ4_1).block_values;
constexpr int64_t kGroupBytes = LayoutOf(WeightFormat::kQ4_1).block_bytes;
// More change nothing that shows.
constexpr int kMostSteps = 3;
// Rows that are rounded together: for 64 of them a product with U has 32 multiplications for a byte
// of U.
constexpr int64_t kRowsPerItem = 64;
constexpr int64_t kMomentTile = 128;
constexpr double kDamping = 0.01;
constexpr int kMostDampings = 6;

struct Step {
  F16 scale;
  F16 minimum;
  float scale_value = 0;
  float minimum_value = 0;

  int CodeOf(float weight) const {
    if (scale_value == 0.0f) return 0;
    const float place = (weight - minimum_value) / scale_value + 0.5f;
    return static_cast<int>(std::min(15.0f, std::max(0.0f, place)));
  }
  float ValueOf(int code) const { return scale_value * static_cast<float>(code) + minimum_value; }
};

// False: F16 cannot hold them.
bool MakeStep(double scale, double minimum, Step& step) {
  step.scale = ToF16(static_cast<float>(scale));
  step.minimum = ToF16(static_cast<float>(minimum));
  step.scale_value = ToFloat(step.scale);
  step.minimum_value = ToFloat(step.minimum);
  return std::isfinite(step.scale_value) && std::isfinite(step.minimum_value);
}

double ErrorOf(const float* weights, const double* importance, const Step& step) {
  double sum = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    const double error = static_cast<double>(step.ValueOf(step.CodeOf(weights[i]))) -
                         static_cast<double>(weights[i]);
    sum += importance[i] * error * error;
  }
  return sum;
}

// The scale and minimum with the least weighted error for the codes that `step` gives. False: all
// codes are equal, or F16 cannot hold the result.
bool LeastSquares(const float* weights, const double* importance, const Step& step, Step& next) {
  double count = 0;
  double codes = 0;
  double squares = 0;
  double values = 0;
  double products = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    const double code = step.CodeOf(weights[i]);
    const auto value = static_cast<double>(weights[i]);
    count += importance[i];
    codes += importance[i] * code;
    squares += importance[i] * code * code;
    values += importance[i] * value;
    products += importance[i] * value * code;
  }
  const double determinant = count * squares - codes * codes;
  if (!(determinant > 1e-12 * count * squares)) return false;
  const double scale = (count * products - codes * values) / determinant;
  return MakeStep(scale, (values - scale * codes) / count, next);
}

bool FitGroup(const float* weights, const double* importance, Step& best) {
  const auto [least, greatest] = std::minmax_element(weights, weights + kGroup);
  for (int64_t i = 0; i < kGroup; ++i) {
    if (!std::isfinite(weights[i])) return false;
  }
  if (!MakeStep((*greatest - *least) / 15.0f, *least, best)) return false;
  double error = ErrorOf(weights, importance, best);
  for (int i = 0; i < kMostSteps; ++i) {
    Step next;
    if (!LeastSquares(weights, importance, best, next)) break;
    const double of_next = ErrorOf(weights, importance, next);
    if (!(of_next < error)) break;
    best = next;
    error = of_next;
  }
  return true;
}

// Some rows of a matrix, group after group.
class RowRounding {
 public:
  RowRounding(const WeightView& weight, const float* factor, int64_t begin, int64_t end)
      : cols_(weight.cols),
        factor_(factor),
        num_rows_(end - begin),
        weights_(static_cast<size_t>(num_rows_ * cols_)),
        errors_(static_cast<size_t>(num_rows_ * kGroup)) {
    const int64_t row_bytes = RowBytes(weight.format, cols_);
    for (int64_t row = begin; row < end; ++row) {
      internal::ExpandToFloat(weight.data + weight.StoredRow(row) * row_bytes, weight.format, cols_,
                              weights_.data() + (row - begin) * cols_);
    }
  }

  // `out` has the rows of Q4_1, one behind the other. False: F16 cannot hold a group.
  bool Run(std::byte* out) {
    const int64_t row_bytes = RowBytes(WeightFormat::kQ4_1, cols_);
    double importance[kGroup];
    for (int64_t first = 0; first < cols_; first += kGroup) {
      for (int64_t j = 0; j < kGroup; ++j) {
        const auto diagonal = static_cast<double>(FactorRow(first + j)[first + j]);
        importance[j] = 1.0 / (diagonal * diagonal);
      }
      for (int64_t row = 0; row < num_rows_; ++row) {
        if (!RoundGroup(row, first, importance,
                        out + row * row_bytes + first / kGroup * kGroupBytes)) {
          return false;
        }
      }
      const int64_t behind = first + kGroup;
      if (behind == cols_) break;
      BlasGemm<float>(false, false, num_rows_, cols_ - behind, kGroup, -1.0f, errors_.data(),
                      kGroup, FactorRow(first) + behind, cols_, 1.0f, weights_.data() + behind,
                      cols_);
    }
    return true;
  }

 private:
  const float* FactorRow(int64_t row) const { return factor_ + row * cols_; }

  bool RoundGroup(int64_t row, int64_t first, const double* importance, std::byte* out) {
    float* const weights = weights_.data() + row * cols_ + first;
    float* const errors = errors_.data() + row * kGroup;
    Step step;
    if (!FitGroup(weights, importance, step)) return false;
    int32_t codes[kGroup];
    for (int64_t j = 0; j < kGroup; ++j) {
      const float* const factor = FactorRow(first + j) + first;
      codes[j] = step.CodeOf(weights[j]);
      const float error = (weights[j] - step.ValueOf(codes[j])) / factor[j];
      for (int64_t behind = j + 1; behind < kGroup; ++behind) {
        weights[behind] -= error * factor[behind];
      }
      errors[j] = error;
    }
    StoreQ4Group(step.scale, step.minimum, codes, out);
    return true;
  }

  const int64_t cols_;
  const float* const factor_;
  const int64_t num_rows_;
  AlignedVector<float> weights_;  // [num_rows, cols]; from the current group on, made up for.
  AlignedVector<float> errors_;   // [num_rows, kGroup]
};

}  // namespace

void AddSecondMoment(const float* x, int64_t num_rows, int64_t cols, float* moment,
                     const ExecContext& exec) {
  ParallelForRanges(exec.num_threads, cols, kMomentTile, [&](int64_t begin, int64_t end) {
    BlasGemm<float>(true, false, end - begin, cols - begin, num_rows, 1.0f, x + begin, cols,
                    x + begin, cols, 1.0f, moment + begin * cols + begin, cols);
  });
}

void FactorForRounding(int64_t cols, float* moment) {
  const auto size = static_cast<size_t>(cols * cols);
  double trace = 0;
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = i; j < cols; ++j) {
      if (std::isfinite(moment[i * cols + j])) continue;
      throw InvalidInput("second moment of inputs",
                         "found a value that is not finite, expected finite inputs of products");
    }
    trace += static_cast<double>(moment[i * cols + i]);
  }
  AlignedVector<double> factor(size);
  double damping = kDamping * trace / static_cast<double>(cols);
  bool is_factored = false;
  for (int attempt = 0; trace > 0 && !is_factored && attempt < kMostDampings; ++attempt) {
    std::copy_n(moment, size, factor.data());
    for (int64_t i = 0; i < cols; ++i) factor[static_cast<size_t>(i * cols + i)] += damping;
    is_factored = FactorOfInverse(factor.data(), cols);
    damping *= 10;
  }
  if (!is_factored) {
    std::fill_n(moment, size, 0.0f);
    for (int64_t i = 0; i < cols; ++i) moment[i * cols + i] = 1.0f;
    return;
  }
  // Only ratios of U's values count, so its largest diagonal value may be 1: inputs of any size
  // then give floats of a moderate one.
  double largest = 0;
  for (int64_t i = 0; i < cols; ++i) {
    largest = std::max(largest, factor[static_cast<size_t>(i * cols + i)]);
  }
  std::transform(factor.begin(), factor.end(), moment,
                 [largest](double value) { return static_cast<float>(value / largest); });
}

bool RoundWeightToQ4(const WeightView& weight, const float* factor, const ExecContext& exec,
                     Q4Weight& out) {
  PMKVQ_CHECK(weight.cols % kGroup == 0);
  const int64_t row_bytes = RowBytes(WeightFormat::kQ4_1, weight.cols);
  out.rows = weight.rows;
  out.cols = weight.cols;
  out.data.resize(static_cast<size_t>(weight.rows * row_bytes));
  std::atomic<bool> fits{true};
  ParallelForRanges(exec.num_threads, weight.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    if (!RowRounding(weight, factor, begin, end).Run(out.data.data() + begin * row_bytes)) {
      fits = false;
    }
  });
  return fits;
}

}  // namespace pmkvq
