// Python's operators and comparisons on values. Internal to text/jinja. Each throws where Python
// raises.
#pragma once

#include "pmkvq/text/jinja/runtime.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

// `op`: + - * / \ (floor division) % ^ (power).
Value Arithmetic(Runtime& runtime, char op, const Value& left, const Value& right);
Value Negative(Runtime& runtime, const Value& value);

bool Equal(Runtime& runtime, const Value& left, const Value& right);
// left < right. `sign` names the operator in errors.
bool Less(Runtime& runtime, const Value& left, const Value& right, std::string_view sign = "<");
// item in container
bool Contains(Runtime& runtime, const Value& container, const Value& item);

// value[index], value.name where it is no method, and value[start:stop:step] (none: left out).
// Undefined where there is no such item; a slice of a value without slices throws.
Value Item(Runtime& runtime, const Value& value, const Value& index);
Value Attribute(Runtime& runtime, const Value& value, const std::string& name);
Value Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
            const Value& step);

// `text` with &, <, >, ' and " as HTML writes them; as Markup. Markup itself stays.
Value Escape(Runtime& runtime, const Value& value);

}  // namespace pmkvq::jinja
