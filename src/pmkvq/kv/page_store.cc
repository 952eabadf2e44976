#include "pmkvq/kv/page_store.h"

#include <algorithm>
#include <cstring>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq {
namespace {

// Slot classes: the widths in the order of kWidths, then these.
constexpr int kMetadataClass = 4;
constexpr int kSinkClass = 5;
// 8, 4, 2 bits and metadata: the classes that may leave an extent partly filled.
constexpr int64_t kPartialExtents = 4;

int64_t ExtentBytes(const CacheConfig& config) {
  return PageCodeBytes(config.geometry, config.float_type, 16);
}

int NumSinkSlots(const CacheConfig& config) {
  return SinkBytes(config) > ExtentBytes(config) ? 2 : 1;
}

size_t SinkSlotBytes(const CacheConfig& config) {
  if (config.sink_tokens == 0) return static_cast<size_t>(ExtentBytes(config));  // Never used.
  const auto bytes = static_cast<size_t>(SinkBytes(config) / NumSinkSlots(config));
  // Whole cache lines, which extents are multiples of.
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::vector<size_t> SlotBytes(const CacheConfig& config) {
  std::vector<size_t> bytes;
  for (const int bits : kWidths) {
    bytes.push_back(static_cast<size_t>(PageCodeBytes(config.geometry, config.float_type, bits)));
  }
  bytes.push_back(static_cast<size_t>(PageMetadataBytes(config.geometry, config.float_type, 8)));
  bytes.push_back(SinkSlotBytes(config));
  return bytes;
}

// Extents that never refuse what the budgets allow (page_pool.h). Sinks, the only slots that leave
// a rest in their extents, get extents of their own and are taken out of the budgets' part; all
// other classes divide an extent: codes by powers of two, metadata by G / 2.
int64_t NumExtents(const CacheConfig& config) {
  const int64_t extent_bytes = ExtentBytes(config);
  int64_t page_extents = 0;
  if (config.reference_accounting) {
    // Pages are stored at 16 bits at first, whatever the budget.
    const int64_t closed_bytes = config.geometry.kv_dim() * kPageTokens * config.floor_bits * 2 / 8;
    for (const int64_t budget : config.budget_bytes) {
      page_extents += 2 * (budget / closed_bytes + 1) * config.max_sequences;
    }
  } else {
    int64_t bytes = 0;
    for (const int64_t budget : config.budget_bytes) {
      bytes += (budget - SinkBytes(config)) * config.max_sequences;
    }
    page_extents = bytes / extent_bytes;
  }
  int64_t sink_extents = 0;
  if (config.sink_tokens > 0) {
    const int64_t slots = NumSinkSlots(config) * config.max_sequences * config.geometry.num_layers;
    const int64_t per_extent = extent_bytes / static_cast<int64_t>(SinkSlotBytes(config));
    sink_extents = (slots + per_extent - 1) / per_extent;
  }
  return page_extents + kPartialExtents + sink_extents;
}

}  // namespace

PageStore::PageStore(const CacheConfig& config)
    : config_(config),
      num_sink_slots_(NumSinkSlots(config)),
      pool_(static_cast<size_t>(ExtentBytes(config)), NumExtents(config), SlotBytes(config)),
      codec_(config.geometry, config.float_type),
      values_(static_cast<size_t>(codec_.num_values())),
      codes_(static_cast<size_t>(codec_.num_values())) {
  for (const int bits : kWidths) {
    page_bytes_[WidthIndex(bits)] = PageBytes(config.geometry, config.float_type, bits);
  }
}

SlotHandle PageStore::AllocateSlot(int slot_class) {
  const SlotHandle slot = pool_.Allocate(slot_class);
  PMKVQ_CHECK_MSG(slot != kNoSlot, "the arena is smaller than its budgets");
  return slot;
}

void PageStore::Account(SequencePages& seq, size_t layer, int64_t bytes) {
  seq.blocks[layer].bytes += bytes;
  seq.bytes += bytes;
  seq.peak_bytes = std::max(seq.peak_bytes, seq.bytes);
  ++seq.layout;
}

void PageStore::Allocate(SequencePages& seq, size_t layer, size_t page, Side side, int bits) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  PMKVQ_DCHECK(stored.data == kNoSlot);
  stored.bits = bits;
  stored.data = AllocateSlot(static_cast<int>(WidthIndex(bits)));
  if (bits < 16) stored.metadata = AllocateSlot(kMetadataClass);
  ++block.page_counts[side][WidthIndex(bits)];
  Account(seq, layer, page_bytes_[WidthIndex(bits)]);
}

void PageStore::Release(SequencePages& seq, size_t layer, size_t page, Side side) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  if (stored.data == kNoSlot) return;
  pool_.Release(stored.data);
  if (stored.metadata != kNoSlot) pool_.Release(stored.metadata);
  --block.page_counts[side][WidthIndex(stored.bits)];
  Account(seq, layer, -page_bytes_[WidthIndex(stored.bits)]);
  stored = StoredPage{};
}

void PageStore::AllocateSink(SequencePages& seq, size_t layer) {
  if (config_.sink_tokens == 0) return;
  for (int i = 0; i < num_sink_slots_; ++i) {
    seq.blocks[layer].sink[static_cast<size_t>(i)] = AllocateSlot(kSinkClass);
  }
  Account(seq, layer, SinkBytes(config_));
}

void PageStore::ReleaseSink(SequencePages& seq, size_t layer) {
  std::array<SlotHandle, 2>& sink = seq.blocks[layer].sink;
  if (sink[0] == kNoSlot) return;
  for (SlotHandle& slot : sink) {
    if (slot != kNoSlot) pool_.Release(slot);
    slot = kNoSlot;
  }
  Account(seq, layer, -SinkBytes(config_));
}

void PageStore::Narrow(SequencePages& seq, size_t layer, size_t page, Side side, int bits) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  PMKVQ_DCHECK(bits < stored.bits);
  if (stored.bits == 16) {
    codec_.Decode(View(stored), kPageTokens, values_.data());
    Release(seq, layer, page, side);
    Allocate(seq, layer, page, side, bits);
    codec_.Encode(values_.data(), bits, Data(stored), Metadata(stored));
    return;
  }

  // Codes only: (min, range) do not depend on the width.
  const int64_t group = config_.geometry.group();
  const int64_t num_groups = codec_.num_values() / group;
  std::memcpy(codes_.data(), Data(stored),
              pool_.slot_bytes(static_cast<int>(WidthIndex(stored.bits))));
  pool_.Release(stored.data);
  --block.page_counts[side][WidthIndex(stored.bits)];
  Account(seq, layer, -page_bytes_[WidthIndex(stored.bits)] + page_bytes_[WidthIndex(bits)]);
  for (; stored.bits > 2 * bits; stored.bits /= 2) {
    HalvePackedCodes(group, stored.bits, codes_.data(), num_groups, codes_.data());
  }
  stored.data = AllocateSlot(static_cast<int>(WidthIndex(bits)));
  HalvePackedCodes(group, stored.bits, codes_.data(), num_groups,
                   reinterpret_cast<uint8_t*>(pool_.Data(stored.data)));
  stored.bits = bits;
  ++block.page_counts[side][WidthIndex(bits)];
}

void PageStore::Reopen(SequencePages& seq, size_t layer, size_t page, Side side) {
  StoredPage& stored = seq.blocks[layer].pages[page][side];
  codec_.Decode(View(stored), kPageTokens, values_.data());
  if (config_.float_type == DType::kF16) {
    // A range rounded up may end just beyond the largest value.
    for (float& value : values_) value = std::clamp(value, -kMaxF16, kMaxF16);
  }
  Release(seq, layer, page, side);
  Allocate(seq, layer, page, side, 16);
  codec_.Encode(values_.data(), 16, Data(stored), nullptr);
}

void PageStore::ReleaseAll(SequencePages& seq) {
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    BlockPages& block = seq.blocks[layer];
    for (size_t page = 0; page < block.pages.size(); ++page) {
      for (const Side side : kSides) Release(seq, layer, page, side);
    }
    block.pages.clear();
    block.open_rows_moved = {};
    ReleaseSink(seq, layer);
  }
}

KvTensorView PageStore::View(const StoredPage& page) const {
  return {Data(page), Metadata(page), page.bits, QuantAxis::kToken};
}

std::byte* PageStore::SinkData(const BlockPages& block, Side side) const {
  if (num_sink_slots_ == 2) return pool_.Data(block.sink[side]);
  return pool_.Data(block.sink[0]) +
         (side == kValues ? static_cast<size_t>(SinkBytes(config_) / 2) : 0);
}

KvTensorView PageStore::SinkView(const BlockPages& block, Side side) const {
  return {SinkData(block, side), nullptr, 16, QuantAxis::kToken};
}

}  // namespace pmkvq
