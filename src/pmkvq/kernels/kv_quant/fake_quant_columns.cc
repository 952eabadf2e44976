// True divisions, rounding half to even and no contraction: the same bits as FakeQuantize.
#include "pmkvq/kernels/kv_quant/fake_quant_columns.h"

#include "pmkvq/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/kv_quant/fake_quant_columns.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Nearest bfloat16, ties to even. Finite values only.
template <class DF, class V>
HWY_INLINE V RoundToBF16(DF df, V x) {
  const hn::RebindToUnsigned<DF> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
  return hn::BitCast(df, hn::And(rounded, hn::Set(du, 0xffff0000u)));
}

struct ColumnArgs {
  int64_t group;
  int bits;
  const float* x;
  const float* divisor;
  int64_t columns;
  float* out;
};

// As many columns as there are lanes, from `column` on.
template <class DF>
HWY_INLINE void QuantizeLanes(DF df, const ColumnArgs& args, int64_t column) {
  const float* HWY_RESTRICT x = args.x + column;
  float* HWY_RESTRICT out = args.out + column;
  auto low = hn::Div(hn::LoadU(df, x), hn::Set(df, args.divisor[0]));
  auto high = low;
  for (int64_t i = 0; i < args.group; ++i) {
    const auto value = hn::Div(hn::LoadU(df, x + i * args.columns), hn::Set(df, args.divisor[i]));
    low = hn::Min(low, value);
    high = hn::Max(high, value);
    hn::StoreU(value, df, out + i * args.columns);
  }
  const auto zero = hn::Zero(df);
  const auto max_code = hn::Set(df, static_cast<float>((1 << args.bits) - 1));
  const auto step = hn::Div(hn::Sub(high, low), max_code);
  const auto constant = hn::Not(hn::Gt(step, zero));
  for (int64_t i = 0; i < args.group; ++i) {
    const auto scaled = hn::Div(hn::Sub(hn::LoadU(df, out + i * args.columns), low), step);
    const auto code = hn::ConvertTo(df, hn::NearestInt(hn::Min(hn::Max(scaled, zero), max_code)));
    const auto affine = hn::Add(hn::Mul(code, step), low);
    auto value = hn::IfThenElse(constant, low, affine);
    if (args.bits == 16) value = RoundToBF16(df, value);
    hn::StoreU(value, df, out + i * args.columns);
  }
}

void QuantizeColumns(int64_t group, int bits, const float* x, const float* divisor, int64_t columns,
                     float* out) {
  const ColumnArgs args = {group, bits, x, divisor, columns, out};
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t column = 0;
  for (; column + lanes <= columns; column += lanes) QuantizeLanes(df, args, column);
  for (; column < columns; ++column) QuantizeLanes(hn::CappedTag<float, 1>(), args, column);
}

}  // namespace
}  // namespace pmkvq::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq {

HWY_EXPORT(QuantizeColumns);

void FakeQuantizeColumns(int64_t group, int bits, const float* x, const float* divisor,
                         int64_t columns, float* out) {
  PMKVQ_CHECK(group > 0 && columns >= 0);
  PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
  HWY_DYNAMIC_DISPATCH(QuantizeColumns)(group, bits, x, divisor, columns, out);
}

}  // namespace pmkvq
#endif  // HWY_ONCE
