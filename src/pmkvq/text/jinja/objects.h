// What a value of the kinds kLoop, kMacro, kFunction and kMethod points to. Internal to text/jinja.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

class Runtime;
struct Statement;
struct Scope;
class Interpreter;

// Arguments of a call.
class Arguments {
 public:
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at this position or of this name, or nullptr.
  const Value* Find(size_t index, std::string_view name) const;
  // Fails for more arguments than names, for other names, and for one given twice.
  void Check(const Runtime& runtime, std::string_view function,
             std::initializer_list<std::string_view> names) const;
};

struct Function {
  std::string_view name;
  Value (*call)(Interpreter& interpreter, const Arguments& arguments);
};

struct Method {
  Value object;
  std::string name;
  MemoryCharge charge;
};

// A macro and the scope that it was defined in; the interpreter owns both.
struct Macro {
  const Statement* definition;
  Scope* scope;
};

// The variable `loop`. The items after the present one are found when they are asked for, because
// the body of a loop may change values that the filter of the loop reads.
struct Loop {
  std::shared_ptr<const Sequence> items;
  std::function<bool(const Value&)> filter;  // Empty for none, and when the loop has ended.
  size_t num_seen = 0;                       // Items taken from `items`.
  int64_t index0 = -1;
  Value previous;
  Value current;
  std::optional<Value> next;  // Looked at before its turn.
  std::optional<int64_t> length;
  std::optional<Value> last_changed;
  int depth = 1;
  int depth0 = 0;
  MemoryCharge charge;

  // The next item that the filter takes, or nullptr at the end.
  const Value* Peek();
  // Moves on to it; false at the end.
  bool Advance();
  int64_t Length();
};

}  // namespace pmkvq::jinja
