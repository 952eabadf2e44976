#include "option_values.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/nearest_name.h"

namespace pmkvq::cli {
namespace {

// Marks the validators below, so that ApplyValueRules finds options without one.
constexpr char kNumberRule[] = "number";

std::string Found(const std::string& text, const std::string& expected) {
  return fmt::format("found '{}', expected {}", text, expected);
}

template <class T>
std::optional<T> ReadNumber(const std::string& text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || next != end || text.empty()) return std::nullopt;
  return value;
}

// "from 0", "from 1 to 4096", "up to 5" or nothing.
template <class T>
std::string RangeText(T least, T most) {
  const bool has_least = least != std::numeric_limits<T>::lowest();
  // Nobody reaches kMostTokens; as a bound it would only hide the lower one.
  const bool has_most = most < static_cast<T>(kMostTokens);
  if (has_least && has_most) return fmt::format(" from {} to {}", least, most);
  if (has_least) return fmt::format(" from {}", least);
  if (has_most) return fmt::format(" up to {}", most);
  return "";
}

// CLI11 would read "010" as octal.
template <class T>
std::string CheckWholeNumber(std::string& text, T least, T most, const std::string& expected) {
  const std::optional<T> value = ReadNumber<T>(text);
  if (value && *value > most) {
    const bool is_said = expected.ends_with(fmt::format("{}", most));
    return Found(text, is_said ? expected : fmt::format("{}, at most {}", expected, most));
  }
  if (!value || *value < least) return Found(text, expected);
  text = fmt::format("{}", *value);
  return "";
}

CLI::Validator NumberRule(std::function<std::string(std::string&)> check) {
  return CLI::Validator(std::move(check), "", kNumberRule);
}

// The message of an error without the place in front: the option names itself.
std::string WithoutPlace(const Error& error) {
  const std::string text = error.what();
  const size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

// A validator that accepts the values that `parse` reads without an exception.
CLI::Validator Parsed(std::function<void(const std::string&)> parse) {
  return CLI::Validator(
      [parse = std::move(parse)](std::string& text) -> std::string {
        try {
          parse(text);
        } catch (const Error& error) {
          return WithoutPlace(error);
        }
        return "";
      },
      "", "size");
}

// No cache of a real model is smaller than this, and nobody counts more than this in MiB.
constexpr int64_t kLeastBareBytes = 64 << 10;
constexpr int64_t kMostBareMib = 1 << 20;

int64_t ReadKvBudget(const std::string& text) {
  const int64_t bytes = ParseByteSize(text, "--kv-budget");
  if (bytes == 0) throw InvalidInput("--kv-budget", Found(text, "a size like 6MiB"));
  if (!HasByteUnit(text) && bytes < kLeastBareBytes) {
    throw InvalidInput(
        "--kv-budget",
        fmt::format("found '{0}', which is {1} bytes: did you mean {0}MiB? ({1}B for bytes)",
                    text.substr(0, text.find(' ')), bytes));
  }
  return bytes;
}

int64_t ReadMemory(const std::string& text) {
  const int64_t bytes = ParseByteSize(text, "--memory");
  if (bytes < kLeastBareBytes) {
    throw InvalidInput("--memory", Found(text, "a size like 24GB"));
  }
  return bytes;
}

int64_t ReadMemoryBudget(const std::string& text) {
  const int64_t bytes = ParseByteSize(text, "--memory-budget", BareSize::kMib);
  if (bytes == 0) throw InvalidInput("--memory-budget", Found(text, "more than 0 bytes"));
  if (!HasByteUnit(text) && bytes >> 20 >= kMostBareMib) {
    throw InvalidInput("--memory-budget",
                       fmt::format("found '{0}', which is {0} MiB: did you mean {0}B? (MiB is what "
                                   "a number without unit means here)",
                                   text.substr(0, text.find(' '))));
  }
  return bytes;
}

template <class Read>
int64_t AsUsage(const char* option, const std::string& text, const Read& read) {
  try {
    return read(text);
  } catch (const Error& error) {
    throw CLI::ValidationError(option, WithoutPlace(error));
  }
}

std::set<std::string> NamesOf(const CLI::App& command) {
  std::set<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.insert("--" + name);
    for (const std::string& name : option->get_snames()) names.insert("-" + name);
  }
  return names;
}

bool HasNumberRule(CLI::Option& option) {
  try {
    return option.get_validator(kNumberRule) != nullptr;
  } catch (const CLI::OptionNotFound&) {
    return false;
  }
}

void ApplyNumberRule(CLI::Option& option) {
  if (HasNumberRule(option)) return;
  const std::string type = option.get_type_name();
  const std::string name = type.substr(0, type.find(':'));
  if (name == "INT") option.transform(WholeNumber());
  if (name == "UINT") option.transform(SeedNumber());
  if (name == "FLOAT") option.transform(DecimalNumber());
}

}  // namespace

CLI::Validator WholeNumber(int64_t least, int64_t most) {
  const std::string expected = "a whole number" + RangeText(least, most);
  return NumberRule(
      [=](std::string& text) { return CheckWholeNumber(text, least, most, expected); });
}

CLI::Validator SeedNumber() {
  static constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  return NumberRule([](std::string& text) {
    return CheckWholeNumber<uint64_t>(text, 0, kMost,
                                      fmt::format("a whole number from 0 to {}", kMost));
  });
}

CLI::Validator DecimalNumber(double least, double most) {
  return NumberRule([=](std::string& text) -> std::string {
    const std::optional<double> value = ReadNumber<double>(text);
    const bool is_fine = value && std::isfinite(*value) && *value >= least && *value <= most;
    return is_fine ? "" : Found(text, "a number" + RangeText(least, most));
  });
}

CLI::Validator OneOf(const std::vector<std::string>& names) {
  return CLI::Validator(
      [names](std::string& text) -> std::string {
        if (std::find(names.begin(), names.end(), text) != names.end()) return "";
        return fmt::format("found '{}', expected one of {}{}", text, fmt::join(names, ", "),
                           DidYouMean(text, names));
      },
      fmt::format("{{{}}}", fmt::join(names, ",")), kNumberRule);
}

std::vector<int64_t> ParseWholeNumbers(const std::string& text, const std::string& option,
                                       int64_t least, int64_t most) {
  const std::string expected =
      fmt::format("whole numbers{}, with commas between them", RangeText(least, most));
  std::vector<int64_t> values;
  for (std::string& piece : SplitAtCommas(text)) {
    const std::string wrong = CheckWholeNumber(piece, least, most, expected);
    if (!wrong.empty()) throw CLI::ValidationError(option, wrong);
    values.push_back(*ReadNumber<int64_t>(piece));
  }
  return values;
}

CLI::Option* AddWholeNumbers(CLI::App& command, const std::string& name,
                             std::vector<int64_t>& values, const std::string& text, int64_t least,
                             int64_t most) {
  const auto read = [&values, name, least, most](const std::vector<std::string>& texts) {
    values.clear();
    for (const std::string& piece : texts) {
      const std::vector<int64_t> more = ParseWholeNumbers(piece, name, least, most);
      values.insert(values.end(), more.begin(), more.end());
    }
  };
  return command.add_option_function<std::vector<std::string>>(name, read, text)
      ->type_name("INT,...")
      ->default_str(fmt::format("{}", fmt::join(values, ",")));
}

std::vector<std::string> SplitAtCommas(const std::string& text) {
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    pieces.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return pieces;
}

std::vector<int> ParseWidths(const std::string& text, const std::string& option) {
  std::vector<int> widths;
  for (const int64_t width : ParseWholeNumbers(text, option, 2, 16)) {
    if (width != 16 && width != 8 && width != 4 && width != 2) {
      throw CLI::ValidationError(
          option, fmt::format("found '{}', expected widths out of 16, 8, 4, 2", width));
    }
    widths.push_back(static_cast<int>(width));
  }
  return widths;
}

CLI::Option* AddThreads(CLI::App& command, int& threads) {
  return command.add_option("--threads", threads, "worker threads (0: all processors)")
      ->transform(WholeNumber(0, kMostThreads))
      ->capture_default_str();
}

int64_t ParseKvBudget(const std::string& text) {
  return AsUsage("--kv-budget", text, ReadKvBudget);
}
int64_t ParseMemoryBudget(const std::string& text) {
  return AsUsage("--memory-budget", text, ReadMemoryBudget);
}
CLI::Validator KvBudgetSize() { return Parsed(ReadKvBudget); }
CLI::Validator KvBudgetSizes() {
  return Parsed([](const std::string& text) {
    for (const std::string& piece : SplitAtCommas(text)) ReadKvBudget(piece);
  });
}
CLI::Validator MemorySize() { return Parsed(ReadMemory); }
CLI::Validator MemoryBudgetSize() { return Parsed(ReadMemoryBudget); }

void ApplyValueRules(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands({})) ApplyValueRules(*command);
  const std::set<std::string> names = NamesOf(app);
  for (CLI::Option* option : app.get_options()) {
    if (option->get_type_size() == 0) continue;  // A flag.
    ApplyNumberRule(*option);
    // Transforms stand in front of those that were there before.
    option->transform(CLI::Validator(
        [names](std::string& text) -> std::string {
          if (text.empty()) return "found an empty value, expected one (is a variable unset?)";
          if (!names.contains(text)) return "";
          return fmt::format("found '{}', which is an option, expected a value before it", text);
        },
        ""));
  }
}

}  // namespace pmkvq::cli
