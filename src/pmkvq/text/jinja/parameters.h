// Reads the arguments of a filter, test, function or method. Internal to text/jinja.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/jinja/interpreter.h"
#include "pmkvq/text/jinja/objects.h"

namespace pmkvq::jinja {

// Parameters by their places and names, as Python binds them.
class Parameters {
 public:
  // Throws for arguments that `names` do not have.
  Parameters(Interpreter& interpreter, const Arguments& arguments, std::string_view function,
             std::initializer_list<std::string_view> names)
      : interpreter_(interpreter), arguments_(arguments), function_(function), names_(names) {
    arguments.Check(interpreter, function, names);
  }

  // Null when it is not given.
  const Value* Find(size_t index) const { return arguments_.Find(index, names_[index]); }
  const Value& Required(size_t index) const;
  Value Or(size_t index, const Value& otherwise) const;
  bool Truth(size_t index, bool otherwise) const;
  int64_t Integer(size_t index) const;
  int64_t Integer(size_t index, int64_t otherwise) const;
  // A string; other kinds are an error.
  const String& Text(size_t index) const;

 private:
  Interpreter& interpreter_;
  const Arguments& arguments_;
  std::string_view function_;
  std::vector<std::string_view> names_;
};

}  // namespace pmkvq::jinja
