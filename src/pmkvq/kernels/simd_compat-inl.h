// Vector operations that the oldest supported Highway (1.0.3) lacks.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_SIMD_COMPAT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_SIMD_COMPAT_INL_H_
#undef PMKVQ_KERNELS_SIMD_COMPAT_INL_H_
#else
#define PMKVQ_KERNELS_SIMD_COMPAT_INL_H_
#endif

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace pmkvq::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Products of adjacent pairs: lane i of the result is a[2i] b[2i] + a[2i + 1] b[2i + 1], exactly.
// Highway's ReorderWidenMulAccumulate may put products into other lanes. No pair of `a` or of `b`
// may hold -32768 twice.
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
template <size_t kLanes>
HWY_INLINE hn::Vec128<int32_t, kLanes / 2> MulPairs(hn::Vec128<int16_t, kLanes> a,
                                                    hn::Vec128<int16_t, kLanes> b) {
  return hn::Vec128<int32_t, kLanes / 2>{_mm_madd_epi16(a.raw, b.raw)};
}
#if HWY_TARGET != HWY_SSE4
HWY_INLINE hn::Vec256<int32_t> MulPairs(hn::Vec256<int16_t> a, hn::Vec256<int16_t> b) {
  return hn::Vec256<int32_t>{_mm256_madd_epi16(a.raw, b.raw)};
}
#endif
#if HWY_TARGET == HWY_AVX3
HWY_INLINE hn::Vec512<int32_t> MulPairs(hn::Vec512<int16_t> a, hn::Vec512<int16_t> b) {
  return hn::Vec512<int32_t>{_mm512_madd_epi16(a.raw, b.raw)};
}
#endif
#elif HWY_TARGET != HWY_SCALAR  // One-lane vectors have no pairs.
template <class V>
HWY_INLINE auto MulPairs(V a, V b) {
  const hn::Repartition<int32_t, hn::DFromV<V> > d32;
  const auto low = [&](V v) HWY_ATTR {
    return hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(d32, v)));
  };
  const auto high = [&](V v) HWY_ATTR { return hn::ShiftRight<16>(hn::BitCast(d32, v)); };
  return hn::Add(hn::Mul(low(a), low(b)), hn::Mul(high(a), high(b)));
}
#endif

}  // namespace pmkvq::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_SIMD_COMPAT_INL_H_
