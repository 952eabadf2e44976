// Unicode regular expressions over PCRE2 (compiled to machine code where the system allows it).
// Internal to text/.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// Bytes [begin, end) of a text.
struct Span {
  size_t begin;
  size_t end;
};

// Immutable; may be used from several threads.
//
// Patterns of Hugging Face tokenizers are written for Oniguruma. Where the same escape means
// another set in PCRE2 it is translated (\s, \S) or refused (\w, \b, \h, ...); ^ and $ match at
// line ends, as there.
class Regex {
 public:
  enum class Syntax { kPattern, kLiteral };

  // `where` names the pattern in errors. Throws InvalidInput for a syntax error and Unsupported for
  // an escape as above.
  Regex(std::string_view pattern, Syntax syntax, const std::string& where);
  ~Regex();
  Regex(Regex&& other) noexcept;
  Regex& operator=(Regex&& other) noexcept;

  // All matches in `text` (valid UTF-8) from left to right, not overlapping; an empty match right
  // after the previous match does not count. Throws InvalidInput when the pattern needs more
  // backtracking than the limits allow.
  std::vector<Span> FindAll(std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace pmkvq
