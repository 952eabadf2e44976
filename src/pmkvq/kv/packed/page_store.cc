#include "pmkvq/kv/packed/page_store.h"

#include <algorithm>
#include <cstring>

namespace pmkvq {
namespace {

// Pages are narrowed in waves of so many at most: enough to share out to threads, and few enough
// that little memory is used that never was before.
constexpr size_t kMostWavePages = 32;
size_t WavePages(int num_threads) {
  return std::clamp<size_t>(8 * static_cast<size_t>(num_threads), 8, kMostWavePages);
}

}  // namespace

PageStore::PageStore(const CacheConfig& config)
    : config_(config),
      layout_(MakeSlotLayout(config)),
      slots_(layout_.extent_bytes, layout_.num_extents, layout_.slot_bytes),
      arena_(DeviceId(), slots_.arena_bytes()) {
  size_t most_values = 0;
  for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    codecs_.emplace_back(block.has_cache() ? block.k() : KvStream{}, config.float_type);
    most_values = std::max(most_values, static_cast<size_t>(codecs_.back().num_values()));
  }
  values_.resize(most_values);
}

SlotHandle PageStore::AllocateSlot(int slot_class) {
  const SlotHandle slot = slots_.Allocate(slot_class);
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

// Adds the moves of releases to plan_ and executes it. `layer` is that of the pages whose widths
// change.
std::optional<UnfitPage> PageStore::MoveBytes(size_t layer) {
  PlanMoves(slots_, plan_);
  const std::optional<UnfitPage> unfit =
      ExecuteMoves(plan_, codec(layer), arena_.view(), config_.num_threads);
  plan_.Clear();
  return unfit;
}

// Leaves moves behind, as all that begin with Drop.
void PageStore::DropPage(SequencePages& seq, size_t layer, size_t page, Side side) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  if (stored.data == kNoSlot) return;
  slots_.Release(stored.data);
  if (stored.metadata != kNoSlot) slots_.Release(stored.metadata);
  --block.page_counts[side][WidthIndex(stored.bits)];
  Account(seq, layer, -SlotsOf(layer, side).page_bytes[WidthIndex(stored.bits)]);
  stored = StoredPage{};
}

void PageStore::DropPagesFrom(SequencePages& seq, size_t layer, size_t first) {
  std::vector<PagePair>& pages = seq.blocks[layer].pages;
  for (size_t page = first; page < pages.size(); ++page) {
    for (const Side side : kSides) DropPage(seq, layer, page, side);
  }
  pages.resize(std::min(first, pages.size()));
}

void PageStore::Release(SequencePages& seq, size_t layer, size_t page, Side side) {
  DropPage(seq, layer, page, side);
  MoveBytes(layer);
}

void PageStore::ReleaseFrom(SequencePages& seq, size_t layer, size_t first) {
  DropPagesFrom(seq, layer, first);
  MoveBytes(layer);
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

void PageStore::DropSink(SequencePages& seq, size_t layer) {
  std::vector<SlotHandle>& sink = seq.blocks[layer].sink;
  if (sink.empty()) return;
  for (const SlotHandle slot : sink) slots_.Release(slot);
  sink.clear();
  Account(seq, layer, -layout_.blocks[layer].sink.bytes);
}

void PageStore::ReleaseSink(SequencePages& seq, size_t layer) {
  DropSink(seq, layer);
  MoveBytes(layer);
}

// In order of addresses: extents then become free one after the other, and few slots have to move.
void PageStore::Narrow(SequencePages& seq, size_t layer, std::span<NarrowStep> steps) {
  std::vector<PagePair>& pages = seq.blocks[layer].pages;
  for (NarrowStep& step : steps) step.offset = slots_.Offset(pages[step.page][step.side].data);
  std::sort(steps.begin(), steps.end(),
            [](const NarrowStep& a, const NarrowStep& b) { return a.offset < b.offset; });
  changes_.clear();
  for (const NarrowStep& step : steps) {
    changes_.push_back({&pages[step.page][step.side], step.bits, &SlotsOf(layer, step.side)});
  }
  PlanNarrowing(changes_, WavePages(config_.num_threads), slots_, plan_);
  for (size_t i = 0; i < plan_.num_waves(); ++i) {
    for (const PageOp& op : plan_.wave(i)) {
      if (op.kind == PageOpKind::kCopy) continue;
      AccountNarrowed(seq, layer, steps[op.page].side, op.from_bits, op.to_bits);
    }
  }
  if (const std::optional<UnfitPage> unfit = MoveBytes(layer)) {
    const NarrowStep& step = steps[unfit->page];
    SetRangeFailure(seq, layer, step.page, step.side, unfit->group);
  }
}

void PageStore::SetRangeFailure(SequencePages& seq, size_t layer, size_t page, Side side,
                                const UnfitGroup& group) const {
  if (seq.failure) return;
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
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  const StreamSlots& slots = SlotsOf(layer, side);
  const int old_bits = stored.bits;
  PlanExpanding(stored, slots, slots_, plan_);
  --block.page_counts[side][WidthIndex(old_bits)];
  ++block.page_counts[side][WidthIndex(16)];
  Account(seq, layer, slots.page_bytes[WidthIndex(16)] - slots.page_bytes[WidthIndex(old_bits)]);
  MoveBytes(layer);
}

SlotHandle PageStore::CopyIfShared(SlotHandle slot) {
  if (slots_.num_references(slot) == 1) return slot;
  const SlotHandle copy = AllocateSlot(slots_.ClassOf(slot));
  std::memcpy(At(copy), At(slot), slots_.Range(slot).bytes);
  slots_.Release(slot);  // It has another owner, so nothing moves.
  return copy;
}

void PageStore::MakeExclusive(SequencePages& seq, size_t layer, size_t page, Side side) {
  StoredPage& stored = seq.blocks[layer].pages[page][side];
  stored.data = CopyIfShared(stored.data);
  if (stored.metadata != kNoSlot) stored.metadata = CopyIfShared(stored.metadata);
  ++seq.layout;
}

void PageStore::MakeSinkExclusive(SequencePages& seq, size_t layer) {
  for (SlotHandle& slot : seq.blocks[layer].sink) slot = CopyIfShared(slot);
  ++seq.layout;
}

void PageStore::Share(const SequencePages& seq, int64_t num_tokens, SequencePages& copy) {
  copy.bytes = seq.bytes;
  copy.peak_bytes = seq.peak_bytes;
  copy.narrowed_bytes = seq.narrowed_bytes;
  const bool ends_in_page = (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    const BlockPages& from = seq.blocks[layer];
    BlockPages& to = copy.blocks[layer];
    to.sink = from.sink;
    to.pages = from.pages;
    to.bytes = from.bytes;
    to.page_counts = from.page_counts;
    to.present = from.present;
    for (const SlotHandle slot : to.sink) slots_.AddReference(slot);
    for (const PagePair& pair : to.pages) {
      for (const StoredPage& page : pair) {
        slots_.AddReference(page.data);
        if (page.metadata != kNoSlot) slots_.AddReference(page.metadata);
      }
    }
    if (num_tokens < config_.sink_tokens) MakeSinkExclusive(copy, layer);
    if (to.pages.empty() || !ends_in_page) continue;
    for (const Side side : kSides) MakeExclusive(copy, layer, to.pages.size() - 1, side);
  }
}

void PageStore::ReleaseAll(SequencePages& seq) {
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    DropPagesFrom(seq, layer, 0);
    seq.blocks[layer].open_rows_moved = {};
    DropSink(seq, layer);
  }
  MoveBytes(0);
}

KvTensorView PageStore::View(const StoredPage& page) const {
  return {Data(page), Metadata(page), page.bits, page.axis};
}

std::byte* PageStore::SinkData(const BlockPages& block, size_t layer, int64_t piece,
                               Side side) const {
  const auto first_slot = static_cast<size_t>(2 * piece);
  if (first_slot + 1 < block.sink.size()) return At(block.sink[first_slot + side]);
  return At(block.sink[first_slot]) + (side == kValues ? layout_.blocks[layer].sink.rest_bytes : 0);
}

KvTensorView PageStore::SinkView(const BlockPages& block, size_t layer, int64_t piece,
                                 Side side) const {
  return {SinkData(block, layer, piece, side), nullptr, 16, QuantAxis::kToken};
}

}  // namespace pmkvq
