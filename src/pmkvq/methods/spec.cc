#include "pmkvq/methods/spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

[[noreturn]] void Fail(std::string_view text, const std::string& reason) {
  throw InvalidInput(
      "--kv", fmt::format("'{}': {}, expected name[:key=value[+key=value...]]", text, reason));
}

template <class T>
bool ReadNumber(const std::string& text, T& number) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, number);
  return result.ec == std::errc() && result.ptr == end;
}

InvalidInput WrongValue(const MethodSpec& spec, const std::string& key,
                        const std::string& expected) {
  return InvalidInput(
      "--kv", fmt::format("'{}': {}={}, expected {}", spec.text, key, spec.keys.at(key), expected));
}

template <class T>
T NumberIn(const MethodSpec& spec, const std::string& key, T otherwise, T least, T most) {
  if (!spec.keys.contains(key)) return otherwise;
  T number{};
  // Written so that NaN is refused.
  if (!ReadNumber(spec.keys.at(key), number) || !(number >= least && number <= most)) {
    throw WrongValue(spec, key, fmt::format("a number in [{}, {}]", least, most));
  }
  return number;
}

}  // namespace

int64_t MethodSpec::OneOf(const std::string& key, int64_t otherwise,
                          std::initializer_list<int64_t> allowed) const {
  if (!keys.contains(key)) return otherwise;
  int64_t number = 0;
  if (!ReadNumber(keys.at(key), number) ||
      std::find(allowed.begin(), allowed.end(), number) == allowed.end()) {
    throw WrongValue(*this, key, fmt::format("one of {}", fmt::join(allowed, ", ")));
  }
  return number;
}

int64_t MethodSpec::Integer(const std::string& key, int64_t otherwise, int64_t least,
                            int64_t most) const {
  return NumberIn(*this, key, otherwise, least, most);
}

double MethodSpec::Real(const std::string& key, double otherwise, double least, double most) const {
  return NumberIn(*this, key, otherwise, least, most);
}

std::string MethodSpec::NameOf(const std::string& key, const std::string& otherwise,
                               std::initializer_list<const char*> allowed) const {
  if (!keys.contains(key)) return otherwise;
  const std::string& found = keys.at(key);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    throw WrongValue(*this, key, fmt::format("one of {}", fmt::join(allowed, ", ")));
  }
  return found;
}

void MethodSpec::CheckNames(std::initializer_list<const char*> known_keys,
                            std::initializer_list<const char*> known_words) const {
  std::vector<std::string> known;
  for (const char* key : known_keys) known.push_back(std::string(key) + "=");
  for (const char* word : known_words) known.emplace_back(word);
  const auto check = [&](const char* kind, const std::string& found, const auto& names) {
    if (std::find(names.begin(), names.end(), found) != names.end()) return;
    throw InvalidInput(
        "--kv", fmt::format("'{}': unknown {} '{}' for {}, expected {}", text, kind, found, name,
                            known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  };
  for (const auto& [key, value] : keys) check("key", key, known_keys);
  for (const std::string& word : words) check("word", word, known_words);
}

MethodSpec ParseMethodSpec(std::string_view text) {
  MethodSpec spec;
  const size_t colon = text.find(':');
  spec.name = std::string(text.substr(0, colon));
  spec.text = std::string(text);
  if (spec.name.empty()) Fail(text, "no method name");
  if (colon == std::string_view::npos) return spec;

  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t plus = rest.find('+');
    const std::string_view part = rest.substr(0, plus);
    const size_t equals = part.find('=');
    if (part.empty() || equals == 0 || equals + 1 == part.size()) {
      Fail(text, fmt::format("found '{}'", part));
    }
    const std::string key(part.substr(0, equals));
    const bool is_new = equals == std::string_view::npos
                            ? spec.words.insert(key).second
                            : spec.keys.emplace(key, part.substr(equals + 1)).second;
    if (!is_new) Fail(text, fmt::format("'{}' is given twice", key));
    if (plus == std::string_view::npos) return spec;
    rest = rest.substr(plus + 1);
  }
}

}  // namespace pmkvq
