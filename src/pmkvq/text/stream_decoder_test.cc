#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/tokenizer.h"
#include "support/small_tokenizer.h"

namespace pmkvq {
namespace {

using testing_support::SmallTokenizer;
using Strings = std::vector<std::string>;

const std::string kBad = "\xEF\xBF\xBD";  // U+FFFD.

// Ids 0 .. 255 are bytes, 256 is the special <s>, 257 the ordinary <t>.
std::shared_ptr<const Tokenizer> Bytes() {
  SmallTokenizer parts;
  parts.added_tokens =
      R"([{"id":256,"content":"<s>","special":true},{"id":257,"content":"<t>","special":false}])";
  static const auto tokenizer = Tokenizer::Parse(parts.Json(), "t.json");
  return tokenizer;
}

// What each id yields, and at the end what Finish yields.
Strings Stream(const std::vector<int32_t>& ids, bool skip_special = true) {
  StreamDecoder decoder(Bytes(), skip_special);
  Strings steps;
  for (const int32_t id : ids) steps.push_back(decoder.Push(id));
  steps.push_back(decoder.Finish());
  return steps;
}

TEST(StreamDecoder, HoldsBackUntilACharacterIsWhole) {
  EXPECT_EQ(Stream({'a', 'b'}), (Strings{"a", "b", ""}));
  EXPECT_EQ(Stream({0xC3, 0xA9, 'x'}), (Strings{"", "é", "x", ""}));
  EXPECT_EQ(Stream({0xF0, 0x9F, 0x98, 0x80}), (Strings{"", "", "", "😀", ""}));
}

TEST(StreamDecoder, InvalidBytesBecomeReplacementCharactersAtOnce) {
  EXPECT_EQ(Stream({0xFF, 'a'}), (Strings{kBad, "a", ""}));
  EXPECT_EQ(Stream({0x80}), (Strings{kBad, ""}));
  EXPECT_EQ(Stream({0xE4, 0xBD, 'a'}), (Strings{"", "", kBad + "a", ""}));
  EXPECT_EQ(Stream({0xED, 0xA0, 0x80}), (Strings{"", kBad + kBad, kBad, ""}));  // A surrogate.
  EXPECT_EQ(Stream({0xE4, 0xC3, 0xA9}), (Strings{"", kBad, "é", ""}));
}

TEST(StreamDecoder, FinishReplacesWhatIsIncomplete) {
  EXPECT_EQ(Stream({'a', 0xE4, 0xBD}), (Strings{"a", "", "", kBad}));
  StreamDecoder decoder(Bytes());
  decoder.Push(0xC3);
  EXPECT_EQ(decoder.Finish(), kBad);
  EXPECT_EQ(decoder.Finish(), "");  // And can go on afterwards.
  EXPECT_EQ(decoder.Push('z'), "z");
}

TEST(StreamDecoder, SpecialTokensAreSkippedOnRequest) {
  EXPECT_EQ(Stream({256, 257, 'a'}), (Strings{"", "<t>", "a", ""}));
  EXPECT_EQ(Stream({256, 257}, false), (Strings{"<s>", "<t>", ""}));
  // One inside a character does not break it when skipped, and does when it is text.
  EXPECT_EQ(Stream({0xC3, 256, 0xA9}), (Strings{"", "", "é", ""}));
  EXPECT_EQ(Stream({0xC3, 256, 0xA9}, false), (Strings{"", kBad + "<s>", kBad, ""}));
}

TEST(StreamDecoder, UnknownIdIsAnError) {
  StreamDecoder decoder(Bytes());
  EXPECT_THROW(decoder.Push(258), InvalidInput);
  EXPECT_EQ(decoder.Push('a'), "a");
}

TEST(StreamDecoder, EveryStepIsValidAndValidTextComesOutUnchanged) {
  EXPECT_TRUE(rc::check("any bytes", [] {
    const auto ids = *rc::gen::container<std::vector<int32_t>>(rc::gen::oneOf(
        rc::gen::inRange(0, 258), rc::gen::inRange(0x80, 0x100), rc::gen::inRange(0xE0, 0xF5)));
    std::string all;
    for (const std::string& step : Stream(ids)) {
      RC_ASSERT(ValidUtf8Prefix(step) == step.size());
      all += step;
    }
    const std::string bytes = Bytes()->Decode(ids, true);
    if (ValidUtf8Prefix(bytes) == bytes.size()) RC_ASSERT(all == bytes);
  }));
  EXPECT_TRUE(rc::check("valid text, byte by byte", [] {
    const auto points = *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 4));
    const Strings characters = {"a", "é", "你", "😀"};
    std::string text;
    for (const int point : points) text += characters[static_cast<size_t>(point)];
    std::vector<int32_t> ids;
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
    std::string all;
    for (const std::string& step : Stream(ids)) all += step;
    RC_ASSERT(all == text);
  }));
}

}  // namespace
}  // namespace pmkvq
