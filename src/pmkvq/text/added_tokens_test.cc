#include "pmkvq/text/added_tokens.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

using Strings = std::vector<std::string>;

AddedToken Token(int32_t id, const std::string& content) {
  AddedToken token;
  token.id = id;
  token.content = content;
  return token;
}

AddedTokenMatcher Matcher(const std::vector<AddedToken>& tokens) {
  AddedTokenMatcher matcher;
  for (const AddedToken& token : tokens) matcher.Add(token);
  return matcher;
}

// Segments as "text" or "id:text". `which` is parse_special, or the literal ranges.
template <class Which = bool>
Strings Split(const AddedTokenMatcher& matcher, const std::string& text,
              const Which& which = true) {
  Strings result;
  for (const Segment& segment : matcher.Split(text, which)) {
    const std::string prefix = segment.id < 0 ? "" : std::to_string(segment.id) + ":";
    result.push_back(prefix + std::string(segment.text));
  }
  return result;
}

TEST(AddedTokenMatcher, WithoutTokensTextStaysWhole) {
  EXPECT_EQ(Split(AddedTokenMatcher(), "abc"), Strings{"abc"});
  EXPECT_EQ(Split(AddedTokenMatcher(), ""), Strings{});
}

TEST(AddedTokenMatcher, LeftmostAndLongestWins) {
  const auto matcher = Matcher({Token(1, "<a>"), Token(2, "<a>b"), Token(3, "b>"), Token(4, "ba")});
  EXPECT_EQ(Split(matcher, "x<a>bay"), (Strings{"x", "2:<a>b", "ay"}));
  EXPECT_EQ(Split(matcher, "<a><a>ba"), (Strings{"1:<a>", "2:<a>b", "a"}));
  EXPECT_EQ(Split(matcher, "<a<a>"), (Strings{"<a", "1:<a>"}));
  EXPECT_EQ(Split(matcher, "bab>"), (Strings{"4:ba", "3:b>"}));
}

TEST(AddedTokenMatcher, ALongerBeginningThatFailsFallsBackToTheShorterToken) {
  const auto matcher = Matcher({Token(1, "ab"), Token(2, "abcd")});
  EXPECT_EQ(Split(matcher, "abce"), (Strings{"1:ab", "ce"}));
}

TEST(AddedTokenMatcher, SpecialTokensAreTextWhenNotParsed) {
  AddedToken special = Token(1, "<|x|>");
  special.special = true;
  const auto matcher = Matcher({special, Token(2, "|")});
  EXPECT_EQ(Split(matcher, "a<|x|>|", true), (Strings{"a", "1:<|x|>", "2:|"}));
  // The special token still hides the ordinary ones inside it.
  EXPECT_EQ(Split(matcher, "a<|x|>|", false), (Strings{"a<|x|>", "2:|"}));
}

TEST(AddedTokenMatcher, SpecialTokensWithALiteralByteAreText) {
  std::vector<AddedToken> tokens = {Token(1, "<s>"), Token(2, "<s>x>"), Token(3, "<t>")};
  tokens[0].special = true;
  tokens[1].special = true;
  const auto matcher = Matcher(tokens);
  using Ranges = std::vector<ByteRange>;
  EXPECT_EQ(Split(matcher, "<s><s><t>", Ranges{{3, 9}}), (Strings{"1:<s>", "<s>", "3:<t>"}));
  for (size_t byte = 0; byte < 3; ++byte) {  // One byte is enough.
    EXPECT_EQ(Split(matcher, "<s>", Ranges{{byte, byte + 1}}), Strings{"<s>"}) << byte;
  }
  EXPECT_EQ(Split(matcher, "<s>x><s>", Ranges{{3, 5}}), (Strings{"1:<s>", "x>", "1:<s>"}));
  // A literal beginning does not hide the token that the template wrote after it.
  EXPECT_EQ(Split(matcher, "<<s>", Ranges{{0, 1}}), (Strings{"<", "1:<s>"}));
  EXPECT_EQ(Split(matcher, "<s><s>a<s>", Ranges{{0, 3}, {6, 7}}),
            (Strings{"<s>", "1:<s>", "a", "1:<s>"}));
}

TEST(AddedTokenMatcher, StripTakesWhiteSpace) {
  AddedToken left = Token(1, "<l>");
  left.lstrip = true;
  AddedToken right = Token(2, "<r>");
  right.rstrip = true;
  const auto matcher = Matcher({left, right});
  EXPECT_EQ(Split(matcher, "a \u3000<l> b"), (Strings{"a", "1: \u3000<l>", " b"}));
  EXPECT_EQ(Split(matcher, "a <r> \n\u00a0b"), (Strings{"a ", "2:<r> \n\u00a0", "b"}));
  EXPECT_EQ(Split(matcher, "  <l>"), (Strings{"1:  <l>"}));
  EXPECT_EQ(Split(matcher, "<r>  "), (Strings{"2:<r>  "}));
  // White space between two tokens belongs to the first one.
  EXPECT_EQ(Split(matcher, "<r> <l>"), (Strings{"2:<r> ", "1:<l>"}));
}

TEST(AddedTokenMatcher, ATokenWhoseStartWasTakenIsStillFound) {
  AddedToken right = Token(1, "<r>");
  right.rstrip = true;
  const auto matcher = Matcher({right, Token(2, " x")});
  EXPECT_EQ(Split(matcher, "<r> xy"), (Strings{"1:<r> ", "2: x", "y"}));
}

TEST(AddedTokenMatcher, SingleWordsMustNotTouchWordCharacters) {
  AddedToken word = Token(1, "cat");
  word.single_word = true;
  const auto matcher = Matcher({word});
  EXPECT_EQ(Split(matcher, "cat"), (Strings{"1:cat"}));
  EXPECT_EQ(Split(matcher, "a cat, cat!"), (Strings{"a ", "1:cat", ", ", "1:cat", "!"}));
  for (const std::string text : {"cats", "scat", "cat_", "9cat", "écat", "cat\u0301", "cat\u200d",
                                 "catⓐ", "catⅣ", "cat你"}) {
    EXPECT_EQ(Split(matcher, text), Strings{text});
  }
  EXPECT_EQ(Split(matcher, "—cat—"), (Strings{"—", "1:cat", "—"}));
  EXPECT_EQ(Split(matcher, "😀cat"), (Strings{"😀", "1:cat"}));
}

}  // namespace
}  // namespace pmkvq
