// Products of one or two query rows with stored rows as they lie: with so few rows to share it, a
// tile costs more than it saves, and elements are unpacked straight into registers.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_DIRECT_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_DIRECT_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_DIRECT_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/kv_quant/codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kMaxDirectRows = 2;

// How elements of a stored row become floats. Load reads one vector's worth of Raw and gives
// kPlanes vectors; plane p holds dims p * (G / kPlanes) further on.
template <int kBits>
struct CodeFormat {
  using Raw = uint8_t;
  static constexpr int kPlanes = 8 / kBits;
  template <class DF, class V>
  static HWY_INLINE void Load(DF df, const Raw* from, V* out) {
    const hn::Rebind<uint8_t, DF> d8;
    const hn::Rebind<int32_t, DF> di;
    pmkvq::HWY_NAMESPACE::SplitPlanes<kBits>(df, hn::PromoteTo(di, hn::LoadU(d8, from)),
                                             [&](int plane, auto codes)
                                                 HWY_ATTR { out[plane] = codes; });
  }
};
template <class HwyType>
struct HalfFormat {
  using Raw = HwyType;
  static constexpr int kPlanes = 1;
  template <class DF, class V>
  static HWY_INLINE void Load(DF df, const Raw* from, V* out) {
    out[0] = hn::PromoteTo(df, hn::LoadU(hn::Rebind<HwyType, DF>(), from));
  }
};
struct FloatFormat {
  using Raw = float;
  static constexpr int kPlanes = 1;
  template <class DF, class V>
  static HWY_INLINE void Load(DF df, const Raw* from, V* out) {
    out[0] = hn::LoadU(df, from);
  }
};

// Sums over one group of q[r] . x for kRows rows of q, `q_stride` apart, added to out[r * stride].
template <class Format, int kRows>
HWY_INLINE void DotGroup(const typename Format::Raw* HWY_RESTRICT x, int64_t group,
                         const float* HWY_RESTRICT q, int64_t q_stride, float* HWY_RESTRICT out,
                         int64_t stride) {
  constexpr int kPlanes = Format::kPlanes;
  const int64_t plane_size = group / kPlanes;
  int64_t j = 0;
  const auto run = [&](auto df) HWY_ATTR {
    using V = hn::Vec<decltype(df)>;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    if (j + lanes > plane_size) return;
    V sum[kRows][kPlanes];
    for (auto& row : sum) {
      for (auto& plane : row) plane = hn::Zero(df);
    }
    for (; j + lanes <= plane_size; j += lanes) {
      V values[kPlanes];
      Format::Load(df, x + j, values);
      HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(4) for (int p = 0; p < kPlanes; ++p) {
          const float* factor = q + r * q_stride + p * plane_size + j;
          sum[r][p] = hn::MulAdd(hn::LoadU(df, factor), values[p], sum[r][p]);
        }
      }
    }
    HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4) for (int p = 1; p < kPlanes; ++p) sum[r][0] = hn::Add(sum[r][0], sum[r][p]);
      out[r * stride] += hn::GetLane(hn::SumOfLanes(df, sum[r][0]));
    }
  };
  run(hn::ScalableTag<float>());
  run(hn::CappedTag<float, 4>());
  run(hn::CappedTag<float, 1>());
}

// For kRows rows r and every dim of one group:
// out[r * out_stride + dim] += sum_t weights[r * weight_stride + t] * value of row t.
// Columns are taken kChunks vectors at a time, all tokens in turn, so that sums stay in registers.
// Meanwhile as many lines of `ahead` are asked for as rows have.
template <class Format, int kRows>
HWY_INLINE void AddWeightedRows(const std::byte* HWY_RESTRICT data, int64_t row_bytes,
                                int64_t count, int64_t group, const float* HWY_RESTRICT weights,
                                int64_t weight_stride, float* HWY_RESTRICT out, int64_t out_stride,
                                ReadAhead& ahead) {
  constexpr int kPlanes = Format::kPlanes;
  const int64_t row_lines = ReadAhead::Lines(row_bytes);
  const int64_t plane_size = group / kPlanes;
  int64_t j = 0;
  const auto run = [&]<int kChunks>(auto df) HWY_ATTR {
    using V = hn::Vec<decltype(df)>;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    for (; j + kChunks * lanes <= plane_size; j += kChunks * lanes) {
      V sum[kRows][kChunks][kPlanes];
      const auto for_each_sum = [&](const auto& body) HWY_ATTR {
        HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) {
          HWY_UNROLL(4) for (int c = 0; c < kChunks; ++c) {
            HWY_UNROLL(4) for (int p = 0; p < kPlanes; ++p) {
              body(sum[r][c][p], out + r * out_stride + p * plane_size + j + c * lanes);
            }
          }
        }
      };
      for_each_sum([df](V& s, const float* memory) HWY_ATTR { s = hn::LoadU(df, memory); });
      for (int64_t t = 0; t < count; ++t) {
        ahead.Next(row_lines);
        const auto* row = reinterpret_cast<const typename Format::Raw*>(data + t * row_bytes) + j;
        V weight[kRows];
        HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) {
          weight[r] = hn::Set(df, weights[r * weight_stride + t]);
        }
        HWY_UNROLL(4) for (int c = 0; c < kChunks; ++c) {
          V values[kPlanes];
          Format::Load(df, row + c * lanes, values);
          HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) {
            HWY_UNROLL(4) for (int p = 0; p < kPlanes; ++p) {
              sum[r][c][p] = hn::MulAdd(weight[r], values[p], sum[r][c][p]);
            }
          }
        }
      }
      for_each_sum([df](const V& s, float* memory) HWY_ATTR { hn::StoreU(s, df, memory); });
    }
  };
  run.template operator()<4 / kPlanes>(hn::ScalableTag<float>());
  run.template operator()<1>(hn::ScalableTag<float>());
  run.template operator()<1>(hn::CappedTag<float, 4>());
  run.template operator()<1>(hn::CappedTag<float, 1>());
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_DIRECT_INL_H_
