#include "pmkvq/text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using Strings = std::vector<std::string>;

PreTokenizer Make(const std::string& json) {
  return PreTokenizer(JsonValue::Parse(json, "t.json"), true);
}

Strings Cut(const PreTokenizer& pre_tokenizer, const std::string& text) {
  const Pieces pieces = pre_tokenizer.Split(text, true);
  return {pieces.views.begin(), pieces.views.end()};
}

// A Split followed by a ByteLevel that leaves the text as it is.
std::string SplitJson(const std::string& pattern, const std::string& behavior,
                      const std::string& more = "") {
  return R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)" + pattern +
         R"(,"behavior":")" + behavior + "\"" + more +
         R"(},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
}

struct BehaviorCase {
  const char* behavior;
  Strings pieces;
  Strings inverted;
};

class SplitBehaviors : public ::testing::TestWithParam<BehaviorCase> {};

// The example of the Hugging Face documentation; inverted, the words are the delimiters.
TEST_P(SplitBehaviors, CutLikeTheirDocumentation) {
  const std::string text = "the-final--countdown";
  const BehaviorCase& c = GetParam();
  EXPECT_EQ(Cut(Make(SplitJson(R"({"String":"-"})", c.behavior)), text), c.pieces);
  EXPECT_EQ(Cut(Make(SplitJson(R"({"Regex":"-"})", c.behavior, R"(,"invert":false)")), text),
            c.pieces);
  EXPECT_EQ(Cut(Make(SplitJson(R"({"String":"-"})", c.behavior, R"(,"invert":true)")), text),
            c.inverted);
}

INSTANTIATE_TEST_SUITE_P(
    All, SplitBehaviors,
    ::testing::Values(BehaviorCase{"Isolated",
                                   {"the", "-", "final", "-", "-", "countdown"},
                                   {"the", "-", "final", "-", "-", "countdown"}},
                      BehaviorCase{"Removed", {"the", "final", "countdown"}, {"-", "-", "-"}},
                      BehaviorCase{"MergedWithPrevious",
                                   {"the-", "final-", "-", "countdown"},
                                   {"the", "-final", "-", "-countdown"}},
                      BehaviorCase{"MergedWithNext",
                                   {"the", "-final", "-", "-countdown"},
                                   {"the-", "final-", "-", "countdown"}},
                      BehaviorCase{"Contiguous",
                                   {"the", "-", "final", "--", "countdown"},
                                   {"the", "-", "final", "--", "countdown"}}),
    [](const auto& param) { return std::string(param.param.behavior); });

TEST(PreTokenizer, EmptyTextHasNoPieces) {
  EXPECT_EQ(Cut(Make(SplitJson(R"({"Regex":"x*"})", "Isolated")), ""), Strings{});
  EXPECT_EQ(Cut(Make(R"({"type":"ByteLevel","add_prefix_space":true})"), ""), Strings{});
}

TEST(PreTokenizer, EmptyMatchesCut) {
  EXPECT_EQ(Cut(Make(SplitJson(R"json({"Regex":"(?=b)"})json", "Isolated")), "abab"),
            (Strings{"a", "ba", "b"}));
}

TEST(PreTokenizer, ByteLevelCutsLikeGpt2) {
  const PreTokenizer gpt2 =
      Make(R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true})");
  EXPECT_EQ(Cut(gpt2, "I've 22 x's!?  \n\n ok\u00a0é"),
            (Strings{"I", "'ve", " 22", " x", "'s", "!?", "  \n\n", " ok", "\u00a0", "é"}));
}

TEST(PreTokenizer, PrefixSpaceIsPutBeforeEachPieceThatHasNone) {
  const PreTokenizer one = Make(R"({"type":"ByteLevel","add_prefix_space":true})");
  EXPECT_EQ(Cut(one, "ab cd"), (Strings{" ab", " cd"}));
  EXPECT_EQ(Cut(one, " ab"), (Strings{" ab"}));
  const PreTokenizer after_split = Make(
      R"({"type":"Sequence","pretokenizers":[
          {"type":"Split","pattern":{"String":"-"},"behavior":"Removed"},
          {"type":"ByteLevel","add_prefix_space":true,"use_regex":false}]})");
  EXPECT_EQ(Cut(after_split, "a-b- c"), (Strings{" a", " b", " c"}));
}

TEST(PreTokenizer, UnknownPartsAreRefusedByName) {
  ExpectError<Unsupported>([] { Make(R"({"type":"Metaspace"})"); }, {"t.json", "Metaspace"});
  ExpectError<Unsupported>([] { Make(SplitJson(R"({"String":"-"})", "Doubled")); },
                           {"pretokenizers", "behavior", "Doubled", "Isolated"});
  ExpectError<Unsupported>([] { Make(R"({"type":"Sequence","pretokenizers":[]})"); },
                           {"t.json", "ByteLevel"});
  ExpectError<Unsupported>(
      [] {
        Make(R"({"type":"Sequence","pretokenizers":[
             {"type":"ByteLevel","add_prefix_space":false},
             {"type":"Split","pattern":{"String":"-"},"behavior":"Removed"}]})");
      },
      {"pretokenizers[1]", "Split", "after ByteLevel"});
}

TEST(PreTokenizer, WrongFieldsAreNamed) {
  ExpectError<InvalidInput>([] { Make("null"); }, {"t.json", "ByteLevel"});
  ExpectError<InvalidInput>([] { Make(R"({"type":"Sequence","pretokenizers":3})"); },
                            {"pretokenizers", "3", "an array"});
  ExpectError<InvalidInput>([] { Make(SplitJson(R"({"Glob":"-"})", "Removed")); },
                            {"pattern", "Regex"});
  ExpectError<InvalidInput>([] { Make(SplitJson(R"({"Regex":"("})", "Removed")); },
                            {"pattern.Regex"});
  ExpectError<InvalidInput>([] { Make(R"({"type":"ByteLevel"})"); }, {"add_prefix_space"});
}

}  // namespace
}  // namespace pmkvq
