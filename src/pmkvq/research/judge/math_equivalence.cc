#include "pmkvq/research/judge/math_equivalence.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/research/judge/math_collection.h"
#include "pmkvq/research/judge/math_expression.h"
#include "pmkvq/research/judge/math_interval.h"
#include "pmkvq/research/judge/math_normalize.h"
#include "pmkvq/research/judge/math_relation.h"
#include "pmkvq/research/judge/math_tokens.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxLength = 4096;
constexpr size_t kMaxItems = 64;
constexpr int kMaxDepth = 6;

// Words of two letters that would pass for products of two variables: "no" is not "on".
constexpr std::string_view kShortWords[] = {"no", "on", "so", "is", "if", "in", "at", "to", "do",
                                            "go", "of", "or", "up", "us", "we", "me", "my", "he",
                                            "be", "by", "an", "as", "it", "am", "pm", "ok", "hi"};

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

bool IsShortWord(std::string_view text) {
  return text.size() == 2 && std::find(std::begin(kShortWords), std::end(kShortWords),
                                       LowerCase(text)) != std::end(kShortWords);
}

bool SameWords(std::string_view a, std::string_view b) {
  const auto is_word = [](std::string_view text) {
    return text.size() > 1 && std::all_of(text.begin(), text.end(), IsLetter);
  };
  return is_word(a) && is_word(b) && LowerCase(a) == LowerCase(b);
}

// "E. text", "(E) text", "E) text", "E: text", "E - text", "Option E".
std::string_view WithoutChoiceWord(std::string_view text) {
  for (const std::string_view word : {"option", "choice"}) {
    if (text.size() > word.size() && LowerCase(text.substr(0, word.size())) == word) {
      return text.substr(word.size());
    }
  }
  return text;
}

// The letter of a choice; with `alone` only if nothing follows.
char Choice(std::string_view text, bool alone) {
  text = WithoutChoiceWord(text);
  const bool bracket = StartsWith(text, "(");
  if (bracket) text.remove_prefix(1);
  if (text.empty() || text[0] < 'A' || text[0] > 'J') return '\0';
  if (text.size() == 1) return bracket ? '\0' : text[0];
  const bool dash = !bracket && text[1] == '-' && text.size() > 4 && IsLetter(text[2]) &&
                    IsLetter(text[3]) && IsLetter(text[4]);
  const bool closed = text[1] == ')' || dash || (!bracket && (text[1] == ':' || text[1] == '.'));
  if (!closed || (alone && text.size() > 2)) return '\0';
  return text[0];
}

bool SameChoice(std::string_view a, std::string_view b) {
  const char x = Choice(a, false);
  return x != '\0' && x == Choice(b, false) && (Choice(a, true) != '\0' || Choice(b, true) != '\0');
}

// The set behind "x \in"; both sides without it.
void DropMembership(std::string_view* text) {
  const size_t at = text->find("\\in");
  if (at == std::string_view::npos || !IsName(text->substr(0, at))) return;
  if (TokenLength(*text, at) > 4) return;  // \infty, \int
  const std::string_view rest = text->substr(at + TokenLength(*text, at));
  if (WithoutBlank(text->substr(at, TokenLength(*text, at))) == "\\in") *text = rest;
}

// One comparison: its values are kept, so that an item of a list is evaluated once.
class Comparison {
 public:
  bool Same(std::string_view a, std::string_view b, int depth);
  bool SameValue(std::string_view a, std::string_view b) { return cache_.SameValue(a, b); }
  ExpressionCache* cache() { return &cache_; }

 private:
  using Items = std::vector<std::string>;

  bool Proportional(const std::string& a, const std::string& b);
  bool SameEquation(const Split& a, const Split& b);
  bool SameInOrder(const Items& a, const Items& b, int depth);
  bool SameInAnyOrder(const Items& a, Items b, int depth);
  bool SameSets(const Items& a, const Items& b, int depth);
  bool SameMatrix(const Matrix& a, const Matrix& b, int depth);
  std::optional<bool> SameRelations(std::string_view a, std::string_view b, int depth);
  bool SameSingle(std::string_view a, std::string_view b, int depth);

  ExpressionCache cache_;
};

// Whether a = 0 and b = 0 say the same: the two differ by a constant factor.
bool Comparison::Proportional(const std::string& a, const std::string& b) {
  const std::optional<MathValue> a0 = cache_.At(a, 0);
  const std::optional<MathValue> b0 = cache_.At(b, 0);
  if (!a0 || !b0 || a0->IsZero() || b0->IsZero()) return false;
  for (int point = 1; point < kNumPoints; ++point) {
    const std::optional<MathValue> x = cache_.At(a, point);
    const std::optional<MathValue> y = cache_.At(b, point);
    if (!x || !y || !Agree(*x * *b0, *y * *a0)) return false;
  }
  return true;
}

bool Comparison::SameEquation(const Split& a, const Split& b) {
  const auto difference = [](const Split& e) {
    return "(" + e.parts[0] + ")-(" + e.parts[1] + ")";
  };
  return Proportional(difference(a), difference(b));
}

bool Comparison::SameInOrder(const Items& a, const Items& b, int depth) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](const std::string& x, const std::string& y) { return Same(x, y, depth); });
}

// Pairs every item with another one of the other side. Sameness is an equivalence for items, hence
// taking the first that fits is enough.
bool Comparison::SameInAnyOrder(const Items& a, Items b, int depth) {
  if (a.size() != b.size() || a.size() > kMaxItems) return false;
  for (const std::string& item : a) {
    const auto found = std::find_if(
        b.begin(), b.end(), [&](const std::string& other) { return Same(item, other, depth); });
    if (found == b.end()) return false;
    b.erase(found);
  }
  return true;
}

// One side may repeat elements of the other: {1,2,2} is {1,2}. Where both repeat, they must repeat
// the same: answers that count multiple roots differ there.
bool Comparison::SameSets(const Items& a, const Items& b, int depth) {
  const Items& longer = a.size() > b.size() ? a : b;
  const Items& shorter = a.size() > b.size() ? b : a;
  if (longer.size() == shorter.size() || longer.size() > kMaxItems) return false;
  Items distinct;
  for (const std::string& item : longer) {
    const bool known = std::any_of(distinct.begin(), distinct.end(), [&](const std::string& other) {
      return Same(item, other, depth);
    });
    if (!known) distinct.push_back(item);
  }
  return SameInAnyOrder(distinct, shorter, depth);
}

bool Comparison::SameMatrix(const Matrix& a, const Matrix& b, int depth) {
  return a.brackets == b.brackets &&
         std::equal(a.rows.begin(), a.rows.end(), b.rows.begin(), b.rows.end(),
                    [&](const auto& x, const auto& y) { return SameInOrder(x, y, depth); });
}

// Where either side has relations; nothing where neither has.
std::optional<bool> Comparison::SameRelations(std::string_view a, std::string_view b, int depth) {
  const Split x = ParseRelations(a);
  const Split y = ParseRelations(b);
  if (x.separators.empty() && y.separators.empty()) return std::nullopt;
  if (x.separators == y.separators) {
    if (x.separators.size() == 1 && x.separators[0] == "=" && SameEquation(x, y)) return true;
    return SameInOrder(x.parts, y.parts, depth);
  }
  // "x = 5" and 5; "n = 2^5 = 32" and "n = 32".
  const std::optional<Assignment> p = ReadAssignment(a, &cache_);
  const std::optional<Assignment> q = ReadAssignment(b, &cache_);
  if ((!x.separators.empty() && !p) || (!y.separators.empty() && !q)) return false;
  const bool named = p && q && !p->name.empty() && !q->name.empty();
  if (named && !Same(p->name, q->name, depth)) return false;
  return Same(p ? std::string_view(p->value) : a, q ? std::string_view(q->value) : b, depth);
}

// Same, for answers without commas, relations or enclosing brackets.
bool Comparison::SameSingle(std::string_view a, std::string_view b, int depth) {
  const std::optional<Matrix> m = ParseMatrix(a);
  const std::optional<Matrix> n = ParseMatrix(b);
  if (m || n) return m && n && SameMatrix(*m, *n, depth);
  if (SameWords(a, b)) return true;
  if (IsShortWord(a) || IsShortWord(b)) return false;
  return SameChoice(a, b) || SameValue(a, b);
}

bool Comparison::Same(std::string_view a, std::string_view b, int depth) {
  a = WithoutBraces(a);
  b = WithoutBraces(b);
  if (a == b) return !a.empty();
  if (++depth > kMaxDepth) return false;
  if (const std::optional<bool> sets = SameRealSet(a, b, &cache_)) return *sets;
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
  if (list_a.is_set && list_b.is_set && SameSets(list_a.items, list_b.items, depth)) return true;
  if (lists && plain) return false;
  if (const std::optional<bool> related = SameRelations(a, b, depth)) return *related;
  if (tuple_a || tuple_b) return false;
  return SameSingle(a, b, depth);
}

}  // namespace

bool EquivalentAnswers(std::string_view a, std::string_view b) {
  const NormalizedAnswer x = NormalizeAnswer(a);
  const NormalizedAnswer y = NormalizeAnswer(b);
  if (!CompatibleUnits(x.quantity, y.quantity)) return false;
  if (x.text.empty() || y.text.empty()) return false;
  if (x.text == y.text) return a == b || std::max(a.size(), b.size()) <= kMaxNormalizedLength;
  if (a.size() > kMaxLength || b.size() > kMaxLength) return false;
  // \text{AB} is no product.
  const bool words = (x.is_word && x.text.size() == 2) || (y.is_word && y.text.size() == 2);
  if (words) return SameWords(x.text, y.text);
  Comparison comparison;
  const std::string p = ExactPart(x.text, comparison.cache());
  const std::string q = ExactPart(y.text, comparison.cache());
  if (comparison.Same(p, q, 0)) return true;
  const bool x_percent = x.quantity.percent;
  if (x_percent == y.quantity.percent) return false;
  const std::string part = "(" + (x_percent ? p : q) + ")/100";
  return comparison.SameValue(part, x_percent ? q : p);
}

}  // namespace pmkvq
