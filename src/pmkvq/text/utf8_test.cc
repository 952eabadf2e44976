#include "pmkvq/text/utf8.h"

#include <gtest/gtest.h>

#include "pmkvq/text/byte_alphabet.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {
namespace {

constexpr size_t kValid = std::string_view::npos;

TEST(FindInvalidUtf8, ReportsWhereTheInvalidPartStarts) {
  EXPECT_EQ(FindInvalidUtf8(""), kValid);
  EXPECT_EQ(FindInvalidUtf8("aé你😀\x7f"), kValid);
  EXPECT_EQ(FindInvalidUtf8("\xf4\x8f\xbf\xbf"), kValid);  // U+10FFFF.
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FindInvalidUtf8("é\xc0\xaf"), 2u);         // Overlong.
  EXPECT_EQ(FindInvalidUtf8("\xe0\x9f\xbf"), 0u);      // Overlong.
  EXPECT_EQ(FindInvalidUtf8("a\xed\xa0\x80"), 1u);     // Surrogate.
  EXPECT_EQ(FindInvalidUtf8("\xf4\x90\x80\x80"), 0u);  // Above U+10FFFF.
  EXPECT_EQ(FindInvalidUtf8("abc\xe4\xbd"), 3u);       // Cut.
}

TEST(ScanUtf8, EveryCodePointIsOneValidStepAndRoundTrips) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    const Utf8Step step = ScanUtf8(text, 0);
    size_t length = 0;
    ASSERT_EQ(step.kind, Utf8Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(step.length, text.size());
    ASSERT_EQ(DecodeUtf8(text, 0, &length), c);
    ASSERT_EQ(DecodeUtf8Before("x" + text, 1 + text.size(), &length), c);
    ASSERT_EQ(length, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Step partial = ScanUtf8(text.substr(0, cut), 0);
      ASSERT_EQ(partial.kind, Utf8Kind::kIncomplete);
      ASSERT_EQ(partial.length, cut);
    }
  }
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

TEST(ByteAlphabet, IsABijectionOnBytes) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(AlphabetToBytes(BytesToAlphabet(all)), all);
  EXPECT_EQ(BytesToAlphabet("a b\n"), "aĠbĊ");
  EXPECT_EQ(BytesToAlphabet("é"), "Ã©");
  EXPECT_EQ(BytesToAlphabet("\xad"), "Ń");
  EXPECT_EQ(BytesToAlphabet(std::string(1, '\0')), "Ā");
}

TEST(ByteAlphabet, OtherCharactersAreNoBytes) {
  EXPECT_EQ(AlphabetToBytes("a b"), std::nullopt);  // A space is U+0120.
  EXPECT_EQ(AlphabetToBytes("\u00ad"), std::nullopt);
  EXPECT_EQ(AlphabetToBytes("\u0144"), std::nullopt);  // One after the last.
  EXPECT_EQ(AlphabetToBytes("你"), std::nullopt);
  EXPECT_EQ(AlphabetToBytes(""), "");
}

}  // namespace
}  // namespace pmkvq
