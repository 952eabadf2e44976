#include "pmkvq/kv/packed/slot_allocator.h"

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"

namespace pmkvq {

SlotAllocator::SlotAllocator(size_t extent_bytes, int64_t num_extents,
                             std::vector<size_t> slot_bytes)
    : extent_bytes_(extent_bytes),
      num_extents_(num_extents),
      slot_bytes_(std::move(slot_bytes)),
      partial_extents_(slot_bytes_.size(), -1),
      live_slots_(slot_bytes_.size(), 0) {
  for (const size_t bytes : slot_bytes_) {
    PMKVQ_CHECK(bytes > 0 && bytes <= extent_bytes);
    PMKVQ_CHECK(extent_bytes / bytes < 0x7fff);  // Slot::index
  }
}

int32_t SlotAllocator::TakeFreeExtent() {
  if (free_extents_.empty()) {
    if (static_cast<int64_t>(extents_.size()) == num_extents_) return -1;
    extents_.emplace_back();
    return static_cast<int32_t>(extents_.size() - 1);
  }
  const int32_t extent = free_extents_.back();
  free_extents_.pop_back();
  return extent;
}

SlotHandle SlotAllocator::NewHandle() {
  if (free_handles_.empty()) {
    slots_.emplace_back();
    return static_cast<SlotHandle>(slots_.size() - 1);
  }
  const SlotHandle handle = free_handles_.back();
  free_handles_.pop_back();
  return handle;
}

SlotHandle SlotAllocator::Allocate(int slot_class) {
  PMKVQ_CHECK_MSG(moved_.empty(), "moves have not been taken");
  int32_t& partial = partial_extents_[static_cast<size_t>(slot_class)];
  if (partial < 0) {
    partial = TakeFreeExtent();
    if (partial < 0) return kNoSlot;
    Extent& fresh = extents_[static_cast<size_t>(partial)];
    fresh.slot_class = slot_class;
    fresh.slots.assign(static_cast<size_t>(slots_per_extent(slot_class)), kNoSlot);
    fresh.holes.clear();
    for (int64_t i = slots_per_extent(slot_class); i > 0; --i) {
      fresh.holes.push_back(static_cast<int16_t>(i - 1));
    }
  }
  Extent& extent = extents_[static_cast<size_t>(partial)];
  const SlotHandle handle = NewHandle();
  const int16_t index = extent.holes.back();
  extent.holes.pop_back();
  slots_[handle] = {partial, index, static_cast<int16_t>(slot_class), 1, kNotMoved};
  extent.slots[static_cast<size_t>(index)] = handle;
  if (extent.holes.empty()) partial = -1;
  ++live_slots_[static_cast<size_t>(slot_class)];
  return handle;
}

void SlotAllocator::AddReference(SlotHandle handle) {
  PMKVQ_CHECK(slots_[handle].num_references > 0);
  ++slots_[handle].num_references;
}

void SlotAllocator::MoveSomeSlot(int32_t from, int32_t to, int16_t index) {
  Extent& source = extents_[static_cast<size_t>(from)];
  const auto last = std::find_if(source.slots.rbegin(), source.slots.rend(),
                                 [](SlotHandle slot) { return slot != kNoSlot; });
  const SlotHandle moved = std::exchange(*last, kNoSlot);
  Slot& slot = slots_[moved];
  source.holes.push_back(slot.index);
  if (slot.moved_from == kNotMoved) {
    slot.moved_from = Offset(moved);
    moved_.push_back(moved);
  }
  slot.extent = to;
  slot.index = index;
  extents_[static_cast<size_t>(to)].slots[static_cast<size_t>(index)] = moved;
  ++generation_;
}

// Holes that a move leaves lie in the partly filled extent, which releases only ever take from: so
// every target is the place of a slot that was released, and every source that of one that was not.
std::span<const SlotMove> SlotAllocator::TakeMoves() {
  taken_moves_.clear();
  for (const SlotHandle handle : moved_) {
    Slot& slot = slots_[handle];
    if (slot.moved_from == kNotMoved) continue;  // It was released afterwards.
    const ArenaRange target = Range(handle);
    taken_moves_.push_back({{slot.moved_from, target.bytes}, target});
    slot.moved_from = kNotMoved;
  }
  moved_.clear();
  return taken_moves_;
}

void SlotAllocator::FreeExtentIfEmpty(int32_t extent_idx) {
  Extent& extent = extents_[static_cast<size_t>(extent_idx)];
  if (extent.holes.size() < extent.slots.size()) return;
  partial_extents_[static_cast<size_t>(extent.slot_class)] = -1;
  extent.slot_class = -1;
  free_extents_.push_back(extent_idx);
}

void SlotAllocator::Release(SlotHandle handle) {
  Slot& slot = slots_[handle];
  PMKVQ_CHECK(slot.num_references > 0);
  if (--slot.num_references > 0) return;

  int32_t& partial = partial_extents_[static_cast<size_t>(slot.slot_class)];
  // The hole stays where no other extent of the class has one.
  if (partial < 0 || partial == slot.extent) {
    partial = slot.extent;
    Extent& extent = extents_[static_cast<size_t>(partial)];
    extent.slots[static_cast<size_t>(slot.index)] = kNoSlot;
    extent.holes.push_back(slot.index);
  } else {
    MoveSomeSlot(partial, slot.extent, slot.index);
  }
  --live_slots_[static_cast<size_t>(slot.slot_class)];
  FreeExtentIfEmpty(partial);
  slot = Slot{};
  free_handles_.push_back(handle);
}

void SlotAllocator::CheckInvariants() const {
  std::vector<int64_t> live(slot_bytes_.size(), 0);
  int64_t num_free = 0;
  for (size_t i = 0; i < extents_.size(); ++i) {
    const Extent& extent = extents_[i];
    if (extent.slot_class < 0) {
      ++num_free;
      continue;
    }
    const auto slot_class = static_cast<size_t>(extent.slot_class);
    PMKVQ_CHECK(static_cast<int64_t>(extent.slots.size()) == slots_per_extent(extent.slot_class));
    PMKVQ_CHECK(extent.holes.size() < extent.slots.size());
    PMKVQ_CHECK_MSG(extent.holes.empty() || partial_extents_[slot_class] == static_cast<int32_t>(i),
                    "a second partly filled extent of one class");
    for (const int16_t hole : extent.holes) {
      PMKVQ_CHECK(extent.slots[static_cast<size_t>(hole)] == kNoSlot);
    }
    size_t num_used = 0;
    for (size_t index = 0; index < extent.slots.size(); ++index) {
      if (extent.slots[index] == kNoSlot) continue;
      ++num_used;
      const Slot& slot = slots_[extent.slots[index]];
      PMKVQ_CHECK(slot.extent == static_cast<int32_t>(i));
      PMKVQ_CHECK(slot.index == static_cast<int16_t>(index));
      PMKVQ_CHECK(slot.slot_class == extent.slot_class && slot.num_references > 0);
    }
    PMKVQ_CHECK(num_used + extent.holes.size() == extent.slots.size());
    live[slot_class] += static_cast<int64_t>(num_used);
  }
  PMKVQ_CHECK(num_free == static_cast<int64_t>(free_extents_.size()));
  PMKVQ_CHECK(live == live_slots_);
}

}  // namespace pmkvq
