#include "pmkvq/text/jinja/parameters.h"

#include <fmt/format.h>

namespace pmkvq::jinja {

const Value& Parameters::Required(size_t index) const {
  const Value* value = Find(index);
  if (value == nullptr) {
    interpreter_.Fail(fmt::format("{}() misses its argument \"{}\"", function_, names_[index]));
  }
  return *value;
}

Value Parameters::Or(size_t index, const Value& otherwise) const {
  const Value* value = Find(index);
  return value == nullptr ? otherwise : *value;
}

bool Parameters::Truth(size_t index, bool otherwise) const {
  const Value* value = Find(index);
  return value == nullptr ? otherwise : IsTrue(*value);
}

int64_t Parameters::Integer(size_t index) const {
  const Value& value = Required(index);
  if (value.IsUndefined()) interpreter_.FailUndefined(value);
  if (!value.IsInteger()) {
    interpreter_.Fail(fmt::format("the argument \"{}\" of {}() is a {}, expected an integer",
                                  names_[index], function_, TypeName(value)));
  }
  return value.as_int();
}

int64_t Parameters::Integer(size_t index, int64_t otherwise) const {
  return Find(index) == nullptr ? otherwise : Integer(index);
}

const String& Parameters::Text(size_t index) const {
  const Value& value = Required(index);
  if (value.IsUndefined()) interpreter_.FailUndefined(value);
  if (!value.IsString()) {
    interpreter_.Fail(fmt::format("the argument \"{}\" of {}() is a {}, expected a string",
                                  names_[index], function_, TypeName(value)));
  }
  return value.string();
}

}  // namespace pmkvq::jinja
