#include "pmkvq/text/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/text/jinja/expression_parser.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/token_stream.h"

namespace pmkvq::jinja {
namespace {

using Body = std::vector<Statement*>;
using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& source, const Limits& limits)
      : tokens_(std::move(tokens), source, limits), expressions_(tokens_) {}

  Tree Run() {
    Body body = ParseBody({});
    CheckCalls();
    Tree tree = tokens_.TakeTree();
    tree.body = std::move(body);
    return tree;
  }

 private:
  // Statements up to a block that begins with one of `ends`, whose name is left for the caller; up
  // to the end of the template without ends.
  Body ParseBody(Names ends) {
    const TokenStream::Nesting nesting(tokens_);
    Body body;
    while (!tokens_.Is(TokenKind::kEnd)) {
      const int line = tokens_.line();
      if (tokens_.Is(TokenKind::kData)) {
        body.push_back(tokens_.NewStatement(Statement::Kind::kText, line));
        body.back()->text = ConstantString(tokens_.Next().text);
      } else if (tokens_.Is(TokenKind::kPrintBegin)) {
        tokens_.Next();
        body.push_back(tokens_.NewStatement(Statement::Kind::kPrint, line));
        body.back()->expression = expressions_.ParseTuple();
        tokens_.Expect(TokenKind::kPrintEnd);
      } else {
        tokens_.Expect(TokenKind::kBlockBegin);
        if (AtName(ends)) return body;
        if (Statement* statement = ParseStatement()) body.push_back(statement);
        tokens_.Expect(TokenKind::kBlockEnd);
      }
    }
    if (ends.size() > 0) tokens_.FailExpected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
    return body;
  }

  // The same for the body behind the head of a block.
  Body ParseBlock(Names ends) {
    tokens_.SkipOperator(":");
    tokens_.Expect(TokenKind::kBlockEnd);
    return ParseBody(ends);
  }

  bool AtName(Names names) const {
    return std::any_of(names.begin(), names.end(),
                       [&](std::string_view name) { return tokens_.IsName(name); });
  }

  // Null for statements without effect.
  Statement* ParseStatement() {
    const int line = tokens_.line();
    const std::string name = tokens_.ExpectIdentifier();
    if (name == "if") return ParseIf(line);
    if (name == "for") return ParseFor(line);
    if (name == "set") return ParseSet(line);
    if (name == "macro") return ParseMacro(line);
    if (name == "call") return ParseCall(line);
    if (name == "filter") return ParseFilter(line);
    if (name == "with") return ParseWith(line);
    if (name == "print") return ParsePrint(line);
    if (name == "break" || name == "continue") return ParseJump(name, line);
    if (name == "generation") {
      // Marks the text of the assistant for training; the text itself does not change.
      Statement* node = tokens_.NewStatement(Statement::Kind::kScope, line);
      node->body = ParseBlock({"endgeneration"});
      tokens_.Next();
      return node;
    }
    if (name.starts_with("end") || name == "else" || name == "elif") {
      tokens_.Fail(line, fmt::format("found {{% {} %}} that belongs to no block", name));
    }
    tokens_.Refuse(line, fmt::format("the statement \"{}\"", name));
  }

  Statement* ParseIf(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kIf, line);
    while (true) {
      Expression* test = expressions_.ParseTuple(false);
      node->branches.push_back({test, ParseBlock({"elif", "else", "endif"})});
      if (tokens_.SkipName("elif")) continue;
      if (tokens_.SkipName("else")) node->else_body = ParseBlock({"endif"});
      tokens_.ExpectName("endif");
      return node;
    }
  }

  Statement* ParseFor(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kFor, line);
    node->target = expressions_.ParseTarget(false, true);
    tokens_.ExpectName("in");
    node->expression = expressions_.ParseTuple(false);
    if (tokens_.SkipName("if")) node->test = expressions_.Parse();
    if (tokens_.IsName("recursive")) tokens_.Refuse(line, "the recursive \"for\"");
    ++loop_depth_;
    node->body = ParseBlock({"else", "endfor"});
    --loop_depth_;
    if (tokens_.SkipName("else")) node->else_body = ParseBlock({"endfor"});
    tokens_.ExpectName("endfor");
    return node;
  }

  Statement* ParseSet(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kSet, line);
    node->target = expressions_.ParseTarget(true, false);
    CollectAttributes(node->target);
    if (tokens_.SkipOperator("=")) {
      node->expression = expressions_.ParseTuple();
      return node;
    }
    node->kind = Statement::Kind::kSetBlock;
    node->filter = expressions_.ParseFilters(nullptr);
    node->body = ParseBlock({"endset"});
    tokens_.Next();
    return node;
  }

  void CollectAttributes(const Target& target) {
    if (!target.attribute.empty()) attributes_.insert(target.attribute);
    for (const Target& part : target.parts) CollectAttributes(part);
  }

  void ParseParameters(Statement* node) {
    tokens_.ExpectOperator("(");
    while (!tokens_.IsOperator(")")) {
      if (!node->parameters.empty()) tokens_.ExpectOperator(",");
      const int line = tokens_.line();
      Statement::Parameter parameter{tokens_.Symbol(tokens_.ExpectIdentifier()), nullptr};
      if (tokens_.SkipOperator("=")) {
        parameter.otherwise = expressions_.Parse();
      } else if (!node->parameters.empty() && node->parameters.back().otherwise != nullptr) {
        tokens_.Fail(line, "found a parameter without default behind one with, expected a default");
      }
      node->parameters.push_back(parameter);
    }
    tokens_.ExpectOperator(")");
  }

  // The body of a macro, or of the caller of a call block. Breaks do not reach out of it.
  void ParseMacroBody(Statement* node, std::string_view end) {
    const size_t first = tokens_.tree().expressions.size();
    const int outer_depth = std::exchange(loop_depth_, 0);
    node->body = ParseBlock({end});
    loop_depth_ = outer_depth;
    tokens_.Next();
    for (size_t i = first; i < tokens_.tree().expressions.size(); ++i) {
      const Expression& use = *tokens_.tree().expressions[i];
      if (use.kind != Expression::Kind::kName) continue;
      node->uses_caller = node->uses_caller || use.name == "caller";
      node->uses_varargs = node->uses_varargs || use.name == "varargs";
      node->uses_kwargs = node->uses_kwargs || use.name == "kwargs";
    }
  }

  Statement* ParseMacro(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kMacro, line);
    node->symbol = tokens_.Symbol(tokens_.ExpectIdentifier());
    ParseParameters(node);
    ParseMacroBody(node, "endmacro");
    return node;
  }

  Statement* ParseCall(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kCall, line);
    if (tokens_.IsOperator("(")) ParseParameters(node);
    node->expression = expressions_.Parse();
    if (node->expression->kind != Expression::Kind::kCall) {
      tokens_.Fail(line, "found no call behind \"call\", expected a macro and its arguments");
    }
    ParseMacroBody(node, "endcall");
    return node;
  }

  Statement* ParseFilter(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kFilter, line);
    node->filter = expressions_.ParseFilters(nullptr, true);
    node->body = ParseBlock({"endfilter"});
    tokens_.Next();
    return node;
  }

  Statement* ParseWith(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kWith, line);
    while (!tokens_.Is(TokenKind::kBlockEnd)) {
      if (!node->targets.empty()) tokens_.ExpectOperator(",");
      node->targets.push_back(expressions_.ParseTarget(false, false));
      tokens_.ExpectOperator("=");
      node->expressions.push_back(expressions_.Parse());
    }
    node->body = ParseBlock({"endwith"});
    tokens_.Next();
    return node;
  }

  Statement* ParsePrint(int line) {
    Statement* node = tokens_.NewStatement(Statement::Kind::kPrint, line);
    node->expression = expressions_.ParseTuple();
    if (node->expression->kind == Expression::Kind::kTuple) {
      tokens_.Refuse(line, "\"print\" of several values");
    }
    return node;
  }

  Statement* ParseJump(const std::string& name, int line) {
    if (loop_depth_ == 0) {
      tokens_.Fail(line, fmt::format("found \"{}\" outside of a loop, expected it inside", name));
    }
    return tokens_.NewStatement(
        name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue, line);
  }

  // Calls of functions and methods that nothing in the template can be. What a template tests with
  // "is defined" before it calls it is left to the rendering.
  void CheckCalls() {
    const Tree& tree = tokens_.tree();
    std::set<std::string> assigned = {"caller", "loop"};
    const auto assign = [&](int symbol) {
      if (symbol >= 0) assigned.insert(tree.symbols[static_cast<size_t>(symbol)]);
    };
    for (const auto& statement : tree.statements) {
      assign(statement->symbol);
      AssignTarget(statement->target, assign);
      for (const Target& target : statement->targets) AssignTarget(target, assign);
      for (const Statement::Parameter& parameter : statement->parameters) assign(parameter.symbol);
    }
    for (const auto& use : tree.expressions) {
      if (use->kind == Expression::Kind::kTest && use->operands[0] != nullptr &&
          use->operands[0]->kind == Expression::Kind::kName) {
        assigned.insert(use->operands[0]->name);
      }
      for (const auto& [name, value] : use->named) attributes_.insert(name);
    }
    for (const auto& call : tree.expressions) {
      if (call->kind != Expression::Kind::kCall) continue;
      const Expression& callee = *call->operands[0];
      if (callee.kind == Expression::Kind::kName && !assigned.contains(callee.name) &&
          FindFunction(callee.name) == nullptr) {
        tokens_.Refuse(callee.line, fmt::format("the function \"{}\"", callee.name));
      }
      if (callee.kind == Expression::Kind::kAttribute && !IsKnownMethod(callee.name) &&
          !attributes_.contains(callee.name)) {
        tokens_.Refuse(callee.line, fmt::format("the method \"{}\"", callee.name));
      }
    }
  }

  template <class Assign>
  void AssignTarget(const Target& target, const Assign& assign) {
    if (target.attribute.empty()) assign(target.symbol);
    for (const Target& part : target.parts) AssignTarget(part, assign);
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int loop_depth_ = 0;
  std::set<std::string> attributes_;  // Names of members that the template gives to namespaces.
};

}  // namespace

int Tree::FindSymbol(std::string_view name) const {
  const auto found = std::find(symbols.begin(), symbols.end(), name);
  return found == symbols.end() ? -1 : static_cast<int>(found - symbols.begin());
}

Tree ParseTree(std::string_view text, const std::string& source, const Limits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_source_bytes) {
    throw InvalidInput(source, fmt::format("the template has {} bytes, expected at most {}",
                                           text.size(), limits.max_source_bytes));
  }
  return Parser(Tokenize(text, source), source, limits).Run();
}

}  // namespace pmkvq::jinja
