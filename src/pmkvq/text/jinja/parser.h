// Templates to trees. Internal to text/jinja.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/text/jinja/ast.h"
#include "pmkvq/text/jinja/limits.h"

namespace pmkvq::jinja {

// Throws InvalidInput where the text is not a valid template, and Unsupported for statements,
// filters, tests, functions and methods that are not known here; both name the line and construct.
Tree ParseTree(std::string_view text, const std::string& source, const Limits& limits);

}  // namespace pmkvq::jinja
