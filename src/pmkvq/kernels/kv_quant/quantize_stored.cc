// Stored floats straight to codes: the first halving of a page, at the speed of memory.
//
// Bit-identical to the scalar oracle. Three steps are cheaper than in QuantizeGroups: bounds of
// 16-bit floats are found among integers, bounds of 16 groups are rounded at once, and codes come
// from a product with 1 / step instead of a division. The product and the quotient can round to
// different codes only near the middle between two codes. So products are computed with 15 more
// bits; where these show a value too near to a middle, the group is quantised again with divisions.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/kv_quant/kv_quant_internal.h"
#include "pmkvq/kernels/kv_quant/prefetch_ahead.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/kv_quant/quantize_stored.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// Groups whose bounds are found and rounded together: 4 KiB of values, which stay in the L1 cache
// until their codes are made.
constexpr int64_t kBatch = 16;

// The reciprocal of a step between these is neither subnormal nor infinite.
constexpr float kLeastStep = 0x1p-100f;
constexpr float kMostStep = 0x1p+100f;
// For larger shifts (FindReciprocals) nearly every group would have a value too near to a middle:
// such groups are divided at once.
constexpr float kMostShift = 0x1p-10f;
// x + kRounder rounds x to a whole number, half to even, and has that number in its lowest bits:
// the last bit of a float of this size has the value 1.
constexpr float kRounder = 0x1.8p23f;
// x + kFixedPoint, for x in [0, 256), has the whole part of x and kFractionBits of its fraction in
// its mantissa.
constexpr float kFixedPoint = 256.0f;
constexpr int kFractionBits = 15;

// Highway's name of a 16-bit type.
template <class T>
using HwyFloat = std::conditional_t<std::is_same_v<T, F16>, hwy::float16_t, hwy::bfloat16_t>;

// Stored values as floats, as many as there are lanes.
template <class T, class DF>
HWY_INLINE hn::Vec<DF> Widen(DF df, const T* HWY_RESTRICT p) {
  if constexpr (std::is_same_v<T, float>) {
    return hn::LoadU(df, p);
  } else {
    const hn::Rebind<HwyFloat<T>, DF> d16;
    return hn::PromoteTo(df, hn::LoadU(d16, reinterpret_cast<const HwyFloat<T>*>(p)));
  }
}

// Lowest and highest of one group, whose size is a multiple of the lanes.
template <class T, class DF>
HWY_INLINE void FindBounds(DF df, const T* HWY_RESTRICT x, int64_t group, float* lowest,
                           float* highest) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto low = Widen(df, x);
  auto high = low;
  for (int64_t i = lanes; i < group; i += lanes) {
    const auto v = Widen(df, x + i);
    low = hn::Min(low, v);
    high = hn::Max(high, v);
  }
  *lowest = hn::GetLane(hn::MinOfLanes(df, low));
  *highest = hn::GetLane(hn::MaxOfLanes(df, high));
}

#if HWY_TARGET != HWY_SCALAR  // One-lane vectors have no halves.

// Bits of 16-bit floats as integers of the same order, and back. -0 comes before 0.
template <class DI, class V>
HWY_INLINE V Ordered(DI di, V bits) {
  return hn::Xor(bits, hn::And(hn::ShiftRight<15>(bits), hn::Set(di, int16_t{0x7fff})));
}

struct Lesser {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Min(a, b);
  }
};
struct Greater {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// Halves of the vector against each other until kFoldedLanes are left.
constexpr size_t kFoldedLanes = 8;
template <class Best, class DI, class V>
HWY_INLINE void StoreFolded(DI di, V v, int16_t* HWY_RESTRICT out) {
  if constexpr (hn::MaxLanes(di) > kFoldedLanes) {
    const hn::Half<DI> half;
    StoreFolded<Best>(half, Best()(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  } else {
    hn::StoreU(v, di, out);
  }
}

// The best of each kFoldedLanes, at the front of the same memory.
template <class Best>
HWY_INLINE void FoldLanes(int16_t* HWY_RESTRICT folded) {
  const hn::CappedTag<int16_t, kBatch> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(di));
  for (int64_t count = kBatch * kFoldedLanes / 2; count >= kBatch; count /= 2) {
    for (int64_t i = 0; i < count; i += lanes) {
      const auto a = hn::Load(di, folded + 2 * i);
      const auto b = hn::Load(di, folded + 2 * i + lanes);
      hn::Store(Best()(hn::ConcatEven(di, b, a), hn::ConcatOdd(di, b, a)), di, folded + i);
    }
  }
}

// FindBounds of up to kBatch groups of 16-bit floats, as integers. Each group is reduced to
// kFoldedLanes values, and these are then reduced for all groups at once.
template <class T, class DI>
HWY_INLINE void FindOrderedBounds(DI di, const T* HWY_RESTRICT x, int64_t group, int64_t count,
                                  float* HWY_RESTRICT lowest, float* HWY_RESTRICT highest) {
  HWY_ALIGN int16_t low_lanes[kBatch * kFoldedLanes] = {};
  HWY_ALIGN int16_t high_lanes[kBatch * kFoldedLanes] = {};
  const auto lanes = static_cast<int64_t>(hn::Lanes(di));
  const auto* bits = reinterpret_cast<const int16_t*>(x);
  for (int64_t g = 0; g < count; ++g, bits += group) {
    auto low = Ordered(di, hn::LoadU(di, bits));
    auto high = low;
    for (int64_t i = lanes; i < group; i += lanes) {
      const auto v = Ordered(di, hn::LoadU(di, bits + i));
      low = hn::Min(low, v);
      high = hn::Max(high, v);
    }
    StoreFolded<Lesser>(di, low, low_lanes + g * kFoldedLanes);
    StoreFolded<Greater>(di, high, high_lanes + g * kFoldedLanes);
  }
  FoldLanes<Lesser>(low_lanes);
  FoldLanes<Greater>(high_lanes);
  const hn::CappedTag<float, kBatch> df;
  const hn::Rebind<int16_t, decltype(df)> d16;
  for (int64_t i = 0; i < kBatch; i += static_cast<int64_t>(hn::Lanes(df))) {
    const auto widen = [&](const int16_t* ordered) HWY_ATTR {
      const hn::Rebind<HwyFloat<T>, decltype(df)> stored;
      return hn::PromoteTo(df, hn::BitCast(stored, Ordered(d16, hn::Load(d16, ordered))));
    };
    hn::Store(widen(low_lanes + i), df, lowest + i);
    hn::Store(widen(high_lanes + i), df, highest + i);
  }
}

#endif  // HWY_TARGET != HWY_SCALAR

// Bounds of `count` groups, at most kBatch.
template <class T>
HWY_INLINE void FindAllBounds(const T* HWY_RESTRICT x, int64_t group, int64_t count,
                              float* HWY_RESTRICT lowest, float* HWY_RESTRICT highest) {
  const auto run = [&](auto full, auto eight, const auto& find) HWY_ATTR {
    if (group % static_cast<int64_t>(hn::Lanes(full)) == 0) return find(full);
    find(eight);
  };
#if HWY_TARGET != HWY_SCALAR
  if constexpr (sizeof(T) == 2) {
    return run(hn::ScalableTag<int16_t>(), hn::CappedTag<int16_t, 8>(),
               [&](auto di) HWY_ATTR { FindOrderedBounds(di, x, group, count, lowest, highest); });
  }
#endif
  run(hn::ScalableTag<float>(), hn::CappedTag<float, 8>(), [&](auto df) HWY_ATTR {
    for (int64_t i = 0; i < count; ++i) {
      FindBounds(df, x + i * group, group, lowest + i, highest + i);
    }
  });
}

// Bits of the smallest value of T that is not below x; 0 <= x <= the largest finite T.
template <class T, class DF, class V>
HWY_INLINE auto BitsRoundedUp(DF df, V x) {
  const hn::Rebind<uint32_t, DF> du;
  const auto bits = hn::BitCast(du, x);
  if constexpr (std::is_same_v<T, float>) {
    return bits;
  } else if constexpr (std::is_same_v<T, BF16>) {
    return hn::ShiftRight<16>(hn::Add(bits, hn::Set(du, 0xffffu)));
  } else {
    const hn::Rebind<int32_t, DF> di;
    const auto normal =
        hn::Sub(hn::ShiftRight<13>(hn::Add(bits, hn::Set(du, 0x1fffu))), hn::Set(du, 112u << 10));
    // Subnormal: whole multiples of 2^-24.
    const auto multiple = hn::Mul(x, hn::Set(df, 0x1p24f));
    const auto whole = hn::ConvertTo(di, hn::Min(multiple, hn::Set(df, 1024.0f)));
    const auto is_below = hn::RebindMask(di, hn::Lt(hn::ConvertTo(df, whole), multiple));
    const auto subnormal = hn::Add(whole, hn::IfThenElseZero(is_below, hn::Set(di, 1)));
    const auto is_subnormal = hn::RebindMask(du, hn::Lt(x, hn::Set(df, 0x1p-14f)));
    return hn::IfThenElse(is_subnormal, hn::BitCast(du, subnormal), normal);
  }
}

// The float that these bits of T stand for; not negative.
template <class T, class DF, class VU>
HWY_INLINE auto FloatOfBits(DF df, VU bits) {
  if constexpr (std::is_same_v<T, float>) {
    return hn::BitCast(df, bits);
  } else if constexpr (std::is_same_v<T, BF16>) {
    return hn::BitCast(df, hn::ShiftLeft<16>(bits));
  } else {
    const hn::Rebind<int32_t, DF> di;
    const hn::Rebind<uint32_t, DF> du;
    const auto normal = hn::BitCast(df, hn::Add(hn::ShiftLeft<13>(bits), hn::Set(du, 112u << 23)));
    const auto subnormal = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, bits)), hn::Set(df, 0x1p-24f));
    return hn::IfThenElse(hn::RebindMask(df, hn::Lt(hn::BitCast(di, bits), hn::Set(di, 0x400))),
                          subnormal, normal);
  }
}

// Bounds of a batch: as found; as rounded to the stored type; and the numbers that codes are made
// with.
struct Batch {
  HWY_ALIGN float lowest[kBatch] = {};
  HWY_ALIGN float highest[kBatch] = {};
  HWY_ALIGN float step[kBatch];
  // The computed x * reciprocal + offset - kFixedPoint is never below (x - lowest) / step + 1/2,
  // and above it by at most `margin` units of the last of kFractionBits. The reciprocal is 0 for
  // groups where this cannot be guaranteed, or where the margin would be too large: these are
  // divided.
  HWY_ALIGN float reciprocal[kBatch];
  HWY_ALIGN float offset[kBatch];
  HWY_ALIGN int32_t margin[kBatch];
  HWY_ALIGN uint32_t min_bits[kBatch];
  HWY_ALIGN uint32_t range_bits[kBatch];
};

// `range`: before it is rounded up to a multiple of the step.
//
// Rounding errors in units of u = 2^-24, with r = 1 / step, m = |lowest| r, and quotients of at
// most 255:
//   x - lowest, and the quotient (rounded by the oracle, too)   255 each
//   r                                                           255
//   lowest * r                                                  m
//   x * r, where it is rounded (no FMA)                         m + 255
//   that product + offset                                       256
//   the two sums of the offset                                  256; the larger of 256 and m + 257
// Together at most 3 m + 1789. The shift, 3 m + 1800, is larger: so the computed value is never too
// small.
template <class T, class DF, class V>
HWY_INLINE void FindReciprocals(DF df, size_t i, V range, V step, Batch& batch) {
  const hn::Rebind<int32_t, DF> di;
  const auto lowest = hn::Load(df, batch.lowest + i);
  const auto reciprocal = hn::Div(hn::Set(df, 1.0f), step);
  const auto product = hn::Mul(lowest, reciprocal);
  const auto shift =
      hn::Mul(hn::Set(df, 3 * 0x1p-24f), hn::Add(hn::Abs(product), hn::Set(df, 600.0f)));
  const auto is_normal =
      hn::And(hn::Ge(step, hn::Set(df, kLeastStep)), hn::Le(step, hn::Set(df, kMostStep)));
  // A range beyond the type saturates: codes of values above it are clamped.
  const auto is_whole = hn::Le(range, hn::Set(df, internal::MaxFinite<T>()));
  const auto is_close = hn::Le(shift, hn::Set(df, kMostShift));
  const auto is_good = hn::And(is_normal, hn::And(is_whole, is_close));
  const auto offset = hn::Sub(hn::Add(shift, hn::Set(df, kFixedPoint + 0.5f)), product);
  const auto margin = hn::Mul(shift, hn::Set(df, 2.0f * (1 << kFractionBits)));
  hn::Store(hn::IfThenElseZero(is_good, reciprocal), df, batch.reciprocal + i);
  hn::Store(offset, df, batch.offset + i);
  hn::Store(hn::ConvertTo(di, hn::IfThenElseZero(is_good, margin)), di, batch.margin + i);
}

// internal::RoundBounds of each. The lowest value is one of T, so it is stored as it is.
template <class T>
HWY_INLINE void RoundAllBounds(float max_code, Batch& batch) {
  const hn::CappedTag<float, kBatch> df;
  const hn::Rebind<uint32_t, decltype(df)> du;
  const auto zero = hn::Zero(df);
  for (size_t i = 0; i < kBatch; i += hn::Lanes(df)) {
    const auto lowest = hn::Add(hn::Load(df, batch.lowest + i), zero);
    const auto difference = hn::Add(hn::Sub(hn::Load(df, batch.highest + i), lowest), zero);
    const auto range = hn::Min(difference, hn::Set(df, internal::MaxFinite<T>()));
    const auto range_bits = BitsRoundedUp<T>(df, range);
    const auto step = hn::Div(FloatOfBits<T>(df, range_bits), hn::Set(df, max_code));
    const auto sign = hn::And(hn::BitCast(du, lowest), hn::Set(du, 0x80000000u));
    constexpr int kSignShift = std::is_same_v<T, float> ? 0 : 16;
    const auto min_bits =
        hn::Or(BitsRoundedUp<T>(df, hn::Abs(lowest)), hn::ShiftRight<kSignShift>(sign));
    hn::Store(lowest, df, batch.lowest + i);
    hn::Store(step, df, batch.step + i);
    FindReciprocals<T>(df, i, difference, step, batch);
    hn::Store(min_bits, du, batch.min_bits + i);
    hn::Store(range_bits, du, batch.range_bits + i);
  }
}

// The packed bytes from the codes of each plane, plane(p), in the lowest bits of 32-bit lanes.
template <int kBits, class D8, class Plane>
HWY_INLINE auto PackedBytes(D8 d8, const Plane& plane) {
  auto bytes = plane(0);
  if constexpr (kBits == 4) bytes = hn::Or(bytes, hn::ShiftLeft<4>(plane(1)));
  if constexpr (kBits == 2) {
    bytes = hn::Or(hn::Or(bytes, hn::ShiftLeft<2>(plane(1))),
                   hn::Or(hn::ShiftLeft<4>(plane(2)), hn::ShiftLeft<6>(plane(3))));
  }
  return hn::TruncateTo(d8, bytes);
}

// Packed codes of group i of the batch by products, from byte j on as far as whole vectors reach;
// gives the byte after them. Clears `is_certain` when some may not be the quotients'.
template <int kBits, class DF, class T>
HWY_INLINE int64_t PackByProducts(DF df, int64_t j, int64_t plane_bytes, const T* HWY_RESTRICT x,
                                  const Batch& batch, int64_t i, uint8_t* HWY_RESTRICT packed,
                                  bool& is_certain) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  if (j + lanes > plane_bytes) return j;
  const hn::Rebind<uint8_t, DF> d8;
  const hn::Rebind<int32_t, DF> di;
  const hn::Rebind<uint32_t, DF> du;
  const auto reciprocal = hn::Set(df, batch.reciprocal[i]);
  const auto offset = hn::Set(df, batch.offset[i]);
  const auto fraction_mask = hn::Set(di, (1 << kFractionBits) - 1);
  auto least_fraction = fraction_mask;
  for (; j + lanes <= plane_bytes; j += lanes) {
    const auto plane = [&](int p) HWY_ATTR {
      const auto value = Widen(df, x + j + p * plane_bytes);
      const auto bits = hn::BitCast(di, hn::MulAdd(value, reciprocal, offset));
      least_fraction = hn::Min(least_fraction, hn::And(bits, fraction_mask));
      return hn::ShiftRight<kFractionBits>(hn::BitCast(du, bits));
    };
    hn::StoreU(PackedBytes<kBits>(d8, plane), d8, packed + j);
  }
  is_certain = is_certain && hn::AllTrue(di, hn::Gt(least_fraction, hn::Set(di, batch.margin[i])));
  return j;
}

// The same by the definition; step > 0.
template <int kBits, class DF, class T>
HWY_INLINE int64_t PackByQuotients(DF df, int64_t j, int64_t plane_bytes, const T* HWY_RESTRICT x,
                                   float min, float step, uint8_t* HWY_RESTRICT packed) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const hn::Rebind<uint8_t, DF> d8;
  const hn::Rebind<uint32_t, DF> du;
  for (; j + lanes <= plane_bytes; j += lanes) {
    const auto plane = [&](int p) HWY_ATTR {
      const auto shifted = hn::Sub(Widen(df, x + j + p * plane_bytes), hn::Set(df, min));
      const auto scaled = hn::Div(shifted, hn::Set(df, step));
      const auto clamped = hn::Min(scaled, hn::Set(df, internal::MaxCode(kBits)));
      return hn::BitCast(du, hn::Add(clamped, hn::Set(df, kRounder)));
    };
    hn::StoreU(PackedBytes<kBits>(d8, plane), d8, packed + j);
  }
  return j;
}

// Packed codes of group i of the batch. kIsWhole: planes are multiples of the lanes.
template <int kBits, bool kIsWhole, class T>
HWY_INLINE void PackGroup(const T* HWY_RESTRICT x, int64_t group, const Batch& batch, int64_t i,
                          uint8_t* HWY_RESTRICT packed) {
  const hn::ScalableTag<float> full;
  [[maybe_unused]] const hn::CappedTag<float, 4> four;
  [[maybe_unused]] const hn::CappedTag<float, 1> one;
  const int64_t plane_bytes = PackedGroupBytes(group, kBits);
  if (batch.reciprocal[i] > 0.0f) {
    bool is_certain = true;
    [[maybe_unused]] int64_t j =
        PackByProducts<kBits>(full, 0, plane_bytes, x, batch, i, packed, is_certain);
    if constexpr (!kIsWhole) {
      j = PackByProducts<kBits>(four, j, plane_bytes, x, batch, i, packed, is_certain);
      PackByProducts<kBits>(one, j, plane_bytes, x, batch, i, packed, is_certain);
    }
    if (is_certain) return;
  }
  if (batch.step[i] > 0.0f) {
    const float min = batch.lowest[i];
    const float step = batch.step[i];
    [[maybe_unused]] int64_t j = PackByQuotients<kBits>(full, 0, plane_bytes, x, min, step, packed);
    if constexpr (!kIsWhole) {
      j = PackByQuotients<kBits>(four, j, plane_bytes, x, min, step, packed);
      PackByQuotients<kBits>(one, j, plane_bytes, x, min, step, packed);
    }
  } else {
    std::fill_n(packed, plane_bytes, uint8_t{0});
  }
}

// kGroup: the group size, for sizes that are compiled in; 0: `any_group`.
template <int kBits, int64_t kGroup, class T>
void QuantizeStoredTyped(int64_t any_group, const T* x, int64_t num_groups, uint8_t* codes, T* mins,
                         T* ranges) {
  const int64_t group = kGroup > 0 ? kGroup : any_group;
  const int64_t group_bytes = PackedGroupBytes(group, kBits);
  Batch batch;
  for (int64_t first = 0; first < num_groups; first += kBatch) {
    const int64_t count = std::min(kBatch, num_groups - first);
    FindAllBounds(x, group, count, batch.lowest, batch.highest);
    RoundAllBounds<T>(internal::MaxCode(kBits), batch);
    for (int64_t i = 0; i < count; ++i, x += group, codes += group_bytes) {
      internal::PrefetchAhead(x, group * static_cast<int64_t>(sizeof(T)));
      using Bits = std::conditional_t<std::is_same_v<T, float>, uint32_t, uint16_t>;
      mins[first + i] = std::bit_cast<T>(static_cast<Bits>(batch.min_bits[i]));
      ranges[first + i] = std::bit_cast<T>(static_cast<Bits>(batch.range_bits[i]));
      PackGroup<kBits, kGroup == 128>(x, group, batch, i, codes);
    }
  }
}

void QuantizeStored(const GroupFormat& format, const void* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges) {
  internal::VisitFloatType(format.metadata, [&]<class T>(T) HWY_ATTR {
    const auto run = [&]<int kBits>() HWY_ATTR {
      const auto quantize = format.group == 128 ? QuantizeStoredTyped<kBits, 128, T>
                                                : QuantizeStoredTyped<kBits, 0, T>;
      quantize(format.group, static_cast<const T*>(x), num_groups, codes, static_cast<T*>(mins),
               static_cast<T*>(ranges));
    };
    if (format.bits == 8) return run.template operator()<8>();
    if (format.bits == 4) return run.template operator()<4>();
    return run.template operator()<2>();
  });
}

int64_t StoredTarget() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq {

HWY_EXPORT(QuantizeStored);
HWY_EXPORT(StoredTarget);

int64_t internal::QuantizeStoredTarget() { return HWY_DYNAMIC_DISPATCH(StoredTarget)(); }

void QuantizeStoredGroups(const GroupFormat& format, const void* x, int64_t num_groups,
                          uint8_t* codes, void* mins, void* ranges) {
  internal::CheckPackable(format.group, format.bits);
  HWY_DYNAMIC_DISPATCH(QuantizeStored)(format, x, num_groups, codes, mins, ranges);
}

}  // namespace pmkvq
#endif  // HWY_ONCE
