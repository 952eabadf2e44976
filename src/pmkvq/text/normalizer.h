// Unicode normalisation. Internal to text/.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/io/json.h"

namespace pmkvq {

// `text` (valid UTF-8) in Unicode normalisation form C. O(n log n) for every text.
std::string Nfc(std::string_view text);

// The "normalizer" of a tokenizer.json: null, NFC, or a Sequence of those.
class Normalizer {
 public:
  // `json` may be a null value. Throws Unsupported naming any other type.
  explicit Normalizer(const JsonValue& json);
  std::string Normalize(std::string_view text) const;

 private:
  void Add(const JsonValue& json);
  bool nfc_ = false;
};

}  // namespace pmkvq
