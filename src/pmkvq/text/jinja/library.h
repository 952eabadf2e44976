// The filters, tests, functions and methods that templates may use. Internal to text/jinja.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/text/jinja/ast.h"
#include "pmkvq/text/jinja/objects.h"

namespace pmkvq::jinja {

struct FilterEntry {
  std::string_view name;
  FilterFunction function;
};
struct TestEntry {
  std::string_view name;
  TestFunction function;
};

// nullptr for unknown names.
FilterFunction FindFilter(std::string_view name);
TestFunction FindTest(std::string_view name);
const Function* FindFunction(std::string_view name);

// True for the methods of strings, dicts, lists and the others that can be called.
bool IsKnownMethod(std::string_view name);
// True when a value of this kind has this method, or an attribute of this name that templates must
// not use; `*is_safe` is false for the latter.
bool HasMethod(const Value& object, std::string_view name, bool* is_safe);
// Calls a method that HasMethod knows.
Value CallMethod(Interpreter& interpreter, const Method& method, const Arguments& arguments);
Value CallStringMethod(Interpreter& interpreter, const Value& object, std::string_view name,
                       const Arguments& arguments);
bool IsStringMethod(std::string_view name);

}  // namespace pmkvq::jinja
