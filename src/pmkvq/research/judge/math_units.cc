#include "pmkvq/research/judge/math_units.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

namespace pmkvq {
namespace {

struct UnitName {
  std::string_view alias;
  std::string_view name;  // "": has no meaning.
};

constexpr UnitName kUnits[] = {
    {"mm", "mm"},          {"millimeter", "mm"},  {"millimeters", "mm"}, {"millimetre", "mm"},
    {"millimetres", "mm"}, {"cm", "cm"},          {"centimeter", "cm"},  {"centimeters", "cm"},
    {"centimetre", "cm"},  {"centimetres", "cm"}, {"dm", "dm"},          {"decimeter", "dm"},
    {"decimeters", "dm"},  {"decimetre", "dm"},   {"decimetres", "dm"},  {"km", "km"},
    {"kilometer", "km"},   {"kilometers", "km"},  {"kilometre", "km"},   {"kilometres", "km"},
    {"kms", "km"},         {"meter", "m"},        {"meters", "m"},       {"metre", "m"},
    {"metres", "m"},       {"in", "in"},          {"inch", "in"},        {"inches", "in"},
    {"ft", "ft"},          {"foot", "ft"},        {"feet", "ft"},        {"yd", "yd"},
    {"yard", "yd"},        {"yards", "yd"},       {"mi", "mi"},          {"mile", "mi"},
    {"miles", "mi"},       {"mph", "mi/h"},       {"kph", "km/h"},       {"kmph", "km/h"},
    {"kg", "kg"},          {"kgs", "kg"},         {"kilogram", "kg"},    {"kilograms", "kg"},
    {"gram", "g"},         {"grams", "g"},        {"gm", "g"},           {"gms", "g"},
    {"mg", "mg"},          {"milligram", "mg"},   {"milligrams", "mg"},  {"lb", "lb"},
    {"lbs", "lb"},         {"pound", "lb"},       {"pounds", "lb"},      {"ounce", "oz"},
    {"ounces", "oz"},      {"oz", "oz"},          {"ton", "t"},          {"tons", "t"},
    {"tonne", "t"},        {"tonnes", "t"},       {"liter", "L"},        {"liters", "L"},
    {"litre", "L"},        {"litres", "L"},       {"ml", "mL"},          {"mL", "mL"},
    {"milliliter", "mL"},  {"milliliters", "mL"}, {"millilitre", "mL"},  {"millilitres", "mL"},
    {"gallon", "gal"},     {"gallons", "gal"},    {"gal", "gal"},        {"quart", "qt"},
    {"quarts", "qt"},      {"pint", "pt"},        {"pints", "pt"},       {"cup", "cup"},
    {"cups", "cup"},       {"sec", "s"},          {"secs", "s"},         {"second", "s"},
    {"seconds", "s"},      {"ms", "ms"},          {"millisecond", "ms"}, {"milliseconds", "ms"},
    {"min", "min"},        {"mins", "min"},       {"minute", "min"},     {"minutes", "min"},
    {"hour", "h"},         {"hours", "h"},        {"hr", "h"},           {"hrs", "h"},
    {"day", "day"},        {"days", "day"},       {"week", "week"},      {"weeks", "week"},
    {"wk", "week"},        {"wks", "week"},       {"month", "month"},    {"months", "month"},
    {"year", "year"},      {"years", "year"},     {"yr", "year"},        {"yrs", "year"},
    {"dollar", "dollar"},  {"dollars", "dollar"}, {"USD", "dollar"},     {"usd", "dollar"},
    {"buck", "dollar"},    {"bucks", "dollar"},   {"cent", "cent"},      {"cents", "cent"},
    {"euro", "euro"},      {"euros", "euro"},     {"EUR", "euro"},       {"GBP", "pound"},
    {"yen", "yen"},        {"JPY", "yen"},        {"yuan", "yuan"},      {"RMB", "yuan"},
    {"CNY", "yuan"},       {"rupee", "rupee"},    {"rupees", "rupee"},   {"INR", "rupee"},
    {"KRW", "won"},        {"CHF", "franc"},      {"franc", "franc"},    {"francs", "franc"},
    {"ruble", "rouble"},   {"rubles", "rouble"},  {"rouble", "rouble"},  {"roubles", "rouble"},
    {"RUB", "rouble"},     {"newton", "N"},       {"newtons", "N"},      {"joule", "J"},
    {"joules", "J"},       {"watt", "W"},         {"watts", "W"},        {"volt", "V"},
    {"volts", "V"},        {"hertz", "Hz"},       {"Hz", "Hz"},          {"pascal", "Pa"},
    {"pascals", "Pa"},     {"radian", "rad"},     {"radians", "rad"},    {"degree", ""},
    {"degrees", ""},       {"deg", ""},           {"unit", "unit"},      {"units", "unit"}};
// Too short to be told from variables outside of \text.
constexpr UnitName kShortUnits[] = {{"m", "m"}, {"g", "g"}, {"s", "s"}, {"h", "h"}, {"L", "L"},
                                    {"N", "N"}, {"J", "J"}, {"W", "W"}, {"V", "V"}};

constexpr std::string_view kTextCommands[] = {"\\text",   "\\textrm", "\\textnormal", "\\textit",
                                              "\\textbf", "\\mbox",   "\\hbox",       "\\mathrm"};

constexpr std::string_view kCurrencies[] = {"dollar", "cent",  "euro", "pound",  "yen",     "yuan",
                                            "rupee",  "franc", "won",  "rouble", "yen sign"};

// Words of two letters that may stand among the words behind a number.
constexpr std::string_view kShortWords[] = {"am", "pm", "AM", "PM", "AD", "BC", "CE", "up",
                                            "in", "of", "at", "to", "on", "by", "my", "no"};

// Words behind a number that change the answer; others only name the things that are counted.
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

// Without the marks that may follow a quantity.
std::string_view WithoutEndMarks(std::string_view text) {
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

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
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

// The word in lower case and in the singular.
std::string WordForm(std::string_view word) {
  std::string form = LowerCase(word);
  const auto drop = [&](std::string_view end, size_t letters) {
    if (form.size() < 4 || !EndsWith(form, end)) return false;
    form.resize(form.size() - letters);
    return true;
  };
  if (drop("ies", 3)) {
    form += 'y';
  } else if (!drop("xes", 2) && !drop("ches", 2) && !drop("shes", 2) && !drop("sses", 2) &&
             !EndsWith(form, "ss")) {
    drop("s", 1);
  }
  return form;
}

bool IsUnitWord(std::string_view word, bool in_text) {
  return word == "square" || word == "sq" || word == "cubic" || word == "per" ||
         FindUnit(word, in_text).has_value();
}

// "square inches" -> "in^2", "miles per hour" -> "mi/h", "per day" -> "1/day". All words of `text`
// are unit words.
std::string CanonicalUnit(std::string_view text, std::string_view exponent, bool in_text) {
  std::string unit;
  std::string power;
  bool over = false;
  const std::vector<std::string_view> words = Words(text);
  for (const std::string_view word : words) {
    // "km/h" has its stroke in front of the second word.
    const bool stroke = word.data() > text.data() && word.data()[-1] == '/';
    over = over || stroke || word == "per";
    if (word == "square" || word == "sq") {
      power = "2";
    } else if (word == "cubic") {
      power = "3";
    } else if (word != "per") {
      const std::string_view name = FindUnit(word, in_text).value_or("");
      if (over) unit += unit.empty() ? "1/" : "/";
      over = false;
      unit += name;
      if (!power.empty() && !name.empty()) unit += "^" + power;
      power.clear();
    }
  }
  // Behind the last one: "m/s^2".
  const size_t caret = text.find('^');
  if (exponent.empty() && caret != text.npos && caret + 1 < text.size()) {
    const size_t digit = text.find_first_of("23", caret);
    if (digit != text.npos) exponent = text.substr(digit, 1);
  }
  if (!exponent.empty() && !unit.empty()) unit += "^" + std::string(exponent);
  return unit;
}

// Sorts the words behind a number into unit and other words, which are put before earlier ones.
void AddWords(std::string_view text, std::string_view exponent, bool in_text,
              QuantityWords* quantity) {
  bool all_units = true;
  bool has_per = text.find('/') != text.npos;
  std::string units;
  std::vector<std::string> others;
  for (const std::string_view word : Words(text)) {
    has_per = has_per || word == "per";
    if (LowerCase(word) == "percent") {
      quantity->percent = true;
    } else if (IsUnitWord(word, in_text)) {
      units += std::string(word) + " ";
    } else {
      all_units = false;
      others.push_back(WordForm(word));
    }
  }
  if (all_units) {
    const std::string unit = CanonicalUnit(text, exponent, in_text);
    // "\text{ square}\text{ cm}" comes from its end.
    if (unit.empty() && Words(text).size() == 1 && EndsWith(units, "square ")) {
      quantity->unit += "^2";
    } else if (unit.empty() && EndsWith(units, "cubic ")) {
      quantity->unit += "^3";
    } else {
      quantity->unit = unit + quantity->unit;
    }
    return;
  }
  if (has_per) {
    others.clear();
    for (const std::string_view word : Words(text)) others.push_back(WordForm(word));
  } else {
    quantity->unit = CanonicalUnit(units, exponent, in_text) + quantity->unit;
  }
  quantity->words.insert(quantity->words.end(), others.begin(), others.end());
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

std::string_view TakeDegree(std::string_view text) {
  for (const std::string_view sign :
       {"^\\circ", "^{\\circ}", "^{ \\circ }", "^ \\circ", "\\degree"}) {
    if (EndsWith(text, sign)) return WithoutEndMarks(text.substr(0, text.size() - sign.size()));
  }
  return text;
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
  const std::string_view quantity = WithoutEndMarks(head.substr(0, slash));
  const bool only_words = std::all_of(content.begin(), content.end(), [](char c) {
    return IsLetter(c) || std::string_view(" ~./-^23'").find(c) != std::string_view::npos;
  });
  if (!only_words || !IsQuantity(quantity) || HasMeaningfulWord(content)) return false;
  // "\mathrm{e}" and "\mathrm{i}" are numbers.
  if (content == "e" || content == "i") return false;
  AddWords(content, exponent, true, &answer->quantity);
  answer->rest = quantity;
  return true;
}

// Whether words that are no units may be taken off `quantity`: it is a plain number, and they are
// words, not variables.
bool AreNouns(std::string_view quantity, const std::vector<std::string_view>& words) {
  const std::string_view number = TakeDegree(quantity);
  const bool plain = std::all_of(number.begin(), number.end(), [](char c) {
    return IsDigit(c) || std::string_view(".,-+/$\\{}!:% ").find(c) != std::string_view::npos;
  });
  if (!plain) return false;
  // "45^\circ N", "20^\circ C"
  if (number.size() < quantity.size() && words.size() == 1 && words[0].size() == 1) {
    return std::string_view("NSEWCF").find(words[0]) != std::string_view::npos;
  }
  return std::all_of(words.begin(), words.end(), [](std::string_view word) {
    return word.size() >= 3 || Contains(kShortWords, word);
  });
}

// Words at the end that are all units, or any words behind a plain number.
bool TakePlainWords(TrailingUnit* answer) {
  std::string_view text = answer->rest;
  const std::string_view exponent = TakeExponent(&text);
  size_t begin = text.size();
  bool quotient = false;  // "km/h": short names are safe there.
  while (begin > 0) {
    const char c = text[begin - 1];
    const bool ratio = c == '/' && begin > 1 && begin < text.size() && IsLetter(text[begin]);
    const bool slash = ratio && IsLetter(text[begin - 2]);
    if (ratio && IsDigit(text[begin - 2])) {
      // "5.00/hour"
      --begin;
      break;
    }
    const bool apostrophe = c == '\'' && begin < text.size() && IsLetter(text[begin]);
    if (!IsLetter(c) && c != ' ' && !slash && !apostrophe) break;
    quotient = quotient || slash;
    --begin;
  }
  // The first word may be the name of a command: "12\pi cm".
  if (begin > 0 && text[begin - 1] == '\\') {
    while (begin < text.size() && IsLetter(text[begin])) ++begin;
  }
  if (begin == 0 || begin == text.size()) return false;
  const std::string_view words = text.substr(begin);
  const std::string_view quantity = WithoutEndMarks(text.substr(0, begin));
  const std::vector<std::string_view> all = Words(words);
  if (all.empty() || !IsQuantity(quantity) || HasMeaningfulWord(words)) return false;
  const bool known = std::all_of(all.begin(), all.end(), [&](std::string_view word) {
    return word == "percent" || IsUnitWord(word, quotient);
  });
  const bool nouns = words[0] == ' ' && exponent.empty() && AreNouns(quantity, all);
  if (!known && !nouns) return false;
  AddWords(words, exponent, quotient, &answer->quantity);
  answer->rest = quantity;
  return true;
}

bool TakePercentSign(TrailingUnit* answer) {
  if (!EndsWith(answer->rest, "%")) return false;
  answer->rest.remove_suffix(1);
  if (EndsWith(answer->rest, "\\")) answer->rest.remove_suffix(1);
  answer->quantity.percent = true;
  return true;
}

bool IsCurrency(const std::string& unit) { return Contains(kCurrencies, unit); }

bool SameUnit(const std::string& a, const std::string& b) {
  if (a == b) return true;
  for (const auto& [sign, other] : {std::pair(a, b), std::pair(b, a)}) {
    if (sign == "yen sign" && (other == "yen" || other == "yuan")) return true;
    if (sign.substr(0, 4) != "unit") continue;
    const size_t caret = other.find('^');
    const std::string power = caret == other.npos ? std::string() : other.substr(caret);
    if (power == sign.substr(4)) return true;
  }
  return false;
}

// Whether one side has no words that the other lacks. "5 apples per day" is more than 5 apples.
bool OneHoldsTheOther(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  const auto holds = [](const auto& large, const auto& small) {
    return std::all_of(small.begin(), small.end(),
                       [&](const std::string& word) { return Contains(large, word); });
  };
  if (Contains(a, std::string("per")) != Contains(b, std::string("per"))) return false;
  return holds(a, b) || holds(b, a);
}

}  // namespace

bool CompatibleUnits(const QuantityWords& a, const QuantityWords& b) {
  if (!a.unit.empty() && !b.unit.empty() && !SameUnit(a.unit, b.unit)) return false;
  if (!a.words.empty() && !b.words.empty()) return OneHoldsTheOther(a.words, b.words);
  // "5 cm" and "5 apples"; but a price may be called a profit.
  for (const auto& [x, y] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    const bool only_words = x->unit.empty() && !x->words.empty();
    if (only_words && !y->unit.empty() && !IsCurrency(y->unit)) return false;
  }
  return true;
}

TrailingUnit TakeTrailingUnit(std::string_view answer) {
  TrailingUnit result;
  result.rest = WithoutEndMarks(answer);
  // "\text{ square}\text{ cm}" has several; each round takes one off.
  while (TakePercentSign(&result) || TakeTextGroup(&result) || TakePlainWords(&result)) {
    result.rest = WithoutEndMarks(result.rest);
  }
  return result;
}

std::string WithCurrency(std::string_view currency, const std::string& unit) {
  if (unit.empty()) return std::string(currency);
  if (unit.substr(0, 2) == "1/") return std::string(currency) + unit.substr(1);
  return unit;
}

}  // namespace pmkvq
