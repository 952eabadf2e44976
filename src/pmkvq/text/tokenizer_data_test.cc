// Tokenizers of plain data: what GGUF files will hand over.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/text/byte_alphabet.h"
#include "pmkvq/text/tokenizer.h"
#include "pmkvq/text/vocabulary_data.h"
#include "support/expect_error.h"
#include "support/small_tokenizer.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::SmallTokenizer;
using Ids = std::vector<int32_t>;

// Data with the texts that it points to.
struct Owned {
  std::deque<std::string> texts;
  TokenizerData data;

  Owned& Add(std::string token, TokenType type = TokenType::kNormal, float score = 0) {
    data.tokens.push_back(texts.emplace_back(std::move(token)));
    data.types.push_back(type);
    data.scores.push_back(score);
    return *this;
  }
  Owned& Merge(std::string merge) {
    data.merges.push_back(texts.emplace_back(std::move(merge)));
    return *this;
  }
};

// 0 .. 255 are the bytes.
Owned ByteLevel(const std::string& pre = "gpt-2") {
  Owned owned;
  owned.data.pre = pre;
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    owned.Add(BytesToAlphabet({&character, 1}));
  }
  owned.data.scores.clear();
  return owned;
}

// 0 .. 255 are the byte tokens, 256 is ▁, 257 is <s>.
Owned Pieces() {
  Owned owned;
  owned.data.kind = TokenizerKind::kSentencePieceBpe;
  for (int byte = 0; byte < 256; ++byte) {
    owned.Add(fmt::format("<0x{:02X}>", byte), TokenType::kByte);
  }
  owned.Add("▁", TokenType::kNormal, -10).Add("<s>", TokenType::kControl);
  return owned;
}

std::shared_ptr<const Tokenizer> Make(const Owned& owned) {
  return Tokenizer::FromData(owned.data, "x.gguf");
}

template <class ErrorType = InvalidInput>
void ExpectRefused(const Owned& owned, std::initializer_list<std::string> words) {
  ExpectError<ErrorType>([&] { Make(owned); }, words);
}

TEST(TokenizerData, ByteLevelEqualsTheSameTokenizerJson) {
  Owned owned = ByteLevel();
  SmallTokenizer json;
  for (const char* token : {"ab", "abab", "Ġab", "bb"}) {
    owned.Add(token);
    json.tokens.push_back(token);
  }
  owned.data.scores.clear();
  for (const char* merge : {"a b", "ab ab", "Ġ ab", "b b"}) owned.Merge(merge);
  json.merges = R"(["a b","ab ab","Ġ ab","b b"])";
  json.normalizer = "null";
  const auto by_data = Make(owned);
  const auto by_json = Tokenizer::Parse(json.Json(), "t.json");
  for (const char* text : {"", "ababab abb 12é", "x\n\n  y's", "abbab bb"}) {
    EXPECT_EQ(by_data->Encode(text), by_json->Encode(text)) << text;
    EXPECT_EQ(by_data->Decode(by_data->Encode(text)), text);
  }
  EXPECT_EQ(by_data->prefix_ids(), Ids{});
}

TEST(TokenizerData, PatternNamesDecideAboutCutsBosAndNormalisation) {
  const auto cuts = [](const std::string& pre, const std::string& text) {
    Owned owned = ByteLevel(pre);
    owned.Add("11").Add("111").Add("éé");
    owned.data.scores.clear();
    owned.Merge("1 1").Merge("11 1");
    return Make(owned)->Encode(text);
  };
  EXPECT_EQ(cuts("gpt-2", "111"), Ids{257});
  EXPECT_EQ(cuts("llama-bpe", "1111"), (Ids{257, '1'}));
  EXPECT_EQ(cuts("qwen2", "111"), (Ids{'1', '1', '1'}));
  EXPECT_EQ(cuts("smollm", "111"), (Ids{'1', '1', '1'}));
  EXPECT_EQ(cuts("deepseek-v3", "1111"), (Ids{257, '1'}));
  EXPECT_EQ(cuts("qwen2", "e\u0301"), (Ids{0xC3, 0xA9}));  // NFC.
  EXPECT_EQ(cuts("gpt-2", "e\u0301"), (Ids{'e', 0xCC, 0x81}));
  Owned llama = ByteLevel("llama-bpe");
  llama.data.bos = 65;
  EXPECT_EQ(Make(llama)->prefix_ids(), Ids{65});
  llama.data.add_bos = false;
  EXPECT_EQ(Make(llama)->prefix_ids(), Ids{});
  Owned gpt = ByteLevel();
  gpt.data.bos = 65;
  gpt.data.eos = 66;
  EXPECT_EQ(Make(gpt)->prefix_ids(), Ids{});
  gpt.data.add_bos = true;
  gpt.data.add_eos = true;
  EXPECT_EQ(Make(gpt)->prefix_ids(), Ids{65});
  EXPECT_EQ(Make(gpt)->suffix_ids(), Ids{66});
}

TEST(TokenizerData, EveryPatternNameMakesATokenizer) {
  for (const char* pre : {"llama-bpe",
                          "llama3",
                          "llama-v3",
                          "falcon3",
                          "pixtral",
                          "qwen2",
                          "deepseek-r1-qwen",
                          "megrez",
                          "qwen35",
                          "deepseek-llm",
                          "deepseek-coder",
                          "deepseek-v3",
                          "tekken",
                          "smollm",
                          "starcoder",
                          "refact",
                          "command-r",
                          "codeshell",
                          "gpt-2",
                          "phi-2",
                          "olmo",
                          "mpt",
                          "gpt-4o",
                          "llama4",
                          "chatglm-bpe",
                          "glm4",
                          "dbrx",
                          "smaug-bpe",
                          "seed-coder"}) {
    const auto tokenizer = Make(ByteLevel(pre));
    const std::string text = "It's 12345 Ωmega 你好, ЖУК!\r\n\n  x_y \t end ";
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << pre;
  }
  for (const char* pre : {"", "default", "bloom"}) {
    ExpectRefused<Unsupported>(ByteLevel(pre),
                               {"x.gguf", "tokenizer.ggml.pre", "llama-bpe", "--tokenizer"});
  }
}

TEST(TokenizerData, ControlAndUserDefinedTokensAreCutOut) {
  Owned owned = ByteLevel();
  owned.Add("<eos>", TokenType::kControl).Add("<tool>", TokenType::kUserDefined);
  owned.Add("<tool>x", TokenType::kUserDefined);
  owned.data.scores.clear();
  const auto tokenizer = Make(owned);
  EXPECT_EQ(tokenizer->Encode("a<tool>b<eos>"), (Ids{'a', 257, 'b', 256}));
  EXPECT_EQ(tokenizer->Encode("<tool>x"), Ids{258});  // The longest.
  EXPECT_EQ(tokenizer->Encode("<tool><eos>", false).front(), 257);
  EXPECT_EQ(tokenizer->Encode("<tool><eos>", false).size(), 6u);
  EXPECT_TRUE(tokenizer->IsSpecial(256));
  EXPECT_FALSE(tokenizer->IsSpecial(257));
}

TEST(TokenizerData, PiecesGetASpaceInFrontOfEveryPart) {
  Owned owned = Pieces();
  owned.Add("▁a", TokenType::kNormal, -1).Add("a", TokenType::kNormal, -2);
  owned.Add("<u>", TokenType::kUserDefined);
  owned.data.bos = 257;
  const auto tokenizer = Make(owned);
  EXPECT_EQ(tokenizer->Encode("a<s>a<u>a"), (Ids{258, 257, 258, 260, 258}));
  EXPECT_EQ(tokenizer->prefix_ids(), Ids{257});
  EXPECT_EQ(tokenizer->Decode({258, 258}), "a a");
  owned.data.add_space_prefix = false;
  const auto plain = Make(owned);
  EXPECT_EQ(plain->Encode("a<s>a a"), (Ids{259, 257, 259, 258}));
  EXPECT_EQ(plain->Decode({258, 258}), " a a");
}

TEST(TokenizerData, WrongFieldsAreNamed) {
  Owned owned = Pieces();
  ExpectRefused(Owned(), {"x.gguf", "tokenizer.ggml.tokens", "none"});
  owned.data.scores.pop_back();
  ExpectRefused(owned, {"tokenizer.ggml.scores", "257 values", "258"});
  owned = Pieces();
  owned.data.types.pop_back();
  ExpectRefused(owned, {"tokenizer.ggml.token_type", "257 values", "258"});
  owned = Pieces();
  owned.data.types[5] = static_cast<TokenType>(0);
  ExpectRefused(owned, {"token_type[5]", "0", "1 to 6"});
  for (const float score :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    owned = Pieces();
    owned.data.scores[7] = score;
    ExpectRefused(owned, {"scores[7]", "finite"});
  }
  owned = Pieces();
  owned.data.bos = 258;
  ExpectRefused(owned, {"bos_token_id", "258", "257"});
  owned.data.bos = TokenizerData::kNoId;
  owned.data.add_bos = true;
  ExpectRefused(owned, {"bos_token_id", "none"});
  ExpectRefused(Pieces().Add("▁"), {"tokens[258]", "\"▁\"", "before"});
  ExpectRefused(Pieces().Add("\xC3"), {"tokens[258]", "UTF-8"});
  ExpectRefused(Pieces().Add(std::string(20'000, 'a')), {"tokens[258]", "16384"});
  owned = Pieces();
  owned.data.tokens[65] = "other";
  ExpectRefused(owned, {"<0x41>"});
}

TEST(TokenizerData, WrongMergesAreNamed) {
  for (const char* merge : {"ab", "a b c"}) {
    ExpectRefused(ByteLevel().Merge(merge), {"tokenizer.ggml.merges[0]", merge, "one space"});
  }
  ExpectRefused(ByteLevel().Merge("a b"), {"merges[0]", "a b", "merged"});
}

TEST(TokenizerData, EmptyTokensAreNeverFound) {
  Owned owned = ByteLevel();
  owned.Add("").Add("");
  owned.data.scores.clear();
  const auto tokenizer = Make(owned);
  EXPECT_EQ(tokenizer->Encode("a"), Ids{'a'});
  EXPECT_EQ(tokenizer->TokenBytes(256), "");
  EXPECT_EQ(tokenizer->vocab_size(), 258);
}

}  // namespace
}  // namespace pmkvq
