// Absorbed attention of new tokens over paged latents of mixed widths, read in packed form.
//
// A stored token is a latent c of r values and a rope part k_r of dr values, which all query heads
// share: its key is (c, k_r), its value c. For query row t of head h, over all stored tokens m and
// the chunk's own tokens m <= t:
//
//   out[t, h] = sum_m softmax_m(q[t, h] . (c[m], k_r[m])) c[m]
//
// Scores are taken as they are: whoever makes q has multiplied it with their scale.
//
// As in attention.h the work is planned once per Forward and run once per block, and the cache
// fills in `PageTokens` and `KvPageView`s, whose k is a page of c, [r / G heads, capacity, G], and
// whose v one of k_r, [1, capacity, dr]; both per token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

struct LatentShape {
  int64_t num_heads = 0;              // H
  int64_t latent = 0;                 // r, a multiple of `group`.
  int64_t rope = 0;                   // dr, one group.
  int64_t group = 0;                  // G, of c. Multiples of 8 up to kMaxGroup, as dr.
  DType float_type = DType::kF16;     // Of 16-bit pages: kF16, kBF16 or kF32.
  DType metadata_type = DType::kF16;  // Of min and range.

  int64_t key_values() const { return latent + rope; }
  friend bool operator==(const LatentShape&, const LatentShape&) = default;
};

// What attention of one block works on.
struct LatentOperands {
  std::span<const KvPageView* const> pages;  // As AttentionOperands.
  const float* q = nullptr;                  // [rows, H, r + dr]
  const float* c_new = nullptr;              // [rows, r]
  const float* kr_new = nullptr;             // [rows, dr]
  float* out = nullptr;                      // [rows, H, r]
  DeviceId device = {};                      // That all of these lie on, and that attends.
};

// How a batch is attended: everything that does not depend on the block. Made once per Forward,
// used for every block. Holds no pointer to a page or a row.
struct LatentPlan {
  struct Sequence {
    int64_t first_page = 0;  // Of `pages`.
    int64_t num_pages = 0;
    int64_t num_rows = 0;
    int64_t first_row = 0;
  };
  // Some heads of some rows of a sequence over a run of its pages.
  struct Item {
    int64_t sequence = 0;
    int64_t first_token = 0;  // Of the sequence's rows.
    int64_t num_tokens = 0;
    int64_t first_head = 0;
    int64_t num_heads = 0;
    int64_t first_page = 0;  // Of the sequence.
    int64_t num_pages = 0;
    bool with_chunk = false;  // The chunk's own tokens too; the last run of these rows.
    int64_t partial = -1;     // Where its result lies: floats from the scratch's begin. -1: `out`.
  };

  LatentShape shape;
  std::vector<PageTokens> pages;
  std::vector<Sequence> sequences;
  std::vector<Item> items;  // In the order (sequence, rows, pages).
  int num_threads = 1;
  int64_t partial_floats = 0;  // Of all items.
  int64_t thread_floats = 0;   // Scratch of one thread behind them.
  size_t scratch_bytes = 0;
};

// Plans a batch. Work is split over (sequence, rows, fixed run of pages), and partial results are
// merged in page order, so that the bits of a row depend neither on the other sequences nor on the
// number of threads. They may depend on its sequence's num_rows. Cost O(pages + items), without
// heap allocation once `plan` has grown.
void PlanLatentAttention(const LatentShape& shape, std::span<const AttentionSequence> sequences,
                         const ExecContext& exec, LatentPlan& plan);

// Attends one block. Throws Unsupported when the program has no code for the operands' device.
void RunLatentAttention(const LatentPlan& plan, const LatentOperands& operands,
                        AttentionScratch& scratch);

namespace ref {
// Scalar oracle in double precision, one row at a time.
void AttendLatents(const LatentShape& shape, std::span<const AttentionSequence> sequences,
                   const LatentOperands& operands);
}  // namespace ref

}  // namespace pmkvq
