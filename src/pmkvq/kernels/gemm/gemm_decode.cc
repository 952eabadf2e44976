#include "pmkvq/kernels/gemm/gemm_decode.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/block_product.h"

// Largest chunk of any instruction set: two AVX-512 vectors of floats. (HWY_MAX_BYTES would be the
// baseline's outside of the per-target code.)
#ifndef PMKVQ_GEMM_DECODE_ONCE
#define PMKVQ_GEMM_DECODE_ONCE
namespace pmkvq::internal {
namespace {
constexpr size_t kMaxChunk = 32;
// A chunk never straddles two blocks of quantised weights.
constexpr bool ChunksLieInBlocks() {
  for (const WeightLayout& layout : kWeightLayouts) {
    if (layout.block_values != 1 && layout.block_values % static_cast<int64_t>(kMaxChunk) != 0) {
      return false;
    }
  }
  return true;
}
static_assert(ChunksLieInBlocks());
}  // namespace
}  // namespace pmkvq::internal
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/gemm/gemm_decode.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/cache_control.h"
#include "pmkvq/kernels/gemm/weight_formats-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

static_assert(2 * hn::MaxLanes(D()) <= kMaxChunk);

// x of one chunk in the order of Weight::Load.
HWY_INLINE void PackChunk(const float* HWY_RESTRICT x, bool even_odd, float* HWY_RESTRICT packed) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V lower = hn::LoadU(d, x);
  V upper = hn::LoadU(d, x + lanes);
#if HWY_TARGET != HWY_SCALAR
  if (even_odd) {
    const V even = hn::ConcatEven(d, upper, lower);
    upper = hn::ConcatOdd(d, upper, lower);
    lower = even;
  }
#else
  (void)even_odd;
#endif
  hn::StoreU(lower, d, packed);
  hn::StoreU(upper, d, packed + lanes);
}

// Packed layout: [chunk][row][chunk size], so that a block of rows is one stream.
void PackRowsInOrder(const float* HWY_RESTRICT x, int64_t num_rows, int64_t cols, bool even_odd,
                     float* HWY_RESTRICT packed) {
  const size_t chunk = ChunkSize();
  const size_t num_cols = static_cast<size_t>(cols);
  const size_t rows = static_cast<size_t>(num_rows);
  for (size_t begin = 0; begin < num_cols; begin += chunk) {
    for (size_t row = 0; row < rows; ++row) {
      const float* source = x + row * num_cols + begin;
      float* target = packed + begin * rows + row * chunk;
      if (begin + chunk <= num_cols) {
        PackChunk(source, even_odd, target);
      } else {
        HWY_ALIGN float padded[2 * hn::MaxLanes(D())] = {};
        std::memcpy(padded, source, (num_cols - begin) * sizeof(float));
        PackChunk(padded, even_odd, target);
      }
    }
  }
}

// Makes the compiler load a value once, where it would rather load it for each product that it is
// in: loads, not products, then bound the loop.
HWY_INLINE void KeepInRegister(V& v) {
#if HWY_ARCH_X86
  __asm__("" : "+v"(v.raw));
#else
  (void)v;
#endif
}

// Adds half a chunk of kRows rows of x times kOuts rows of W to the accumulators. One half's
// weights at a time, so that they fit the registers beside the accumulators.
template <class Weight, size_t kHalf, int kRows, int kOuts>
HWY_INLINE void AddHalf(const float* HWY_RESTRICT x, const typename Weight::Raw* const (&w)[kOuts],
                        size_t col, V (&acc)[kRows][kOuts]) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const size_t offset = Weight::OffsetOf(col);
  V weights[kOuts];
#pragma GCC unroll 8
  for (int o = 0; o < kOuts; ++o) weights[o] = Weight::template Load<kHalf>(w[o] + offset, col);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    V values = hn::Load(d, x + (2 * static_cast<size_t>(r) + kHalf) * lanes);
    KeepInRegister(values);
#pragma GCC unroll 8
    for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::MulAdd(values, weights[o], acc[r][o]);
  }
}

// The whole chunk; `w` point to elements of each row from which `col` counts.
template <class Weight, int kRows, int kOuts>
HWY_INLINE void AddChunk(const float* HWY_RESTRICT x, const typename Weight::Raw* const (&w)[kOuts],
                         size_t col, V (&acc)[kRows][kOuts]) {
  AddHalf<Weight, 0>(x, w, col, acc);
  AddHalf<Weight, 1>(x, w, col, acc);
}

struct DecodeArgs {
  const float* packed;
  size_t num_rows;
  const WeightView* weight;
  const float* bias;
  float* y;

  size_t cols() const { return static_cast<size_t>(weight->cols); }
  size_t num_outs() const { return static_cast<size_t>(weight->rows); }
};

constexpr size_t kLineBytes = 64;

template <class Weight>
constexpr size_t ChunkBytes() {
  return 2 * hn::MaxLanes(D()) * sizeof(typename Weight::Raw);
}

// What comes into the cache while a tile is multiplied: for each of its chunks, that of kOuts
// others. Where several blocks of rows use the tile one after the other, each fetches its share.
template <class Weight, int kOuts>
struct Fetch {
  using Raw = typename Weight::Raw;
  const Raw* next = nullptr;  // Null: nothing.
  size_t spacing = 0;         // Between the outputs' chunks.
  size_t advance = 1;         // How much faster than its column a chunk's place moves.
  size_t log_shares = 0;      // Of 2^log_shares chunks one fetches.
  size_t first_col = 0;       // What it fetches starts there.

  // `col` counts from the tile's first.
  HWY_INLINE void operator()(size_t col) const {
    if (next == nullptr || (col & ((ChunkSize() << log_shares) - 1)) != 0) return;
    const Raw* place = next + advance * Weight::OffsetOf(first_col + (col >> log_shares));
    for (int o = 0; o < kOuts; ++o, place += spacing) {
      const char* bytes = reinterpret_cast<const char*>(place);
      for (size_t b = 0; b < ChunkBytes<Weight>(); b += kLineBytes) hwy::Prefetch(bytes + b);
    }
  }
};

// Part of a product: kRows rows of x from `row` on, kOuts outputs from `out` on, columns
// [begin, end). `begin` starts a block of quantised weights, and `end` does or is the last.
struct TilePlace {
  size_t row;
  size_t out;
  size_t begin;
  size_t end;
};

// Sums of a tile stay in registers; between tiles of the same outputs they are kept in `sums`,
// unrounded, so that cutting the columns into tiles changes no bit. The last tile writes y.
// kWhole: the tile has all columns, and `sums` are not used.
template <bool kWhole, class Weight, int kRows, int kOuts>
HWY_INLINE void DotTile(const DecodeArgs& args, const TilePlace& place, float* HWY_RESTRICT sums,
                        const Fetch<Weight, kOuts>& fetch) {
  using Raw = typename Weight::Raw;
  const D d;
  const size_t lanes = hn::Lanes(d);
  const size_t chunk = ChunkSize();
  const size_t row_stride = Weight::RowStride(args.cols());
  const size_t x_stride = args.num_rows;  // In floats per column: all rows lie side by side.
  const size_t num_cols = place.end - place.begin;
  const size_t full = num_cols / chunk * chunk;
  const float* x = args.packed + place.begin * x_stride + place.row * chunk;

  const Raw* w[kOuts];
  for (int o = 0; o < kOuts; ++o) {
    w[o] = reinterpret_cast<const Raw*>(args.weight->data) +
           (place.out + static_cast<size_t>(o)) * row_stride + Weight::OffsetOf(place.begin);
  }
  V acc[kRows][kOuts];
  if (kWhole || place.begin == 0) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::Zero(d);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int o = 0; o < kOuts; ++o) {
        acc[r][o] = hn::Load(d, sums + static_cast<size_t>(r * kOuts + o) * lanes);
      }
    }
  }
  for (size_t k = 0; k < full; k += chunk) {
    fetch(k);
    AddChunk<Weight, kRows, kOuts>(x + k * x_stride, w, k, acc);
  }
  if (full != num_cols && Weight::kPadded) {
    AddChunk<Weight, kRows, kOuts>(x + full * x_stride, w, full, acc);
  } else if (full != num_cols) {
    HWY_ALIGN Raw padded[kOuts][2 * hn::MaxLanes(D())] = {};
    const Raw* tail[kOuts];
    for (int o = 0; o < kOuts; ++o) {
      std::memcpy(padded[o], w[o] + full, (num_cols - full) * sizeof(Raw));
      tail[o] = padded[o];
    }
    AddChunk<Weight, kRows, kOuts>(x + full * x_stride, tail, 0, acc);
  }
  if (!kWhole && place.end != args.cols()) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int o = 0; o < kOuts; ++o) {
        hn::Store(acc[r][o], d, sums + static_cast<size_t>(r * kOuts + o) * lanes);
      }
    }
    return;
  }
  // Unrolled like all loops over `acc`: an index that the compiler does not know would put it into
  // memory for the whole function.
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* y = args.y + (place.row + static_cast<size_t>(r)) * args.num_outs() + place.out;
#pragma GCC unroll 8
    for (int o = 0; o < kOuts; ++o) {
      const float sum = hn::GetLane(hn::SumOfLanes(d, acc[r][o]));
      y[o] = args.bias == nullptr ? sum : sum + args.bias[place.out + static_cast<size_t>(o)];
    }
  }
}

// One row of x is bound by memory, which is fastest when it is read as one stream in the order of
// addresses. So few outputs are computed at a time: one cache line of weights per step. (A step
// takes the latency of two additions, 8 cycles; one line in 8 cycles is faster than memory.) The
// prefetch follows the order of addresses for any number of outputs.
template <class Weight>
constexpr int OutsOfOneRow() {
  constexpr size_t kOuts = kLineBytes / ChunkBytes<Weight>();
  return kOuts < 1 ? 1 : kOuts > 4 ? 4 : static_cast<int>(kOuts);
}
// Far enough that memory has answered in time; near enough that the lines are still in the L1
// cache.
constexpr size_t kStreamAheadBytes = 8192;

template <class Weight, int kOuts>
HWY_INLINE void OneRow(const DecodeArgs& args, size_t out) {
  using Raw = typename Weight::Raw;
  const size_t row_stride = Weight::RowStride(args.cols());
  // The last output of the next block is needed that much before its turn in the stream.
  const size_t ahead = kStreamAheadBytes / sizeof(Raw) + (kOuts - 1) * row_stride;
  const Raw* w = reinterpret_cast<const Raw*>(args.weight->data) + out * row_stride;
  Fetch<Weight, kOuts> fetch;
  if (ahead + kOuts * row_stride < (args.num_outs() - out) * row_stride) {
    fetch = {w + ahead, ChunkSize(), kOuts};
  }
  DotTile<true, Weight, 1, kOuts>(args, {0, out, 0, args.cols()}, nullptr, fetch);
}

// Four rows by three outputs: 12 accumulators, three weights and one x fill the 16 registers of
// AVX2. With 32 registers it is five outputs: six would leave none to spare, and the compiler then
// keeps a sum in memory. Panels are outputs that share the columns of x in the first cache.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kOutsOfManyRows = 5;
constexpr size_t kPanelOuts = 20;
#else
constexpr int kOutsOfManyRows = 3;
constexpr size_t kPanelOuts = 30;
#endif
constexpr size_t kRowsOfBlock = 4;
static_assert(kPanelOuts % kOutsOfManyRows == 0 && kDecodeGrain % kPanelOuts == 0);

// All rows of x for kOuts outputs: blocks of four rows, then the remaining rows. `tile_cols`:
// columns of a whole tile, of which the last may have fewer.
template <class Weight, int kOuts>
HWY_INLINE void AllRows(const DecodeArgs& args, TilePlace place, size_t tile_cols, float* sums,
                        Fetch<Weight, kOuts> fetch) {
  const size_t sums_of_row = kOuts * hn::Lanes(D());
  for (; place.row + kRowsOfBlock <= args.num_rows; place.row += kRowsOfBlock) {
    DotTile<false, Weight, kRowsOfBlock, kOuts>(args, place, sums + place.row * sums_of_row, fetch);
    fetch.first_col += tile_cols >> fetch.log_shares;
    if (fetch.first_col == tile_cols) fetch.next = nullptr;
  }
  float* rest = sums + place.row * sums_of_row;
  switch (args.num_rows - place.row) {
    case 3:
      return DotTile<false, Weight, 3, kOuts>(args, place, rest, fetch);
    case 2:
      return DotTile<false, Weight, 2, kOuts>(args, place, rest, fetch);
    case 1:
      return DotTile<false, Weight, 1, kOuts>(args, place, rest, fetch);
    default:
      return;
  }
}

// Outputs [begin, end), a multiple of kOuts and at most kPanelOuts, in tiles of columns: those of
// x stay in the first cache for all outputs.
template <class Weight, int kOuts>
HWY_INLINE void Panel(const DecodeArgs& args, size_t begin, size_t end) {
  using Raw = typename Weight::Raw;
  HWY_ALIGN float sums[kPanelOuts * kMaxPackedRows * hn::MaxLanes(D())];
  const size_t lanes = hn::Lanes(D());
  const size_t cols = args.cols();
  const size_t row_stride = Weight::RowStride(cols);
  // 5 to 10 KiB of BF16 weights ahead, and 8 to 16 KiB of x.
  const bool few_rows = args.num_rows <= kRowsOfBlock;
  const size_t tile_cols = few_rows ? 512 : 256;
  const size_t tiles_ahead = few_rows ? 1 : 4;
  const size_t num_groups = (end - begin) / kOuts;
  const size_t num_tiles = num_groups * (cols == 0 ? 1 : (cols + tile_cols - 1) / tile_cols);
  for (size_t tile = 0; tile < num_tiles; ++tile) {
    const size_t group = tile % num_groups;
    const size_t col = tile / num_groups * tile_cols;
    // Behind the last tile comes the next panel.
    const size_t next = tile + tiles_ahead;
    const size_t next_group = next < num_tiles ? next % num_groups : num_groups + next - num_tiles;
    const size_t next_out = begin + next_group * kOuts;
    const size_t next_col = next < num_tiles ? next / num_groups * tile_cols : 0;
    Fetch<Weight, kOuts> fetch;
    if (next_out + kOuts < args.num_outs()) {
      fetch.next = reinterpret_cast<const Raw*>(args.weight->data) + next_out * row_stride +
                   Weight::OffsetOf(next_col);
      fetch.spacing = row_stride;
      fetch.log_shares =
          few_rows ? 0 : static_cast<size_t>(std::bit_width(args.num_rows / kRowsOfBlock)) - 1;
    }
    const TilePlace place{0, begin + group * kOuts, col, std::min(cols, col + tile_cols)};
    AllRows<Weight, kOuts>(args, place, tile_cols, sums + group * kOuts * args.num_rows * lanes,
                           fetch);
  }
}

template <class Weight>
void OutputRange(const DecodeArgs& args, size_t begin, size_t end) {
  size_t out = begin;
  if (args.num_rows == 1) {
    constexpr int kOuts = OutsOfOneRow<Weight>();
    for (; out + kOuts <= end; out += kOuts) OneRow<Weight, kOuts>(args, out);
    for (; out < end; ++out) OneRow<Weight, 1>(args, out);
    return;
  }
  while (out + kOutsOfManyRows <= end) {
    const size_t outs = std::min(kPanelOuts, (end - out) / kOutsOfManyRows * kOutsOfManyRows);
    Panel<Weight, kOutsOfManyRows>(args, out, out + outs);
    out += outs;
  }
  for (; out < end; ++out) Panel<Weight, 1>(args, out, out + 1);
}

template <class Weight>
void ExpandNatural(const std::byte* data, size_t count, float* out) {
  using Raw = typename Weight::Raw;
  const D d;
  const size_t lanes = hn::Lanes(d);
  const size_t chunk = ChunkSize();
  const Raw* raw = reinterpret_cast<const Raw*>(data);
  size_t i = 0;
  for (; i + chunk <= count; i += chunk) {
    const Raw* p = raw + Weight::OffsetOf(i);
    hn::StoreU(Weight::template Load<0>(p, i), d, out + i);
    hn::StoreU(Weight::template Load<1>(p, i), d, out + i + lanes);
  }
  if (i == count) return;
  // The rest of a row that does not end with a chunk.
  HWY_ALIGN Raw padded[2 * hn::MaxLanes(D())] = {};
  HWY_ALIGN float expanded[2 * hn::MaxLanes(D())];
  const Raw* p = raw + Weight::OffsetOf(i);
  size_t col = i;
  if constexpr (!Weight::kPadded) {
    std::memcpy(padded, p, (count - i) * sizeof(Raw));
    p = padded;
    col = 0;
  }
  hn::Store(Weight::template Load<0>(p, col), d, expanded);
  hn::Store(Weight::template Load<1>(p, col), d, expanded + lanes);
  std::memcpy(out + i, expanded, (count - i) * sizeof(float));
}

// What the kernels do with one format.
struct FormatFunctions {
  bool even_odd;  // How x is packed for the product.
  void (*product)(const DecodeArgs& args, size_t begin, size_t end);
  void (*expand)(const std::byte* data, size_t count, float* out);
};

template <class Weight>
constexpr FormatFunctions FunctionsOf() {
  return {Weight::kEvenOdd, OutputRange<Weight>, ExpandNatural<typename Weight::InOrder>};
}

constexpr FormatFunctions kFormats[] = {
#define PMKVQ_ROW(id, name, block_values, block_bytes) FunctionsOf<Weight##id>(),
    PMKVQ_VALUE_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
};

const FormatFunctions& FunctionsOf(WeightFormat format) {
  return kFormats[static_cast<size_t>(format)];
}

void PackRows(const float* x, int64_t num_rows, int64_t cols, WeightFormat format, float* packed) {
  PackRowsInOrder(x, num_rows, cols, FunctionsOf(format).even_odd, packed);
}

void DecodeRange(const float* packed, int64_t num_rows, const WeightView& weight, const float* bias,
                 int64_t begin, int64_t end, float* y) {
  const DecodeArgs args{packed, static_cast<size_t>(num_rows), &weight, bias, y};
  FunctionsOf(weight.format).product(args, static_cast<size_t>(begin), static_cast<size_t>(end));
}

void Expand(const std::byte* data, WeightFormat format, int64_t count, float* out) {
  FunctionsOf(format).expand(data, static_cast<size_t>(count), out);
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(PackRows);
HWY_EXPORT(DecodeRange);
HWY_EXPORT(Expand);
HWY_EXPORT(Target);

size_t PackedDecodeFloats(int64_t num_rows, int64_t cols, WeightFormat format) {
  if (IsBlockFormat(format)) return static_cast<size_t>(num_rows) * PackedBlockFloats(cols);
  const size_t chunks = (static_cast<size_t>(cols) + kMaxChunk - 1) / kMaxChunk;
  return static_cast<size_t>(num_rows) * chunks * kMaxChunk;
}

void PackDecodeRows(const float* x, int64_t num_rows, int64_t cols, WeightFormat format,
                    float* packed) {
  if (IsBlockFormat(format)) return PackBlockRows(x, num_rows, cols, packed);
  HWY_DYNAMIC_DISPATCH(PackRows)(x, num_rows, cols, format, packed);
}

void DecodeMatMul(const float* packed, int64_t num_rows, const WeightView& weight,
                  const float* bias, int64_t begin, int64_t end, float* y) {
  if (IsBlockFormat(weight.format)) {
    return BlockMatMul(packed, num_rows, weight, bias, begin, end, y);
  }
  PMKVQ_DCHECK(num_rows <= kMaxPackedRows);
  HWY_DYNAMIC_DISPATCH(DecodeRange)(packed, num_rows, weight, bias, begin, end, y);
}

void ExpandToFloat(const std::byte* data, WeightFormat format, int64_t count, float* out) {
  if (IsBlockFormat(format)) return ExpandBlocks(data, format, count, out);
  HWY_DYNAMIC_DISPATCH(Expand)(data, format, count, out);
}

int64_t DecodeKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
