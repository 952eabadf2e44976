// Group quantisation with vectors. Bit-identical to the scalar oracle on every instruction set:
// minima and maxima are exact, divisions are true divisions, rounding is half to even, and this
// file is compiled without contraction to fused multiply-adds.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/kv_quant/kv_quant_internal.h"
#include "pmkvq/kernels/kv_quant/prefetch_ahead.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/kv_quant/kv_quant_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "pmkvq/kernels/kv_quant/codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::HWY_NAMESPACE {

struct Bounds {
  float lowest;
  float highest;
};

Bounds FindBounds(const float* x, int64_t count) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  float lowest = x[0];
  float highest = x[0];
  int64_t i = 0;
  if (count >= lanes) {
    auto low = hn::LoadU(df, x);
    auto high = low;
    for (i = lanes; i + lanes <= count; i += lanes) {
      const auto v = hn::LoadU(df, x + i);
      low = hn::Min(low, v);
      high = hn::Max(high, v);
    }
    lowest = hn::GetLane(hn::MinOfLanes(df, low));
    highest = hn::GetLane(hn::MaxOfLanes(df, high));
  }
  for (; i < count; ++i) {
    lowest = std::min(lowest, x[i]);
    highest = std::max(highest, x[i]);
  }
  return {lowest, highest};
}

// Codes of one vector of values, as 32-bit integers.
template <class DF, class V>
HWY_INLINE auto CodesOf(DF df, V x, float min, float step, float max_code) {
  const auto scaled = hn::Div(hn::Sub(x, hn::Set(df, min)), hn::Set(df, step));
  return hn::NearestInt(hn::Min(hn::Max(scaled, hn::Zero(df)), hn::Set(df, max_code)));
}

// Packed codes of one group; step > 0.
template <int kBits>
HWY_INLINE void QuantizePlanes(const float* HWY_RESTRICT x, int64_t group, float min, float step,
                               uint8_t* HWY_RESTRICT packed) {
  constexpr float kMaxCode = static_cast<float>((1 << kBits) - 1);
  const int64_t plane_bytes = group * kBits / 8;
  int64_t j = 0;
  const auto run = [&](auto df) HWY_ATTR {
    const hn::Rebind<uint8_t, decltype(df)> d8;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    const auto plane = [&](int p) HWY_ATTR {
      return CodesOf(df, hn::LoadU(df, x + j + p * plane_bytes), min, step, kMaxCode);
    };
    for (; j + lanes <= plane_bytes; j += lanes) {
      auto bytes = plane(0);
      if constexpr (kBits == 4) bytes = hn::Or(bytes, hn::ShiftLeft<4>(plane(1)));
      if constexpr (kBits == 2) {
        bytes = hn::Or(hn::Or(bytes, hn::ShiftLeft<2>(plane(1))),
                       hn::Or(hn::ShiftLeft<4>(plane(2)), hn::ShiftLeft<6>(plane(3))));
      }
      hn::StoreU(hn::DemoteTo(d8, bytes), d8, packed + j);
    }
  };
  run(hn::ScalableTag<float>());
  run(hn::CappedTag<float, 4>());
  run(hn::CappedTag<float, 1>());
}

template <int kBits, class T>
void QuantizeTyped(int64_t group, const float* x, int64_t num_groups, uint8_t* codes, T* mins,
                   T* ranges) {
  const int64_t group_bytes = PackedGroupBytes(group, kBits);
  for (int64_t r = 0; r < num_groups; ++r, x += group, codes += group_bytes) {
    const Bounds bounds = FindBounds(x, group);
    const auto stored = internal::RoundBounds<T>(bounds.lowest, bounds.highest);
    mins[r] = stored.min;
    ranges[r] = stored.range;
    const float step = ToFloat(stored.range) / internal::MaxCode(kBits);
    if (step > 0.0f) {
      QuantizePlanes<kBits>(x, group, ToFloat(stored.min), step, codes);
    } else {
      std::fill_n(codes, group_bytes, uint8_t{0});
    }
  }
}

template <int kBits, class T>
void DequantizeTyped(int64_t group, const uint8_t* codes, const T* mins, const T* ranges,
                     int64_t num_groups, float* out) {
  for (int64_t r = 0; r < num_groups; ++r) {
    const float min = ToFloat(mins[r]);
    const float step = ToFloat(ranges[r]) / internal::MaxCode(kBits);
    const auto affine = [&](auto df, auto code) HWY_ATTR {
      return hn::Add(hn::Mul(code, hn::Set(df, step)), hn::Set(df, min));
    };
    ExpandGroup<kBits>(codes + r * PackedGroupBytes(group, kBits), group, affine, out + r * group);
  }
}

void Quantize(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
              void* mins, void* ranges) {
  internal::VisitFloatType(format.metadata, [&]<class T>(T) HWY_ATTR {
    const auto run = [&]<int kBits>() HWY_ATTR {
      QuantizeTyped<kBits>(format.group, x, num_groups, codes, static_cast<T*>(mins),
                           static_cast<T*>(ranges));
    };
    if (format.bits == 8) return run.template operator()<8>();
    if (format.bits == 4) return run.template operator()<4>();
    return run.template operator()<2>();
  });
}

void Dequantize(const GroupFormat& format, const uint8_t* codes, const void* mins,
                const void* ranges, int64_t num_groups, float* out) {
  internal::VisitFloatType(format.metadata, [&]<class T>(T) HWY_ATTR {
    const auto run = [&]<int kBits>() HWY_ATTR {
      DequantizeTyped<kBits>(format.group, codes, static_cast<const T*>(mins),
                             static_cast<const T*>(ranges), num_groups, out);
    };
    if (format.bits == 8) return run.template operator()<8>();
    if (format.bits == 4) return run.template operator()<4>();
    return run.template operator()<2>();
  });
}

#if HWY_TARGET != HWY_SCALAR  // One-lane vectors have no byte shuffles.

// Eq. 3 on 16-bit lanes that each hold one code: 8 to 4 bits, (241 c + 1928) >> 12, which fits.
template <class D16, class V>
HWY_INLINE V Halve8(D16 d16, V codes) {
  return hn::ShiftRight<12>(
      hn::Add(hn::Mul(codes, hn::Set(d16, uint16_t{241})), hn::Set(d16, uint16_t{1928})));
}

// The same on bytes: low and high byte of each 16-bit lane apart.
template <class D8, class V>
HWY_INLINE V HalveBytes8(D8 d8, V bytes) {
  const hn::Repartition<uint16_t, D8> d16;
  const auto pairs = hn::BitCast(d16, bytes);
  const auto low = Halve8(d16, hn::And(pairs, hn::Set(d16, uint16_t{0xff})));
  const auto high = Halve8(d16, hn::ShiftRight<8>(pairs));
  return hn::BitCast(d8, hn::Or(low, hn::ShiftLeft<8>(high)));
}

// One group of 8-bit codes to 4 bits, from byte j on, as far as whole vectors reach.
template <class D8>
HWY_INLINE int64_t HalveGroup8(D8 d8, int64_t j, int64_t plane_bytes, const uint8_t* in,
                               uint8_t* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d8));
  const hn::Repartition<uint16_t, D8> d16;
  for (; j + lanes <= plane_bytes; j += lanes) {
    const auto low = HalveBytes8(d8, hn::LoadU(d8, in + j));
    const auto high = HalveBytes8(d8, hn::LoadU(d8, in + j + plane_bytes));
    const auto shifted = hn::BitCast(d8, hn::ShiftLeft<4>(hn::BitCast(d16, high)));
    hn::StoreU(hn::Or(low, shifted), d8, out + j);
  }
  return j;
}

// One group of 4-bit codes to 2 bits: Eq. 3 by a table of its 16 results. The input planes hold
// dims (i, i + 2P) and (i + P, i + 3P) in their low and high halves, P = plane_bytes of the output.
template <class D8>
HWY_INLINE int64_t HalveGroup4(D8 d8, int64_t j, int64_t plane_bytes, const uint8_t* in,
                               uint8_t* out) {
  alignas(16) static constexpr uint8_t kHalved[16] = {0, 0, 0, 1, 1, 1, 1, 1,
                                                      2, 2, 2, 2, 2, 3, 3, 3};
  const auto lanes = static_cast<int64_t>(hn::Lanes(d8));
  const hn::Repartition<uint16_t, D8> d16;
  const auto table = hn::LoadDup128(d8, kHalved);
  const auto nibble = hn::Set(d8, uint8_t{15});
  const auto halve = [&](auto codes) HWY_ATTR { return hn::TableLookupBytes(table, codes); };
  const auto high = [&](auto bytes) HWY_ATTR {
    return hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, bytes))), nibble);
  };
  const auto shift = [&]<int kShift>(auto codes) HWY_ATTR {  // Codes below 4 stay in their byte.
    return hn::BitCast(d8, hn::ShiftLeft<kShift>(hn::BitCast(d16, codes)));
  };
  for (; j + lanes <= plane_bytes; j += lanes) {
    const auto even = hn::LoadU(d8, in + j);
    const auto odd = hn::LoadU(d8, in + j + plane_bytes);
    const auto c0 = halve(hn::And(even, nibble));
    const auto c1 = shift.template operator()<2>(halve(hn::And(odd, nibble)));
    const auto c2 = shift.template operator()<4>(halve(high(even)));
    const auto c3 = shift.template operator()<6>(halve(high(odd)));
    hn::StoreU(hn::Or(hn::Or(c0, c1), hn::Or(c2, c3)), d8, out + j);
  }
  return j;
}

#endif  // HWY_TARGET != HWY_SCALAR

// In place is safe: a vector's inputs are read before it is written, output bytes of a group never
// pass the group's unread input, and groups are taken in order.
void Halve(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups, uint8_t* out) {
  const int bits = from_bits / 2;
  const int64_t plane_bytes = PackedGroupBytes(group, bits);
  for (int64_t r = 0; r < num_groups; ++r, codes += 2 * plane_bytes, out += plane_bytes) {
    internal::PrefetchAhead(codes, 2 * plane_bytes);
    int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::ScalableTag<uint8_t> full;
    const hn::CappedTag<uint8_t, 32> half;  // A group of 128 at 2 bits.
    const hn::CappedTag<uint8_t, 16> block;
    if (from_bits == 8) {
      j = HalveGroup8(full, j, plane_bytes, codes, out);
      j = HalveGroup8(block, j, plane_bytes, codes, out);
    } else {
      j = HalveGroup4(full, j, plane_bytes, codes, out);
      j = HalveGroup4(half, j, plane_bytes, codes, out);
      j = HalveGroup4(block, j, plane_bytes, codes, out);
    }
#endif
    for (; j < plane_bytes; ++j) {
      uint32_t byte = 0;
      for (int plane = 0; plane < 8 / bits; ++plane) {
        const uint32_t code =
            internal::PackedCode(codes, group, from_bits, j + plane * plane_bytes);
        byte |= internal::HalveCode(code, bits) << (plane * bits);
      }
      out[j] = static_cast<uint8_t>(byte);
    }
  }
}

// Eq. 1 with float (min, step) and back; step > 0.
void FakeQuantizeGroup(const float* x, int64_t group, float min, float step, float max_code,
                       float* out) {
  int64_t i = 0;
  const auto run = [&](auto df) HWY_ATTR {
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    for (; i + lanes <= group; i += lanes) {
      const auto codes = hn::ConvertTo(df, CodesOf(df, hn::LoadU(df, x + i), min, step, max_code));
      hn::StoreU(hn::Add(hn::Mul(codes, hn::Set(df, step)), hn::Set(df, min)), df, out + i);
    }
  };
  run(hn::ScalableTag<float>());
  run(hn::CappedTag<float, 1>());
}

void FakeQuantizeAll(const FakeQuantOptions& options, const float* x, int64_t num_groups,
                     float* out) {
  const int64_t group = options.group;
  const float max_code = internal::MaxCode(options.bits);
  for (int64_t r = 0; r < num_groups; ++r, x += group, out += group) {
    const Bounds bounds = FindBounds(x, group);
    float step = (bounds.highest - bounds.lowest) / max_code;
    if (options.reference_scale_clamp) step = std::clamp(step, 1e-5f, 1e5f);
    if (step > 0.0f) {
      FakeQuantizeGroup(x, group, bounds.lowest, step, max_code, out);
    } else {
      std::fill_n(out, group, bounds.lowest);
    }
    if (options.bits != 16) continue;
    for (int64_t i = 0; i < group; ++i) out[i] = ToFloat(ToBF16(out[i]));
  }
}

int64_t Target() { return HWY_TARGET; }

}  // namespace pmkvq::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq {

HWY_EXPORT(Quantize);
HWY_EXPORT(Dequantize);
HWY_EXPORT(Halve);
HWY_EXPORT(FakeQuantizeAll);
HWY_EXPORT(Target);

int64_t internal::KvQuantTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

void QuantizeGroups(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges) {
  internal::CheckPackable(format.group, format.bits);
  HWY_DYNAMIC_DISPATCH(Quantize)(format, x, num_groups, codes, mins, ranges);
}

void DequantizeGroups(const GroupFormat& format, const uint8_t* codes, const void* mins,
                      const void* ranges, int64_t num_groups, float* out) {
  internal::CheckPackable(format.group, format.bits);
  HWY_DYNAMIC_DISPATCH(Dequantize)(format, codes, mins, ranges, num_groups, out);
}

void HalvePackedCodes(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups,
                      uint8_t* out) {
  internal::CheckPackable(group, from_bits);
  PMKVQ_CHECK(from_bits == 8 || from_bits == 4);
  HWY_DYNAMIC_DISPATCH(Halve)(group, from_bits, codes, num_groups, out);
}

void FakeQuantize(const FakeQuantOptions& options, const float* x, int64_t num_groups, float* out) {
  PMKVQ_CHECK(options.group > 0);
  PMKVQ_CHECK(options.bits == 16 || options.bits == 8 || options.bits == 4 || options.bits == 2);
  HWY_DYNAMIC_DISPATCH(FakeQuantizeAll)(options, x, num_groups, out);
}

}  // namespace pmkvq
#endif  // HWY_ONCE
