#include "pmkvq/kv/packed/slot_allocator.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <map>

namespace pmkvq {
namespace {

constexpr size_t kExtent = 1024;
// 16, 8, 4, 2 bits, metadata, and a sink that leaves a rest of its extent.
const std::vector<size_t> kSlotBytes = {1024, 512, 256, 128, 64, 320};

// Slots with their bytes. A live slot's content is a function of its tag.
class Arena {
 public:
  explicit Arena(int64_t num_extents)
      : slots(kExtent, num_extents, kSlotBytes), bytes_(slots.arena_bytes()) {}

  void Fill(SlotHandle handle, uint32_t tag) {
    const ArenaRange range = slots.Range(handle);
    for (size_t i = 0; i < range.bytes; ++i) bytes_[range.offset + i] = ByteOf(tag, i);
  }
  bool Holds(SlotHandle handle, uint32_t tag) const {
    const ArenaRange range = slots.Range(handle);
    for (size_t i = 0; i < range.bytes; ++i) {
      if (bytes_[range.offset + i] != ByteOf(tag, i)) return false;
    }
    return true;
  }
  // In the order of the allocator, or the other way round.
  void MoveBytes(bool backwards = false) {
    const std::span<const SlotMove> moves = slots.TakeMoves();
    for (size_t i = 0; i < moves.size(); ++i) {
      const SlotMove& move = moves[backwards ? moves.size() - 1 - i : i];
      std::memcpy(bytes_.data() + move.target.offset, bytes_.data() + move.source.offset,
                  move.target.bytes);
    }
  }

  SlotAllocator slots;

 private:
  static std::byte ByteOf(uint32_t tag, size_t i) {
    return static_cast<std::byte>((tag * 2654435761u + i * 40503u) >> 7);
  }
  std::vector<std::byte> bytes_;
};

TEST(SlotAllocatorTest, SlotsOfOneClassShareExtents) {
  SlotAllocator slots(kExtent, 2, kSlotBytes);
  EXPECT_EQ(slots.arena_bytes(), 2048u);
  std::vector<SlotHandle> handles;
  for (int i = 0; i < 4; ++i) handles.push_back(slots.Allocate(2));
  EXPECT_EQ(slots.num_free_extents(), 1);
  EXPECT_NE(slots.Allocate(1), kNoSlot);
  EXPECT_EQ(slots.num_free_extents(), 0);
  EXPECT_EQ(slots.Allocate(2), kNoSlot);  // No extent left for a fifth.
  EXPECT_EQ(slots.Allocate(0), kNoSlot);
  EXPECT_NE(slots.Allocate(1), kNoSlot);  // But the partly filled one of its class has room.
  for (const SlotHandle handle : handles) slots.Release(handle);
  EXPECT_EQ(slots.num_free_extents(), 1);
  EXPECT_NE(slots.Allocate(0), kNoSlot);
  slots.CheckInvariants();
}

TEST(SlotAllocatorTest, ReleaseFillsTheHoleFromThePartlyFilledExtent) {
  Arena arena(3);
  SlotAllocator& slots = arena.slots;
  std::vector<SlotHandle> handles;
  for (uint32_t i = 0; i < 5; ++i) {
    handles.push_back(slots.Allocate(1));  // Two per extent: full, full, half.
    arena.Fill(handles.back(), i);
  }
  const uint64_t generation = slots.generation();
  slots.Release(handles[0]);  // Slot 4 moves here; its extent is free again, whole.
  EXPECT_GT(slots.generation(), generation);
  EXPECT_EQ(slots.num_free_extents(), 1);
  arena.MoveBytes();
  for (uint32_t i = 1; i < 5; ++i) EXPECT_TRUE(arena.Holds(handles[i], i));
  EXPECT_NE(slots.Allocate(0), kNoSlot);
  slots.CheckInvariants();
}

// Slots 6 and 5 would fill holes first and then be released themselves.
TEST(SlotAllocatorTest, ReleasesTogetherMoveASlotOnceAndNeverOneThatGoes) {
  SlotAllocator slots(kExtent, 2, kSlotBytes);
  std::vector<SlotHandle> handles;
  for (int i = 0; i < 7; ++i) handles.push_back(slots.Allocate(2));  // Four per extent.
  const size_t last_offset = slots.Offset(handles[4]);
  for (const int i : {0, 1, 6, 5}) slots.Release(handles[static_cast<size_t>(i)]);
  const std::span<const SlotMove> moves = slots.TakeMoves();
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0].source.offset, last_offset);
  EXPECT_EQ(moves[0].target.offset, slots.Offset(handles[4]));
  EXPECT_EQ(moves[0].target.bytes, 256u);
  EXPECT_EQ(slots.num_free_extents(), 1);
  EXPECT_TRUE(slots.TakeMoves().empty());
  slots.CheckInvariants();
}

TEST(SlotAllocatorDeathTest, AllocatingBeforeMovesAreTakenIsACallerBug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  SlotAllocator slots(kExtent, 3, kSlotBytes);
  const SlotHandle first = slots.Allocate(1);
  for (int i = 0; i < 2; ++i) EXPECT_NE(slots.Allocate(1), kNoSlot);
  slots.Release(first);
  EXPECT_DEATH((void)slots.Allocate(1), "moves have not been taken");
}

TEST(SlotAllocatorTest, TheLastOwnerFreesASlot) {
  SlotAllocator slots(kExtent, 1, kSlotBytes);
  const SlotHandle handle = slots.Allocate(0);
  slots.AddReference(handle);
  EXPECT_EQ(slots.num_references(handle), 2);
  slots.Release(handle);
  EXPECT_EQ(slots.Allocate(0), kNoSlot);
  slots.Release(handle);
  EXPECT_NE(slots.Allocate(0), kNoSlot);
}

TEST(SlotAllocatorDeathTest, ReleasingTwiceIsACallerBug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  SlotAllocator slots(kExtent, 1, kSlotBytes);
  const SlotHandle handle = slots.Allocate(0);
  slots.Release(handle);
  EXPECT_DEATH(slots.Release(handle), "num_references");
}

// Whether an allocation must succeed, by the live bytes alone: as many extents as a perfect
// packing of each class needs.
int64_t ExtentsNeeded(const std::map<int, int64_t>& live) {
  int64_t extents = 0;
  for (const auto& [slot_class, count] : live) {
    const auto per_extent =
        static_cast<int64_t>(kExtent / kSlotBytes[static_cast<size_t>(slot_class)]);
    extents += (count + per_extent - 1) / per_extent;
  }
  return extents;
}

RC_GTEST_PROP(SlotAllocatorProperty, AllocatesWheneverCompactedBytesHoldIt, ()) {
  const auto num_extents = *rc::gen::inRange<int64_t>(1, 12);
  const auto steps = *rc::gen::container<std::vector<std::pair<int, uint32_t>>>(
      *rc::gen::inRange<size_t>(0, 250),
      rc::gen::pair(rc::gen::inRange(0, 12), rc::gen::arbitrary<uint32_t>()));
  Arena arena(num_extents);
  SlotAllocator& slots = arena.slots;
  struct Live {
    SlotHandle handle;
    int slot_class;
    uint32_t tag;
  };
  std::vector<Live> live;
  std::map<int, int64_t> counts;

  const auto allocate = [&](int slot_class, uint32_t tag) {
    ++counts[slot_class];
    const bool must_succeed = ExtentsNeeded(counts) <= num_extents;
    const SlotHandle handle = slots.Allocate(slot_class);
    RC_ASSERT((handle != kNoSlot) == must_succeed);
    if (handle == kNoSlot) {
      --counts[slot_class];
      return;
    }
    arena.Fill(handle, tag);
    live.push_back({handle, slot_class, tag});
  };
  const auto release = [&](size_t index) {
    slots.Release(live[index].handle);
    --counts[live[index].slot_class];
    live.erase(live.begin() + static_cast<ptrdiff_t>(index));
  };

  for (const auto& [action, random] : steps) {
    if (action < 6) {
      allocate(action, random);
    } else if (!live.empty()) {
      const int slot_class = live[random % live.size()].slot_class;
      // Up to three at a time.
      for (uint32_t i = 0; i <= random / 7 % 3 && !live.empty(); ++i) {
        release((random + i * 5) % live.size());
      }
      arena.MoveBytes(/*backwards=*/random % 2 == 1);
      // Every second time a halving: the slot comes back in half the size.
      if (action >= 9 && slot_class < 3) allocate(slot_class + 1, random);
    }
    slots.CheckInvariants();
    RC_ASSERT(slots.num_extents() - slots.num_free_extents() == ExtentsNeeded(counts));
    for (const Live& slot : live) {
      RC_ASSERT(arena.Holds(slot.handle, slot.tag));
    }
  }
}

}  // namespace
}  // namespace pmkvq
