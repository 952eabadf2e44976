#include "pmkvq/text/jinja/token_stream.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/text/jinja/unicode.h"

namespace pmkvq::jinja {

std::string Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData:
      return "text";
    case TokenKind::kPrintBegin:
      return "{{";
    case TokenKind::kPrintEnd:
      return "}}";
    case TokenKind::kBlockBegin:
      return "{%";
    case TokenKind::kBlockEnd:
      return "%}";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return fmt::format("\"{}\"", token.text.substr(0, 40));
  }
}

Value ConstantString(std::string text) {
  auto string = std::make_shared<String>();
  string->text.text = std::move(text);
  return {Kind::kString, std::move(string)};
}

const Token& TokenStream::Next() {
  const Token& token = tokens_[at_];
  if (token.kind != TokenKind::kEnd) ++at_;
  return token;
}

bool TokenStream::SkipOperator(std::string_view op) {
  if (!IsOperator(op)) return false;
  Next();
  return true;
}

bool TokenStream::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

void TokenStream::ExpectOperator(std::string_view op) {
  if (!SkipOperator(op)) FailExpected(fmt::format("\"{}\"", op));
}

void TokenStream::ExpectName(std::string_view name) {
  if (!SkipName(name)) FailExpected(fmt::format("\"{}\"", name));
}

void TokenStream::Expect(TokenKind kind) {
  if (!Is(kind)) FailExpected(Describe({kind, 0, "", 0, 0}));
  Next();
}

std::string TokenStream::ExpectIdentifier() {
  if (!Is(TokenKind::kName)) FailExpected("a name");
  return Next().text;
}

void TokenStream::FailExpected(std::string_view expected) const {
  Fail(line(), fmt::format("found {}, expected {}", Describe(current()), expected));
}

void TokenStream::Fail(int line, const std::string& message) const {
  throw InvalidInput(source_, fmt::format("line {}: {}", line, OneLine(message, 300)));
}

void TokenStream::Refuse(int line, const std::string& construct) const {
  throw Unsupported(source_, fmt::format("line {}: {} is not supported; choose another "
                                         "template with --chat-template",
                                         line, OneLine(construct, 100)));
}

int TokenStream::Symbol(const std::string& name) {
  const auto [found, is_new] = symbols_.emplace(name, static_cast<int>(tree_.symbols.size()));
  if (is_new) tree_.symbols.push_back(name);
  return found->second;
}

Expression* TokenStream::NewExpression(Expression::Kind kind, int line) {
  tree_.expressions.push_back(std::make_unique<Expression>());
  tree_.expressions.back()->kind = kind;
  tree_.expressions.back()->line = line;
  return tree_.expressions.back().get();
}

Statement* TokenStream::NewStatement(Statement::Kind kind, int line) {
  tree_.statements.push_back(std::make_unique<Statement>());
  tree_.statements.back()->kind = kind;
  tree_.statements.back()->line = line;
  return tree_.statements.back().get();
}

TokenStream::Nesting::Nesting(TokenStream& stream) : stream_(stream) {
  if (++stream_.nesting_ > stream_.limits_.max_nesting) {
    stream_.Fail(stream_.line(), fmt::format("expressions and blocks are nested more than {} deep",
                                             stream_.limits_.max_nesting));
  }
}

}  // namespace pmkvq::jinja
