// Attention of new tokens over a paged cache of mixed widths, read in packed form.
//
// For query row t of head h, with kv head g = h / (H / Hkv), over all stored tokens m and the
// chunk's own tokens m <= t:
//
//   out[t, h] = sum_m softmax_m(scale * q[t, h] . K[m, g]) V[m, g]
//
// With a sliding window W a row sees only the newest W of these tokens, itself among them.
//
// Scale and minimum of a quantised group stay outside the inner loops:
//   q . K[m] = step_m * (q . codes_m) + min_m * sum(q),
//   sum_m p_m V[m] = sum_m (p_m * step_m) codes_m + (sum_m p_m * min_m) * 1.
// Keys per channel are such a weighted sum too, of channels d with weights q_d:
//   (q . K[m])_m = sum_d (q_d * step_d) codes_d + (sum_d q_d * min_d) * 1.
// No dequantised copy of the cache is made beyond one page at a time in scratch.
//
// The work is planned once per Forward and run once per block. This header knows nothing of slots
// or policies: the cache fills `PageTokens` for the plan and `KvPageView`s for each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/device/exec_context.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

inline constexpr int64_t kPageTokens = 128;

// What a group of codes belongs to.
enum class QuantAxis : uint8_t {
  kToken,    // G channels of one token and head.
  kChannel,  // The 128 tokens of one channel and head: keys only.
};

// How the bytes of a page are arranged: a property of the store, whose codec writes pages so, and
// of the device, whose attention reads them so. Two layouts have nothing in common but the floats
// that their pages stand for.
enum class PageLayout : uint8_t {
  kPlanes,  // The CPU's, described at KvTensorView and in docs/formats.md.
};

// K, or V, of up to `capacity` tokens of one block of one sequence, all KV heads. In kPlanes:
//
// bits == 16: `data` is [Hkv, capacity, D] of the cache's float type (2 or 4 bytes a value).
// bits 8/4/2: `data` is packed groups [Hkv, capacity, D / G] (layout: kv_quant.h), and `metadata`
//   is [Hkv, 2, capacity, D / G]: per head all minima, then all ranges, in the metadata type.
// The same per channel (capacity 128): packed groups [Hkv, D] of 128 tokens each, metadata
//   [Hkv, 2, D].
struct KvTensorView {
  const std::byte* data = nullptr;
  const std::byte* metadata = nullptr;  // Null at 16 bits.
  int bits = 16;
  QuantAxis axis = QuantAxis::kToken;
};

struct KvPageView {
  KvTensorView k;
  KvTensorView v;
};

// The tokens of a stored page: the same in every block.
struct PageTokens {
  int32_t num_tokens = 0;  // Tokens in use, from the front.
  int32_t capacity = 0;    // Tokens the memory is laid out for (128, or the sink's size).
};

struct AttentionShape {
  int64_t num_heads = 0;              // H
  int64_t num_kv_heads = 0;           // Hkv
  int64_t head_dim = 0;               // D
  int64_t group = 0;                  // G
  DType float_type = DType::kF16;     // Of 16-bit pages: kF16, kBF16 or kF32.
  DType metadata_type = DType::kF16;  // Of min and range.
  float scale = 1.0f;                 // 1 / sqrt(D) as a rule.
  int64_t sliding_window = 0;         // W; 0: none, every row sees all tokens before it.
  PageLayout layout = PageLayout::kPlanes;
  // Not 0: how many query heads share a KV head in the whole model, of which other ranks may have
  // some. The bits of a head then do not depend on how many of them are here: prefill takes each by
  // itself, and decode chooses its kernel by the whole model's number. On the CPU.
  int64_t whole_heads = 0;

  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

// One sequence's part of a batch, as far as it is the same in every block.
struct AttentionSequence {
  std::span<const PageTokens> pages;  // Stored tokens, oldest first.
  int64_t num_rows = 0;               // New tokens T; row t sees rows 0..t of its sequence.
  int64_t first_row = 0;              // Where these lie among the rows of all sequences.
};

// What attention of one block works on.
struct AttentionOperands {
  // Per sequence of the plan, its pages: as many as the plan has for it. Not looked at where there
  // are none, and pages before Sequence::first_seen_page need no bytes.
  std::span<const KvPageView* const> pages;
  const float* q = nullptr;      // [rows, H, D]
  const float* k_new = nullptr;  // [rows, Hkv, D]
  const float* v_new = nullptr;  // [rows, Hkv, D]
  float* out = nullptr;          // [rows, H, D]
  DeviceId device = {};          // That all of these lie on, and that attends.
};

// How products with codes are computed.
enum class AttentionMode : uint8_t {
  kAccurate,  // Codes expanded to float.
  // Decode only: integer products of codes with q, and with weights times steps, each rounded to 16
  // bits by its largest magnitude (of a group of q; of 128 tokens' weights). Prefill, pages of
  // floats, and groups that do not fill vectors of 16 bytes are computed as in kAccurate.
  kFast,
};

// How a batch is attended: everything that does not depend on the block. Made once per Forward on
// the host, used for every block. Holds no pointer to a page or a row. Memory is kept when a plan
// is made anew.
struct AttentionPlan {
  // A sequence's pages are a part of `pages`.
  struct Sequence {
    int64_t first_page = 0;
    int64_t num_pages = 0;
    int64_t num_rows = 0;
    int64_t first_row = 0;
    int64_t num_stored = 0;  // Tokens of all its pages.
    // The pages before this one lie outside of every row's window; so many tokens are in them.
    int64_t first_seen_page = 0;
    int64_t num_unseen = 0;
  };
  // Decode: a run of pages of one KV head of one sequence.
  struct Run {
    int64_t sequence = 0;
    int64_t kv_head = 0;
    int64_t first_page = 0;  // Of the sequence.
    int64_t num_pages = 0;
    int64_t first_token = 0;  // Tokens of the sequence before the first page.
    bool with_chunk = false;  // The chunk's own tokens too; the last run of a head.
    int64_t partial = 0;      // Where its partial result lies: floats from the scratch's begin.
  };
  // Prefill: some query tokens of query heads of one KV head of one sequence.
  struct QueryBlock {
    int64_t sequence = 0;
    int64_t kv_head = 0;
    int64_t first_token = 0;
    int64_t num_tokens = 0;
    int64_t first_head = 0;  // Of QueryHeads (attention_internal.h) query heads.
  };

  AttentionShape shape;
  AttentionMode mode = AttentionMode::kAccurate;
  std::vector<PageTokens> pages;
  std::vector<Sequence> sequences;
  std::vector<Run> runs;  // In the order (sequence, KV head, pages).
  std::vector<QueryBlock> query_blocks;
  int decode_threads = 1;
  int prefill_threads = 1;
  int64_t partial_floats = 0;        // Of all runs.
  int64_t decode_thread_floats = 0;  // Scratch of one thread behind them.
  size_t prefill_thread_bytes = 0;
  size_t scratch_bytes = 0;
};

// Reusable memory; grows to what the largest plan needs: O(threads * one page) and, for decode, one
// partial result (R rows of D floats, R = T * H / Hkv) for each KV head and run of eight pages.
class AttentionScratch {
 public:
  AlignedVector<std::byte> bytes;
  size_t num_bytes() const { return bytes.capacity(); }
};

// Plans a batch. Work is split over (sequence, KV head, fixed run of pages) and partial results are
// merged in page order, so that the bits of a row depend neither on the other sequences nor on
// the number of threads. Sequences with few rows (decode) use vector kernels on packed pages; those
// with many rows (prefill) expand each page once and use matrix products. A row's bits may depend
// on its sequence's num_rows. Cost O(pages + runs), without heap allocation once `plan` has grown.
void PlanAttention(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
                   const ExecContext& exec, AttentionMode mode, AttentionPlan& plan);

// Attends one block. Throws Unsupported when the program has no code for the operands' device.
void RunAttention(const AttentionPlan& plan, const AttentionOperands& operands,
                  AttentionScratch& scratch);

namespace ref {
// Scalar oracle in double precision, one row at a time.
void Attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            const AttentionOperands& operands);
}  // namespace ref

}  // namespace pmkvq
