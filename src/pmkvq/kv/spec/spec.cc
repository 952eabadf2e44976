#include "pmkvq/kv/spec/spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "pmkvq/base/check.h"
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

bool IsAllowed(const SpecKey& key, const std::string& value) {
  if (std::find(key.choices.begin(), key.choices.end(), value) != key.choices.end()) return true;
  switch (key.kind) {
    case SpecKey::Kind::kInteger: {
      int64_t number = 0;
      return ReadNumber(value, number) && number >= static_cast<int64_t>(key.least) &&
             number <= static_cast<int64_t>(key.most);
    }
    case SpecKey::Kind::kReal: {
      double number = 0;  // Comparisons with NaN are false.
      return ReadNumber(value, number) && number >= key.least && number <= key.most;
    }
    case SpecKey::Kind::kFile:
      return true;  // The reader of the file reports its errors.
    case SpecKey::Kind::kWord:
    case SpecKey::Kind::kChoice:
      break;
  }
  return false;
}

const SpecKey* FindKey(const SpecKeys& declared, const std::string& name, bool is_word) {
  for (const SpecKey& key : declared) {
    if (key.name == name && (key.kind == SpecKey::Kind::kWord) == is_word) return &key;
  }
  return nullptr;
}

}  // namespace

SpecKey WordKey(std::string name, std::string help) {
  SpecKey key;
  key.name = std::move(name);
  key.help = std::move(help);
  return key;
}

SpecKey IntegerKey(std::string name, int64_t least, int64_t most, std::string fallback,
                   std::string help) {
  return {std::move(name),
          SpecKey::Kind::kInteger,
          static_cast<double>(least),
          static_cast<double>(most),
          {},
          std::move(fallback),
          std::move(help)};
}

SpecKey RealKey(std::string name, double least, double most, std::string fallback,
                std::string help) {
  return {std::move(name),     SpecKey::Kind::kReal, least, most, {},
          std::move(fallback), std::move(help)};
}

SpecKey ChoiceKey(std::string name, std::vector<std::string> choices, std::string fallback,
                  std::string help) {
  return {std::move(name),     SpecKey::Kind::kChoice, 0, 0, std::move(choices),
          std::move(fallback), std::move(help)};
}

SpecKey FileKey(std::string name, std::string fallback, std::string help,
                std::vector<std::string> choices) {
  return {std::move(name),     SpecKey::Kind::kFile, 0, 0, std::move(choices),
          std::move(fallback), std::move(help)};
}

std::string SpecKey::Values() const {
  switch (kind) {
    case Kind::kWord:
      break;
    case Kind::kInteger:
      return fmt::format("a whole number in [{}, {}]", static_cast<int64_t>(least),
                         static_cast<int64_t>(most));
    case Kind::kReal:
      return fmt::format("a number in [{}, {}]", least, most);
    case Kind::kChoice:
      return fmt::format("one of {}", fmt::join(choices, ", "));
    case Kind::kFile:
      return choices.empty() ? "a file" : fmt::format("a file or {}", fmt::join(choices, ", "));
  }
  return "";
}

void MethodSpec::Check(const SpecKeys& declared) const {
  const auto unknown = [&](const char* kind, const std::string& found) {
    std::vector<std::string> known;
    for (const SpecKey& key : declared) {
      known.push_back(key.kind == SpecKey::Kind::kWord ? key.name : key.name + "=");
    }
    return InvalidInput(
        "--kv", fmt::format("'{}': unknown {} '{}' for {}, expected {}", text, kind, found, name,
                            known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  };
  for (const auto& [found, value] : keys) {
    const SpecKey* const key = FindKey(declared, found, false);
    if (key == nullptr) throw unknown("key", found);
    if (!IsAllowed(*key, value)) {
      throw InvalidInput(
          "--kv", fmt::format("'{}': {}={}, expected {}", text, found, value, key->Values()));
    }
  }
  for (const std::string& word : words) {
    if (FindKey(declared, word, true) == nullptr) throw unknown("word", word);
  }
}

int64_t MethodSpec::Integer(const std::string& key, int64_t otherwise) const {
  if (!keys.contains(key)) return otherwise;
  int64_t number = 0;
  PMKVQ_CHECK_MSG(ReadNumber(keys.at(key), number), "Check has let another value pass");
  return number;
}

double MethodSpec::Real(const std::string& key, double otherwise) const {
  if (!keys.contains(key)) return otherwise;
  double number = 0;
  PMKVQ_CHECK_MSG(ReadNumber(keys.at(key), number), "Check has let another value pass");
  return number;
}

std::string MethodSpec::Text(const std::string& key, const std::string& otherwise) const {
  return keys.contains(key) ? keys.at(key) : otherwise;
}

std::vector<std::pair<std::string, std::string>> MethodSpec::Files(const SpecKeys& declared) const {
  std::vector<std::pair<std::string, std::string>> files;
  for (const auto& [found, value] : keys) {
    const SpecKey* const key = FindKey(declared, found, false);
    if (key == nullptr || key->kind != SpecKey::Kind::kFile) continue;
    if (std::find(key->choices.begin(), key->choices.end(), value) != key->choices.end()) continue;
    files.emplace_back(found, value);
  }
  return files;
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
