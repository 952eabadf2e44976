#include "pmkvq/model/weight_conversion.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

// About this many weights an item, 50 us of decoding and more.
constexpr int64_t kItemWeights = int64_t{1} << 16;

// Decodes all rows: body(row, its values), in order within an item.
template <class Body>
void ForDecodedRows(const WeightSource& source, const StoredWeight& weight, const ExecContext& exec,
                    const Body& body) {
  PMKVQ_CHECK(weight.decodes);
  const int64_t cols = weight.shape.back();
  const int64_t rows = NumElements(weight.shape) / cols;
  const WeightView stored{nullptr, WeightFormat::kF32, rows, cols, weight.pair_rows};
  const int64_t grain = std::max<int64_t>(1, kItemWeights / cols);
  ParallelForRanges(exec.num_threads, rows, grain, [&](int64_t begin, int64_t end) {
    static thread_local AlignedVector<float> values;
    values.resize(static_cast<size_t>(cols));
    for (int64_t row = begin; row < end; ++row) {
      source.DecodeRow(weight, stored.StoredRow(row), values.data());
      body(row, values.data());
    }
  });
}

}  // namespace

bool DecodeToQ8(const WeightSource& source, const StoredWeight& weight, const ExecContext& exec,
                Q8Weight& out) {
  out.cols = weight.shape.back();
  out.rows = NumElements(weight.shape) / out.cols;
  // Rows of blocks are whole groups, so that a row needs no padding.
  PMKVQ_CHECK(out.cols % kQ8Group == 0);
  const int64_t row_bytes = RowBytes(WeightFormat::kQ8, out.cols);
  out.data.resize(static_cast<size_t>(out.rows * row_bytes));
  std::atomic<bool> finite{true};
  ForDecodedRows(source, weight, exec, [&](int64_t row, const float* values) {
    if (!QuantizeRow(values, out.cols, out.data.data() + row * row_bytes)) finite = false;
  });
  return finite;
}

Q8Error MeasureQ8Error(const WeightSource& source, const StoredWeight& weight,
                       const ExecContext& exec) {
  const int64_t cols = weight.shape.back();
  PMKVQ_CHECK(cols % kQ8Group == 0);
  Q8Error total;
  std::mutex mutex;
  ForDecodedRows(source, weight, exec, [&](int64_t /*row*/, const float* values) {
    static thread_local std::vector<std::byte> groups;
    groups.resize(static_cast<size_t>(RowBytes(WeightFormat::kQ8, cols)));
    Q8Error part;
    part.is_finite = QuantizeRow(values, cols, groups.data());
    part.max_error = RowError(values, cols, groups.data());
    for (int64_t i = 0; i < cols; ++i) {
      part.max_weight = std::max(part.max_weight, std::abs(values[i]));
    }
    const std::lock_guard lock(mutex);
    total.is_finite = total.is_finite && part.is_finite;
    total.max_error = std::max(total.max_error, part.max_error);
    total.max_weight = std::max(total.max_weight, part.max_weight);
  });
  return total;
}

}  // namespace pmkvq
