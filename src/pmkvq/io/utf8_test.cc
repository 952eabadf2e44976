#include "pmkvq/io/utf8.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(Utf8, ValidPrefix) {
  const std::vector<std::pair<std::string, size_t>> cases = {
      {"", 0},
      {"abc", 3},
      {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9},
      {"a\x80", 1},              // A continuation byte alone.
      {"a\xc0\x80", 1},          // Overlong.
      {"a\xe0\x9f\xbf", 1},      // Overlong.
      {"a\xf0\x8f\xbf\xbf", 1},  // Overlong.
      {"a\xed\xa0\x80", 1},      // A surrogate.
      {"a\xf4\x90\x80\x80", 1},  // Above U+10FFFF.
      {"a\xf5\x80\x80\x80", 1},
      {"a\xe2\x82", 1},  // Cut off.
      {"a\xe2\x82z", 1},
      {"\xed\x9f\xbf\xf4\x8f\xbf\xbf", 7},
  };
  for (const auto& [text, valid] : cases) EXPECT_EQ(ValidUtf8Prefix(text), valid) << text;
}

TEST(ScanUtf8, InvalidStepsAreTheLongestWellFormedBeginning) {
  const auto invalid_length = [](std::string_view text) {
    const Utf8Step step = ScanUtf8(text, 0);
    return step.kind == Utf8Kind::kInvalid ? step.length : 0;
  };
  EXPECT_EQ(invalid_length("\x80"), 1u);
  EXPECT_EQ(invalid_length("\xff"), 1u);
  EXPECT_EQ(invalid_length("\xc1\x80"), 1u);
  EXPECT_EQ(invalid_length("\xe4\xbd z"), 2u);
  EXPECT_EQ(invalid_length("\xf0\x9f\x98z"), 3u);
  EXPECT_EQ(invalid_length("\xed\xa0\x80"), 1u);
  EXPECT_EQ(invalid_length("\xf0\x8f\xbf\xbf"), 1u);
}

TEST(CheckUtf8, NamesTheFirstByteThatIsNone) {
  CheckUtf8("a\xc3\xa9\xf4\x8f\xbf\xbf", "fine.txt");
  testing_support::ExpectError<InvalidInput>([] { CheckUtf8("\xc3\xa9\xff", "bad.txt"); },
                                             {"[bad.txt] byte 2: found 0xff, expected UTF-8"});
}

}  // namespace
}  // namespace pmkvq
