// Methods of dicts, lists, tuples and loops; which names are methods at all.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "pmkvq/text/jinja/interpreter.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"

namespace pmkvq::jinja {
namespace {

template <size_t N>
bool IsOneOf(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kSequenceMethods[] = {"count", "index"};
constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
// What would change a value, or lead out of the sandbox: using these is an error, as in Jinja's.
constexpr std::string_view kUnsafeDictMethods[] = {"clear",   "fromkeys",   "pop",
                                                   "popitem", "setdefault", "update"};
constexpr std::string_view kUnsafeListMethods[] = {"append", "clear",  "extend",  "insert",
                                                   "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kUnsafeStringMethods[] = {"encode", "format_map", "maketrans",
                                                     "translate", "isidentifier"};

Value DictMethod(Interpreter& interpreter, const Value& object, std::string_view name,
                 const Arguments& arguments) {
  const Dict& dict = object.dict();
  if (name == "get") {
    const Parameters parameters(interpreter, arguments, name, {"key", "default"});
    const Value& key = parameters.Required(0);
    if (!IsHashable(key)) interpreter.Fail(fmt::format("unhashable type: '{}'", TypeName(key)));
    const Value* found = dict.Find(key);
    return found != nullptr ? *found : parameters.Or(1, Value::None());
  }
  const Parameters none(interpreter, arguments, name, {});
  if (name == "copy") return object;
  std::vector<Value> items;
  items.reserve(dict.items.size());
  for (const auto& [key, value] : dict.items) {
    interpreter.Step();
    items.push_back(name == "keys"     ? key
                    : name == "values" ? value
                                       : interpreter.Items(Kind::kTuple, {key, value}));
  }
  return interpreter.Items(Kind::kView, std::move(items), fmt::format("dict_{}", name));
}

Value SequenceMethod(Interpreter& interpreter, const Value& object, std::string_view name,
                     const Arguments& arguments) {
  const std::vector<Value>& items = object.sequence().items;
  if (name == "copy") {
    const Parameters none(interpreter, arguments, name, {});
    return object;
  }
  const Parameters parameters(interpreter, arguments, name, {"value"});
  const Value& wanted = parameters.Required(0);
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Equal(interpreter, items[i], wanted)) continue;
    if (name == "index") return Value::Int(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") interpreter.Fail("the value is not in the list");
  return Value::Int(count);
}

Value LoopMethod(Interpreter& interpreter, Loop& loop, std::string_view name,
                 const Arguments& arguments) {
  if (!arguments.named.empty()) interpreter.Fail(fmt::format("loop.{}() takes no names", name));
  if (name == "cycle") {
    if (arguments.positional.empty()) interpreter.Fail("no items for cycling given");
    return arguments.positional[static_cast<size_t>(loop.index0) % arguments.positional.size()];
  }
  const Value now = interpreter.Items(Kind::kTuple, arguments.positional);
  const bool is_same = loop.last_changed && Equal(interpreter, *loop.last_changed, now);
  if (!is_same && DepthOf(now) >= interpreter.limits().max_value_depth) {
    interpreter.Fail("a list is nested too deep");
  }
  loop.last_changed = now;
  loop.depth = std::max(loop.depth, DepthOf(now) + 1);
  return Value::Bool(!is_same);
}

}  // namespace

bool IsKnownMethod(std::string_view name) {
  static constexpr std::string_view kLoopMethods[] = {"cycle", "changed"};
  // Unsafe ones fail when they are called, as with Jinja: a template may never get there.
  return IsStringMethod(name) || IsOneOf(kDictMethods, name) || IsOneOf(kListMethods, name) ||
         IsOneOf(kLoopMethods, name) || IsOneOf(kUnsafeDictMethods, name) ||
         IsOneOf(kUnsafeListMethods, name);
}

bool HasMethod(const Value& object, std::string_view name, bool* is_safe) {
  *is_safe = true;
  if (name.starts_with("__")) return false;
  switch (object.kind()) {
    case Kind::kString:
      if (IsStringMethod(name)) return true;
      *is_safe = false;
      return IsOneOf(kUnsafeStringMethods, name);
    case Kind::kDict:
      if (IsOneOf(kDictMethods, name)) return true;
      *is_safe = false;
      return IsOneOf(kUnsafeDictMethods, name);
    case Kind::kList:
      if (IsOneOf(kListMethods, name)) return true;
      *is_safe = false;
      return IsOneOf(kUnsafeListMethods, name);
    case Kind::kTuple:
      return IsOneOf(kSequenceMethods, name);
    case Kind::kRange:
      return IsOneOf(kSequenceMethods, name);
    default:
      return false;
  }
}

Value CallMethod(Interpreter& interpreter, const Method& method, const Arguments& arguments) {
  const Value& object = method.object;
  if (object.IsString()) return CallStringMethod(interpreter, object, method.name, arguments);
  if (object.IsDict()) return DictMethod(interpreter, object, method.name, arguments);
  if (object.Is(Kind::kLoop)) {
    return LoopMethod(interpreter, object.loop(), method.name, arguments);
  }
  return SequenceMethod(interpreter, object, method.name, arguments);
}

}  // namespace pmkvq::jinja
