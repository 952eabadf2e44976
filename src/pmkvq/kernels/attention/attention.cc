#include "pmkvq/kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

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

}  // namespace internal

namespace {

using internal::DecodeItem;
using internal::DecodeLayout;
using internal::Partial;

void CheckCall(const AttentionShape& shape, std::span<const AttentionSequence> sequences) {
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
  PMKVQ_CHECK(shape.group > 0 && shape.group <= kMaxGroup && shape.group % 8 == 0);
  PMKVQ_CHECK(shape.head_dim > 0 && shape.head_dim % shape.group == 0);
  PMKVQ_CHECK(IsFloat16Or32(shape.float_type) && IsFloat16Or32(shape.metadata_type));
  for (const AttentionSequence& sequence : sequences) {
    for (const KvPageView& page : sequence.pages) {
      PMKVQ_CHECK(0 <= page.num_tokens && page.num_tokens <= page.capacity);
      for (const KvTensorView* tensor : {&page.k, &page.v}) {
        const int bits = tensor->bits;
        PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
        PMKVQ_CHECK(tensor->axis == QuantAxis::kToken ||
                    (tensor == &page.k && bits != 16 && page.capacity == kPageTokens));
        PMKVQ_CHECK(bits == 16 || tensor->metadata != nullptr);
      }
    }
  }
}

// Pages of one item: it depends on the sequence alone, as its sums do.
int64_t RunPages(const AttentionSequence& sequence) {
  const bool is_deep = std::ssize(sequence.pages) >= internal::kDeepPages;
  return is_deep ? internal::kDeepRunPages : internal::kRunPages;
}

int64_t NumRuns(const AttentionSequence& sequence) {
  const int64_t run_pages = RunPages(sequence);
  return std::max<int64_t>(1, (std::ssize(sequence.pages) + run_pages - 1) / run_pages);
}

// All items of decode, in the order (sequence, KV head, run); partials are placed later.
std::vector<DecodeItem> PlanDecode(const AttentionShape& shape,
                                   std::span<const AttentionSequence* const> sequences,
                                   AttentionMode mode) {
  std::vector<DecodeItem> items;
  for (const AttentionSequence* sequence : sequences) {
    const auto num_pages = static_cast<int64_t>(sequence->pages.size());
    const int64_t num_runs = NumRuns(*sequence);
    const int64_t run_pages = RunPages(*sequence);
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int64_t run = 0; run < num_runs; ++run) {
        const int64_t first = run * run_pages;
        items.push_back({.sequence = sequence,
                         .kv_head = head,
                         .first_page = first,
                         .num_pages = std::min(run_pages, num_pages - first),
                         .with_chunk = run + 1 == num_runs,
                         .mode = mode,
                         .partial = nullptr});
      }
    }
  }
  return items;
}

// Merges the partials of one KV head of one sequence, in the order of their pages.
void MergeRuns(const AttentionShape& shape, std::span<const DecodeItem> runs) {
  const AttentionSequence& sequence = *runs.front().sequence;
  const DecodeLayout layout(shape, sequence.num_rows);
  const int64_t heads = shape.num_heads / shape.num_kv_heads;
  for (int64_t r = 0; r < layout.rows; ++r) {
    const int64_t row = r / heads * shape.num_heads + runs.front().kv_head * heads + r % heads;
    float* out = sequence.out + row * shape.head_dim;
    float max = -INFINITY;
    for (const DecodeItem& run : runs) max = std::max(max, Partial(layout, run.partial).max[r]);
    std::fill_n(out, shape.head_dim, 0.0f);
    float sum = 0.0f;
    for (const DecodeItem& run : runs) {
      const Partial partial(layout, run.partial);
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

// Of one thread, K or V of one stored value and query head: 2^19 take 30 us.
constexpr double kNsPerMultiplication = 30e3 / (1 << 19);

float* GrowScratch(AttentionScratch& scratch, size_t num_bytes) {
  if (scratch.bytes.size() < num_bytes) {
    scratch.bytes.clear();
    scratch.bytes.reserve(num_bytes);  // No more than that: growing alone might double it.
    scratch.bytes.resize(num_bytes);
  }
  return reinterpret_cast<float*>(scratch.bytes.data());
}

void DecodeAll(const AttentionShape& shape, std::span<const AttentionSequence* const> sequences,
               int num_threads, AttentionScratch& scratch, AttentionMode mode) {
  constexpr auto kAlignedFloats = static_cast<int64_t>(kAlignment / sizeof(float));
  std::vector<DecodeItem> items = PlanDecode(shape, sequences, mode);
  int64_t work = 0;
  for (const AttentionSequence* sequence : sequences) {
    work += std::ssize(sequence->pages) * kPageTokens * sequence->num_rows * shape.num_heads *
            shape.head_dim;
  }
  int64_t thread_floats = 0;
  int64_t total_floats = 0;
  std::vector<int64_t> partial_offsets;
  for (const DecodeItem& item : items) {
    const DecodeLayout layout(shape, item.sequence->num_rows);
    thread_floats = std::max(thread_floats, layout.scratch_floats(shape));
    partial_offsets.push_back(total_floats);
    total_floats += internal::RoundUpTo(layout.partial_floats(), kAlignedFloats);
  }
  const auto num_items = static_cast<int64_t>(items.size());
  const int threads = static_cast<int>(std::min<int64_t>(
      num_items, UsefulThreads(num_threads, static_cast<double>(work) * kNsPerMultiplication)));
  // For all threads, also where one is enough: the scratch must not grow with the stored tokens.
  const int64_t all_floats = total_floats + std::max(num_threads, 1) * thread_floats;
  float* partials = GrowScratch(scratch, static_cast<size_t>(all_floats) * sizeof(float));
  float* thread_memory = partials + total_floats;
  for (size_t i = 0; i < items.size(); ++i) items[i].partial = partials + partial_offsets[i];

  ParallelFor(threads, num_items, [&](int64_t i, int worker) {
    float* memory = thread_memory + worker * thread_floats;
    internal::RunDecodeItem(shape, items[static_cast<size_t>(i)], memory);
  });

  size_t first = 0;
  for (const AttentionSequence* sequence : sequences) {
    const auto num_runs = static_cast<size_t>(NumRuns(*sequence));
    for (int64_t head = 0; head < shape.num_kv_heads; ++head, first += num_runs) {
      MergeRuns(shape, std::span(items).subspan(first, num_runs));
    }
  }
}

}  // namespace

void Attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            int num_threads, AttentionScratch& scratch, AttentionMode mode) {
  CheckCall(shape, sequences);
  std::vector<const AttentionSequence*> decode;
  std::vector<const AttentionSequence*> prefill;
  for (const AttentionSequence& sequence : sequences) {
    if (sequence.num_rows == 0) continue;
    (sequence.num_rows <= internal::kMaxDecodeTokens ? decode : prefill).push_back(&sequence);
  }
  if (!decode.empty()) DecodeAll(shape, decode, num_threads, scratch, mode);
  if (!prefill.empty()) {
    const size_t bytes = internal::PrefillScratchBytes(shape);
    const int threads = std::max(num_threads, 1);
    float* memory = GrowScratch(scratch, bytes * static_cast<size_t>(threads));
    internal::Prefill(shape, prefill, threads, reinterpret_cast<std::byte*>(memory));
  }
}

}  // namespace pmkvq
