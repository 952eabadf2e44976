#include "pmkvq/engine/kv_history.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

HalvingEvent Halving(int64_t tokens, int64_t layer, int from_bits, int64_t k, int64_t v) {
  return {7, layer, tokens, from_bits, k, v, 1.5};
}

KvHistory HistoryOf(const std::vector<HalvingEvent>& events) {
  KvHistory history;
  for (const HalvingEvent& event : events) AddHalving(event, history);
  return history;
}

TEST(KvHistory, EventsOfOneLengthAreJoinedAndInOrder) {
  std::vector<HalvingEvent> events = {
      Halving(200, 1, 8, 1, 0),  Halving(200, 0, 16, 1, 2), Halving(200, 1, 16, 3, 0),
      Halving(200, 0, 16, 2, 0), Halving(200, 0, 8, 0, 1),
  };
  const KvHistory expected = {
      {200, 0, 16, 3, 2}, {200, 0, 8, 0, 1}, {200, 1, 16, 3, 0}, {200, 1, 8, 1, 0}};
  Random random(1);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(HistoryOf(events), expected);
    std::swap(events[random.Below(5)], events[random.Below(5)]);
  }
  KvHistory longer = expected;
  AddHalving(Halving(300, 0, 16, 1, 0), longer);
  EXPECT_EQ(longer.size(), 5u);
  EXPECT_NE(DigestOf(longer), DigestOf(expected));
  EXPECT_EQ(DigestOf(expected).size(), 16u);
  EXPECT_EQ(DigestOf({}), "");
}

// Pages of one step, in whatever parts and order they were told, are the same runs of pages.
TEST(KvHistory, RunsOfPagesThatMeetAreJoined) {
  const auto run = [](int64_t first_k, int64_t k, int64_t first_v, int64_t v) {
    return HalvingEvent{7, 0, 900, 16, k, v, 1.5, first_k, first_v};
  };
  std::vector<HalvingEvent> events = {run(4, 2, 0, 1), run(0, 2, 1, 3), run(2, 1, 6, 1),
                                      run(3, 1, 0, 0), run(0, 0, 8, 1), run(7, 1, 0, 0)};
  const KvHistory expected = {
      {900, 0, 16, 6, 4, 0, 0}, {900, 0, 16, 1, 1, 7, 6}, {900, 0, 16, 0, 1, -1, 8}};
  Random random(2);
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(HistoryOf(events), expected);
    std::swap(events[random.Below(6)], events[random.Below(6)]);
  }
  KvHistory others = expected;
  others[1].first_k_page = 8;
  EXPECT_NE(DigestOf(others), DigestOf(expected));
  const std::vector<HalvingEvent> told = HalvingsFrom(expected, 0);
  ASSERT_EQ(told.size(), 3u);
  EXPECT_EQ(told[1].first_v_page, 6);
}

TEST(KvHistory, WhatNobodyHasReadIsLeftOut) {
  KvHistory history = HistoryOf({Halving(200, 0, 16, 1, 1), Halving(300, 0, 16, 1, 1)});
  EndHistory(300, history);
  EXPECT_EQ(history, (KvHistory{{200, 0, 16, 1, 1}}));
  EndHistory(201, history);
  EXPECT_EQ(history.size(), 1u);

  AddHalving(Halving(250, 0, 16, 1, 1), history);
  AddPreemption(250, false, history);
  EXPECT_EQ(history, (KvHistory{{200, 0, 16, 1, 1}, {250}}));
  // It gives up its place again while its tokens are computed again.
  AddHalving(Halving(128, 0, 16, 1, 1), history);
  AddPreemption(128, true, history);
  EXPECT_EQ(history, (KvHistory{{200, 0, 16, 1, 1}, {250}}));
  AddHalving(Halving(128, 0, 16, 1, 0), history);
  EXPECT_EQ(HalvingsFrom(history, 0).size(), 1u);
  EXPECT_EQ(HalvingsFrom(history, 1).size(), 0u);
  const std::vector<HalvingEvent> last = HalvingsFrom(history, 2);
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].num_tokens, 128);
  EXPECT_EQ(last[0].num_k_pages, 1);

  KvHistory in_prompt = HistoryOf({Halving(128, 0, 16, 1, 1)});
  AddPreemption(256, true, in_prompt);
  EXPECT_TRUE(in_prompt.empty()) << "it begins anew";
}

TEST(KvHistory, WhatIsNoneIsRefusedByName) {
  const auto refuses = [](const KvHistory& history, const std::string& field) {
    ExpectError<InvalidInput>([&] { CheckHistory(history, 2, 4); }, {"kv_replay", field});
  };
  CheckHistory({{200, 0, 16, 1, 0}, {250}, {128, 1, 8, 0, 1}}, 2, 4);
  refuses({{200, 0, 16, 1, 0}, {199, 0, 16, 1, 0}}, "event 1: tokens");
  refuses({{200, 0, 16, 1, 0}, {100}}, "event 1: tokens");
  refuses({{-1, 0, 16, 1, 0}}, "tokens");
  refuses({{200, 2, 16, 1, 0}}, "layer: found 2");
  refuses({{200, -2, 16, 1, 0}}, "layer: found -2");
  refuses({{200, 0, 12, 1, 0}}, "from_bits: found 12");
  refuses({{200, 0, 4, 1, 0}}, "no page below 4 bits");
  refuses({{200, 0, 16, -1, 0}}, "pages: found -1");
  refuses({{200, 0, 16, 1, 0, -2, 0}}, "first page: found -2");
}

}  // namespace
}  // namespace pmkvq
