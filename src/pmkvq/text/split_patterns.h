// The split patterns of byte-level vocabularies that GGUF calls by name (tokenizer.ggml.pre).
// Internal to text/.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

struct SplitPatterns {
  std::vector<std::string_view> patterns;  // In turn; the matches of each are pieces.
  bool ignores_merges = false;             // A piece that is a token is that token.
  bool adds_bos = false;                   // Where the file does not say.
  bool nfc = false;                        // The text is normalised first, which GGUF does not say.
};

// Those of the models' own tokenizer.json. Null for an unknown name.
const SplitPatterns* FindSplitPatterns(std::string_view name);
// All names, for an error.
std::string SplitPatternNames();

}  // namespace pmkvq
