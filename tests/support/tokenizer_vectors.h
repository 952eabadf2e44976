// The published test vectors of tests/golden/tokenizers: 46 texts and the ids of a vocabulary.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/file.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::testing_support {

inline std::vector<std::string> SplitAt(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at = text.find(separator); at != std::string::npos;
       at = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, at - begin));
    begin = at + separator.size();
  }
  parts.push_back(text.substr(begin));
  return parts;
}

struct TokenizerVector {
  std::string text;
  std::vector<int32_t> ids;  // Without BOS.
};

// Texts of `inputs`, ids of `outputs`, files below tests/golden/tokenizers.
inline std::vector<TokenizerVector> LoadTokenizerVectors(const std::string& inputs,
                                                         const std::string& outputs) {
  const std::string folder = PMKVQ_SOURCE_DIR "/tests/golden/tokenizers/";
  std::vector<std::string> texts = SplitAt(ReadFile(folder + inputs), "\n__ggml_vocab_test__\n");
  std::vector<std::string> lines = SplitAt(ReadFile(folder + outputs), "\n");
  if (texts.back().empty()) texts.pop_back();
  if (lines.back().empty()) lines.pop_back();
  EXPECT_EQ(texts.size(), 46u) << inputs;
  EXPECT_EQ(lines.size(), texts.size()) << outputs;
  std::vector<TokenizerVector> vectors;
  for (size_t i = 0; i < texts.size() && i < lines.size(); ++i) {
    vectors.push_back({texts[i], {}});
    for (const std::string& word : SplitAt(lines[i], " ")) {
      if (!word.empty()) vectors.back().ids.push_back(std::stoi(word));
    }
  }
  return vectors;
}

inline std::string StreamOf(const std::shared_ptr<const Tokenizer>& tokenizer,
                            const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

// Encoding, decoding and streaming are exact. `normalize` is what the tokenizer does to a text
// before it cuts it.
template <class Normalize>
void ExpectTokenizerVectors(const std::shared_ptr<const Tokenizer>& tokenizer,
                            const std::vector<TokenizerVector>& vectors, const std::string& carrier,
                            Normalize normalize) {
  for (const auto& [text, ids] : vectors) {
    EXPECT_EQ(tokenizer->Encode(text, false), ids) << carrier << ": " << text;
    EXPECT_EQ(tokenizer->Decode(ids), normalize(text)) << carrier;
    EXPECT_EQ(StreamOf(tokenizer, ids), normalize(text)) << carrier;
  }
}

inline void ExpectTokenizerVectors(const std::shared_ptr<const Tokenizer>& tokenizer,
                                   const std::vector<TokenizerVector>& vectors,
                                   const std::string& carrier) {
  ExpectTokenizerVectors(tokenizer, vectors, carrier, [](const std::string& text) { return text; });
}

}  // namespace pmkvq::testing_support
