#include "pmkvq/text/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/small_tokenizer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::SmallTokenizer;
using testing_support::TempFolder;
using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> Parse(const SmallTokenizer& parts) {
  return Tokenizer::Parse(parts.Json(), "t.json");
}

template <class ErrorType>
void ExpectRefused(const SmallTokenizer& parts, std::initializer_list<std::string> words) {
  ExpectError<ErrorType>([&] { Parse(parts); }, words);
}

// ab = 256, abab = 257, Ġab = 258, bb = 259, in this order of merging.
SmallTokenizer WithMerges() {
  SmallTokenizer parts;
  parts.tokens = {"ab", "abab", "Ġab", "bb"};
  parts.merges = R"(["a b","ab ab","Ġ ab","b b"])";
  return parts;
}

std::string Added(int id, const std::string& content, const std::string& more = "") {
  return fmt::format(R"({{"id":{},"content":"{}"{}}})", id, content, more);
}

TEST(Tokenizer, MergesByRankFromTheLeft) {
  const auto tokenizer = Parse(WithMerges());
  EXPECT_EQ(tokenizer->Encode(""), Ids{});
  EXPECT_EQ(tokenizer->Encode("ba"), (Ids{'b', 'a'}));
  EXPECT_EQ(tokenizer->Encode("ab"), (Ids{256}));
  EXPECT_EQ(tokenizer->Encode("ababab"), (Ids{257, 256}));
  EXPECT_EQ(tokenizer->Encode("abb"), (Ids{256, 'b'}));  // a b comes before b b.
  EXPECT_EQ(tokenizer->Encode("bbb"), (Ids{259, 'b'}));
  EXPECT_EQ(tokenizer->Encode("x ab ab"), (Ids{'x', 258, 258}));
  EXPECT_EQ(tokenizer->Encode("é"), (Ids{0xc3, 0xA9}));
}

TEST(Tokenizer, MergesAsPairsAreTheSame) {
  SmallTokenizer parts = WithMerges();
  parts.merges = R"([["a","b"],["ab","ab"],["Ġ","ab"],["b","b"]])";
  EXPECT_EQ(Parse(parts)->Encode("ababab bb"), Parse(WithMerges())->Encode("ababab bb"));
}

TEST(Tokenizer, IgnoreMergesTakesAPieceThatIsAToken) {
  SmallTokenizer parts = WithMerges();
  parts.tokens.push_back("babab");
  EXPECT_EQ(Parse(parts)->Encode("babab"), (Ids{'b', 257}));
  parts.model_fields = R"("ignore_merges":true,)";
  EXPECT_EQ(Parse(parts)->Encode("babab"), (Ids{260}));
  EXPECT_EQ(Parse(parts)->Encode("bababa"), (Ids{'b', 257, 'a'}));
}

TEST(Tokenizer, NormalisesBeforeMerging) {
  EXPECT_EQ(Parse({})->Decode(Parse({})->Encode("e\u0301")), "é");
  SmallTokenizer raw;
  raw.normalizer = "null";
  EXPECT_EQ(Parse(raw)->Decode(Parse(raw)->Encode("e\u0301")), "e\u0301");
}

TEST(Tokenizer, SpecialTokensOfUsersStayText) {
  SmallTokenizer parts = WithMerges();
  parts.added_tokens = "[" + Added(260, "<s>", R"(,"special":true)") + "," +
                       Added(261, "<é>", R"(,"special":true,"normalized":true)") + "," +
                       Added(262, "<t>") + "]";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->Encode(MarkedText{"<s><s><t>", {{3, 9}}}), (Ids{260, '<', 's', '>', 262}));
  // Merges reach across the border.
  EXPECT_EQ(tokenizer->Encode(MarkedText{"<s>ab", {{4, 5}}}), (Ids{260, 256}));
  // Tokens in normalised text: decomposed in the input, behind text that gets shorter.
  const std::string text = "e\u0301<e\u0301>e\u0301<e\u0301>";
  const size_t half = text.size() / 2;
  const Ids ids = tokenizer->Encode(MarkedText{text, {{half, text.size()}}});
  EXPECT_EQ(ids, (Ids{0xc3, 0xA9, 261, 0xC3, 0xA9, '<', 0xC3, 0xA9, '>'}));
  // The accent is the user's, the letter is not: composed, they are the user's.
  EXPECT_EQ(tokenizer->Encode(MarkedText{"<e\u0301>", {{2, 4}}}), (Ids{'<', 0xc3, 0xA9, '>'}));
  EXPECT_EQ(tokenizer->Encode(MarkedText{"<s>ab<t>", {}}), tokenizer->Encode("<s>ab<t>"));
}

TEST(Tokenizer, AddedTokensAreLiteralTextWithIds) {
  SmallTokenizer parts = WithMerges();
  parts.added_tokens =
      "[" + Added(260, "<é>", R"(,"special":true)") + "," + Added(300, "bb ") + "]";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->Encode("<é>abb "), (Ids{260, 'a', 300}));
  EXPECT_EQ(tokenizer->Encode("<é>", false), (Ids{'<', 0xc3, 0xA9, '>'}));
  EXPECT_EQ(tokenizer->Decode({260, 300, 'a'}), "<é>bb a");
  EXPECT_EQ(tokenizer->Decode({260, 300, 'a'}, true), "bb a");
  EXPECT_EQ(tokenizer->TokenBytes(260), "<é>");
  EXPECT_TRUE(tokenizer->IsSpecial(260));
  EXPECT_FALSE(tokenizer->IsSpecial(300));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_TRUE(tokenizer->IsValid(0));
  EXPECT_FALSE(tokenizer->IsValid(261));  // A hole.
  EXPECT_FALSE(tokenizer->IsValid(301));
  EXPECT_FALSE(tokenizer->IsValid(-1));
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundInNormalisedText) {
  SmallTokenizer parts;
  parts.added_tokens = "[" + Added(256, "e\u0301", R"(,"normalized":true)") + "," +
                       Added(257, "o\u0301", R"(,"normalized":false)") + "]";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->Encode("xé"), (Ids{'x', 256}));
  EXPECT_EQ(tokenizer->Encode("xe\u0301"), (Ids{'x', 256}));
  EXPECT_EQ(tokenizer->Encode("o\u0301"), (Ids{257}));
  EXPECT_EQ(tokenizer->Encode("ó"), (Ids{0xc3, 0xB3}));
}

TEST(Tokenizer, AnAddedTokenMayStandInTheVocabularyToo) {
  SmallTokenizer parts;
  parts.tokens = {"<|end|>"};
  parts.added_tokens = "[" + Added(256, "<|end|>", R"(,"special":true)") + "]";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->Encode("a<|end|>"), (Ids{'a', 256}));
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_TRUE(tokenizer->IsSpecial(256));
}

TEST(Tokenizer, TokenIdFindsStringsAsTheFileWritesThem) {
  SmallTokenizer parts = WithMerges();
  parts.tokens.push_back("你");  // Not of the byte alphabet: literal.
  parts.added_tokens = "[" + Added(261, "<x>") + "]";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->TokenId("Ġab"), 258);
  EXPECT_EQ(tokenizer->TokenId("<x>"), 261);
  EXPECT_EQ(tokenizer->TokenId("你"), 260);
  EXPECT_EQ(tokenizer->TokenId("nothing"), -1);
  EXPECT_EQ(tokenizer->TokenBytes(258), " ab");
  EXPECT_EQ(tokenizer->TokenBytes(260), "你");
}

TEST(Tokenizer, PrefixIdsComeFromTheTemplate) {
  const std::string bos =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<b>","type_id":0}},
          {"Sequence":{"id":"A","type_id":0}}],"pair":[],
          "special_tokens":{"<b>":{"id":"<b>","ids":[65],"tokens":["<b>"]}}})";
  SmallTokenizer parts;
  EXPECT_EQ(Parse(parts)->prefix_ids(), Ids{});
  parts.post_processor = R"({"type":"ByteLevel"})";
  EXPECT_EQ(Parse(parts)->prefix_ids(), Ids{});
  parts.post_processor = bos;
  EXPECT_EQ(Parse(parts)->prefix_ids(), Ids{65});
  EXPECT_EQ(Parse(parts)->Encode("B"), Ids{66});  // Encode itself puts nothing in front.
  parts.post_processor = R"({"type":"Sequence","processors":[{"type":"ByteLevel"},)" + bos + "]}";
  EXPECT_EQ(Parse(parts)->prefix_ids(), Ids{65});
}

TEST(Tokenizer, SuffixIdsComeFromTheTemplate) {
  SmallTokenizer parts;
  parts.post_processor =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"b"}},{"Sequence":{"id":"A"}},
          {"SpecialToken":{"id":"e"}}],"special_tokens":{"b":{"ids":[65]},"e":{"ids":[66]}}})";
  const auto tokenizer = Parse(parts);
  EXPECT_EQ(tokenizer->prefix_ids(), Ids{65});
  EXPECT_EQ(tokenizer->suffix_ids(), Ids{66});
  EXPECT_EQ(tokenizer->EncodeWhole("x", true), (Ids{65, 'x', 66}));
  EXPECT_EQ(tokenizer->EncodeWhole("", true), (Ids{65, 66}));
  EXPECT_EQ(tokenizer->EncodeWhole("AxB", true), (Ids{65, 'x', 66}));  // One of each.
}

// The ids of "x" in a folder with these files.
Ids WholeText(const std::string& tokenizer_config, const std::string& config = "") {
  SmallTokenizer parts;
  parts.tokens = {"<s>", "</s>"};
  parts.post_processor =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"b"}},{"Sequence":{"id":"A"}}],
          "special_tokens":{"b":{"ids":[90]}}})";
  const TempFolder folder;
  folder.Write("tokenizer.json", parts.Json());
  if (!tokenizer_config.empty()) folder.Write("tokenizer_config.json", tokenizer_config);
  if (!config.empty()) folder.Write("config.json", config);
  return Tokenizer::Load(folder.path())->EncodeWhole("x", true);
}

TEST(Tokenizer, TokenizerConfigDecidesAboutTheEnds) {
  const Ids by_file = {90, 'x'};
  const Ids bos = {256, 'x'};
  const Ids none = {'x'};
  EXPECT_EQ(WholeText(""), by_file);
  EXPECT_EQ(WholeText("{}"), by_file);
  EXPECT_EQ(WholeText(R"({"add_bos_token":false,"tokenizer_class":"PreTrainedTokenizerFast"})"),
            by_file);
  EXPECT_EQ(WholeText(R"({"add_bos_token":false,"tokenizer_class":"Qwen2Tokenizer"})"), by_file);
  for (const std::string name : {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer"}) {
    const auto with = [&](const std::string& rest) {
      return WholeText(R"({"tokenizer_class":")" + name + "\"" + rest + "}");
    };
    EXPECT_EQ(with(""), bos);  // add_bos_token is true, bos_token is <s>.
    EXPECT_EQ(with(R"(,"add_bos_token":true)"), bos);
    EXPECT_EQ(with(R"(,"add_bos_token":false)"), none);
    EXPECT_EQ(with(R"(,"bos_token":"</s>")"), (Ids{257, 'x'}));
    EXPECT_EQ(with(R"(,"bos_token":{"content":"</s>"})"), (Ids{257, 'x'}));
    EXPECT_EQ(with(R"(,"bos_token":null)"), none);
    EXPECT_EQ(with(R"(,"add_eos_token":true)"), (Ids{256, 'x', 257}));
    EXPECT_EQ(with(R"(,"add_eos_token":true,"eos_token":{"content":"a"})"), (Ids{256, 'x', 'a'}));
  }
  EXPECT_EQ(WholeText(R"({"tokenizer_class":"GPTNeoXTokenizerFast"})"), none);
  EXPECT_EQ(WholeText(R"({"tokenizer_class":"GemmaTokenizer"})"), by_file);  // No <bos> there.
  EXPECT_EQ(WholeText("{}", R"({"model_type":"llama"})"), bos);
  EXPECT_EQ(WholeText("{}", R"({"model_type":"qwen2"})"), by_file);
  EXPECT_EQ(WholeText("", R"({"model_type":"llama"})"), by_file);
  const auto refused = [](const std::string& fields, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>(
        [&] { WholeText(R"({"tokenizer_class":"LlamaTokenizer",)" + fields + "}"); }, words);
  };
  refused(R"("bos_token":"<none>")", {"tokenizer_config.json", "bos_token", "<none>"});
  refused(R"("bos_token":7)", {"tokenizer_config.json", "bos_token", "7"});
  refused(R"("add_bos_token":true,"bos_token":null)", {"bos_token", "null"});
  refused(R"("add_bos_token":"yes")", {"add_bos_token", "yes"});
}

TEST(Tokenizer, InvalidTextAndIdsAreNamed) {
  const auto tokenizer = Parse({});
  ExpectError<InvalidInput>([&] { (void)tokenizer->Encode("ab\xC3("); },
                            {"text", "byte 2", "0xc3", "UTF-8"});
  for (const int32_t id : {-1, 256, 1 << 30}) {
    ExpectError<InvalidInput>(
        [&] {
          (void)tokenizer->Decode({0, id});
        },
        {"t.json", std::to_string(id), "256"});
    ExpectError<InvalidInput>([&] { (void)tokenizer->TokenBytes(id); }, {std::to_string(id)});
  }
}

TEST(Tokenizer, AMegabyteWithoutPlaceToCutIsEncoded) {
  const auto tokenizer = Parse(WithMerges());
  std::string text;
  while (text.size() < 1'000'000) text += "abababbab";
  const Ids ids = tokenizer->Encode(text);
  EXPECT_EQ(tokenizer->Decode(ids), text);
  EXPECT_EQ(tokenizer->Encode(std::string(1'000'000, ' ')).size(), 1'000'000u);
  EXPECT_EQ(tokenizer->Encode(std::string(1'000'000, '\n')).size(), 1'000'000u);
}

TEST(Tokenizer, LoadsFromAFileOrAFolder) {
  const TempFolder folder;
  const std::string path = folder.Write("tokenizer.json", WithMerges().Json());
  EXPECT_EQ(Tokenizer::Load(path)->Encode("ab"), Ids{256});
  EXPECT_EQ(Tokenizer::Load(folder.path())->Encode("ab"), Ids{256});
  ExpectError<IoError>([&] { Tokenizer::Load(folder.File("none.json")); }, {"none.json"});
}

TEST(TokenizerErrors, UnsupportedModelParts) {
  const auto refused = [](const std::string& fields, const std::string& field,
                          const std::string& value) {
    SmallTokenizer parts;
    parts.model_fields = fields;
    ExpectRefused<Unsupported>(parts, {"t.json", "model." + field, value});
  };
  refused(R"("dropout":0.1,)", "dropout", "0.1");
  refused(R"("byte_fallback":true,)", "byte_fallback", "true");
  refused(R"("continuing_subword_prefix":"##",)", "continuing_subword_prefix", "##");
  refused(R"("end_of_word_suffix":"</w>",)", "end_of_word_suffix", "</w>");
  SmallTokenizer harmless;
  harmless.model_fields =
      R"("dropout":null,"unk_token":"a","byte_fallback":false,"end_of_word_suffix":"",)";
  EXPECT_EQ(Parse(harmless)->Encode("a"), Ids{'a'});
  std::string json = SmallTokenizer().Json();
  json.replace(json.find("\"BPE\""), 5, "\"Unigram\"");
  ExpectError<Unsupported>([&] { Tokenizer::Parse(json, "t.json"); }, {"model.type", "Unigram"});
}

TEST(TokenizerErrors, UnsupportedProcessing) {
  SmallTokenizer parts;
  parts.decoder = R"({"type":"Metaspace"})";
  ExpectRefused<Unsupported>(parts, {"decoder", "Metaspace", "ByteLevel"});
  parts.decoder = R"({"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteLevel"}]})";
  ExpectRefused<Unsupported>(parts, {"decoder.decoders", "ByteLevel"});
  parts.decoder = R"({"type":"Sequence","decoders":[{"type":"ByteLevel"}]})";
  EXPECT_NO_THROW(Parse(parts));
  parts.decoder = "null";
  ExpectRefused<InvalidInput>(parts, {"decoder"});

  parts = {};
  parts.post_processor = R"({"type":"BertProcessing"})";
  ExpectRefused<Unsupported>(parts, {"post_processor", "BertProcessing"});
  parts.post_processor =
      R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},{"Sequence":{"id":"B"}}],
          "special_tokens":{}})";
  ExpectRefused<Unsupported>(parts, {"post_processor.single[1]", "Sequence"});
  parts.post_processor =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"e"}}],
          "special_tokens":{"e":{"ids":[999]}}})";
  ExpectRefused<InvalidInput>(parts, {"post_processor", "999"});
  parts.post_processor =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"e"}}],
          "special_tokens":{"e":{"ids":7}}})";
  ExpectRefused<InvalidInput>(parts, {"post_processor.special_tokens.e.ids", "7"});
  parts.post_processor = R"({"type":"TemplateProcessing","single":"$A"})";
  ExpectRefused<InvalidInput>(parts, {"post_processor.single", "$A"});
  parts.post_processor = R"({"type":"Sequence","processors":1})";
  ExpectRefused<InvalidInput>(parts, {"post_processor.processors", "1"});

  std::string json = SmallTokenizer().Json();
  json.replace(json.find("1.0"), 3, "2.0");
  ExpectError<Unsupported>([&] { Tokenizer::Parse(json, "t.json"); }, {"version", "2.0", "1.0"});
}

TEST(TokenizerErrors, WrongMerges) {
  SmallTokenizer parts = WithMerges();
  for (const std::string merge : {R"("ab")", R"("a b c")", R"(["a"])", "3", R"(["a","b","c"])"}) {
    parts.merges = "[" + merge + "]";
    ExpectRefused<InvalidInput>(parts, {"model.merges[0]", "a b"});
  }
  for (const std::string merge : {R"("x y")", R"("zz y")", R"("y zz")"}) {
    parts.merges = R"(["a b",)" + merge + "]";
    ExpectRefused<InvalidInput>(parts, {"model.merges[1]", "model.vocab"});
  }
  parts.merges = R"({"a":"b"})";
  ExpectRefused<InvalidInput>(parts, {"model.merges", "an array"});
}

TEST(TokenizerErrors, WrongVocabulary) {
  const auto with_vocab = [](const std::string& vocab) {
    return R"({"model":{"vocab":)" + vocab +
           R"(,"merges":[]},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},
             "decoder":{"type":"ByteLevel"}})";
  };
  const auto refused = [&](const std::string& vocab, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { Tokenizer::Parse(with_vocab(vocab), "t.json"); }, words);
  };
  refused("[]", {"model.vocab", "an object"});
  refused(R"({"a":-1})", {"model.vocab.a", "-1"});
  refused(R"({"a":4194304})", {"model.vocab.a", "4194304"});
  refused(R"({"a":"b"})", {"model.vocab.a", "an integer"});
  refused(R"({"a":1,"b":1})", {"model.vocab.b", "no other token"});
  // A byte that has no token is an error when it is needed, not before.
  const auto sparse = Tokenizer::Parse(with_vocab(R"({"a":1})"), "t.json");
  EXPECT_EQ(sparse->Encode("aa"), (Ids{1, 1}));
  ExpectError<InvalidInput>([&] { (void)sparse->Encode("ab"); }, {"model.vocab", "0x62"});
  const std::string unknown = R"({"model":{"unk_token":"a","vocab":{"a":1},"merges":[]}})";
  ExpectError<Unsupported>([&] { Tokenizer::Parse(unknown, "t.json"); }, {"model.unk_token", "a"});
}

TEST(TokenizerErrors, WrongAddedTokens) {
  const auto refused = [](const std::string& tokens, std::initializer_list<std::string> words) {
    SmallTokenizer parts;
    parts.added_tokens = tokens;
    ExpectRefused<InvalidInput>(parts, words);
  };
  refused("{}", {"added_tokens", "an array"});
  refused("[" + Added(256, "") + "]", {"added_tokens[0].content", "not empty"});
  refused("[" + Added(97, "b") + "]", {"added_tokens[0].id", "97"});
  refused("[" + Added(256, "x") + "," + Added(256, "y") + "]", {"added_tokens[1].id", "256"});
  refused("[" + Added(256, "xx") + "," + Added(257, "xx") + "]", {"added_tokens[1].content", "xx"});
  refused("[" + Added(256, "e\u0301") + "," + Added(257, "é") + "]",
          {"added_tokens[1].content", "normalisation"});
  refused("[" + Added(-3, "x") + "]", {"added_tokens[0].id", "-3"});
  refused(R"([{"id":256}])", {"added_tokens[0].content"});
  refused("[" + Added(256, "x", R"(,"special":"yes")") + "]", {"added_tokens[0].special", "yes"});
}

TEST(TokenizerErrors, NotATokenizer) {
  ExpectError<InvalidInput>([] { Tokenizer::Parse("[]", "t.json"); }, {"t.json", "an object"});
  ExpectError<InvalidInput>([] { Tokenizer::Parse("{}", "t.json"); }, {"t.json", "model"});
  ExpectError<InvalidInput>([] { Tokenizer::Parse("{\"model\":", "t.json"); }, {"t.json"});
}

}  // namespace
}  // namespace pmkvq
