// Tokens of a cache on a device as they read now, for whoever attends to plain tensors.
#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/device_side.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

void DeviceSide::LaunchRead(const Chunk& chunk, size_t layer, const DeviceTokens& tokens) {
  PMKVQ_CHECK(!is_open_);
  UpdateTables(chunk);
  if (!patches_.empty() || rests_changed_) {
    FlushPatches();
    stream().Synchronize();  // The next Forward fills the staging memory anew.
  }
  const KvStream& shape = config_.geometry.blocks[layer].k();
  const auto num_tokens = static_cast<int32_t>(chunk.num_before);
  GatherPagesOperands pages;
  pages.arena = store_.arena();
  const size_t first = TableIndex(layer, chunk.table_row);
  pages.entries = reinterpret_cast<const PageEntry*>(entries_->data()) + first;
  pages.bits = reinterpret_cast<const PageBits*>(bits_->data()) + first;
  pages.num_tokens = sink_.InPages(num_tokens);
  pages.num_pages = (pages.num_tokens + kPageTokens - 1) / kPageTokens;
  pages.k = tokens.k_pages;
  pages.v = tokens.v_pages;
  pages.keys_by_channel = config_.k_axis == QuantAxis::kChannel;
  GatherPages(shape.heads, shape.width, config_.float_type, pages, stream());
  const BlockPages& block = chunk.seq->blocks[layer];
  if (sink_.InRest(num_tokens) == 0 || block.sink.empty()) return;
  const int64_t piece = store_.num_sink_pieces() - 1;
  const size_t bytes =
      static_cast<size_t>(sink_.rest_tokens * shape.values()) * SizeOf(config_.float_type);
  CopyOnDevice(stream(), tokens.k_rest, store_.SinkData(block, layer, piece, kKeys), bytes);
  CopyOnDevice(stream(), tokens.v_rest, store_.SinkData(block, layer, piece, kValues), bytes);
}

int64_t PackedKvCache::LaunchRead(SequenceId id, int64_t layer, const DeviceTokens& tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(device_ != nullptr && !IsInForward(seq) && seq.reserved_tokens == 0);
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  device_->LaunchRead({&seq, id, 0, seq.num_tokens, false}, static_cast<size_t>(layer), tokens);
  return static_cast<int64_t>(seq.blocks[static_cast<size_t>(layer)].num_freed) * kPageTokens;
}

}  // namespace pmkvq
