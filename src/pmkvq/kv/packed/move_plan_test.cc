// Plans carried out against a naive model: every page's codes and metadata in vectors of their own.
#include "pmkvq/kv/packed/move_plan.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/packed/move_executor.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

constexpr DType kType = DType::kF16;

// Keys and values of one head of 16 dims. Their axes differ, so that both kinds of metadata occur.
CacheConfig SmallConfig(int64_t num_pages) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{1, 1, 1, 16};
  config.float_type = kType;
  config.sink_tokens = 0;
  config.k_axis = QuantAxis::kChannel;
  config.budget_bytes = {num_pages * PageBytes(config.geometry.block(0).k(), kType, 16)};
  return config;
}

bool Overlap(const ArenaRange& a, const ArenaRange& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

std::vector<ArenaRange> Writes(const PageOp& op) {
  if (op.kind == PageOpKind::kQuantize) return {op.target, op.metadata};
  return {op.target};
}

std::vector<ArenaRange> Reads(const PageOp& op) {
  if (op.kind == PageOpKind::kExpand) return {op.source, op.metadata};
  return {op.source};
}

// No record of a wave writes what another one of it reads or writes, or what it reads itself.
bool RunsInAnyOrder(std::span<const PageOp> wave) {
  for (size_t i = 0; i < wave.size(); ++i) {
    for (const ArenaRange& written : Writes(wave[i])) {
      for (size_t j = 0; j < wave.size(); ++j) {
        for (const ArenaRange& read : Reads(wave[j])) {
          if (Overlap(written, read)) return false;
        }
        for (const ArenaRange& other : Writes(wave[j])) {
          if (i != j && Overlap(written, other)) return false;
        }
      }
    }
  }
  return true;
}

// The plan with the records of each wave shuffled.
MovePlan Shuffled(const MovePlan& plan, std::mt19937& random) {
  MovePlan shuffled;
  for (size_t i = 0; i < plan.num_waves(); ++i) {
    std::vector<PageOp> ops(plan.wave(i).begin(), plan.wave(i).end());
    std::shuffle(ops.begin(), ops.end(), random);
    for (const PageOp& op : ops) shuffled.Add(op);
    shuffled.EndWave();
  }
  return shuffled;
}

struct ModelPage {
  std::vector<std::byte> data;
  std::vector<std::byte> metadata;
};

// Pages in an arena for `num_pages` pages at 16 bits, and the same pages in memory of their own.
class PageWorld {
 public:
  explicit PageWorld(int64_t num_pages)
      : most_pages(static_cast<size_t>(num_pages)),
        layout(MakeSlotLayout(SmallConfig(num_pages))),
        slots(layout.extent_bytes, layout.num_extents, layout.slot_bytes),
        codec(StreamOf(1, 16), kType),
        arena(DeviceId(), slots.arena_bytes()) {}

  void AddPage(std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(codec.num_values()));
    for (float& value : values) value = normal(random);
    ModelPage page;
    page.data.resize(CodeBytes(16));
    codec.WriteValues(values.data(), codec.num_values(), page.data.data());
    StoredPage stored;
    stored.data = slots.Allocate(of(kKeys).code_class[WidthIndex(16)]);
    ASSERT_NE(stored.data, kNoSlot);
    std::memcpy(arena.data() + slots.Offset(stored.data), page.data.data(), page.data.size());
    pages.push_back(stored);
    model.push_back(std::move(page));
  }

  // Pages given by index, to lower widths.
  void Narrow(const std::vector<PageChange>& changes, size_t most, std::mt19937& random) {
    for (const PageChange& change : changes) {
      ModelPage& page = model[static_cast<size_t>(change.page - pages.data())];
      ModelPage narrowed = page;
      narrowed.data.resize(CodeBytes(change.bits));
      if (change.page->bits == 16) {
        narrowed.metadata.resize(slots.slot_bytes(change.slots->metadata_class));
        ASSERT_TRUE(codec.Narrow(page.data.data(), change.bits, change.slots->axis,
                                 narrowed.data.data(), narrowed.metadata.data()));
      } else {
        codec.Halve(page.data.data(), change.page->bits, change.bits, change.slots->axis,
                    narrowed.data.data());
      }
      page = narrowed;
    }
    MovePlan plan;
    PlanNarrowing(changes, most, slots, plan);
    Execute(plan, random);
  }

  void Expand(size_t index, std::mt19937& random) {
    StoredPage& stored = pages[index];
    ModelPage& page = model[index];
    ModelPage expanded;
    expanded.data.resize(CodeBytes(16));
    codec.Expand({page.data.data(), page.metadata.data(), stored.bits, stored.axis},
                 expanded.data.data());
    page = expanded;
    MovePlan plan;
    PlanExpanding(stored, of(kKeys), slots, plan);
    Execute(plan, random);
  }

  void Release(const std::vector<size_t>& indices, std::mt19937& random) {
    for (const size_t index : indices) {
      slots.Release(pages[index].data);
      if (pages[index].metadata != kNoSlot) slots.Release(pages[index].metadata);
      pages.erase(pages.begin() + static_cast<ptrdiff_t>(index));
      model.erase(model.begin() + static_cast<ptrdiff_t>(index));
    }
    MovePlan plan;
    PlanMoves(slots, plan);
    Execute(plan, random);
  }

  void Execute(const MovePlan& plan, std::mt19937& random) {
    for (size_t i = 0; i < plan.num_waves(); ++i) {
      ASSERT_FALSE(plan.wave(i).empty());
      ASSERT_TRUE(RunsInAnyOrder(plan.wave(i))) << "wave " << i;
    }
    ASSERT_FALSE(ExecuteMoves(Shuffled(plan, random), codec, arena.view(), /*num_threads=*/2));
    slots.CheckInvariants();
    for (size_t i = 0; i < pages.size(); ++i) {
      ASSERT_TRUE(Holds(pages[i].data, model[i].data)) << "page " << i;
      if (pages[i].bits == 16) continue;
      ASSERT_TRUE(Holds(pages[i].metadata, model[i].metadata)) << "page " << i;
    }
  }

  bool Holds(SlotHandle slot, const std::vector<std::byte>& bytes) const {
    return std::memcmp(arena.data() + slots.Offset(slot), bytes.data(), bytes.size()) == 0;
  }

  const StreamSlots& of(Side side) const { return layout.blocks[0].sides[side]; }
  size_t CodeBytes(int bits) const {
    return slots.slot_bytes(of(kKeys).code_class[WidthIndex(bits)]);
  }

  size_t most_pages;
  SlotLayout layout;
  SlotAllocator slots;
  PageCodec codec;
  Buffer arena;
  std::vector<StoredPage> pages;
  std::vector<ModelPage> model;
};

TEST(MovePlanTest, AFullArenaIsHalvedInWavesThatGrow) {
  constexpr size_t kPages = 64;
  PageWorld world(kPages);
  std::mt19937 random(1);
  for (size_t i = 0; i < kPages; ++i) world.AddPage(random);
  for (const int bits : {8, 4, 2}) {
    std::vector<PageChange> changes;
    for (StoredPage& page : world.pages) changes.push_back({&page, bits, &world.of(kValues)});
    MovePlan plan;
    PlanNarrowing(changes, kPages, world.slots, plan);
    size_t last_pages = 0;
    for (size_t i = 0; i < plan.num_waves(); ++i) {
      ASSERT_TRUE(RunsInAnyOrder(plan.wave(i)));
      if (plan.wave(i)[0].kind == PageOpKind::kCopy) continue;
      const bool is_last = plan.wave(i).back().page + 1 == kPages;
      EXPECT_TRUE(is_last || plan.wave(i).size() > last_pages) << bits << " bits, wave " << i;
      last_pages = plan.wave(i).size();
    }
    EXPECT_LE(plan.num_waves(), 6u);
    ExecuteMoves(plan, world.codec, world.arena.view(), 1);
  }
}

TEST(MovePlanTest, AWaveHasAtMostSoManyPages) {
  PageWorld world(10);
  std::mt19937 random(1);
  for (int i = 0; i < 10; ++i) world.AddPage(random);
  std::vector<PageChange> changes;
  for (StoredPage& page : world.pages) changes.push_back({&page, 4, &world.of(kValues)});
  MovePlan plan;
  PlanNarrowing(changes, 3, world.slots, plan);
  for (size_t i = 0; i < plan.num_waves(); ++i) EXPECT_LE(plan.wave(i).size(), 3u);
}

TEST(MovePlanTest, TheFirstPageThatDoesNotFitIsNamed) {
  PageWorld world(3);
  std::mt19937 random(1);
  for (int i = 0; i < 3; ++i) world.AddPage(random);
  for (const size_t unfit : {size_t{1}, size_t{2}}) {
    std::vector<float> values(static_cast<size_t>(world.codec.num_values()));
    values[5 * 16] = -60000.0f;  // Token 5.
    values[5 * 16 + 3] = 60000.0f;
    world.codec.WriteValues(values.data(), world.codec.num_values(),
                            world.arena.data() + world.slots.Offset(world.pages[unfit].data));
  }
  std::vector<PageChange> changes;
  for (StoredPage& page : world.pages) changes.push_back({&page, 8, &world.of(kValues)});
  MovePlan plan;
  PlanNarrowing(changes, 8, world.slots, plan);
  const auto unfit = ExecuteMoves(plan, world.codec, world.arena.view(), 2);
  ASSERT_TRUE(unfit);
  EXPECT_EQ(unfit->page, 1u);
  EXPECT_EQ(unfit->group.first_token, 5);
  EXPECT_EQ(unfit->group.lowest, -60000.0f);
  EXPECT_EQ(unfit->group.highest, 60000.0f);
}

TEST(MovePlanTest, ADeviceWithoutCodeIsRefused) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  PageWorld world(1);
  DeviceBytes arena = world.arena.view();
  arena.device = {Device::kCuda, 0};
  testing_support::ExpectError<Unsupported>(
      [&] { ExecuteMoves(MovePlan(), world.codec, arena, 1); },
      {"[cuda:0] quantising and moving pages: found a program built without code for this device",
       "device cpu"});
}

RC_GTEST_PROP(MovePlanProperty, PagesAreWhatANaiveModelHas, ()) {
  const auto num_pages = *rc::gen::inRange<int64_t>(1, 40);
  PageWorld world(num_pages);
  std::mt19937 random(*rc::gen::arbitrary<uint32_t>());
  const auto below = [&](size_t count) { return random() % count; };
  const int num_actions = *rc::gen::inRange(1, 25);
  for (int i = 0; i < num_actions; ++i) {
    const int action = *rc::gen::inRange(0, 8);
    if (action < 3) {
      for (size_t added = below(12); added > 0 && world.pages.size() < world.most_pages; --added) {
        world.AddPage(random);
      }
    } else if (action < 6) {
      const StreamSlots& of_new = world.of(below(3) == 0 ? kKeys : kValues);
      std::vector<PageChange> changes;
      for (StoredPage& page : world.pages) {
        if (page.bits == 2 || below(3) == 0) continue;
        const int bits = page.bits >> (1 + below(page.bits == 16 ? 3 : page.bits == 8 ? 2 : 1));
        const StreamSlots& of_page = world.of(page.axis == QuantAxis::kChannel ? kKeys : kValues);
        changes.push_back({&page, bits, page.bits == 16 ? &of_new : &of_page});
      }
      std::shuffle(changes.begin(), changes.end(), random);
      world.Narrow(changes, 1 + below(40), random);
    } else if (!world.pages.empty() && action == 6) {
      const size_t index = below(world.pages.size());
      // Pages are counted at 16 bits here, so there is room for one at full width.
      if (world.pages[index].bits < 16) world.Expand(index, random);
    } else if (!world.pages.empty()) {
      std::vector<size_t> indices;
      for (size_t left = world.pages.size(), n = 1 + below(left); n > 0; --n, --left) {
        indices.push_back(below(left));
      }
      world.Release(indices, random);
    }
    RC_ASSERT(!testing::Test::HasFatalFailure());
  }
}

}  // namespace
}  // namespace pmkvq
