#include "pmkvq/research/judge/math_equivalence.h"

#include <gtest/gtest.h>

#include <string>

namespace pmkvq {
namespace {

struct Pair {
  const char* a;
  const char* b;
};

// Every pair both ways round: who is the reference must not matter.
template <size_t N>
void ExpectAll(const Pair (&pairs)[N], bool expected) {
  for (const Pair& pair : pairs) {
    EXPECT_EQ(EquivalentAnswers(pair.a, pair.b), expected) << pair.a << "  |  " << pair.b;
    EXPECT_EQ(EquivalentAnswers(pair.b, pair.a), expected) << pair.b << "  |  " << pair.a;
  }
}

TEST(EquivalentAnswers, SameNumbers) {
  constexpr Pair kSame[] = {
      {"42", "42"},
      {"42", " 42. "},
      {"42", "$42$"},
      {"42", "\\(42\\)"},
      {"42", "**42**"},
      {"42", "042"},
      {"42", "+42"},
      {"42", "42.0"},
      {"42", "42.000"},
      {"42", "{42}"},
      {"42", "{{42}}"},
      {"42", "(42)"},
      {"42", "\\boxed{42}"},
      {"-7", "\u22127"},
      {"-7", "- 7"},
      {"0", "-0"},
      {"0.5", ".5"},
      {"5", "5."},
      {"18.90", "18.9"},
      {".0000672", "6.72\\times 10^{-5}"},
      {"1500", "1.5e3"},
      {"1500", "1.5\\cdot10^3"},
      {"1500", "1.5 \u00d7 10^3"},
      {"0.001", "1e-3"},
      {"1,234", "1234"},
      {"1,234,567", "1234567"},
      {"1{,}234", "1234"},
      {"1,\\!234", "1234"},
      {"11,\\! 111,\\! 111,\\! 100", "11111111100"},
      {"12\\,345", "12345"},
      {"12 345", "12345"},
      {"58,500", "58500.0"},
      {"1,234.5", "1234.5"},
      {"3{,}5", "3.5"},
      {"2^{10}", "1024"},
      {"2^10", "1024"},
      {"2**10", "1024"},
      {"2^{100}", "1267650600228229401496703205376"},
      {"10!", "3628800"},
      {"\\binom{10}{3}", "120"},
      {"2 + 3 \\cdot 4", "14"},
      {"2 \\times 3", "6"},
      {"-2^2", "-4"},
      {"7 - (2 - 3)", "8"},
      {"6 \\div 4", "3/2"},
      {"|-5|", "5"},
      {"52_8", "52_{8}"},
      {"4210_5", "4210_{5}"},
      {"17_{10}", "17"},
  };
  ExpectAll(kSame, true);
}

TEST(EquivalentAnswers, SameFractionsRootsAndConstants) {
  constexpr Pair kSame[] = {
      {"\\frac{1}{2}", "1/2"},
      {"\\frac{1}{2}", "\\dfrac{1}{2}"},
      {"\\frac{1}{2}", "\\tfrac12"},
      {"\\frac{1}{2}", "\\frac 12"},
      {"\\frac{1}{2}", "\\frac1{2}"},
      {"\\frac{1}{2}", "\\frac{1}2"},
      {"\\frac{1}{2}", "0.5"},
      {"\\frac{1}{2}", "\\frac{2}{4}"},
      {"\\frac{1}{2}", "\u00bd"},
      {"-\\frac{1}{2}", "\\frac{-1}{2}"},
      {"-\\frac{1}{2}", "\\frac{1}{-2}"},
      {"-\\frac{1}{2}", "-1/2"},
      {"1\\frac{4}{5}", "\\frac{9}{5}"},
      {"1 \\frac45", "1.8"},
      {"1 4/5", "9/5"},
      {"137 \\frac{1}{2}", "137.5"},
      {"-1\\frac{1}{2}", "-1.5"},
      {"\\frac{270}7\\text{ degrees}", "\\frac{270}{7}"},
      {"\\sqrt{16}", "4"},
      {"\\sqrt{8}", "2\\sqrt{2}"},
      {"11\\sqrt2", "11\\sqrt{2}"},
      {"\\sqrt12", "2\\sqrt{3}"},
      {"sqrt(2)", "\\sqrt{2}"},
      {"\u221a2", "\\sqrt{2}"},
      {"2^{1/2}", "\\sqrt{2}"},
      {"\\sqrt[3]{27}", "3"},
      {"\\sqrt[3]{-8}", "-2"},
      {"\\sqrt[4]{32}", "2\\sqrt[4]{2}"},
      {"\\frac{1}{\\sqrt{3}}", "\\frac{\\sqrt{3}}{3}"},
      {"\\frac{2\\sqrt{3}-3}{4}", "\\frac{\\sqrt3}{2}-\\frac34"},
      {"2\\sqrt{1+\\sqrt{2}}", "\\sqrt{4+4\\sqrt2}"},
      {"\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}"},
      {"\\frac{5\\pi}{6}-\\sqrt{3}", "-\\sqrt3 + \\frac{5}{6}\\pi"},
      {"\\frac{37}{40}\\pi", "\\frac{37\\pi}{40}"},
      {"12\\pi", "12 \\pi"},
      {"12\\pi", "12\u03c0"},
      {"12\\pi", "12*pi"},
      {"\\pi r^2", "r^2\\pi"},
      {"\\frac{20000}{\\pi}", "20000/\\pi"},
      {"e^{2}", "e^2"},
      {"\\ln e", "1"},
      {"\\log_2 8", "3"},
      {"\\sin 30\\pi/180", "\\sin{30\\pi}/180"},
      {"\\sin(\\pi/6)", "0.5"},
      {"6 - 5i", "-5i + 6"},
      {"(1+i)^2", "2i"},
      {"\\sqrt{-4}", "2i"},
  };
  ExpectAll(kSame, true);
}

TEST(EquivalentAnswers, SameWithUnitsAndSigns) {
  constexpr Pair kSame[] = {
      {"90^\\circ", "90"},
      {"90^{\\circ}", "90"},
      {"90\u00b0", "90"},
      {"90 degrees", "90"},
      {"90\\text{ degrees}", "90^\\circ"},
      {"5 \\text{ cm}", "5"},
      {"5\\,\\text{cm}", "5 cm"},
      {"5\\mathrm{~cm}", "5"},
      {"15\\mbox{ cm}^2", "15"},
      {"864 \\mbox{ inches}^2", "864 \\text{ square inches}"},
      {"864 \\mbox{ inches}^2", "864 in^2"},
      {"12\\pi cm", "12\\pi"},
      {"30 miles per hour", "30 mph"},
      {"100\\text{ km/h}", "100 km/h"},
      {"\\approx 3.14", "3.14"},
      {"5.4 \\text{ cents}", "5.4"},
      {"\\$36", "36"},
      {"$36", "36"},
      {"\\$32,\\!348", "32348"},
      {"\\$18.90", "18.9 dollars"},
      {"5 apples", "5"},
      {"12 \\text{ students}", "12"},
      {"40\\%", "40"},
      {"40%", "\\frac{2}{5}"},
      {"40 percent", "0.4"},
      {"12.5\\%", "12.5 \\%"},
      {"x=5", "5"},
      {"x = 5", "x=5.0"},
      {"\\theta = \\frac{\\pi}{2}", "\\pi/2"},
      {"x_1 = 3", "3"},
      {"f(x) = 2x", "2x"},
      {"y = 2x + 3", "2x+3"},
      {"y = 2x + 3", "2x - y + 3 = 0"},
      {"5x - 7y + 11z + 4 = 0", "7y - 5x - 11z = 4"},
      {"\\sqrt{2} \\approx 1.414", "\\sqrt{2}"},
      {"\\left(\\frac{1}{2}\\right)", "\\frac{1}{2}"},
      {"\\displaystyle\\frac{1}{2}", "1/2"},
  };
  ExpectAll(kSame, true);
}

TEST(EquivalentAnswers, SameCollections) {
  constexpr Pair kSame[] = {
      {"(1,2)", "(1, 2)"},
      {"(1,2)", "\\left( 1 , 2 \\right)"},
      {"\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"},
      {"(1,-16,-4,43)", "(1, -16, -4, 43.0)"},
      {"(3,4]", "\\left(3,4\\right]"},
      {"[0.5, 1)", "[1/2,1)"},
      {"(-\\infty, 0]", "(-\u221e,0]"},
      {"(5,\\infty)", "(5,+\\infty)"},
      {"x \\in [-2,7]", "[-2,7]"},
      {"(0,9) \\cup (9,36)", "(9,36)\\cup(0,9)"},
      {"(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\u222a(3,\\infty)"},
      {"\\{1,2,3\\}", "\\{3, 2, 1\\}"},
      {"\\{1,2,3\\}", "1, 2, 3"},
      {"\\{100,200\\}", "\\{200, 100\\}"},
      {"\\{5\\}", "5"},
      {"\\emptyset", "\\{\\}"},
      {"\\emptyset", "\\varnothing"},
      {"1,-2", "-2,1"},
      {"1, 2", "1 \\text{ and } 2"},
      {"1, 2", "1 or 2"},
      {"3, 5, 7", "7,5,3"},
      {"x = 1, x = 2", "1, 2"},
      {"x=1,2", "1,2"},
      {"1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"},
      {"3 \\pm 2 \\sqrt{2}", "3\\mp2\\sqrt2"},
      {"\\{1\\pm\\sqrt{5},-2\\}", "\\{-2, 1-\\sqrt5, 1+\\sqrt5\\}"},
      {"(1,2), (3,4)", "(3,4),(1,2)"},
      {"x > 3", "3 < x"},
      {"1 \\le x < 4", "4 > x \\geq 1"},
      {"x \\leqslant 2", "x\\le 2"},
      {"\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}",
       "\\begin{pmatrix} -\\frac{1}{3} \\\\ \\frac{2}{3} \\end{pmatrix}"},
      {"\\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}",
       "\\begin{bmatrix}1&0\\\\0&1\\end{bmatrix}"},
      {"3:4", "3 : 4"},
  };
  ExpectAll(kSame, true);
}

TEST(EquivalentAnswers, SameFormulasAndWords) {
  constexpr Pair kSame[] = {
      {"2k+2", "2(k+1)"},
      {"p - q", "-q+p"},
      {"(a+5)(b+2)", "(b+2)(a+5)"},
      {"\\frac{11+9a}{20}", "\\frac{9a+11}{20}"},
      {"x^3+3x-6", "3x + x^3 - 6"},
      {"3R^2", "3 R^{2}"},
      {"\\cot x", "\\frac{\\cos x}{\\sin x}"},
      {"\\sin^2 x", "(\\sin x)^2"},
      {"5r^5", "5 \\cdot r^5"},
      {"\\frac{x^2-1}{x-1}", "x+1"},
      {"\\text{Evelyn}", "Evelyn"},
      {"\\text{even}", "Even"},
      {"\\text{(C)}", "C"},
      {"\\textbf{(C)}", "(C)"},
      {"(C)", "C."},
      {"(C) 12", "C"},
      {"\\textbf{(E)}\\ 7", "\\text{(E)}"},
      {"\\text{New York}", "new york"},
  };
  ExpectAll(kSame, true);
}

TEST(EquivalentAnswers, DifferentNumbers) {
  constexpr Pair kDifferent[] = {
      {"", ""},
      {"42", ""},
      {"42", "43"},
      {"42", "-42"},
      {"42", "420"},
      {"0.33", "\\frac{1}{3}"},
      {"0.333333333333", "1/3"},
      {"3.14", "\\pi"},
      {"22/7", "\\pi"},
      {"1.414", "\\sqrt{2}"},
      {"1.41421356", "\\sqrt2"},
      {"12", "1 2"},
      {"1/2", "2/1"},
      {"1.8", "1.80001"},
      {"1\\frac{4}{5}", "\\frac{4}{5}"},
      {"10^{-15}\\pi", "10^{-16}\\pi"},
      {"12345678901234567890", "12345678901234567891"},
      {"2^{200}", "2^{200}+1"},
      {"2305843009213693951", "0"},
      {"52_8", "52"},
      {"52_8", "52_9"},
      {"52_8", "42"},
      {"\\sqrt{2}", "\\sqrt{3}"},
      {"\\sqrt[3]{2}", "\\sqrt{2}"},
      {"2\\pi", "\\pi^2"},
      {"e", "2.71828"},
      {"6 - 5i", "6 + 5i"},
      {"1/0", "2/0"},
      {"0/0", "0"},
      {"1e5", "1e6"},
      {"50\\%", "5"},
      {"0.5", "50"},
      {"5 million", "5"},
      {"5 cm", "5 m"},
      {"5 \\text{ cm}", "5 \\text{ cm}^2"},
      {"5 cm", "6 cm"},
      {"5 km/h", "5 km"},
      {"5x/y", "5x"},
      {"\\$5", "5 cents"},
      {"90^\\circ", "\\frac{\\pi}{2}"},
      {"\\infty", "-\\infty"},
      {"\\infty", "1000"},
  };
  ExpectAll(kDifferent, false);
}

TEST(EquivalentAnswers, ErrorsFollowTheValue) {
  constexpr Pair kSame[] = {
      {"\\log_2(2^{64})", "64"},   {"\\frac{\\ln(2^{60})}{\\ln 2}", "60"},
      {"\\sin(\\pi)", "0"},        {"\\sin(10^{15})", "\\sin(1000000000000000)"},
      {"0.1\\overline{6}", "1/6"}, {"\\lfloor -3.7 \\rfloor", "-4"},
  };
  ExpectAll(kSame, true);
  constexpr Pair kDifferent[] = {
      {"\\log_2(2^{64})", "65"},
      {"\\log(10^{20})", "7"},
      {"\\sin(10^{15})", "100"},
      {"\\sin(10^{-20})", "0"},
      {"\\arctan(10^{30})", "\\pi/2"},
      {"\\sqrt{10^{30}+1}", "10^{15}"},
      {"10^{40}", "10000000000000000000002305843009213693951"},
      {"2^{100000}+1", "2^{100000}"},
  };
  ExpectAll(kDifferent, false);
}

TEST(EquivalentAnswers, DifferentCollections) {
  constexpr Pair kDifferent[] = {
      {"(1,2)", "[1,2]"},
      {"(1,2)", "(1,2]"},
      {"(1,2)", "[1,2)"},
      {"(1,2)", "(2,1)"},
      {"(1,2)", "1,2"},
      {"(1,2)", "\\{1,2\\}"},
      {"(1,2)", "(1,2,3)"},
      {"(1,2)", "12"},
      {"(1, 234)", "1,234"},
      {"(1,234)", "1234"},
      {"1, 234", "1234"},
      {"\\{1,2\\}", "\\{1,3\\}"},
      {"\\{1,2\\}", "\\{1,2,3\\}"},
      {"\\{1,1,2\\}", "\\{1,2,2\\}"},
      {"1, 2", "1"},
      {"1 \\pm \\sqrt{19}", "1+\\sqrt{19}"},
      {"1 \\pm \\sqrt{19}", "1 \\pm \\sqrt{17}"},
      {"(-\\infty, 0]", "(-\\infty, 0)"},
      {"(-\\infty, 0)", "(\\infty, 0)"},
      {"(0,9) \\cup (9,36)", "(0,36)"},
      {"(0,9) \\cup (9,36)", "(0,9) \\cap (9,36)"},
      {"x = 5", "y = 5"},
      {"x = 5", "x = 6"},
      {"x = 5", "x > 5"},
      {"x > 5", "x < 5"},
      {"x > 5", "x \\ge 5"},
      {"x > 5", "5"},
      {"x \\ne 5", "x = 5"},
      {"y = 2x + 3", "y = 3x + 2"},
      {"x = 1, y = 2", "x = 2, y = 1"},
      {"\\emptyset", "0"},
      {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"},
      {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"},
      {"\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{vmatrix} 1 & 2 \\end{vmatrix}"},
      {"\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "(1,2)"},
  };
  ExpectAll(kDifferent, false);
}

TEST(EquivalentAnswers, DifferentFormulasAndWords) {
  constexpr Pair kDifferent[] = {
      {"2k+2", "2k+1"},
      {"x", "y"},
      {"x", "X"},
      {"x_1", "x_2"},
      {"\\sqrt{x^2}", "x"},
      {"|x|", "x"},
      {"|x|", "-x"},
      {"\\sin x", "\\cos x"},
      {"\\sin^{-1} x", "\\frac{1}{\\sin x}"},
      {"(a+b)^2", "a^2+b^2"},
      {"2x", "x^2"},
      {"\\text{even}", "\\text{odd}"},
      {"\\text{east}", "\\text{seat}"},
      {"Evelyn", "Navin"},
      {"(A)", "(B)"},
      {"A", "B"},
      {"(C) 12", "(D) 12"},
      {"\\text{ellipse}", "\\text{circle}"},
      {"\\alpha", "\\beta"},
  };
  ExpectAll(kDifferent, false);
}

TEST(EquivalentAnswers, DeepOrLongTextEndsAtOnce) {
  const std::string open(3000, '(');
  const std::string close(3000, ')');
  EXPECT_FALSE(EquivalentAnswers(open + "1" + close, "1"));
  EXPECT_TRUE(EquivalentAnswers(open + "1" + close, open + " 1" + close));
  const std::string nested(40, '{');
  EXPECT_TRUE(EquivalentAnswers(nested + "1" + std::string(40, '}'), "1"));
  std::string list;
  for (int i = 0; i < 1000; ++i) list += "x, ";
  EXPECT_FALSE(EquivalentAnswers(list + "1", list + "2"));
  // Over the limits only the same text is the same.
  const std::string digits(20000, '7');
  EXPECT_TRUE(EquivalentAnswers(digits, digits));
  EXPECT_FALSE(EquivalentAnswers(digits, digits + "7"));
  EXPECT_FALSE(EquivalentAnswers(digits, "7"));
  EXPECT_FALSE(EquivalentAnswers("2^{3^{100}}", "2^{3^{101}}"));
  EXPECT_FALSE(EquivalentAnswers("9999999999!", "9999999998!"));
}

}  // namespace
}  // namespace pmkvq
