// Places of slots of a few sizes in one arena of fixed size, cut into equal extents. Bookkeeping
// only: slots are offsets, and nothing here reads or writes a byte of the arena, which may be the
// memory of a device.
//
// An extent is at least as large as the largest slot (in a model of equal blocks: one 16-bit page)
// and, while in use, holds slots of one class only: one 16-bit page, two of 8 bits, four of 4,
// eight of 2, metadata, or sinks; slot_layout.h defines the classes. A slot is reached
// through a handle; a release may move another slot (never change its handle), so an offset
// is good only as long as generation() stays the same.
//
// Invariant, restored at every release: at most one extent per class is partly filled. A release
// that would leave a second one moves a slot of the partly filled extent into the hole. Hence
//
//   an allocation of class c succeeds whenever there is a free extent or a partly filled one of c,
//   that is, whenever the free bytes, after compaction, hold it.
//
// Guarantee behind the cache's budgets, for a set of classes: let u be the least number of bytes
// that the slots of a full extent take, over these classes (extent_bytes, where slots of each fill
// an extent without rest). Each full extent then holds u live bytes or more, and by the invariant
// at most one extent per class is not full, none of a class with one slot per extent. So live bytes
// of at most B (the new slot included) lie in at most floor(B / u) full extents and one more for
// each class with more than one slot per extent: so many extents never refuse an allocation that
// keeps live bytes within B. They have room for more: while live bytes are within B, one slot of
// each class with more than one slot per extent can be had at the same time, since a class without
// a partly filled extent leaves an extent free.
//
// Moves are collected: after releasing slots a caller takes the moves (TakeMoves) and moves the
// bytes before any other use of the arena.
//
// Reference counts let one slot serve several sequences (a shared prompt); a slot with more than
// one owner must not be written.
//
// Threads: not thread-safe; reading offsets from several threads between calls is fine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pmkvq {

using SlotHandle = uint32_t;
inline constexpr SlotHandle kNoSlot = ~SlotHandle{0};

// Bytes of the arena.
struct ArenaRange {
  size_t offset = 0;
  size_t bytes = 0;
};

// The content of a slot lies at `source` and belongs at `target`, which are equally long.
struct SlotMove {
  ArenaRange source;
  ArenaRange target;
};

class SlotAllocator {
 public:
  // `slot_bytes[c]` is the size of a slot of class c, 1 .. extent_bytes.
  SlotAllocator(size_t extent_bytes, int64_t num_extents, std::vector<size_t> slot_bytes);

  // A new slot with one owner, its content undefined; kNoSlot when there is neither a free extent
  // nor room in the partly filled one of the class. Cost O(1). Not while moves are to be taken.
  [[nodiscard]] SlotHandle Allocate(int slot_class);
  // One more owner.
  void AddReference(SlotHandle handle);
  // One owner less; the last one frees the slot. Moves another slot of the same class when this
  // one's extent was full and another one is partly filled: slots that are released extent by
  // extent, in order of their addresses, cause few moves.
  void Release(SlotHandle handle);

  // The moves that the releases since the last call have led to; valid until the next Release. A
  // slot moves once, from where it was before these releases to where it is now. No source overlaps
  // a target, so they may be carried out in any order.
  std::span<const SlotMove> TakeMoves();

  size_t Offset(SlotHandle handle) const {
    const Slot& slot = slots_[handle];
    return static_cast<size_t>(slot.extent) * extent_bytes_ +
           static_cast<size_t>(slot.index) * slot_bytes_[static_cast<size_t>(slot.slot_class)];
  }
  ArenaRange Range(SlotHandle handle) const {
    return {Offset(handle), slot_bytes(slots_[handle].slot_class)};
  }
  int ClassOf(SlotHandle handle) const { return slots_[handle].slot_class; }
  int64_t num_references(SlotHandle handle) const { return slots_[handle].num_references; }

  // Rises whenever a slot moves.
  uint64_t generation() const { return generation_; }

  int num_classes() const { return static_cast<int>(slot_bytes_.size()); }
  size_t slot_bytes(int slot_class) const { return slot_bytes_[static_cast<size_t>(slot_class)]; }
  int64_t slots_per_extent(int slot_class) const {
    return static_cast<int64_t>(extent_bytes_ / slot_bytes(slot_class));
  }
  size_t arena_bytes() const { return extent_bytes_ * static_cast<size_t>(num_extents_); }
  int64_t num_extents() const { return num_extents_; }
  int64_t num_free_extents() const {
    return num_extents_ - static_cast<int64_t>(extents_.size() - free_extents_.size());
  }
  int64_t num_live_slots(int slot_class) const {
    return live_slots_[static_cast<size_t>(slot_class)];
  }

  // Checks every invariant named above in O(extents + slots). For tests.
  void CheckInvariants() const;

 private:
  static constexpr size_t kNotMoved = ~size_t{0};

  struct Slot {  // Where a handle's bytes lie.
    int32_t extent = 0;
    int16_t index = 0;
    int16_t slot_class = -1;  // -1: the handle is free.
    int32_t num_references = 0;
    size_t moved_from = kNotMoved;  // Of moves that nobody has taken yet: the offset before them.
  };
  struct Extent {
    int slot_class = -1;            // -1: free.
    std::vector<SlotHandle> slots;  // By index; kNoSlot where there is a hole.
    std::vector<int16_t> holes;     // Their indices; the last one is filled first.
  };

  SlotHandle NewHandle();
  // Moves some slot of `from` to the hole `index` of `to`; it leaves a hole behind.
  void MoveSomeSlot(int32_t from, int32_t to, int16_t index);
  void FreeExtentIfEmpty(int32_t extent);
  // A free extent, or -1.
  int32_t TakeFreeExtent();

  size_t extent_bytes_;
  int64_t num_extents_;
  std::vector<size_t> slot_bytes_;
  std::vector<Extent> extents_;           // Those that were ever used: the arena's front.
  std::vector<int32_t> free_extents_;     // Of these, a stack: used again before the arena's rest.
  std::vector<int32_t> partial_extents_;  // Per class, -1 for none.
  std::vector<int64_t> live_slots_;       // Per class.
  std::vector<Slot> slots_;               // By handle.
  std::vector<SlotHandle> free_handles_;
  std::vector<SlotHandle> moved_;  // Slots whose moves nobody has taken yet; some are free again.
  std::vector<SlotMove> taken_moves_;
  uint64_t generation_ = 0;
};

}  // namespace pmkvq
