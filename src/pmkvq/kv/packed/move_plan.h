// A plan of operations on page bytes, made on the host: a list of records with offsets in the
// arena, in waves. Making the plan updates slots and page tables; executing it updates the bytes
// (move_executor.h is the CPU's executor).
//
// Records of a wave may run in any order, or at once: no record writes bytes that another one of
// the wave reads or writes. So pages of a wave read their old slots and write slots that hold no
// page that is still to be read. Slots that a wave has read are free for later waves. Moves that
// keep the arena compact are separate waves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/kv/packed/slot_allocator.h"
#include "pmkvq/kv/packed/slot_layout.h"
#include "pmkvq/kv/packed/stored_page.h"

namespace pmkvq {

enum class PageOpKind : uint8_t {
  kCopy,      // Bytes as they are.
  kQuantize,  // 16 bits to codes of `to_bits`; writes codes and metadata.
  kHalve,     // Codes to codes of half or a quarter of the bits; metadata stays where it is.
  kExpand,    // Codes and metadata to 16 bits.
};

struct PageOp {
  PageOpKind kind = PageOpKind::kCopy;
  QuantAxis axis = QuantAxis::kToken;  // Of the codes.
  Side side = kKeys;                   // Of kQuantize and kExpand: layouts may differ by it.
  uint8_t from_bits = 16;
  uint8_t to_bits = 16;
  uint32_t page = 0;    // The planner's number of this page. 0 for copies.
  ArenaRange source;    // Read.
  ArenaRange target;    // Written.
  ArenaRange metadata;  // Written by kQuantize, read by kExpand, otherwise empty.
};

class MovePlan {
 public:
  void Clear();
  void Add(const PageOp& op) { ops_.push_back(op); }
  // Records added from now on belong to the next wave. Nothing happens when the wave is empty.
  void EndWave();
  // So that adding `num_ops` more does not fail for want of memory.
  void Reserve(size_t num_ops);

  // Complete after EndWave.
  size_t num_waves() const { return wave_ends_.size(); }
  std::span<const PageOp> wave(size_t i) const {
    const size_t begin = i == 0 ? 0 : wave_ends_[i - 1];
    return std::span(ops_).subspan(begin, wave_ends_[i] - begin);
  }
  size_t num_bytes() const;

 private:
  std::vector<PageOp> ops_;
  std::vector<size_t> wave_ends_;
};

// A page that is to have fewer bits, and the slot classes of its side and block.
struct PageChange {
  StoredPage* page = nullptr;
  int bits = 8;
  const StreamSlots* slots = nullptr;
  // Entries of other tables that own the same slots, and are to have the new ones. All other owners
  // keep the old slots.
  std::span<StoredPage* const> sharers = {};
};

// Gives pages of full length their slots at lower widths, in the order of `changes`, and plans the
// operations on their bytes. A wave takes as many pages as the arena has slots for, at most
// `most_pages`; their old slots go when it ends. There is room for one page at least while live
// bytes are within those that the arena was sized for (slot_allocator.h): less room is a caller's
// bug. PageOp::page is the index in `changes`.
void PlanNarrowing(std::span<const PageChange> changes, size_t most_pages, SlotAllocator& slots,
                   MovePlan& plan);

// Gives a quantised page a slot of 16 bits, which the arena must have room for beside its old ones.
void PlanExpanding(StoredPage& page, const StreamSlots& classes, SlotAllocator& slots,
                   MovePlan& plan);

// The moves that releases have led to, as one wave.
void PlanMoves(SlotAllocator& slots, MovePlan& plan);

}  // namespace pmkvq
