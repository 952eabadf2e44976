#include "pmkvq/methods/spec.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

[[noreturn]] void Fail(std::string_view text, const std::string& reason) {
  throw InvalidInput(
      "--kv", fmt::format("'{}': {}, expected name[:key=value[+key=value...]]", text, reason));
}

}  // namespace

MethodSpec ParseMethodSpec(std::string_view text) {
  MethodSpec spec;
  const size_t colon = text.find(':');
  spec.name = std::string(text.substr(0, colon));
  if (spec.name.empty()) Fail(text, "no method name");
  if (colon == std::string_view::npos) return spec;

  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t plus = rest.find('+');
    const std::string_view part = rest.substr(0, plus);
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == part.size()) {
      Fail(text, fmt::format("found '{}'", part));
    }
    const std::string key(part.substr(0, equals));
    if (!spec.keys.emplace(key, part.substr(equals + 1)).second) {
      Fail(text, fmt::format("'{}' is given twice", key));
    }
    if (plus == std::string_view::npos) return spec;
    rest = rest.substr(plus + 1);
  }
}

}  // namespace pmkvq
