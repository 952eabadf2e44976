#include "pmkvq/kernels/gemm/weight_q4.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"

namespace pmkvq {
namespace {

constexpr int64_t kGroup = LayoutOf(WeightFormat::kQ4_1).block_values;
constexpr int64_t kGroupBytes = LayoutOf(WeightFormat::kQ4_1).block_bytes;
// More change nothing that shows.
constexpr int kMostSteps = 3;

// Loops run over whole groups without branches, so that the compiler makes vectors of them.
struct Group {
  F16 scale;
  F16 minimum;
  int32_t codes[kGroup];
  float error = 0;  // Sum of squares.
};

// False: F16 cannot hold the scale or the minimum.
bool Round(const float* weights, float scale, float minimum, Group& group) {
  group.scale = ToF16(scale);
  group.minimum = ToF16(minimum);
  const float stored_scale = ToFloat(group.scale);
  const float stored_minimum = ToFloat(group.minimum);
  if (!std::isfinite(stored_scale) || !std::isfinite(stored_minimum)) return false;
  const float inverse = stored_scale == 0.0f ? 0.0f : 1.0f / stored_scale;
  for (int64_t i = 0; i < kGroup; ++i) {
    const float place = (weights[i] - stored_minimum) * inverse + 0.5f;
    group.codes[i] = static_cast<int32_t>(std::min(15.0f, std::max(0.0f, place)));
  }
  float errors[8] = {};
  for (int64_t i = 0; i < kGroup; i += 8) {
    for (int64_t k = 0; k < 8; ++k) {
      const float error =
          stored_scale * static_cast<float>(group.codes[i + k]) + stored_minimum - weights[i + k];
      errors[k] += error * error;
    }
  }
  group.error = 0;
  for (const float error : errors) group.error += error;
  return true;
}

// Scale and minimum with the least squared error for the group's codes. False: all are equal.
bool LeastSquares(const float* weights, const Group& group, float& scale, float& minimum) {
  int32_t sum = 0;
  int32_t squares = 0;
  double weight_sum = 0;
  double products = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    sum += group.codes[i];
    squares += group.codes[i] * group.codes[i];
    weight_sum += static_cast<double>(weights[i]);
    products += static_cast<double>(weights[i]) * static_cast<double>(group.codes[i]);
  }
  const auto count = static_cast<double>(kGroup);
  const double determinant = count * squares - static_cast<double>(sum) * sum;
  if (determinant == 0) return false;
  const double slope = (count * products - sum * weight_sum) / determinant;
  scale = static_cast<float>(slope);
  minimum = static_cast<float>((weight_sum - slope * sum) / count);
  return true;
}

bool QuantizeGroup(const float* weights, std::byte* out) {
  const auto [least, greatest] = std::minmax_element(weights, weights + kGroup);
  for (int64_t i = 0; i < kGroup; ++i) {
    if (!std::isfinite(weights[i])) return false;
  }
  Group best;
  if (!Round(weights, (*greatest - *least) / 15.0f, *least, best)) return false;
  for (int step = 0; step < kMostSteps; ++step) {
    float scale = 0;
    float minimum = 0;
    Group next;
    if (!LeastSquares(weights, best, scale, minimum)) break;
    if (!Round(weights, scale, minimum, next) || !(next.error < best.error)) break;
    best = next;
  }
  StoreQ4Group(best.scale, best.minimum, best.codes, out);
  return true;
}

}  // namespace

void StoreQ4Group(F16 scale, F16 minimum, const int32_t* codes, std::byte* out) {
  std::memcpy(out, &scale, sizeof(scale));
  std::memcpy(out + 2, &minimum, sizeof(minimum));
  for (int64_t i = 0; i < kGroup / 2; ++i) {
    out[4 + i] = static_cast<std::byte>(codes[i] | codes[i + kGroup / 2] << 4);
  }
}

bool QuantizeWeightToQ4(const WeightView& weight, const ExecContext& exec, Q4Weight& out) {
  constexpr int64_t kRowsPerItem = 64;
  const int64_t row_bytes = RowBytes(WeightFormat::kQ4_1, weight.cols);
  const int64_t padded_cols = row_bytes / kGroupBytes * kGroup;
  const int64_t stored_row_bytes = RowBytes(weight.format, weight.cols);
  out.rows = weight.rows;
  out.cols = weight.cols;
  out.data.resize(static_cast<size_t>(weight.rows * row_bytes));
  std::atomic<bool> fits{true};
  ParallelForRanges(exec.num_threads, weight.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    AlignedVector<float> row(static_cast<size_t>(padded_cols));
    for (int64_t n = begin; n < end; ++n) {
      internal::ExpandToFloat(weight.data + weight.StoredRow(n) * stored_row_bytes, weight.format,
                              weight.cols, row.data());
      // What fills the last group up must not widen its range.
      if (weight.cols > 0) {
        std::fill(row.begin() + weight.cols, row.end(), row[static_cast<size_t>(weight.cols - 1)]);
      }
      std::byte* group = out.data.data() + n * row_bytes;
      for (int64_t col = 0; col < padded_cols; col += kGroup, group += kGroupBytes) {
        if (!QuantizeGroup(row.data() + col, group)) fits = false;
      }
    }
  });
  return fits;
}

}  // namespace pmkvq
