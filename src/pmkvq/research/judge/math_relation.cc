#include "pmkvq/research/judge/math_relation.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <set>

#include "pmkvq/research/judge/math_collection.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxName = 48;

// An equation with one of these functions of a variable has to be solved: a value of the function
// is no value of the variable.
constexpr std::string_view kSolvedFunctions[] = {"ln",     "lg",    "log",  "exp",    "sqrt",
                                                 "arcsin", "sinh",  "cosh", "tanh",   "arccos",
                                                 "arctan", "binom", "frac", "lfloor", "lceil"};
constexpr std::string_view kTrigonometric[] = {"sin", "cos", "tan", "cot", "sec", "csc"};
// Commands that begin a quantity together with the text behind them.
constexpr std::string_view kOperators[] = {"int",
                                           "iint",
                                           "oint",
                                           "sum",
                                           "prod",
                                           "lim",
                                           "max",
                                           "min",
                                           "sup",
                                           "inf",
                                           "gcd",
                                           "lcm",
                                           "det",
                                           "arg",
                                           "dim",
                                           "deg",
                                           "Pr",
                                           "angle",
                                           "Re",
                                           "Im",
                                           "measuredangle",
                                           "triangle",
                                           "sphericalangle",
                                           "mathbb",
                                           "Var",
                                           "Area",
                                           "area",
                                           "mathcal",
                                           "tr",
                                           "rank",
                                           "ord"};
// Letters that are functions when brackets follow.
constexpr std::string_view kFunctionLetters = "dfghFGHPQESTV";
constexpr std::string_view kFunctionSymbols[] = {"phi", "varphi", "sigma", "tau",  "pi",
                                                 "mu",  "psi",    "Gamma", "zeta", "omega"};
// Marks over a name.
constexpr std::string_view kAccents[] = {"overline", "bar",     "vec",   "overrightarrow",
                                         "hat",      "widehat", "tilde", "overleftrightarrow",
                                         "mathbf",   "dot"};

template <class Range>
bool Contains(const Range& range, std::string_view value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }

// The name of the command or of the run of letters that `text` starts with.
std::string_view LeadingName(std::string_view text) {
  if (StartsWith(text, "\\")) text.remove_prefix(1);
  size_t end = 0;
  while (end < text.size() && IsLetter(text[end])) ++end;
  return text.substr(0, end);
}

// `text` without accents: \overline{AB} is AB.
std::string WithoutAccents(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = WithoutBlank(text.substr(i, length));
    const bool accent = token.size() > 1 && Contains(kAccents, token.substr(1));
    if (!accent) plain += text.substr(i, length);
    i += length;
  }
  return plain;
}

// The variables of an expression, each with its subscript.
std::set<std::string> VariablesOf(std::string_view text) {
  std::set<std::string> names;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = WithoutBlank(text.substr(i, length));
    i += length;
    const bool symbol = token.size() > 1 && IsLetter(token[1]) &&
                        !Contains(kSolvedFunctions, token.substr(1)) && token != "\\pi";
    const bool letter = token.size() == 1 && IsLetter(token[0]) && token != "e" && token != "i";
    if (!symbol && !letter) continue;
    std::string name(token);
    if (i < text.size() && text[i] == '_') {
      const bool group = i + 1 < text.size() && text[i + 1] == '{';
      const size_t end =
          group ? std::min(text.find('}', i), text.size() - 1) + 1 : std::min(i + 2, text.size());
      name += text.substr(i, end - i);
      i = end;
    }
    names.insert(std::move(name));
  }
  return names;
}

bool HasSolvedFunction(std::string_view text) {
  for (size_t i = 0; i < text.size(); i += TokenLength(text, i)) {
    const std::string_view token = WithoutBlank(text.substr(i, TokenLength(text, i)));
    if (token.size() < 2 || token == "\\frac" || token == "\\sqrt") continue;
    const std::string_view name = token.substr(1);
    if (Contains(kSolvedFunctions, name) || Contains(kTrigonometric, name)) return true;
  }
  return false;
}

// Names of angles: "AB", "\theta", "A", "\angle BAC", also in brackets.
bool NamesAngle(std::string_view text) {
  while (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  if (IsEnclosed(text, "(", ")") || IsEnclosed(text, "{", "}")) {
    text = text.substr(1, text.size() - 2);
  }
  if (StartsWith(text, "\\angle")) return true;
  if (text.empty()) return false;
  if (text[0] == '\\') return TokenLength(text, 0) == text.size();
  return std::all_of(text.begin(), text.end(), IsUpper);
}

// f(3), f'(2), f^{-1}(3), P(X=3), E[X], \phi(100): a letter that is a function, and brackets.
bool IsFunctionValue(std::string_view text) {
  size_t head = TokenLength(text, 0);
  const std::string_view name = WithoutBlank(text.substr(0, head));
  const bool function = name.size() == 1 ? kFunctionLetters.find(name[0]) != name.npos
                                         : Contains(kFunctionSymbols, name.substr(1));
  if (!function) return false;
  std::string_view rest = text.substr(head);
  while (!rest.empty() && rest[0] == '\'') rest.remove_prefix(1);
  if (StartsWith(rest, "^{") || StartsWith(rest, "_{")) {
    rest.remove_prefix(std::min(rest.find('}'), rest.size() - 1) + 1);
  } else if (StartsWith(rest, "_") && rest.size() > 1) {
    rest.remove_prefix(2);
  }
  return IsEnclosed(rest, "(", ")") || IsEnclosed(rest, "[", "]");
}

// Three letters in a row outside of commands are a word: "Area", "Totalcost".
bool HasWord(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (text[i] == '\\') {
      i += TokenLength(text, i);
      continue;
    }
    const std::string_view run = LeadingName(text.substr(i));
    if (run.size() >= 3) {
      const bool function =
          std::any_of(std::begin(kTrigonometric), std::end(kTrigonometric),
                      [&](std::string_view f) { return StartsWith(run, f); }) ||
          std::any_of(std::begin(kSolvedFunctions), std::end(kSolvedFunctions),
                      [&](std::string_view f) { return f.size() > 2 && StartsWith(run, f); });
      return !function;
    }
    i += std::max<size_t>(run.size(), 1);
  }
  return false;
}

// A sum, a product or a ratio of several variables: it cannot be solved for one of them.
bool HasSeveralVariables(std::string_view text, ExpressionCache* cache) {
  if (HasSolvedFunction(text)) return false;
  const size_t count = VariablesOf(text).size();
  if (text.find("\\dots") != text.npos) return count >= 3;
  if (count >= 2) {
    const std::vector<std::string> ratio = SplitAtToken(text, ":");
    return std::all_of(ratio.begin(), ratio.end(),
                       [&](const std::string& part) { return cache->At(part, 0).has_value(); });
  }
  // f(1) + f(2)
  const std::vector<std::string> terms =
      SplitAt(text, [](std::string_view token) { return token == "+" || token == "-"; }).parts;
  return terms.size() > 1 && std::all_of(terms.begin(), terms.end(), [](const std::string& term) {
           return !term.empty() && IsFunctionValue(term);
         });
}

}  // namespace

bool IsName(std::string_view text) {
  if (text.empty() || text.size() > kMaxName) return false;
  const bool names = std::all_of(text.begin(), text.end(), [](char c) {
    return IsLetter(c) || IsDigit(c) ||
           std::string_view("\\_{}()' ").find(c) != std::string_view::npos;
  });
  if (!names || (!IsLetter(text[0]) && text[0] != '\\')) return false;
  const std::string_view name = LeadingName(text);
  const bool function = Contains(kSolvedFunctions, name) || Contains(kTrigonometric, name);
  return !function;
}

bool IsRelation(std::string_view token) {
  return token == "=" || token == "<" || token == ">" || token == "\\le" || token == "\\ge" ||
         token == "\\ne";
}

Split ParseRelations(std::string_view text) {
  Split split = SplitAt(text, IsRelation);
  const bool falls = std::any_of(split.separators.begin(), split.separators.end(),
                                 [](const std::string& s) { return s == ">" || s == "\\ge"; });
  if (!falls) return split;
  std::reverse(split.parts.begin(), split.parts.end());
  std::reverse(split.separators.begin(), split.separators.end());
  for (std::string& relation : split.separators) {
    if (relation == ">") {
      relation = "<";
    } else if (relation == "\\ge") {
      relation = "\\le";
    } else if (relation == "<") {
      relation = ">";
    } else if (relation == "\\le") {
      relation = "\\ge";
    }
  }
  return split;
}

bool NamesQuantity(std::string_view text, ExpressionCache* cache) {
  text = WithoutBraces(text);
  if (text.empty()) return false;
  if (IsName(text) || IsFunctionValue(text)) return true;
  const std::string_view name = LeadingName(text);
  if (text[0] == '\\' && Contains(kOperators, name)) return true;
  if (StartsWith(text, "m\\angle") || StartsWith(text, "m(\\angle")) return true;
  if (Contains(kTrigonometric, name)) {
    return NamesAngle(text.substr(std::min(text.size(), name.size() + (text[0] == '\\' ? 1 : 0))));
  }
  if (HasWord(text)) return true;
  const std::string plain = WithoutAccents(text);
  if (plain.size() > 2 && plain.front() == '|' && plain.back() == '|') {
    std::string_view inner = std::string_view(plain).substr(1, plain.size() - 2);
    while (inner.size() > 2 && inner.front() == '|' && inner.back() == '|') {
      inner = inner.substr(1, inner.size() - 2);
    }
    inner = WithoutBraces(inner);
    return IsName(inner) || HasSeveralVariables(inner, cache);
  }
  if (IsEnclosed(plain, "[", "]")) {
    // The area of a polygon.
    return std::all_of(plain.begin() + 1, plain.end() - 1, IsUpper);
  }
  if (plain != text) return NamesQuantity(plain, cache);
  const std::optional<Tuple> tuple = ParseTuple(text);
  const std::vector<std::string> items = tuple ? tuple->items : ParseItems(text).items;
  if (items.size() > 1) {
    return std::all_of(items.begin(), items.end(), [](const std::string& s) { return IsName(s); });
  }
  return HasSeveralVariables(text, cache);
}

std::optional<Assignment> ReadAssignment(std::string_view text, ExpressionCache* cache) {
  const Split split = SplitAt(text, IsRelation);
  if (split.separators.empty()) return std::nullopt;
  for (const std::string& relation : split.separators) {
    if (relation != "=") return std::nullopt;
  }
  Assignment assignment{"", split.parts.back()};
  if (assignment.value.empty()) return std::nullopt;
  const std::string& first = split.parts[0];
  for (size_t i = 0; i + 1 < split.parts.size(); ++i) {
    const std::string& part = split.parts[i];
    if (cache->Constant(part)) {
      const bool turned = split.parts.size() == 2 && IsName(assignment.value);
      if (!turned && !cache->SameValue(part, assignment.value)) return std::nullopt;
    } else if (i > 0 && part.empty()) {
      return std::nullopt;
    }
  }
  // "5 = x"
  if (split.parts.size() == 2 && cache->Constant(first) && IsName(assignment.value) &&
      !cache->Constant(assignment.value)) {
    return Assignment{assignment.value, first};
  }
  if (first.empty() || cache->Constant(first)) return assignment;
  if (!NamesQuantity(first, cache)) return std::nullopt;
  assignment.name = first;
  return assignment;
}

std::string ExactPart(const std::string& text, ExpressionCache* cache) {
  const std::vector<std::string> parts = SplitAtToken(text, "\\approx");
  if (parts.size() < 2) return text;
  const bool name = SplitAt(parts[0], IsRelation).separators.empty() &&
                    !cache->Constant(parts[0]) && NamesQuantity(parts[0], cache);
  return parts[0].empty() || name ? parts[1] : parts[0];
}

}  // namespace pmkvq
