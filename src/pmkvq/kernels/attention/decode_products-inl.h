// What attention to a block of stored tokens is made of: products of q with keys, and of weights
// with values, by floats and by integers. For attention_decode.cc.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_DECODE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_DECODE_PRODUCTS_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_DECODE_PRODUCTS_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_DECODE_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/decode_scratch.h"
#include "pmkvq/kernels/attention/direct-inl.h"
#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/attention/tile-inl.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using pmkvq::HWY_NAMESPACE::ExpandGroup;

// Everything that stays the same during one work item.
struct Context {
  const AttentionShape& shape;
  const DecodeLayout& layout;
  const DecodeScratch& scratch;
  Partial partial;
  AttentionMode mode;
  bool* queries_ready;  // [3], of scratch.integer_q.
  ReadAhead* ahead;     // What is read after the current product.
  int64_t num_groups() const { return shape.head_dim / shape.group; }
  bool UsesIntegers(int64_t columns, int bits) const {
    return mode == AttentionMode::kFast && bits != 16 && HasIntegerProducts(columns, bits);
  }
};

// Steps and minima of group g of `count` rows of packed codes, each of num_groups groups; zeros up
// to the next full vector.
void LoadMetadata(const Context& context, const TensorRows& rows, int64_t num_groups, int64_t g,
                  int64_t count) {
  const DecodeScratch& s = context.scratch;
  if (num_groups == 1) {
    TensorRows metadata{.data = rows.mins, .float_type = context.shape.metadata_type};
    ConvertRows(metadata, 1, count, s.mins);
    metadata.data = rows.ranges;
    ConvertRows(metadata, 1, count, s.steps);
  } else {
    VisitFloatType(context.shape.metadata_type, [&]<class T>(T) HWY_ATTR {
      for (int64_t t = 0; t < count; ++t) {
        s.mins[t] = ToFloat(reinterpret_cast<const T*>(rows.mins)[t * num_groups + g]);
        s.steps[t] = ToFloat(reinterpret_cast<const T*>(rows.ranges)[t * num_groups + g]);
      }
    });
  }
  const int64_t width = RoundUpTo(count, kMaxLanes);
  std::fill(s.mins + count, s.mins + width, 0.0f);
  std::fill(s.steps + count, s.steps + width, 0.0f);
  const hn::ScalableTag<float> df;
  const auto max_code = hn::Set(df, MaxCode(rows.bits));
  for (int64_t t = 0; t < width; t += static_cast<int64_t>(hn::Lanes(df))) {
    hn::Store(hn::Div(hn::Load(df, s.steps + t), max_code), df, s.steps + t);
  }
}

// Where group g of a row begins, in bytes.
int64_t GroupOffset(const Context& context, const TensorRows& rows, int64_t g) {
  const int64_t group = context.shape.group;
  if (rows.bits != 16) return g * PackedGroupBytes(group, rows.bits);
  return g * group * static_cast<int64_t>(SizeOf(rows.float_type));
}

// Group g of keys [t0, t0 + width) transposed into the tile [G, 32].
void LoadKeyTile(const Context& context, const TensorRows& k, int64_t g, int64_t t0, int64_t count,
                 int64_t width) {
  const int64_t group = context.shape.group;
  for (int64_t t = 0; t < width; t += kTransposeRows) {
    const int64_t first = std::min(t0 + t, count - 1);
    const std::byte* data = k.data + first * k.row_bytes + GroupOffset(context, k, g);
    float* tile = context.scratch.tile + t;
    const auto load = [&](auto function) HWY_ATTR {
      function(data, k.row_bytes, count - first, group, context.scratch.columns, tile);
    };
    if (k.bits == 8) {
      load(LoadEightCodes<8>);
    } else if (k.bits == 4) {
      load(LoadEightCodes<4>);
    } else if (k.bits == 2) {
      load(LoadEightCodes<2>);
    } else if (k.float_type == DType::kF16) {
      load(LoadEightHalves<hwy::float16_t>);
    } else if (k.float_type == DType::kBF16) {
      load(LoadEightHalves<hwy::bfloat16_t>);
    } else {
      load(LoadEightFloats);
    }
  }
}

// Rows that are summed up with weights: values, of one group of dims, or channels of keys.
struct SummedRows {
  TensorRows rows;         // `data` points at the first element of the first row.
  int64_t count;           // Of rows, at most kBlockTokens.
  int64_t columns;         // Elements of a row.
  int64_t padded_columns;  // In full vectors.
};

// Rows [t0, t0 + num_rows) into the tile [num_rows, padded_columns].
void LoadRowTile(const Context& context, const SummedRows& x, int64_t t0, int64_t num_rows) {
  TensorRows row = x.rows;
  const auto identity = [](auto, auto codes) HWY_ATTR { return codes; };
  for (int64_t t = 0; t < num_rows; ++t) {
    float* out = context.scratch.tile + t * x.padded_columns;
    row.data = x.rows.data + (t0 + t) * x.rows.row_bytes;
    const auto* packed = reinterpret_cast<const uint8_t*>(row.data);
    switch (x.rows.bits) {
      case 8:
        ExpandGroup<8>(packed, x.columns, identity, out);
        break;
      case 4:
        ExpandGroup<4>(packed, x.columns, identity, out);
        break;
      case 2:
        ExpandGroup<2>(packed, x.columns, identity, out);
        break;
      default:
        ConvertRows(row, 1, x.columns, out);
    }
    std::fill(out + x.columns, out + x.padded_columns, 0.0f);
  }
}

// Calls function(Format{}) with the element format of `rows`.
template <class Function>
HWY_INLINE void VisitFormat(const TensorRows& rows, const Function& function) {
  if (rows.bits == 8) {
    function(CodeFormat<8>());
  } else if (rows.bits == 4) {
    function(CodeFormat<4>());
  } else if (rows.bits == 2) {
    function(CodeFormat<2>());
  } else if (rows.float_type == DType::kF16) {
    function(HalfFormat<hwy::float16_t>());
  } else if (rows.float_type == DType::kBF16) {
    function(HalfFormat<hwy::bfloat16_t>());
  } else {
    function(FloatFormat());
  }
}

template <class Format, int kRows>
void MulKeysDirect(const Context& context, const TensorRows& k, int64_t g, int64_t count,
                   float* products) {
  const int64_t group = context.shape.group;
  const std::byte* data = k.data + GroupOffset(context, k, g);
  const int64_t row_lines = ReadAhead::Lines(k.row_bytes);
  for (int64_t t = 0; t < count; ++t) {
    context.ahead->Next(row_lines);
    DotGroup<Format, kRows>(reinterpret_cast<const typename Format::Raw*>(data + t * k.row_bytes),
                            group, context.scratch.q + g * group, context.shape.head_dim,
                            products + t, kBlockTokens);
  }
}

// products [R, 128] += group g of q times the elements of keys, codes as they are.
void MulKeys(const Context& context, const TensorRows& k, int64_t g, int64_t count,
             float* products) {
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t group = context.shape.group;
  if (context.layout.whole_rows <= kMaxDirectRows) {
    VisitFormat(k, [&](auto format) HWY_ATTR {
      const auto function =
          rows == 1 ? MulKeysDirect<decltype(format), 1> : MulKeysDirect<decltype(format), 2>;
      function(context, k, g, count, products);
    });
    return;
  }
  const int64_t width = RoundUpTo(count, kMaxLanes);
  for (int64_t t0 = 0; t0 < width; t0 += kTileTokens) {
    const int64_t tile_width = std::min(kTileTokens, width - t0);
    LoadKeyTile(context, k, g, t0, count, tile_width);
    context.ahead->Next(ReadAhead::Lines(tile_width * k.row_bytes));
    MulTile(rows, s.q + g * group, context.shape.head_dim, s.tile, kTileTokens, group, tile_width,
            products + t0, kBlockTokens);
  }
}

// products [R, count] = weights [R, 128] x step; adds sum_t weight_t min_t to every column of out.
void WeighCodes(const Context& context, const SummedRows& x, const float* weights, float* out,
                int64_t out_stride) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const DecodeScratch& s = context.scratch;
  const int64_t width = RoundUpTo(x.count, kMaxLanes);
  for (int64_t r = 0; r < context.layout.rows; ++r) {
    auto minimum = hn::Zero(df);
    for (int64_t t = 0; t < width; t += lanes) {
      const auto weight = hn::LoadU(df, weights + r * kBlockTokens + t);
      minimum = hn::MulAdd(weight, hn::Load(df, s.mins + t), minimum);
      hn::StoreU(hn::Mul(weight, hn::Load(df, s.steps + t)), df, s.products + r * kBlockTokens + t);
    }
    const auto sum = hn::SumOfLanes(df, minimum);
    float* row = out + r * out_stride;
    for (int64_t i = 0; i < x.padded_columns; i += lanes) {
      hn::StoreU(hn::Add(hn::LoadU(df, row + i), sum), df, row + i);
    }
  }
}

template <class Format, int kRows>
void AddRowsDirect(const Context& context, const SummedRows& x, const float* weights, float* out,
                   int64_t out_stride) {
  AddWeightedRows<Format, kRows>(x.rows.data, x.rows.row_bytes, x.count, x.columns, weights,
                                 kBlockTokens, out, out_stride, *context.ahead);
}

// out [R, padded_columns] += weights [R, 128] times the elements of the rows, codes as they are.
void AddRows(const Context& context, const SummedRows& x, const float* weights, float* out,
             int64_t out_stride) {
  const int64_t rows = context.layout.rows;
  if (context.layout.whole_rows <= kMaxDirectRows) {
    VisitFormat(x.rows, [&](auto format) HWY_ATTR {
      const auto function =
          rows == 1 ? AddRowsDirect<decltype(format), 1> : AddRowsDirect<decltype(format), 2>;
      function(context, x, weights, out, out_stride);
    });
    return;
  }
  const int64_t tile_rows = kTileTokens * context.layout.padded_group / x.padded_columns;
  for (int64_t t0 = 0; t0 < x.count; t0 += tile_rows) {
    const int64_t num_rows = std::min(tile_rows, x.count - t0);
    LoadRowTile(context, x, t0, num_rows);
    context.ahead->Next(ReadAhead::Lines(num_rows * x.rows.row_bytes));
    MulTile(rows, weights + t0, kBlockTokens, context.scratch.tile, x.padded_columns, num_rows,
            x.padded_columns, out, out_stride);
  }
}

// out [R, columns] += integers of weights [R, 128] times codes.
void AddRowsByIntegers(const Context& context, const SummedRows& x, const float* weights,
                       float* out, int64_t out_stride) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  for (int64_t r = 0; r < rows; ++r) {
    s.weight_factors[r] = QuantizeToIntegers(
        weights + r * kBlockTokens, RoundUpTo(x.count, kMaxLanes), s.weights + r * kBlockTokens);
  }
  SumPackedRows({x.rows.data, x.rows.row_bytes, x.count, x.columns, x.rows.bits}, s.weights, rows,
                s.integer_tile, s.integer_sums, context.ahead);
  for (int64_t r = 0; r < rows; ++r) {
    const auto factor = hn::Set(df, s.weight_factors[r]);
    for (int64_t i = 0; i < x.columns; i += static_cast<int64_t>(hn::Lanes(df))) {
      float* p = out + r * out_stride + i;
      const auto sum = hn::ConvertTo(df, hn::LoadU(di, s.integer_sums + r * x.columns + i));
      hn::StoreU(hn::MulAdd(sum, factor, hn::LoadU(df, p)), df, p);
    }
  }
}

// Integers of q in the order for keys of that width; made once for an item.
const IntegerQueries& PrepareQueries(const Context& context, int bits) {
  const DecodeScratch& s = context.scratch;
  const int index = bits == 8 ? 0 : bits == 4 ? 1 : 2;
  const IntegerQueries& out = s.integer_q[index];
  if (context.queries_ready[index]) return out;
  context.queries_ready[index] = true;
  const int64_t group = context.shape.group;
  int16_t integers[kMaxGroup];
  for (int64_t i = 0; i < context.layout.rows * context.num_groups(); ++i) {
    out.factors[i] = QuantizeToIntegers(s.q + i * group, group, integers);
    int32_t sum = 0;
    for (int64_t d = 0; d < group; ++d) sum += integers[d];
    out.sums[i] = out.factors[i] * static_cast<float>(sum);
    ArrangeForDots(bits, group, integers, out.q + i * group);
  }
  return out;
}

// scores [R, count] += group g of q times keys, by integers.
void AddScoresByIntegers(const Context& context, const TensorRows& k, int64_t g, int64_t count) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t group = context.shape.group;
  const IntegerQueries& queries = PrepareQueries(context, k.bits);
  DotPackedRows({k.data + GroupOffset(context, k, g), k.row_bytes, count, group, k.bits},
                queries.q + g * group, rows, context.shape.head_dim, s.integer_tile, s.integer_sums,
                context.ahead);
  for (int64_t r = 0; r < rows; ++r) {
    const auto factor = hn::Set(df, queries.factors[r * context.num_groups() + g]);
    const auto q_sum = hn::Set(df, queries.sums[r * context.num_groups() + g]);
    for (int64_t t = 0; t < RoundUpTo(count, kMaxLanes); t += static_cast<int64_t>(hn::Lanes(df))) {
      float* score = s.scores + r * kBlockTokens + t;
      const auto sum = hn::ConvertTo(df, hn::LoadU(di, s.integer_sums + r * kBlockTokens + t));
      const auto offset = hn::MulAdd(q_sum, hn::Load(df, s.mins + t), hn::LoadU(df, score));
      hn::StoreU(hn::MulAdd(sum, hn::Mul(factor, hn::Load(df, s.steps + t)), offset), df, score);
    }
  }
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_DECODE_PRODUCTS_INL_H_
