#include "pmkvq/text/regex.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

std::vector<std::string> Matches(std::string_view pattern, std::string_view text,
                                 Regex::Syntax syntax = Regex::Syntax::kPattern) {
  std::vector<std::string> found;
  for (const Span& span : Regex(pattern, syntax, "test").FindAll(text)) {
    found.emplace_back(text.substr(span.begin, span.end - span.begin));
  }
  return found;
}

using Strings = std::vector<std::string>;

TEST(Regex, FindsAllMatchesInOrder) {
  EXPECT_EQ(Matches("a+", "caatba"), (Strings{"aa", "a"}));
  EXPECT_EQ(Matches("a+", ""), Strings{});
  EXPECT_EQ(Matches("x", "abc"), Strings{});
}

TEST(Regex, ClassesAreUnicode) {
  EXPECT_EQ(Matches(R"(\p{L}+)", "é你1Ж"), (Strings{"é你", "Ж"}));
  EXPECT_EQ(Matches(R"(\d)", "1٣"), (Strings{"1", "٣"}));
  EXPECT_EQ(Matches("(?i:'s)", "'ſ'S"), (Strings{"'ſ", "'S"}));  // Long s folds to s.
}

TEST(Regex, WhiteSpaceIsUnicodesWhiteSpace) {
  EXPECT_EQ(Matches(R"(\s+)", "a\u00a0\u3000b\u0085"), (Strings{"\u00a0\u3000", "\u0085"}));
  // U+180E has not been white space since Unicode 6.3; PCRE2's own \s still matches it.
  EXPECT_EQ(Matches(R"(\s)", "\u180e"), Strings{});
  EXPECT_EQ(Matches(R"(\S)", "\u180e "), Strings{"\u180e"});
  EXPECT_EQ(Matches(R"([^\s\p{L}]+)", "a\u180e \u00a0b!"), (Strings{"\u180e", "!"}));
}

TEST(Regex, CaretAndDollarMatchAtLineEnds) {
  EXPECT_EQ(Matches("^a", "a\na"), (Strings{"a", "a"}));
  EXPECT_EQ(Matches("a$", "a\nba"), (Strings{"a", "a"}));
}

TEST(Regex, EmptyMatchesDoNotLoopAndDoNotRepeatAMatch) {
  const auto spans = Regex("x*", Regex::Syntax::kPattern, "test").FindAll("éxa");
  std::vector<std::pair<size_t, size_t>> found;
  for (const Span& span : spans) found.emplace_back(span.begin, span.end);
  // Before é, the x, and at the end; not between x and a, where the match of x has just ended.
  EXPECT_EQ(found, (std::vector<std::pair<size_t, size_t>>{{0, 0}, {2, 3}, {4, 4}}));
}

TEST(Regex, LiteralPatternsHaveNoSpecialCharacters) {
  EXPECT_EQ(Matches("a.", "a.ab a.", Regex::Syntax::kLiteral), (Strings{"a.", "a."}));
  EXPECT_EQ(Matches(R"(\s)", R"(\s )", Regex::Syntax::kLiteral), (Strings{R"(\s)"}));
}

TEST(Regex, EscapesWithAnotherMeaningAreRefusedByName) {
  for (const std::string escape : {"\\w", "\\W", "\\b", "\\h", "\\Q", "\\v", "\\C"}) {
    ExpectError<Unsupported>(
        [&] { Regex("a" + escape, Regex::Syntax::kPattern, "t.json: pattern"); },
        {"t.json: pattern", "escape " + escape});
  }
}

TEST(Regex, SyntaxErrorsNameTheFieldAndThePlace) {
  ExpectError<InvalidInput>([] { Regex("a(b", Regex::Syntax::kPattern, "t.json: pattern"); },
                            {"t.json: pattern", "a(b", "at byte 3"});
  ExpectError<InvalidInput>([] { Regex("a\\", Regex::Syntax::kPattern, "t.json: pattern"); },
                            {"t.json: pattern"});
}

TEST(Regex, TooMuchBacktrackingIsAnError) {
  const Regex regex("(a+)+$", Regex::Syntax::kPattern, "t.json: pattern");
  ExpectError<InvalidInput>([&] { regex.FindAll(std::string(64, 'a') + "b"); },
                            {"t.json: pattern", "65 bytes", "limit"});
}

TEST(Regex, MatchesThatNeedALargeStackSucceed) {
  // Each turn of the group is a place to go back to: far more than 32 KiB of stack.
  const std::string text(400'000, 'a');
  EXPECT_EQ(Matches("(?:a|b)+[^c]", text).size(), 1u);
}

TEST(Regex, MovesLeaveItUsable) {
  Regex first("a", Regex::Syntax::kPattern, "test");
  Regex second("b", Regex::Syntax::kPattern, "test");
  second = std::move(first);
  EXPECT_EQ(second.FindAll("ab").size(), 1u);
  EXPECT_EQ(second.FindAll("ab")[0].begin, 0u);
}

}  // namespace
}  // namespace pmkvq
