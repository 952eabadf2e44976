// The CPU's way: runs of decode and blocks of query rows are shared out to threads.
#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq::internal {

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
          .num_stored = planned.num_stored,
          .first_seen_page = planned.first_seen_page,
          .num_unseen = planned.num_unseen,
          .q = operands.q + q_offset,
          .k_new = operands.k_new + kv_offset,
          .v_new = operands.v_new + kv_offset,
          .out = operands.out + q_offset};
}

namespace {

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

void RunDecode(const AttentionPlan& plan, const AttentionOperands& operands, float* scratch) {
  float* thread_memory = scratch + plan.partial_floats;
  ParallelFor(plan.decode_threads, std::ssize(plan.runs), [&](int64_t i, int worker) {
    const AttentionPlan::Run& run = plan.runs[static_cast<size_t>(i)];
    const DecodeItem item = {.sequence = BlockOf(plan, operands, run.sequence),
                             .kv_head = run.kv_head,
                             .first_page = run.first_page,
                             .num_pages = run.num_pages,
                             .first_token = run.first_token,
                             .with_chunk = run.with_chunk,
                             .mode = plan.mode,
                             .partial = scratch + run.partial};
    RunDecodeItem(plan.shape, item, thread_memory + worker * plan.decode_thread_floats);
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
    RunQueryBlock(plan.shape, BlockOf(plan, operands, block.sequence), block,
                  scratch + static_cast<size_t>(worker) * plan.prefill_thread_bytes);
  });
}

}  // namespace

void RunAttentionCpu(const AttentionPlan& plan, const AttentionOperands& operands,
                     std::byte* scratch) {
  PMKVQ_CHECK(plan.shape.layout == PageLayout::kPlanes);
  if (!plan.runs.empty()) RunDecode(plan, operands, reinterpret_cast<float*>(scratch));
  if (!plan.query_blocks.empty()) RunPrefill(plan, operands, scratch);
}

}  // namespace pmkvq::internal
