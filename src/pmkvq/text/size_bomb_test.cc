// Tokenizer files made to be expensive.
#include "support/size_bomb.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/text/tokenizer.h"
#include "support/small_tokenizer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBounded;
using testing_support::PeakBytesOf;
using testing_support::Repeat;
using testing_support::SmallTokenizer;
using testing_support::TempFolder;

constexpr size_t kMiB = size_t{1} << 20;

void Check(const std::string& what, const std::string& text) {
  const TempFolder folder;
  folder.Write("tokenizer.json", text);
  ExpectBounded(what, text.size(), 0, [&] { Tokenizer::Load(folder.path()); });
}

// Four letters of base 26.
std::string Word(size_t i) {
  std::string word;
  for (int k = 0; k < 4; ++k, i /= 26) word += static_cast<char>('a' + i % 26);
  return word;
}

TEST(SizeBombs, TokenizerParts) {
  for (const size_t bytes : {3 * kMiB, 7 * kMiB}) {
    SmallTokenizer tokens;
    for (size_t i = 0; i * 15 < bytes && i < 450'000; ++i) tokens.tokens.push_back(Word(i));
    Check("tokens", tokens.Json());
    SmallTokenizer merges;
    merges.tokens = {"ab"};
    merges.merges = "[" + Repeat(R"("a b")", bytes) + "]";
    Check("merges", merges.Json());
    merges.merges = "[" + Repeat(R"(["a","b"])", bytes) + "]";
    Check("merges as pairs", merges.Json());
    SmallTokenizer added;
    std::string list;
    for (size_t i = 0; list.size() < bytes; ++i) {
      list += fmt::format(R"({}{{"id":{},"content":"<{}>"}})", i == 0 ? "" : ",", 256 + i, i);
    }
    added.added_tokens = "[" + list + "]";
    Check("added tokens", added.Json());
    SmallTokenizer ends;
    ends.post_processor = R"({"type":"TemplateProcessing","single":[)" +
                          Repeat(R"({"SpecialToken":{"id":"b"}})", bytes) +
                          R"(],"special_tokens":{"b":{"ids":[65,65,65,65]}}})";
    Check("post-processor", ends.Json());
    SmallTokenizer normalizers;
    normalizers.normalizer =
        R"({"type":"Sequence","normalizers":[)" + Repeat(R"({"type":"NFC"})", bytes) + "]}";
    Check("normalizers", normalizers.Json());
    SmallTokenizer splits;
    splits.pre_tokenizer =
        R"({"type":"Sequence","pretokenizers":[)" +
        Repeat(R"({"type":"Split","pattern":{"String":"a"},"behavior":"Isolated"})", bytes) + "]}";
    Check("splits", splits.Json());
    SmallTokenizer pattern;
    pattern.pre_tokenizer = R"({"type":"Split","behavior":"Isolated","pattern":{"Regex":")" +
                            std::string(bytes, 'a') + "\"}}";
    Check("pattern", pattern.Json());
    Check("an array", "[" + Repeat("[0]", bytes) + "]");
  }
}

TEST(SizeBombs, LargeIds) {
  SmallTokenizer parts;
  parts.added_tokens = R"([{"id":4194303,"content":"<x>"}])";
  Check("an id far beyond the vocabulary", parts.Json());
  Check("the same in the vocabulary",
        R"({"model":{"vocab":{"a":4194303},"merges":[]},"decoder":{"type":"ByteLevel"}})");
}

TEST(SizeBombs, TokenizerConfig) {
  const TempFolder folder;
  folder.Write("tokenizer.json", SmallTokenizer().Json());
  for (const size_t bytes : {4 * kMiB}) {
    for (const std::string& text : {"{\"tokenizer_class\":[" + Repeat("[0]", bytes) + "]}",
                                    "{\"chat_template\":\"" + std::string(bytes, 'x') + "\"}"}) {
      folder.Write("tokenizer_config.json", text);
      ExpectBounded("tokenizer_config", text.size(), 0, [&] { Tokenizer::Load(folder.path()); });
    }
  }
}

TEST(SizeBombs, ALargeTokenizerTakesLessThanFortyMegabytes) {
  const std::string folder = std::string(PMKVQ_SOURCE_DIR) + "/tests/golden/tokenizers";
  const size_t peak = PeakBytesOf([&] { Tokenizer::Load(folder); });  // 5.2 MB, 151,665 tokens.
  EXPECT_LT(peak, size_t{40} << 20);
}

}  // namespace
}  // namespace pmkvq
