// Vector unpacking of code planes, for every instruction set that Highway compiles.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_KV_QUANT_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_KV_QUANT_CODES_INL_H_
#undef PMKVQ_KERNELS_KV_QUANT_CODES_INL_H_
#else
#define PMKVQ_KERNELS_KV_QUANT_CODES_INL_H_
#endif

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace pmkvq::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Splits bytes, one in each 32-bit lane, into the codes of their planes and calls
// sink(plane, codes as floats) for each of the 8 / kBits planes.
template <int kBits, class DF, class VI, class Sink>
HWY_INLINE void SplitPlanes(DF df, VI bytes, const Sink& sink) {
  const auto mask = hn::Set(hn::Rebind<int32_t, DF>(), (1 << kBits) - 1);
  if constexpr (kBits == 8) {
    sink(0, hn::ConvertTo(df, bytes));
  } else if constexpr (kBits == 4) {
    sink(0, hn::ConvertTo(df, hn::And(bytes, mask)));
    sink(1, hn::ConvertTo(df, hn::ShiftRight<4>(bytes)));
  } else {
    static_assert(kBits == 2);
    sink(0, hn::ConvertTo(df, hn::And(bytes, mask)));
    sink(1, hn::ConvertTo(df, hn::And(hn::ShiftRight<2>(bytes), mask)));
    sink(2, hn::ConvertTo(df, hn::And(hn::ShiftRight<4>(bytes), mask)));
    sink(3, hn::ConvertTo(df, hn::ShiftRight<6>(bytes)));
  }
}

// Expands one packed group: out[dim] = map(code of dim), where map works on a vector of floats of
// any number of lanes, given as map(tag, vector).
template <int kBits, class Map>
HWY_INLINE void ExpandGroup(const uint8_t* HWY_RESTRICT packed, int64_t group, const Map& map,
                            float* HWY_RESTRICT out) {
  const int64_t plane_bytes = group * kBits / 8;
  int64_t j = 0;
  const auto run = [&](auto df) HWY_ATTR {
    const hn::Rebind<uint8_t, decltype(df)> d8;
    const hn::Rebind<int32_t, decltype(df)> di;
    const auto lanes = static_cast<int64_t>(hn::Lanes(df));
    for (; j + lanes <= plane_bytes; j += lanes) {
      SplitPlanes<kBits>(df, hn::PromoteTo(di, hn::LoadU(d8, packed + j)),
                         [&](int plane, auto codes) HWY_ATTR {
                           hn::StoreU(map(df, codes), df, out + j + plane * plane_bytes);
                         });
    }
  };
  run(hn::ScalableTag<float>());
  run(hn::CappedTag<float, 4>());
  run(hn::CappedTag<float, 1>());
}

}  // namespace pmkvq::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_KV_QUANT_CODES_INL_H_
