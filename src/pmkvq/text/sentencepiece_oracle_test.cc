// Random texts against the SentencePiece library, with the published vocabulary and with small ones
// that the library trains here. Skipped in a build without it.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <unordered_map>

#include "pmkvq/io/file.h"
#include "pmkvq/text/tokenizer.h"
#include "pmkvq/text/utf8.h"
#include "support/sentencepiece_golden.h"
#include "support/temp_folder.h"

#if defined(PMKVQ_HAVE_SENTENCEPIECE)

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

namespace pmkvq {
namespace {

using testing_support::TempFolder;

// Words that vocabularies know, runs of spaces, and characters of all kinds.
std::string RandomText() {
  const auto character = rc::gen::map(
      rc::gen::oneOf(
          rc::gen::inRange<uint32_t>(0x20, 0x7F), rc::gen::inRange<uint32_t>(0xA0, 0x500),
          rc::gen::inRange<uint32_t>(0x2000, 0x2600), rc::gen::inRange<uint32_t>(0x3000, 0xD800),
          rc::gen::inRange<uint32_t>(0xE000, 0x110000),
          rc::gen::elementOf(std::vector<uint32_t>{'\n', '\t', 0x2581, 0x301})),
      [](uint32_t point) {
        std::string text;
        AppendUtf8(point, &text);
        return text;
      });
  const auto word = rc::gen::elementOf(std::vector<std::string>{
      " ",   "  ",  "    ", "the", " the",   "cache",  " token",   "tokens of ",
      "ing", "123", " 4",   "▁",   "<0x41>", "<user>", "return x", "é",
      "The", "½ x", "Ⅷ",    "ﬁ",   "①",      "\u3000", "\u200b"});
  std::string text;
  for (const std::string& part :
       *rc::gen::container<std::vector<std::string>>(rc::gen::oneOf(character, word, word))) {
    text += part;
  }
  return text;
}

void Compare(const std::string& name, const std::string& bytes) {
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(bytes).ok()) << name;
  const TempFolder folder;
  const auto tokenizer = Tokenizer::Load(folder.Write("tokenizer.model", bytes));
  EXPECT_TRUE(rc::check(name, [&] {
    const std::string text = RandomText();
    std::vector<int> expected;
    RC_ASSERT(library.Encode(text, &expected).ok());
    RC_ASSERT(tokenizer->Encode(text) == expected);
    std::string decoded;
    RC_ASSERT(library.Decode(expected, &decoded).ok());
    RC_ASSERT(tokenizer->Decode(expected) == decoded);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const int32_t id : expected) streamed += stream.Push(id);
    RC_ASSERT(streamed + stream.Finish() == decoded);
    // Bytes that are no UTF-8.
    const auto bytes_of = *rc::gen::container<std::vector<int>>(rc::gen::inRange(3, 259));
    RC_ASSERT(library.Decode(bytes_of, &decoded).ok());
    RC_ASSERT(tokenizer->Decode(bytes_of) == decoded);
  }));
}

TEST(SentencePieceOracle, RandomTextsArePiecesOfThePublishedVocabulary) {
  Compare("mistral-v1", ReadFile(testing_support::MistralPath("tokenizer.model")));
}

class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::string& text) : text_(text) { Next(); }
  bool done() const override { return done_; }
  void Next() override {
    done_ = at_ >= text_.size();
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    line_ = done_ ? "" : text_.substr(at_, end - at_);
    at_ = end + 1;
  }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::string& text_;
  size_t at_ = 0;
  std::string line_;
  bool done_ = false;
};

TEST(SentencePieceOracle, RandomTextsArePiecesOfTrainedVocabularies) {
  const std::string text = ReadFile(std::string(PMKVQ_SOURCE_DIR) + "/docs/architecture.md");
  const std::unordered_map<std::string, std::string> common = {
      {"model_type", "bpe"},        {"vocab_size", "900"},
      {"byte_fallback", "true"},    {"normalization_rule_name", "identity"},
      {"minloglevel", "2"},         {"character_coverage", "0.995"},
      {"hard_vocab_limit", "false"}};
  const std::unordered_map<std::string, std::unordered_map<std::string, std::string>> kinds = {
      {"spaces kept", {{"remove_extra_whitespaces", "false"}}},
      {"spaces trimmed", {{"remove_extra_whitespaces", "true"}}},
      {"no space in front", {{"remove_extra_whitespaces", "false"}, {"add_dummy_prefix", "false"}}},
      {"pieces of spaces",
       {{"remove_extra_whitespaces", "false"}, {"allow_whitespace_only_pieces", "true"}}},
      {"pieces across words",
       {{"remove_extra_whitespaces", "false"}, {"split_by_whitespace", "false"}}},
      {"characters by nmt_nfkc", {{"normalization_rule_name", "nmt_nfkc"}}},
      {"characters by nfkc_cf, user-defined pieces",
       {{"normalization_rule_name", "nfkc_cf"},
        {"remove_extra_whitespaces", "false"},
        {"user_defined_symbols", "Ⅷ,The,½ x"}}},
      {"user-defined pieces",
       {{"remove_extra_whitespaces", "false"}, {"user_defined_symbols", "▁▁,the,<user>,\t"}}},
  };
  for (const auto& [name, more] : kinds) {
    std::unordered_map<std::string, std::string> settings = common;
    for (const auto& [field, value] : more) settings[field] = value;
    Lines lines(text);
    std::string bytes;
    const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &bytes);
    ASSERT_TRUE(status.ok()) << name << ": " << status.ToString();
    Compare(name, bytes);
  }
}

}  // namespace
}  // namespace pmkvq

#else

TEST(SentencePieceOracle, RandomTexts) {
  GTEST_SKIP() << "built without the SentencePiece library (Debian package libsentencepiece-dev)";
}

#endif
