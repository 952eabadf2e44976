#include "pmkvq/text/jinja/operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"

namespace pmkvq::jinja {
namespace {

[[noreturn]] void FailOperands(Runtime& runtime, std::string_view op, const Value& left,
                               const Value& right) {
  for (const Value* operand : {&left, &right}) {
    if (operand->IsUndefined()) runtime.FailUndefined(*operand);
  }
  if (op == "+" && left.IsString()) {
    runtime.Fail(fmt::format("can only concatenate str (not \"{}\") to str", TypeName(right)));
  }
  runtime.Fail(fmt::format("unsupported operand types for {}: '{}' and '{}'", op, TypeName(left),
                           TypeName(right)));
}

[[noreturn]] void FailOverflow(Runtime& runtime) {
  runtime.Fail("the result does not fit an integer of 64 bits");
}

Value AddStrings(Runtime& runtime, const Value& left, const Value& right) {
  const bool is_markup = left.string().is_markup || right.string().is_markup;
  StringBuilder builder(runtime);
  for (const Value* part : {&left, &right}) {
    builder.Append(is_markup ? Escape(runtime, *part).string() : part->string());
  }
  return builder.Take(is_markup);
}

Value AddLists(Runtime& runtime, const Value& left, const Value& right) {
  const std::vector<Value>& first = left.sequence().items;
  const std::vector<Value>& second = right.sequence().items;
  const MemoryCharge room = runtime.Charge((first.size() + second.size()) * sizeof(Value));
  std::vector<Value> items;
  items.reserve(first.size() + second.size());
  items.insert(items.end(), first.begin(), first.end());
  items.insert(items.end(), second.begin(), second.end());
  runtime.StepItems(items.size());
  return runtime.Items(left.kind(), std::move(items));
}

Value Repeat(Runtime& runtime, const Value& value, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const size_t unit =
      value.IsString() ? value.string().view().size() : value.sequence().items.size();
  const auto limit = static_cast<size_t>(runtime.limits().max_memory_bytes);
  if (unit > 0 && static_cast<size_t>(count) > limit / unit) {
    runtime.Fail(fmt::format("the template takes more than {} bytes of memory", limit));
  }
  if (value.IsString()) {
    if (unit == 0) count = 0;
    StringBuilder builder(runtime);
    for (int64_t i = 0; i < count; ++i) builder.Append(value.string());
    return builder.Take(value.string().is_markup);
  }
  const std::vector<Value>& unit_items = value.sequence().items;
  const MemoryCharge room = runtime.Charge(unit * static_cast<size_t>(count) * sizeof(Value));
  std::vector<Value> items;
  items.reserve(unit * static_cast<size_t>(count));
  for (int64_t i = 0; i < count && unit > 0; ++i) {
    runtime.StepItems(unit + 8);
    items.insert(items.end(), unit_items.begin(), unit_items.end());
  }
  return runtime.Items(value.kind(), std::move(items));
}

bool CanRepeat(const Value& value) {
  return value.IsString() || value.Is(Kind::kList) || value.Is(Kind::kTuple);
}

Value Power(Runtime& runtime, const Value& left, const Value& right) {
  if (!left.IsInteger() || !right.IsInteger() || right.as_int() < 0) {
    const double base = left.as_double();
    const double exponent = right.as_double();
    if (base == 0 && exponent < 0) runtime.Fail("0.0 cannot be raised to a negative power");
    const double result = std::pow(base, exponent);
    if (std::isnan(result) && !std::isnan(base)) runtime.Fail("the power is no real number");
    if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) {
      FailOverflow(runtime);
    }
    return Value::Float(result);
  }
  int64_t result = 1;
  int64_t base = left.as_int();
  int64_t exponent = right.as_int();
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) FailOverflow(runtime);
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) FailOverflow(runtime);
  }
  return Value::Int(result);
}

// Division that rounds down, and the remainder with the sign of the divisor.
double FloorMod(double a, double b) {
  double result = std::fmod(a, b);
  if (result != 0 && (result < 0) != (b < 0)) result += b;
  return result == 0 ? std::copysign(0.0, b) : result;
}

double FloorDivide(double a, double b) {
  const double quotient = (a - FloorMod(a, b)) / b;
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

Value IntegerArithmetic(Runtime& runtime, char op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflows = false;
  if (op == '+') overflows = __builtin_add_overflow(a, b, &result);
  if (op == '-') overflows = __builtin_sub_overflow(a, b, &result);
  if (op == '*') overflows = __builtin_mul_overflow(a, b, &result);
  if (op == '\\' || op == '%') {
    if (b == -1) {  // The one quotient that overflows.
      overflows = op == '\\' && __builtin_sub_overflow(int64_t{0}, a, &result);
    } else {
      const int64_t remainder = a % b;
      const bool rounds_down = remainder != 0 && (remainder < 0) != (b < 0);
      result = op == '\\' ? a / b - (rounds_down ? 1 : 0) : remainder + (rounds_down ? b : 0);
    }
  }
  if (overflows) FailOverflow(runtime);
  return Value::Int(result);
}

Value NumberArithmetic(Runtime& runtime, char op, const Value& left, const Value& right) {
  if (op == '^') return Power(runtime, left, right);
  if ((op == '/' || op == '\\' || op == '%') && right.as_double() == 0) {
    runtime.Fail("division by zero");
  }
  if (op != '/' && left.IsInteger() && right.IsInteger()) {
    return IntegerArithmetic(runtime, op, left.as_int(), right.as_int());
  }
  const double a = left.as_double();
  const double b = right.as_double();
  switch (op) {
    case '+':
      return Value::Float(a + b);
    case '-':
      return Value::Float(a - b);
    case '*':
      return Value::Float(a * b);
    case '/':
      return Value::Float(a / b);
    case '\\':
      return Value::Float(FloorDivide(a, b));
    default:
      return Value::Float(FloorMod(a, b));
  }
}

bool EqualItems(Runtime& runtime, const std::vector<Value>& left, const std::vector<Value>& right) {
  if (left.size() != right.size()) return false;
  for (size_t i = 0; i < left.size(); ++i) {
    if (!Equal(runtime, left[i], right[i])) return false;
  }
  return true;
}

bool EqualDicts(Runtime& runtime, const Dict& left, const Dict& right) {
  if (left.items.size() != right.items.size()) return false;
  for (const auto& [key, value] : left.items) {
    runtime.Step();
    const Value* other = right.Find(key);
    if (other == nullptr || !Equal(runtime, value, *other)) return false;
  }
  return true;
}

// Compares numbers exactly, also integers that a double does not hold.
int CompareNumbers(const Value& left, const Value& right) {
  if (left.IsInteger() && right.IsInteger()) {
    return left.as_int() < right.as_int() ? -1 : left.as_int() > right.as_int() ? 1 : 0;
  }
  const long double a = left.IsInteger() ? static_cast<long double>(left.as_int())
                                         : static_cast<long double>(left.as_double());
  const long double b = right.IsInteger() ? static_cast<long double>(right.as_int())
                                          : static_cast<long double>(right.as_double());
  return a < b ? -1 : a > b ? 1 : a == b ? 0 : 2;  // 2: one is not a number.
}

// Begin and end of a slice as Python cuts them to the length.
struct SliceBounds {
  int64_t start;
  int64_t stop;
  int64_t step;
};

int64_t SliceIndex(Runtime& runtime, const Value& index) {
  if (index.IsUndefined()) runtime.FailUndefined(index);
  if (!index.IsInteger()) {
    runtime.Fail("slice indices must be integers or none");
  }
  return index.as_int();
}

SliceBounds Bounds(Runtime& runtime, int64_t length, const Value& start, const Value& stop,
                   const Value& step) {
  SliceBounds bounds{0, 0, step.Is(Kind::kNone) ? 1 : SliceIndex(runtime, step)};
  if (bounds.step == 0) runtime.Fail("slice step cannot be zero");
  bounds.step = std::clamp(bounds.step, -length - 1, length + 1);
  const bool is_backward = bounds.step < 0;
  const int64_t lowest = is_backward ? -1 : 0;
  const int64_t highest = is_backward ? length - 1 : length;
  const auto clamp = [&](int64_t index) {
    if (index < 0) index = index < -length ? lowest : index + length;
    return std::clamp(index, lowest, highest);
  };
  bounds.start =
      start.Is(Kind::kNone) ? (is_backward ? highest : lowest) : clamp(SliceIndex(runtime, start));
  bounds.stop =
      stop.Is(Kind::kNone) ? (is_backward ? lowest : highest) : clamp(SliceIndex(runtime, stop));
  return bounds;
}

template <class Take>
void ForSlice(Runtime& runtime, const SliceBounds& bounds, const Take& take) {
  for (int64_t i = bounds.start; bounds.step > 0 ? i < bounds.stop : i > bounds.stop;
       i += bounds.step) {
    runtime.Step();
    take(i);
  }
}

Value SliceString(Runtime& runtime, const String& text, const SliceBounds& bounds) {
  if (bounds.step == 1) {
    const size_t begin = OffsetOfCharacter(text.view(), bounds.start);
    const size_t end = std::max(begin, OffsetOfCharacter(text.view(), bounds.stop));
    runtime.StepBytes(end);
    return Substring(runtime, text, begin, end);
  }
  const MemoryCharge room = runtime.Charge(text.view().size() * sizeof(size_t));
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.view().size(); i += CharacterBytes(text.view(), i)) {
    offsets.push_back(i);
  }
  StringBuilder builder(runtime);
  ForSlice(runtime, bounds, [&](int64_t i) {
    const size_t begin = offsets[static_cast<size_t>(i)];
    builder.Append(text, begin, begin + CharacterBytes(text.view(), begin));
  });
  return builder.Take(text.is_markup);
}

std::string ObjectName(const Value& value) {
  if (value.Is(Kind::kNone)) return "None";
  return fmt::format("{} object", TypeName(value));
}

Value NoItem(Runtime& runtime, const Value& value, const Value& index) {
  StringBuilder text(runtime);
  AppendRepr(runtime, index, &text);
  const std::string shown = text.TakeText().text.substr(0, 60);
  if (index.IsString()) {
    return runtime.Undefined(fmt::format("'{}' has no attribute {}", ObjectName(value), shown));
  }
  return runtime.Undefined(fmt::format("{} has no element {}", ObjectName(value), shown));
}

// A member of a value that is not an item: a method, or an attribute of `loop`. False for none.
bool FindMember(Runtime& runtime, const Value& value, const std::string& name, Value* member) {
  if (value.Is(Kind::kNamespace)) {
    runtime.StepItems(value.name_space().members.size());
    const Value* found = value.name_space().Find(name);
    if (found != nullptr) *member = *found;
    return found != nullptr;
  }
  bool is_safe = true;
  if (!HasMethod(value, name, &is_safe)) return false;
  if (is_safe) {
    *member = runtime.BoundMethod(value, name);
  } else {
    *member = runtime.Undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, TypeName(value)));
  }
  return true;
}

Value LoopAttribute(Runtime& runtime, const Value& value, const std::string& name) {
  Loop& loop = value.loop();
  if (name == "index") return Value::Int(loop.index0 + 1);
  if (name == "index0") return Value::Int(loop.index0);
  if (name == "first") return Value::Bool(loop.index0 == 0);
  if (name == "last") return Value::Bool(loop.Peek() == nullptr);
  if (name == "length") return Value::Int(loop.Length());
  if (name == "revindex") return Value::Int(loop.Length() - loop.index0);
  if (name == "revindex0") return Value::Int(loop.Length() - loop.index0 - 1);
  if (name == "depth") return Value::Int(loop.depth0 + 1);
  if (name == "depth0") return Value::Int(loop.depth0);
  if (name == "previtem") {
    return loop.index0 == 0 ? runtime.Undefined("there is no previous item") : loop.previous;
  }
  if (name == "nextitem") {
    const Value* next = loop.Peek();
    return next == nullptr ? runtime.Undefined("there is no next item") : *next;
  }
  if (name == "cycle" || name == "changed") return runtime.BoundMethod(value, name);
  return runtime.Undefined(fmt::format("'loop' has no attribute '{}'", name));
}

}  // namespace

Value Arithmetic(Runtime& runtime, char op, const Value& left, const Value& right) {
  if (left.IsNumber() && right.IsNumber()) return NumberArithmetic(runtime, op, left, right);
  if (op == '+' && left.IsString() && right.IsString()) return AddStrings(runtime, left, right);
  if (op == '+' && left.kind() == right.kind() && (left.Is(Kind::kList) || left.Is(Kind::kTuple))) {
    return AddLists(runtime, left, right);
  }
  if (op == '*' && CanRepeat(left) && right.IsInteger()) {
    return Repeat(runtime, left, right.as_int());
  }
  if (op == '*' && CanRepeat(right) && left.IsInteger()) {
    return Repeat(runtime, right, left.as_int());
  }
  if (op == '%' && left.IsString()) return FormatPercent(runtime, left, right);
  FailOperands(runtime,
               op == '\\'  ? "//"
               : op == '^' ? "**"
                           : std::string_view(&op, 1),
               left, right);
}

Value Negative(Runtime& runtime, const Value& value) {
  if (value.IsUndefined()) runtime.FailUndefined(value);
  if (value.Is(Kind::kFloat)) return Value::Float(-value.as_double());
  if (!value.IsInteger()) {
    runtime.Fail(fmt::format("bad operand type for unary -: '{}'", TypeName(value)));
  }
  return IntegerArithmetic(runtime, '-', 0, value.as_int());
}

bool Equal(Runtime& runtime, const Value& left, const Value& right) {
  runtime.Step();
  if (left.IsNumber() && right.IsNumber()) return CompareNumbers(left, right) == 0;
  if (left.kind() != right.kind()) return false;
  switch (left.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      runtime.StepBytes(left.string().view().size());
      return left.string().view() == right.string().view();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
      return EqualItems(runtime, left.sequence().items, right.sequence().items);
    case Kind::kDict:
      return EqualDicts(runtime, left.dict(), right.dict());
    case Kind::kMethod:
      return left.method().name == right.method().name &&
             left.method().object.object() == right.method().object.object();
    default:
      return left.object() == right.object();
  }
}

bool Less(Runtime& runtime, const Value& left, const Value& right, std::string_view sign) {
  runtime.Step();
  if (left.IsNumber() && right.IsNumber()) return CompareNumbers(left, right) == -1;
  if (left.IsString() && right.IsString()) {
    runtime.StepBytes(left.string().view().size());
    return left.string().view() < right.string().view();
  }
  if (left.kind() == right.kind() && (left.Is(Kind::kList) || left.Is(Kind::kTuple))) {
    const std::vector<Value>& a = left.sequence().items;
    const std::vector<Value>& b = right.sequence().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!Equal(runtime, a[i], b[i])) return Less(runtime, a[i], b[i], sign);
    }
    return a.size() < b.size();
  }
  for (const Value* operand : {&left, &right}) {
    if (operand->IsUndefined()) runtime.FailUndefined(*operand);
  }
  runtime.Fail(fmt::format("'{}' not supported between instances of '{}' and '{}'", sign,
                           TypeName(left), TypeName(right)));
}

bool Contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.IsString()) {
    if (!item.IsString()) {
      runtime.Fail(
          fmt::format("'in <string>' requires string as left operand, not {}", TypeName(item)));
    }
    const std::string_view text = container.string().view();
    const std::string_view part = item.string().view();
    runtime.StepBytes(text.size() + part.size());
    return FindText(text, part, 0) != std::string_view::npos;
  }
  if (container.IsDict()) {
    if (!IsHashable(item)) runtime.Fail(fmt::format("unhashable type: '{}'", TypeName(item)));
    runtime.Step();
    return container.dict().Find(item) != nullptr;
  }
  if (!container.HasItems() && !container.IsUndefined()) {
    runtime.Fail(fmt::format("argument of type '{}' is not iterable", TypeName(container)));
  }
  const std::shared_ptr<const Sequence> walked = runtime.Walk(container);
  for (const Value& other : walked->items) {
    if (Equal(runtime, other, item)) return true;
  }
  return false;
}

Value Item(Runtime& runtime, const Value& value, const Value& index) {
  if (value.IsUndefined()) runtime.FailUndefined(value);
  if (value.IsDict()) {
    if (IsHashable(index)) {
      runtime.Step();
      const Value* found = value.dict().Find(index);
      if (found != nullptr) return *found;
    }
  } else if (index.IsInteger() &&
             (value.IsString() ||
              (value.HasItems() && !value.Is(Kind::kView) && !value.Is(Kind::kGenerator)))) {
    const int64_t length = runtime.Length(value);
    int64_t place = index.as_int();
    if (place < 0) place += length;
    if (place >= 0 && place < length) {
      if (!value.IsString()) return value.sequence().items[static_cast<size_t>(place)];
      const std::string_view text = value.string().view();
      const size_t begin = OffsetOfCharacter(text, place);
      return Substring(runtime, value.string(), begin, begin + CharacterBytes(text, begin));
    }
  }
  if (index.IsString()) {
    Value member;
    const std::string name(index.string().view());
    if (value.Is(Kind::kLoop)) return LoopAttribute(runtime, value, name);
    if (FindMember(runtime, value, name, &member)) return member;
  }
  return NoItem(runtime, value, index);
}

Value Attribute(Runtime& runtime, const Value& value, const std::string& name) {
  if (value.IsUndefined()) runtime.FailUndefined(value);
  if (value.Is(Kind::kLoop)) return LoopAttribute(runtime, value, name);
  Value member;
  if (FindMember(runtime, value, name, &member)) return member;
  if (value.IsDict()) {
    runtime.Step();
    if (const Value* found = value.dict().Find(name)) return *found;
  }
  if (value.Is(Kind::kTuple) && value.sequence().label == "group") {  // What groupby makes.
    if (name == "grouper") return value.sequence().items[0];
    if (name == "list") return value.sequence().items[1];
  }
  return runtime.Undefined(fmt::format("'{}' has no attribute '{}'", ObjectName(value), name));
}

Value Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
            const Value& step) {
  if (value.IsUndefined()) runtime.FailUndefined(value);
  const bool is_list = value.Is(Kind::kList) || value.Is(Kind::kTuple) || value.Is(Kind::kRange);
  if (!value.IsString() && !is_list) {
    runtime.Fail(value.IsDict() ? "unhashable type: 'slice'"
                                : fmt::format("'{}' object is not subscriptable", TypeName(value)));
  }
  const SliceBounds bounds = Bounds(runtime, runtime.Length(value), start, stop, step);
  if (value.IsString()) return SliceString(runtime, value.string(), bounds);
  std::vector<Value> items;
  ForSlice(runtime, bounds,
           [&](int64_t i) { items.push_back(value.sequence().items[static_cast<size_t>(i)]); });
  if (value.Is(Kind::kRange)) return RangeOf(runtime, std::move(items));
  return runtime.Items(value.kind(), std::move(items));
}

Value Escape(Runtime& runtime, const Value& value) {
  Value text = value.IsString() ? value : TextOf(runtime, value);
  const String& string = text.string();
  if (string.is_markup) return text;
  StringBuilder builder(runtime);
  size_t done = 0;
  for (size_t i = 0; i < string.view().size(); ++i) {
    std::string_view escaped;
    switch (string.view()[i]) {
      case '&':
        escaped = "&amp;";
        break;
      case '<':
        escaped = "&lt;";
        break;
      case '>':
        escaped = "&gt;";
        break;
      case '\'':
        escaped = "&#39;";
        break;
      case '"':
        escaped = "&#34;";
        break;
      default:
        continue;
    }
    builder.Append(string, done, i);
    builder.AppendAs(string, i, escaped);
    done = i + 1;
  }
  builder.Append(string, done, string.view().size());
  return builder.Take(true);
}

}  // namespace pmkvq::jinja
