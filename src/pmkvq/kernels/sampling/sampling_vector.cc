#include "pmkvq/kernels/sampling/sampling_vector.h"

#include <algorithm>
#include <limits>

#include "pmkvq/kernels/sampling/exp_constants.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/sampling/sampling_vector.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Sixteen lanes at most divide a block; NEON and AVX2 have fewer.
using DF = hn::CappedTag<float, 16>;
using DD = hn::CappedTag<double, 8>;
constexpr int64_t kFloatLanes = hn::MaxLanes(DF());
constexpr int64_t kDoubleLanes = hn::MaxLanes(DD());
constexpr int kChains = 4;  // Of dependent additions: they take four cycles each.
constexpr int64_t kChainStep = kChains * kFloatLanes;
static_assert(kSampleBlock % kChainStep == 0);

// Calls run(block index, values [kSampleBlock]) for all blocks; the last one, where it is shorter,
// as a copy that is filled up with `fill`.
template <class Run>
HWY_INLINE void ForBlocks(const float* x, int64_t count, float fill, const Run& run) {
  const int64_t num_whole = count / kSampleBlock;
  for (int64_t b = 0; b < num_whole; ++b) run(b, x + b * kSampleBlock);
  const int64_t begin = num_whole * kSampleBlock;
  if (begin == count) return;
  HWY_ALIGN float padded[kSampleBlock];
  std::fill(std::copy(x + begin, x + count, padded), padded + kSampleBlock, fill);
  run(num_whole, padded);
}

uint32_t ScanBlocksAll(const float* x, int64_t count, float* block_max) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const auto magnitude_mask = hn::Set(du, 0x7fffffffu);
  auto magnitude = hn::Zero(du);
  // Magnitudes order like their bits, NaN above all.
  ForBlocks(x, count, count > 0 ? x[count - 1] : 0.0f, [&](int64_t b, const float* v) HWY_ATTR {
    hn::Vec<DF> max[kChains];
    for (int c = 0; c < kChains; ++c) max[c] = hn::LoadU(d, v + c * kFloatLanes);
    for (int64_t i = 0; i < kSampleBlock; i += kChainStep) {
      for (int c = 0; c < kChains; ++c) {
        const auto value = hn::LoadU(d, v + i + c * kFloatLanes);
        max[c] = hn::Max(max[c], value);
        magnitude = hn::Max(magnitude, hn::And(hn::BitCast(du, value), magnitude_mask));
      }
    }
    const auto all = hn::Max(hn::Max(max[0], max[1]), hn::Max(max[2], max[3]));
    block_max[b] = hn::GetLane(hn::MaxOfLanes(d, all));
  });
  return hn::GetLane(hn::MaxOfLanes(du, magnitude));
}

// 2^y for y in [-1000, 0]: 2^n p(y - n), n the nearest integer, p the polynomial through 2^r at the
// Chebyshev nodes of [-1/2, 1/2], which is within 1.02e-7 of it.
HWY_INLINE hn::Vec<DD> RoughExp2(hn::Vec<DD> y) {
  const DD d;
  const hn::RebindToSigned<DD> di;
  const auto magic = hn::Set(d, kRoundDouble);
  const auto shifted = hn::Add(y, magic);
  const auto r = hn::Sub(y, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 0.0013390863364698205);
  p = hn::MulAdd(p, r, hn::Set(d, 0.009676031918298474));
  p = hn::MulAdd(p, r, hn::Set(d, 0.055503571142190296));
  p = hn::MulAdd(p, r, hn::Set(d, 0.24022107485309188));
  p = hn::MulAdd(p, r, hn::Set(d, 0.6931471880262294));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0000000754548972));
  const auto exponent = hn::ShiftLeft<52>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

// The steps of ref::ExpSums in its order. Products and sums are rounded apart (not MulAdd), so that
// instruction sets agree.
HWY_INLINE hn::Vec<DD> ExpFixed(hn::Vec<DD> x) {
  const DD d;
  const hn::RebindToSigned<DD> di;
  const auto magic = hn::Set(d, kRoundDouble);
  const auto shifted = hn::Add(hn::Mul(x, hn::Set(d, kLog2E)), magic);
  const auto n = hn::Sub(shifted, magic);
  const auto r =
      hn::Sub(hn::Sub(x, hn::Mul(n, hn::Set(d, kLn2High))), hn::Mul(n, hn::Set(d, kLn2Low)));
  auto p = hn::Set(d, kExpSeries[0]);
  for (size_t i = 1; i < std::size(kExpSeries); ++i) {
    p = hn::Add(hn::Mul(p, r), hn::Set(d, kExpSeries[i]));
  }
  const auto exponent = hn::ShiftLeft<52>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

// Sums exp of (value - max) * scale, by `exp`, per block.
template <class Exp>
HWY_INLINE void ExpSums(const float* x, int64_t count, const float* block_max, float max,
                        double scale, float cut, double* sums, const Exp& exp) {
  const DD d;
  const hn::Rebind<float, DD> df;
  const auto top = hn::Set(d, static_cast<double>(max));
  const auto factor = hn::Set(d, scale);
  const auto lowest = hn::Set(d, static_cast<double>(cut));
  constexpr int kParts = kExpSumLanes / kDoubleLanes;
  ForBlocks(x, count, -std::numeric_limits<float>::infinity(),
            [&](int64_t b, const float* v) HWY_ATTR {
              sums[b] = 0.0;
              if (block_max[b] < cut) return;
              hn::Vec<DD> sum[kParts];
              for (auto& part : sum) part = hn::Zero(d);
              for (int64_t i = 0; i < kSampleBlock; i += kExpSumLanes) {
                for (int part = 0; part < kParts; ++part) {
                  const auto value = hn::PromoteTo(d, hn::LoadU(df, v + i + part * kDoubleLanes));
                  const auto weight = exp(hn::Mul(hn::Sub(value, top), factor));
                  sum[part] = hn::Add(sum[part], hn::IfThenElseZero(hn::Ge(value, lowest), weight));
                }
              }
              HWY_ALIGN double lanes[kExpSumLanes];
              for (int part = 0; part < kParts; ++part) {
                hn::Store(sum[part], d, lanes + part * kDoubleLanes);
              }
              for (int half = kExpSumLanes / 2; half > 0; half /= 2) {
                for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
              }
              sums[b] = lanes[0];
            });
}

void RoughExpSumsAll(const float* x, int64_t count, const float* block_max, float max, double scale,
                     float cut, double* sums) {
  ExpSums(x, count, block_max, max, scale * kLog2E, cut, sums,
          [](hn::Vec<DD> y) HWY_ATTR { return RoughExp2(y); });
}

void FineExpSumsAll(const float* x, int64_t count, const float* block_max, float max, double scale,
                    float cut, double* sums) {
  ExpSums(x, count, block_max, max, scale, cut, sums,
          [](hn::Vec<DD> value) HWY_ATTR { return ExpFixed(value); });
}

int64_t GatherAtLeastAll(const float* x, int64_t count, float threshold, int32_t first_id,
                         int32_t* ids) {
  const DF d;
  const auto lowest = hn::Set(d, threshold);
  int64_t num_ids = 0;
  int64_t i = 0;
  const auto gather = [&](int64_t end) {
    for (; i < end; ++i) {
      if (x[i] >= threshold) ids[num_ids++] = first_id + static_cast<int32_t>(i);
    }
  };
  while (i + kFloatLanes <= count) {
    if (hn::AllFalse(d, hn::Ge(hn::LoadU(d, x + i), lowest))) {
      i += kFloatLanes;
    } else {
      gather(i + kFloatLanes);
    }
  }
  gather(count);
  return num_ids;
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(ScanBlocksAll);
HWY_EXPORT(RoughExpSumsAll);
HWY_EXPORT(FineExpSumsAll);
HWY_EXPORT(GatherAtLeastAll);
HWY_EXPORT(Target);

uint32_t ScanBlocks(const float* x, int64_t count, float* block_max) {
  return HWY_DYNAMIC_DISPATCH(ScanBlocksAll)(x, count, block_max);
}

void RoughExpSums(const float* x, int64_t count, const float* block_max, float max, double scale,
                  float cut, double* sums) {
  HWY_DYNAMIC_DISPATCH(RoughExpSumsAll)(x, count, block_max, max, scale, cut, sums);
}

void FineExpSums(const float* x, int64_t count, const float* block_max, float max, double scale,
                 float cut, double* sums) {
  HWY_DYNAMIC_DISPATCH(FineExpSumsAll)(x, count, block_max, max, scale, cut, sums);
}

int64_t GatherAtLeast(const float* x, int64_t count, float threshold, int32_t first_id,
                      int32_t* ids) {
  return HWY_DYNAMIC_DISPATCH(GatherAtLeastAll)(x, count, threshold, first_id, ids);
}

int64_t SamplingKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
