// Plans, checks, and what runs where.
#include "pmkvq/kernels/attention/attention.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq {
namespace {

using internal::DecodeLayout;

void CheckShape(const AttentionShape& shape) {
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
  PMKVQ_CHECK(shape.group > 0 && shape.group <= kMaxGroup && shape.group % 8 == 0);
  PMKVQ_CHECK(shape.head_dim > 0 && shape.head_dim % shape.group == 0);
  PMKVQ_CHECK(IsFloat16Or32(shape.float_type) && IsFloat16Or32(shape.metadata_type));
  PMKVQ_CHECK(shape.sliding_window >= 0);
}

void CheckPages(const AttentionPlan& plan, const AttentionOperands& operands) {
  PMKVQ_CHECK(operands.pages.size() == plan.sequences.size());
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const AttentionPlan::Sequence& sequence = plan.sequences[i];
    for (int64_t p = sequence.first_seen_page; p < sequence.num_pages; ++p) {
      const KvPageView& page = operands.pages[i][p];
      const int32_t capacity = plan.pages[static_cast<size_t>(sequence.first_page + p)].capacity;
      for (const KvTensorView* tensor : {&page.k, &page.v}) {
        const int bits = tensor->bits;
        PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
        PMKVQ_CHECK(tensor->axis == QuantAxis::kToken ||
                    (tensor == &page.k && bits != 16 && capacity == kPageTokens));
        PMKVQ_CHECK(bits == 16 || tensor->metadata != nullptr);
        PMKVQ_CHECK(tensor->data != nullptr || capacity == 0);
      }
    }
  }
}

// Pages of one run: it depends on the sequence alone, as its sums do.
int64_t RunPages(int64_t num_pages) {
  return num_pages >= internal::kDeepPages ? internal::kDeepRunPages : internal::kRunPages;
}

int64_t NumRuns(int64_t num_pages) {
  const int64_t run_pages = RunPages(num_pages);
  return std::max<int64_t>(1, (num_pages + run_pages - 1) / run_pages);
}

// Passes over the pages that no row sees: the first row sees the most of them.
void SkipUnseenPages(const AttentionPlan& plan, AttentionPlan::Sequence& sequence) {
  const int64_t window = plan.shape.sliding_window;
  if (window == 0) return;
  const int64_t first_seen_token = sequence.num_stored - window + 1;
  for (; sequence.first_seen_page < sequence.num_pages; ++sequence.first_seen_page) {
    const int64_t page = sequence.first_page + sequence.first_seen_page;
    const int64_t end = sequence.num_unseen + plan.pages[static_cast<size_t>(page)].num_tokens;
    if (end > first_seen_token) return;
    sequence.num_unseen = end;
  }
}

void PlanDecode(int64_t sequence_idx, AttentionPlan& plan) {
  constexpr auto kAlignedFloats = static_cast<int64_t>(kAlignment / sizeof(float));
  const AttentionPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(sequence_idx)];
  const DecodeLayout layout(plan.shape, sequence.num_rows);
  const int64_t partial_floats = RoundUpTo(layout.partial_floats(), kAlignedFloats);
  const int64_t num_pages = sequence.num_pages - sequence.first_seen_page;
  const int64_t num_runs = NumRuns(num_pages);
  const int64_t run_pages = RunPages(num_pages);
  for (int64_t head = 0; head < plan.shape.num_kv_heads; ++head) {
    int64_t first_token = sequence.num_unseen;
    for (int64_t run = 0; run < num_runs; ++run) {
      const int64_t first = run * run_pages;
      const int64_t run_end = std::min(first + run_pages, num_pages);
      plan.runs.push_back({.sequence = sequence_idx,
                           .kv_head = head,
                           .first_page = sequence.first_seen_page + first,
                           .num_pages = run_end - first,
                           .first_token = first_token,
                           .with_chunk = run + 1 == num_runs,
                           .partial = plan.partial_floats});
      plan.partial_floats += partial_floats;
      for (int64_t page = first; page < run_end; ++page) {
        const int64_t index = sequence.first_page + sequence.first_seen_page + page;
        first_token += plan.pages[static_cast<size_t>(index)].num_tokens;
      }
    }
  }
  plan.decode_thread_floats =
      std::max(plan.decode_thread_floats, layout.scratch_floats(plan.shape));
}

void PlanPrefill(int64_t sequence_idx, AttentionPlan& plan) {
  const AttentionPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(sequence_idx)];
  const int64_t tokens = internal::QueryTokens(plan.shape);
  const int64_t heads_per_kv = plan.shape.num_heads / plan.shape.num_kv_heads;
  for (int64_t head = 0; head < plan.shape.num_heads; head += internal::QueryHeads(plan.shape)) {
    for (int64_t t = 0; t < sequence.num_rows; t += tokens) {
      plan.query_blocks.push_back(
          {sequence_idx, head / heads_per_kv, t, std::min(tokens, sequence.num_rows - t), head});
    }
  }
}

// Of one thread, K or V of one stored value and query head: 2^19 take 30 us.
constexpr double kNsPerMultiplication = 30e3 / (1 << 19);

std::byte* GrowScratch(AttentionScratch& scratch, size_t num_bytes) {
  if (scratch.bytes.size() < num_bytes) {
    scratch.bytes.clear();
    scratch.bytes.reserve(num_bytes);  // No more than that: growing alone might double it.
    scratch.bytes.resize(num_bytes);
  }
  return scratch.bytes.data();
}

}  // namespace

void PlanAttention(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
                   const ExecContext& exec, AttentionMode mode, AttentionPlan& plan) {
  CheckShape(shape);
  plan.shape = shape;
  plan.mode = mode;
  plan.pages.clear();
  plan.sequences.clear();
  plan.runs.clear();
  plan.query_blocks.clear();
  plan.partial_floats = 0;
  plan.decode_thread_floats = 0;
  int64_t decode_work = 0;
  for (const AttentionSequence& sequence : sequences) {
    int64_t num_stored = 0;
    for (const PageTokens& page : sequence.pages) {
      PMKVQ_CHECK(0 <= page.num_tokens && page.num_tokens <= page.capacity);
      num_stored += page.num_tokens;
    }
    const int64_t num_pages = std::ssize(sequence.pages);
    const int64_t index = std::ssize(plan.sequences);
    plan.sequences.push_back({.first_page = std::ssize(plan.pages),
                              .num_pages = num_pages,
                              .num_rows = sequence.num_rows,
                              .first_row = sequence.first_row,
                              .num_stored = num_stored});
    plan.pages.insert(plan.pages.end(), sequence.pages.begin(), sequence.pages.end());
    AttentionPlan::Sequence& planned = plan.sequences.back();
    SkipUnseenPages(plan, planned);
    if (sequence.num_rows == 0) continue;
    if (sequence.num_rows <= internal::kMaxDecodeTokens) {
      PlanDecode(index, plan);
      decode_work += (num_pages - planned.first_seen_page) * kPageTokens * sequence.num_rows *
                     shape.num_heads * shape.head_dim;
    } else {
      PlanPrefill(index, plan);
    }
  }
  // Scratch is for all threads, also where one is enough: it must not grow with the stored tokens.
  const int threads = std::max(exec.num_threads, 1);
  plan.decode_threads = static_cast<int>(std::clamp<int64_t>(
      UsefulThreads(threads, static_cast<double>(decode_work) * kNsPerMultiplication), 1,
      std::max<int64_t>(1, std::ssize(plan.runs))));
  plan.prefill_threads = threads;
  const int64_t decode_floats = plan.partial_floats + threads * plan.decode_thread_floats;
  plan.scratch_bytes = static_cast<size_t>(decode_floats) * sizeof(float);
  if (!plan.query_blocks.empty()) {
    plan.prefill_thread_bytes = internal::PrefillScratchBytes(shape);
    plan.scratch_bytes =
        std::max(plan.scratch_bytes, plan.prefill_thread_bytes * static_cast<size_t>(threads));
  }
}

void RunAttention(const AttentionPlan& plan, const AttentionOperands& operands,
                  AttentionScratch& scratch) {
  CheckPages(plan, operands);
  switch (operands.device.device) {
    case Device::kCpu:
      return internal::RunAttentionCpu(plan, operands, GrowScratch(scratch, plan.scratch_bytes));
    case Device::kCuda:
      return internal::RunAttentionCuda(plan, operands);
  }
}

}  // namespace pmkvq
