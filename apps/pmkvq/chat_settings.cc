#include "chat_settings.h"

#include <fmt/format.h>

#include <charconv>
#include <functional>
#include <limits>
#include <vector>

#include "pmkvq/base/error.h"

namespace pmkvq::cli {
namespace {

template <class Number>
Number ParseNumber(const std::string& text, const std::string& name, Number least, Number most,
                   const char* expected) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // The negated comparison refuses NaN, too.
  if (error != std::errc() || end != text.data() + text.size() ||
      !(value >= least && value <= most)) {
    throw InvalidInput("/set " + name, fmt::format("found \"{}\", expected {}", text, expected));
  }
  return value;
}

struct Setting {
  const char* name;
  std::function<void(ChatSettings&, const std::string&)> set;
};

const std::vector<Setting>& Settings() {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  static const std::vector<Setting> settings = {
      {"temperature",
       [](ChatSettings& s, const std::string& text) {
         s.sampling.temperature =
             ParseNumber(text, "temperature", 0.0, 100.0, "a number from 0 to 100 (0: greedy)");
       }},
      {"top-p",
       [](ChatSettings& s, const std::string& text) {
         s.sampling.top_p = ParseNumber(text, "top-p", 0.0, 1.0, "a number from 0 to 1 (1: off)");
       }},
      {"top-k",
       [](ChatSettings& s, const std::string& text) {
         s.sampling.top_k =
             ParseNumber(text, "top-k", int64_t{0}, kMost, "a whole number from 0 (0: off)");
       }},
      {"min-p",
       [](ChatSettings& s, const std::string& text) {
         s.sampling.min_p = ParseNumber(text, "min-p", 0.0, 1.0, "a number from 0 to 1 (0: off)");
       }},
      {"seed",
       [](ChatSettings& s, const std::string& text) {
         s.seed = ParseNumber(text, "seed", uint64_t{0}, std::numeric_limits<uint64_t>::max(),
                              "a whole number from 0");
       }},
      {"max-tokens",
       [](ChatSettings& s, const std::string& text) {
         s.max_tokens = ParseNumber(text, "max-tokens", int64_t{0}, kMost,
                                    "a whole number from 0 (0: as many as fit)");
       }},
  };
  return settings;
}

}  // namespace

std::string ChatSettings::Describe() const {
  return fmt::format("temperature {:g}, top-p {:g}, top-k {}, min-p {:g}, seed {}, max-tokens {}",
                     sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, seed,
                     max_tokens);
}

std::string ChatSettings::Set(const std::string& assignment) {
  const size_t end = assignment.find_first_of(" \t=");
  std::string name = assignment.substr(0, end);
  for (char& c : name) c = c == '_' ? '-' : c;
  const size_t begin = end == std::string::npos ? end : assignment.find_first_not_of(" \t=", end);
  const std::string value = begin == std::string::npos ? "" : assignment.substr(begin);
  std::string names;
  for (const Setting& setting : Settings()) {
    if (name == setting.name) {
      setting.set(*this, value);
      return Describe();
    }
    names += std::string(names.empty() ? "" : ", ") + setting.name;
  }
  throw InvalidInput("/set", fmt::format("found \"{}\", expected one of {}", name, names));
}

}  // namespace pmkvq::cli
