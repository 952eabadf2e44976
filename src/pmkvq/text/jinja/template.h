// Chat templates in Jinja, as transformers runs them: Jinja2's immutable sandbox with trim_blocks,
// lstrip_blocks and loop controls, and its own tojson, raise_exception and strftime_now.
//
// Known: if / elif / else, for (filter, else, unpacking, break, continue, all of `loop` but
// recursion), set (also of blocks and of members of a namespace), macro, call, filter, with, raw,
// generation (its text only), comments and white space control; all operators of Jinja; the
// filters, tests and methods that published templates use, and their relatives (filters_values.cc,
// tests.cc, methods.cc, string_methods.cc list them). Anything else is refused when the template is
// read. Integers have 64 bits; larger ones are an error. Generators are evaluated at once.
//
// Text of a user stays marked: the prompt records which of its bytes came from the variables.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/limits.h"
#include "pmkvq/text/jinja/value.h"
#include "pmkvq/text/marked_text.h"

namespace pmkvq::jinja {

struct Tree;

// Variables of a rendering, by name. A later one replaces an earlier one of the same name.
using Variables = std::vector<std::pair<std::string, Value>>;

// A string that a user wrote; and one that counts as written by the template.
Value InputString(std::string text);
Value TrustedString(std::string text);
Value MarkedString(MarkedText text);
// A list, and a dict with string keys, of a caller.
Value MakeList(std::vector<Value> items);
Value MakeDict(std::vector<std::pair<std::string, Value>> members);
// A JSON value whose strings, also the keys, a user wrote. Throws InvalidInput for nesting beyond
// Limits::max_value_depth.
Value FromJson(const JsonValue& json);

// Immutable; Render may be called from several threads.
class Template {
 public:
  // `source` names the template in errors. Throws InvalidInput for an invalid template, Unsupported
  // for constructs that are not known here; both name the line.
  static std::shared_ptr<const Template> Parse(std::string_view text, const std::string& source,
                                               const Limits& limits = {});
  ~Template();

  // The text that the template makes of the variables. `date`: the day of strftime_now.
  // Throws InvalidInput "[source] line N: ..." where Jinja2 would raise an error (also by
  // raise_exception), and where a limit is exceeded.
  MarkedText Render(const Variables& variables, const Date& date = {}) const;

 private:
  Template();

  std::string source_;
  Limits limits_;
  std::unique_ptr<Tree> tree_;
};

}  // namespace pmkvq::jinja
