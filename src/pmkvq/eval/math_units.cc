#include "pmkvq/eval/math_units.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <vector>

namespace pmkvq {
namespace {

struct UnitName {
  std::string_view alias;
  std::string_view name;  // "": carries no meaning of its own.
};

constexpr UnitName kUnits[] = {
    {"mm", "mm"},          {"cm", "cm"},         {"km", "km"},          {"meter", "m"},
    {"meters", "m"},       {"metre", "m"},       {"metres", "m"},       {"centimeter", "cm"},
    {"centimeters", "cm"}, {"kilometer", "km"},  {"kilometers", "km"},  {"millimeters", "mm"},
    {"in", "in"},          {"inch", "in"},       {"inches", "in"},      {"ft", "ft"},
    {"foot", "ft"},        {"feet", "ft"},       {"yard", "yd"},        {"yards", "yd"},
    {"mile", "mi"},        {"miles", "mi"},      {"mph", "mi/h"},       {"kg", "kg"},
    {"gram", "g"},         {"grams", "g"},       {"kilogram", "kg"},    {"kilograms", "kg"},
    {"gm", "g"},           {"lb", "lb"},         {"lbs", "lb"},         {"pound", "lb"},
    {"pounds", "lb"},      {"ounce", "oz"},      {"ounces", "oz"},      {"oz", "oz"},
    {"liter", "L"},        {"liters", "L"},      {"litres", "L"},       {"ml", "mL"},
    {"mL", "mL"},          {"gallon", "gal"},    {"gallons", "gal"},    {"sec", "s"},
    {"second", "s"},       {"seconds", "s"},     {"min", "min"},        {"minute", "min"},
    {"minutes", "min"},    {"hour", "h"},        {"hours", "h"},        {"hr", "h"},
    {"hrs", "h"},          {"day", "day"},       {"days", "day"},       {"week", "week"},
    {"weeks", "week"},     {"month", "month"},   {"months", "month"},   {"year", "year"},
    {"years", "year"},     {"dollar", "dollar"}, {"dollars", "dollar"}, {"USD", "dollar"},
    {"cent", "cent"},      {"cents", "cent"},    {"degree", ""},        {"degrees", ""},
    {"unit", ""},          {"units", ""},
};
// Too short to be told from variables outside of \text.
constexpr UnitName kShortUnits[] = {{"m", "m"}, {"g", "g"}, {"s", "s"}, {"h", "h"}, {"L", "L"}};

constexpr std::string_view kTextCommands[] = {"\\text",   "\\textrm", "\\textnormal", "\\textit",
                                              "\\textbf", "\\mbox",   "\\hbox",       "\\mathrm"};

// Words behind a number that are more than the name of what is counted.
constexpr std::string_view kMeaningfulWords[] = {
    "and",      "or",       "mod",       "more",    "less",  "than",      "least",
    "most",     "hundred",  "million",   "dozen",   "half",  "third",     "quarter",
    "base",     "thousand", "thousands", "billion", "times", "factorial", "sqrt",
    "infinity", "trillion", "squared",   "cubed",   "over",  "plus",      "minus",
    "not",      "log",      "sin",       "cos",     "tan"};

template <class Range, class Value>
bool Contains(const Range& range, const Value& value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool EndsWith(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

std::string_view TrimEnd(std::string_view text) {
  while (!text.empty()) {
    const char last = text.back();
    if (last == '$' && EndsWith(text, "\\$")) break;
    if (std::string_view(" \t\r\n.,;$~").find(last) == std::string_view::npos) break;
    text.remove_suffix(1);
    // "\," and "\ " are one command each.
    if (!text.empty() && text.back() == '\\' && !EndsWith(text, "\\\\")) text.remove_suffix(1);
  }
  return text;
}

// A quantity a unit can belong to.
bool IsQuantity(std::string_view text) {
  return std::any_of(text.begin(), text.end(), IsDigit) || EndsWith(text, "\\pi");
}

std::optional<std::string_view> FindUnit(std::string_view word, bool in_text) {
  for (const UnitName& unit : kUnits) {
    if (unit.alias == word) return unit.name;
  }
  for (const UnitName& unit : kShortUnits) {
    if (in_text && unit.alias == word) return unit.name;
  }
  return std::nullopt;
}

std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t begin = i;
    while (i < text.size() && IsLetter(text[i])) ++i;
    if (i > begin) words.push_back(text.substr(begin, i - begin));
  }
  return words;
}

// "square inches" -> "in^2", "miles per hour" -> "mi/h"; "" when a word is unknown.
std::string CanonicalUnit(std::string_view text, std::string_view exponent, bool in_text) {
  std::string unit;
  std::string power(exponent);
  bool over = false;
  for (const std::string_view word : Words(text)) {
    // "km/h" has its stroke in front of the second word.
    const bool stroke = word.data() > text.data() && word.data()[-1] == '/';
    over = over || stroke || word == "per";
    if (word == "square" || word == "sq") {
      power = "2";
    } else if (word == "cubic") {
      power = "3";
    } else if (const std::optional<std::string_view> name = FindUnit(word, in_text)) {
      if (over && !unit.empty()) unit += "/";
      over = false;
      unit += *name;
    } else if (word != "per") {
      return "";
    }
  }
  return power.empty() || unit.empty() ? unit : unit + "^" + power;
}

// Takes "^2", "^3", "^{2}" or "^{3}" off the end of `text` and returns the digit.
std::string_view TakeExponent(std::string_view* text) {
  for (const std::string_view suffix : {"^2", "^3", "^{2}", "^{3}"}) {
    if (!EndsWith(*text, suffix)) continue;
    text->remove_suffix(suffix.size());
    return suffix.substr(suffix.size() == 2 ? 1 : 2, 1);
  }
  return {};
}

bool HasMeaningfulWord(std::string_view text) {
  for (const std::string_view word : Words(text)) {
    if (Contains(kMeaningfulWords, word)) return true;
  }
  return false;
}

// "\text{ cm}^2" at the end.
bool TakeTextGroup(TrailingUnit* answer) {
  std::string_view text = answer->rest;
  const std::string_view exponent = TakeExponent(&text);
  if (!EndsWith(text, "}")) return false;
  const size_t open = text.rfind('{');
  if (open == std::string_view::npos) return false;
  const std::string_view content = text.substr(open + 1, text.size() - open - 2);
  const std::string_view head = text.substr(0, open);
  const size_t slash = head.rfind('\\');
  if (slash == std::string_view::npos || !Contains(kTextCommands, head.substr(slash))) return false;
  const std::string_view quantity = TrimEnd(head.substr(0, slash));
  const bool only_words = std::all_of(content.begin(), content.end(), [](char c) {
    return IsLetter(c) || std::string_view(" ~./-^23").find(c) != std::string_view::npos;
  });
  if (!only_words || !IsQuantity(quantity) || HasMeaningfulWord(content)) return false;
  // "\mathrm{e}" and "\mathrm{i}" are numbers.
  if (content == "e" || content == "i") return false;
  if (content == "percent") answer->percent = true;
  answer->unit = CanonicalUnit(content, exponent, true) + answer->unit;
  answer->rest = quantity;
  return true;
}

// Words at the end that are all units, or any words behind a plain number.
bool TakePlainWords(TrailingUnit* answer) {
  std::string_view text = answer->rest;
  const std::string_view exponent = TakeExponent(&text);
  size_t begin = text.size();
  bool quotient = false;  // "km/h": short names are safe there.
  while (begin > 0) {
    const char c = text[begin - 1];
    const bool slash = c == '/' && begin > 1 && begin < text.size() && IsLetter(text[begin]) &&
                       IsLetter(text[begin - 2]);
    if (!IsLetter(c) && c != ' ' && !slash) break;
    quotient = quotient || slash;
    --begin;
  }
  // The first word may be the name of a command: "12\pi cm".
  if (begin > 0 && text[begin - 1] == '\\') {
    while (begin < text.size() && IsLetter(text[begin])) ++begin;
  }
  if (begin == 0 || begin == text.size()) return false;
  const std::string_view words = text.substr(begin);
  const std::string_view quantity = TrimEnd(text.substr(0, begin));
  const std::vector<std::string_view> all = Words(words);
  if (all.empty() || !IsQuantity(quantity) || HasMeaningfulWord(words)) return false;
  const bool number = std::all_of(quantity.begin(), quantity.end(), [](char c) {
    return IsDigit(c) || std::string_view(".,-+/$\\{}! ").find(c) != std::string_view::npos;
  });
  const bool known = std::all_of(all.begin(), all.end(), [&](std::string_view word) {
    return word == "square" || word == "sq" || word == "cubic" || word == "per" ||
           word == "percent" || FindUnit(word, quotient);
  });
  const bool noun =
      number && words[0] == ' ' && exponent.empty() &&
      std::all_of(all.begin(), all.end(), [](std::string_view word) { return word.size() >= 3; });
  if (!known && !noun) return false;
  if (all.back() == "percent") answer->percent = true;
  answer->unit = CanonicalUnit(words, exponent, quotient) + answer->unit;
  answer->rest = quantity;
  return true;
}

bool TakePercentSign(TrailingUnit* answer) {
  if (!EndsWith(answer->rest, "%")) return false;
  answer->rest.remove_suffix(1);
  if (EndsWith(answer->rest, "\\")) answer->rest.remove_suffix(1);
  answer->percent = true;
  return true;
}

}  // namespace

TrailingUnit TakeTrailingUnit(std::string_view answer) {
  TrailingUnit result;
  result.rest = TrimEnd(answer);
  // "\text{ square}\text{ cm}" has several; each round takes one off.
  while (TakePercentSign(&result) || TakeTextGroup(&result) || TakePlainWords(&result)) {
    result.rest = TrimEnd(result.rest);
  }
  return result;
}

}  // namespace pmkvq
