// The tests behind "is".
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/string_methods.h"
#include "pmkvq/text/jinja/text_of.h"

namespace pmkvq::jinja {
namespace {

// Tests without arguments, by a predicate of the value.
template <bool (*predicate)(const Value&)>
bool Plain(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "a test", {});
  return predicate(value);
}

bool IsDefined(const Value& value) { return !value.IsUndefined(); }
bool IsUndefinedValue(const Value& value) { return value.IsUndefined(); }
bool IsNone(const Value& value) { return value.Is(Kind::kNone); }
bool IsBoolean(const Value& value) { return value.Is(Kind::kBool); }
bool IsFalse(const Value& value) { return value.Is(Kind::kBool) && !value.as_bool(); }
bool IsTrueValue(const Value& value) { return value.Is(Kind::kBool) && value.as_bool(); }
bool IsIntegerValue(const Value& value) { return value.Is(Kind::kInt); }
bool IsFloat(const Value& value) { return value.Is(Kind::kFloat); }
bool IsStringValue(const Value& value) { return value.IsString(); }
bool IsMapping(const Value& value) { return value.IsDict(); }
bool IsNumberValue(const Value& value) { return value.IsNumber(); }
bool IsEscaped(const Value& value) { return value.IsString() && value.string().is_markup; }
bool IsCallable(const Value& value) {
  // An undefined value has a method to be called with, which fails.
  return value.kind() >= Kind::kLoop || value.IsUndefined();
}
bool IsSequence(const Value& value) {
  return value.IsUndefined() || value.IsString() || value.IsDict() || value.Is(Kind::kList) ||
         value.Is(Kind::kTuple) || value.Is(Kind::kRange);
}
bool IsIterable(const Value& value) {
  return value.IsUndefined() || value.IsString() || value.IsDict() || value.HasItems() ||
         value.Is(Kind::kLoop);
}

int64_t Modulo(Interpreter& interpreter, const Value& value, int64_t divisor) {
  const Value rest = Arithmetic(interpreter, '%', value, Value::Int(divisor));
  if (rest.IsInteger()) return rest.as_int();
  if (rest.Is(Kind::kFloat)) return rest.as_double() == 0 ? 0 : rest.as_double() == 1 ? 1 : 2;
  interpreter.Fail("expected a number");
}

bool TestOdd(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "odd", {});
  return Modulo(interpreter, value, 2) == 1;
}

bool TestEven(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "even", {});
  return Modulo(interpreter, value, 2) == 0;
}

bool TestDivisibleBy(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "divisibleby", {"num"});
  return Equal(interpreter, Arithmetic(interpreter, '%', value, parameters.Required(0)),
               Value::Int(0));
}

bool TestLower(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "lower", {});
  return IsLowerText(TextOf(interpreter, value).string().view());
}

bool TestUpper(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "upper", {});
  return IsUpperText(TextOf(interpreter, value).string().view());
}

bool TestSameAs(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "sameas", {"other"});
  const Value& other = parameters.Required(0);
  if (value.kind() != other.kind()) return false;
  if (value.IsNumber() || value.Is(Kind::kNone)) return Equal(interpreter, value, other);
  return value.object() == other.object();
}

bool TestIn(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "in", {"seq"});
  return Contains(interpreter, parameters.Required(0), value);
}

void CheckHashable(Interpreter& interpreter, const Value& value) {
  if (!IsHashable(value)) interpreter.Fail(fmt::format("unhashable type: '{}'", TypeName(value)));
}

bool TestFilter(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "filter", {});
  CheckHashable(interpreter, value);
  return value.IsString() && FindFilter(value.string().view()) != nullptr;
}

bool TestTest(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "test", {});
  CheckHashable(interpreter, value);
  return value.IsString() && FindTest(value.string().view()) != nullptr;
}

enum class Order { kEq, kNe, kLt, kLe, kGt, kGe };

template <Order order>
bool Compared(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "a comparison", {"other"});
  const Value& other = parameters.Required(0);
  switch (order) {
    case Order::kEq:
      return Equal(interpreter, value, other);
    case Order::kNe:
      return !Equal(interpreter, value, other);
    case Order::kLt:
      return Less(interpreter, value, other);
    case Order::kGt:
      return Less(interpreter, other, value, ">");
    case Order::kLe:
      return Less(interpreter, value, other, "<=") || Equal(interpreter, value, other);
    case Order::kGe:
      return Less(interpreter, other, value, ">=") || Equal(interpreter, value, other);
  }
  return false;
}

}  // namespace

TestFunction FindTest(std::string_view name) {
  static constexpr TestEntry kTests[] = {
      {"!=", Compared<Order::kNe>},
      {"<", Compared<Order::kLt>},
      {"<=", Compared<Order::kLe>},
      {"==", Compared<Order::kEq>},
      {">", Compared<Order::kGt>},
      {">=", Compared<Order::kGe>},
      {"boolean", Plain<IsBoolean>},
      {"callable", Plain<IsCallable>},
      {"defined", Plain<IsDefined>},
      {"divisibleby", TestDivisibleBy},
      {"eq", Compared<Order::kEq>},
      {"equalto", Compared<Order::kEq>},
      {"escaped", Plain<IsEscaped>},
      {"even", TestEven},
      {"false", Plain<IsFalse>},
      {"filter", TestFilter},
      {"float", Plain<IsFloat>},
      {"ge", Compared<Order::kGe>},
      {"greaterthan", Compared<Order::kGt>},
      {"gt", Compared<Order::kGt>},
      {"in", TestIn},
      {"integer", Plain<IsIntegerValue>},
      {"iterable", Plain<IsIterable>},
      {"le", Compared<Order::kLe>},
      {"lessthan", Compared<Order::kLt>},
      {"lower", TestLower},
      {"lt", Compared<Order::kLt>},
      {"mapping", Plain<IsMapping>},
      {"ne", Compared<Order::kNe>},
      {"none", Plain<IsNone>},
      {"number", Plain<IsNumberValue>},
      {"odd", TestOdd},
      {"sameas", TestSameAs},
      {"sequence", Plain<IsSequence>},
      {"string", Plain<IsStringValue>},
      {"test", TestTest},
      {"true", Plain<IsTrueValue>},
      {"undefined", Plain<IsUndefinedValue>},
      {"upper", TestUpper},
  };
  const auto* found = std::find_if(std::begin(kTests), std::end(kTests),
                                   [&](const TestEntry& entry) { return entry.name == name; });
  return found == std::end(kTests) ? nullptr : found->function;
}

}  // namespace pmkvq::jinja
