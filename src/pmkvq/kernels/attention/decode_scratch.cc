#include "pmkvq/kernels/attention/decode_scratch.h"

#include "pmkvq/kernels/attention/integer_products.h"

namespace pmkvq::internal {

DecodeLayout::DecodeLayout(const AttentionShape& shape, int64_t num_tokens)
    : rows(num_tokens * (shape.num_heads / shape.num_kv_heads)),
      whole_rows(shape.whole_heads > 0 ? num_tokens * shape.whole_heads : rows),
      padded_group(RoundUpTo(shape.group, kMaxLanes)),
      row_stride(padded_group * (shape.head_dim / shape.group)) {}

int64_t DecodeLayout::scratch_floats(const AttentionShape& shape) const {
  return DecodeScratch(shape, *this, nullptr).num_floats;
}

DecodeScratch::DecodeScratch(const AttentionShape& shape, const DecodeLayout& layout,
                             float* memory) {
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
  hidden = reinterpret_cast<int64_t*>(take(2 * layout.rows));
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

}  // namespace pmkvq::internal
