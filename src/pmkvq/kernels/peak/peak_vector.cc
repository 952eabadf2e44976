#include "pmkvq/kernels/peak/peak_vector.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/peak/peak_vector.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

uint64_t SumAll(const uint64_t* words, size_t count) {
  const hn::ScalableTag<uint64_t> d;
  const size_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d);
  auto sum1 = sum0;
  auto sum2 = sum0;
  auto sum3 = sum0;
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = hn::Add(sum0, hn::LoadU(d, words + i));
    sum1 = hn::Add(sum1, hn::LoadU(d, words + i + lanes));
    sum2 = hn::Add(sum2, hn::LoadU(d, words + i + 2 * lanes));
    sum3 = hn::Add(sum3, hn::LoadU(d, words + i + 3 * lanes));
  }
  HWY_ALIGN uint64_t parts[hn::MaxLanes(hn::ScalableTag<uint64_t>())];
  hn::Store(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)), d, parts);
  uint64_t sum = 0;
  for (size_t lane = 0; lane < lanes; ++lane) sum += parts[lane];
  for (; i < count; ++i) sum += words[i];
  return sum;
}

// Twelve independent chains x -> step(x) from 1, 2, ..., 12, and their sum by `combine`. Two
// multiplications start per cycle and one takes four or five, so ten chains keep them busy; twelve
// and the operands fit 16 registers. An array of vectors would live in memory.
template <class D, class Step, class Combine>
HWY_INLINE PeakWork RunChains(D d, int64_t iterations, const Step& step, const Combine& combine) {
  using T = hn::TFromD<D>;
  const auto start = [&](int i) HWY_ATTR { return hn::Set(d, static_cast<T>(i)); };
  auto x0 = start(1), x1 = start(2), x2 = start(3), x3 = start(4), x4 = start(5), x5 = start(6);
  auto x6 = start(7), x7 = start(8), x8 = start(9), x9 = start(10), x10 = start(11),
       x11 = start(12);
  for (int64_t n = 0; n < iterations; ++n) {
    x0 = step(x0), x1 = step(x1), x2 = step(x2), x3 = step(x3), x4 = step(x4), x5 = step(x5);
    x6 = step(x6), x7 = step(x7), x8 = step(x8), x9 = step(x9), x10 = step(x10), x11 = step(x11);
  }
  x0 = combine(combine(combine(x0, x1), combine(x2, x3)), combine(x4, x5));
  x6 = combine(combine(combine(x6, x7), combine(x8, x9)), combine(x10, x11));
  constexpr double kChains = 12.0;
  return {static_cast<double>(iterations) * kChains * static_cast<double>(hn::Lanes(d)),
          static_cast<double>(hn::GetLane(combine(x0, x6)))};
}

PeakWork FloatChains(int64_t iterations, float seed) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<hn::ScalableTag<float>>;
  // x -> x / 2 + seed stays bounded and away from denormals.
  const V factor = hn::Set(d, seed * 0.5f);
  const V addend = hn::Set(d, seed);
  const PeakWork work = RunChains(
      d, iterations, [&](V x) HWY_ATTR { return hn::MulAdd(x, factor, addend); },
      [](V x, V y) HWY_ATTR { return hn::Add(x, y); });
  return {2.0 * work.operations, work.result};
}

// x (unsigned bytes) times y (signed bytes), neighbours added to 16 bits: the byte product of each
// instruction set. Without one, 16-bit lanes are multiplied.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
using Product = uint8_t;
#else
using Product = uint16_t;
#endif
using DProduct = hn::ScalableTag<Product>;
using VProduct = hn::Vec<DProduct>;

HWY_INLINE VProduct Multiply(VProduct x, VProduct y) {
#if HWY_TARGET == HWY_AVX3
  return VProduct{_mm512_maddubs_epi16(x.raw, y.raw)};
#elif HWY_TARGET == HWY_AVX2
  return VProduct{_mm256_maddubs_epi16(x.raw, y.raw)};
#elif HWY_TARGET == HWY_SSE4
  return VProduct{_mm_maddubs_epi16(x.raw, y.raw)};
#else
  return hn::Add(hn::Mul(x, y), y);
#endif
}

PeakWork Int8Chains(int64_t iterations, int seed) {
  const DProduct d;
  const VProduct factor = hn::Set(d, static_cast<Product>(seed));
  return RunChains(
      d, iterations, [&](VProduct x) HWY_ATTR { return Multiply(x, factor); },
      [](VProduct x, VProduct y) HWY_ATTR { return hn::Xor(x, y); });
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(SumAll);
HWY_EXPORT(FloatChains);
HWY_EXPORT(Int8Chains);
HWY_EXPORT(Target);

uint64_t SumWordsVector(const uint64_t* words, size_t count) {
  return HWY_DYNAMIC_DISPATCH(SumAll)(words, count);
}
PeakWork RunFloatChains(int64_t iterations, float seed) {
  return HWY_DYNAMIC_DISPATCH(FloatChains)(iterations, seed);
}
PeakWork RunInt8Chains(int64_t iterations, int seed) {
  return HWY_DYNAMIC_DISPATCH(Int8Chains)(iterations, seed);
}
int64_t PeakKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
