// Flags of added tokens in tokenizer_config.json, and byte-fallback vocabularies that are wrong.
#include "pmkvq/text/tokenizer_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/text/tokenizer.h"
#include "support/expect_error.h"
#include "support/sentencepiece_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::SmallSentencePiece;
using testing_support::TempFolder;
using Ids = std::vector<int32_t>;

// A tokenizer.json with byte fallback: 0 .. 255 are the byte tokens, then come <s>, ▁, a, ▁a.
struct PieceJson {
  std::string added = R"([{"id":256,"content":"<s>","special":true,"normalized":true}])";
  std::string more_pieces;
  std::string merges = R"(["▁ a"])";
  std::string missing;  // A byte token that is left out.

  std::string Text() const {
    std::string vocab;
    for (int byte = 0; byte < 256; ++byte) {
      const std::string name = fmt::format("<0x{:02X}>", byte);
      vocab += fmt::format(R"("{}":{},)", name == missing ? "other" : name, byte);
    }
    vocab += R"("<s>":256,"▁":257,"a":258,"▁a":259)" + more_pieces;
    return R"({"version":"1.0","added_tokens":)" + added +
           R"(,"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
               {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,
               "decoder":{"type":"Sequence","decoders":[
               {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
               {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
               "model":{"type":"BPE","byte_fallback":true,"vocab":{)" +
           vocab + R"(},"merges":)" + merges + "}}";
  }
};

// Ids of `text` in a folder with these files.
Ids Encode(const std::string& text, const std::string& config, const std::string& added = "") {
  const TempFolder folder;
  folder.Write("tokenizer.json", PieceJson().Text());
  if (!config.empty()) folder.Write("tokenizer_config.json", config);
  if (!added.empty()) folder.Write("added_tokens.json", added);
  return Tokenizer::Load(folder.path())->Encode(text);
}

TEST(ConfigTokens, FlagsOfTheConfigWin) {
  // Normalised, <s> is "▁<s>", which is in the middle of no text.
  const Ids as_text = {259, '<', 's', '>', 258};
  const Ids as_token = {259, 256, 259};
  EXPECT_EQ(Encode("a<s>a", ""), as_text);
  EXPECT_EQ(Encode("a<s>a", "{}"), as_text);
  EXPECT_EQ(Encode("a<s>a", R"({"added_tokens_decoder":
      {"256":{"content":"<s>","special":true,"normalized":false}}})"),
            as_token);
  EXPECT_EQ(Encode("a<s>a", R"({"bos_token":{"content":"<s>","normalized":false}})"), as_token);
  EXPECT_EQ(Encode("a<s>a", R"({"bos_token":"<s>"})"), as_text);  // A name has no flags.
  // added_tokens_decoder goes before the roles.
  EXPECT_EQ(Encode("a<s>a", R"({"bos_token":{"content":"<s>","normalized":false},
      "added_tokens_decoder":{"256":{"content":"<s>","special":true,"normalized":true}}})"),
            as_text);
  EXPECT_EQ(Encode("a <s> a", R"({"added_tokens_decoder":
      {"256":{"content":"<s>","lstrip":true,"rstrip":true,"normalized":false}}})"),
            as_token);
  EXPECT_EQ(Encode("a<s>", R"({"added_tokens_decoder":
      {"256":{"content":"<s>","single_word":true,"normalized":false}}})"),
            (Ids{259, '<', 's', '>'}));
}

TEST(ConfigTokens, TokensOfTheConfigAreAdded) {
  EXPECT_EQ(
      Encode("a<x>a", R"({"added_tokens_decoder":{"260":{"content":"<x>","normalized":false}}})"),
      (Ids{259, 260, 259}));
  EXPECT_EQ(Encode("<x>", "", R"({"<x>":260})"), Ids{260});
  // One that the vocabulary has keeps its id; one that nobody knows an id of is left out.
  EXPECT_EQ(Encode("xa", R"({"pad_token":"a","eos_token":"<none>"})"), (Ids{257, 'x', 258}));
  EXPECT_EQ(Encode("a", R"({"bos_token":null,"additional_special_tokens":["<none>"]})"), Ids{259});
}

TEST(ConfigTokens, WrongValuesAreNamed) {
  const auto refused = [](const std::string& config, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { Encode("a", config); }, words);
  };
  refused(R"({"added_tokens_decoder":[]})", {"tokenizer_config.json", "added_tokens_decoder"});
  refused(R"({"added_tokens_decoder":{"x":{"content":"y"}}})", {"added_tokens_decoder", "\"x\""});
  refused(R"({"added_tokens_decoder":{"9":{"content":""}}})", {"added_tokens_decoder.9.content"});
  refused(R"({"added_tokens_decoder":{"9":{"content":"<x>"}}})", {"added_tokens_decoder.9"});
  refused(R"({"bos_token":{"content":"<s>","lstrip":1}})", {"bos_token.lstrip", "1"});
}

TEST(ConfigTokens, ATokenizerModelHasThemToo) {
  const TempFolder folder;
  SmallSentencePiece model;
  model.Piece("▁", -1).Piece("a", -2);
  folder.Write("tokenizer.model", model.Bytes());
  folder.Write("tokenizer_config.json",
               R"({"tokenizer_class":"LlamaTokenizer","add_bos_token":false,"add_eos_token":true,
                   "added_tokens_decoder":{"261":{"content":"<x>","special":true}}})");
  const auto tokenizer = Tokenizer::Load(folder.path());
  EXPECT_EQ(tokenizer->Encode("a<x>a"), (Ids{259, 260, 261, 259, 260}));
  EXPECT_EQ(tokenizer->prefix_ids(), Ids{});
  EXPECT_EQ(tokenizer->suffix_ids(), Ids{2});
  EXPECT_TRUE(Tokenizer::IsIn(folder.path()));
}

TEST(PieceJson, WrongVocabulariesAreNamed) {
  const auto refused = [](const PieceJson& json, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { Tokenizer::Parse(json.Text(), "t.json"); }, words);
  };
  PieceJson json;
  json.missing = "<0x41>";
  refused(json, {"t.json", "model.byte_fallback", "<0x41>"});
  json = {};
  json.more_pieces = R"(,"b":262)";
  refused(json, {"model.vocab", "260"});
  json.added = R"([{"id":260,"content":"<x>"},{"id":261,"content":"<y>"}])";
  EXPECT_NO_THROW(Tokenizer::Parse(json.Text(), "t.json"));  // No hole: these have the ids.
  json = {};
  json.more_pieces = R"(,"b":259)";
  refused(json, {"model.vocab.b", "259"});
  json.more_pieces = R"(,"a":260)";
  refused(json, {"a", "twice"});
  json = {};
  json.merges = R"(["a a"])";
  refused(json, {"model.merges[0]", "a a", "model.vocab"});
  json = {};
  json.more_pieces = ",\"" + std::string(20'000, 'x') + "\":260";
  refused(json, {"model.vocab.xxx", "20000 bytes", "at most 16384 bytes"});
}

TEST(PieceJson, PartsThatChangeTheResultAreRefused) {
  const auto refused = [](const std::string& from, const std::string& to,
                          std::initializer_list<std::string> words) {
    std::string text = PieceJson().Text();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    ExpectError<Unsupported>([&] { Tokenizer::Parse(text, "t.json"); }, words);
  };
  refused(R"("BPE")", R"("Unigram")", {"model.type", "Unigram", "BPE"});
  refused(R"({"type":"Prepend","prepend":"▁"})", R"({"type":"Lowercase"})", {"Lowercase"});
  refused(R"("pre_tokenizer":null)", R"("pre_tokenizer":{"type":"ByteLevel"})", {"ByteLevel"});
  refused(R"({"type":"Fuse"},)", "", {"decoder.decoders", "Strip"});
  refused(R"({"type":"ByteFallback"},)", "", {"decoder.decoders", "Fuse"});
}

TEST(PieceJson, APieceMayReachAcrossWords) {
  PieceJson json;
  json.more_pieces = R"(,"b":260,"▁b":261,"a▁b":262,"▁a▁b":263)";
  json.merges = R"(["▁ b","a ▁b","▁ a","▁ a▁b"])";
  EXPECT_EQ(Tokenizer::Parse(json.Text(), "t.json")->Encode("a b a"), (Ids{263, 259}));
}

TEST(PieceJson, ReplacementsCannotGrowATextWithoutEnd) {
  std::string text = PieceJson().Text();
  const std::string old = R"({"type":"Prepend","prepend":"▁"})";
  std::string steps;
  for (int i = 0; i < 40; ++i) {
    steps += std::string(i == 0 ? "" : ",") +
             R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"})";
  }
  text.replace(text.find(old), old.size(), steps);
  const auto tokenizer = Tokenizer::Parse(text, "t.json");
  ExpectError<InvalidInput>([&] { (void)tokenizer->Encode("aaaa"); }, {"Replace", "bytes"});
}

}  // namespace
}  // namespace pmkvq
