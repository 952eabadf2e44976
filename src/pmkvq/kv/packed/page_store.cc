#include "pmkvq/kv/packed/page_store.h"

#include <algorithm>
#include <cstring>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq {
namespace {

// Pages are narrowed in batches before they are given their new slots: enough to share out to
// threads, and few enough that what they become is still in a cache of the second level then, and
// that little memory is used that never was before. At most as many as fit the scratch, which holds
// kScratchPages at 8 bits.
constexpr size_t kMostBatchPages = 32;
constexpr size_t kScratchPages = 8;
size_t BatchPages(int num_threads) {
  return std::clamp<size_t>(8 * static_cast<size_t>(num_threads), 8, kMostBatchPages);
}
// A thread takes pages of so many bytes at a time: sharing out costs more than a small page.
constexpr size_t kSharedBytes = size_t{64} << 10;

// Whole cache lines, which extents are multiples of.
size_t WholeLines(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

PageStore::PageStore(const CacheConfig& config)
    : config_(config),
      layout_(MakeSlotLayout(config)),
      pool_(layout_.extent_bytes, layout_.num_extents, layout_.slot_bytes) {
  size_t most_values = 0;
  size_t scratch_page = 0;  // At 8 bits, with metadata.
  for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    codecs_.emplace_back(block.has_cache() ? block.k() : KvStream{}, config.float_type);
    most_values = std::max(most_values, static_cast<size_t>(codecs_.back().num_values()));
    for (const StreamSlots& slots : layout_.blocks[layer].sides) {
      scratch_page = std::max(scratch_page, static_cast<size_t>(slots.page_bytes[WidthIndex(8)]));
    }
  }
  values_.resize(most_values);
  narrowed_.resize(kScratchPages * WholeLines(scratch_page));
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
  const StreamSlots& slots = SlotsOf(layer, side);
  stored.bits = bits;
  stored.data = AllocateSlot(slots.code_class[WidthIndex(bits)]);
  if (bits < 16) {
    stored.axis = slots.axis;
    stored.metadata = AllocateSlot(slots.metadata_class);
  }
  ++block.page_counts[side][WidthIndex(bits)];
  Account(seq, layer, slots.page_bytes[WidthIndex(bits)]);
}

void PageStore::Release(SequencePages& seq, size_t layer, size_t page, Side side) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  if (stored.data == kNoSlot) return;
  pool_.Release(stored.data);
  if (stored.metadata != kNoSlot) pool_.Release(stored.metadata);
  --block.page_counts[side][WidthIndex(stored.bits)];
  Account(seq, layer, -SlotsOf(layer, side).page_bytes[WidthIndex(stored.bits)]);
  stored = StoredPage{};
}

void PageStore::AllocateSink(SequencePages& seq, size_t layer) {
  if (config_.sink_tokens == 0) return;
  std::vector<SlotHandle>& sink = seq.blocks[layer].sink;
  const SinkSlots& slots = layout_.blocks[layer].sink;
  for (int64_t i = 0; i < config_.sink_tokens / kPageTokens; ++i) {
    for (const Side side : kSides) {
      sink.push_back(AllocateSlot(SlotsOf(layer, side).code_class[WidthIndex(16)]));
    }
  }
  for (int i = 0; i < slots.num_rest_slots; ++i) sink.push_back(AllocateSlot(slots.rest_class));
  Account(seq, layer, slots.bytes);
}

void PageStore::ReleaseSink(SequencePages& seq, size_t layer) {
  std::vector<SlotHandle>& sink = seq.blocks[layer].sink;
  if (sink.empty()) return;
  for (const SlotHandle slot : sink) pool_.Release(slot);
  sink.clear();
  Account(seq, layer, -layout_.blocks[layer].sink.bytes);
}

// In order of where the pages lie: extents become free one after the other, so that the pool need
// not move what is left of them.
void PageStore::Narrow(SequencePages& seq, size_t layer, std::span<NarrowStep> steps) {
  const std::vector<PagePair>& pages = seq.blocks[layer].pages;
  for (NarrowStep& step : steps) step.data = Data(pages[step.page][step.side]);
  std::sort(steps.begin(), steps.end(),
            [](const NarrowStep& a, const NarrowStep& b) { return a.data < b.data; });
  const size_t most_pages = BatchPages(config_.num_threads);
  for (size_t first = 0; first < steps.size();) {
    size_t count = 0;
    for (size_t bytes = 0; first + count < steps.size() && count < most_pages; ++count) {
      const NarrowStep& step = steps[first + count];
      bytes += ScratchBytes(layer, pages[step.page][step.side], step);
      if (bytes > narrowed_.size()) break;
    }
    NarrowBatch(seq, layer, steps.subspan(first, count));
    first += count;
  }
}

// What a page becomes: codes, then metadata where it has none yet.
size_t PageStore::ScratchBytes(size_t layer, const StoredPage& stored,
                               const NarrowStep& step) const {
  size_t bytes = CodeBytes(layer, step.side, step.bits);
  if (stored.metadata == kNoSlot) {
    bytes += pool_.slot_bytes(SlotsOf(layer, step.side).metadata_class);
  }
  return WholeLines(bytes);
}

// Straight to new slots as long as the pool has some left over, otherwise by way of scratch.
void PageStore::NarrowBatch(SequencePages& seq, size_t layer, std::span<const NarrowStep> steps) {
  std::vector<PagePair>& pages = seq.blocks[layer].pages;
  std::array<StoredPage, kMostBatchPages> narrowed;  // Slots of what pages become, where there are.
  std::array<std::byte*, kMostBatchPages> scratch{};
  std::array<bool, kMostBatchPages> fits{};
  std::array<size_t, kMostBatchPages + 1> item_begin{};  // A thread takes an item at a time.
  size_t num_items = 0;
  size_t item_bytes = kSharedBytes;
  std::byte* free_scratch = narrowed_.data();
  for (size_t i = 0; i < steps.size(); ++i) {
    const StoredPage& stored = pages[steps[i].page][steps[i].side];
    narrowed[i] = TrySlotsFor(layer, stored, steps[i]);
    scratch[i] = free_scratch;
    free_scratch += ScratchBytes(layer, stored, steps[i]);
    if (item_bytes >= kSharedBytes) {
      item_begin[num_items++] = i;
      item_bytes = 0;
    }
    item_bytes += CodeBytes(layer, steps[i].side, stored.bits);
  }
  item_begin[num_items] = steps.size();
  const UncancelledScope whole;  // Narrowed pages and their accounts go together.
  ParallelFor(config_.num_threads, static_cast<int64_t>(num_items), [&](int64_t item, int) {
    const auto index = static_cast<size_t>(item);
    for (size_t i = item_begin[index]; i < item_begin[index + 1]; ++i) {
      const StoredPage& stored = pages[steps[i].page][steps[i].side];
      const bool direct = narrowed[i].data != kNoSlot;
      std::byte* codes = direct ? Data(narrowed[i]) : scratch[i];
      fits[i] = NarrowInto(
          layer, stored, narrowed[i], codes,
          direct ? Metadata(narrowed[i]) : codes + CodeBytes(layer, steps[i].side, steps[i].bits));
    }
  });
  for (size_t i = 0; i < steps.size(); ++i) {
    if (fits[i]) continue;
    codec(layer).Decode(View(pages[steps[i].page][steps[i].side]), kPageTokens, values_.data());
    SetRangeFailure(seq, layer, steps[i].page, steps[i].side, values_.data());
  }
  // What has its slots goes first: then no more is in use than before this batch.
  for (const bool direct : {true, false}) {
    for (size_t i = 0; i < steps.size(); ++i) {
      if ((narrowed[i].data != kNoSlot) != direct) continue;
      StoredPage& stored = pages[steps[i].page][steps[i].side];
      pool_.Release(stored.data);
      AccountNarrowed(seq, layer, steps[i].side, stored.bits, steps[i].bits);
      stored = direct ? narrowed[i]
                      : FromScratch(SlotsOf(layer, steps[i].side), narrowed[i], scratch[i]);
    }
  }
}

// Gives a page its slots, and what Narrow has left for it in scratch.
StoredPage PageStore::FromScratch(const StreamSlots& slots, StoredPage page,
                                  const std::byte* scratch) {
  const int width_class = slots.code_class[WidthIndex(page.bits)];
  page.data = AllocateSlot(width_class);
  std::memcpy(Data(page), scratch, pool_.slot_bytes(width_class));
  if (page.metadata == kNoSlot) {
    page.metadata = AllocateSlot(slots.metadata_class);
    std::memcpy(Metadata(page), scratch + pool_.slot_bytes(width_class),
                pool_.slot_bytes(slots.metadata_class));
  }
  return page;
}

// The page that `stored` becomes; without a slot for its codes when the pool lacks one of those
// that it needs. Metadata stays where it is.
StoredPage PageStore::TrySlotsFor(size_t layer, const StoredPage& stored, const NarrowStep& step) {
  PMKVQ_DCHECK(step.bits < stored.bits);
  const StreamSlots& slots = SlotsOf(layer, step.side);
  StoredPage narrowed;
  narrowed.bits = step.bits;
  narrowed.axis = slots.axis;
  narrowed.metadata = stored.metadata;
  narrowed.data = pool_.Allocate(slots.code_class[WidthIndex(step.bits)]);
  if (narrowed.data == kNoSlot || stored.metadata != kNoSlot) return narrowed;
  narrowed.metadata = pool_.Allocate(slots.metadata_class);
  if (narrowed.metadata == kNoSlot) {
    pool_.Release(narrowed.data);
    narrowed.data = kNoSlot;
  }
  return narrowed;
}

// Codes of a page at the width of `narrowed`, and metadata where it has none yet: (min, range) do
// not depend on the width. False when these do not fit the float type.
bool PageStore::NarrowInto(size_t layer, const StoredPage& stored, const StoredPage& narrowed,
                           std::byte* codes, std::byte* metadata) const {
  if (stored.bits == 16) {
    return codec(layer).Narrow(Data(stored), narrowed.bits, narrowed.axis, codes, metadata);
  }
  const int64_t group = stored.axis == QuantAxis::kChannel ? kPageTokens : codec(layer).group();
  const int64_t num_groups = codec(layer).num_values() / group;
  auto* out = reinterpret_cast<uint8_t*>(codes);
  if (stored.bits == 2 * narrowed.bits) {
    HalvePackedCodes(group, stored.bits, reinterpret_cast<const uint8_t*>(Data(stored)), num_groups,
                     out);
    return true;
  }
  // 8 to 2 bits, in place: the page goes away anyway.
  auto* wide = reinterpret_cast<uint8_t*>(Data(stored));
  HalvePackedCodes(group, 8, wide, num_groups, wide);
  HalvePackedCodes(group, 4, wide, num_groups, out);
  return true;
}

void PageStore::SetRangeFailure(SequencePages& seq, size_t layer, size_t page, Side side,
                                const float* values) const {
  if (seq.failure) return;
  const UnfitGroup group = codec(layer).FindUnfitGroup(values, SlotsOf(layer, side).axis).value();
  const int64_t first =
      config_.sink_tokens + static_cast<int64_t>(page) * kPageTokens + group.first_token;
  seq.failure = KvFailure{KvWhere(static_cast<int64_t>(layer), first, first + group.num_tokens - 1),
                          UnfitRangeMessage(side == kKeys ? "key" : "value", group.lowest,
                                            group.highest, config_.float_type)};
}

void PageStore::AccountNarrowed(SequencePages& seq, size_t layer, Side side, int from_bits,
                                int to_bits) {
  PagesPerWidth& counts = seq.blocks[layer].page_counts[side];
  --counts[WidthIndex(from_bits)];
  ++counts[WidthIndex(to_bits)];
  const StreamSlots& slots = SlotsOf(layer, side);
  seq.narrowed_bytes += static_cast<int64_t>(CodeBytes(layer, side, from_bits));
  Account(seq, layer,
          slots.page_bytes[WidthIndex(to_bits)] - slots.page_bytes[WidthIndex(from_bits)]);
}

void PageStore::Reopen(SequencePages& seq, size_t layer, size_t page, Side side) {
  StoredPage& stored = seq.blocks[layer].pages[page][side];
  const int64_t num_values = codec(layer).num_values();
  codec(layer).Decode(View(stored), kPageTokens, values_.data());
  if (config_.float_type == DType::kF16) {
    // A range rounded up may end just beyond the largest value.
    for (int64_t i = 0; i < num_values; ++i) {
      values_[static_cast<size_t>(i)] =
          std::clamp(values_[static_cast<size_t>(i)], -kMaxF16, kMaxF16);
    }
  }
  Release(seq, layer, page, side);
  Allocate(seq, layer, page, side, 16);
  codec(layer).WriteValues(values_.data(), num_values, Data(stored));
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
  return {Data(page), Metadata(page), page.bits, page.axis};
}

std::byte* PageStore::SinkData(const BlockPages& block, size_t layer, int64_t piece,
                               Side side) const {
  const auto first_slot = static_cast<size_t>(2 * piece);
  if (first_slot + 1 < block.sink.size()) return pool_.Data(block.sink[first_slot + side]);
  return pool_.Data(block.sink[first_slot]) +
         (side == kValues ? layout_.blocks[layer].sink.rest_bytes : 0);
}

KvTensorView PageStore::SinkView(const BlockPages& block, size_t layer, int64_t piece,
                                 Side side) const {
  return {SinkData(block, layer, piece, side), nullptr, 16, QuantAxis::kToken};
}

}  // namespace pmkvq
