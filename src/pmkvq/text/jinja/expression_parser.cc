#include "pmkvq/text/jinja/expression_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pmkvq/text/jinja/library.h"

namespace pmkvq::jinja {

using EKind = Expression::Kind;

Expression* ExpressionParser::Binary(EKind kind, char op, Expression* left, Expression* right) {
  Expression* node = tokens_.NewExpression(kind, left->line);
  node->op = op;
  node->operands = {left, right};
  return node;
}

Expression* ExpressionParser::Parse(bool with_if) {
  const TokenStream::Nesting nesting(tokens_);
  return with_if ? ParseIf() : ParseOr();
}

Expression* ExpressionParser::ParseIf() {
  Expression* value = ParseOr();
  while (tokens_.SkipName("if")) {
    Expression* node = tokens_.NewExpression(EKind::kIfElse, value->line);
    node->operands = {value, ParseOr(), nullptr};
    if (tokens_.SkipName("else")) node->operands[2] = Parse();
    value = node;
  }
  return value;
}

Expression* ExpressionParser::ParseOr() {
  Expression* left = ParseAnd();
  while (tokens_.SkipName("or")) left = Binary(EKind::kOr, 0, left, ParseAnd());
  return left;
}

Expression* ExpressionParser::ParseAnd() {
  Expression* left = ParseNot();
  while (tokens_.SkipName("and")) left = Binary(EKind::kAnd, 0, left, ParseNot());
  return left;
}

Expression* ExpressionParser::ParseNot() {
  if (!tokens_.IsName("not")) return ParseCompare();
  const TokenStream::Nesting nesting(tokens_);
  Expression* node = tokens_.NewExpression(EKind::kNot, tokens_.line());
  tokens_.Next();
  node->operands = {ParseNot()};
  return node;
}

Expression* ExpressionParser::ParseCompare() {
  using Comparison = Expression::Comparison;
  static constexpr std::pair<std::string_view, Comparison> kOperators[] = {
      {"==", Comparison::kEq}, {"!=", Comparison::kNe}, {"<", Comparison::kLt},
      {"<=", Comparison::kLe}, {">", Comparison::kGt},  {">=", Comparison::kGe},
  };
  Expression* first = ParseSum();
  Expression* node = nullptr;
  const auto add = [&](Comparison op) {
    if (node == nullptr) {
      node = tokens_.NewExpression(EKind::kCompare, first->line);
      node->operands = {first};
    }
    node->ops.push_back(op);
    node->operands.push_back(ParseSum());
  };
  while (true) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const auto& op) { return tokens_.IsOperator(op.first); });
    if (found != std::end(kOperators)) {
      tokens_.Next();
      add(found->second);
    } else if (tokens_.SkipName("in")) {
      add(Comparison::kIn);
    } else if (tokens_.IsName("not") && tokens_.following().IsName("in")) {
      tokens_.Next();
      tokens_.Next();
      add(Comparison::kNotIn);
    } else {
      return node == nullptr ? first : node;
    }
  }
}

Expression* ExpressionParser::ParseSum() {
  Expression* left = ParseConcat();
  while (tokens_.IsOperator("+") || tokens_.IsOperator("-")) {
    const char op = tokens_.Next().text.front();
    left = Binary(EKind::kArithmetic, op, left, ParseConcat());
  }
  return left;
}

Expression* ExpressionParser::ParseConcat() {
  Expression* first = ParseProduct();
  if (!tokens_.IsOperator("~")) return first;
  Expression* node = tokens_.NewExpression(EKind::kConcat, first->line);
  node->operands = {first};
  while (tokens_.SkipOperator("~")) node->operands.push_back(ParseProduct());
  return node;
}

Expression* ExpressionParser::ParseProduct() {
  Expression* left = ParsePower();
  while (true) {
    char op = 0;
    for (const std::string_view known : {"*", "/", "%"}) {
      if (tokens_.IsOperator(known)) op = known.front();
    }
    if (tokens_.IsOperator("//")) op = '\\';
    if (op == 0) return left;
    tokens_.Next();
    left = Binary(EKind::kArithmetic, op, left, ParsePower());
  }
}

Expression* ExpressionParser::ParsePower() {
  Expression* left = ParseUnary();
  while (tokens_.SkipOperator("**")) left = Binary(EKind::kArithmetic, '^', left, ParseUnary());
  return left;
}

Expression* ExpressionParser::ParseUnary(bool with_filter) {
  Expression* node = nullptr;
  if (tokens_.IsOperator("-") || tokens_.IsOperator("+")) {
    const TokenStream::Nesting nesting(tokens_);
    node = tokens_.NewExpression(tokens_.IsOperator("-") ? EKind::kNegative : EKind::kPositive,
                                 tokens_.line());
    tokens_.Next();
    node->operands = {ParseUnary(false)};
  } else {
    node = ParsePrimary();
  }
  node = ParsePostfix(node);
  if (!with_filter) return node;
  while (true) {
    if (tokens_.IsOperator("|")) {
      node = ParseFilters(node);
    } else if (tokens_.IsName("is")) {
      node = ParseTest(node);
    } else if (tokens_.IsOperator("(")) {
      node = ParseCall(node);
    } else {
      return node;
    }
  }
}

Expression* ExpressionParser::ParsePrimary() {
  const Token& token = tokens_.current();
  const auto constant = [&](Value value) {
    Expression* node = tokens_.NewExpression(EKind::kConstant, token.line);
    node->value = std::move(value);
    tokens_.Next();
    return node;
  };
  switch (token.kind) {
    case TokenKind::kName: {
      if (token.text == "true" || token.text == "True") return constant(Value::Bool(true));
      if (token.text == "false" || token.text == "False") return constant(Value::Bool(false));
      if (token.text == "none" || token.text == "None") return constant(Value::None());
      Expression* node = tokens_.NewExpression(EKind::kName, token.line);
      node->name = token.text;
      node->symbol = tokens_.Symbol(token.text);
      tokens_.Next();
      return node;
    }
    case TokenKind::kInteger:
      return constant(Value::Int(token.integer));
    case TokenKind::kFloat:
      return constant(Value::Float(token.number));
    case TokenKind::kString: {
      std::string text;
      Expression* node = tokens_.NewExpression(EKind::kConstant, token.line);
      while (tokens_.Is(TokenKind::kString)) text += tokens_.Next().text;
      node->value = ConstantString(std::move(text));
      return node;
    }
    default:
      if (token.IsOperator("(")) return ParseParenthesized();
      if (token.IsOperator("[")) return ParseList();
      if (token.IsOperator("{")) return ParseDict();
      tokens_.FailExpected("an expression");
  }
}

bool ExpressionParser::AtTupleEnd(bool ends_at_in) const {
  return tokens_.Is(TokenKind::kPrintEnd) || tokens_.Is(TokenKind::kBlockEnd) ||
         tokens_.IsOperator(")") || (ends_at_in && tokens_.IsName("in"));
}

Expression* ExpressionParser::ParseParenthesized() {
  const int line = tokens_.line();
  tokens_.ExpectOperator("(");
  Expression* node = nullptr;
  if (tokens_.IsOperator(")")) {
    node = tokens_.NewExpression(EKind::kTuple, line);
  } else {
    node = ParseTuple();
  }
  tokens_.ExpectOperator(")");
  return node;
}

Expression* ExpressionParser::ParseTuple(bool with_if) {
  const int line = tokens_.line();
  Expression* first = Parse(with_if);
  if (!tokens_.IsOperator(",")) return first;
  Expression* node = tokens_.NewExpression(EKind::kTuple, line);
  node->operands = {first};
  while (tokens_.SkipOperator(",") && !AtTupleEnd(false)) {
    node->operands.push_back(Parse(with_if));
  }
  return node;
}

Expression* ExpressionParser::ParseList() {
  Expression* node = tokens_.NewExpression(EKind::kList, tokens_.line());
  tokens_.ExpectOperator("[");
  while (!tokens_.IsOperator("]")) {
    if (!node->operands.empty()) {
      tokens_.ExpectOperator(",");
      if (tokens_.IsOperator("]")) break;
    }
    node->operands.push_back(Parse());
  }
  tokens_.ExpectOperator("]");
  return node;
}

Expression* ExpressionParser::ParseDict() {
  Expression* node = tokens_.NewExpression(EKind::kDict, tokens_.line());
  tokens_.ExpectOperator("{");
  while (!tokens_.IsOperator("}")) {
    if (!node->operands.empty()) {
      tokens_.ExpectOperator(",");
      if (tokens_.IsOperator("}")) break;
    }
    node->operands.push_back(Parse());
    tokens_.ExpectOperator(":");
    node->operands.push_back(Parse());
  }
  tokens_.ExpectOperator("}");
  return node;
}

Expression* ExpressionParser::ParsePostfix(Expression* value) {
  while (true) {
    if (tokens_.IsOperator(".") || tokens_.IsOperator("[")) {
      value = ParseSubscript(value);
    } else if (tokens_.IsOperator("(")) {
      value = ParseCall(value);
    } else {
      return value;
    }
  }
}

Expression* ExpressionParser::ParseSubscript(Expression* value) {
  const int line = tokens_.line();
  if (tokens_.SkipOperator(".")) {
    const Token& token = tokens_.current();
    if (token.kind == TokenKind::kName) {
      Expression* node = tokens_.NewExpression(EKind::kAttribute, line);
      node->operands = {value};
      node->name = token.text;
      tokens_.Next();
      return node;
    }
    if (token.kind != TokenKind::kInteger) tokens_.FailExpected("a name or a number behind \".\"");
    Expression* index = tokens_.NewExpression(EKind::kConstant, line);
    index->value = Value::Int(token.integer);
    tokens_.Next();
    return Binary(EKind::kItem, 0, value, index);
  }
  tokens_.ExpectOperator("[");
  Expression* parts[3] = {nullptr, nullptr, nullptr};
  size_t part = 0;
  bool is_slice = false;
  while (!tokens_.IsOperator("]")) {
    if (tokens_.IsOperator(",")) tokens_.Refuse(line, "an index of several parts");
    if (tokens_.SkipOperator(":")) {
      is_slice = true;
      if (++part > 2) tokens_.FailExpected("\"]\"");
      continue;
    }
    if (parts[part] != nullptr) tokens_.FailExpected("\"]\"");
    parts[part] = Parse();
  }
  tokens_.ExpectOperator("]");
  if (!is_slice) {
    if (parts[0] == nullptr) tokens_.Fail(line, "found \"[]\", expected an index");
    return Binary(EKind::kItem, 0, value, parts[0]);
  }
  Expression* node = tokens_.NewExpression(EKind::kSlice, line);
  node->operands = {value, parts[0], parts[1], parts[2]};
  return node;
}

Expression* ExpressionParser::ParseCall(Expression* callee) {
  Expression* node = tokens_.NewExpression(EKind::kCall, tokens_.line());
  node->operands = {callee};
  ParseArguments(node);
  return node;
}

void ExpressionParser::ParseArguments(Expression* call) {
  const int line = tokens_.line();
  tokens_.ExpectOperator("(");
  const auto ensure = [&](bool holds) {
    if (!holds) tokens_.Fail(line, "found arguments in a wrong order, expected plain ones first");
  };
  bool is_first = true;
  std::set<std::string> names;
  while (!tokens_.IsOperator(")")) {
    if (!is_first) {
      tokens_.ExpectOperator(",");
      if (tokens_.IsOperator(")")) break;
    }
    is_first = false;
    if (tokens_.SkipOperator("*")) {
      ensure(call->star == nullptr && call->star_star == nullptr);
      call->star = Parse();
    } else if (tokens_.SkipOperator("**")) {
      ensure(call->star_star == nullptr);
      call->star_star = Parse();
    } else if (tokens_.Is(TokenKind::kName) && tokens_.following().IsOperator("=")) {
      ensure(call->star_star == nullptr);
      std::string name = tokens_.Next().text;
      tokens_.Next();
      if (!names.insert(name).second) {
        tokens_.Fail(line, fmt::format("the argument \"{}\" stands twice", name));
      }
      call->named.emplace_back(std::move(name), Parse());
    } else {
      ensure(call->star == nullptr && call->star_star == nullptr && call->named.empty());
      call->positional.push_back(Parse());
    }
  }
  tokens_.ExpectOperator(")");
}

// Filters that take the name of a filter or a test: a name that stands in the template is checked
// with it.
void ExpressionParser::CheckNamedTest(const Expression& filter) const {
  size_t index = 0;
  if (filter.name == "selectattr" || filter.name == "rejectattr") {
    index = 1;
  } else if (filter.name != "select" && filter.name != "reject" && filter.name != "map") {
    return;
  }
  if (filter.positional.size() <= index) return;
  const Expression& name = *filter.positional[index];
  if (name.kind != EKind::kConstant || !name.value.IsString()) return;
  const std::string text(name.value.string().view());
  const bool is_known =
      filter.name == "map" ? FindFilter(text) != nullptr : FindTest(text) != nullptr;
  if (is_known) return;
  tokens_.Refuse(name.line,
                 fmt::format("the {} \"{}\"", filter.name == "map" ? "filter" : "test", text));
}

Expression* ExpressionParser::ParseFilters(Expression* value, bool starts_inline) {
  while (starts_inline || tokens_.SkipOperator("|")) {
    starts_inline = false;
    Expression* node = tokens_.NewExpression(EKind::kFilter, tokens_.line());
    node->operands = {value};
    node->name = tokens_.ExpectIdentifier();
    while (tokens_.SkipOperator(".")) node->name += "." + tokens_.ExpectIdentifier();
    node->filter = FindFilter(node->name);
    if (node->filter == nullptr) {
      tokens_.Refuse(node->line, fmt::format("the filter \"{}\"", node->name));
    }
    if (tokens_.IsOperator("(")) ParseArguments(node);
    CheckNamedTest(*node);
    value = node;
  }
  return value;
}

Expression* ExpressionParser::ParseTest(Expression* value) {
  const int line = tokens_.line();
  tokens_.ExpectName("is");
  const bool is_negated = tokens_.SkipName("not");
  Expression* node = tokens_.NewExpression(EKind::kTest, line);
  node->operands = {value};
  node->name = tokens_.ExpectIdentifier();
  while (tokens_.SkipOperator(".")) node->name += "." + tokens_.ExpectIdentifier();
  node->test = FindTest(node->name);
  if (node->test == nullptr) tokens_.Refuse(line, fmt::format("the test \"{}\"", node->name));
  const bool is_keyword = tokens_.IsName("else") || tokens_.IsName("or") || tokens_.IsName("and");
  const bool has_argument = tokens_.Is(TokenKind::kString) || tokens_.Is(TokenKind::kInteger) ||
                            tokens_.Is(TokenKind::kFloat) || tokens_.IsOperator("[") ||
                            tokens_.IsOperator("{") ||
                            (tokens_.Is(TokenKind::kName) && !is_keyword);
  if (tokens_.IsOperator("(")) {
    ParseArguments(node);
  } else if (has_argument) {
    if (tokens_.IsName("is"))
      tokens_.Fail(line, "found \"is\" behind a test, expected parentheses");
    node->positional = {ParsePostfix(ParsePrimary())};
  }
  if (!is_negated) return node;
  Expression* negated = tokens_.NewExpression(EKind::kNot, line);
  negated->operands = {node};
  return negated;
}

Target ExpressionParser::ParseOneTarget(bool with_attributes) {
  const TokenStream::Nesting nesting(tokens_);
  Target target;
  target.line = tokens_.line();
  if (tokens_.SkipOperator("(")) {
    target = ParseTarget(with_attributes, false);
    tokens_.ExpectOperator(")");
    return target;
  }
  for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None"}) {
    if (tokens_.IsName(reserved)) tokens_.FailExpected("a name to assign to");
  }
  target.symbol = tokens_.Symbol(tokens_.ExpectIdentifier());
  if (with_attributes && tokens_.SkipOperator(".")) target.attribute = tokens_.ExpectIdentifier();
  return target;
}

Target ExpressionParser::ParseTarget(bool with_attributes, bool ends_at_in) {
  Target first = ParseOneTarget(with_attributes);
  if (!tokens_.IsOperator(",")) return first;
  Target tuple;
  tuple.line = first.line;
  tuple.is_tuple = true;
  tuple.parts.push_back(std::move(first));
  while (tokens_.SkipOperator(",") && !AtTupleEnd(ends_at_in) && !tokens_.IsOperator("=")) {
    tuple.parts.push_back(ParseOneTarget(with_attributes));
  }
  return tuple;
}

}  // namespace pmkvq::jinja
