#include "pmkvq/text/utf8.h"

#include <gtest/gtest.h>

#include "pmkvq/io/utf8.h"
#include "pmkvq/text/byte_alphabet.h"

namespace pmkvq {
namespace {

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

TEST(ByteAlphabet, IsABijectionOnBytes) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  std::string bytes = "x";
  EXPECT_TRUE(AppendAlphabetBytes(BytesToAlphabet(all), &bytes));
  EXPECT_EQ(bytes, "x" + all);
  EXPECT_EQ(BytesToAlphabet("a b\n"), "aĠbĊ");
  EXPECT_EQ(BytesToAlphabet("é"), "Ã©");
  EXPECT_EQ(BytesToAlphabet("\xad"), "Ń");
  EXPECT_EQ(BytesToAlphabet(std::string(1, '\0')), "Ā");
}

TEST(ByteAlphabet, OtherCharactersAreNoBytes) {
  std::string bytes = "x";
  // A space is U+0120; U+0144 is one after the last.
  for (const char* text : {"a b", "\u00ad", "\u0144", "你"}) {
    EXPECT_FALSE(AppendAlphabetBytes(text, &bytes)) << text;
  }
  EXPECT_TRUE(AppendAlphabetBytes("", &bytes));
  EXPECT_EQ(bytes, "x");
}

}  // namespace
}  // namespace pmkvq
