#include "pmkvq/eval/answer.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

TEST(ExtractBoxedAnswer, TakesTheLastOne) {
  EXPECT_EQ(ExtractBoxedAnswer("first \\boxed{1}, then \\boxed{ 42 }."), "42");
}

TEST(ExtractBoxedAnswer, BalancesBraces) {
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{\\frac{1}{2}} }"), "\\frac{1}{2}");
}

TEST(ExtractBoxedAnswer, NothingWhenMissingOrOpen) {
  EXPECT_EQ(ExtractBoxedAnswer("no answer"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{12"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer(""), std::nullopt);
}

TEST(ExtractBoxedAnswer, EmptyBoxIsEmptyText) { EXPECT_EQ(ExtractBoxedAnswer("\\boxed{}"), ""); }

}  // namespace
}  // namespace pmkvq
