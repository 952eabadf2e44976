#include "pmkvq/kernels/sampling/sampling_vector.h"

#include <algorithm>
#include <cmath>
#include <iterator>
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

// The steps of ref::BlockExpSums for one distance; below kLowestFloatDistance 0.
HWY_INLINE hn::Vec<DF> ExpFloat(hn::Vec<DF> distance) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto magic = hn::Set(d, kRoundFloat);
  const auto shifted = hn::Add(hn::Mul(distance, hn::Set(d, kLog2EFloat)), magic);
  const auto n = hn::Sub(shifted, magic);
  const auto r = hn::Sub(hn::Sub(distance, hn::Mul(n, hn::Set(d, kLn2HighFloat))),
                         hn::Mul(n, hn::Set(d, kLn2LowFloat)));
  auto p = hn::Set(d, kExpFloatSeries[0]);
  for (size_t i = 1; i < std::size(kExpFloatSeries); ++i) {
    p = hn::Add(hn::Mul(p, r), hn::Set(d, kExpFloatSeries[i]));
  }
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const auto exp = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Ge(distance, hn::Set(d, kLowestFloatDistance)), exp);
}

constexpr int kSumParts = kExpSumLanes / kDoubleLanes;

HWY_INLINE double SumOfParts(const hn::Vec<DD> (&sum)[kSumParts]) {
  HWY_ALIGN double lanes[kExpSumLanes];
  for (int part = 0; part < kSumParts; ++part) {
    hn::Store(sum[part], DD(), lanes + part * kDoubleLanes);
  }
  for (int half = kExpSumLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

void BlockExpSumsAll(const float* x, int64_t count, const float* block_max, double* sums) {
  const DF d;
  const DD dd;
  const hn::Rebind<float, DD> half;
  ForBlocks(x, count, -std::numeric_limits<float>::infinity(),
            [&](int64_t b, const float* v) HWY_ATTR {
              const auto max = hn::Set(d, block_max[b]);
              // Through memory: vectors of float and double differ in their number of lanes.
              HWY_ALIGN float exps[kSampleBlock];
              for (int64_t i = 0; i < kSampleBlock; i += kFloatLanes) {
                hn::Store(ExpFloat(hn::Sub(hn::LoadU(d, v + i), max)), d, exps + i);
              }
              hn::Vec<DD> sum[kSumParts];
              for (auto& part : sum) part = hn::Zero(dd);
              for (int64_t i = 0; i < kSampleBlock; i += kExpSumLanes) {
                for (int part = 0; part < kSumParts; ++part) {
                  const auto exp = hn::Load(half, exps + i + part * kDoubleLanes);
                  sum[part] = hn::Add(sum[part], hn::PromoteTo(dd, exp));
                }
              }
              sums[b] = SumOfParts(sum);
            });
}

// Sums exp of (value - max) * scale, by `exp`, per block.
template <class Exp>
HWY_INLINE void ExpSums(const float* x, int64_t count, const float* block_max, float max,
                        double scale, float cut, float lowest_block, double* sums, const Exp& exp) {
  const DD d;
  const hn::Rebind<float, DD> df;
  const auto top = hn::Set(d, static_cast<double>(max));
  const auto factor = hn::Set(d, scale);
  const auto lowest = hn::Set(d, static_cast<double>(cut));
  ForBlocks(x, count, -std::numeric_limits<float>::infinity(),
            [&](int64_t b, const float* v) HWY_ATTR {
              sums[b] = 0.0;
              if (block_max[b] < lowest_block) return;
              hn::Vec<DD> sum[kSumParts];
              for (auto& part : sum) part = hn::Zero(d);
              for (int64_t i = 0; i < kSampleBlock; i += kExpSumLanes) {
                for (int part = 0; part < kSumParts; ++part) {
                  const auto value = hn::PromoteTo(d, hn::LoadU(df, v + i + part * kDoubleLanes));
                  const auto weight = exp(hn::Mul(hn::Sub(value, top), factor));
                  sum[part] = hn::Add(sum[part], hn::IfThenElseZero(hn::Ge(value, lowest), weight));
                }
              }
              sums[b] = SumOfParts(sum);
            });
}

#if HWY_NATIVE_FMA
constexpr float kMostProduct = 0x1p21f;

// The sums of RoughExpSums in float. The product of value and factor is never rounded: with fused
// multiply-add it is kept exact until the integer next to it is subtracted. So large logits lose
// nothing. `whole` is an integer near max * factor, whose rest is in `rest`.
void RoughExpSumsFloat(const float* x, int64_t count, const float* block_max, double factor,
                       float whole, double rest, float cut, float lowest_block, double* sums) {
  constexpr int kVectors = 64 / kFloatLanes;
  const DF d;
  const DD dd;
  const hn::Rebind<float, DD> half;
  const hn::RebindToSigned<DF> di;
  const auto high = hn::Set(d, static_cast<float>(factor));
  const auto low =
      hn::Set(d, static_cast<float>(factor - static_cast<double>(static_cast<float>(factor))));
  const auto magic = hn::Set(d, kRoundFloat - whole);
  const auto lowest = hn::Set(d, cut);
  const auto exp2 = [&](hn::Vec<DF> value) HWY_ATTR {
    const auto shifted = hn::MulAdd(value, high, magic);
    const auto r = hn::MulAdd(value, low, hn::MulSub(value, high, hn::Sub(shifted, magic)));
    auto p = hn::Set(d, kExp2FloatSeries[0]);
    for (size_t i = 1; i < std::size(kExp2FloatSeries); ++i) {
      p = hn::MulAdd(p, r, hn::Set(d, kExp2FloatSeries[i]));
    }
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
    const auto exp = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
    return hn::IfThenElseZero(hn::Ge(value, lowest), exp);
  };
  const double scale = std::exp2(-rest);
  ForBlocks(x, count, -std::numeric_limits<float>::infinity(),
            [&](int64_t b, const float* v) HWY_ATTR {
              sums[b] = 0.0;
              if (block_max[b] < lowest_block) return;
              HWY_ALIGN float lanes[kFloatLanes];
              auto sum = hn::Zero(dd);
              for (int64_t i = 0; i < kSampleBlock; i += 64) {
                hn::Vec<DF> group[kVectors];
                for (int k = 0; k < kVectors; ++k) {
                  group[k] = exp2(hn::LoadU(d, v + i + k * kFloatLanes));
                }
                for (int step = 1; step < kVectors; step *= 2) {
                  for (int k = 0; k < kVectors; k += 2 * step) {
                    group[k] = hn::Add(group[k], group[k + step]);
                  }
                }
                hn::Store(group[0], d, lanes);
                for (int64_t lane = 0; lane < kFloatLanes; lane += kDoubleLanes) {
                  sum = hn::Add(sum, hn::PromoteTo(dd, hn::Load(half, lanes + lane)));
                }
              }
              sums[b] = scale * hn::GetLane(hn::SumOfLanes(dd, sum));
            });
}
#endif

void RoughExpSumsAll(const float* x, int64_t count, const float* block_max, float max, double scale,
                     float cut, float lowest_block, double* sums) {
  const double factor = scale * kLog2E;
#if HWY_NATIVE_FMA
  const double product = static_cast<double>(max) * factor;
  if (std::abs(product) < static_cast<double>(kMostProduct) && factor > 1e-30 && factor < 1e30) {
    const double whole = std::nearbyint(product);
    RoughExpSumsFloat(x, count, block_max, factor, static_cast<float>(whole), product - whole, cut,
                      lowest_block, sums);
    return;
  }
#endif
  ExpSums(x, count, block_max, max, factor, cut, lowest_block, sums,
          [](hn::Vec<DD> y) HWY_ATTR { return RoughExp2(y); });
}

void FineExpSumsAll(const float* x, int64_t count, const float* block_max, float max, double scale,
                    float cut, double* sums) {
  ExpSums(x, count, block_max, max, scale, cut, cut, sums,
          [](hn::Vec<DD> value) HWY_ATTR { return ExpFixed(value); });
}

int64_t GatherAtLeastAll(const float* x, int64_t count, float threshold, int32_t first_id,
                         int32_t* ids) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto lowest = hn::Set(d, threshold);
  int64_t num_ids = 0;
  int64_t i = 0;
  for (; i + kFloatLanes <= count; i += kFloatLanes) {
    const auto reaches = hn::Ge(hn::LoadU(d, x + i), lowest);
    if (hn::AllFalse(d, reaches)) continue;
    // Stores whole vectors, inside the room for `count` since num_ids <= i. CompressStore is slow
    // on some processors.
    const auto id = hn::Iota(di, first_id + static_cast<int32_t>(i));
    hn::StoreU(hn::Compress(id, hn::RebindMask(di, reaches)), di, ids + num_ids);
    num_ids += static_cast<int64_t>(hn::CountTrue(d, reaches));
  }
  for (; i < count; ++i) {
    if (x[i] >= threshold) ids[num_ids++] = first_id + static_cast<int32_t>(i);
  }
  return num_ids;
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(ScanBlocksAll);
HWY_EXPORT(BlockExpSumsAll);
HWY_EXPORT(RoughExpSumsAll);
HWY_EXPORT(FineExpSumsAll);
HWY_EXPORT(GatherAtLeastAll);
HWY_EXPORT(Target);

uint32_t ScanBlocks(const float* x, int64_t count, float* block_max) {
  return HWY_DYNAMIC_DISPATCH(ScanBlocksAll)(x, count, block_max);
}

void BlockExpSums(const float* x, int64_t count, const float* block_max, double* sums) {
  HWY_DYNAMIC_DISPATCH(BlockExpSumsAll)(x, count, block_max, sums);
}

void RoughExpSums(const float* x, int64_t count, const float* block_max, float max, double scale,
                  float cut, float lowest_block, double* sums) {
  HWY_DYNAMIC_DISPATCH(RoughExpSumsAll)
  (x, count, block_max, max, scale, cut, lowest_block, sums);
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
