// The half of the interpreter that evaluates expressions.
#include <fmt/format.h>

#include "pmkvq/text/jinja/interpreter.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/text_of.h"

namespace pmkvq::jinja {

using EKind = Expression::Kind;

Value Interpreter::Evaluate(const Expression& expression) {
  const Depth depth(*this);
  Step();
  const auto operand = [&](size_t i) { return Evaluate(*expression.operands[i]); };
  switch (expression.kind) {
    case EKind::kConstant:
      return expression.value;
    case EKind::kName:
      return EvaluateName(expression);
    case EKind::kList:
      return List(EvaluateAll(expression.operands));
    case EKind::kTuple:
      return Items(Kind::kTuple, EvaluateAll(expression.operands));
    case EKind::kDict:
      return EvaluateDict(expression);
    case EKind::kAttribute: {
      const Value object = operand(0);
      set_line(expression.line);
      return Attribute(*this, object, expression.name);
    }
    case EKind::kItem: {
      const Value object = operand(0);
      const Value index = operand(1);
      set_line(expression.line);
      return Item(*this, object, index);
    }
    case EKind::kSlice:
      return EvaluateSlice(expression);
    case EKind::kCall:
      return EvaluateCall(expression);
    case EKind::kFilter:
      return EvaluateFilter(expression, nullptr);
    case EKind::kTest: {
      const Value value = operand(0);
      const Arguments arguments = EvaluateArguments(expression);
      set_line(expression.line);
      return Value::Bool(expression.test(*this, value, arguments));
    }
    case EKind::kNot:
      return Value::Bool(!IsTrue(operand(0)));
    case EKind::kNegative:
      return Negative(*this, operand(0));
    case EKind::kPositive: {
      const Value value = operand(0);
      if (value.IsUndefined()) FailUndefined(value);
      if (!value.IsNumber()) {
        Fail(fmt::format("bad operand type for unary +: '{}'", TypeName(value)));
      }
      return value.Is(Kind::kBool) ? Value::Int(value.as_int()) : value;
    }
    case EKind::kAnd: {
      const Value left = operand(0);
      return IsTrue(left) ? operand(1) : left;
    }
    case EKind::kOr: {
      const Value left = operand(0);
      return IsTrue(left) ? left : operand(1);
    }
    case EKind::kIfElse:
      if (IsTrue(operand(1))) return operand(0);
      if (expression.operands[2] != nullptr) return operand(2);
      return Undefined(fmt::format(
          "the inline if-expression on line {} evaluated to false and no else section was defined",
          expression.line));
    case EKind::kConcat:
      return EvaluateConcat(expression);
    case EKind::kArithmetic: {
      const Value left = operand(0);
      const Value right = operand(1);
      set_line(expression.line);
      return Arithmetic(*this, expression.op, left, right);
    }
    case EKind::kCompare:
      return Value::Bool(EvaluateCompare(expression));
  }
  return Value();
}

std::vector<Value> Interpreter::EvaluateAll(const std::vector<Expression*>& expressions) {
  std::vector<Value> values;
  values.reserve(expressions.size());
  for (const Expression* expression : expressions) values.push_back(Evaluate(*expression));
  return values;
}

Value Interpreter::EvaluateName(const Expression& expression) {
  if (const Value* found = Lookup(expression.symbol)) return *found;
  if (const Function* function = FindFunction(expression.name)) {
    return {Kind::kFunction, std::shared_ptr<const void>(std::shared_ptr<void>(), function)};
  }
  return Undefined(fmt::format("'{}' is undefined", expression.name));
}

Value Interpreter::EvaluateDict(const Expression& expression) {
  Dict dict;
  for (size_t i = 0; i < expression.operands.size(); i += 2) {
    const Value key = Evaluate(*expression.operands[i]);
    if (!IsHashable(key)) Fail(fmt::format("unhashable type: '{}'", TypeName(key)));
    dict.Set(key, Evaluate(*expression.operands[i + 1]));
  }
  return FromDict(std::move(dict));
}

Value Interpreter::EvaluateSlice(const Expression& expression) {
  const Value object = Evaluate(*expression.operands[0]);
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    const Expression* part = expression.operands[i + 1];
    parts[i] = part == nullptr ? Value::None() : Evaluate(*part);
  }
  set_line(expression.line);
  return Slice(*this, object, parts[0], parts[1], parts[2]);
}

Value Interpreter::EvaluateConcat(const Expression& expression) {
  StringBuilder builder(*this);
  for (const Expression* part : expression.operands) {
    AppendText(*this, Evaluate(*part), &builder);
  }
  return builder.Take();
}

bool Interpreter::Compare(Expression::Comparison op, const Value& left, const Value& right) {
  using Comparison = Expression::Comparison;
  switch (op) {
    case Comparison::kEq:
      return Equal(*this, left, right);
    case Comparison::kNe:
      return !Equal(*this, left, right);
    case Comparison::kLt:
      return Less(*this, left, right);
    case Comparison::kGt:
      return Less(*this, right, left, ">");
    // NaN is neither less nor greater.
    case Comparison::kLe:
      return Less(*this, left, right, "<=") || Equal(*this, left, right);
    case Comparison::kGe:
      return Less(*this, right, left, ">=") || Equal(*this, left, right);
    case Comparison::kIn:
      return Contains(*this, right, left);
    case Comparison::kNotIn:
      return !Contains(*this, right, left);
  }
  return false;
}

bool Interpreter::EvaluateCompare(const Expression& expression) {
  Value left = Evaluate(*expression.operands[0]);
  for (size_t i = 0; i < expression.ops.size(); ++i) {
    Value right = Evaluate(*expression.operands[i + 1]);
    set_line(expression.line);
    if (!Compare(expression.ops[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Arguments Interpreter::EvaluateArguments(const Expression& expression) {
  Arguments arguments;
  arguments.positional = EvaluateAll(expression.positional);
  for (const auto& [name, value] : expression.named) {
    arguments.named.emplace_back(name, Evaluate(*value));
  }
  if (expression.star != nullptr) {
    const std::shared_ptr<const Sequence> items = Walk(Evaluate(*expression.star));
    StepItems(items->items.size());
    arguments.positional.insert(arguments.positional.end(), items->items.begin(),
                                items->items.end());
  }
  if (expression.star_star != nullptr) {
    const Value dict = Evaluate(*expression.star_star);
    if (!dict.IsDict()) Fail(fmt::format("found a {} behind **, expected a dict", TypeName(dict)));
    for (const auto& [key, value] : dict.dict().items) {
      Step();
      if (!key.IsString()) Fail("keywords must be strings");
      arguments.named.emplace_back(key.string().view(), value);
    }
  }
  return arguments;
}

Value Interpreter::EvaluateCall(const Expression& expression) {
  const Value callee = Evaluate(*expression.operands[0]);
  const Arguments arguments = EvaluateArguments(expression);
  set_line(expression.line);
  return Call(callee, arguments);
}

Value Interpreter::EvaluateFilter(const Expression& expression, const Value* body) {
  const Depth depth(*this);
  const Expression* inner = expression.operands[0];
  Value value;
  if (inner == nullptr) {
    value = *body;
  } else if (body != nullptr && inner->kind == EKind::kFilter) {
    value = EvaluateFilter(*inner, body);
  } else {
    value = Evaluate(*inner);
  }
  const Arguments arguments = EvaluateArguments(expression);
  set_line(expression.line);
  return expression.filter(*this, value, arguments);
}

}  // namespace pmkvq::jinja
