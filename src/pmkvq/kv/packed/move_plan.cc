#include "pmkvq/kv/packed/move_plan.h"

#include <algorithm>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

// Slots for the page at its new width; without codes where the arena lacks one of them. Metadata
// stays where it is: (min, range) do not depend on the width.
StoredPage TryAllocate(const PageChange& change, SlotAllocator& slots) {
  const StoredPage& old = *change.page;
  PMKVQ_CHECK(change.bits < old.bits);
  StoredPage narrowed{kNoSlot, old.metadata, change.bits, change.slots->axis};
  narrowed.data = slots.Allocate(change.slots->code_class[WidthIndex(change.bits)]);
  if (narrowed.data == kNoSlot || old.metadata != kNoSlot) return narrowed;
  narrowed.metadata = slots.Allocate(change.slots->metadata_class);
  if (narrowed.metadata == kNoSlot) {
    slots.Release(narrowed.data);
    narrowed.data = kNoSlot;
  }
  return narrowed;
}

PageOp NarrowingOp(const StoredPage& from, const StoredPage& to, Side side, size_t page,
                   const SlotAllocator& slots) {
  PageOp op;
  op.kind = from.bits == 16 ? PageOpKind::kQuantize : PageOpKind::kHalve;
  op.axis = to.axis;
  op.side = side;
  op.from_bits = static_cast<uint8_t>(from.bits);
  op.to_bits = static_cast<uint8_t>(to.bits);
  op.page = static_cast<uint32_t>(page);
  op.source = slots.Range(from.data);
  op.target = slots.Range(to.data);
  if (op.kind == PageOpKind::kQuantize) op.metadata = slots.Range(to.metadata);
  return op;
}

}  // namespace

void MovePlan::Clear() {
  ops_.clear();
  wave_ends_.clear();
}

void MovePlan::EndWave() {
  const size_t begin = wave_ends_.empty() ? 0 : wave_ends_.back();
  if (ops_.size() > begin) wave_ends_.push_back(ops_.size());
}

void MovePlan::Reserve(size_t num_ops) {
  ops_.reserve(ops_.size() + num_ops);
  wave_ends_.reserve(wave_ends_.size() + num_ops);
}

size_t MovePlan::num_bytes() const {
  return ops_.capacity() * sizeof(PageOp) + wave_ends_.capacity() * sizeof(size_t);
}

void PlanNarrowing(std::span<const PageChange> changes, size_t most_pages, SlotAllocator& slots,
                   MovePlan& plan) {
  // A page is one record, and its release leads to one move at most.
  plan.Reserve(2 * changes.size());
  std::vector<SlotHandle> old_slots;
  old_slots.reserve(std::min(most_pages, changes.size()));
  for (size_t next = 0; next < changes.size();) {
    old_slots.clear();
    const size_t wave_end = std::min(changes.size(), next + most_pages);
    while (next < wave_end) {
      const StoredPage narrowed = TryAllocate(changes[next], slots);
      if (narrowed.data == kNoSlot) break;
      StoredPage& page = *changes[next].page;
      plan.Add(NarrowingOp(page, narrowed, changes[next].slots->side, next, slots));
      old_slots.push_back(page.data);
      for (StoredPage* const sharer : changes[next].sharers) {
        old_slots.push_back(page.data);
        slots.AddReference(narrowed.data);
        if (page.metadata == kNoSlot) slots.AddReference(narrowed.metadata);
        *sharer = narrowed;
      }
      page = narrowed;
      ++next;
    }
    PMKVQ_CHECK_MSG(!old_slots.empty(), "the arena is smaller than its budgets");
    plan.EndWave();
    for (const SlotHandle slot : old_slots) slots.Release(slot);
    PlanMoves(slots, plan);
  }
}

void PlanExpanding(StoredPage& page, const StreamSlots& classes, SlotAllocator& slots,
                   MovePlan& plan) {
  PMKVQ_CHECK(page.bits < 16);
  const StoredPage old = page;
  page = StoredPage{};
  page.data = slots.Allocate(classes.code_class[WidthIndex(16)]);
  PMKVQ_CHECK_MSG(page.data != kNoSlot, "the arena is smaller than its budgets");
  PageOp op;
  op.kind = PageOpKind::kExpand;
  op.axis = old.axis;
  op.side = classes.side;
  op.from_bits = static_cast<uint8_t>(old.bits);
  op.source = slots.Range(old.data);
  op.target = slots.Range(page.data);
  op.metadata = slots.Range(old.metadata);
  plan.Add(op);
  plan.EndWave();
  slots.Release(old.data);
  slots.Release(old.metadata);
  PlanMoves(slots, plan);
}

void PlanMoves(SlotAllocator& slots, MovePlan& plan) {
  for (const SlotMove& move : slots.TakeMoves()) {
    PageOp op;
    op.source = move.source;
    op.target = move.target;
    plan.Add(op);
  }
  plan.EndWave();
}

}  // namespace pmkvq
