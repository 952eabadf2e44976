// Memory that several sequences, or sequences and kept chunks, own: who counts it, and copies.
//
// Without a pool every sequence counts what it has, so that its budget does not depend on others.
// In a pool each slot counts once, for as long as it has an owner.
#include <algorithm>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/page_store.h"

namespace pmkvq {

int32_t& PageStore::KeptReferences(SlotHandle slot) {
  if (slot >= kept_references_.size()) kept_references_.resize(slot + size_t{1}, 0);
  return kept_references_[slot];
}

bool PageStore::IsUnread(SlotHandle slot) const {
  const int64_t kept = slot < kept_references_.size() ? kept_references_[slot] : 0;
  return kept > 0 && kept == slots_.num_references(slot);
}

void PageStore::AddOwner(SlotHandle slot, int64_t bytes, bool keeps) {
  if (config_.pool.bytes == 0) CountUsed(bytes);
  if (IsUnread(slot) && !keeps) unread_bytes_ -= bytes;
  if (keeps) ++KeptReferences(slot);
  slots_.AddReference(slot);
}

void PageStore::DropOwner(SlotHandle slot, int64_t bytes, bool keeps) {
  const bool was_unread = IsUnread(slot);
  const bool is_last = slots_.num_references(slot) == 1;
  if (keeps) --KeptReferences(slot);
  slots_.Release(slot);
  if (is_last || config_.pool.bytes == 0) CountUsed(-bytes);
  if (is_last) {
    if (was_unread) unread_bytes_ -= bytes;
  } else if (!was_unread && IsUnread(slot)) {
    unread_bytes_ += bytes;
  }
}

void PageStore::AddPageOwner(const StoredPage& page, int64_t bytes, bool keeps) {
  AddOwner(page.data, bytes, keeps);
  if (page.metadata != kNoSlot) slots_.AddReference(page.metadata);
}

void PageStore::DropPageOwner(const StoredPage& page, int64_t bytes, bool keeps) {
  DropOwner(page.data, bytes, keeps);
  if (page.metadata != kNoSlot) slots_.Release(page.metadata);
}

void PageStore::CopySlot(SlotHandle from, SlotHandle to) {
  if (stream_ == nullptr) {
    std::memcpy(At(to), At(from), slots_.Range(from).bytes);
  } else {
    CopyOnDevice(*stream_, At(to), At(from), slots_.Range(from).bytes);
  }
}

// `bytes` that the slot stands for. Its owner is a sequence.
SlotHandle PageStore::CopyIfShared(SlotHandle slot, int64_t bytes) {
  if (slots_.num_references(slot) == 1) return slot;
  const SlotHandle copy = AllocateSlot(slots_.ClassOf(slot));
  CopySlot(slot, copy);
  DropOwner(slot, bytes);  // It has another owner, so nothing moves.
  CountUsed(bytes);
  return copy;
}

void PageStore::MakeExclusive(SequencePages& seq, size_t layer, size_t page, Side side) {
  StoredPage& stored = seq.blocks[layer].pages[page][side];
  stored.data = CopyIfShared(stored.data, PageBytesOf(layer, side, stored.bits));
  if (stored.metadata != kNoSlot) stored.metadata = CopyIfShared(stored.metadata, 0);
  ++seq.layout;
}

void PageStore::MakeSinkExclusive(SequencePages& seq, size_t layer) {
  int64_t bytes = layout_.blocks[layer].sink.bytes;  // Of the first slot, which stands for all.
  for (SlotHandle& slot : seq.blocks[layer].sink) {
    slot = CopyIfShared(slot, bytes);
    bytes = 0;
  }
  ++seq.layout;
}

void PageStore::NumberColumns(SequencePages& seq, size_t count) {
  while (seq.columns.size() < count) seq.columns.push_back(num_columns_++);
}

int64_t PageStore::CopyBytes(const SequencePages& seq, int64_t num_tokens,
                             size_t num_shared) const {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    const BlockPages& block = seq.blocks[layer];
    if (!block.sink.empty() && num_tokens < config_.sink_tokens) {
      bytes += layout_.blocks[layer].sink.bytes;
    }
    for (size_t page = num_shared; page < block.pages.size(); ++page) {
      for (const Side side : kSides) {
        const StoredPage& stored = block.pages[page][side];
        if (stored.data != kNoSlot) bytes += PageBytesOf(layer, side, stored.bits);
      }
    }
  }
  return bytes;
}

void PageStore::Share(SequencePages& seq, int64_t num_tokens, size_t num_shared,
                      SequencePages& copy) {
  copy.bytes = seq.bytes;
  copy.peak_bytes = seq.peak_bytes;
  copy.narrowed_bytes = seq.narrowed_bytes;
  if (config_.pool.bytes > 0) {
    NumberColumns(seq, num_shared);
    copy.columns.assign(seq.columns.begin(),
                        seq.columns.begin() + static_cast<std::ptrdiff_t>(num_shared));
  }
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    const BlockPages& from = seq.blocks[layer];
    BlockPages& to = copy.blocks[layer];
    to.sink = from.sink;
    to.pages = from.pages;
    to.bytes = from.bytes;
    to.page_counts = from.page_counts;
    to.present = from.present;
    to.num_freed = from.num_freed;
    if (!to.sink.empty()) AddOwner(to.sink.front(), layout_.blocks[layer].sink.bytes);
    for (size_t i = 1; i < to.sink.size(); ++i) slots_.AddReference(to.sink[i]);
    for (const PagePair& pair : to.pages) {
      for (const Side side : kSides) {
        if (pair[side].data == kNoSlot) continue;  // Freed.
        AddPageOwner(pair[side], PageBytesOf(layer, side, pair[side].bits));
      }
    }
    if (num_tokens < config_.sink_tokens) MakeSinkExclusive(copy, layer);
    for (size_t page = std::max(num_shared, to.num_freed); page < to.pages.size(); ++page) {
      for (const Side side : kSides) MakeExclusive(copy, layer, page, side);
    }
  }
}

}  // namespace pmkvq
