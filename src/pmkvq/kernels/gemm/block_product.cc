#include "pmkvq/kernels/gemm/block_product.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "pmkvq/base/check.h"

#ifndef PMKVQ_BLOCK_PRODUCT_ONCE
#define PMKVQ_BLOCK_PRODUCT_ONCE
#if defined(__x86_64__)
#include <cpuid.h>
#endif
namespace pmkvq::internal {
namespace {

constexpr size_t kPieceValues = 256;
constexpr size_t kGroupValues = 32;

// 256 values of a row of x.
struct PackedPiece {
  alignas(64) int8_t codes[kPieceValues];
  float scales[16];  // Of every 16 codes: those of groups, twice.
  float sums[16];    // Of every 16 codes, times their scale.
};
static_assert(sizeof(PackedPiece) % sizeof(float) == 0);

size_t NumPieces(int64_t cols) {
  return (static_cast<size_t>(cols) + kPieceValues - 1) / kPieceValues;
}

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

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Where rounding begins to divide by numbers whose inverse is no float.
constexpr float kLeastMagnitude = 0x1p-119f;

// 32 values to codes and their scale.
float RoundGroup(const float* HWY_RESTRICT x, int8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> d32;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const size_t lanes = hn::Lanes(d);
  // Magnitudes as bits are ordered like the magnitudes, infinities and NaN above all numbers.
  auto largest = hn::Zero(d32);
  for (size_t i = 0; i < kGroupValues; i += lanes) {
    largest = hn::Max(largest, hn::BitCast(d32, hn::Abs(hn::LoadU(d, x + i))));
  }
  const auto magnitude = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(d32, largest)));
  if (!(magnitude >= kLeastMagnitude && std::isfinite(magnitude))) {
    std::memset(codes, 0, kGroupValues);
    return magnitude < kLeastMagnitude ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const auto inverse = hn::Set(d, 127.0f / magnitude);
  for (size_t i = 0; i < kGroupValues; i += lanes) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
    hn::StoreU(hn::DemoteTo(d8, rounded), d8, codes + i);
  }
  return magnitude / 127.0f;
}

void RoundPiece(const float* HWY_RESTRICT x, PackedPiece& piece) {
  for (size_t group = 0; group < kPieceValues / kGroupValues; ++group) {
    const float scale = RoundGroup(x + group * kGroupValues, piece.codes + group * kGroupValues);
    for (size_t half = 2 * group; half < 2 * group + 2; ++half) {
      int sum = 0;
      for (size_t i = 16 * half; i < 16 * half + 16; ++i) sum += piece.codes[i];
      piece.scales[half] = scale;
      piece.sums[half] = scale * static_cast<float>(sum);
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
    alignas(64) uint8_t bytes[kPieceBytes];
    Padded(const uint8_t* data, size_t num_bytes) {
      std::memcpy(bytes, data, num_bytes);
      std::memset(bytes + num_bytes, 0, kPieceBytes - num_bytes);
    }
  };
};

// What a format subtracts from scale * code.
template <class Format>
HWY_INLINE void ScalesOf(const Format& piece, Floats16& scales, Floats16& minima) {
  piece.Scales(scales, minima);
  if constexpr (!Format::kHasMinima) {
    minima = Mul(scales, SetFloats(static_cast<float>(Format::kOffset)));
  }
  static_assert(!Format::kHasMinima || Format::kOffset == 0);
}

template <class Format, bool kDotBytes, int kChunk, int kRows>
HWY_INLINE void AddChunk(const Format& piece, const PackedPiece* const (&x)[kRows],
                         const Floats16 (&scales)[kRows], Floats16 (&sums)[kRows]) {
  const Bytes64 codes = piece.template Codes<kChunk>();
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Ints16 dot = Dot<kDotBytes, Format::kMostCode>(codes, x[r]->codes + 64 * kChunk);
    sums[r] = Add(sums[r], Mul(ToFloats(dot), Spread<kChunk>(scales[r])));
  }
}

template <class Format, bool kDotBytes, int kRows>
HWY_INLINE void AddPiece(const uint8_t* data, const PackedPiece* const (&x)[kRows],
                         Floats16 (&sums)[kRows]) {
  const Format piece{{data}};
  Floats16 scales;
  Floats16 minima;
  ScalesOf(piece, scales, minima);
  const Floats16 subtracted = Mul(minima, SetFloats(-1.0f));
  Floats16 scaled[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    scaled[r] = Mul(scales, LoadFloats(x[r]->scales));
    sums[r] = Add(sums[r], Mul(subtracted, LoadFloats(x[r]->sums)));
  }
  AddChunk<Format, kDotBytes, 0, kRows>(piece, x, scaled, sums);
  AddChunk<Format, kDotBytes, 1, kRows>(piece, x, scaled, sums);
  AddChunk<Format, kDotBytes, 2, kRows>(piece, x, scaled, sums);
  AddChunk<Format, kDotBytes, 3, kRows>(piece, x, scaled, sums);
}

HWY_INLINE float SumOf(Floats16 sums) {
  HWY_ALIGN float lanes[16];
  StoreFloats(sums, lanes);
  for (const size_t half : {8u, 4u, 2u, 1u}) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

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
void OutputRange(const BlockArgs& args, size_t begin, size_t end) {
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
  void (*product)(const BlockArgs& args, size_t begin, size_t end);
  void (*product_with_dot)(const BlockArgs& args, size_t begin, size_t end);
  void (*expand)(const std::byte* data, size_t count, float* out);
};

constexpr BlockFunctions kBlockFormats[] = {
#define PMKVQ_ROW(id, name, block_values, block_bytes)                      \
  {OutputRange<Block##id, false>, OutputRange<Block##id, kMayHaveDotBytes>, \
   ExpandPieces<Block##id>},
    PMKVQ_BLOCK_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
};

void BlockProduct(size_t format, bool dot_bytes, const BlockArgs& args, size_t begin, size_t end) {
  const BlockFunctions& functions = kBlockFormats[format];
  (dot_bytes ? functions.product_with_dot : functions.product)(args, begin, end);
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
