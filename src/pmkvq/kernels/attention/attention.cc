#include "pmkvq/kernels/attention/attention.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq {
namespace internal {

TensorRows TensorRows::From(int64_t token, const AttentionShape& shape) const {
  TensorRows rows = *this;
  if (axis == QuantAxis::kChannel) {
    PMKVQ_DCHECK(token == 0);
    return rows;
  }
  rows.data += token * row_bytes;
  if (bits != 16) {
    const auto size = static_cast<int64_t>(SizeOf(shape.metadata_type));
    const int64_t offset = token * (shape.head_dim / shape.group) * size;
    rows.mins += offset;
    rows.ranges += offset;
  }
  return rows;
}

TensorRows TensorRows::FromChannel(int64_t channel, const AttentionShape& shape) const {
  PMKVQ_DCHECK(axis == QuantAxis::kChannel);
  TensorRows rows = *this;
  const int64_t offset = channel * static_cast<int64_t>(SizeOf(shape.metadata_type));
  rows.data += channel * row_bytes;
  rows.mins += offset;
  rows.ranges += offset;
  return rows;
}

TensorRows PageRows(const AttentionShape& shape, const KvTensorView& tensor, int64_t capacity,
                    int64_t head) {
  TensorRows rows;
  rows.bits = tensor.bits;
  rows.float_type = shape.float_type;
  rows.axis = tensor.axis;
  if (tensor.axis == QuantAxis::kChannel) {
    const int64_t metadata_bytes =
        shape.head_dim * static_cast<int64_t>(SizeOf(shape.metadata_type));
    rows.row_bytes = PackedGroupBytes(capacity, tensor.bits);
    rows.data = tensor.data + head * shape.head_dim * rows.row_bytes;
    rows.mins = tensor.metadata + (2 * head + 0) * metadata_bytes;
    rows.ranges = tensor.metadata + (2 * head + 1) * metadata_bytes;
    return rows;
  }
  const int64_t num_groups = shape.head_dim / shape.group;
  if (tensor.bits == 16) {
    rows.row_bytes = shape.head_dim * static_cast<int64_t>(SizeOf(shape.float_type));
  } else {
    rows.row_bytes = num_groups * PackedGroupBytes(shape.group, tensor.bits);
    const int64_t metadata_bytes =
        capacity * num_groups * static_cast<int64_t>(SizeOf(shape.metadata_type));
    rows.mins = tensor.metadata + (2 * head + 0) * metadata_bytes;
    rows.ranges = tensor.metadata + (2 * head + 1) * metadata_bytes;
  }
  rows.data = tensor.data + head * capacity * rows.row_bytes;
  return rows;
}

TensorRows ChunkRows(const AttentionShape& shape, const float* x, int64_t head) {
  TensorRows rows;
  rows.data = reinterpret_cast<const std::byte*>(x + head * shape.head_dim);
  rows.row_bytes = shape.num_kv_heads * shape.head_dim * static_cast<int64_t>(sizeof(float));
  return rows;
}

SequenceBlock BlockOf(const AttentionPlan& plan, const AttentionOperands& operands,
                      int64_t sequence) {
  const AttentionPlan::Sequence& planned = plan.sequences[static_cast<size_t>(sequence)];
  const AttentionShape& shape = plan.shape;
  const int64_t q_offset = planned.first_row * shape.num_heads * shape.head_dim;
  const int64_t kv_offset = planned.first_row * shape.num_kv_heads * shape.head_dim;
  return {.tokens = std::span(plan.pages)
                        .subspan(static_cast<size_t>(planned.first_page),
                                 static_cast<size_t>(planned.num_pages)),
          .pages = operands.pages[static_cast<size_t>(sequence)],
          .num_rows = planned.num_rows,
          .q = operands.q + q_offset,
          .k_new = operands.k_new + kv_offset,
          .v_new = operands.v_new + kv_offset,
          .out = operands.out + q_offset};
}

}  // namespace internal

namespace {

using internal::BlockOf;
using internal::DecodeLayout;
using internal::Partial;
using internal::SequenceBlock;

void CheckShape(const AttentionShape& shape) {
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
  PMKVQ_CHECK(shape.group > 0 && shape.group <= kMaxGroup && shape.group % 8 == 0);
  PMKVQ_CHECK(shape.head_dim > 0 && shape.head_dim % shape.group == 0);
  PMKVQ_CHECK(IsFloat16Or32(shape.float_type) && IsFloat16Or32(shape.metadata_type));
}

void CheckPages(const AttentionPlan& plan, const AttentionOperands& operands) {
  PMKVQ_CHECK(operands.pages.size() == plan.sequences.size());
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const AttentionPlan::Sequence& sequence = plan.sequences[i];
    for (int64_t p = 0; p < sequence.num_pages; ++p) {
      const KvPageView& page = operands.pages[i][p];
      const int32_t capacity = plan.pages[static_cast<size_t>(sequence.first_page + p)].capacity;
      for (const KvTensorView* tensor : {&page.k, &page.v}) {
        const int bits = tensor->bits;
        PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
        PMKVQ_CHECK(tensor->axis == QuantAxis::kToken ||
                    (tensor == &page.k && bits != 16 && capacity == kPageTokens));
        PMKVQ_CHECK(bits == 16 || tensor->metadata != nullptr);
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

void PlanDecode(int64_t sequence_idx, AttentionPlan& plan) {
  constexpr auto kAlignedFloats = static_cast<int64_t>(kAlignment / sizeof(float));
  const AttentionPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(sequence_idx)];
  const DecodeLayout layout(plan.shape, sequence.num_rows);
  const int64_t partial_floats = internal::RoundUpTo(layout.partial_floats(), kAlignedFloats);
  const int64_t num_runs = NumRuns(sequence.num_pages);
  const int64_t run_pages = RunPages(sequence.num_pages);
  for (int64_t head = 0; head < plan.shape.num_kv_heads; ++head) {
    for (int64_t run = 0; run < num_runs; ++run) {
      const int64_t first = run * run_pages;
      plan.runs.push_back({.sequence = sequence_idx,
                           .kv_head = head,
                           .first_page = first,
                           .num_pages = std::min(run_pages, sequence.num_pages - first),
                           .with_chunk = run + 1 == num_runs,
                           .partial = plan.partial_floats});
      plan.partial_floats += partial_floats;
    }
  }
  plan.decode_thread_floats =
      std::max(plan.decode_thread_floats, layout.scratch_floats(plan.shape));
}

void PlanPrefill(int64_t sequence_idx, AttentionPlan& plan) {
  const AttentionPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(sequence_idx)];
  const int64_t tokens = internal::QueryTokens(plan.shape);
  for (int64_t head = 0; head < plan.shape.num_kv_heads; ++head) {
    for (int64_t t = 0; t < sequence.num_rows; t += tokens) {
      plan.query_blocks.push_back({sequence_idx, head, t, std::min(tokens, sequence.num_rows - t)});
    }
  }
}

// Of one thread, K or V of one stored value and query head: 2^19 take 30 us.
constexpr double kNsPerMultiplication = 30e3 / (1 << 19);

// Merges the partials of one KV head of one sequence, in the order of their pages.
void MergeRuns(const AttentionShape& shape, const SequenceBlock& sequence,
               std::span<const AttentionPlan::Run> runs, float* scratch) {
  const DecodeLayout layout(shape, sequence.num_rows);
  const int64_t heads = shape.num_heads / shape.num_kv_heads;
  for (int64_t r = 0; r < layout.rows; ++r) {
    const int64_t row = r / heads * shape.num_heads + runs.front().kv_head * heads + r % heads;
    float* out = sequence.out + row * shape.head_dim;
    float max = -INFINITY;
    for (const AttentionPlan::Run& run : runs) {
      max = std::max(max, Partial(layout, scratch + run.partial).max[r]);
    }
    std::fill_n(out, shape.head_dim, 0.0f);
    float sum = 0.0f;
    for (const AttentionPlan::Run& run : runs) {
      const Partial partial(layout, scratch + run.partial);
      const float factor = std::exp(partial.max[r] - max);
      sum += factor * partial.sum[r];
      for (int64_t g = 0; g < shape.head_dim / shape.group; ++g) {
        const float* from = partial.out + r * layout.row_stride + g * layout.padded_group;
        float* to = out + g * shape.group;
        for (int64_t i = 0; i < shape.group; ++i) to[i] += factor * from[i];
      }
    }
    for (int64_t i = 0; i < shape.head_dim; ++i) out[i] /= sum;
  }
}

std::byte* GrowScratch(AttentionScratch& scratch, size_t num_bytes) {
  if (scratch.bytes.size() < num_bytes) {
    scratch.bytes.clear();
    scratch.bytes.reserve(num_bytes);  // No more than that: growing alone might double it.
    scratch.bytes.resize(num_bytes);
  }
  return scratch.bytes.data();
}

void RunDecode(const AttentionPlan& plan, const AttentionOperands& operands, float* scratch) {
  float* thread_memory = scratch + plan.partial_floats;
  ParallelFor(plan.decode_threads, std::ssize(plan.runs), [&](int64_t i, int worker) {
    const AttentionPlan::Run& run = plan.runs[static_cast<size_t>(i)];
    const internal::DecodeItem item = {.sequence = BlockOf(plan, operands, run.sequence),
                                       .kv_head = run.kv_head,
                                       .first_page = run.first_page,
                                       .num_pages = run.num_pages,
                                       .with_chunk = run.with_chunk,
                                       .mode = plan.mode,
                                       .partial = scratch + run.partial};
    internal::RunDecodeItem(plan.shape, item, thread_memory + worker * plan.decode_thread_floats);
  });
  for (size_t first = 0; first < plan.runs.size();) {
    size_t count = 1;
    while (!plan.runs[first + count - 1].with_chunk) ++count;
    const SequenceBlock sequence = BlockOf(plan, operands, plan.runs[first].sequence);
    MergeRuns(plan.shape, sequence, std::span(plan.runs).subspan(first, count), scratch);
    first += count;
  }
}

void RunPrefill(const AttentionPlan& plan, const AttentionOperands& operands, std::byte* scratch) {
  ParallelFor(plan.prefill_threads, std::ssize(plan.query_blocks), [&](int64_t i, int worker) {
    const AttentionPlan::QueryBlock& block = plan.query_blocks[static_cast<size_t>(i)];
    internal::RunQueryBlock(plan.shape, BlockOf(plan, operands, block.sequence), block,
                            scratch + static_cast<size_t>(worker) * plan.prefill_thread_bytes);
  });
}

}  // namespace

void PlanAttention(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
                   int num_threads, AttentionMode mode, AttentionPlan& plan) {
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
    for (const PageTokens& page : sequence.pages) {
      PMKVQ_CHECK(0 <= page.num_tokens && page.num_tokens <= page.capacity);
    }
    const int64_t num_pages = std::ssize(sequence.pages);
    const int64_t index = std::ssize(plan.sequences);
    plan.sequences.push_back(
        {std::ssize(plan.pages), num_pages, sequence.num_rows, sequence.first_row});
    plan.pages.insert(plan.pages.end(), sequence.pages.begin(), sequence.pages.end());
    if (sequence.num_rows == 0) continue;
    if (sequence.num_rows <= internal::kMaxDecodeTokens) {
      PlanDecode(index, plan);
      decode_work += num_pages * kPageTokens * sequence.num_rows * shape.num_heads * shape.head_dim;
    } else {
      PlanPrefill(index, plan);
    }
  }
  // Scratch is for all threads, also where one is enough: it must not grow with the stored tokens.
  const int threads = std::max(num_threads, 1);
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
  std::byte* memory = GrowScratch(scratch, plan.scratch_bytes);
  if (!plan.runs.empty()) RunDecode(plan, operands, reinterpret_cast<float*>(memory));
  if (!plan.query_blocks.empty()) RunPrefill(plan, operands, memory);
}

}  // namespace pmkvq
