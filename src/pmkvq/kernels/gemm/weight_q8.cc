#include "pmkvq/kernels/gemm/weight_q8.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/gemm/weight_q8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Largest magnitude of a group as the bits of a float: ordered like the magnitudes, and infinities
// and NaN above all numbers.
HWY_INLINE uint32_t LargestMagnitude(const float* HWY_RESTRICT group) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> d32;
  const size_t lanes = hn::Lanes(d);
  auto largest = hn::Zero(d32);
  for (size_t i = 0; i < static_cast<size_t>(kQ8Group); i += lanes) {
    largest = hn::Max(largest, hn::BitCast(d32, hn::Abs(hn::LoadU(d, group + i))));
  }
  return hn::GetLane(hn::MaxOfLanes(d32, largest));
}

// `weights` [num_groups * kQ8Group] to `out`. False where a weight is not finite.
bool QuantizeGroups(const float* HWY_RESTRICT weights, int64_t num_groups,
                    std::byte* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const size_t lanes = hn::Lanes(d);
  bool finite = true;
  for (int64_t g = 0; g < num_groups; ++g, weights += kQ8Group, out += kQ8GroupBytes) {
    const uint32_t largest = LargestMagnitude(weights);
    finite = finite && largest < 0x7f800000u;
    const float exact = std::bit_cast<float>(largest) / 127.0f;
    const uint32_t rounded_up = (std::bit_cast<uint32_t>(exact) + 0xffffu) & 0xffff0000u;
    const auto stored = static_cast<uint16_t>(rounded_up >> 16);
    std::memcpy(out + kQ8Group, &stored, sizeof(stored));
    if (rounded_up == 0 || !finite) {
      std::memset(out, 0, kQ8Group);
      continue;
    }
    const auto scale = hn::Set(d, std::bit_cast<float>(rounded_up));
    for (size_t i = 0; i < static_cast<size_t>(kQ8Group); i += lanes) {
      const auto codes = hn::NearestInt(hn::Div(hn::LoadU(d, weights + i), scale));
      hn::StoreU(hn::DemoteTo(d8, codes), d8, reinterpret_cast<int8_t*>(out) + i);
    }
  }
  return finite;
}

int64_t Q8Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq {
namespace internal {

HWY_EXPORT(QuantizeGroups);
HWY_EXPORT(Q8Target);

namespace {
bool RunQuantizeGroups(const float* weights, int64_t num_groups, std::byte* out) {
  return HWY_DYNAMIC_DISPATCH(QuantizeGroups)(weights, num_groups, out);
}
}  // namespace

int64_t Q8KernelTarget() { return HWY_DYNAMIC_DISPATCH(Q8Target)(); }

}  // namespace internal

bool QuantizeRow(const float* weights, int64_t cols, std::byte* out) {
  return internal::RunQuantizeGroups(weights, RowBytes(WeightFormat::kQ8, cols) / kQ8GroupBytes,
                                     out);
}

float RowError(const float* weights, int64_t cols, const std::byte* quantized) {
  float largest = 0.0f;
  float group[kQ8Group];
  for (int64_t col = 0; col < cols; col += kQ8Group, quantized += kQ8GroupBytes) {
    internal::ExpandToFloat(quantized, WeightFormat::kQ8, kQ8Group, group);
    for (int64_t i = 0; i < std::min(kQ8Group, cols - col); ++i) {
      largest = std::max(largest, std::abs(weights[col + i] - group[i]));
    }
  }
  return largest;
}

bool QuantizeWeight(const WeightView& weight, const ExecContext& exec, Q8Weight& out) {
  PMKVQ_CHECK_MSG(weight.format != WeightFormat::kQ8, "the weights are quantised already");
  constexpr int64_t kRowsPerItem = 64;
  const int64_t row_bytes = RowBytes(WeightFormat::kQ8, weight.cols);
  const int64_t num_groups = row_bytes / kQ8GroupBytes;
  const int64_t stored_row_bytes = RowBytes(weight.format, weight.cols);
  out.rows = weight.rows;
  out.cols = weight.cols;
  out.data.resize(static_cast<size_t>(weight.rows * row_bytes));
  std::atomic<bool> finite{true};
  ParallelForRanges(exec.num_threads, weight.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    AlignedVector<float> row(static_cast<size_t>(num_groups * kQ8Group));
    for (int64_t n = begin; n < end; ++n) {
      internal::ExpandToFloat(weight.data + weight.StoredRow(n) * stored_row_bytes, weight.format,
                              weight.cols, row.data());
      if (!QuantizeRow(row.data(), weight.cols, out.data.data() + n * row_bytes)) finite = false;
    }
  });
  return finite;
}

}  // namespace pmkvq
#endif  // HWY_ONCE
