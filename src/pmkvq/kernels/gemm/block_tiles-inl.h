// Products of many rows with stored blocks: a strip of four outputs is decoded once for up to
// kTileRows rows, with the outputs in the lanes of each part (block_piece.h), so that the products
// of a group are added as integers and nothing is added across lanes. Sums are those of the kernel
// for few rows, term by term. For block_product.cc.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_GEMM_BLOCK_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_GEMM_BLOCK_TILES_INL_H_
#undef PMKVQ_KERNELS_GEMM_BLOCK_TILES_INL_H_
#else
#define PMKVQ_KERNELS_GEMM_BLOCK_TILES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/block_order-inl.h"
#include "pmkvq/kernels/gemm/block_piece.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {

// A piece of 256 weights of each of four outputs, as PackedPiece orders the groups.
struct StripPiece {
  alignas(kAlignment) uint8_t codes[2][2][4][64];  // [four][half]: word k of each half.
  float scales[2][2][16];                          // [four][half], or one half for both.
  float subtracted[2][2][16];                      // Minima, negative.
};

// Strips that are multiplied at a time, and rows: as many sums as registers hold.
constexpr size_t kStrips = 2;
constexpr size_t kRowsAtATime = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr size_t kStripOuts = 4;
constexpr size_t kTileOuts = kStrips * kStripOuts;
// Pieces of a strip that are decoded at a time: 24 KiB, which stay in the first cache. As much of
// kTileRows rows of x stays in the second one.
constexpr size_t kTilePieces = 8;
constexpr size_t kTileRows = 128;
// Outputs for which x comes from the second cache, and whose sums are kept.
constexpr size_t kPanelOuts = 64;

// Sums of one row and one strip: [four], part q's lane o is of output o and group 4 four + q.
struct StripSums {
  alignas(kAlignment) float of[2][16];
};

// What a format's codes need.
template <bool kDot, int kMost, bool kScaledHalves, bool kMinima>
struct TileKind {
  static constexpr bool kDotBytes = kDot;
  static constexpr int kMostCode = kMost;
  static constexpr bool kHalves = kScaledHalves;  // A scale for 16 weights, not for 32.
  static constexpr bool kHasMinima = kMinima;     // Else a number is subtracted from codes.
};

struct TileArgs {
  const StripPiece* strips[kStrips];
  const PackedPiece* x[kRowsAtATime];
  size_t num_pieces;
  int offset;  // Subtracted from codes.
  StripSums* sums[kRowsAtATime][kStrips];
};

// x's part in what is subtracted from a product: where codes have an offset, in integers, else sums
// of x for minima. Of a group, or of half kHalf of groups.
template <class Kind, int kHalf>
HWY_INLINE IntSlice OffsetTerm(const PackedPiece& x, int offset, size_t lane) {
  if constexpr (Kind::kHalves) return Times(LoadInts(x.half_sums[kHalf] + lane), -offset);
  return Times(Add(LoadInts(x.half_sums[0] + lane), LoadInts(x.half_sums[1] + lane)), -offset);
}
template <class Kind, int kHalf>
HWY_INLINE FloatSlice SumsOfX(const PackedPiece& x, size_t lane) {
  if constexpr (!Kind::kHalves) return LoadSlice(x.sums + lane);
  return Mul(LoadSlice(x.scales + lane), ToFloats(LoadInts(x.half_sums[kHalf] + lane)));
}

template <int kFour, int kHalf>
HWY_INLINE ByteSlice CodesOfX(const TileArgs& args, size_t row, size_t piece, size_t slice) {
  return LoadBytes(args.x[row][piece].codes + 128 * kFour + 64 * kHalf + slice * kSliceBytes);
}

using Dots = IntSlice[kRowsAtATime][kStrips];
using Sums = FloatSlice[kRowsAtATime][kStrips];

HWY_INLINE void Clear(Dots& dots) {
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
#pragma GCC unroll 4
    for (size_t s = 0; s < kStrips; ++s) dots[r][s] = NoInts();
  }
}

// Adds products of word kWord of one half of four groups.
template <class Kind, int kFour, int kHalf, int kWord>
HWY_INLINE void AddWord(const TileArgs& args, size_t piece, size_t slice, Dots& dots) {
  ByteSlice codes[kStrips];
#pragma GCC unroll 4
  for (size_t s = 0; s < kStrips; ++s) {
    codes[s] = LoadBytes(args.strips[s][piece].codes[kFour][kHalf][kWord] + slice * kSliceBytes);
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
    const ByteSlice x = BroadcastWord<kWord>(CodesOfX<kFour, kHalf>(args, r, piece, slice));
#pragma GCC unroll 4
    for (size_t s = 0; s < kStrips; ++s) {
      dots[r][s] = AddDot<Kind::kDotBytes, Kind::kMostCode>(dots[r][s], codes[s], x);
    }
  }
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
// Words kFirst to kFirst + kWords - 1, whose sums of pairs fit 16 bits.
template <class Kind, int kFour, int kHalf, int kFirst, int kWords>
HWY_INLINE void AddWordsInPairs(const TileArgs& args, size_t piece, size_t slice, Dots& dots) {
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
    const ByteSlice x = CodesOfX<kFour, kHalf>(args, r, piece, slice);
#pragma GCC unroll 4
    for (size_t s = 0; s < kStrips; ++s) {
      const auto& codes = args.strips[s][piece].codes[kFour][kHalf];
      PairSlice pairs = AddPairs(NoPairs(), LoadBytes(codes[kFirst] + slice * kSliceBytes),
                                 BroadcastWord<kFirst>(x));
      pairs = AddPairs(pairs, LoadBytes(codes[kFirst + 1] + slice * kSliceBytes),
                       BroadcastWord<kFirst + 1>(x));
      if constexpr (kWords == 4) {
        pairs = AddPairs(pairs, LoadBytes(codes[2] + slice * kSliceBytes), BroadcastWord<2>(x));
        pairs = AddPairs(pairs, LoadBytes(codes[3] + slice * kSliceBytes), BroadcastWord<3>(x));
      }
      dots[r][s] = AddWidened(dots[r][s], pairs);
    }
  }
}
#endif

template <class Kind, int kFour, int kHalf>
HWY_INLINE void AddHalf(const TileArgs& args, size_t piece, size_t slice, Dots& dots) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
  if constexpr (!Kind::kDotBytes && kPairsThatFit<Kind::kMostCode> >= 4) {
    return AddWordsInPairs<Kind, kFour, kHalf, 0, 4>(args, piece, slice, dots);
  } else if constexpr (!Kind::kDotBytes && kPairsThatFit<Kind::kMostCode> >= 2) {
    AddWordsInPairs<Kind, kFour, kHalf, 0, 2>(args, piece, slice, dots);
    return AddWordsInPairs<Kind, kFour, kHalf, 2, 2>(args, piece, slice, dots);
  }
#endif
  AddWord<Kind, kFour, kHalf, 0>(args, piece, slice, dots);
  AddWord<Kind, kFour, kHalf, 1>(args, piece, slice, dots);
  AddWord<Kind, kFour, kHalf, 2>(args, piece, slice, dots);
  AddWord<Kind, kFour, kHalf, 3>(args, piece, slice, dots);
}

// Scales `dots` of the halves whose scale is number kHalf, and adds them to `sums`.
template <class Kind, int kFour, int kHalf>
HWY_INLINE void AddScaled(const TileArgs& args, size_t piece, size_t slice, const Dots& dots,
                          Sums& sums) {
  const size_t lane = slice * kSliceBytes / sizeof(float);
  FloatSlice scales[kStrips];
  FloatSlice subtracted[kStrips];
#pragma GCC unroll 4
  for (size_t s = 0; s < kStrips; ++s) {
    scales[s] = LoadSlice(args.strips[s][piece].scales[kFour][kHalf] + lane);
    if constexpr (Kind::kHasMinima) {
      subtracted[s] = LoadSlice(args.strips[s][piece].subtracted[kFour][kHalf] + lane);
    }
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
    const PackedPiece& x = args.x[r][piece];
    const FloatSlice x_scales = BroadcastLane<kFour>(LoadSlice(x.scales + lane));
    if constexpr (Kind::kHasMinima) {
      const FloatSlice x_sums = BroadcastLane<kFour>(SumsOfX<Kind, kHalf>(x, lane));
#pragma GCC unroll 4
      for (size_t s = 0; s < kStrips; ++s) {
        sums[r][s] = Add(sums[r][s], Mul(subtracted[s], x_sums));
        sums[r][s] = Add(sums[r][s], Mul(ToFloats(dots[r][s]), Mul(scales[s], x_scales)));
      }
    } else {
      const IntSlice more = BroadcastLane<kFour>(OffsetTerm<Kind, kHalf>(x, args.offset, lane));
#pragma GCC unroll 4
      for (size_t s = 0; s < kStrips; ++s) {
        sums[r][s] =
            Add(sums[r][s], Mul(ToFloats(Add(dots[r][s], more)), Mul(scales[s], x_scales)));
      }
    }
  }
}

template <class Kind, int kFour>
HWY_INLINE void AddFour(const TileArgs& args, bool is_first, size_t slice) {
  const size_t lane = slice * kSliceBytes / sizeof(float);
  Sums sums;
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
#pragma GCC unroll 4
    for (size_t s = 0; s < kStrips; ++s) {
      sums[r][s] = is_first ? NoFloats() : LoadSlice(args.sums[r][s]->of[kFour] + lane);
    }
  }
  for (size_t piece = 0; piece < args.num_pieces; ++piece) {
    Dots dots;
    Clear(dots);
    AddHalf<Kind, kFour, 0>(args, piece, slice, dots);
    if constexpr (Kind::kHalves) {
      AddScaled<Kind, kFour, 0>(args, piece, slice, dots, sums);
      Clear(dots);
    }
    AddHalf<Kind, kFour, 1>(args, piece, slice, dots);
    AddScaled<Kind, kFour, Kind::kHalves ? 1 : 0>(args, piece, slice, dots, sums);
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowsAtATime; ++r) {
#pragma GCC unroll 4
    for (size_t s = 0; s < kStrips; ++s) StoreSlice(sums[r][s], args.sums[r][s]->of[kFour] + lane);
  }
}

template <class Kind>
void AddTile(const TileArgs& args, bool is_first) {
  for (size_t slice = 0; slice < kSlices; ++slice) {
    AddFour<Kind, 0>(args, is_first, slice);
    AddFour<Kind, 1>(args, is_first, slice);
  }
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_GEMM_BLOCK_TILES_INL_H_
