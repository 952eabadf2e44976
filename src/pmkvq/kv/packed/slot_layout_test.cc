#include "pmkvq/kv/packed/slot_layout.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

#include "pmkvq/kv/packed/slot_allocator.h"

namespace pmkvq {
namespace {

CacheConfig ConfigOf(const KvGeometry& geometry, int64_t tokens) {
  CacheConfig config;
  config.geometry = geometry;
  for (size_t layer = 0; layer < geometry.blocks.size(); ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, tokens, 16, 16));
  }
  return config;
}

TEST(SlotLayoutTest, EqualBlocksHaveOneExtentPerPage) {
  const SlotLayout layout = MakeSlotLayout(ConfigOf(UniformKvGeometry{3, 4, 2, 64}, 300));
  EXPECT_EQ(layout.extent_bytes, 128u * 2 * 64 * 2);
  // 16, 8, 4 and 2 bits, metadata, the sink's one token.
  EXPECT_EQ(layout.slot_bytes, (std::vector<size_t>{32768, 16384, 8192, 4096, 1024, 512}));
  EXPECT_EQ(layout.blocks[2].sides[kValues].code_class, layout.blocks[0].sides[kKeys].code_class);
}

TEST(SlotLayoutTest, BlocksShareClassesOfOneSize) {
  KvGeometry geometry;
  for (const int64_t heads : {2, 4, 1}) geometry.blocks.push_back(BlockOf({1, 4, heads, 64}));
  const SlotLayout layout = MakeSlotLayout(ConfigOf(geometry, 300));
  EXPECT_EQ(layout.extent_bytes, 128u * 4 * 64 * 2);
  // A page of 2 heads at 16 bits is one of 4 heads at 8.
  EXPECT_EQ(layout.blocks[0].sides[kKeys].code_class[0],
            layout.blocks[1].sides[kKeys].code_class[1]);
  EXPECT_EQ(layout.blocks[2].sides[kKeys].code_class[0],
            layout.blocks[1].sides[kKeys].code_class[2]);
}

TEST(SlotLayoutTest, ExtentsAreCommonMultiplesUpToALimit) {
  KvGeometry geometry;
  for (const int64_t heads : {2, 3}) geometry.blocks.push_back(BlockOf({1, 6, heads, 16}));
  EXPECT_EQ(MakeSlotLayout(ConfigOf(geometry, 300)).extent_bytes, 6u * 128 * 16 * 2);
  geometry.blocks.clear();
  for (const int64_t heads : {5, 7, 8}) geometry.blocks.push_back(BlockOf({1, heads, heads, 16}));
  EXPECT_EQ(MakeSlotLayout(ConfigOf(geometry, 300)).extent_bytes, 16u * 8 * 128 * 16 * 2);
}

// Pages and metadata of random blocks, as PageStore would allocate them, within each block's
// budget: the arena never refuses one.
RC_GTEST_PROP(SlotLayoutProperty, TheArenaHoldsWhateverTheBudgetsAllow, ()) {
  CacheConfig config;
  const auto num_blocks = *rc::gen::inRange<size_t>(1, 5);
  for (size_t i = 0; i < num_blocks; ++i) {
    const auto heads = *rc::gen::inRange<int64_t>(1, 9);
    config.geometry.blocks.push_back(
        *rc::gen::inRange(0, 3) == 0
            ? LatentBlockOf(heads, *rc::gen::element<int64_t>(8, 56, 256, 512),
                            *rc::gen::element<int64_t>(8, 24, 64))
            : BlockOf({1, heads, heads, *rc::gen::element<int64_t>(8, 16, 24)}));
  }
  config.sink_tokens = *rc::gen::element<int64_t>(0, 3, 100);
  config.k_axis = *rc::gen::element(QuantAxis::kToken, QuantAxis::kChannel);
  if (HasLatents(config.geometry)) config.k_axis = QuantAxis::kToken;
  for (size_t layer = 0; layer < num_blocks; ++layer) {
    const int64_t least = FloorBytes(config, layer, config.sink_tokens + 1);
    config.budget_bytes.push_back(least + *rc::gen::inRange<int64_t>(0, 20 * least));
  }
  const SlotLayout layout = MakeSlotLayout(config);
  SlotAllocator pool(layout.extent_bytes, layout.num_extents, layout.slot_bytes);

  std::set<int> page_classes;
  for (const BlockSlots& block : layout.blocks) {
    for (const StreamSlots& slots : block.sides) {
      page_classes.insert(slots.code_class.begin(), slots.code_class.end());
      page_classes.insert(slots.metadata_class);
    }
  }

  struct Page {
    size_t layer;
    int64_t bytes;
    std::vector<SlotHandle> slots;
  };
  std::vector<Page> live;
  std::vector<int64_t> bytes(num_blocks, 0);
  for (size_t layer = 0; layer < num_blocks; ++layer) {
    const SinkSlots& sink = layout.blocks[layer].sink;
    bytes[layer] = static_cast<int64_t>(sink.rest_bytes);
    for (int i = 0; i < sink.num_rest_slots; ++i) {
      RC_ASSERT(pool.Allocate(sink.rest_class) != kNoSlot);
    }
  }
  const auto steps =
      *rc::gen::container<std::vector<uint32_t>>(300, rc::gen::arbitrary<uint32_t>());
  for (const uint32_t step : steps) {
    const size_t layer = step % num_blocks;
    const StreamSlots& slots = layout.blocks[layer].sides[step / 7 % 2];
    const size_t width = step / 16 % 4;
    if (bytes[layer] + slots.page_bytes[width] <= config.budget_bytes[layer]) {
      Page page{layer, slots.page_bytes[width], {pool.Allocate(slots.code_class[width])}};
      if (width > 0) page.slots.push_back(pool.Allocate(slots.metadata_class));
      RC_ASSERT(std::find(page.slots.begin(), page.slots.end(), kNoSlot) == page.slots.end());
      bytes[layer] += page.bytes;
      live.push_back(std::move(page));
    } else if (!live.empty()) {
      const size_t index = step / 64 % live.size();
      for (const SlotHandle slot : live[index].slots) pool.Release(slot);
      bytes[live[index].layer] -= live[index].bytes;
      live.erase(live.begin() + static_cast<ptrdiff_t>(index));
    }
    (void)pool.TakeMoves();
    // Beyond the budgets there is room for one slot of each class with several to an extent.
    std::vector<SlotHandle> beyond;
    for (const int slot_class : page_classes) {
      if (pool.slots_per_extent(slot_class) == 1) continue;
      beyond.push_back(pool.Allocate(slot_class));
      RC_ASSERT(beyond.back() != kNoSlot);
    }
    for (const SlotHandle slot : beyond) pool.Release(slot);
    (void)pool.TakeMoves();
    pool.CheckInvariants();
  }
}

}  // namespace
}  // namespace pmkvq
