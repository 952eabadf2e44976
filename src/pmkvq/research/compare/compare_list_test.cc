#include "pmkvq/research/compare/compare_list.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

ComparisonList Example() {
  ComparisonList list;
  list.benchmark = "longcot";
  list.model = "abc";
  list.problems = {"p \"1\"", "p2"};
  list.num_responses = 3;
  list.against = "kivi";
  list.values_per_token = 128;
  list.runs = {{"fp16", 0, true, 0, 0}, {"kivi", 4096, true, 0, 0}, {"rtn", 4096, false, 9000, 77}};
  return list;
}

TEST(ComparisonList, IsReadBack) {
  const std::string text = ComparisonListJson(Example());
  const ComparisonList list = ParseComparisonList(text, "list");
  EXPECT_EQ(ComparisonListJson(list), text);
  EXPECT_EQ(list.problems, Example().problems);
  EXPECT_EQ(list.values_per_token, 128);
  EXPECT_FALSE(list.runs.at(2).is_run);
  EXPECT_EQ(list.runs.at(2).needed_bytes, 9000);
  EXPECT_EQ(list.runs.at(2).needed_tokens, 77);
}

// A list of 2 blocks, 4 heads, 2 KV heads of 16, as it was written before models could differ in
// more than that.
TEST(ComparisonList, VersionOneIsRead) {
  std::string text = ComparisonListJson(Example());
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
  };
  replace("\"version\": 2", "\"version\": 1");
  replace("\"values_per_token\": 128", "\"geometry\": [2, 4, 2, 16]");
  EXPECT_EQ(ParseComparisonList(text, "list").values_per_token, 2 * 2 * 2 * 16);
  replace("[2, 4, 2, 16]", "[2, 4, 2]");
  ExpectError<InvalidInput>([&] { ParseComparisonList(text, "list"); }, {"geometry"});
}

TEST(ComparisonList, DamageIsNamed) {
  const auto expect = [](const std::string& from, const std::string& to,
                         std::initializer_list<std::string> parts) {
    std::string text = ComparisonListJson(Example());
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    ExpectError<InvalidInput>([&] { ParseComparisonList(text, "list"); }, parts);
  };
  expect("pmkvq-comparison", "other", {"list", "format"});
  expect("\"version\": 2", "\"version\": 3", {"version", "1 or 2"});
  expect("\"values_per_token\"", "\"values\"", {"values_per_token"});
  expect("\"run\": true", "\"run\": 1", {"runs"});
  expect("4096", "-1", {"budget_bytes"});
}

TEST(MergeLists, KeepsEarlierRunsOfTheSameResponses) {
  ComparisonList later = Example();
  later.runs = {{"fp16", 0, true, 0, 0}, {"rtn", 8192, true, 0, 0}, {"kivi", 4096, true, 0, 0}};
  const ComparisonList merged = MergeLists(later, Example());
  ASSERT_EQ(merged.runs.size(), 4u);
  EXPECT_EQ(merged.runs[1].budget_bytes, 8192);
  EXPECT_EQ(merged.runs[2].method, "kivi");
  EXPECT_EQ(merged.runs[3].method, "rtn");
  EXPECT_FALSE(merged.runs[3].is_run);
  later.problems.pop_back();
  EXPECT_EQ(MergeLists(later, Example()).runs.size(), 3u) << "other problems";
}

}  // namespace
}  // namespace pmkvq
