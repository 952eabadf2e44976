// Between RunLatentAttention and its vector kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/round_up.h"
#include "pmkvq/kernels/attention/latent_attention.h"

namespace pmkvq::internal {

// Rows (token, head) of an item: 4 vectors of AVX-512 hold a value of each. So many share the
// expansion of a page, and with their queries (147 KB for r + dr = 576) they stay in the cache of
// the second level beside a tile.
inline constexpr int64_t kLatentRows = 64;
// Stored tokens that are expanded to floats at a time: 184 KB for r + dr = 576.
inline constexpr int64_t kLatentTileTokens = 64;
// A tile lies in panels of one group of c, or of k_r, each [kLatentTileTokens, kPanelStride]: with
// a fixed stride a product reaches many tokens from one register. 9 cache lines, an odd number:
// tokens lie in different sets of the first-level cache.
inline constexpr int64_t kPanelStride = 144;
inline constexpr int64_t kPanelFloats = kLatentTileTokens * kPanelStride;
// Sequences with at most this many rows are cut into runs of pages.
inline constexpr int64_t kMaxLatentRunTokens = 4;
// Pages of a run, and of a run of a deep sequence: partial results (H r floats each) stay small
// beside what they are made from.
inline constexpr int64_t kLatentRunPages = 8;
inline constexpr int64_t kDeepLatentRunPages = 16;
inline constexpr int64_t kDeepLatentPages = 128;

// Memory of an item, in floats. Rows are padded to full vectors, and groups to pairs of them.
struct LatentLayout {
  explicit LatentLayout(const LatentShape& shape)
      : num_groups(shape.latent / shape.group), padded_group(RoundUpTo(shape.group, 2 * kLine)) {}
  static constexpr int64_t kLine = kAlignment / sizeof(float);

  int64_t tile_floats() const { return (num_groups + 1) * kPanelFloats; }
  int64_t query_floats(const LatentShape& shape) const { return shape.key_values() * kLatentRows; }
  static constexpr int64_t kScoreFloats = kLatentTileTokens * kLatentRows;
  int64_t out_stride() const { return num_groups * padded_group; }
  int64_t out_floats() const { return kLatentRows * out_stride(); }
  int64_t scratch_floats(const LatentShape& shape) const {
    return tile_floats() + query_floats(shape) + kScoreFloats + out_floats() + 3 * kLatentRows;
  }

  int64_t num_groups;    // Of c.
  int64_t padded_group;  // Floats that a group takes in a row of the output.
};

// One piece of work: rows (t, h), t < num_tokens, h < num_heads, of one sequence; num_tokens *
// num_heads <= kLatentRows.
struct LatentItem {
  int64_t first_token = 0;  // Of the chunk.
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  std::span<const PageTokens> tokens;  // Of the item's pages.
  const KvPageView* pages = nullptr;
  // Of the page behind these, if there is one: another item's, whose first tokens are asked for.
  PageTokens behind = {0, 0};
  // The chunk's tokens that these rows see, of which row t sees first_token + t + 1; 0: none.
  int64_t num_chunk_tokens = 0;
  const float* q = nullptr;       // Row (t, h) at (t * H + h) * (r + dr).
  const float* c_new = nullptr;   // [chunk, r]
  const float* kr_new = nullptr;  // [chunk, dr]
  // Row (t, h) at (t * out_heads + h) * r: the quotient; or, of a run, sums not yet divided, with
  // the largest score and the sum of weights of each row.
  float* out = nullptr;
  int64_t out_heads = 0;
  float* max = nullptr;  // Null: divide.
  float* sum = nullptr;
};

// Dispatched at run time. `scratch` has LatentLayout::scratch_floats, aligned to kAlignment.
void RunLatentItem(const LatentShape& shape, const LatentItem& item, float* scratch);
// The Highway target whose code it would run now (for tests).
int64_t LatentAttentionTarget();

}  // namespace pmkvq::internal
