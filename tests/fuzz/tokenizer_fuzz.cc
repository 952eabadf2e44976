// Foreign tokenizer.json files, and foreign text and ids for a valid one. The input is a
// tokenizer.json, then optionally a zero byte and a text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../support/small_tokenizer.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/tokenizer.h"

namespace {

using pmkvq::Tokenizer;

std::shared_ptr<const Tokenizer> ValidTokenizer() {
  pmkvq::testing_support::SmallTokenizer parts;
  parts.tokens = {"ab", "abab", "Ġab", "bb", "ĠĠ"};
  parts.merges = R"(["a b","ab ab","Ġ ab","b b",["Ġ","Ġ"]])";
  parts.added_tokens =
      R"([{"id":261,"content":"<s>","special":true,"lstrip":true},
          {"id":262,"content":"<t>","rstrip":true,"single_word":true},
          {"id":263,"content":"ba"}])";
  parts.pre_tokenizer =
      R"json({"type":"Sequence","pretokenizers":[
          {"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|\\s+(?!\\S)|[^\\r\\n\\p{L}]?\\p{L}+"},
           "behavior":"Isolated"},
          {"type":"Split","pattern":{"String":"\u00e9"},"behavior":"MergedWithNext","invert":true},
          {"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]})json";
  return Tokenizer::Parse(parts.Json(), "valid");
}

bool IsUtf8(std::string_view text) { return pmkvq::ValidUtf8Prefix(text) == text.size(); }

// Everything that can be done with a tokenizer and a text. Ids of a text must be known to it.
void Use(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view text) {
  for (const bool parse_special : {true, false}) {
    const std::vector<int32_t> ids = tokenizer->Encode(text, parse_special);
    const std::string decoded = tokenizer->Decode(ids);
    pmkvq::StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.Push(id);
    streamed += stream.Finish();
    // With byte fallback, Decode gives up a whole run of bytes that are no UTF-8.
    const bool valid = IsUtf8(decoded) && decoded.find("\uFFFD") == std::string::npos;
    if (valid && streamed != decoded) std::abort();
    if (!IsUtf8(streamed)) std::abort();
  }
}

// Bytes as ids: StreamDecoder must give valid UTF-8 for any of them.
void StreamBytes(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view bytes) {
  pmkvq::StreamDecoder stream(tokenizer);
  for (const char byte : bytes) {
    const std::string step = stream.Push(static_cast<unsigned char>(byte));
    if (!IsUtf8(step)) std::abort();
  }
  if (!IsUtf8(stream.Finish())) std::abort();
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
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view json = input.substr(0, zero);
  const std::string_view text = zero == std::string_view::npos ? json : input.substr(zero + 1);
  AllowErrors([&] { Use(valid, text); });
  AllowErrors([&] { StreamBytes(valid, text); });
  AllowErrors([&] { Use(Tokenizer::Parse(json, "fuzz"), text); });
  return 0;
}
