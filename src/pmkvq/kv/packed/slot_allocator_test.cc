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

// A live slot's content is a function of its tag.
void Fill(SlotAllocator& pool, SlotHandle handle, size_t bytes, uint32_t tag) {
  for (size_t i = 0; i < bytes; ++i) {
    pool.Data(handle)[i] = static_cast<std::byte>((tag * 2654435761u + i * 40503u) >> 7);
  }
}

bool Holds(const SlotAllocator& pool, SlotHandle handle, size_t bytes, uint32_t tag) {
  for (size_t i = 0; i < bytes; ++i) {
    if (pool.Data(handle)[i] != static_cast<std::byte>((tag * 2654435761u + i * 40503u) >> 7)) {
      return false;
    }
  }
  return true;
}

TEST(SlotAllocatorTest, SlotsOfOneClassShareExtents) {
  SlotAllocator pool(kExtent, 2, kSlotBytes);
  EXPECT_EQ(pool.arena_bytes(), 2048u);
  std::vector<SlotHandle> handles;
  for (int i = 0; i < 4; ++i) handles.push_back(pool.Allocate(2));
  EXPECT_EQ(pool.num_free_extents(), 1);
  EXPECT_NE(pool.Allocate(1), kNoSlot);
  EXPECT_EQ(pool.num_free_extents(), 0);
  EXPECT_EQ(pool.Allocate(2), kNoSlot);  // No extent left for a fifth.
  EXPECT_EQ(pool.Allocate(0), kNoSlot);
  EXPECT_NE(pool.Allocate(1), kNoSlot);  // But the partly filled one of its class has room.
  for (const SlotHandle handle : handles) pool.Release(handle);
  EXPECT_EQ(pool.num_free_extents(), 1);
  EXPECT_NE(pool.Allocate(0), kNoSlot);
  pool.CheckInvariants();
}

TEST(SlotAllocatorTest, ReleaseFillsTheHoleFromThePartlyFilledExtent) {
  SlotAllocator pool(kExtent, 3, kSlotBytes);
  std::vector<SlotHandle> handles;
  for (uint32_t i = 0; i < 5; ++i) {
    handles.push_back(pool.Allocate(1));  // Two per extent: full, full, half.
    Fill(pool, handles.back(), 512, i);
  }
  const uint64_t generation = pool.generation();
  pool.Release(handles[0]);  // Slot 4 moves here; its extent is free again, whole.
  EXPECT_GT(pool.generation(), generation);
  EXPECT_EQ(pool.num_free_extents(), 1);
  for (uint32_t i = 1; i < 5; ++i) EXPECT_TRUE(Holds(pool, handles[i], 512, i));
  EXPECT_NE(pool.Allocate(0), kNoSlot);
  pool.CheckInvariants();
}

TEST(SlotAllocatorTest, TheLastOwnerFreesASlot) {
  SlotAllocator pool(kExtent, 1, kSlotBytes);
  const SlotHandle handle = pool.Allocate(0);
  pool.AddReference(handle);
  EXPECT_EQ(pool.num_references(handle), 2);
  pool.Release(handle);
  EXPECT_EQ(pool.Allocate(0), kNoSlot);
  pool.Release(handle);
  EXPECT_NE(pool.Allocate(0), kNoSlot);
}

TEST(SlotAllocatorDeathTest, ReleasingTwiceIsACallerBug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  SlotAllocator pool(kExtent, 1, kSlotBytes);
  const SlotHandle handle = pool.Allocate(0);
  pool.Release(handle);
  EXPECT_DEATH(pool.Release(handle), "num_references");
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
  SlotAllocator pool(kExtent, num_extents, kSlotBytes);
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
    const SlotHandle handle = pool.Allocate(slot_class);
    RC_ASSERT((handle != kNoSlot) == must_succeed);
    if (handle == kNoSlot) {
      --counts[slot_class];
      return;
    }
    Fill(pool, handle, kSlotBytes[static_cast<size_t>(slot_class)], tag);
    live.push_back({handle, slot_class, tag});
  };
  const auto release = [&](size_t index) {
    pool.Release(live[index].handle);
    --counts[live[index].slot_class];
    live.erase(live.begin() + static_cast<ptrdiff_t>(index));
  };

  for (const auto& [action, random] : steps) {
    if (action < 6) {
      allocate(action, random);
    } else if (!live.empty()) {
      const size_t index = random % live.size();
      const int slot_class = live[index].slot_class;
      release(index);
      // Every second time a halving: the slot comes back in half the size.
      if (action >= 9 && slot_class < 3) allocate(slot_class + 1, random);
    }
    pool.CheckInvariants();
    RC_ASSERT(pool.num_extents() - pool.num_free_extents() == ExtentsNeeded(counts));
    for (const Live& slot : live) {
      RC_ASSERT(
          Holds(pool, slot.handle, kSlotBytes[static_cast<size_t>(slot.slot_class)], slot.tag));
    }
  }
}

}  // namespace
}  // namespace pmkvq
