#include "pmkvq/research/judge/judged_text.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

TEST(JudgeText, ExtractsAndCompares) {
  const JudgedText right = JudgeText("so \\boxed{\\frac{2}{4}}", "0.5");
  EXPECT_EQ(right.extracted, "\\frac{2}{4}");
  EXPECT_TRUE(right.correct);
  EXPECT_FALSE(JudgeText("\\boxed{0.33}", "\\frac{1}{3}").correct);
  EXPECT_TRUE(JudgeText("The answer is 14.", "7 * 2 = 14\n#### 14").correct);
  const JudgedText none = JudgeText("14", "14");
  EXPECT_EQ(none.extracted, "");
  EXPECT_FALSE(none.correct);
}

}  // namespace
}  // namespace pmkvq
