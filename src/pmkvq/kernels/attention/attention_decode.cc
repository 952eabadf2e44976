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

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/decode_scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/attention_decode.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "pmkvq/kernels/attention/decode_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {

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

// At most kBlockTokens tokens.
struct TokenBlock {
  TensorRows k;
  TensorRows v;
  int64_t count = 0;
  int64_t first = 0;  // Position of the first one, counted from the first row's.
};

// Attends a block. Rows see tokens up to their position, and of those the ones in the window.
// `next` is read after it.
void AttendBlock(const Context& context, const TokenBlock& block, const Upcoming& next) {
  const DecodeScratch& s = context.scratch;
  const int64_t rows = context.layout.rows;
  const int64_t heads = context.shape.num_heads / context.shape.num_kv_heads;
  const int64_t count = block.count;
  AskFor(context, {block.v, count});
  Score(context, block.k, count);
  AskFor(context, next);
  const int64_t window = context.shape.sliding_window;
  for (int64_t r = 0; r < rows; ++r) {
    s.visible[r] = std::min(count, r / heads - block.first + 1);
    if (window > 0) s.hidden[r] = HiddenTokens(window, r / heads, block.first, count);
  }
  OnlineSoftmax(rows, RoundUpTo(count, kMaxLanes), kBlockTokens,
                {s.visible, window > 0 ? s.hidden : nullptr}, s.scores, context.partial.max,
                context.partial.sum, s.rescale);
  ScaleRows(rows, context.layout.row_stride, context.layout.row_stride, s.rescale,
            context.partial.out);
  AddValues(context, block.v, count);
}

// q times the attention scale, rows (t, j), and its sums over groups.
void LoadQueries(const Context& context, const DecodeItem& item) {
  const AttentionShape& shape = context.shape;
  const int64_t heads = shape.num_heads / shape.num_kv_heads;
  for (int64_t r = 0; r < context.layout.rows; ++r) {
    const int64_t row = r / heads * shape.num_heads + item.kv_head * heads + r % heads;
    const float* q = item.sequence.q + row * shape.head_dim;
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
  const SequenceBlock& sequence = item.sequence;
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
  int64_t first = item.first_token - sequence.num_stored;
  for (int64_t p = item.first_page; p < end; ++p) {
    const KvPageView& page = sequence.pages[p];
    const PageTokens tokens = sequence.tokens[static_cast<size_t>(p)];
    const TensorRows k = PageRows(shape, page.k, tokens.capacity, item.kv_head);
    const TensorRows v = PageRows(shape, page.v, tokens.capacity, item.kv_head);
    for (int64_t t = 0; t < tokens.num_tokens; t += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, tokens.num_tokens - t);
      Upcoming next;
      if (t + count < tokens.num_tokens) {
        next = {k.From(t + count, shape), std::min(kBlockTokens, tokens.num_tokens - t - count)};
      } else if (p + 1 < end) {
        const PageTokens after = sequence.tokens[static_cast<size_t>(p + 1)];
        next = {PageRows(shape, sequence.pages[p + 1].k, after.capacity, item.kv_head),
                std::min(kBlockTokens, int64_t{after.num_tokens})};
      }
      AttendBlock(context, {k.From(t, shape), v.From(t, shape), count, first + t}, next);
    }
    first += tokens.num_tokens;
  }
  if (item.with_chunk) {
    AttendBlock(context,
                {ChunkRows(shape, sequence.k_new, item.kv_head),
                 ChunkRows(shape, sequence.v_new, item.kv_head), sequence.num_rows, 0},
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
