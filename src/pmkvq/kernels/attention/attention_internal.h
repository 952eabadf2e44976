// Between RunAttention and its two ways of working: decode (few rows) and prefill (many rows).
#pragma once

#include <algorithm>
#include <cstdint>

#include "pmkvq/base/round_up.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq::internal {

// Sequences with at most this many rows are decoded, others prefilled.
inline constexpr int64_t kMaxDecodeTokens = 4;
// Stored tokens are attended in blocks of at most this many (a page; a larger sink is split).
inline constexpr int64_t kBlockTokens = 128;
// Tokens of a tile: with a group of 128 dims as floats, 16 KiB of first-level cache.
inline constexpr int64_t kTileTokens = 32;
// Pages of one work item of decode; of a deep sequence more: the first slice of an item is not
// asked for ahead, and there are items enough.
inline constexpr int64_t kRunPages = 8;
inline constexpr int64_t kDeepRunPages = 32;
inline constexpr int64_t kDeepPages = 128;

// Rows of K, or of V, of one KV head, from some token on. Of keys per channel: a row is the 128
// tokens of a channel, one group.
struct TensorRows {
  const std::byte* data = nullptr;    // Row t at data + t * row_bytes.
  const std::byte* mins = nullptr;    // Of row t and group g at index t * (groups of a row) + g.
  const std::byte* ranges = nullptr;  // Likewise.
  int64_t row_bytes = 0;
  int bits = 16;
  DType float_type = DType::kF32;  // Of 16-bit rows.
  QuantAxis axis = QuantAxis::kToken;

  // A page per channel has no rows of tokens: 0 only.
  TensorRows From(int64_t token, const AttentionShape& shape) const;
  // Keys per channel, from that channel on.
  TensorRows FromChannel(int64_t channel, const AttentionShape& shape) const;
};

// The rows of head `head` of a stored page.
TensorRows PageRows(const AttentionShape& shape, const KvTensorView& tensor, int64_t capacity,
                    int64_t head);
// The rows of head `head` of a chunk's own keys or values, [T, Hkv, D] floats.
TensorRows ChunkRows(const AttentionShape& shape, const float* x, int64_t head);

// Partial result of R query rows over some of the tokens: out = sum_m exp(s_m - max) V_m, not yet
// divided by sum = sum_m exp(s_m - max). Groups of `out` are padded to full vectors.
struct DecodeLayout {
  DecodeLayout(const AttentionShape& shape, int64_t num_tokens);
  int64_t rows;          // R = T * H / Hkv, row t * (H / Hkv) + j.
  int64_t whole_rows;    // By which kernels are chosen: R, or T * whole_heads.
  int64_t padded_group;  // Floats a group takes in `out` and in tiles.
  int64_t row_stride;    // Floats a row takes in `out`.
  int64_t partial_floats() const { return rows * (row_stride + 2); }
  int64_t scratch_floats(const AttentionShape& shape) const;
};
struct Partial {
  Partial(const DecodeLayout& layout, float* memory)
      : out(memory), max(memory + layout.rows * layout.row_stride), sum(max + layout.rows) {}
  float* out;  // [R, row_stride]
  float* max;  // [R]
  float* sum;  // [R]
};

// A sequence of the plan with its operands in the block that is attended.
struct SequenceBlock {
  std::span<const PageTokens> tokens;  // By page.
  const KvPageView* pages;
  int64_t num_rows;
  int64_t num_stored;       // Tokens before the first row.
  int64_t first_seen_page;  // Of the plan.
  int64_t num_unseen;
  const float* q;      // [T, H, D]
  const float* k_new;  // [T, Hkv, D]
  const float* v_new;  // [T, Hkv, D]
  float* out;          // [T, H, D]
};
SequenceBlock BlockOf(const AttentionPlan& plan, const AttentionOperands& operands,
                      int64_t sequence);

// One piece of decode work: a run of pages of one KV head of one sequence.
struct DecodeItem {
  SequenceBlock sequence;
  int64_t kv_head;
  int64_t first_page;
  int64_t num_pages;
  int64_t first_token;  // Tokens of the sequence before the first page.
  bool with_chunk;      // The chunk's own tokens too; the sequence's last item.
  AttentionMode mode;
  float* partial;
};

// Vector kernels, dispatched at run time (attention_decode.cc, attention_softmax.cc).
// `scratch` has layout.scratch_floats() floats. All memory is aligned to kAlignment.
void RunDecodeItem(const AttentionShape& shape, const DecodeItem& item, float* scratch);

// The tokens of a block that row r sees: from hidden[r] on, before visible[r].
struct SeenTokens {
  const int64_t* visible = nullptr;
  const int64_t* hidden = nullptr;  // Null: 0 for all rows, as without a sliding window.
};

// How many of `count` tokens, the first of which has position `first`, a row at `position` does not
// see because of the window.
inline int64_t HiddenTokens(int64_t window, int64_t position, int64_t first, int64_t count) {
  return window == 0 ? 0 : std::clamp<int64_t>(position - window + 1 - first, 0, count);
}

// Softmax of one block of scores, in the online form. For each row r of scores [rows, stride]:
// the scores that it sees, of `count`, become exp(s - max[r]), the others 0; max[r] and sum[r]
// take up the new scores; rescale[r] is what earlier sums must be multiplied by.
void OnlineSoftmax(int64_t rows, int64_t count, int64_t stride, const SeenTokens& seen,
                   float* scores, float* max, float* sum, float* rescale);

// out[r, i] *= factor[r], rows of `count` values, `stride` apart.
void ScaleRows(int64_t rows, int64_t count, int64_t stride, const float* factor, float* out);

// 16-bit rows to floats: out [num_rows, count].
void ConvertRows(const TensorRows& in, int64_t num_rows, int64_t count, float* out);

// The Highway target whose code the functions above would run now (for tests).
int64_t AttentionTarget();

// RunAttention's part of each backend. `scratch` has plan.scratch_bytes.
void RunAttentionCpu(const AttentionPlan& plan, const AttentionOperands& operands,
                     std::byte* scratch);
void RunAttentionCuda(const AttentionPlan& plan, const AttentionOperands& operands);

// Query heads and tokens of one block of prefill.
int64_t QueryHeads(const AttentionShape& shape);
int64_t QueryTokens(const AttentionShape& shape);
size_t PrefillScratchBytes(const AttentionShape& shape);
// Attends them with matrix products. `scratch` has PrefillScratchBytes.
void RunQueryBlock(const AttentionShape& shape, const SequenceBlock& sequence,
                   const AttentionPlan::QueryBlock& block, std::byte* scratch);

}  // namespace pmkvq::internal
