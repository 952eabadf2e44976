#include "pmkvq/research/judge/answer.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

TEST(ExtractBoxedAnswer, TakesTheLastOne) {
  EXPECT_EQ(ExtractBoxedAnswer("first \\boxed{1}, then \\boxed{ 42 }."), "42");
}

TEST(ExtractBoxedAnswer, BalancesBraces) {
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{\\frac{1}{2}} }"), "\\frac{1}{2}");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{\\sqrt{\\frac{a}{\\sqrt{b}}}}"),
            "\\sqrt{\\frac{a}{\\sqrt{b}}}");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{\\{1, 2\\}}"), "\\{1, 2\\}");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{\\left\\{1\\right.} and }"), "\\left\\{1\\right.");
}

TEST(ExtractBoxedAnswer, NothingWhenMissingOrOpen) {
  EXPECT_EQ(ExtractBoxedAnswer("no answer"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{12"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{1} and then \\boxed{2"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{1\\"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed"), std::nullopt);
  EXPECT_EQ(ExtractBoxedAnswer(""), std::nullopt);
}

TEST(ExtractBoxedAnswer, EmptyBoxIsEmptyText) { EXPECT_EQ(ExtractBoxedAnswer("\\boxed{}"), ""); }

TEST(ExtractBoxedAnswer, FboxWithoutAnyBoxed) {
  EXPECT_EQ(ExtractBoxedAnswer("\\fbox{7}"), "7");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{6} or \\fbox{7}"), "6");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed {8}"), "8");
  EXPECT_EQ(ExtractBoxedAnswer("\\boxed{9}, in a \\boxed as asked"), "9");
}

TEST(ExtractAnswer, TheBoxComesFirst) {
  EXPECT_EQ(ExtractAnswer("\\boxed{3}. The answer is 4."), "3");
}

TEST(ExtractAnswer, StatedAnswers) {
  EXPECT_EQ(ExtractAnswer("So the answer is 42."), "42");
  EXPECT_EQ(ExtractAnswer("the final answer is: 3.5. Good."), "3.5");
  EXPECT_EQ(ExtractAnswer("The answer is $\\frac{1}{2}$, as shown."), "\\frac{1}{2}");
  EXPECT_EQ(ExtractAnswer("The answer is \\(x = 5\\)."), "x = 5");
  EXPECT_EQ(ExtractAnswer("ANSWER: (C)"), "(C)");
  EXPECT_EQ(ExtractAnswer("**Answer:** 17"), "17");
  EXPECT_EQ(ExtractAnswer("**Final Answer**\n**Answer: 17**\n"), "17");
  EXPECT_EQ(ExtractAnswer("Answer = 12\nDone"), "12");
  EXPECT_EQ(ExtractAnswer("Answer:\n$$\n9\n$$"), "9");
  EXPECT_EQ(ExtractAnswer("The answer is 1. No, the answer is 2."), "2");
  EXPECT_EQ(ExtractAnswer("The answer is 5.\nMy answer issues from a table."), "5");
}

TEST(ExtractAnswer, NoBareNumbers) {
  EXPECT_EQ(ExtractAnswer("3 + 4 = 7"), std::nullopt);
  EXPECT_EQ(ExtractAnswer("I will answer soon: 5"), std::nullopt);
  EXPECT_EQ(ExtractAnswer("The answer is"), std::nullopt);
  EXPECT_EQ(ExtractAnswer("The answer is ."), std::nullopt);
  EXPECT_EQ(ExtractAnswer(""), std::nullopt);
}

TEST(ExtractGold, TakesTheAnswerOutOfItsSolution) {
  EXPECT_EQ(ExtractGold("56/4=<<56/4=14>>14 slices.\n#### 14"), "14");
  EXPECT_EQ(ExtractGold("Hence \\boxed{\\frac{1}{2}}."), "\\frac{1}{2}");
  EXPECT_EQ(ExtractGold("  x^2 "), "x^2");
}

}  // namespace
}  // namespace pmkvq
