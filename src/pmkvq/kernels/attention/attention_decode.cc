// Decode: few query rows against runs of packed pages.
//
// A block of at most 128 tokens is attended in three steps: scores, online softmax, values. Both
// products go through tiles of 32 tokens x one group of dims, expanded to floats once and used by
// all query rows: keys transposed (tokens in lanes, so that no horizontal sums are needed), values
// as they lie. One or two query rows work without tiles (direct-inl.h). Codes enter the products as
// they are; step and minimum are applied to whole scores and weights. Keys per channel take the way
// of values: channels in the place of tokens, weighted by q. The fast mode replaces both products
// with codes by exact ones with integers (integer_products.h), for any number of rows.
#include <algorithm>
#include <limits>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/attention_decode.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "pmkvq/kernels/attention/direct-inl.h"
#include "pmkvq/kernels/attention/tile-inl.h"

#ifndef PMKVQ_KERNELS_ATTENTION_DECODE_ONCE
#define PMKVQ_KERNELS_ATTENTION_DECODE_ONCE
namespace pmkvq::internal {

constexpr int64_t kMaxLanes = 16;  // Of floats, in any instruction set compiled for.

DecodeLayout::DecodeLayout(const AttentionShape& shape, int64_t num_tokens)
    : rows(num_tokens * (shape.num_heads / shape.num_kv_heads)),
      padded_group(RoundUpTo(shape.group, kMaxLanes)),
      row_stride(padded_group * (shape.head_dim / shape.group)) {}

// q of the fast mode, arranged for keys of one width: q[r, i] ~ factors[r, g] x integer.
struct IntegerQueries {
  int16_t* q;      // [R, D]
  float* factors;  // [R, D / G]
  float* sums;     // [R, D / G], of the rounded q.
};

// Pointers into the scratch of one thread.
struct DecodeScratch {
  DecodeScratch(const AttentionShape& shape, const DecodeLayout& layout, float* memory) {
    const auto take = [&](int64_t floats) {
      float* taken = memory;
      memory += RoundUpTo(floats, kMaxLanes);
      num_floats += RoundUpTo(floats, kMaxLanes);
      return taken;
    };
    q = take(layout.rows * shape.head_dim);
    q_sums = take(layout.rows * (shape.head_dim / shape.group));
    scores = take(layout.rows * kBlockTokens);
    products = take(layout.rows * kBlockTokens);
    tile = take(kTileTokens * layout.padded_group);
    columns = take(8 * shape.group);
    steps = take(kBlockTokens);
    mins = take(kBlockTokens);
    rescale = take(layout.rows);
    visible = reinterpret_cast<int64_t*>(take(2 * layout.rows));
    integer_tile = reinterpret_cast<uint32_t*>(take(kIntegerTileSize));
    integer_sums = reinterpret_cast<int32_t*>(take(layout.rows * kBlockTokens));
    const int64_t integer_floats = layout.rows * kBlockTokens / 2;
    weights = reinterpret_cast<int16_t*>(take(integer_floats));
    weight_factors = take(layout.rows);
    for (IntegerQueries& queries : integer_q) {
      queries.q = reinterpret_cast<int16_t*>(take(layout.rows * shape.head_dim / 2));
      queries.factors = take(layout.rows * (shape.head_dim / shape.group));
      queries.sums = take(layout.rows * (shape.head_dim / shape.group));
    }
  }
  float* q;          // [R, D], times the attention scale.
  float* q_sums;     // [R, D / G], sums over groups of q.
  float* scores;     // [R, 128], then weights exp(score - max).
  float* products;   // [R, 128]: q . codes (per channel: q x step), then weights x step.
  float* tile;       // Keys [G, 32], values [32, padded G], or as many channels of
                     // keys [., 128] as fit.
  float* columns;    // 8 rows of keys, transposed, as stored.
  float* steps;      // [128]
  float* mins;       // [128]
  float* rescale;    // [R]
  int64_t* visible;  // [R], tokens of the block that a row sees.
  // Of the fast mode:
  uint32_t* integer_tile;
  int32_t* integer_sums;        // [R, 128]
  int16_t* weights;             // [R, 128], of rows that are summed up.
  float* weight_factors;        // [R]
  IntegerQueries integer_q[3];  // For keys of 8, 4 and 2 bits.
  int64_t num_floats = 0;
};

int64_t DecodeLayout::scratch_floats(const AttentionShape& shape) const {
  return DecodeScratch(shape, *this, nullptr).num_floats;
}

}  // namespace pmkvq::internal
#endif  // PMKVQ_KERNELS_ATTENTION_DECODE_ONCE

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {

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
  if (rows <= kMaxDirectRows) {
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
  if (rows <= kMaxDirectRows) {
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

// scores [R, 128] of a page of keys per channel: the weighted sum of its channels.
void ScoreChannels(const Context& context, const TensorRows& k) {
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t dim = context.shape.head_dim;
  std::fill_n(s.scores, rows * kBlockTokens, 0.0f);
  for (int64_t c0 = 0; c0 < dim; c0 += kBlockTokens) {
    const SummedRows channels{k.FromChannel(c0, context.shape), std::min(kBlockTokens, dim - c0),
                              kPageTokens, kPageTokens};
    // Rows of q are not padded; the steps and minima that follow are, with zeros.
    std::fill_n(s.products, rows * kBlockTokens, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(s.q + r * dim + c0, channels.count, s.products + r * kBlockTokens);
    }
    LoadMetadata(context, channels.rows, 1, 0, channels.count);
    WeighCodes(context, channels, s.products, s.scores, kBlockTokens);
    const auto add = context.UsesIntegers(kPageTokens, k.bits) ? AddRowsByIntegers : AddRows;
    add(context, channels, s.products, s.scores, kBlockTokens);
  }
}

// scores [R, count] of one block.
void Score(const Context& context, const TensorRows& k, int64_t count) {
  if (k.axis == QuantAxis::kChannel) return ScoreChannels(context, k);
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t width = RoundUpTo(count, kMaxLanes);
  std::fill_n(s.scores, rows * kBlockTokens, 0.0f);
  for (int64_t g = 0; g < context.num_groups(); ++g) {
    if (k.bits != 16) LoadMetadata(context, k, context.num_groups(), g, count);
    if (context.UsesIntegers(context.shape.group, k.bits)) {
      AddScoresByIntegers(context, k, g, count);
      continue;
    }
    // Float rows add up in place; codes need their group's step first.
    float* products = k.bits == 16 ? s.scores : s.products;
    if (k.bits != 16) std::fill_n(s.products, rows * kBlockTokens, 0.0f);
    MulKeys(context, k, g, count, products);
    if (k.bits == 16) continue;
    for (int64_t r = 0; r < rows; ++r) {
      const auto q_sum = hn::Set(df, s.q_sums[r * context.num_groups() + g]);
      for (int64_t t = 0; t < width; t += lanes) {
        float* score = s.scores + r * kBlockTokens + t;
        const auto product = hn::LoadU(df, s.products + r * kBlockTokens + t);
        const auto offset = hn::MulAdd(q_sum, hn::Load(df, s.mins + t), hn::LoadU(df, score));
        hn::StoreU(hn::MulAdd(product, hn::Load(df, s.steps + t), offset), df, score);
      }
    }
  }
}

// out += weights x values of one block.
void AddValues(const Context& context, const TensorRows& v, int64_t count) {
  const DecodeScratch& s = context.scratch;
  const int64_t padded = context.layout.padded_group;
  for (int64_t g = 0; g < context.num_groups(); ++g) {
    SummedRows values{v, count, context.shape.group, padded};
    values.rows.data += GroupOffset(context, v, g);
    float* out = context.partial.out + g * padded;
    const float* weights = s.scores;
    if (v.bits != 16) {
      LoadMetadata(context, v, context.num_groups(), g, count);
      WeighCodes(context, values, weights, out, context.layout.row_stride);
      weights = s.products;
    }
    const auto add =
        context.UsesIntegers(context.shape.group, v.bits) ? AddRowsByIntegers : AddRows;
    add(context, values, weights, out, context.layout.row_stride);
  }
}

// `num_tokens` tokens of one head, K or V, which are read after what is being read now.
struct Upcoming {
  TensorRows rows;
  int64_t num_tokens = 0;
};

// Has the next products ask for it. Minima and ranges are a few lines, asked for at once.
void AskFor(const Context& context, const Upcoming& next) {
  const AttentionShape& shape = context.shape;
  const TensorRows& rows = next.rows;
  const bool by_channel = rows.axis == QuantAxis::kChannel;
  const int64_t num_rows = by_channel && next.num_tokens > 0 ? shape.head_dim : next.num_tokens;
  *context.ahead = {rows.data, num_rows * rows.row_bytes};
  if (rows.bits == 16) return;
  const int64_t num_groups = by_channel ? num_rows : num_rows * context.num_groups();
  const int64_t num_bytes = num_groups * static_cast<int64_t>(SizeOf(shape.metadata_type));
  for (const std::byte* metadata : {rows.mins, rows.ranges}) {
    ReadAhead{metadata, num_bytes}.Next(ReadAhead::Lines(num_bytes));
  }
}

// Attends at most kBlockTokens tokens. When `causal`, row (t, j) sees the first t + 1 only. `next`
// is read after it.
void AttendBlock(const Context& context, const TensorRows& k, const TensorRows& v, int64_t count,
                 bool causal, const Upcoming& next) {
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t heads = context.shape.num_heads / context.shape.num_kv_heads;
  AskFor(context, {v, count});
  Score(context, k, count);
  AskFor(context, next);
  for (int64_t r = 0; r < rows; ++r) s.visible[r] = causal ? r / heads + 1 : count;
  OnlineSoftmax(rows, RoundUpTo(count, kMaxLanes), kBlockTokens, s.visible, s.scores,
                context.partial.max, context.partial.sum, s.rescale);
  ScaleRows(rows, context.layout.row_stride, context.layout.row_stride, s.rescale,
            context.partial.out);
  AddValues(context, v, count);
}

// q times the attention scale, rows (t, j), and its sums over groups.
void LoadQueries(const Context& context, const DecodeItem& item) {
  const AttentionShape& shape = context.shape;
  const int64_t heads = shape.num_heads / shape.num_kv_heads;
  for (int64_t r = 0; r < context.layout.rows; ++r) {
    const int64_t row = r / heads * shape.num_heads + item.kv_head * heads + r % heads;
    const float* q = item.sequence->q + row * shape.head_dim;
    float* out = context.scratch.q + r * shape.head_dim;
    for (int64_t g = 0; g < context.num_groups(); ++g) {
      float sum = 0.0f;
      for (int64_t i = g * shape.group; i < (g + 1) * shape.group; ++i) {
        out[i] = q[i] * shape.scale;
        sum += out[i];
      }
      context.scratch.q_sums[r * context.num_groups() + g] = sum;
    }
  }
}

void Decode(const AttentionShape& shape, const DecodeItem& item, float* memory) {
  const AttentionSequence& sequence = *item.sequence;
  const DecodeLayout layout(shape, sequence.num_rows);
  const DecodeScratch scratch(shape, layout, memory);
  bool queries_ready[3] = {};
  ReadAhead ahead;
  const Context context{shape,     layout,        scratch, Partial(layout, item.partial),
                        item.mode, queries_ready, &ahead};
  LoadQueries(context, item);
  std::fill_n(context.partial.out, layout.rows * layout.row_stride, 0.0f);
  std::fill_n(context.partial.max, layout.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(context.partial.sum, layout.rows, 0.0f);

  const int64_t end = item.first_page + item.num_pages;
  for (int64_t p = item.first_page; p < end; ++p) {
    const KvPageView& page = sequence.pages[static_cast<size_t>(p)];
    const TensorRows k = PageRows(shape, page.k, page.capacity, item.kv_head);
    const TensorRows v = PageRows(shape, page.v, page.capacity, item.kv_head);
    for (int64_t t = 0; t < page.num_tokens; t += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, page.num_tokens - t);
      Upcoming next;
      if (t + count < page.num_tokens) {
        next = {k.From(t + count, shape), std::min(kBlockTokens, page.num_tokens - t - count)};
      } else if (p + 1 < end) {
        const KvPageView& after = sequence.pages[static_cast<size_t>(p + 1)];
        next = {PageRows(shape, after.k, after.capacity, item.kv_head),
                std::min(kBlockTokens, int64_t{after.num_tokens})};
      }
      AttendBlock(context, k.From(t, shape), v.From(t, shape), count, /*causal=*/false, next);
    }
  }
  if (item.with_chunk) {
    AttendBlock(context, ChunkRows(shape, sequence.k_new, item.kv_head),
                ChunkRows(shape, sequence.v_new, item.kv_head), sequence.num_rows, /*causal=*/true,
                Upcoming());
  }
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(Decode);
HWY_EXPORT(Target);

void RunDecodeItem(const AttentionShape& shape, const DecodeItem& item, float* scratch) {
  HWY_DYNAMIC_DISPATCH(Decode)(shape, item, scratch);
}

int64_t AttentionTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
