#include "pmkvq/research/judge/math_normalize.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

std::string Text(const char* answer) { return NormalizeAnswer(answer).text; }

TEST(NormalizeAnswer, DropsWhatCarriesNoMeaning) {
  EXPECT_EQ(Text("$\\left( \\dfrac{3}{5} , \\; 8 \\right]$."), "(\\frac{3}{5},8]");
  EXPECT_EQ(Text("\\mathbf{x} \\cdot y"), "{x}*y");
  EXPECT_EQ(Text("\\left. x \\right|"), "x|");
  EXPECT_EQ(Text("30^{\\circ}"), "30");
  EXPECT_EQ(Text("\\pi r"), "\\pi r");
  EXPECT_EQ(Text("\\pi 2"), "\\pi2");
}

TEST(NormalizeAnswer, ThousandsSeparators) {
  EXPECT_EQ(Text("1,234,567"), "1234567");
  EXPECT_EQ(Text("1,234\\pi"), "1234\\pi");
  EXPECT_EQ(Text("10,\\!080"), "10080");
  EXPECT_EQ(Text("1{,}234"), "1234");
  EXPECT_EQ(Text("3{,}25"), "3.25");
  EXPECT_EQ(Text("12 345"), "12345");
  // None of these is one number.
  EXPECT_EQ(Text("1, 234"), "1,234");
  EXPECT_EQ(Text("(1,234)"), "(1,234)");
  EXPECT_EQ(Text("0,123"), "0,123");
  EXPECT_EQ(Text("1,234,5"), "1,234,5");
  EXPECT_EQ(Text("1234,567"), "1234,567");
  EXPECT_EQ(Text("1 2"), "1 2");
  EXPECT_EQ(Text("1 1/2"), "1 1/2");
}

TEST(NormalizeAnswer, UnitsAreKeptApart) {
  const NormalizedAnswer area = NormalizeAnswer("864 \\mbox{ inches}^2");
  EXPECT_EQ(area.text, "864");
  EXPECT_EQ(area.quantity.unit, "in^2");
  EXPECT_EQ(NormalizeAnswer("30 miles per hour").quantity.unit, "mi/h");
  EXPECT_EQ(NormalizeAnswer("5 cubic meters").quantity.unit, "m^3");
  EXPECT_EQ(NormalizeAnswer("5 apples").quantity.unit, "");
  EXPECT_EQ(NormalizeAnswer("\\$5").quantity.unit, "dollar");
  EXPECT_EQ(NormalizeAnswer("$5$").quantity.unit, "");
  EXPECT_TRUE(NormalizeAnswer("40\\%").quantity.percent);
  EXPECT_TRUE(NormalizeAnswer("40 percent").quantity.percent);
  EXPECT_FALSE(NormalizeAnswer("40").quantity.percent);
  // Words alone, and words that are part of the number, are no units.
  EXPECT_EQ(Text("\\text{inches}"), "inches");
  EXPECT_EQ(Text("5 million"), "5million");
}

TEST(NormalizeAnswer, ConjunctionsAreCommas) {
  EXPECT_EQ(Text("1 \\text{ and } 2"), "1,2");
  EXPECT_EQ(Text("1, 2, \\text{and } 3"), "1,2,3");
  EXPECT_EQ(Text("1 or 2"), "1,2");
  EXPECT_EQ(Text("\\text{sand}"), "sand");
}

}  // namespace
}  // namespace pmkvq
