#include "pmkvq/kernels/gemm/gemm_decode.h"

#include <cstring>

#include "pmkvq/kernels/gemm/weight_q8.h"

// Largest chunk of any instruction set: two AVX-512 vectors of floats. (HWY_MAX_BYTES would be the
// baseline's outside of the per-target code.)
#ifndef PMKVQ_GEMM_DECODE_ONCE
#define PMKVQ_GEMM_DECODE_ONCE
namespace pmkvq::internal {
namespace {
constexpr size_t kMaxChunk = 32;
// A chunk never straddles two groups of quantised weights.
static_assert(kQ8Group % kMaxChunk == 0);
}  // namespace
}  // namespace pmkvq::internal
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/gemm/gemm_decode.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// One step of a dot product takes a chunk of two float vectors.
HWY_INLINE size_t ChunkSize() { return 2 * hn::Lanes(D()); }
static_assert(2 * hn::MaxLanes(D()) <= kMaxChunk);

// Where a weight type keeps the elements of a row, in units of Raw.
template <class T>
struct PlainLayout {
  using Raw = T;
  // Rows end with their last element, not with a chunk.
  static constexpr bool kPadded = false;
  static HWY_INLINE size_t RowStride(size_t cols) { return cols; }
  static HWY_INLINE size_t OffsetOf(size_t col) { return col; }
};

// How a chunk of each weight type becomes two vectors, kHalf 0 and 1; `p` points to its first
// element, which is that of column `col`. The order of elements over the two is free as long as
// PackRow arranges x alike.
struct WeightF32 : PlainLayout<float> {
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    return hn::LoadU(d, p + kHalf * hn::Lanes(d));
  }
};

struct WeightF16 : PlainLayout<uint16_t> {
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::Rebind<hwy::float16_t, D> d16;
    const auto* half = reinterpret_cast<const hwy::float16_t*>(p);
    return hn::PromoteTo(d, hn::LoadU(d16, half + kHalf * hn::Lanes(d)));
  }
};

struct WeightBF16InOrder : PlainLayout<uint16_t> {
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::RebindToUnsigned<D> d32;
    const hn::Rebind<uint16_t, D> d16;
    const auto half = hn::LoadU(d16, p + kHalf * hn::Lanes(d));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, half)));
  }
};

#if HWY_TARGET == HWY_SCALAR  // Has no vectors to split in even and odd.
using WeightBF16 = WeightBF16InOrder;
#else
// Even elements, then odd ones: a shift and a mask expand a whole vector of BF16.
struct WeightBF16 : PlainLayout<uint16_t> {
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::RebindToUnsigned<D> d32;
    const hn::Repartition<uint16_t, D> d16;
    const auto pairs = hn::BitCast(d32, hn::LoadU(d16, p));
    return hn::BitCast(
        d, kHalf == 0 ? hn::ShiftLeft<16>(pairs) : hn::And(pairs, hn::Set(d32, 0xffff0000u)));
  }
};
#endif

// Codes times the scale of their group; the product is exact (weight_q8.h).
struct WeightQ8 {
  using Raw = int8_t;
  static constexpr bool kPadded = true;
  static HWY_INLINE size_t RowStride(size_t cols) {
    return static_cast<size_t>(Q8RowBytes(static_cast<int64_t>(cols)));
  }
  static HWY_INLINE size_t OffsetOf(size_t col) {
    return col / kQ8Group * kQ8GroupBytes + col % kQ8Group;
  }
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t col) {
    const D d;
    const hn::RebindToSigned<D> d32;
    const hn::RebindToUnsigned<D> du32;
    const hn::Rebind<int8_t, D> d8;
    // The last two codes and the scale: a load of four bytes that needs only a mask to be a float.
    uint32_t bits;
    std::memcpy(&bits, p + kQ8Group - 2 - col % kQ8Group, sizeof(bits));
    const V scale = hn::BitCast(d, hn::And(hn::Set(du32, bits), hn::Set(du32, 0xffff0000u)));
    const auto codes = hn::PromoteTo(d32, hn::LoadU(d8, p + kHalf * hn::Lanes(d)));
    return hn::Mul(hn::ConvertTo(d, codes), scale);
  }
};

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
void PackRows(const float* HWY_RESTRICT x, int64_t num_rows, int64_t cols, DType dtype,
              float* HWY_RESTRICT packed) {
  const size_t chunk = ChunkSize();
  const size_t num_cols = static_cast<size_t>(cols);
  const size_t rows = static_cast<size_t>(num_rows);
  const bool even_odd = dtype == DType::kBF16;
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
    const V values = hn::Load(d, x + (2 * static_cast<size_t>(r) + kHalf) * lanes);
#pragma GCC unroll 8
    for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::MulAdd(values, weights[o], acc[r][o]);
  }
}

// The whole chunk; `w` point to the rows' first elements.
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
};

// Four rows by three outputs: 12 accumulators, three weights and one x fill the 16 registers of
// AVX2; with 32 registers it is six outputs. A single row needs more outputs to hide the latency of
// its additions.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kOutsOfManyRows = 6;
#else
constexpr int kOutsOfManyRows = 3;
#endif
constexpr int kOutsOfOneRow = 8;
constexpr int kRowsOfBlock = 4;

// kRows rows of x from `row` on, kOuts outputs from `out` on.
template <class Weight, int kRows, int kOuts>
HWY_INLINE void DotBlock(const DecodeArgs& args, size_t row, size_t out) {
  using Raw = typename Weight::Raw;
  const D d;
  const size_t chunk = ChunkSize();
  const size_t cols = static_cast<size_t>(args.weight->cols);
  const size_t num_outs = static_cast<size_t>(args.weight->rows);
  const size_t full = cols / chunk * chunk;
  // While a block is multiplied, the next one comes into the cache: the hardware's prefetcher
  // alone leaves arithmetic and memory waiting for each other.
  const bool prefetch = out + 2 * kOuts <= num_outs;
  // Every block of rows fetches its share of the outputs, so that memory is never idle.
  const size_t num_shares = (args.num_rows + kRowsOfBlock - 1) / kRowsOfBlock;
  const size_t share = row / kRowsOfBlock;
  const size_t row_stride = Weight::RowStride(cols);
  const size_t ahead = kOuts * row_stride;

  const Raw* w[kOuts];
  for (int o = 0; o < kOuts; ++o) {
    w[o] = reinterpret_cast<const Raw*>(args.weight->data) +
           (out + static_cast<size_t>(o)) * row_stride;
  }
  V acc[kRows][kOuts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::Zero(d);
  }
  const float* x = args.packed + row * chunk;
  const size_t x_stride = args.num_rows;  // In floats per column: all rows lie side by side.
  for (size_t k = 0; k < full; k += chunk) {
    if (prefetch) {
      if (num_shares == 1) {
        for (int o = 0; o < kOuts; ++o) hwy::Prefetch(w[o] + ahead + Weight::OffsetOf(k));
      } else {
        for (size_t o = share; o < kOuts; o += num_shares) {
          hwy::Prefetch(w[o] + ahead + Weight::OffsetOf(k));
        }
      }
    }
    AddChunk<Weight, kRows, kOuts>(x + k * x_stride, w, k, acc);
  }
  if (full != cols && Weight::kPadded) {
    AddChunk<Weight, kRows, kOuts>(x + full * x_stride, w, full, acc);
  } else if (full != cols) {
    HWY_ALIGN Raw padded[kOuts][2 * hn::MaxLanes(D())] = {};
    const Raw* tail[kOuts];
    for (int o = 0; o < kOuts; ++o) {
      std::memcpy(padded[o], w[o] + full, (cols - full) * sizeof(Raw));
      tail[o] = padded[o];
    }
    AddChunk<Weight, kRows, kOuts>(x + full * x_stride, tail, 0, acc);
  }
  for (int r = 0; r < kRows; ++r) {
    float* y = args.y + (row + static_cast<size_t>(r)) * num_outs + out;
    for (int o = 0; o < kOuts; ++o) {
      const float sum = hn::GetLane(hn::SumOfLanes(d, acc[r][o]));
      y[o] = args.bias == nullptr ? sum : sum + args.bias[out + static_cast<size_t>(o)];
    }
  }
}

// All rows of x for kOuts outputs: blocks of four rows, then what is left.
template <class Weight, int kOuts>
HWY_INLINE void AllRows(const DecodeArgs& args, size_t out) {
  size_t row = 0;
  for (; row + kRowsOfBlock <= args.num_rows; row += kRowsOfBlock) {
    DotBlock<Weight, kRowsOfBlock, kOuts>(args, row, out);
  }
  switch (args.num_rows - row) {
    case 3:
      return DotBlock<Weight, 3, kOuts>(args, row, out);
    case 2:
      return DotBlock<Weight, 2, kOuts>(args, row, out);
    case 1:
      return DotBlock<Weight, 1, kOuts>(args, row, out);
    default:
      return;
  }
}

template <class Weight>
void OutputRange(const DecodeArgs& args, size_t begin, size_t end) {
  size_t out = begin;
  if (args.num_rows == 1) {
    for (; out + kOutsOfOneRow <= end; out += kOutsOfOneRow) {
      DotBlock<Weight, 1, kOutsOfOneRow>(args, 0, out);
    }
  } else {
    for (; out + kOutsOfManyRows <= end; out += kOutsOfManyRows) {
      AllRows<Weight, kOutsOfManyRows>(args, out);
    }
  }
  for (; out < end; ++out) AllRows<Weight, 1>(args, out);
}

void DecodeRange(const float* packed, int64_t num_rows, const WeightView& weight, const float* bias,
                 int64_t begin, int64_t end, float* y) {
  const DecodeArgs args{packed, static_cast<size_t>(num_rows), &weight, bias, y};
  const size_t first = static_cast<size_t>(begin);
  const size_t last = static_cast<size_t>(end);
  if (weight.dtype == DType::kBF16) return OutputRange<WeightBF16>(args, first, last);
  if (weight.dtype == DType::kF16) return OutputRange<WeightF16>(args, first, last);
  if (weight.dtype == DType::kI8) return OutputRange<WeightQ8>(args, first, last);
  return OutputRange<WeightF32>(args, first, last);
}

template <class Weight>
HWY_INLINE void ExpandNatural(const std::byte* data, size_t count, float* HWY_RESTRICT out) {
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

void Expand(const std::byte* data, DType dtype, int64_t count, float* out) {
  const size_t size = static_cast<size_t>(count);
  if (dtype == DType::kBF16) return ExpandNatural<WeightBF16InOrder>(data, size, out);
  if (dtype == DType::kF16) return ExpandNatural<WeightF16>(data, size, out);
  if (dtype == DType::kI8) return ExpandNatural<WeightQ8>(data, size, out);
  std::memcpy(out, data, size * sizeof(float));
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

size_t PackedDecodeFloats(int64_t num_rows, int64_t cols) {
  const size_t chunks = (static_cast<size_t>(cols) + kMaxChunk - 1) / kMaxChunk;
  return static_cast<size_t>(num_rows) * chunks * kMaxChunk;
}

void PackDecodeRows(const float* x, int64_t num_rows, int64_t cols, DType dtype, float* packed) {
  HWY_DYNAMIC_DISPATCH(PackRows)(x, num_rows, cols, dtype, packed);
}

void DecodeMatMul(const float* packed, int64_t num_rows, const WeightView& weight,
                  const float* bias, int64_t begin, int64_t end, float* y) {
  HWY_DYNAMIC_DISPATCH(DecodeRange)(packed, num_rows, weight, bias, begin, end, y);
}

void ExpandToFloat(const std::byte* data, DType dtype, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(Expand)(data, dtype, count, out);
}

int64_t DecodeKernelTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
