// Move plans on CUDA against the CPU: the same plans on two arenas, every page compared after each.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/packed/move_executor.h"
#include "pmkvq/kv/packed/move_plan.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

CacheConfig MakeConfig(int64_t num_pages, int64_t heads, int64_t dim, DType type,
                       QuantAxis k_axis = QuantAxis::kToken) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{1, heads, heads, dim};
  config.float_type = type;
  config.sink_tokens = 0;
  config.k_axis = k_axis;
  config.budget_bytes = {num_pages * PageBytes(config.geometry.block(0).k(), type, 16)};
  return config;
}

// Pages of both sides in an arena of the CPU and one of the device, which one allocator serves.
class TwoArenas {
 public:
  TwoArenas(const CacheConfig& config, Stream& stream)
      : stream_(stream),
        stream_of_pages_(config.geometry.block(0).k()),
        layout_(MakeSlotLayout(config)),
        slots_(layout_.extent_bytes, layout_.num_extents, layout_.slot_bytes),
        codec_(stream_of_pages_, config.float_type),
        by_channel_(config.k_axis == QuantAxis::kChannel),
        host_(DeviceId(), slots_.arena_bytes()),
        device_(stream.device(), slots_.arena_bytes()) {}

  void AddPage(Side side, std::mt19937& random, float scale = 1.0f) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(codec_.num_values()));
    for (float& value : values) value = std::clamp(scale * normal(random), -65e3f, 65e3f);
    StoredPage page;
    page.data = slots_.Allocate(classes(side).code_class[WidthIndex(16)]);
    ASSERT_NE(page.data, kNoSlot);
    const ArenaRange range = slots_.Range(page.data);
    codec_.WriteValues(values.data(), codec_.num_values(), host_.data() + range.offset);
    std::vector<std::byte> fragments(range.bytes);
    PlanesToFragments(ShapeOf(side), 16, host_.data() + range.offset, fragments.data());
    CopyToDevice(stream_, device_.data() + range.offset, fragments.data(), fragments.size());
    stream_.Synchronize();
    pages_.push_back(page);
    sides_.push_back(side);
  }

  // Halves some pages, each to a random lower width.
  void Narrow(size_t most_in_wave, std::mt19937& random) {
    std::vector<PageChange> changes;
    for (size_t i = 0; i < pages_.size(); ++i) {
      if (pages_[i].bits == 2 || random() % 3 == 0) continue;
      const int half = pages_[i].bits / 2;
      changes.push_back(
          {&pages_[i], half > 2 && random() % 4 == 0 ? half / 2 : half, &classes(sides_[i])});
    }
    MovePlan plan;
    PlanNarrowing(changes, most_in_wave, slots_, plan);
    Execute(plan);
  }
  void Expand(size_t index) {
    MovePlan plan;
    PlanExpanding(pages_[index], classes(sides_[index]), slots_, plan);
    Execute(plan);
  }
  void Release(size_t index) {
    slots_.Release(pages_[index].data);
    if (pages_[index].metadata != kNoSlot) slots_.Release(pages_[index].metadata);
    pages_.erase(pages_.begin() + static_cast<ptrdiff_t>(index));
    sides_.erase(sides_.begin() + static_cast<ptrdiff_t>(index));
    MovePlan plan;
    PlanMoves(slots_, plan);
    Execute(plan);
  }

  void ExpectEqual() {
    std::vector<std::byte> device(device_.num_bytes());
    CopyToHost(stream_, device.data(), device_.data(), device.size());
    stream_.Synchronize();
    for (size_t i = 0; i < pages_.size(); ++i) {
      const StoredPage& page = pages_[i];
      const ArenaRange range = slots_.Range(page.data);
      std::vector<std::byte> planes(range.bytes);
      FragmentsToPlanes(ShapeOf(sides_[i]), page.bits, device.data() + range.offset, planes.data());
      ASSERT_EQ(std::memcmp(planes.data(), host_.data() + range.offset, range.bytes), 0)
          << "page " << i << " at " << page.bits << " bits";
      if (page.metadata == kNoSlot) continue;
      const ArenaRange metadata = slots_.Range(page.metadata);
      ASSERT_EQ(std::memcmp(device.data() + metadata.offset, host_.data() + metadata.offset,
                            metadata.bytes),
                0)
          << "metadata of page " << i;
    }
  }

  std::optional<UnfitPage> Execute(const MovePlan& plan) {
    const auto on_host = ExecuteMoves(plan, codec_, host_.view(), 1);
    const auto on_device = ExecuteMoves(plan, codec_, device_.view(), ExecContext(1, stream_));
    EXPECT_EQ(on_host.has_value(), on_device.has_value());
    if (on_host && on_device) {
      EXPECT_EQ(on_host->page, on_device->page);
      EXPECT_EQ(on_host->group.first_token, on_device->group.first_token);
      EXPECT_EQ(on_host->group.lowest, on_device->group.lowest);
      EXPECT_EQ(on_host->group.highest, on_device->group.highest);
    }
    return on_device;
  }

  size_t num_pages() const { return pages_.size(); }
  StoredPage& page(size_t i) { return pages_[i]; }
  Side side(size_t i) const { return sides_[i]; }
  const StreamSlots& classes(Side side) const { return layout_.blocks[0].sides[side]; }
  SlotAllocator& slots() { return slots_; }

 private:
  FragmentPageShape ShapeOf(Side side) const {
    return {stream_of_pages_.heads, stream_of_pages_.width, side == kValues,
            by_channel_ && side == kKeys};
  }

  Stream& stream_;
  KvStream stream_of_pages_;
  SlotLayout layout_;
  SlotAllocator slots_;
  PageCodec codec_;
  bool by_channel_;
  Buffer host_;
  Buffer device_;
  std::vector<StoredPage> pages_;
  std::vector<Side> sides_;
};

class MoveExecutorSmallTest : public GpuTest {};

TEST_F(MoveExecutorSmallTest, RandomPlansGiveTheCpusPages) {
  uint32_t seed = 1;
  for (const DType type : {DType::kF16, DType::kBF16}) {
    for (const auto& [heads, dim] :
         std::vector<std::pair<int64_t, int64_t>>{{2, 128}, {3, 64}, {2, 256}}) {
      for (const size_t most : {size_t{1}, size_t{2}, size_t{3}, size_t{100}}) {
        SCOPED_TRACE(testing::Message()
                     << NameOf(type) << ' ' << heads << " x " << dim << ", waves of " << most);
        std::mt19937 random(++seed);
        const QuantAxis k_axis = most % 2 == 0 ? QuantAxis::kChannel : QuantAxis::kToken;
        TwoArenas arenas(MakeConfig(12, heads, dim, type, k_axis), stream());
        for (int i = 0; i < 10; ++i) arenas.AddPage(i % 2 == 0 ? kKeys : kValues, random);
        arenas.ExpectEqual();
        for (int step = 0; step < 3; ++step) {
          arenas.Narrow(most, random);
          arenas.ExpectEqual();
          arenas.Release(random() % arenas.num_pages());
          arenas.ExpectEqual();
        }
        for (size_t i = 0; i < arenas.num_pages(); i += 3) {
          if (arenas.page(i).bits == 16) continue;
          arenas.Expand(i);
          arenas.ExpectEqual();
        }
      }
    }
  }
}

TEST_F(MoveExecutorSmallTest, ThePageWhoseRangeDoesNotFitIsNamedAsOnTheCpu) {
  for (const auto& [k_axis, side] : std::vector<std::pair<QuantAxis, Side>>{
           {QuantAxis::kToken, kValues}, {QuantAxis::kChannel, kKeys}}) {
    std::mt19937 random(1);
    TwoArenas arenas(MakeConfig(8, 1, 64, DType::kF16, k_axis), stream());
    arenas.AddPage(kKeys, random);
    arenas.AddPage(side, random, 2e4f);
    arenas.AddPage(kKeys, random, 2e4f);
    std::vector<PageChange> changes;
    for (size_t i = 0; i < 3; ++i) {
      changes.push_back({&arenas.page(i), 4, &arenas.classes(arenas.side(i))});
    }
    MovePlan plan;
    PlanNarrowing(changes, 100, arenas.slots(), plan);
    const auto unfit = arenas.Execute(plan);
    ASSERT_TRUE(unfit);
    EXPECT_EQ(unfit->page, 1u);
    arenas.ExpectEqual();
  }
}

TEST_F(MoveExecutorSmallTest, WhatThereIsNoCodeForIsRefusedByName) {
  const Buffer arena(kDevice, 1 << 20);
  const auto refuse = [&](int64_t dim, DType type, const char* text) {
    const PageCodec codec(StreamOf(1, dim), type);
    MovePlan plan;
    PageOp op;
    op.kind = PageOpKind::kHalve;
    plan.Add(op);
    plan.EndWave();
    testing_support::ExpectError<Unsupported>(
        [&] { ExecuteMoves(plan, codec, arena.view(), ExecContext(1, stream())); },
        {"[cuda:0] the cache: found", text, "--device cpu"});
  };
  refuse(96, DType::kF16, "heads of 96 values, expected 64, 128 or 256");
  refuse(128, DType::kF32, "values of F32, expected F16 or BF16");
}

}  // namespace
}  // namespace pmkvq
