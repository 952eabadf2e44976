// The part of the parser that both of its halves share: tokens, errors, and nodes. Internal.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pmkvq/text/jinja/ast.h"
#include "pmkvq/text/jinja/lexer.h"
#include "pmkvq/text/jinja/limits.h"

namespace pmkvq::jinja {

class TokenStream {
 public:
  TokenStream(std::vector<Token> tokens, const std::string& source, const Limits& limits)
      : tokens_(std::move(tokens)), source_(source), limits_(limits) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& following() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  const Token& Next();

  bool IsOperator(std::string_view op) const { return current().IsOperator(op); }
  bool IsName(std::string_view name) const { return current().IsName(name); }
  bool Is(TokenKind kind) const { return current().kind == kind; }
  bool SkipOperator(std::string_view op);
  bool SkipName(std::string_view name);
  void ExpectOperator(std::string_view op);
  void ExpectName(std::string_view name);
  void Expect(TokenKind kind);
  std::string ExpectIdentifier();

  // InvalidInput: "found <the present token>, expected ..."; and with another text and line.
  [[noreturn]] void FailExpected(std::string_view expected) const;
  [[noreturn]] void Fail(int line, const std::string& message) const;
  // Unsupported: "<construct> is not supported".
  [[noreturn]] void Refuse(int line, const std::string& construct) const;

  int Symbol(const std::string& name);
  Expression* NewExpression(Expression::Kind kind, int line);
  Statement* NewStatement(Statement::Kind kind, int line);
  Tree TakeTree() { return std::move(tree_); }
  const Tree& tree() const { return tree_; }

  // One level deeper for as long as it lives.
  class Nesting {
   public:
    explicit Nesting(TokenStream& stream);
    ~Nesting() { --stream_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    TokenStream& stream_;
  };

 private:
  std::vector<Token> tokens_;
  const std::string& source_;
  const Limits& limits_;
  size_t at_ = 0;
  int nesting_ = 0;
  Tree tree_;
  std::unordered_map<std::string, int> symbols_;
};

// What a token is called in errors: "the end of the template", "\"endif\"", ...
std::string Describe(const Token& token);

// A string that no rendering pays for: constants of the template.
Value ConstantString(std::string text);

}  // namespace pmkvq::jinja
