// Plans, checks, sharing out, and merging of absorbed attention.
#include "pmkvq/kernels/attention/latent_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq {
namespace {

using internal::LatentItem;
using internal::LatentLayout;

constexpr auto kAlignedFloats = static_cast<int64_t>(kAlignment / sizeof(float));

void CheckShape(const LatentShape& shape) {
  PMKVQ_CHECK(shape.num_heads > 0);
  PMKVQ_CHECK(shape.group > 0 && shape.group <= kMaxGroup && shape.group % 8 == 0);
  PMKVQ_CHECK(shape.latent > 0 && shape.latent % shape.group == 0);
  PMKVQ_CHECK(shape.rope > 0 && shape.rope <= kMaxGroup && shape.rope % 8 == 0);
  PMKVQ_CHECK(IsFloat16Or32(shape.float_type) && IsFloat16Or32(shape.metadata_type));
}

void CheckPages(const LatentPlan& plan, const LatentOperands& operands) {
  PMKVQ_CHECK(operands.pages.size() == plan.sequences.size());
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const LatentPlan::Sequence& sequence = plan.sequences[i];
    for (int64_t p = 0; p < sequence.num_pages; ++p) {
      const KvPageView& page = operands.pages[i][p];
      const int32_t capacity = plan.pages[static_cast<size_t>(sequence.first_page + p)].capacity;
      for (const KvTensorView* tensor : {&page.k, &page.v}) {
        const int bits = tensor->bits;
        PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
        PMKVQ_CHECK(tensor->axis == QuantAxis::kToken);
        PMKVQ_CHECK(bits == 16 || tensor->metadata != nullptr);
        PMKVQ_CHECK(tensor->data != nullptr || capacity == 0);
      }
    }
  }
}

// Pages of one run: it depends on the sequence alone, as its sums do.
int64_t RunPages(int64_t num_rows, int64_t num_pages) {
  if (num_rows > internal::kMaxLatentRunTokens) return std::max<int64_t>(1, num_pages);
  return num_pages >= internal::kDeepLatentPages ? internal::kDeepLatentRunPages
                                                 : internal::kLatentRunPages;
}

// Of an item: its rows' outputs, then largest scores, then sums.
int64_t PartialFloats(const LatentShape& shape, const LatentPlan::Item& item) {
  const int64_t rows = item.num_tokens * item.num_heads;
  return RoundUpTo(rows * (shape.latent + 2), kAlignedFloats);
}

void PlanSequence(int64_t index, LatentPlan& plan) {
  const LatentPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(index)];
  const int64_t all_heads = plan.shape.num_heads;
  const int64_t head_blocks = (all_heads + internal::kLatentRows - 1) / internal::kLatentRows;
  const int64_t heads = (all_heads + head_blocks - 1) / head_blocks;
  const int64_t tokens = std::max<int64_t>(1, internal::kLatentRows / all_heads);
  const int64_t run_pages = RunPages(sequence.num_rows, sequence.num_pages);
  const int64_t num_runs = std::max<int64_t>(1, (sequence.num_pages + run_pages - 1) / run_pages);
  for (int64_t token = 0; token < sequence.num_rows; token += tokens) {
    for (int64_t head = 0; head < all_heads; head += heads) {
      for (int64_t run = 0; run < num_runs; ++run) {
        LatentPlan::Item item = {.sequence = index,
                                 .first_token = token,
                                 .num_tokens = std::min(tokens, sequence.num_rows - token),
                                 .first_head = head,
                                 .num_heads = std::min(heads, all_heads - head),
                                 .first_page = run * run_pages,
                                 .with_chunk = run + 1 == num_runs};
        item.num_pages = std::min(run_pages, sequence.num_pages - item.first_page);
        if (num_runs > 1) {
          item.partial = plan.partial_floats;
          plan.partial_floats += PartialFloats(plan.shape, item);
        }
        plan.items.push_back(item);
      }
    }
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

// The rows of an item with their operands in the block that is attended.
LatentItem ItemOf(const LatentPlan& plan, const LatentOperands& operands,
                  const LatentPlan::Item& planned, float* scratch) {
  const LatentShape& shape = plan.shape;
  const auto index = static_cast<size_t>(planned.sequence);
  const LatentPlan::Sequence& sequence = plan.sequences[index];
  const int64_t row =
      (sequence.first_row + planned.first_token) * shape.num_heads + planned.first_head;
  LatentItem item;
  item.first_token = planned.first_token;
  item.num_tokens = planned.num_tokens;
  item.num_heads = planned.num_heads;
  item.tokens = std::span(plan.pages)
                    .subspan(static_cast<size_t>(sequence.first_page + planned.first_page),
                             static_cast<size_t>(planned.num_pages));
  item.pages = operands.pages[index] + planned.first_page;
  const int64_t behind = planned.first_page + planned.num_pages;
  if (behind < sequence.num_pages) {
    item.behind = plan.pages[static_cast<size_t>(sequence.first_page + behind)];
  }
  item.num_chunk_tokens = planned.with_chunk ? planned.first_token + planned.num_tokens : 0;
  item.q = operands.q + row * shape.key_values();
  item.c_new = operands.c_new + sequence.first_row * shape.latent;
  item.kr_new = operands.kr_new + sequence.first_row * shape.rope;
  if (planned.partial < 0) {
    item.out = operands.out + row * shape.latent;
    item.out_heads = shape.num_heads;
    return item;
  }
  const int64_t rows = planned.num_tokens * planned.num_heads;
  item.out = scratch + planned.partial;
  item.out_heads = planned.num_heads;
  item.max = item.out + rows * shape.latent;
  item.sum = item.max + rows;
  return item;
}

// Merges the partial results of the same rows, in the order of their pages.
void MergeRuns(const LatentPlan& plan, const LatentOperands& operands,
               std::span<const LatentPlan::Item> runs, float* scratch) {
  const int64_t latent = plan.shape.latent;
  const LatentPlan::Item& first = runs.front();
  const LatentPlan::Sequence& sequence = plan.sequences[static_cast<size_t>(first.sequence)];
  const int64_t rows = first.num_tokens * first.num_heads;
  for (int64_t r = 0; r < rows; ++r) {
    const auto max_of = [&](const LatentPlan::Item& run) {
      return scratch + run.partial + rows * latent + r;
    };
    float max = -INFINITY;
    for (const LatentPlan::Item& run : runs) max = std::max(max, *max_of(run));
    const int64_t token = sequence.first_row + first.first_token + r / first.num_heads;
    float* out = operands.out +
                 (token * plan.shape.num_heads + first.first_head + r % first.num_heads) * latent;
    std::fill_n(out, latent, 0.0f);
    float sum = 0.0f;
    for (const LatentPlan::Item& run : runs) {
      const float factor = std::exp(*max_of(run) - max);
      sum += factor * max_of(run)[rows];
      const float* from = scratch + run.partial + r * latent;
      for (int64_t i = 0; i < latent; ++i) out[i] += factor * from[i];
    }
    for (int64_t i = 0; i < latent; ++i) out[i] /= sum;
  }
}

void RunOnCpu(const LatentPlan& plan, const LatentOperands& operands, float* scratch) {
  float* const thread_memory = scratch + plan.partial_floats;
  ParallelFor(plan.num_threads, std::ssize(plan.items), [&](int64_t i, int worker) {
    internal::RunLatentItem(plan.shape,
                            ItemOf(plan, operands, plan.items[static_cast<size_t>(i)], scratch),
                            thread_memory + worker * plan.thread_floats);
  });
  for (size_t first = 0; first < plan.items.size();) {
    size_t count = 1;
    while (!plan.items[first + count - 1].with_chunk) ++count;
    if (count > 1) MergeRuns(plan, operands, std::span(plan.items).subspan(first, count), scratch);
    first += count;
  }
}

// Of one thread, one stored value and query head, twice: 2 fused multiply-adds.
constexpr double kNsPerValue = 2e-2;

}  // namespace

void PlanLatentAttention(const LatentShape& shape, std::span<const AttentionSequence> sequences,
                         const ExecContext& exec, LatentPlan& plan) {
  CheckShape(shape);
  plan.shape = shape;
  plan.pages.clear();
  plan.sequences.clear();
  plan.items.clear();
  plan.partial_floats = 0;
  double values = 0;
  for (const AttentionSequence& sequence : sequences) {
    for (const PageTokens& page : sequence.pages) {
      PMKVQ_CHECK(0 <= page.num_tokens && page.num_tokens <= page.capacity);
    }
    const int64_t index = std::ssize(plan.sequences);
    plan.sequences.push_back({.first_page = std::ssize(plan.pages),
                              .num_pages = std::ssize(sequence.pages),
                              .num_rows = sequence.num_rows,
                              .first_row = sequence.first_row});
    plan.pages.insert(plan.pages.end(), sequence.pages.begin(), sequence.pages.end());
    PlanSequence(index, plan);
    const int64_t tokens = std::ssize(sequence.pages) * kPageTokens + sequence.num_rows;
    values += static_cast<double>(tokens * shape.key_values()) *
              static_cast<double>(sequence.num_rows * shape.num_heads);
  }
  // Scratch is for all threads, also where one is enough: it must not grow with the stored tokens.
  const int threads = std::max(exec.num_threads, 1);
  plan.num_threads =
      static_cast<int>(std::clamp<int64_t>(UsefulThreads(threads, values * kNsPerValue), 1,
                                           std::max<int64_t>(1, std::ssize(plan.items))));
  plan.thread_floats = RoundUpTo(LatentLayout(shape).scratch_floats(shape), kAlignedFloats);
  plan.scratch_bytes =
      static_cast<size_t>(plan.partial_floats + threads * plan.thread_floats) * sizeof(float);
}

void RunLatentAttention(const LatentPlan& plan, const LatentOperands& operands,
                        AttentionScratch& scratch) {
  CheckPages(plan, operands);
  if (operands.device.device != Device::kCpu) {
    throw Unsupported("attention over latents",
                      fmt::format("found {}, expected the CPU", NameOf(operands.device)));
  }
  RunOnCpu(plan, operands, reinterpret_cast<float*>(GrowScratch(scratch, plan.scratch_bytes)));
}

}  // namespace pmkvq
