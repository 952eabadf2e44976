// Row-wise vector kernels that decode and prefill share.
#include <algorithm>
#include <cmath>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/attention_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/attention_softmax.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Calls body(tag, i) for i over [0, count) in full vectors, then in single lanes.
template <class Body>
HWY_INLINE void ForLanes(int64_t count, const Body& body) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(df, i);
  for (; i < count; ++i) body(hn::CappedTag<float, 1>(), i);
}

float MaxOf(const float* x, int64_t count) {
  const hn::ScalableTag<float> df;
  auto max = hn::Set(df, x[0]);
  float tail = x[0];
  ForLanes(count, [&](auto d, int64_t i) HWY_ATTR {
    if constexpr (hn::MaxLanes(decltype(d)()) == hn::MaxLanes(hn::ScalableTag<float>())) {
      max = hn::Max(max, hn::LoadU(df, x + i));
    } else {
      tail = std::max(tail, x[i]);
    }
  });
  return std::max(tail, hn::GetLane(hn::MaxOfLanes(df, max)));
}

// x[i] = exp(x[i] - max); gives the sum.
float ExpRow(float max, int64_t count, float* x) {
  const hn::ScalableTag<float> df;
  auto sum = hn::Zero(df);
  float tail = 0.0f;
  ForLanes(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto e = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, max)));
    hn::StoreU(e, d, x + i);
    if constexpr (hn::MaxLanes(decltype(d)()) == hn::MaxLanes(hn::ScalableTag<float>())) {
      sum = hn::Add(sum, hn::LoadU(df, x + i));
    } else {
      tail += x[i];
    }
  });
  return hn::GetLane(hn::SumOfLanes(df, sum)) + tail;
}

void OnlineSoftmaxRows(int64_t rows, int64_t count, int64_t stride, const SeenTokens& seen,
                       float* scores, float* max, float* sum, float* rescale) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t end = seen.visible[r];
    const int64_t begin = seen.hidden == nullptr ? 0 : std::min(seen.hidden[r], end);
    float* row = scores + r * stride;
    rescale[r] = 1.0f;
    std::fill(row, row + begin, 0.0f);
    std::fill(row + end, row + count, 0.0f);
    if (begin == end) continue;
    const float new_max = std::max(max[r], MaxOf(row + begin, end - begin));
    if (max[r] != new_max) rescale[r] = std::exp(max[r] - new_max);
    sum[r] = sum[r] * rescale[r] + ExpRow(new_max, end - begin, row + begin);
    max[r] = new_max;
  }
}

void ScaleAllRows(int64_t rows, int64_t count, int64_t stride, const float* factor, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    if (factor[r] == 1.0f) continue;
    ForLanes(count, [&](auto d, int64_t i) HWY_ATTR {
      float* p = out + r * stride + i;
      hn::StoreU(hn::Mul(hn::LoadU(d, p), hn::Set(d, factor[r])), d, p);
    });
  }
}

// F16 and BF16 rows are widened by vectors; single lanes and F32 by the scalar conversion.
template <class T, class HwyType>
void ConvertTyped(const TensorRows& in, int64_t num_rows, int64_t count, float* out) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<HwyType, decltype(df)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t r = 0; r < num_rows; ++r, out += count) {
    const auto* row = reinterpret_cast<const T*>(in.data + r * in.row_bytes);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      const auto* p = reinterpret_cast<const HwyType*>(row + i);
      hn::StoreU(hn::PromoteTo(df, hn::LoadU(d16, p)), df, out + i);
    }
    for (; i < count; ++i) out[i] = ToFloat(row[i]);
  }
}

void Convert(const TensorRows& in, int64_t num_rows, int64_t count, float* out) {
  if (in.float_type == DType::kF16) {
    ConvertTyped<F16, hwy::float16_t>(in, num_rows, count, out);
  } else if (in.float_type == DType::kBF16) {
    ConvertTyped<BF16, hwy::bfloat16_t>(in, num_rows, count, out);
  } else {
    for (int64_t r = 0; r < num_rows; ++r) {
      std::copy_n(reinterpret_cast<const float*>(in.data + r * in.row_bytes), count,
                  out + r * count);
    }
  }
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(OnlineSoftmaxRows);
HWY_EXPORT(ScaleAllRows);
HWY_EXPORT(Convert);

void OnlineSoftmax(int64_t rows, int64_t count, int64_t stride, const SeenTokens& seen,
                   float* scores, float* max, float* sum, float* rescale) {
  HWY_DYNAMIC_DISPATCH(OnlineSoftmaxRows)
  (rows, count, stride, seen, scores, max, sum, rescale);
}

void ScaleRows(int64_t rows, int64_t count, int64_t stride, const float* factor, float* out) {
  HWY_DYNAMIC_DISPATCH(ScaleAllRows)(rows, count, stride, factor, out);
}

void ConvertRows(const TensorRows& in, int64_t num_rows, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(Convert)(in, num_rows, count, out);
}

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
