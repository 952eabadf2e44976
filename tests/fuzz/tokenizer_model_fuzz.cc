// Foreign tokenizer.model files, and foreign text and ids for a valid one. The input is a text of
// at most 255 bytes behind its length, then a tokenizer.model.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../support/sentencepiece_writer.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/sentencepiece_file.h"
#include "pmkvq/text/tokenizer.h"

namespace {

using pmkvq::Tokenizer;
using pmkvq::TokenType;

std::shared_ptr<const Tokenizer> FromModel(std::string_view bytes, bool as_gguf) {
  const std::string source = "fuzz";
  const pmkvq::SentencePieceFile file(bytes, source);
  pmkvq::TokenizerData data = file.data();
  data.cuts_user_defined = as_gguf;
  return Tokenizer::FromData(data, source);
}

std::shared_ptr<const Tokenizer> ValidTokenizer() {
  pmkvq::testing_support::SmallSentencePiece model;
  model.Piece("▁a", -1).Piece("ab", -2).Piece("▁", -3).Piece("a", -4).Piece("b", -4);
  model.Piece("bb", -2.5f, TokenType::kUnused).Piece("▁▁", 0, TokenType::kUserDefined);
  model.Piece("a▁b", -0.5f);
  return FromModel(model.Bytes(), false);
}

bool IsUtf8(std::string_view text) { return pmkvq::ValidUtf8Prefix(text) == text.size(); }

std::string Stream(const std::shared_ptr<const Tokenizer>& tokenizer,
                   const std::vector<int32_t>& ids) {
  pmkvq::StreamDecoder stream(tokenizer, false);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.Push(id);
  return streamed + stream.Finish();
}

// Decoding is defined for all ids, and is what streaming gives.
void Decode(const std::shared_ptr<const Tokenizer>& tokenizer, const std::vector<int32_t>& ids) {
  const std::string decoded = tokenizer->Decode(ids);
  if (!IsUtf8(decoded) || Stream(tokenizer, ids) != decoded) std::abort();
}

void Use(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  for (const char byte : text) {
    ids.push_back(static_cast<unsigned char>(byte) % tokenizer->vocab_size());
  }
  Decode(tokenizer, ids);
  for (const bool parse_special : {true, false})
    Decode(tokenizer, tokenizer->Encode(text, parse_special));
}

template <class Action>
void AllowErrors(Action action) {
  try {
    action();
  } catch (const pmkvq::Error&) {
    // Refused input is what the library promises; anything else is a finding.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::shared_ptr<const Tokenizer> valid = ValidTokenizer();
  if (size == 0) return 0;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t length = std::min<size_t>(data[0], size - 1);
  const std::string_view text = input.substr(1, length);
  const std::string_view model = input.substr(1 + length);
  AllowErrors([&] { Use(valid, text); });
  for (const bool as_gguf : {false, true}) {
    AllowErrors([&] { Use(FromModel(model, as_gguf), text); });
  }
  return 0;
}
