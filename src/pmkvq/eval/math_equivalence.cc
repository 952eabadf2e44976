#include "pmkvq/eval/math_equivalence.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/eval/math_expression.h"
#include "pmkvq/eval/math_normalize.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxLength = 4096;
constexpr size_t kMaxItems = 64;
constexpr int kMaxDepth = 6;

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Length of the token at `at`: a command with the blank behind it, an escaped character, or one
// byte.
size_t TokenLength(std::string_view text, size_t at) {
  if (text[at] != '\\' || at + 1 >= text.size()) return 1;
  size_t end = at + 1;
  while (end < text.size() && IsLetter(text[end])) ++end;
  if (end == at + 1) return 2;
  return end - at + (end < text.size() && text[end] == ' ' ? 1 : 0);
}

int DepthChange(std::string_view token) {
  if (token == "(" || token == "[" || token == "{" || token == "\\{") return 1;
  if (token == ")" || token == "]" || token == "}" || token == "\\}") return -1;
  return 0;
}

std::string_view WithoutBlank(std::string_view token) {
  return token.size() > 1 && token.back() == ' ' ? token.substr(0, token.size() - 1) : token;
}

struct Split {
  std::vector<std::string> parts;
  std::vector<std::string> separators;  // One less than parts.
};

// Splits at the tokens outside of all brackets for which `separates` holds.
Split SplitAt(std::string_view text, const std::function<bool(std::string_view)>& separates) {
  Split split;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = WithoutBlank(text.substr(i, length));
    depth += DepthChange(token);
    if (depth == 0 && separates(token)) {
      split.parts.emplace_back(text.substr(begin, i - begin));
      split.separators.emplace_back(token);
      begin = i + length;
    }
    i += length;
  }
  split.parts.emplace_back(text.substr(begin));
  return split;
}

std::vector<std::string> SplitAtToken(std::string_view text, std::string_view separator) {
  return SplitAt(text, [&](std::string_view token) { return token == separator; }).parts;
}

std::vector<std::string> SplitItems(std::string_view text) {
  return SplitAt(text, [](std::string_view token) { return token == "," || token == ";"; }).parts;
}

// Both readings of a formula with \pm (and \mp, of the other sign); the formula itself without.
std::vector<std::string> ExpandPlusMinus(const std::string& text) {
  std::string upper;
  std::string lower;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = std::string_view(text).substr(i, length);
    const std::string_view name = WithoutBlank(token);
    upper += name == "\\pm" ? "+" : name == "\\mp" ? "-" : token;
    lower += name == "\\pm" ? "-" : name == "\\mp" ? "+" : token;
    i += length;
  }
  if (upper == lower) return {text};
  return {upper, lower};
}

// Whether one pair of brackets, of whatever kinds, encloses the whole of `text`. Interval brackets
// may be mixed.
bool IsEnclosed(std::string_view text, std::string_view open, std::string_view close) {
  if (text.size() < open.size() + close.size() || !StartsWith(text, open) ||
      text.substr(text.size() - close.size()) != close) {
    return false;
  }
  int depth = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    depth += DepthChange(text.substr(i, length));
    i += length;
    if (depth <= 0) return i == text.size() && depth == 0;
  }
  return false;
}

// Removes braces that enclose everything: "{{5}}" is 5.
std::string_view WithoutBraces(std::string_view text) {
  while (IsEnclosed(text, "{", "}")) text = text.substr(1, text.size() - 2);
  return text;
}

struct Tuple {
  std::string brackets;
  std::vector<std::string> items;
};

// A tuple or an interval; a single thing in brackets is none.
std::optional<Tuple> ParseTuple(std::string_view text) {
  for (const std::string_view open : {"(", "["}) {
    for (const std::string_view close : {")", "]"}) {
      if (!IsEnclosed(text, open, close)) continue;
      Tuple tuple;
      tuple.brackets = std::string(open) + std::string(close);
      tuple.items = SplitItems(text.substr(1, text.size() - 2));
      if (tuple.items.size() > 1) return tuple;
    }
  }
  return std::nullopt;
}

// The items of a list or set; one for anything else.
struct ItemList {
  std::vector<std::string> items;
  bool is_set = false;
};

ItemList ParseItems(std::string_view text) {
  ItemList list;
  list.is_set = IsEnclosed(text, "\\{", "\\}");
  if (list.is_set) text = text.substr(2, text.size() - 4);
  if (text.empty() || text == "\\emptyset") {
    list.is_set = true;
    return list;
  }
  for (const std::string& item : SplitItems(text)) {
    for (std::string& reading : ExpandPlusMinus(item)) list.items.push_back(std::move(reading));
  }
  return list;
}

// Rows of entries of \begin{pmatrix}...\end{pmatrix} and its kin, with the name of its brackets.
struct Matrix {
  std::string brackets;
  std::vector<std::vector<std::string>> rows;
};

std::optional<Matrix> ParseMatrix(std::string_view text) {
  constexpr std::string_view kBegin = "\\begin{";
  constexpr std::string_view kEnd = "\\end{";
  const size_t name_end = text.find('}');
  if (!StartsWith(text, kBegin) || name_end == std::string_view::npos) return std::nullopt;
  const std::string_view name = text.substr(kBegin.size(), name_end - kBegin.size());
  const std::string end = std::string(kEnd) + std::string(name) + "}";
  if (text.size() < name_end + 1 + end.size()) return std::nullopt;
  if (text.substr(text.size() - end.size()) != end) return std::nullopt;
  const std::string_view body = text.substr(name_end + 1, text.size() - end.size() - name_end - 1);
  Matrix matrix;
  // Round and square brackets mean the same; |...| is a determinant.
  matrix.brackets = name == "bmatrix" ? "pmatrix" : std::string(name);
  for (const std::string& row : SplitAtToken(body, "\\\\")) {
    if (!row.empty()) matrix.rows.push_back(SplitAtToken(row, "&"));
  }
  return matrix;
}

// Something that a value is given to: x, x_1, \theta, AB, f(x).
bool IsName(std::string_view text) {
  if (text.empty() || text.size() > 24) return false;
  const bool names = std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("\\_{}()'").find(c) != std::string_view::npos;
  });
  return names && (IsLetter(text[0]) || (text[0] == '\\' && text.find("frac") == text.npos &&
                                         text.find("sqrt") == text.npos));
}

bool IsRelation(std::string_view token) {
  return token == "=" || token == "<" || token == ">" || token == "\\le" || token == "\\ge" ||
         token == "\\ne";
}

// Sides and relations, turned so that inequalities increase from left to right.
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

bool SameValue(std::string_view a, std::string_view b) {
  for (int point = 0; point < kNumPoints; ++point) {
    const std::optional<MathValue> x = EvaluateExpression(a, point);
    if (!x) return false;
    const std::optional<MathValue> y = EvaluateExpression(b, point);
    if (!y || !Agree(*x, *y)) return false;
  }
  return true;
}

// Whether a = 0 and b = 0 say the same: the two differ by a constant factor.
bool Proportional(const std::string& a, const std::string& b) {
  const std::optional<MathValue> a0 = EvaluateExpression(a, 0);
  const std::optional<MathValue> b0 = EvaluateExpression(b, 0);
  if (!a0 || !b0 || a0->IsZero() || b0->IsZero()) return false;
  for (int point = 1; point < kNumPoints; ++point) {
    const std::optional<MathValue> x = EvaluateExpression(a, point);
    const std::optional<MathValue> y = EvaluateExpression(b, point);
    if (!x || !y || !Agree(*x * *b0, *y * *a0)) return false;
  }
  return true;
}

bool SameEquation(const Split& a, const Split& b) {
  const auto difference = [](const Split& e) {
    return "(" + e.parts[0] + ")-(" + e.parts[1] + ")";
  };
  return Proportional(difference(a), difference(b));
}

bool SameWords(std::string_view a, std::string_view b) {
  const auto is_word = [](std::string_view text) {
    return text.size() > 1 && std::all_of(text.begin(), text.end(), IsLetter);
  };
  return is_word(a) && is_word(b) &&
         std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
           return std::tolower(static_cast<unsigned char>(x)) ==
                  std::tolower(static_cast<unsigned char>(y));
         });
}

// The letter of a choice: "C", "(C)", "C)", "(C)12"; with `alone` only if nothing follows.
char Choice(std::string_view text, bool alone) {
  const bool bracket = StartsWith(text, "(");
  if (bracket) text.remove_prefix(1);
  if (text.empty() || text[0] < 'A' || text[0] > 'J') return '\0';
  const bool closed = text.size() > 1 && (text[1] == ')' || (!bracket && text[1] == ':'));
  if (text.size() == 1) return bracket ? '\0' : text[0];
  if (!closed || (alone && text.size() > 2)) return '\0';
  return text[0];
}

bool SameChoice(std::string_view a, std::string_view b) {
  const char x = Choice(a, false);
  return x != '\0' && x == Choice(b, false) && (Choice(a, true) != '\0' || Choice(b, true) != '\0');
}

bool Same(std::string_view a, std::string_view b, int depth);

bool SameInOrder(const std::vector<std::string>& a, const std::vector<std::string>& b, int depth) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](const std::string& x, const std::string& y) { return Same(x, y, depth); });
}

// Pairs every item with another one of the other side. Sameness is an equivalence for items, hence
// taking the first that fits is enough.
bool SameInAnyOrder(const std::vector<std::string>& a, std::vector<std::string> b, int depth) {
  if (a.size() != b.size() || a.size() > kMaxItems) return false;
  for (const std::string& item : a) {
    const auto found = std::find_if(
        b.begin(), b.end(), [&](const std::string& other) { return Same(item, other, depth); });
    if (found == b.end()) return false;
    b.erase(found);
  }
  return true;
}

bool SameMatrix(const Matrix& a, const Matrix& b, int depth) {
  return a.brackets == b.brackets &&
         std::equal(a.rows.begin(), a.rows.end(), b.rows.begin(), b.rows.end(),
                    [&](const auto& x, const auto& y) { return SameInOrder(x, y, depth); });
}

// Where either side has relations; nothing where neither has.
std::optional<bool> SameRelations(std::string_view a, std::string_view b, int depth) {
  const Split x = ParseRelations(a);
  const Split y = ParseRelations(b);
  if (x.separators.empty() && y.separators.empty()) return std::nullopt;
  if (x.separators == y.separators) {
    if (x.separators.size() == 1 && x.separators[0] == "=" && SameEquation(x, y)) return true;
    return SameInOrder(x.parts, y.parts, depth);
  }
  // "x = 5" and 5.
  const Split& named = x.separators.empty() ? y : x;
  const std::string_view value = x.separators.empty() ? a : b;
  const bool other_is_plain = x.separators.empty() || y.separators.empty();
  if (!other_is_plain || named.separators.size() != 1 || named.separators[0] != "=") return false;
  return IsName(named.parts[0]) && Same(named.parts[1], value, depth);
}

// The set behind "x \in"; both sides without it.
void DropMembership(std::string_view* text) {
  const size_t at = text->find("\\in");
  if (at == std::string_view::npos || !IsName(text->substr(0, at))) return;
  if (TokenLength(*text, at) > 4) return;  // \infty, \int
  const std::string_view rest = text->substr(at + TokenLength(*text, at));
  if (WithoutBlank(text->substr(at, TokenLength(*text, at))) == "\\in") *text = rest;
}

// Same for what has no commas, relations or brackets of its own.
bool SameSingle(std::string_view a, std::string_view b, int depth) {
  const std::optional<Matrix> m = ParseMatrix(a);
  const std::optional<Matrix> n = ParseMatrix(b);
  if (m || n) return m && n && SameMatrix(*m, *n, depth);
  return SameWords(a, b) || SameChoice(a, b) || SameValue(a, b);
}

bool Same(std::string_view a, std::string_view b, int depth) {
  a = WithoutBraces(a);
  b = WithoutBraces(b);
  if (a == b) return !a.empty();
  if (++depth > kMaxDepth) return false;
  DropMembership(&a);
  DropMembership(&b);
  const std::vector<std::string> union_a = SplitAtToken(a, "\\cup");
  const std::vector<std::string> union_b = SplitAtToken(b, "\\cup");
  if (union_a.size() > 1 || union_b.size() > 1) return SameInAnyOrder(union_a, union_b, depth);
  const std::optional<Tuple> tuple_a = ParseTuple(a);
  const std::optional<Tuple> tuple_b = ParseTuple(b);
  if (tuple_a && tuple_b) {
    return tuple_a->brackets == tuple_b->brackets &&
           SameInOrder(tuple_a->items, tuple_b->items, depth);
  }
  const ItemList list_a = ParseItems(a);
  const ItemList list_b = ParseItems(b);
  const bool lists =
      list_a.is_set || list_b.is_set || list_a.items.size() > 1 || list_b.items.size() > 1;
  // "x = (1,2)" and (1,2): the relation comes first.
  const bool plain =
      SplitAt(a, IsRelation).parts.size() == 1 && SplitAt(b, IsRelation).parts.size() == 1;
  if (lists && SameInAnyOrder(list_a.items, list_b.items, depth)) return true;
  if (lists && plain) return false;
  if (const std::optional<bool> related = SameRelations(a, b, depth)) return *related;
  if (tuple_a || tuple_b) return false;
  return SameSingle(a, b, depth);
}

// What stands before the first \approx, or behind it when it comes first.
std::string ExactPart(const std::string& text) {
  const std::vector<std::string> parts = SplitAtToken(text, "\\approx");
  if (!parts[0].empty()) return parts[0];
  return parts.size() > 1 ? parts[1] : text;
}

}  // namespace

bool EquivalentAnswers(std::string_view a, std::string_view b) {
  const NormalizedAnswer x = NormalizeAnswer(a);
  const NormalizedAnswer y = NormalizeAnswer(b);
  if (!x.unit.empty() && !y.unit.empty() && x.unit != y.unit) return false;
  if (x.text.empty() || y.text.empty()) return false;
  if (x.text == y.text) return a == b || std::max(a.size(), b.size()) <= kMaxNormalizedLength;
  if (a.size() > kMaxLength || b.size() > kMaxLength) return false;
  const std::string p = ExactPart(x.text);
  const std::string q = ExactPart(y.text);
  if (Same(p, q, 0)) return true;
  if (x.percent == y.percent) return false;
  return x.percent ? SameValue("(" + p + ")/100", q) : SameValue(p, "(" + q + ")/100");
}

}  // namespace pmkvq
