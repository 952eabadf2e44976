// SentencePiece vocabularies in all their forms against published ids.
#include <gtest/gtest.h>

#include <algorithm>

#include <map>

#include "pmkvq/io/json.h"
#include "support/sentencepiece_golden.h"
#include "support/tokenizer_vectors.h"

namespace pmkvq {
namespace {

using testing_support::ExpectTokenizerVectors;
using testing_support::LoadTokenizerVectors;
using testing_support::MistralFromData;
using testing_support::MistralJson;
using testing_support::MistralPath;
using testing_support::SplitAt;
using testing_support::StreamOf;
using Ids = std::vector<int32_t>;
using Pointer = std::shared_ptr<const Tokenizer>;

Ids IdsOf(const JsonValue& json) {
  Ids ids;
  for (const int64_t id : json.AsIntArray()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

// Carriers with the rule that each part of a text between special tokens gets a space in front.
std::map<std::string, Pointer> LegacyCarriers() {
  return {{"tokenizer.json", Tokenizer::Load(MistralPath("tokenizer.json"))},
          {"tokenizer.model", Tokenizer::Load(MistralPath("tokenizer.model"))},
          {"data", MistralFromData()}};
}

TEST(SentencePieceGolden, PublishedVectorsAreExactInEveryForm) {
  const auto vectors = LoadTokenizerVectors("mistral-v1/vectors.inp", "mistral-v1/vectors.out");
  for (const auto& [name, tokenizer] : LegacyCarriers()) {
    ExpectTokenizerVectors(tokenizer, vectors, name);
  }
}

TEST(SentencePieceGolden, TextsWithSpecialTokensAreExactInEveryForm) {
  std::map<std::string, Pointer> forms;
  for (const char* form : {"legacy", "legacy_normalized", "metaspace_first", "metaspace_always"}) {
    forms[form] = Tokenizer::Parse(MistralJson(form), form);
  }
  size_t num_cases = 0;
  for (const std::string& line : SplitAt(ReadFile(MistralPath("special.jsonl")), "\n")) {
    if (line.empty()) continue;
    ++num_cases;
    const JsonValue entry = JsonValue::Parse(line, "special.jsonl");
    const std::string text = entry.At("text").AsString();
    const auto check = [&](const Tokenizer& tokenizer, const Pointer& pointer,
                           const std::string& form, const std::string& name) {
      const Ids expected = IdsOf(entry.At(form));
      EXPECT_EQ(tokenizer.Encode(text), expected) << name << ": " << text;
      const std::string decoded = entry.At(form + "_decoded").AsString();
      EXPECT_EQ(tokenizer.Decode(expected, true), decoded) << name << ": " << text;
      EXPECT_EQ(StreamOf(pointer, expected), decoded) << name << ": " << text;
    };
    for (const auto& [form, tokenizer] : forms) check(*tokenizer, tokenizer, form, form);
    static const std::map<std::string, Pointer> carriers = LegacyCarriers();
    for (const auto& [name, tokenizer] : carriers) {
      check(*tokenizer, tokenizer, "legacy", name);
      EXPECT_EQ(tokenizer->prefix_ids(), Ids{1}) << name;
      Ids whole = tokenizer->Encode(text);
      whole.insert(whole.begin(), 1);
      EXPECT_EQ(whole, IdsOf(entry.At("legacy_with_bos"))) << name;
    }
  }
  EXPECT_EQ(num_cases, 72u);
}

// Random forms and flags of added tokens, random texts and ids.
TEST(SentencePieceGolden, FormsAndFlagsAreThoseOfTheLibrary) {
  const std::string base = MistralJson("legacy");
  size_t num_cases = 0;
  for (const std::string& line : SplitAt(ReadFile(MistralPath("forms.jsonl")), "\n")) {
    if (line.empty()) continue;
    const JsonValue form = JsonValue::Parse(line, "forms.jsonl");
    std::string json = base;
    const std::pair<const char*, const char*> fields[] = {{"added_tokens", "normalizer"},
                                                          {"normalizer", "pre_tokenizer"},
                                                          {"pre_tokenizer", "post_processor"},
                                                          {"decoder", "model"}};
    for (const auto& [field, next] : fields) {
      testing_support::SetValueBefore(field, next, form.At(field).Dump(), &json);
    }
    const auto tokenizer = Tokenizer::Parse(json, "form");
    const JsonValue cases = form.At("cases");
    for (size_t i = 0; i < cases.size(); ++i, ++num_cases) {
      const JsonValue entry = cases.At(i);
      const Ids ids = IdsOf(entry.At("ids"));
      const std::string decoded = entry.At("decoded").AsString();
      EXPECT_EQ(tokenizer->Decode(ids, true), decoded) << line;
      EXPECT_EQ(tokenizer->Decode(ids, false), entry.At("whole").AsString()) << line;
      if (!entry.Has("text")) continue;
      EXPECT_EQ(tokenizer->Encode(entry.At("text").AsString()), ids) << line;
      EXPECT_EQ(StreamOf(tokenizer, ids), decoded) << line;
    }
  }
  EXPECT_EQ(num_cases, 420u);
}

TEST(SentencePieceGolden, ASpecialTokenOfAUserIsText) {
  for (const auto& [name, tokenizer] : LegacyCarriers()) {
    const Ids ids = tokenizer->Encode("Hello</s>", false);
    EXPECT_EQ(tokenizer->Decode(ids), "Hello</s>") << name;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 0) << name;
    // The template's token counts, the user's does not.
    const Ids marked = tokenizer->Encode(MarkedText{"a</s></s>", {{0, 5}}});
    EXPECT_EQ(std::count(marked.begin(), marked.end(), 2), 1) << name;
  }
}

TEST(SentencePieceGolden, AConversationIsExact) {
  std::string text = ReadFile(MistralPath("chat_text.txt"));
  testing_support::Replace("▁", " ", &text);
  // The published text has the space that the tokenizer puts behind <s> and </s>.
  testing_support::Replace("<s> ", "<s>", &text);
  testing_support::Replace("</s> ", "</s>", &text);
  const Ids expected = IdsOf(JsonValue::ParseFile(MistralPath("chat_ids.json")).At("tokens"));
  for (const auto& [name, tokenizer] : LegacyCarriers()) {
    EXPECT_EQ(tokenizer->Encode(text), expected) << name;
  }
}

TEST(SentencePieceGolden, StreamingHoldsBackBytesAndDropsOneSpace) {
  for (const auto& [name, tokenizer] : LegacyCarriers()) {
    const int32_t hello = tokenizer->TokenId("▁Hello");
    const auto byte = [&](int value) { return 3 + value; };  // <0x00> is 3.
    StreamDecoder start(tokenizer);
    EXPECT_EQ(start.Push(1), "") << name;  // BOS.
    EXPECT_EQ(start.Push(hello), "Hello") << name;
    EXPECT_EQ(start.Push(hello), " Hello") << name;
    StreamDecoder later(tokenizer, true, true);
    EXPECT_EQ(later.Push(hello), " Hello") << name;
    StreamDecoder bytes(tokenizer);
    EXPECT_EQ(bytes.Push(byte(0xF0)), "") << name;
    EXPECT_EQ(bytes.Push(byte(0x9F)), "") << name;
    EXPECT_EQ(bytes.Push(byte(0x98)), "") << name;
    EXPECT_EQ(bytes.Push(byte(0x80)), "😀") << name;
    EXPECT_EQ(bytes.Push(byte(0xE4)), "") << name;
    EXPECT_EQ(bytes.Push(byte(0xBD)), "") << name;
    EXPECT_EQ(bytes.Push(hello), "\uFFFD\uFFFD Hello") << name;  // One for each byte.
    EXPECT_EQ(bytes.Push(byte(0x80)), "\uFFFD") << name;
    EXPECT_EQ(bytes.Push(byte(0xC3)), "") << name;
    EXPECT_EQ(bytes.Finish(), "\uFFFD") << name;
  }
}

// The library of tokenizer.json gives up a run of byte tokens when one of them is wrong;
// SentencePiece does so byte by byte.
TEST(SentencePieceGolden, WrongBytesBecomeReplacementCharacters) {
  const Ids ids = {3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xFF, 3 + 'a'};
  const auto carriers = LegacyCarriers();
  EXPECT_EQ(carriers.at("tokenizer.json")->Decode(ids), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(carriers.at("tokenizer.model")->Decode(ids), "你\uFFFDa");
  EXPECT_EQ(carriers.at("data")->Decode(ids), "你\uFFFDa");
  for (const auto& [name, tokenizer] : carriers) {
    EXPECT_EQ(StreamOf(tokenizer, ids), "你\uFFFDa") << name;
  }
}

}  // namespace
}  // namespace pmkvq
