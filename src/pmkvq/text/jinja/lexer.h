// Jinja's tokens, with the white space rules that transformers sets for chat templates: trim_blocks
// and lstrip_blocks are on, and one line break at the end of the template is dropped. Internal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq::jinja {

enum class TokenKind : uint8_t {
  kData,        // Text between tags; `text`.
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kName,
  kString,  // `text` without quotes and escapes.
  kInteger,
  kFloat,
  kOperator,  // `text` is one of + - / // * % ** ~ [ ] ( ) { } == != > >= < <= = . : | , ;
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
  int64_t integer = 0;
  double number = 0;

  bool IsOperator(std::string_view op) const { return kind == TokenKind::kOperator && text == op; }
  bool IsName(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// The tokens of a template, kEnd at the end. `source` names it in errors.
// Throws InvalidInput with the line where the text is not valid Jinja.
std::vector<Token> Tokenize(std::string_view text, const std::string& source);

}  // namespace pmkvq::jinja
