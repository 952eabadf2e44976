#include "pmkvq/kv/page_pool.h"

#include <cstring>
#include <utility>

#include "pmkvq/base/check.h"

namespace pmkvq {

PagePool::PagePool(size_t extent_bytes, int64_t num_extents, std::vector<size_t> slot_bytes)
    : extent_bytes_(extent_bytes),
      num_extents_(num_extents),
      slot_bytes_(std::move(slot_bytes)),
      arena_(Device::kCpu, extent_bytes * static_cast<size_t>(num_extents)),
      partial_extents_(slot_bytes_.size(), -1),
      live_slots_(slot_bytes_.size(), 0) {
  for (const size_t bytes : slot_bytes_) {
    PMKVQ_CHECK(bytes > 0 && bytes <= extent_bytes);
    PMKVQ_CHECK(extent_bytes / bytes < 0x7fff);  // Slot::index
  }
}

int32_t PagePool::TakeFreeExtent() {
  if (free_extents_.empty()) {
    if (static_cast<int64_t>(extents_.size()) == num_extents_) return -1;
    extents_.emplace_back();
    return static_cast<int32_t>(extents_.size() - 1);
  }
  const int32_t extent = free_extents_.back();
  free_extents_.pop_back();
  return extent;
}

SlotHandle PagePool::NewHandle() {
  if (free_handles_.empty()) {
    slots_.emplace_back();
    return static_cast<SlotHandle>(slots_.size() - 1);
  }
  const SlotHandle handle = free_handles_.back();
  free_handles_.pop_back();
  return handle;
}

SlotHandle PagePool::Allocate(int slot_class) {
  int32_t& partial = partial_extents_[static_cast<size_t>(slot_class)];
  if (partial < 0) {
    partial = TakeFreeExtent();
    if (partial < 0) return kNoSlot;
    extents_[static_cast<size_t>(partial)].slot_class = slot_class;
  }
  Extent& extent = extents_[static_cast<size_t>(partial)];
  const SlotHandle handle = NewHandle();
  slots_[handle] = {partial, static_cast<int16_t>(extent.used.size()),
                    static_cast<int16_t>(slot_class), 1};
  extent.used.push_back(handle);
  if (IsFull(extent)) partial = -1;
  ++live_slots_[static_cast<size_t>(slot_class)];
  return handle;
}

void PagePool::AddReference(SlotHandle handle) {
  PMKVQ_CHECK(slots_[handle].num_references > 0);
  ++slots_[handle].num_references;
}

void PagePool::MoveLastSlot(int32_t from, int32_t to, int16_t index) {
  Extent& source = extents_[static_cast<size_t>(from)];
  const SlotHandle moved = source.used.back();
  source.used.pop_back();
  const std::byte* old_data = Data(moved);
  slots_[moved].extent = to;
  slots_[moved].index = index;
  extents_[static_cast<size_t>(to)].used[static_cast<size_t>(index)] = moved;
  std::memcpy(Data(moved), old_data, slot_bytes(source.slot_class));
  ++generation_;
}

void PagePool::FreeExtentIfEmpty(int32_t extent_idx) {
  Extent& extent = extents_[static_cast<size_t>(extent_idx)];
  if (!extent.used.empty()) return;
  partial_extents_[static_cast<size_t>(extent.slot_class)] = -1;
  extent.slot_class = -1;
  free_extents_.push_back(extent_idx);
}

void PagePool::Release(SlotHandle handle) {
  Slot& slot = slots_[handle];
  PMKVQ_CHECK(slot.num_references > 0);
  if (--slot.num_references > 0) return;

  int32_t& partial = partial_extents_[static_cast<size_t>(slot.slot_class)];
  // The hole is filled from the partly filled extent, which is this one if there is no other.
  if (partial < 0) partial = slot.extent;
  Extent& source = extents_[static_cast<size_t>(partial)];
  if (source.used.back() == handle) {
    source.used.pop_back();
  } else {
    MoveLastSlot(partial, slot.extent, slot.index);
  }
  --live_slots_[static_cast<size_t>(slot.slot_class)];
  FreeExtentIfEmpty(partial);
  slot = Slot{};
  free_handles_.push_back(handle);
}

void PagePool::CheckInvariants() const {
  std::vector<int64_t> live(slot_bytes_.size(), 0);
  int64_t num_free = 0;
  for (size_t i = 0; i < extents_.size(); ++i) {
    const Extent& extent = extents_[i];
    if (extent.slot_class < 0) {
      PMKVQ_CHECK(extent.used.empty());
      ++num_free;
      continue;
    }
    const auto slot_class = static_cast<size_t>(extent.slot_class);
    PMKVQ_CHECK(!extent.used.empty());
    PMKVQ_CHECK_MSG(IsFull(extent) || partial_extents_[slot_class] == static_cast<int32_t>(i),
                    "a second partly filled extent of one class");
    live[slot_class] += static_cast<int64_t>(extent.used.size());
    for (size_t index = 0; index < extent.used.size(); ++index) {
      const Slot& slot = slots_[extent.used[index]];
      PMKVQ_CHECK(slot.extent == static_cast<int32_t>(i));
      PMKVQ_CHECK(slot.index == static_cast<int16_t>(index));
      PMKVQ_CHECK(slot.slot_class == extent.slot_class && slot.num_references > 0);
    }
  }
  PMKVQ_CHECK(num_free == static_cast<int64_t>(free_extents_.size()));
  PMKVQ_CHECK(live == live_slots_);
}

}  // namespace pmkvq
