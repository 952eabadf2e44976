#include "pmkvq/engine/output_text.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/text/vocabulary_data.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

// What StopMatcher must give, from its definition: the shortest text that ends in a stop string,
// without the longest such one.
std::string CutAtFirst(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(StopMatcher, PassesTextOnAtOnceWithoutStops) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"</think>"});
  EXPECT_EQ(matcher.Push("a < b"), "a < b");
  EXPECT_EQ(matcher.Push("c</"), "c");
  EXPECT_EQ(matcher.Push("thin"), "");
  EXPECT_EQ(matcher.Push("g"), "</thing");
  EXPECT_EQ(matcher.Push("d</think>e"), "d");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, FlushGivesWhatWasHeldBack) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("the EN"), "the ");
  EXPECT_EQ(matcher.Flush(), "EN");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, FindsAStopThatBeginsInsideAFailedOne) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aa"), "");
  EXPECT_EQ(matcher.Push("a"), "a");
  EXPECT_EQ(matcher.Push("b"), "");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, EqualsTheDefinitionForAnyCut) {
  Random random(7);
  int matches = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto draw = [&](size_t most) {
      std::string text(1 + random.Below(most), 'a');
      for (char& c : text) c = static_cast<char>('a' + random.Below(2));
      return text;
    };
    const std::string text = draw(20);
    std::vector<std::string> stops;
    for (uint64_t i = random.Below(3); i > 0; --i) stops.push_back(draw(5));
    StopMatcher matcher(stops);
    std::string out;
    for (size_t begin = 0; begin < text.size();) {
      const size_t length = 1 + random.Below(4);
      out += matcher.Push(text.substr(begin, length));
      begin += length;
      // Never more than the definition allows, whatever comes.
      ASSERT_TRUE(CutAtFirst(text, stops).starts_with(out)) << text;
    }
    out += matcher.Flush();
    ASSERT_EQ(out, CutAtFirst(text, stops));
    ASSERT_EQ(matcher.matched(), out.size() != text.size());
    matches += matcher.matched();
  }
  EXPECT_GT(matches, 500);
}

TEST(OutputText, WaitsForWholeCharacters) {
  OutputText text(testing_support::ByteTokenizer(), {}, {'p'});
  EXPECT_EQ(text.Push(0xC3), "");
  EXPECT_EQ(text.Push(0xA9), "\xC3\xA9");
  EXPECT_EQ(text.Push(0xE2), "");
  EXPECT_EQ(text.Finish(), "\xEF\xBF\xBD");  // U+FFFD
  EXPECT_EQ(text.text(), "\xC3\xA9\xEF\xBF\xBD");
}

TEST(OutputText, FindsAStopOfSeveralTokensWithinACharacterStream) {
  OutputText text(testing_support::ByteTokenizer(), {"\xC3\xA9!"}, {'p'});
  std::string streamed;
  for (const int32_t id : std::vector<int32_t>{'o', 'k', 0xC3, 0xA9, '!', 'x'})
    streamed += text.Push(id);
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(streamed, "ok");
  EXPECT_EQ(text.Finish(), "");
  EXPECT_EQ(text.text(), "ok");
}

TEST(OutputText, IgnoresIdsWithoutAToken) {
  OutputText text(testing_support::ByteTokenizer(), {}, {'p'});
  EXPECT_EQ(text.Push(1000), "");
  EXPECT_EQ(text.Push('a'), "a");
}

// 0 .. 255 are byte tokens, 256 is "▁a", 257 is the special <s>.
std::shared_ptr<const Tokenizer> PieceTokenizer() {
  TokenizerData data;
  data.kind = TokenizerKind::kSentencePieceBpe;
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(fmt::format("<0x{:02X}>", byte));
  tokens.insert(tokens.end(), {"\u2581a", "<s>"});
  data.tokens.assign(tokens.begin(), tokens.end());
  data.types.assign(tokens.size(), TokenType::kNormal);
  data.types.back() = TokenType::kControl;
  data.scores.assign(tokens.size(), 0.0f);
  return Tokenizer::FromData(data, "pieces");
}

TEST(OutputText, KeepsTheFirstSpaceBehindTextOnly) {
  const auto first = [](const std::vector<int32_t>& prompt) {
    OutputText text(PieceTokenizer(), {}, prompt);
    std::string all = text.Push(256);
    all += text.Push(256);
    return all + text.Finish();
  };
  EXPECT_EQ(first({257, 256}), " a a");
  EXPECT_EQ(first({256, 257}), "a a");
  EXPECT_EQ(first({1000}), "a a");  // A row without a token is no text.
}

TEST(OutputText, IsEmptyWithoutTokenizer) {
  OutputText text(nullptr, {}, {});
  EXPECT_EQ(text.Push('a'), "");
  EXPECT_EQ(text.Finish(), "");
  EXPECT_FALSE(text.stopped());
}

// Stop strings count behind the first occurrence of another text only, however tokens cut it.
TEST(OutputText, StopsCountBehindAText) {
  const auto tokenizer = testing_support::ByteTokenizer();
  const std::string text = "a STOP b</thi</think> c STOP d";
  for (const std::string after : {"", "</think>", "never"}) {
    OutputText out(tokenizer, {"STOP"}, {}, after);
    std::string streamed;
    for (const int32_t id : tokenizer->Encode(text)) {
      if (!out.stopped()) streamed += out.Push(id);
    }
    streamed += out.Finish();
    EXPECT_EQ(streamed, out.text());
    const size_t stop = after.empty() ? text.find("STOP") : text.rfind("STOP");
    EXPECT_EQ(out.text(), after == "never" ? text : text.substr(0, stop)) << after;
    EXPECT_EQ(out.stop_string(), after == "never" ? "" : "STOP");
  }
}

}  // namespace
}  // namespace pmkvq
