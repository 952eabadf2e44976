// Products of packed codes with 16-bit integers of one or two x, without tiles.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_INTEGER_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_INTEGER_DIRECT_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_INTEGER_DIRECT_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_INTEGER_DIRECT_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/attention/integer_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

// sums[plane] += products of the pairs of all planes with one pair of factors for each half.
template <int kBits, int kPlane = 0, class D32, class VF, class VS>
HWY_INLINE void AddPlanes(D32 d32, hn::Vec<D32> words, VF factors0, VF factors1, VS* sums) {
  const hn::Repartition<int16_t, D32> d16;
  const auto half0 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 0>(d32, words)), factors0);
  const auto half1 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 1>(d32, words)), factors1);
  sums[kPlane] = hn::Add(sums[kPlane], hn::Add(half0, half1));
  if constexpr (kPlane + 1 < 8 / kBits) {
    AddPlanes<kBits, kPlane + 1>(d32, words, factors0, factors1, sums);
  }
}

// sum += products of the pairs of all planes with x: the pairs of plane p and half h begin at
// x + (2 p + h) * stride.
template <int kBits, int kPlane = 0, class D32, class VS>
HWY_INLINE void AddDots(D32 d32, hn::Vec<D32> words, const int16_t* x, int64_t stride, VS& sum) {
  const hn::Repartition<int16_t, D32> d16;
  const auto half0 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 0>(d32, words)),
                              hn::LoadU(d16, x + 2 * kPlane * stride));
  const auto half1 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 1>(d32, words)),
                              hn::LoadU(d16, x + (2 * kPlane + 1) * stride));
  sum = hn::Add(sum, hn::Add(half0, half1));
  if constexpr (kPlane + 1 < 8 / kBits) AddDots<kBits, kPlane + 1>(d32, words, x, stride, sum);
}

// The sums over lanes of four vectors, in four lanes.
template <class D32>
HWY_INLINE hn::Vec<hn::FixedTag<int32_t, 4>> SumLanesOfFour(D32 d32, const hn::Vec<D32>* v) {
  if constexpr (hn::MaxLanes(D32()) == 4) {
    const hn::Repartition<uint64_t, D32> d64;
    const auto sum01 = hn::BitCast(
        d64, hn::Add(hn::InterleaveLower(d32, v[0], v[1]), hn::InterleaveUpper(d32, v[0], v[1])));
    const auto sum23 = hn::BitCast(
        d64, hn::Add(hn::InterleaveLower(d32, v[2], v[3]), hn::InterleaveUpper(d32, v[2], v[3])));
    return hn::Add(hn::BitCast(d32, hn::InterleaveLower(d64, sum01, sum23)),
                   hn::BitCast(d32, hn::InterleaveUpper(d64, sum01, sum23)));
  } else {
    const hn::Half<D32> half;
    hn::Vec<decltype(half)> halves[4];
    HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
      halves[i] = hn::Add(hn::LowerHalf(half, v[i]), hn::UpperHalf(half, v[i]));
    }
    return SumLanesOfFour(half, halves);
  }
}

// Dots without a tile: with one or two x to share it, a tile costs more than it saves.
template <int kBits, int kX, class D32>
HWY_INLINE void DotDirect(D32 d32, const PackedRows& rows, const int16_t* x, int64_t x_stride,
                          int32_t* sums, ReadAhead& ahead) {
  const hn::RebindToSigned<D32> di32;
  constexpr auto kBytes = static_cast<int64_t>(4 * hn::MaxLanes(D32()));
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  for (int64_t t = 0; t < rows.num_rows; t += 4) {
    ahead.Next(ReadAhead::Lines(4 * rows.row_bytes));
    hn::Vec<decltype(di32)> sum[kX][4];
    for (auto& of_x : sum) {
      for (auto& of_row : of_x) of_row = hn::Zero(di32);
    }
    for (int64_t j = 0; j < num_bytes; j += kBytes) {
      HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
        const std::byte* row = rows.RowOrLast(t + i);
        const auto words = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(row + j));
        HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
          AddDots<kBits>(d32, words, x + r * x_stride + j / 2, num_bytes / 2, sum[r][i]);
        }
      }
    }
    HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
      hn::Store(SumLanesOfFour(di32, sum[r]), hn::FixedTag<int32_t, 4>(),
                sums + r * kMaxIntegerRows + t);
    }
  }
}

// Registers for the sums of SumDirect; with more, a tile is faster.
constexpr int kMaxDirectSums = kMaxSums;

// Sums without a tile, from byte j of the rows on as far as full vectors reach.
template <int kBits, int kX, class D8>
HWY_INLINE int64_t SumDirect(D8 d8, const PackedRows& rows, const int16_t* weights, int64_t j,
                             int32_t* sums, ReadAhead& ahead) {
  const hn::Repartition<uint32_t, D8> d32;
  const hn::RebindToSigned<decltype(d32)> di32;
  const hn::Repartition<int16_t, D8> d16;
  constexpr int kPlanes = 8 / kBits;
  constexpr auto kBytes = static_cast<int64_t>(hn::MaxLanes(D8()));
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  for (; j + kBytes <= num_bytes; j += kBytes) {
    hn::Vec<decltype(di32)> sum[kX][4][kPlanes];
    for (auto& of_x : sum) {
      for (auto& of_word : of_x) {
        for (auto& of_plane : of_word) of_plane = hn::Zero(di32);
      }
    }
    for (int64_t t = 0; t < rows.num_rows; t += 4) {
      ahead.Next(ReadAhead::Lines(4 * rows.row_bytes));
      const std::byte* from[4];
      HWY_UNROLL(4) for (int i = 0; i < 4; ++i) { from[i] = rows.RowOrLast(t + i); }
      hn::Vec<decltype(d32)> words[4];
      InterleaveFourRows(d8, from, j, words);
      HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
        const auto factors0 = PairAt(d16, weights + r * kMaxIntegerRows + t);
        const auto factors1 = PairAt(d16, weights + r * kMaxIntegerRows + t + 2);
        HWY_UNROLL(4) for (int k = 0; k < 4; ++k) {
          AddPlanes<kBits>(d32, words[k], factors0, factors1, sum[r][k]);
        }
      }
    }
    HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
      HWY_UNROLL(4) for (int k = 0; k < 4; ++k) {
        HWY_UNROLL(4) for (int p = 0; p < kPlanes; ++p) {
          hn::StoreU(sum[r][k][p], di32,
                     sums + r * rows.columns + p * num_bytes + j + k * kBytes / 4);
        }
      }
    }
  }
  return j;
}

template <int kBits, int kX>
HWY_NOINLINE void DotWithoutTile(const PackedRows& rows, const int16_t* x, int64_t x_stride,
                                 int32_t* sums, ReadAhead& ahead) {
  const hn::ScalableTag<uint32_t> full;
  const hn::CappedTag<uint32_t, 8> eight;
  const int64_t num_words = PackedGroupBytes(rows.columns, kBits) / 4;
  if (num_words % static_cast<int64_t>(hn::Lanes(full)) == 0) {
    DotDirect<kBits, kX>(full, rows, x, x_stride, sums, ahead);
  } else if (num_words % static_cast<int64_t>(hn::Lanes(eight)) == 0) {
    DotDirect<kBits, kX>(eight, rows, x, x_stride, sums, ahead);
  } else {
    DotDirect<kBits, kX>(hn::CappedTag<uint32_t, 4>(), rows, x, x_stride, sums, ahead);
  }
}

template <int kBits, int kX>
HWY_NOINLINE void SumWithoutTile(const PackedRows& rows, const int16_t* weights, int32_t* sums,
                                 ReadAhead& ahead) {
  int64_t j = SumDirect<kBits, kX>(hn::ScalableTag<uint8_t>(), rows, weights, 0, sums, ahead);
  j = SumDirect<kBits, kX>(hn::CappedTag<uint8_t, 32>(), rows, weights, j, sums, ahead);
  SumDirect<kBits, kX>(hn::CappedTag<uint8_t, 16>(), rows, weights, j, sums, ahead);
}

// Both give whether they did it: only for one or two x. They ask for as many lines of `ahead` as
// their rows have.
template <int kBits>
bool TryDotDirect(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                  int32_t* sums, ReadAhead& ahead) {
  if (num_x > 2) return false;
  (num_x == 1 ? DotWithoutTile<kBits, 1> : DotWithoutTile<kBits, 2>)(rows, x, x_stride, sums,
                                                                     ahead);
  return true;
}
template <int kBits>
bool TrySumDirect(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* sums,
                  ReadAhead& ahead) {
  constexpr int kSums = 4 * 8 / kBits;  // Of one x.
  if constexpr (kSums <= kMaxDirectSums) {
    if (num_x == 1) return SumWithoutTile<kBits, 1>(rows, weights, sums, ahead), true;
  }
  if constexpr (2 * kSums <= kMaxDirectSums) {
    if (num_x == 2) return SumWithoutTile<kBits, 2>(rows, weights, sums, ahead), true;
  }
  return false;
}

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_INTEGER_DIRECT_INL_H_
