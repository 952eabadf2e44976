// Products of packed codes with 16-bit integers, in vectors.
#include "pmkvq/kernels/attention/integer_products.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/integer_products.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "pmkvq/kernels/attention/integer_direct-inl.h"
#include "pmkvq/kernels/attention/integer_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

void Dot(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride, uint32_t* tile,
         int32_t* sums, ReadAhead* ahead) {
  const auto try_direct = rows.bits == 8   ? TryDotDirect<8>
                          : rows.bits == 4 ? TryDotDirect<4>
                                           : TryDotDirect<2>;
  if (try_direct(rows, x, num_x, x_stride, sums, *ahead)) return;
  const int64_t num_bytes = PackedGroupBytes(rows.columns, rows.bits);
  const int64_t padded = (rows.num_rows + 15) / 16 * 16;
  for (int64_t t = 0; t < padded; t += kIntegerTileRows) {
    const int64_t width = std::min(kIntegerTileRows, padded - t);
    LoadDotTile(rows, num_bytes, t, width, tile);
    MulTile<Dots>({.x = x,
                   .x_stride = x_stride,
                   .tile = tile,
                   .depth = num_bytes / 4,
                   .columns = width,
                   .bits = rows.bits,
                   .sums = sums + t,
                   .stride = kMaxIntegerRows,
                   .ahead = ahead},
                  num_x);
  }
}

void Sum(const PackedRows& rows, const int16_t* weights, int64_t num_x, uint32_t* tile,
         int32_t* sums, ReadAhead* ahead) {
  const auto try_direct = rows.bits == 8   ? TrySumDirect<8>
                          : rows.bits == 4 ? TrySumDirect<4>
                                           : TrySumDirect<2>;
  if (try_direct(rows, weights, num_x, sums, *ahead)) return;
  const auto multiply = rows.bits == 8   ? MulTile<Sums<8>>
                        : rows.bits == 4 ? MulTile<Sums<4>>
                                         : MulTile<Sums<2>>;
  const int64_t num_bytes = PackedGroupBytes(rows.columns, rows.bits);
  std::fill_n(sums, num_x * rows.columns, 0);
  const int64_t padded = (rows.num_rows + 3) / 4 * 4;
  for (int64_t t = 0; t < padded; t += kIntegerTileRows) {
    const int64_t count = std::min(kIntegerTileRows, padded - t);
    LoadSumTile(rows, num_bytes, t, count, tile);
    multiply({.x = weights + t,
              .x_stride = kMaxIntegerRows,
              .tile = tile,
              .depth = count / 4,
              .columns = num_bytes,
              .bits = rows.bits,
              .sums = sums,
              .stride = rows.columns,
              .ahead = ahead},
             num_x);
  }
}

#else  // One-lane vectors have no pairs.

// The inverse of ArrangeForDots is needed by nobody else.
void Dot(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride, uint32_t*,
         int32_t* sums, ReadAhead*) {
  int16_t plain[kMaxGroup];
  int16_t index[kMaxGroup];
  int16_t order[kMaxGroup];
  for (int64_t i = 0; i < rows.columns; ++i) index[i] = static_cast<int16_t>(i);
  ArrangeForDots(rows.bits, rows.columns, index, order);
  for (int64_t r = 0; r < num_x; ++r) {
    for (int64_t i = 0; i < rows.columns; ++i) plain[order[i]] = x[r * x_stride + i];
    ref::DotPackedRows(rows, plain, 1, rows.columns, sums + r * kMaxIntegerRows);
    const int64_t padded = (rows.num_rows + 15) / 16 * 16;
    std::fill(sums + r * kMaxIntegerRows + rows.num_rows, sums + r * kMaxIntegerRows + padded,
              sums[r * kMaxIntegerRows + rows.num_rows - 1]);
  }
}

void Sum(const PackedRows& rows, const int16_t* weights, int64_t num_x, uint32_t*, int32_t* sums,
         ReadAhead*) {
  ref::SumPackedRows(rows, weights, num_x, sums);
}

#endif  // HWY_TARGET != HWY_SCALAR

float ToIntegers(const float* HWY_RESTRICT x, int64_t count, int16_t* HWY_RESTRICT integers) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<int16_t, decltype(df)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto largest = hn::Zero(df);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(df, x + i)));
  float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  for (; i < count; ++i) max = std::max(max, std::abs(x[i]));
  if (max < kMinMagnitude) {
    std::fill_n(integers, count, int16_t{0});
    return 0.0f;
  }
  const float inverse = kMaxInteger / max;
  for (i = 0; i + lanes <= count; i += lanes) {
    const auto scaled = hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse));
    hn::StoreU(hn::DemoteTo(d16, hn::NearestInt(scaled)), d16, integers + i);
  }
  for (; i < count; ++i) integers[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
  return max / kMaxInteger;
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {
namespace {

void CheckRows(const PackedRows& rows) {
  PMKVQ_DCHECK(0 < rows.num_rows && rows.num_rows <= kMaxIntegerRows);
  PMKVQ_DCHECK(rows.columns <= kMaxGroup && HasIntegerProducts(rows.columns, rows.bits));
}

}  // namespace

HWY_EXPORT(ToIntegers);
HWY_EXPORT(Dot);
HWY_EXPORT(Sum);
HWY_EXPORT(Target);

float QuantizeToIntegers(const float* x, int64_t count, int16_t* integers) {
  return HWY_DYNAMIC_DISPATCH(ToIntegers)(x, count, integers);
}

void ArrangeForDots(int bits, int64_t columns, const int16_t* in, int16_t* out) {
  const int64_t num_bytes = PackedGroupBytes(columns, bits);
  for (int64_t plane = 0; plane < 8 / bits; ++plane) {
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t word = 0; word < num_bytes; word += 4) {
        const int16_t* pair = in + plane * num_bytes + word + half;
        *out++ = pair[0];
        *out++ = pair[2];
      }
    }
  }
}

void DotPackedRows(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                   uint32_t* tile, int32_t* sums, ReadAhead* ahead) {
  CheckRows(rows);
  HWY_DYNAMIC_DISPATCH(Dot)(rows, x, num_x, x_stride, tile, sums, ahead);
}

void SumPackedRows(const PackedRows& rows, const int16_t* weights, int64_t num_x, uint32_t* tile,
                   int32_t* sums, ReadAhead* ahead) {
  CheckRows(rows);
  HWY_DYNAMIC_DISPATCH(Sum)(rows, weights, num_x, tile, sums, ahead);
}

int64_t IntegerProductsTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
