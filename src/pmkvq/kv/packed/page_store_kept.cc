// Pages that outlive their sequences: the chunks of a PrefixTree.
#include <algorithm>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/page_store.h"

namespace pmkvq {

int64_t PageStore::KeptBytes(size_t num_pages, bool with_sink) const {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    if (with_sink && config_.sink_tokens > 0) bytes += layout_.blocks[layer].sink.bytes;
    for (const Side side : kSides) {
      bytes += static_cast<int64_t>(num_pages) * SlotsOf(layer, side).page_bytes[WidthIndex(16)];
    }
  }
  return bytes;
}

KeptChunk PageStore::Keep(const SequencePages& seq, size_t first, size_t end, bool with_sink) {
  KeptChunk kept;
  kept.first_page = first;
  kept.blocks.resize(seq.blocks.size());
  kept.bytes = KeptBytes(end - first, with_sink);
  CountUsed(kept.bytes);
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    const BlockPages& from = seq.blocks[layer];
    KeptBlock& to = kept.blocks[layer];
    if (with_sink) to.sink = from.sink;
    for (const SlotHandle slot : to.sink) slots_.AddReference(slot);
    for (size_t page = first; page < end; ++page) {
      PagePair& pair = to.pages.emplace_back(from.pages[page]);
      for (StoredPage& stored : pair) {
        PMKVQ_DCHECK(stored.bits == 16);
        slots_.AddReference(stored.data);
        // The open page is still written to.
        if (page + 1 == from.pages.size()) stored.data = CopyIfShared(stored.data);
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
        const StreamSlots& slots = SlotsOf(layer, side);
        change_bytes +=
            slots.page_bytes[WidthIndex(to_bits)] - slots.page_bytes[WidthIndex(stored.bits)];
        narrowed_bytes_ += static_cast<int64_t>(CodeBytes(layer, side, stored.bits));
        changes_.push_back({&stored, to_bits, &slots});
      }
    }
    std::sort(changes_.begin(), changes_.end(), [&](const PageChange& a, const PageChange& b) {
      return slots_.Offset(a.page->data) < slots_.Offset(b.page->data);
    });
    PlanNarrowing(changes_, WavePages(), slots_, plan_);
    if (MoveBytes(layer)) kept.bits = 0;
    kept.bytes += change_bytes;
    CountUsed(change_bytes);
  }
}

void PageStore::DropKept(const KeptChunk& kept) {
  for (const KeptBlock& block : kept.blocks) {
    for (const SlotHandle slot : block.sink) slots_.Release(slot);
    for (const PagePair& pair : block.pages) {
      for (const StoredPage& page : pair) {
        slots_.Release(page.data);
        if (page.metadata != kNoSlot) slots_.Release(page.metadata);
      }
    }
  }
  CountUsed(-kept.bytes);
  MoveBytes(0);
}

void PageStore::TakeKept(std::span<const KeptChunk* const> chunks, SequencePages& seq) {
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    BlockPages& to = seq.blocks[layer];
    PMKVQ_DCHECK(to.pages.empty() && to.sink.empty());
    to.sink = chunks.front()->blocks[layer].sink;
    for (const KeptChunk* const chunk : chunks) {
      // The chunk before it may hold its first page as well, without the rows of this chunk.
      to.pages.resize(chunk->first_page);
      const std::vector<PagePair>& pages = chunk->blocks[layer].pages;
      to.pages.insert(to.pages.end(), pages.begin(), pages.end());
    }
    for (const SlotHandle slot : to.sink) slots_.AddReference(slot);
    for (const PagePair& pair : to.pages) {
      for (const StoredPage& page : pair) {
        slots_.AddReference(page.data);
        if (page.metadata != kNoSlot) slots_.AddReference(page.metadata);
      }
    }
  }
}

int64_t PageStore::TakenBytes(const BlockPages& block, size_t layer) const {
  int64_t bytes = block.sink.empty() ? 0 : layout_.blocks[layer].sink.bytes;
  for (const PagePair& pair : block.pages) {
    for (const Side side : kSides) {
      bytes += SlotsOf(layer, side).page_bytes[WidthIndex(pair[side].bits)];
    }
  }
  return bytes;
}

int64_t PageStore::TakenBytes(const SequencePages& seq) const {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    bytes += TakenBytes(seq.blocks[layer], layer);
  }
  return bytes;
}

void PageStore::CountTaken(SequencePages& seq) {
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    BlockPages& block = seq.blocks[layer];
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    for (const PagePair& pair : block.pages) {
      for (const Side side : kSides) ++block.page_counts[side][WidthIndex(pair[side].bits)];
    }
    Account(seq, layer, TakenBytes(block, layer));
  }
}

}  // namespace pmkvq
