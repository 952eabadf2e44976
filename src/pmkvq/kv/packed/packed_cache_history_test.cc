// Sequences that follow a history: what a crowded pool did to one of its sequences is done to it
// again in another pool, and nothing else.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <tuple>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::SmallPool;

// Length, block and width of each step, with its pages of keys and values.
using Steps = std::map<std::tuple<int64_t, int64_t, int>, std::pair<int64_t, int64_t>>;

void Add(const HalvingEvent& event, Steps& steps) {
  auto& [k, v] = steps[{event.num_tokens, event.layer, -event.from_bits}];
  k += event.num_k_pages;
  v += event.num_v_pages;
}

std::vector<HalvingEvent> EventsOf(const Steps& steps) {
  std::vector<HalvingEvent> events;
  for (const auto& [key, pages] : steps) {
    const auto& [tokens, layer, from_bits] = key;
    events.push_back({0, layer, tokens, -from_bits, pages.first, pages.second, 0});
  }
  return events;
}

struct Grown {
  uint64_t seed = 0;
  std::vector<int64_t> chunks;
  Steps steps;
};

RC_GTEST_PROP(PackedCacheHistoryProperty, WhatACrowdedPoolDidIsDoneAgain, ()) {
  const int64_t num_tokens = *rc::gen::inRange<int64_t>(800, 3000);
  CacheConfig config = SmallPool(FloorBytes(SmallPool(1 << 20, 1), num_tokens), 4);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 130);
  config.window_tokens = *rc::gen::element<int64_t>(128, 256);
  config.close_bits = *rc::gen::element(16, 8);
  config.pool.step_bytes = *rc::gen::element<int64_t>(0, 20'000, 1 << 20);
  CacheDriver crowd(config);
  std::map<SequenceId, Grown> open;
  uint64_t next_seed = 1;
  for (int i = 0; i < 100; ++i) {
    if (open.empty() || (open.size() < 4 && *rc::gen::inRange(0, 8) == 0)) {
      open[*crowd.cache().Open()].seed = next_seed++;
      continue;
    }
    auto it = open.begin();
    std::advance(it, *rc::gen::inRange<size_t>(0, open.size()));
    auto& [seq, grown] = *it;
    const int64_t count = *rc::gen::element<int64_t>(1, 1, 60, 127, 128, 129, 256);
    const bool has_room = crowd.Append(seq, count, grown.seed) != ReserveResult::kBudgetExhausted;
    for (const HalvingEvent& event : crowd.cache().TakeHalvingEvents()) {
      Add(event, open[event.seq].steps);
    }
    if (has_room) {
      grown.chunks.push_back(count);
    } else {
      crowd.cache().Close(seq);
      open.erase(it);
    }
  }
  // Another sequence fills what this pool has left: nobody's need reaches those that follow.
  CacheConfig other_config = config;
  other_config.pool.bytes = 3 * BlockBytes(config, 0, 20'000, 16, 16);
  for (const auto& [seq, grown] : open) {
    CacheDriver other(other_config);
    const SequenceId again = *other.cache().Open();
    other.cache().FollowHistory(again, EventsOf(grown.steps));
    const SequenceId greedy = *other.cache().Open();
    Steps steps;
    for (const int64_t count : grown.chunks) {
      RC_ASSERT(other.Append(again, count, grown.seed) != ReserveResult::kBudgetExhausted);
      RC_ASSERT(other.Append(greedy, 256, 999) != ReserveResult::kBudgetExhausted);
      RC_ASSERT(other.cache().FailureOf(again) == nullptr);
    }
    for (const HalvingEvent& event : other.cache().TakeHalvingEvents()) {
      if (event.seq == again) Add(event, steps);
    }
    // What was halved since its last chunk nothing has read.
    Steps expected = grown.steps;
    std::erase_if(expected, [&, num = crowd.cache().NumTokens(seq)](const auto& step) {
      return std::get<0>(step.first) >= num;
    });
    RC_ASSERT(steps == expected);
    if (expected.size() == grown.steps.size()) {
      RC_ASSERT(other.ReadAll(again) == crowd.ReadAll(seq));
    }
  }
}

TEST(PackedCacheHistoryTest, AnEventThatItCannotHaveFailsTheSequence) {
  const auto failure = [](const HalvingEvent& event) {
    CacheDriver driver(SmallPool(1 << 22, 1));
    const SequenceId seq = *driver.cache().Open();
    driver.cache().FollowHistory(seq, {event});
    for (int i = 0; i < 3; ++i) {
      if (driver.cache().Reserve(seq, 256) == ReserveResult::kFailed) {
        return driver.cache().FailureOf(seq)->what;
      }
      driver.Forward({{seq, 256, 1}});
    }
    return std::string("none");
  };
  EXPECT_EQ(failure({0, 1, 512, 16, 3, 1, 0}), "none");
  EXPECT_NE(failure({0, 1, 512, 16, 9, 1, 0}).find("not so many pages"), std::string::npos);
  EXPECT_NE(failure({0, 1, 512, 8, 1, 0, 0}).find("not so many pages"), std::string::npos);
  EXPECT_NE(failure({0, 1, 300, 16, 1, 0, 0}).find("so many tokens"), std::string::npos);
  EXPECT_NE(failure({0, 7, 512, 16, 1, 0, 0}).find("no pages there"), std::string::npos);
}

}  // namespace
}  // namespace pmkvq
