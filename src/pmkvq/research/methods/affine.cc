#include "pmkvq/research/methods/affine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kv/kv_failure.h"

namespace pmkvq {

float AffineGrid::Read(float x, float highest) const {
  const uint32_t code = step > 0.0f ? internal::CodeOf(x, min, step, highest) : 0;
  return static_cast<float>(code) * step + min;
}

AffineGrid GridOf(const AffineFormat& format, int64_t count, int64_t stride, const float* x) {
  PMKVQ_DCHECK(count >= 1 && format.bits >= 1 && format.bits <= 8);
  float lowest = x[0];
  float highest = x[0];
  for (int64_t i = 0; i < count; ++i) {
    CheckFinite(x + i * stride, 1);
    lowest = std::min(lowest, x[i * stride]);
    highest = std::max(highest, x[i * stride]);
  }
  const float max_code = internal::MaxCode(format.bits);
  return internal::VisitFloatType(format.metadata_type, [&]<class T>(T) {
    const internal::StoredRange<T> stored = internal::RoundBounds<T>(lowest, highest);
    constexpr float kLargest = internal::MaxFinite<T>();
    if (lowest < -kLargest || highest - ToFloat(stored.min) > kLargest) {
      throw UnfitValues(UnfitRangeMessage("value", lowest, highest, format.metadata_type));
    }
    return AffineGrid{ToFloat(stored.min), ToFloat(stored.range) / max_code, max_code};
  });
}

void DamageGroup(const AffineFormat& format, int64_t count, int64_t stride, float* x) {
  const AffineGrid grid = GridOf(format, count, stride, x);
  for (int64_t i = 0; i < count; ++i) x[i * stride] = grid.Read(x[i * stride], grid.max_code);
}

void DamageRow(const AffineFormat& format, int64_t group, int64_t head_dim, float* row) {
  for (int64_t i = 0; i < head_dim; i += group) DamageGroup(format, group, 1, row + i);
}

void CheckFinite(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) throw UnfitValues(UnfitValueMessage("value", x[i], DType::kF32));
  }
}

int64_t AffineBytes(const AffineFormat& format, int64_t num_values, int64_t group) {
  PMKVQ_DCHECK(num_values % group == 0);
  const int64_t code_bytes = (group * format.bits + 7) / 8;
  const auto metadata_bytes = static_cast<int64_t>(2 * SizeOf(format.metadata_type));
  return num_values / group * (code_bytes + metadata_bytes);
}

void CheckGroup(const std::string& text, int64_t group, int64_t head_dim) {
  if (head_dim % group == 0) return;
  throw InvalidInput("--kv", fmt::format("'{}': group {}, expected a divisor of head_dim {}", text,
                                         group, head_dim));
}

}  // namespace pmkvq
