// Pages that outlive their sequences: the chunks of a PrefixTree.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/page_store.h"

namespace pmkvq {

int64_t PageStore::KeptBytes(size_t num_pages, bool with_sink) const {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    if (with_sink && config_.sink_tokens > 0) bytes += layout_.blocks[layer].sink.bytes;
    for (const Side side : kSides) {
      bytes += static_cast<int64_t>(num_pages) * PageBytesOf(layer, side, 16);
    }
  }
  return bytes;
}

KeptChunk PageStore::Keep(SequencePages& seq, size_t first, size_t full_end, size_t end,
                          bool with_sink) {
  KeptChunk kept;
  kept.first_page = first;
  kept.num_full = full_end - first;
  kept.blocks.resize(seq.blocks.size());
  kept.bytes = KeptBytes(end - first, with_sink);
  kept_bytes_ += kept.bytes;
  NumberColumns(seq, full_end);
  kept.columns.assign(seq.columns.begin() + static_cast<std::ptrdiff_t>(first),
                      seq.columns.begin() + static_cast<std::ptrdiff_t>(full_end));
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    const BlockPages& from = seq.blocks[layer];
    KeptBlock& to = kept.blocks[layer];
    if (with_sink) to.sink = from.sink;
    if (!to.sink.empty()) AddOwner(to.sink.front(), layout_.blocks[layer].sink.bytes, true);
    for (size_t i = 1; i < to.sink.size(); ++i) slots_.AddReference(to.sink[i]);
    for (size_t page = first; page < end; ++page) {
      PagePair& pair = to.pages.emplace_back(from.pages[page]);
      for (const Side side : kSides) {
        StoredPage& stored = pair[side];
        PMKVQ_DCHECK(stored.bits == 16);
        const int64_t bytes = PageBytesOf(layer, side, 16);
        if (page < full_end) {
          AddPageOwner(stored, bytes, true);
          continue;
        }
        const SlotHandle copy = AllocateSlot(slots_.ClassOf(stored.data));
        CopySlot(stored.data, copy);
        stored.data = copy;
        ++KeptReferences(copy);
        CountUsed(bytes);
        unread_bytes_ += bytes;
      }
    }
  }
  return kept;
}

void PageStore::NarrowKept(KeptChunk& kept, int bits) {
  kept.bits = bits;
  for (size_t layer = 0; layer < kept.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    const PageWidths floor = FloorWidths(config_, layer);
    changes_.clear();
    int64_t change_bytes = 0;
    for (size_t page = 0; page < kept.num_full; ++page) {
      for (const Side side : kSides) {
        StoredPage& stored = kept.blocks[layer].pages[page][side];
        const int to_bits = std::max(bits, WidthOf(floor, side));
        if (stored.bits <= to_bits) continue;
        PMKVQ_DCHECK(IsUnread(stored.data));
        change_bytes += PageBytesOf(layer, side, to_bits) - PageBytesOf(layer, side, stored.bits);
        narrowed_bytes_ += static_cast<int64_t>(CodeBytes(layer, side, stored.bits));
        --KeptReferences(stored.data);
        changes_.push_back({&stored, to_bits, &SlotsOf(layer, side)});
      }
    }
    std::sort(changes_.begin(), changes_.end(), [&](const PageChange& a, const PageChange& b) {
      return slots_.Offset(a.page->data) < slots_.Offset(b.page->data);
    });
    PlanNarrowing(changes_, WavePages(), slots_, plan_);
    for (const PageChange& change : changes_) ++KeptReferences(change.page->data);
    if (MoveBytes(layer)) kept.bits = 0;
    kept.bytes += change_bytes;
    kept_bytes_ += change_bytes;
    unread_bytes_ += change_bytes;
    CountUsed(change_bytes);
  }
}

void PageStore::DropKept(const KeptChunk& kept) {
  for (size_t layer = 0; layer < kept.blocks.size(); ++layer) {
    const KeptBlock& block = kept.blocks[layer];
    if (!block.sink.empty()) {
      DropOwner(block.sink.front(), layout_.blocks[layer].sink.bytes, true);
    }
    for (size_t i = 1; i < block.sink.size(); ++i) slots_.Release(block.sink[i]);
    for (const PagePair& pair : block.pages) {
      for (const Side side : kSides) {
        DropPageOwner(pair[side], PageBytesOf(layer, side, pair[side].bits), true);
      }
    }
  }
  kept_bytes_ -= kept.bytes;
  MoveBytes(0);
}

int64_t PageStore::NumReaders(const KeptChunk& kept) const {
  if (kept.num_full == 0) return 0;
  const auto block = std::find_if(kept.blocks.begin(), kept.blocks.end(),
                                  [](const KeptBlock& one) { return !one.pages.empty(); });
  return slots_.num_references(block->pages.front()[kKeys].data) - 1;
}

void PageStore::TakeKept(std::span<const KeptChunk* const> chunks, SequencePages& seq) {
  for (const KeptChunk* const chunk : chunks) {
    PMKVQ_DCHECK(seq.columns.size() == chunk->first_page);
    seq.columns.insert(seq.columns.end(), chunk->columns.begin(), chunk->columns.end());
  }
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    BlockPages& to = seq.blocks[layer];
    PMKVQ_DCHECK(to.pages.empty() && to.sink.empty());
    to.sink = chunks.front()->blocks[layer].sink;
    for (const KeptChunk* const chunk : chunks) {
      // The chunk before it holds its first page as well, without the rows of this chunk.
      to.pages.resize(chunk->first_page);
      const std::vector<PagePair>& pages = chunk->blocks[layer].pages;
      to.pages.insert(to.pages.end(), pages.begin(), pages.end());
    }
    int64_t taken_bytes = 0;
    if (!to.sink.empty()) {
      taken_bytes += layout_.blocks[layer].sink.bytes;
      AddOwner(to.sink.front(), layout_.blocks[layer].sink.bytes);
    }
    for (size_t i = 1; i < to.sink.size(); ++i) slots_.AddReference(to.sink[i]);
    for (const PagePair& pair : to.pages) {
      for (const Side side : kSides) {
        const int64_t bytes = PageBytesOf(layer, side, pair[side].bits);
        AddPageOwner(pair[side], bytes);
        taken_bytes += bytes;
        ++to.page_counts[side][WidthIndex(pair[side].bits)];
      }
    }
    Account(seq, layer, taken_bytes);
  }
}

}  // namespace pmkvq
