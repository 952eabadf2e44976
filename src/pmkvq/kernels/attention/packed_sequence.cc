#include "pmkvq/kernels/attention/packed_sequence.h"

#include <algorithm>

#include "pmkvq/base/parallel.h"

namespace pmkvq::internal {

void PackKeys(const CausalAttentionShape& shape, const float* k, AlignedVector<float>& packed,
              const ExecContext& exec) {
  const int64_t width = PanelWidth();
  const int64_t num_panels = NumKeyPanels(shape);
  const int64_t stride = shape.num_kv_heads * shape.head_dim;
  packed.resize(static_cast<size_t>(num_panels * width * stride));
  ParallelFor(exec.num_threads, shape.num_kv_heads * num_panels, [&](int64_t item, int /*worker*/) {
    const int64_t head = item / num_panels;
    const int64_t key = item % num_panels * width;
    PackKeyPanel(k + key * stride + head * shape.head_dim, stride,
                 std::min(width, shape.num_tokens - key), shape.head_dim,
                 packed.data() + item * width * shape.head_dim);
  });
}

void PackValues(const CausalAttentionShape& shape, const float* v, AlignedVector<float>& packed,
                const ExecContext& exec) {
  const int64_t head_floats = RoundUpTo(shape.head_dim, PanelWidth()) * shape.num_tokens;
  packed.resize(static_cast<size_t>(head_floats * shape.num_kv_heads));
  ParallelFor(exec.num_threads, shape.num_kv_heads, [&](int64_t head, int /*worker*/) {
    PackValues(v + head * shape.head_dim, shape.num_kv_heads * shape.head_dim, shape.num_tokens,
               shape.head_dim, packed.data() + head * head_floats);
  });
}

void AttendPacked(const PackedAttention& args, AlignedVector<float>& scratch,
                  const ExecContext& exec) {
  const CausalAttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int64_t stride = shape.num_heads * dim;
  const int64_t block_rows = QueryBlockRows();
  const int64_t num_blocks = (shape.num_tokens + block_rows - 1) / block_rows;
  const int64_t key_floats = NumKeyPanels(shape) * PanelWidth() * dim;
  const int64_t value_floats = RoundUpTo(dim, PanelWidth()) * shape.num_tokens;
  const int64_t scratch_floats = CausalScratchFloats(shape.num_tokens, dim);
  const auto needed = static_cast<size_t>(scratch_floats * std::max(exec.num_threads, 1));
  if (scratch.size() < needed) scratch.resize(needed);
  const int64_t num_items = num_blocks * shape.num_heads;
  ParallelFor(exec.num_threads, num_items, [&](int64_t i, int worker) {
    const int64_t item = num_items - 1 - i;  // Longest blocks first.
    const int64_t head = item % shape.num_heads;
    const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
    const int64_t first = item / shape.num_heads * block_rows;
    const int64_t offset = first * stride + head * dim;
    CausalBlock block;
    block.q = args.q + offset;
    block.stride = stride;
    if (args.q_factors != nullptr) block.q_factor = args.q_factors + kv_head * dim / 2;
    block.first = first;
    block.rows = std::min(block_rows, shape.num_tokens - first);
    block.num_tokens = shape.num_tokens;
    block.dim = dim;
    block.scale = static_cast<float>(shape.scale);
    block.sliding_window = shape.sliding_window;
    block.keys = args.keys + kv_head * key_floats;
    block.values = args.values + kv_head * value_floats;
    if (args.subtract != nullptr) block.subtract = args.subtract + offset;
    block.out = args.out + offset;
    AttendCausalBlock(block, scratch.data() + worker * scratch_floats);
  });
}

}  // namespace pmkvq::internal
