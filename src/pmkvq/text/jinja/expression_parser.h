// Expressions, in the order of Jinja's grammar. Internal to text/jinja.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/text/jinja/token_stream.h"

namespace pmkvq::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  // `with_if`: "a if b else c" may follow.
  Expression* Parse(bool with_if = true);
  // One expression, or several with commas between them: a tuple.
  Expression* ParseTuple(bool with_if = true);
  // A chain of filters behind `value`, which is null in a filter block. `starts_inline`: the name
  // of the first filter comes without |.
  Expression* ParseFilters(Expression* value, bool starts_inline = false);
  // A name, name.attribute or a tuple of these; and names only, "a, b" without attributes.
  Target ParseTarget(bool with_attributes, bool ends_at_in);

 private:
  Expression* ParseIf();
  Expression* ParseOr();
  Expression* ParseAnd();
  Expression* ParseNot();
  Expression* ParseCompare();
  Expression* ParseSum();
  Expression* ParseConcat();
  Expression* ParseProduct();
  Expression* ParsePower();
  Expression* ParseUnary(bool with_filter = true);
  Expression* ParsePrimary();
  Expression* ParseParenthesized();
  Expression* ParseList();
  Expression* ParseDict();
  Expression* ParsePostfix(Expression* value);
  Expression* ParseSubscript(Expression* value);
  Expression* ParseCall(Expression* callee);
  Expression* ParseTest(Expression* value);
  void ParseArguments(Expression* call);
  void CheckNamedTest(const Expression& filter) const;
  bool AtTupleEnd(bool ends_at_in) const;
  Target ParseOneTarget(bool with_attributes);
  Expression* Binary(Expression::Kind kind, char op, Expression* left, Expression* right);

  TokenStream& tokens_;
};

}  // namespace pmkvq::jinja
