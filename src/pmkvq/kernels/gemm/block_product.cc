#include "pmkvq/kernels/gemm/block_product.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/block_piece.h"

#ifndef PMKVQ_BLOCK_PRODUCT_ONCE
#define PMKVQ_BLOCK_PRODUCT_ONCE
#if defined(__x86_64__)
#include <cpuid.h>
#endif
namespace pmkvq::internal {
namespace {

struct BlockArgs {
  const PackedPiece* x;  // [num_rows, pieces]
  size_t num_rows;
  const WeightView* weight;
  const float* bias;
  float* y;
};

}  // namespace
}  // namespace pmkvq::internal
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/gemm/block_product.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/cache_control.h"
#include "pmkvq/kernels/gemm/block_formats-inl.h"
#include "pmkvq/kernels/gemm/block_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Where rounding begins to divide by numbers whose inverse is no float.
constexpr float kLeastMagnitude = 0x1p-119f;

// A group of x: its codes in two halves, their sums, and their scale.
float RoundGroup(const float* HWY_RESTRICT x, int8_t* const (&codes)[2], int32_t (&sums)[2]) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToUnsigned<decltype(d)> d32;
  const hn::RebindToSigned<decltype(d)> di32;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const size_t lanes = hn::Lanes(d);
  // Magnitudes as bits are ordered like the magnitudes, infinities and NaN above all numbers.
  auto largest = hn::Zero(d32);
  for (size_t i = 0; i < kGroupValues; i += lanes) {
    largest = hn::Max(largest, hn::BitCast(d32, hn::Abs(hn::LoadU(d, x + i))));
  }
  const auto magnitude = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(d32, largest)));
  if (!(magnitude >= kLeastMagnitude && std::isfinite(magnitude))) {
    for (const int half : {0, 1}) {
      std::memset(codes[half], 0, kGroupValues / 2);
      sums[half] = 0;
    }
    return magnitude < kLeastMagnitude ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const auto inverse = hn::Set(d, 127.0f / magnitude);
  for (const int half : {0, 1}) {
    auto sum = hn::Zero(di32);
    for (size_t i = 0; i < kGroupValues / 2; i += lanes) {
      const auto value = hn::LoadU(d, x + static_cast<size_t>(half) * (kGroupValues / 2) + i);
      const auto rounded = hn::NearestInt(hn::Mul(value, inverse));
      sum = hn::Add(sum, rounded);
      hn::StoreU(hn::DemoteTo(d8, rounded), d8, codes[half] + i);
    }
    sums[half] = hn::GetLane(hn::SumOfLanes(di32, sum));
  }
  return magnitude / 127.0f;
}

void RoundPiece(const float* HWY_RESTRICT x, PackedPiece& piece) {
  for (size_t group = 0; group < kPieceValues / kGroupValues; ++group) {
    const size_t four = group / 4;
    int8_t* const codes = piece.codes + 128 * four + 16 * (group % 4);
    int32_t sums[2];
    const float scale = RoundGroup(x + group * kGroupValues, {codes, codes + 64}, sums);
    for (size_t i = 4 * (group % 4) + four; i < 4 * (group % 4) + 4; i += 2) {
      piece.scales[i] = scale;
      piece.sums[i] = scale * static_cast<float>(sums[0] + sums[1]);
      piece.half_sums[0][i] = sums[0];
      piece.half_sums[1][i] = sums[1];
    }
  }
}

void PackBlockRowsOf(const float* x, int64_t num_rows, int64_t cols, PackedPiece* out) {
  const auto num_cols = static_cast<size_t>(cols);
  for (int64_t row = 0; row < num_rows; ++row, x += cols) {
    size_t col = 0;
    for (; col + kPieceValues <= num_cols; col += kPieceValues) RoundPiece(x + col, *out++);
    if (col == num_cols) continue;
    float padded[kPieceValues] = {};
    std::memcpy(padded, x + col, (num_cols - col) * sizeof(float));
    RoundPiece(padded, *out++);
  }
}

// The pieces of rows of a format.
template <class Format>
struct Rows {
  static constexpr size_t kPieceBlocks = kPieceValues / static_cast<size_t>(Format::kValues);
  static constexpr size_t kPieceBytes = kPieceBlocks * Format::kBytes;

  // Where the last piece of a row has fewer blocks, reads must not go on: a copy with blocks of
  // zeros.
  struct Padded {
    alignas(kAlignment) uint8_t bytes[kPieceBytes];
    Padded(const uint8_t* data, size_t num_bytes) {
      std::memcpy(bytes, data, num_bytes);
      std::memset(bytes + num_bytes, 0, kPieceBytes - num_bytes);
    }
  };
};

// What the kernels need to know of a format.
template <class Format, bool kDotBytes>
using KindOf = TileKind<kDotBytes, kDotBytes ? 255 : Format::kMostCode, Format::kScaleValues == 16,
                        Format::kHasMinima>;

// Scales, or minima, of each half of groups, or of groups, in the order of PackedPiece::scales.
template <class Format>
struct OrderedScales {
  static constexpr int kHalves = Format::kScaleValues == 16 ? 2 : 1;
  Floats16 scales[kHalves];
  Floats16 subtracted[kHalves];

  HWY_INLINE explicit OrderedScales(const Format& piece) {
    static_assert(!Format::kHasMinima || Format::kOffset == 0);
    Floats16 in_order;
    Floats16 minima;
    piece.Scales(in_order, minima);
    scales[0] = InGroupOrder<0>(in_order);
    if constexpr (kHalves == 2) scales[1] = InGroupOrder<1>(in_order);
    if constexpr (Format::kHasMinima) {
      const Floats16 negative = Mul(minima, SetFloats(-1.0f));
      subtracted[0] = InGroupOrder<0>(negative);
      if constexpr (kHalves == 2) subtracted[1] = InGroupOrder<1>(negative);
    } else {
      subtracted[0] = scales[0];  // Not used.
      if constexpr (kHalves == 2) subtracted[1] = scales[1];
    }
  }
};

// Adds what half kHalf of the groups (or whole groups) of one row adds up to: `dots`, whose even
// lanes belong to the first four groups.
template <class Kind, int kHalf>
HWY_INLINE void AddScaledDots(const PackedPiece& x, int offset, size_t lane, IntSlice dots,
                              FloatSlice scales, FloatSlice subtracted, FloatSlice& sums) {
  if constexpr (Kind::kHasMinima) {
    sums = Add(sums, Mul(subtracted, SumsOfX<Kind, kHalf>(x, lane)));
  } else {
    dots = Add(dots, OffsetTerm<Kind, kHalf>(x, offset, lane));
  }
  sums = Add(sums, Mul(ToFloats(dots), Mul(scales, LoadSlice(x.scales + lane))));
}

template <class Format, bool kDotBytes, int kRows>
HWY_INLINE void AddPiece(const uint8_t* data, const PackedPiece* const (&x)[kRows],
                         Floats16 (&sums)[kRows]) {
  using Kind = KindOf<Format, kDotBytes>;
  constexpr int kMostCode = Kind::kMostCode;
  const Format piece{{data}};
  OrderedScales<Format> scales(piece);
  Bytes64 codes[2][2];  // [four][half]
  SplitHalves(piece.template Codes<0>(), piece.template Codes<1>(), codes[0][0], codes[0][1]);
  SplitHalves(piece.template Codes<2>(), piece.template Codes<3>(), codes[1][0], codes[1][1]);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < kSlices; ++n) {
      const int8_t* const of_x = x[r]->codes + n * kSliceBytes;
      const size_t lane = n * kSliceBytes / sizeof(float);
      FloatSlice& sum = SliceOf(sums[r], n);
      if constexpr (Kind::kHalves) {
        const IntSlice first = SumsOfParts(
            AddDot<kDotBytes, kMostCode>(NoInts(), SliceOf(codes[0][0], n), LoadBytes(of_x)),
            AddDot<kDotBytes, kMostCode>(NoInts(), SliceOf(codes[1][0], n), LoadBytes(of_x + 128)));
        AddScaledDots<Kind, 0>(*x[r], Format::kOffset, lane, first, SliceOf(scales.scales[0], n),
                               SliceOf(scales.subtracted[0], n), sum);
        const IntSlice second = SumsOfParts(
            AddDot<kDotBytes, kMostCode>(NoInts(), SliceOf(codes[0][1], n), LoadBytes(of_x + 64)),
            AddDot<kDotBytes, kMostCode>(NoInts(), SliceOf(codes[1][1], n), LoadBytes(of_x + 192)));
        AddScaledDots<Kind, 1>(*x[r], Format::kOffset, lane, second, SliceOf(scales.scales[1], n),
                               SliceOf(scales.subtracted[1], n), sum);
      } else {
        const IntSlice dots = SumsOfParts(
            TwoDots<kDotBytes, kMostCode>(SliceOf(codes[0][0], n), LoadBytes(of_x),
                                          SliceOf(codes[0][1], n), LoadBytes(of_x + 64)),
            TwoDots<kDotBytes, kMostCode>(SliceOf(codes[1][0], n), LoadBytes(of_x + 128),
                                          SliceOf(codes[1][1], n), LoadBytes(of_x + 192)));
        AddScaledDots<Kind, 0>(*x[r], Format::kOffset, lane, dots, SliceOf(scales.scales[0], n),
                               SliceOf(scales.subtracted[0], n), sum);
      }
    }
  }
}

// Lanes 4 q and 4 q + 1 are the sums of groups q and 4 + q.
HWY_INLINE float SumOf(Floats16 sums) {
  HWY_ALIGN float lanes[16];
  StoreFloats(sums, lanes);
  return ((lanes[0] + lanes[1]) + (lanes[8] + lanes[9])) +
         ((lanes[4] + lanes[5]) + (lanes[12] + lanes[13]));
}

// From as many rows on strips are decoded.
constexpr size_t kLeastTileRows = 8;

// Far enough that memory has answered in time, near enough that lines are still in the first cache.
constexpr size_t kAheadBytes = 8192;

// Output `out` of kRows rows from `row` on. Memory is read as one stream in the order of addresses.
template <class Format, bool kDotBytes, int kRows>
void OneOutput(const BlockArgs& args, size_t row, size_t out) {
  using R = Rows<Format>;
  const auto row_bytes = static_cast<size_t>(RowBytes(args.weight->format, args.weight->cols));
  const size_t pieces = NumPieces(args.weight->cols);
  const auto* data = reinterpret_cast<const uint8_t*>(args.weight->data) + out * row_bytes;
  const uint8_t* const end = data + row_bytes;
  const PackedPiece* x[kRows];
  Floats16 sums[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    x[r] = args.x + (row + static_cast<size_t>(r)) * pieces;
    sums[r] = SetFloats(0.0f);
  }
  for (; data + R::kPieceBytes <= end; data += R::kPieceBytes) {
    // The first rows fetch for all. A prefetch beyond the weights does nothing.
    if (row == 0) {
      for (size_t b = 0; b < R::kPieceBytes; b += 64) hwy::Prefetch(data + kAheadBytes + b);
    }
    AddPiece<Format, kDotBytes, kRows>(data, x, sums);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) ++x[r];
  }
  if (data != end) {
    const typename R::Padded padded(data, static_cast<size_t>(end - data));
    AddPiece<Format, kDotBytes, kRows>(padded.bytes, x, sums);
  }
  const auto num_outs = static_cast<size_t>(args.weight->rows);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const float sum = SumOf(sums[r]);
    args.y[(row + static_cast<size_t>(r)) * num_outs + out] =
        args.bias == nullptr ? sum : sum + args.bias[out];
  }
}

template <class Format, bool kDotBytes>
void FewRows(const BlockArgs& args, size_t begin, size_t end) {
  for (size_t out = begin; out < end; ++out) {
    size_t row = 0;
    for (; row + 4 <= args.num_rows; row += 4) OneOutput<Format, kDotBytes, 4>(args, row, out);
    if (row + 2 <= args.num_rows) {
      OneOutput<Format, kDotBytes, 2>(args, row, out);
      row += 2;
    }
    if (row < args.num_rows) OneOutput<Format, kDotBytes, 1>(args, row, out);
  }
}

// codes: [half], of four groups of each output.
HWY_INLINE void StoreTransposed(Bytes64 (&codes)[2][kStripOuts], uint8_t (&out)[2][4][64]) {
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {
#pragma GCC unroll 4
    for (size_t n = 0; n < kSlices; ++n) {
      ByteSlice words[4] = {SliceOf(codes[half][0], n), SliceOf(codes[half][1], n),
                            SliceOf(codes[half][2], n), SliceOf(codes[half][3], n)};
      Transpose(words);
#pragma GCC unroll 4
      for (size_t k = 0; k < 4; ++k) StoreSlice(words[k], out[half][k] + n * kSliceBytes);
    }
  }
}

// One number of each of four outputs for every group: [four].
HWY_INLINE void StoreTransposed(Floats16 a, Floats16 b, Floats16 c, Floats16 d, float* first,
                                float* second) {
#pragma GCC unroll 4
  for (size_t n = 0; n < kSlices; ++n) {
    FloatSlice of[4] = {SliceOf(a, n), SliceOf(b, n), SliceOf(c, n), SliceOf(d, n)};
    Transpose(of);
    StoreSlice(of[0], first + n * kSliceBytes / sizeof(float));
    StoreSlice(of[1], second + n * kSliceBytes / sizeof(float));
  }
}

// The piece at `data` of each of four outputs.
template <class Format>
HWY_INLINE void DecodeStripPiece(const uint8_t* const (&data)[kStripOuts], StripPiece& strip) {
  Bytes64 codes[2][kStripOuts];
#pragma GCC unroll 4
  for (size_t o = 0; o < kStripOuts; ++o) {
    const Format piece{{data[o]}};
    SplitHalves(piece.template Codes<0>(), piece.template Codes<1>(), codes[0][o], codes[1][o]);
  }
  StoreTransposed(codes, strip.codes[0]);
#pragma GCC unroll 4
  for (size_t o = 0; o < kStripOuts; ++o) {
    const Format piece{{data[o]}};
    SplitHalves(piece.template Codes<2>(), piece.template Codes<3>(), codes[0][o], codes[1][o]);
  }
  StoreTransposed(codes, strip.codes[1]);
  using Scales = OrderedScales<Format>;
  Scales scales[kStripOuts] = {Scales(Format{{data[0]}}), Scales(Format{{data[1]}}),
                               Scales(Format{{data[2]}}), Scales(Format{{data[3]}})};
#pragma GCC unroll 2
  for (int half = 0; half < Scales::kHalves; ++half) {
    StoreTransposed(scales[0].scales[half], scales[1].scales[half], scales[2].scales[half],
                    scales[3].scales[half], strip.scales[0][half], strip.scales[1][half]);
    if constexpr (Format::kHasMinima) {
      StoreTransposed(scales[0].subtracted[half], scales[1].subtracted[half],
                      scales[2].subtracted[half], scales[3].subtracted[half],
                      strip.subtracted[0][half], strip.subtracted[1][half]);
    }
  }
}

// `num_pieces` pieces from `piece` on of outputs out to out + kStripOuts - 1.
template <class Format>
void DecodeStrip(const WeightView& weight, size_t out, size_t piece, size_t num_pieces,
                 StripPiece* strip) {
  using R = Rows<Format>;
  const auto row_bytes = static_cast<size_t>(RowBytes(weight.format, weight.cols));
  const auto* first = reinterpret_cast<const uint8_t*>(weight.data) + out * row_bytes;
  for (size_t p = piece; p < piece + num_pieces; ++p) {
    const size_t at = p * R::kPieceBytes;
    const uint8_t* data[kStripOuts];
    for (size_t o = 0; o < kStripOuts; ++o) data[o] = first + o * row_bytes + at;
    if (at + R::kPieceBytes <= row_bytes) {
      DecodeStripPiece<Format>(data, *strip++);
      continue;
    }
    const size_t rest = row_bytes - at;
    const typename R::Padded padded[kStripOuts] = {
        {data[0], rest}, {data[1], rest}, {data[2], rest}, {data[3], rest}};
    for (size_t o = 0; o < kStripOuts; ++o) data[o] = padded[o].bytes;
    DecodeStripPiece<Format>(data, *strip++);
  }
}

template <class Format>
void ExpandPiece(const uint8_t* data, float* HWY_RESTRICT out) {
  const Format piece{{data}};
  Floats16 scale_vector;
  Floats16 minimum_vector;
  piece.Scales(scale_vector, minimum_vector);
  HWY_ALIGN float scales[16];
  HWY_ALIGN float minima[16] = {};
  HWY_ALIGN uint8_t codes[kPieceValues];
  StoreFloats(scale_vector, scales);
  if constexpr (Format::kHasMinima) StoreFloats(minimum_vector, minima);
  StoreBytes(piece.template Codes<0>(), codes);
  StoreBytes(piece.template Codes<1>(), codes + 64);
  StoreBytes(piece.template Codes<2>(), codes + 128);
  StoreBytes(piece.template Codes<3>(), codes + 192);
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> d32;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const auto offset = hn::Set(d32, Format::kOffset);
  for (size_t group = 0; group < 16; ++group) {
    const auto scale = hn::Set(d, scales[group]);
    const auto minimum = hn::Set(d, minima[group]);
    for (size_t i = 16 * group; i < 16 * group + 16; i += hn::Lanes(d)) {
      const auto code = hn::Sub(hn::PromoteTo(d32, hn::LoadU(d8, codes + i)), offset);
      auto value = hn::Mul(scale, hn::ConvertTo(d, code));
      if constexpr (Format::kHasMinima) value = hn::Sub(value, minimum);
      hn::StoreU(value, d, out + i);
    }
  }
}

template <class Format>
void ExpandPieces(const std::byte* data, size_t count, float* out) {
  using R = Rows<Format>;
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  for (; count >= kPieceValues; count -= kPieceValues, bytes += R::kPieceBytes) {
    ExpandPiece<Format>(bytes, out);
    out += kPieceValues;
  }
  if (count == 0) return;
  constexpr auto kValues = static_cast<size_t>(Format::kValues);
  const typename R::Padded padded(bytes, (count + kValues - 1) / kValues * Format::kBytes);
  float values[kPieceValues];
  ExpandPiece<Format>(padded.bytes, values);
  std::memcpy(out, values, count * sizeof(float));
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
constexpr bool kMayHaveDotBytes = true;
#else
constexpr bool kMayHaveDotBytes = false;
#endif

struct BlockFunctions {
  void (*few_rows)(const BlockArgs& args, size_t begin, size_t end);
  void (*few_rows_with_dot)(const BlockArgs& args, size_t begin, size_t end);
  void (*decode_strip)(const WeightView& weight, size_t out, size_t piece, size_t num_pieces,
                       StripPiece* strip);
  void (*add_tile)(const TileArgs& args, bool is_first);
  void (*add_tile_with_dot)(const TileArgs& args, bool is_first);
  int offset;
  void (*expand)(const std::byte* data, size_t count, float* out);
};

template <class Format>
constexpr BlockFunctions FunctionsOf() {
  return {FewRows<Format, false>,
          FewRows<Format, kMayHaveDotBytes>,
          DecodeStrip<Format>,
          AddTile<KindOf<Format, false> >,
          AddTile<KindOf<Format, kMayHaveDotBytes> >,
          Format::kOffset,
          ExpandPieces<Format>};
}

constexpr BlockFunctions kBlockFormats[] = {
#define PMKVQ_ROW(id, name, block_values, block_bytes) FunctionsOf<Block##id>(),
    PMKVQ_BLOCK_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
};

// Rows from `row` on, at most kTileRows, and outputs from `begin` on, whole tiles of a panel.
void ManyRows(const BlockFunctions& functions, bool dot_bytes, const BlockArgs& args, size_t row,
              size_t begin, size_t end) {
  const size_t rows = std::min(kTileRows, args.num_rows - row);
  const size_t pieces = NumPieces(args.weight->cols);
  const auto num_outs = static_cast<size_t>(args.weight->rows);
  const size_t strips = (end - begin) / kStripOuts;
  // Rows without a number of their own go to a place that nobody reads.
  const size_t row_places = hwy::RoundUpTo(rows, kRowsAtATime);
  constexpr size_t kFloatsOfPiece = sizeof(StripPiece) / sizeof(float);
  constexpr size_t kFloatsOfSums = sizeof(StripSums) / sizeof(float);
  thread_local AlignedVector<float> scratch;
  const size_t needed =
      kStrips * kTilePieces * kFloatsOfPiece + strips * row_places * kFloatsOfSums;
  if (scratch.size() < needed) scratch.resize(needed);
  auto* const decoded = reinterpret_cast<StripPiece*>(scratch.data());
  auto* const sums = reinterpret_cast<StripSums*>(decoded + kStrips * kTilePieces);
  const auto add = dot_bytes ? functions.add_tile_with_dot : functions.add_tile;
  for (size_t piece = 0; piece < pieces; piece += kTilePieces) {
    TileArgs tile;
    tile.num_pieces = std::min(kTilePieces, pieces - piece);
    tile.offset = functions.offset;
    for (size_t strip = 0; strip < strips; strip += kStrips) {
      for (size_t s = 0; s < kStrips; ++s) {
        tile.strips[s] = decoded + s * kTilePieces;
        functions.decode_strip(*args.weight, begin + (strip + s) * kStripOuts, piece,
                               tile.num_pieces, decoded + s * kTilePieces);
      }
      for (size_t r = 0; r < rows; r += kRowsAtATime) {
        for (size_t k = 0; k < kRowsAtATime; ++k) {
          tile.x[k] = args.x + (row + std::min(r + k, rows - 1)) * pieces + piece;
          for (size_t s = 0; s < kStrips; ++s) {
            tile.sums[k][s] = sums + (strip + s) * row_places + r + k;
          }
        }
        add(tile, piece == 0);
      }
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    float* const y = args.y + (row + r) * num_outs;
    for (size_t strip = 0; strip < strips; ++strip) {
      const auto& of = sums[strip * row_places + r].of;
      for (size_t o = 0; o < kStripOuts; ++o) {
        const size_t out = begin + strip * kStripOuts + o;
        const float sum = ((of[0][o] + of[1][o]) + (of[0][8 + o] + of[1][8 + o])) +
                          ((of[0][4 + o] + of[1][4 + o]) + (of[0][12 + o] + of[1][12 + o]));
        y[out] = args.bias == nullptr ? sum : sum + args.bias[out];
      }
    }
  }
}

void BlockProduct(size_t format, bool dot_bytes, const BlockArgs& args, size_t begin, size_t end) {
  const BlockFunctions& functions = kBlockFormats[format];
  if (args.num_rows >= kLeastTileRows && args.weight->cols > 0) {
    const size_t whole = begin + (end - begin) / kTileOuts * kTileOuts;
    for (; begin < whole; begin = std::min(whole, begin + kPanelOuts)) {
      for (size_t row = 0; row < args.num_rows; row += kTileRows) {
        ManyRows(functions, dot_bytes, args, row, begin, std::min(whole, begin + kPanelOuts));
      }
    }
  }
  (dot_bytes ? functions.few_rows_with_dot : functions.few_rows)(args, begin, end);
}

void Expand(size_t format, const std::byte* data, size_t count, float* out) {
  kBlockFormats[format].expand(data, count, out);
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(PackBlockRowsOf);
HWY_EXPORT(BlockProduct);
HWY_EXPORT(Expand);
HWY_EXPORT(Target);

namespace {

size_t IndexOf(WeightFormat format) {
  PMKVQ_DCHECK(IsBlockFormat(format));
  return static_cast<size_t>(format) - kNumValueFormats;
}

struct DotBytes {
  bool avx512 = false;
  bool vex = false;
};

DotBytes OfThisProcessor() {
  DotBytes found;
#if defined(__x86_64__)
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) found.avx512 = (c >> 11 & 1) != 0;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) found.vex = (a >> 4 & 1) != 0;
#endif
  return found;
}

std::atomic<bool> dot_bytes_allowed{true};

}  // namespace

bool HasDotBytes() {
  static const DotBytes found = OfThisProcessor();
  if (!dot_bytes_allowed.load(std::memory_order_relaxed)) return false;
  const int64_t target = BlockKernelTarget();
  return target == HWY_AVX3 ? found.avx512 : target == HWY_AVX2 && found.vex;
}

void SetDotBytes(bool allowed) { dot_bytes_allowed = allowed; }

size_t PackedBlockFloats(int64_t cols) {
  return NumPieces(cols) * sizeof(PackedPiece) / sizeof(float);
}

void PackBlockRows(const float* x, int64_t num_rows, int64_t cols, float* packed) {
  HWY_DYNAMIC_DISPATCH(PackBlockRowsOf)
  (x, num_rows, cols, reinterpret_cast<PackedPiece*>(packed));
}

void BlockMatMul(const float* packed, int64_t num_rows, const WeightView& weight, const float* bias,
                 int64_t begin, int64_t end, float* y) {
  const BlockArgs args{reinterpret_cast<const PackedPiece*>(packed), static_cast<size_t>(num_rows),
                       &weight, bias, y};
  HWY_DYNAMIC_DISPATCH(BlockProduct)
  (IndexOf(weight.format), HasDotBytes(), args, static_cast<size_t>(begin),
   static_cast<size_t>(end));
}

void ExpandBlocks(const std::byte* data, WeightFormat format, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(Expand)(IndexOf(format), data, static_cast<size_t>(count), out);
}

int64_t BlockKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
