#include "pmkvq/kernels/attention/few_rows.h"

#include <algorithm>
#include <cstddef>

#include "pmkvq/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/few_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Columns of two rows: kVectors vectors of keys from `keys` on.
template <int kVectors>
HWY_INLINE void ScoreColumns(const float* q0, const float* q1, int64_t dim, const float* keys,
                             int64_t stride, float scale, float* out0, float* out1) {
  const hn::CappedTag<float, 16> d;
  const size_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> sum0[kVectors];
  hn::Vec<decltype(d)> sum1[kVectors];
  for (int i = 0; i < kVectors; ++i) sum0[i] = sum1[i] = hn::Zero(d);
  for (int64_t k = 0; k < dim; ++k) {
    const auto a = hn::Set(d, q0[k]);
    const auto b = hn::Set(d, q1[k]);
    for (int i = 0; i < kVectors; ++i) {
      const auto key = hn::LoadU(d, keys + k * stride + static_cast<size_t>(i) * lanes);
      sum0[i] = hn::MulAdd(a, key, sum0[i]);
      sum1[i] = hn::MulAdd(b, key, sum1[i]);
    }
  }
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < kVectors; ++i) {
    hn::StoreU(hn::Mul(factor, sum0[i]), d, out0 + static_cast<size_t>(i) * lanes);
    hn::StoreU(hn::Mul(factor, sum1[i]), d, out1 + static_cast<size_t>(i) * lanes);
  }
}

void Scores(const float* q, int64_t num_rows, int64_t dim, const float* keys, int64_t stride,
            int64_t count, float scale, float* scores, int64_t scores_stride) {
  constexpr int64_t kMost = 4 * 16;  // Columns of a call.
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::CappedTag<float, 16>()));
  HWY_ALIGN float out[2][kMost];
  for (int64_t row = 0; row < num_rows; row += 2) {
    const int64_t other = std::min(row + 1, num_rows - 1);
    for (int64_t begin = 0; begin < count;) {
      const bool is_wide = begin + 4 * lanes < count + lanes && begin + 4 * lanes <= stride;
      const int64_t width = is_wide ? 4 * lanes : lanes;
      if (is_wide) {
        ScoreColumns<4>(q + row * dim, q + other * dim, dim, keys + begin, stride, scale, out[0],
                        out[1]);
      } else {
        ScoreColumns<1>(q + row * dim, q + other * dim, dim, keys + begin, stride, scale, out[0],
                        out[1]);
      }
      const int64_t used = std::min(width, count - begin);
      std::copy_n(out[0], used, scores + row * scores_stride + begin);
      std::copy_n(out[1], used, scores + other * scores_stride + begin);
      begin += width;
    }
  }
}

// kVectors vectors of two rows of the output.
template <int kVectors, class D>
HWY_INLINE void AddValues(D d, const float* weights0, const float* weights1, const float* values,
                          int64_t dim, int64_t count, float* out0, float* out1) {
  const size_t lanes = hn::Lanes(d);
  hn::Vec<D> sum0[kVectors];
  hn::Vec<D> sum1[kVectors];
  for (int i = 0; i < kVectors; ++i) sum0[i] = sum1[i] = hn::Zero(d);
  for (int64_t t = 0; t < count; ++t) {
    if (weights0[t] == 0 && weights1[t] == 0) continue;
    const auto a = hn::Set(d, weights0[t]);
    const auto b = hn::Set(d, weights1[t]);
    for (int i = 0; i < kVectors; ++i) {
      const auto value = hn::LoadU(d, values + t * dim + static_cast<size_t>(i) * lanes);
      sum0[i] = hn::MulAdd(a, value, sum0[i]);
      sum1[i] = hn::MulAdd(b, value, sum1[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    float* const to1 = out1 + static_cast<size_t>(i) * lanes;
    const auto second = hn::Add(hn::LoadU(d, to1), sum1[i]);
    float* const to0 = out0 + static_cast<size_t>(i) * lanes;
    hn::StoreU(hn::Add(hn::LoadU(d, to0), sum0[i]), d, to0);
    if (out1 != out0) hn::StoreU(second, d, to1);
  }
}

void Values(const float* weights, int64_t weights_stride, int64_t num_rows, int64_t dim,
            const float* values, int64_t count, float* out) {
  const hn::CappedTag<float, 16> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = 0; row < num_rows; row += 2) {
    const int64_t other = std::min(row + 1, num_rows - 1);
    const float* const weights0 = weights + row * weights_stride;
    const float* const weights1 = weights + other * weights_stride;
    float* const out0 = out + row * dim;
    float* const out1 = out + other * dim;
    int64_t i = 0;
    for (; i + 4 * lanes <= dim; i += 4 * lanes) {
      AddValues<4>(d, weights0, weights1, values + i, dim, count, out0 + i, out1 + i);
    }
    for (; i + lanes <= dim; i += lanes) {
      AddValues<1>(d, weights0, weights1, values + i, dim, count, out0 + i, out1 + i);
    }
    for (; i < dim; ++i) {
      AddValues<1>(one, weights0, weights1, values + i, dim, count, out0 + i, out1 + i);
    }
  }
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq {
namespace internal {

HWY_EXPORT(Scores);
HWY_EXPORT(Values);
HWY_EXPORT(Target);

void FewRowScoresAll(const float* q, int64_t num_rows, int64_t dim, const float* keys,
                     int64_t stride, int64_t count, float scale, float* scores,
                     int64_t scores_stride) {
  HWY_DYNAMIC_DISPATCH(Scores)
  (q, num_rows, dim, keys, stride, count, scale, scores, scores_stride);
}

void FewRowValuesAll(const float* weights, int64_t weights_stride, int64_t num_rows, int64_t dim,
                     const float* values, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(Values)(weights, weights_stride, num_rows, dim, values, count, out);
}

int64_t FewRowsTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace internal

void FewRowScores(const float* q, int64_t num_rows, int64_t dim, const float* keys, int64_t stride,
                  int64_t count, float scale, float* scores, int64_t scores_stride) {
  PMKVQ_DCHECK(stride % 16 == 0 && count <= stride);
  internal::FewRowScoresAll(q, num_rows, dim, keys, stride, count, scale, scores, scores_stride);
}

void FewRowValues(const float* weights, int64_t weights_stride, int64_t num_rows, int64_t dim,
                  const float* values, int64_t count, float* out) {
  internal::FewRowValuesAll(weights, weights_stride, num_rows, dim, values, count, out);
}

}  // namespace pmkvq
#endif  // HWY_ONCE
