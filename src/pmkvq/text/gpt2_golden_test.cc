// GPT-2's vocabulary, the split pattern that many byte-level vocabularies have, in both carriers.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "pmkvq/text/byte_alphabet.h"
#include "support/gguf_writer.h"
#include "support/temp_folder.h"
#include "support/tokenizer_vectors.h"

namespace pmkvq {
namespace {

using testing_support::ExpectTokenizerVectors;
using testing_support::GgufWriter;
using testing_support::LoadTokenizerVectors;
using testing_support::SplitAt;
using testing_support::TempFolder;

constexpr char kEndOfText[] = "<|endoftext|>";

struct Gpt2Vocabulary {
  std::vector<std::string> tokens;  // By id.
  std::vector<std::string> merges;
};

// Ids are: the bytes, printable ones first, then what each merge makes, then <|endoftext|>.
Gpt2Vocabulary LoadVocabulary() {
  Gpt2Vocabulary vocabulary;
  vocabulary.merges =
      SplitAt(ReadFile(PMKVQ_SOURCE_DIR "/tests/golden/tokenizers/gpt-2/merges.txt"), "\n");
  vocabulary.merges.pop_back();
  for (const bool printable : {true, false}) {
    for (int byte = 0; byte < 256; ++byte) {
      const char character = static_cast<char>(byte);
      const bool stands_for_itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      if (stands_for_itself == printable) {
        vocabulary.tokens.push_back(BytesToAlphabet({&character, 1}));
      }
    }
  }
  for (const std::string& merge : vocabulary.merges) {
    const size_t space = merge.find(' ');
    vocabulary.tokens.push_back(merge.substr(0, space) + merge.substr(space + 1));
  }
  vocabulary.tokens.push_back(kEndOfText);
  return vocabulary;
}

std::string GgufOf(const Gpt2Vocabulary& vocabulary) {
  std::vector<int32_t> types(vocabulary.tokens.size(), 1);
  types.back() = 3;
  const auto end = static_cast<uint32_t>(vocabulary.tokens.size() - 1);
  GgufWriter writer;
  writer.Text("general.architecture", "gpt2").Text("tokenizer.ggml.model", "gpt2");
  writer.Text("tokenizer.ggml.pre", "gpt-2").Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  writer.Array("tokenizer.ggml.token_type", GgufType::kI32, types);
  writer.Texts("tokenizer.ggml.merges", vocabulary.merges);
  writer.U32("tokenizer.ggml.bos_token_id", end).U32("tokenizer.ggml.eos_token_id", end);
  return writer.Bytes();
}

std::string JsonOf(const Gpt2Vocabulary& vocabulary) {
  JsonWriter json;
  json.BeginObject();
  json.Key("version").String("1.0");
  const auto end = static_cast<int64_t>(vocabulary.tokens.size() - 1);
  json.Key("added_tokens").BeginArray().BeginObject();
  json.Key("id").Int(end).Key("content").String(kEndOfText).Key("special").Bool(true);
  for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) {
    json.Key(flag).Bool(false);
  }
  json.EndObject().EndArray();
  for (const char* part : {"pre_tokenizer", "decoder"}) {
    json.Key(part).BeginObject().Key("type").String("ByteLevel");
    json.Key("add_prefix_space").Bool(false).Key("trim_offsets").Bool(true);
    json.EndObject();
  }
  json.Key("model").BeginObject().Key("type").String("BPE");
  json.Key("vocab").BeginObject();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    json.Key(vocabulary.tokens[id]).Int(static_cast<int64_t>(id));
  }
  json.EndObject().Key("merges").BeginArray();
  for (const std::string& merge : vocabulary.merges) json.String(merge);
  json.EndArray().EndObject().EndObject();
  return json.text();
}

TEST(Gpt2Golden, PublishedVectorsAreExactInEveryCarrier) {
  const Gpt2Vocabulary vocabulary = LoadVocabulary();
  ASSERT_EQ(vocabulary.tokens.size(), 50257u);
  const TempFolder folder;
  const auto vectors = LoadTokenizerVectors("vectors.inp", "gpt-2/vectors.out");
  for (const std::string& path : {folder.Write("vocab.gguf", GgufOf(vocabulary)),
                                  folder.Write("tokenizer.json", JsonOf(vocabulary))}) {
    const auto tokenizer = Tokenizer::Load(path);
    ExpectTokenizerVectors(tokenizer, vectors, path);
    EXPECT_TRUE(tokenizer->prefix_ids().empty()) << path;
    EXPECT_EQ(tokenizer->Encode("a<|endoftext|>"), (std::vector<int32_t>{64, 50256})) << path;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a<|endoftext|>", false)), "a<|endoftext|>");
  }
}

}  // namespace
}  // namespace pmkvq
