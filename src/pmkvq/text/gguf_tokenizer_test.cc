#include "pmkvq/text/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/normalizer.h"
#include "pmkvq/text/tokenizer.h"
#include "support/expect_error.h"
#include "support/gguf_vocabulary.h"
#include "support/gguf_writer.h"
#include "support/sentencepiece_golden.h"
#include "support/temp_folder.h"
#include "support/tokenizer_vectors.h"

namespace pmkvq {
namespace {

using testing_support::AddByteLevelVocabulary;
using testing_support::AddPieces;
using testing_support::ExpectError;
using testing_support::ExpectTokenizerVectors;
using testing_support::GgufWriter;
using testing_support::LoadTokenizerVectors;
using testing_support::TempFolder;

const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";

GgufWriter MistralVocabulary() {
  GgufWriter writer;
  writer.Text("general.architecture", "llama");
  AddPieces(writer, testing_support::MistralPath("tokenizer.model"));
  return writer;
}

// The byte-level tokenizer.json of tests/golden, R1-Distill-Qwen, as metadata.
GgufWriter QwenVocabulary() {
  GgufWriter writer;
  writer.Text("general.architecture", "qwen2");
  AddByteLevelVocabulary(writer, kGolden + "tokenizers/tokenizer.json", "deepseek-r1-qwen");
  return writer;
}

TEST(GgufTokenizer, SentencePieceVectorsAreExact) {
  const TempFolder folder;
  const std::string path = folder.Write("vocab.gguf", MistralVocabulary().Bytes());
  const auto tokenizer = Tokenizer::Load(path);
  ExpectTokenizerVectors(
      tokenizer, LoadTokenizerVectors("mistral-v1/vectors.inp", "mistral-v1/vectors.out"), path);
  EXPECT_EQ(tokenizer->prefix_ids(), std::vector<int32_t>{1});
  EXPECT_TRUE(tokenizer->suffix_ids().empty());
  EXPECT_TRUE(Tokenizer::IsIn(path));
  EXPECT_TRUE(Tokenizer::IsIn(folder.path()));
  EXPECT_EQ(Tokenizer::Load(folder.path())->vocab_size(), 32000);
}

TEST(GgufTokenizer, ByteLevelVectorsAreExact) {
  const TempFolder folder;
  const auto tokenizer = Tokenizer::Load(folder.Write("vocab.gguf", QwenVocabulary().Bytes()));
  ExpectTokenizerVectors(tokenizer, LoadTokenizerVectors("vectors.inp", "vectors.out"),
                         "vocab.gguf", [](const std::string& text) { return Nfc(text); });
  const auto json = Tokenizer::Load(kGolden + "tokenizers");
  const std::string text = "<｜User｜>Where?<think>\n";
  EXPECT_EQ(tokenizer->Encode(text), json->Encode(text));
  EXPECT_LT(tokenizer->Encode(text).size(), tokenizer->Encode(text, false).size());
}

TEST(GgufTokenizer, ReadsEveryField) {
  GgufWriter writer;
  writer.Text("tokenizer.ggml.model", "gpt2").Text("tokenizer.ggml.pre", "qwen2");
  writer.Texts("tokenizer.ggml.tokens", {"a", "b", "ab"});
  writer.Texts("tokenizer.ggml.merges", {"a b"});
  writer.Array<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1, 3, 4});
  writer.U32("tokenizer.ggml.bos_token_id", 0).I32("tokenizer.ggml.eos_token_id", 1);
  writer.U32("tokenizer.ggml.eot_token_id", 2).U32("tokenizer.ggml.eom_token_id", 0xffffffff);
  writer.I32("tokenizer.ggml.padding_token_id", -1);
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  writer.Bool("tokenizer.ggml.add_space_prefix", true);
  const TempFolder folder;
  const GgufSet file = GgufSet::Open(folder.Write("a.gguf", writer.Bytes()));
  const TokenizerData data = GgufTokenizerData(file);
  EXPECT_EQ(data.kind, TokenizerKind::kByteLevelBpe);
  EXPECT_EQ(data.tokens, (std::vector<std::string_view>{"a", "b", "ab"}));
  EXPECT_EQ(data.merges, std::vector<std::string_view>{"a b"});
  EXPECT_EQ(data.types, (std::vector<TokenType>{TokenType::kNormal, TokenType::kControl,
                                                TokenType::kUserDefined}));
  EXPECT_EQ(data.pre, "qwen2");
  EXPECT_EQ(data.bos, 0);
  EXPECT_EQ(data.eos, 1);
  EXPECT_EQ(data.eot, 2);
  EXPECT_EQ(data.eom, TokenizerData::kNoId);
  EXPECT_EQ(data.pad, TokenizerData::kNoId);
  EXPECT_EQ(data.add_bos, false);
  EXPECT_EQ(data.add_eos, std::nullopt);
  EXPECT_EQ(data.add_space_prefix, true);
  EXPECT_EQ(GgufSpecialToken(file, "eos"), "b");
  EXPECT_EQ(GgufSpecialToken(file, "padding"), "");
  EXPECT_EQ(GgufSpecialToken(file, "unknown"), "");
}

TEST(GgufTokenizer, RefusesWrongVocabularies) {
  const std::string malformed = kGolden + "gguf/malformed/";
  ExpectError<InvalidInput>([&] { Tokenizer::Load(malformed + "byte-token-bad.gguf"); },
                            {"byte-token-bad.gguf", "tokenizer.ggml.tokens[2]", "<0xZZ>"});
  ExpectError<InvalidInput>([&] { Tokenizer::Load(malformed + "scores-nan.gguf"); },
                            {"scores-nan.gguf", "tokenizer.ggml.scores", "nan"});
  ExpectError<InvalidInput>([&] { Tokenizer::Load(malformed + "types-short.gguf"); },
                            {"types-short.gguf", "tokenizer.ggml.token_type", "one for each"});
  ExpectError<Unsupported>([&] { Tokenizer::Load(malformed + "pre-unknown.gguf"); },
                           {"pre-unknown.gguf", "tokenizer.ggml.pre", "no-such-pre"});
  const TempFolder folder;
  const auto load = [&](const GgufWriter& writer) {
    Tokenizer::Load(folder.Write("a.gguf", writer.Bytes()));
  };
  ExpectError<InvalidInput>([&] { load(GgufWriter().U32("a", 1)); },
                            {"tokenizer.ggml.model: found nothing"});
  ExpectError<Unsupported>([&] { load(GgufWriter().Text("tokenizer.ggml.model", "t5")); },
                           {"tokenizer.ggml.model: found \"t5\"", "gpt2 or llama"});
  ExpectError<InvalidInput>([&] { load(GgufWriter().Text("tokenizer.ggml.model", "gpt2")); },
                            {"tokenizer.ggml.tokens: found nothing"});
  ExpectError<InvalidInput>([&] { load(MistralVocabulary().Drop("tokenizer.ggml.scores")); },
                            {"tokenizer.ggml.scores: found nothing"});
  ExpectError<InvalidInput>(
      [&] {
        load(MistralVocabulary()
                 .Drop("tokenizer.ggml.bos_token_id")
                 .U32("tokenizer.ggml.bos_token_id", 32000));
      },
      {"tokenizer.ggml.bos_token_id: found 32000"});
  EXPECT_FALSE(Tokenizer::IsIn(folder.Write("b.gguf", GgufWriter().U32("a", 1).Bytes())));
}

// What lies beside the file, and a whole tokenizer.json inside, says more than the metadata.
TEST(GgufTokenizer, ATokenizerJsonComesFirst) {
  const TempFolder folder;
  const std::string json = ReadFile(PMKVQ_SOURCE_DIR "/models/longcot-10m/tokenizer.json");
  const std::string path =
      folder.Write("a.gguf", GgufWriter().Text("tokenizer.huggingface.json", json).Bytes());
  EXPECT_EQ(Tokenizer::Load(path)->vocab_size(), Tokenizer::Parse(json, "json")->vocab_size());
  EXPECT_TRUE(Tokenizer::IsIn(path));
  folder.Write("a.gguf", GgufWriter().Text("tokenizer.ggml.model", "t5").Bytes());
  folder.Write("tokenizer.json", json);
  EXPECT_NO_THROW(Tokenizer::Load(folder.path()));
  ExpectError<Unsupported>([&] { Tokenizer::Load(path); }, {"t5"});
}

TEST(GgufTokenizer, ChatTemplatesComeFromTheMetadata) {
  const TempFolder folder;
  GgufWriter writer;
  writer.Text("tokenizer.chat_template",
              "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}");
  writer.Text("tokenizer.chat_template.tool_use", "tools");
  writer.Texts("tokenizer.ggml.tokens", {"<s>", "</s>"});
  writer.U32("tokenizer.ggml.bos_token_id", 0).U32("tokenizer.ggml.eos_token_id", 1);
  const std::string path = folder.Write("a.gguf", writer.Bytes());
  const std::vector<ChatMessage> messages = {{"user", "Hi"}};
  for (const std::string& model : {path, folder.path()}) {
    EXPECT_EQ(LoadChatTemplate(model).Render(messages, false).text, "<s>[Hi]</s>");
    EXPECT_EQ(LoadChatTemplate(model, "tool_use").Render(messages, false).text, "tools");
    EXPECT_TRUE(HasChatTemplate(model, ""));
    EXPECT_FALSE(HasChatTemplate(model, "other"));
  }
  folder.Write("chat_template.jinja", "{{ bos_token }}beside");
  EXPECT_EQ(LoadChatTemplate(folder.path()).Render(messages, false).text, "<s>beside");
  folder.Write("a.gguf", GgufWriter().Text("tokenizer.chat_template", "{% no %}").Bytes());
  ExpectError<Unsupported>([&] { LoadChatTemplate(path); },
                           {path, "tokenizer.chat_template", "line 1"});
  folder.Write("a.gguf", GgufWriter().U32("a", 1).Bytes());
  EXPECT_TRUE(LoadChatTemplate(path).IsNone());
}

}  // namespace
}  // namespace pmkvq
