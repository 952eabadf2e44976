#include "pmkvq/research/judge/math_interval.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/research/judge/math_collection.h"
#include "pmkvq/research/judge/math_relation.h"
#include "pmkvq/research/judge/math_tokens.h"

namespace pmkvq {
namespace {

constexpr int kMaxDepth = 6;
constexpr size_t kMaxIntervals = 64;

// One end of an interval; without a value it is infinite.
struct End {
  std::optional<MathValue> value;
  bool closed = false;
};

struct Interval {
  End low;
  End high;
};

// Thrown inside this file only: the text is no set, or the order of two ends is not known.
struct NotASet {};

int Compare(const MathValue& a, const MathValue& b) {
  const std::optional<int> order = Order(a, b);
  if (!order) throw NotASet();
  return *order;
}

// Order of lower ends by the smallest number that each admits: [3 comes before (3.
int CompareLow(const End& a, const End& b) {
  if (!a.value || !b.value) return a.value ? 1 : b.value ? -1 : 0;
  const int order = Compare(*a.value, *b.value);
  if (order != 0) return order;
  return a.closed == b.closed ? 0 : a.closed ? -1 : 1;
}

int CompareHigh(const End& a, const End& b) {
  if (!a.value || !b.value) return a.value ? -1 : b.value ? 1 : 0;
  const int order = Compare(*a.value, *b.value);
  if (order != 0) return order;
  return a.closed == b.closed ? 0 : a.closed ? 1 : -1;
}

bool IsEmpty(const Interval& interval) {
  if (!interval.low.value || !interval.high.value) return false;
  const int order = Compare(*interval.low.value, *interval.high.value);
  return order > 0 || (order == 0 && !(interval.low.closed && interval.high.closed));
}

// Whether `a`, which begins first, and `b` make one interval.
bool Touch(const Interval& a, const Interval& b) {
  if (!a.high.value || !b.low.value) return true;
  const int order = Compare(*a.high.value, *b.low.value);
  return order > 0 || (order == 0 && (a.high.closed || b.low.closed));
}

using Intervals = std::vector<Interval>;

// Sorted, without empty ones, joined where they touch. One interval alone stays as it is: its ends
// need not be comparable, as in (a, b).
Intervals Normalised(Intervals intervals) {
  if (intervals.size() <= 1) return intervals;
  if (intervals.size() > kMaxIntervals) throw NotASet();
  intervals.erase(std::remove_if(intervals.begin(), intervals.end(), IsEmpty), intervals.end());
  // Insertion: a comparison that throws must not leave std::sort.
  Intervals sorted;
  for (const Interval& interval : intervals) {
    auto place = sorted.begin();
    while (place != sorted.end() && CompareLow(place->low, interval.low) <= 0) ++place;
    sorted.insert(place, interval);
  }
  Intervals joined;
  for (const Interval& interval : sorted) {
    if (joined.empty() || !Touch(joined.back(), interval)) {
      joined.push_back(interval);
    } else if (CompareHigh(joined.back().high, interval.high) < 0) {
      joined.back().high = interval.high;
    }
  }
  return joined;
}

Intervals Union(Intervals a, const Intervals& b) {
  a.insert(a.end(), b.begin(), b.end());
  return Normalised(std::move(a));
}

Intervals Intersection(const Intervals& a, const Intervals& b) {
  Intervals common;
  for (const Interval& x : a) {
    for (const Interval& y : b) {
      const Interval both{CompareLow(x.low, y.low) >= 0 ? x.low : y.low,
                          CompareHigh(x.high, y.high) <= 0 ? x.high : y.high};
      if (!IsEmpty(both)) common.push_back(both);
    }
  }
  return Normalised(std::move(common));
}

Intervals Complement(const Intervals& set) {
  Intervals gaps = {Interval{}};
  for (const Interval& interval : set) {
    Intervals sides;
    if (interval.low.value) {
      sides.push_back({End{}, End{interval.low.value, !interval.low.closed}});
    }
    if (interval.high.value) {
      sides.push_back({End{interval.high.value, !interval.high.closed}, End{}});
    }
    gaps = Intersection(gaps, sides);
  }
  return gaps;
}

struct RealSet {
  std::string variable;  // "" where the text names none.
  Intervals intervals;
};

class SetReader {
 public:
  SetReader(int point, ExpressionCache* cache) : point_(point), cache_(*cache) {}

  RealSet Read(std::string_view text, int depth = 0) {
    text = WithoutBraces(text);
    if (depth > kMaxDepth || text.empty()) throw NotASet();
    if (const std::optional<RealSet> joined = ReadJoined(text, depth)) return *joined;
    if (IsEnclosed(text, "\\{", "\\}")) {
      return ReadBraces(text.substr(2, text.size() - 4), depth);
    }
    if (text == "\\mathbb{R}" || text == "\\R") return {"", {Interval{}}};
    if (text == "\\emptyset") return {};
    Split relations = ParseRelations(text);
    if (!relations.separators.empty()) return ReadChain(relations);
    const Split membership = SplitAt(text, [](std::string_view token) { return token == "\\in"; });
    if (membership.separators.size() == 1 && IsName(membership.parts[0])) {
      RealSet set = Read(membership.parts[1], depth + 1);
      if (!set.variable.empty()) throw NotASet();
      set.variable = membership.parts[0];
      return set;
    }
    return {"", {ReadInterval(text)}};
  }

 private:
  // Parts joined by or, and, a comma, \cup, \cap or \setminus, the loosest first.
  std::optional<RealSet> ReadJoined(std::string_view text, int depth) {
    for (const std::string_view separator : {"\\lor", "\\land", ","}) {
      const std::vector<std::string> parts = SplitAtToken(text, separator);
      if (parts.size() > 1) return Join(parts, separator, depth);
    }
    if (!SplitAt(text, IsRelation).separators.empty()) return std::nullopt;
    // "x \in A \cup B"
    if (SplitAtToken(text, "\\in").size() > 1) return std::nullopt;
    for (const std::string_view separator : {"\\setminus", "\\cup", "\\cap"}) {
      const std::vector<std::string> parts = SplitAtToken(text, separator);
      if (parts.size() > 1) return Join(parts, separator, depth);
    }
    return std::nullopt;
  }

  RealSet Join(const std::vector<std::string>& parts, std::string_view separator, int depth) {
    if (parts.size() > kMaxIntervals) throw NotASet();
    RealSet all = Read(parts[0], depth + 1);
    for (size_t i = 1; i < parts.size(); ++i) {
      const RealSet part = Read(parts[i], depth + 1);
      if (all.variable.empty()) all.variable = part.variable;
      if (!part.variable.empty() && part.variable != all.variable) throw NotASet();
      all.intervals = Combine(all.intervals, part.intervals, separator);
    }
    return all;
  }

  static Intervals Combine(const Intervals& a, const Intervals& b, std::string_view separator) {
    if (separator == "\\setminus") return Intersection(a, Complement(b));
    if (separator == "\\lor" || separator == "\\cup") return Union(a, b);
    Intervals common = Intersection(a, b);
    return separator == "," && common.empty() ? Union(a, b) : common;
  }

  // "x : x > 3", "x \in \mathbb{R} | x > 3", or numbers.
  RealSet ReadBraces(std::string_view text, int depth) {
    for (const std::string_view bar : {"|", ":"}) {
      const size_t at = text.find(bar);
      if (at == text.npos) continue;
      const std::string_view head = text.substr(0, at);
      const std::vector<std::string> membership = SplitAtToken(head, "\\in");
      if (!IsName(membership[0])) continue;
      RealSet set = Read(text.substr(at + 1), depth + 1);
      if (set.variable != membership[0]) throw NotASet();
      if (membership.size() == 2) {
        set.intervals = Intersection(set.intervals, Read(membership[1], depth + 1).intervals);
      }
      set.variable.clear();
      return set;
    }
    RealSet points;
    for (const std::string& item : ParseItems(text).items) {
      const End end{Value(item), true};
      points.intervals.push_back({end, end});
    }
    points.intervals = Normalised(std::move(points.intervals));
    return points;
  }

  MathValue Value(std::string_view text) {
    const std::optional<MathValue>& value = cache_.At(text, point_);
    if (!value) throw NotASet();
    return *value;
  }

  // `low`: whether it is a lower end, which may be minus infinity.
  End ReadEnd(std::string_view text, bool closed, bool low) {
    if (text == (low ? "-\\infty" : "\\infty") || (!low && text == "+\\infty")) return {};
    if (text.find("\\infty") != text.npos) throw NotASet();
    return {Value(text), closed};
  }

  Interval ReadInterval(std::string_view text) {
    const std::optional<Tuple> tuple = ParseTuple(text);
    if (!tuple || tuple->items.size() != 2) throw NotASet();
    return {ReadEnd(tuple->items[0], tuple->brackets[0] == '[', true),
            ReadEnd(tuple->items[1], tuple->brackets[1] == ']', false)};
  }

  bool IsVariable(const std::string& text) {
    return IsName(text) && text.find("\\infty") == text.npos && !cache_.Constant(text);
  }

  // Which side of "a < x" is the variable: the one that is a name, of two the usual one.
  size_t VariableOf(const Split& chain) {
    if (chain.parts.size() == 3) return 1;
    const bool left = IsVariable(chain.parts[0]);
    const bool right = IsVariable(chain.parts[1]);
    if (left && right) {
      return std::string_view("xyztn").find(chain.parts[1]) != std::string_view::npos ? 1 : 0;
    }
    return right ? 1 : 0;
  }

  RealSet ReadChain(const Split& chain) {
    if (chain.parts.size() > 3) throw NotASet();
    const size_t variable = VariableOf(chain);
    if (!IsVariable(chain.parts[variable])) throw NotASet();
    RealSet set{chain.parts[variable], {Interval{}}};
    Interval& interval = set.intervals[0];
    for (size_t i = 0; i < chain.separators.size(); ++i) {
      const std::string& relation = chain.separators[i];
      const bool low = i < variable;
      const std::string& other = chain.parts[low ? i : i + 1];
      if (relation == "<" || relation == "\\le") {
        (low ? interval.low : interval.high) = ReadEnd(other, relation == "\\le", low);
      } else if (chain.parts.size() == 2) {
        const End end{Value(other), true};
        interval = {end, end};
        if (relation == "\\ne") set.intervals = Complement(set.intervals);
      } else {
        throw NotASet();
      }
    }
    return set;
  }

  int point_;
  ExpressionCache& cache_;
};

bool SameEnd(const End& a, const End& b) {
  if (!a.value || !b.value) return !a.value && !b.value;
  return a.closed == b.closed && Agree(*a.value, *b.value);
}

// Whether the text is certainly a set of reals, and not only a tuple, a list or an equation.
bool IsExplicitSet(std::string_view text) {
  for (const std::string_view token :
       {"<", ">", "\\le", "\\ge", "\\ne", "\\cup", "\\cap", "\\setminus", "\\mathbb{R}", "\\R"}) {
    const size_t at = text.find(token);
    if (at != text.npos && (token[0] != '\\' || token.back() == '}' ||
                            WithoutBlank(text.substr(at, TokenLength(text, at))) == token)) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::optional<bool> SameRealSet(std::string_view a, std::string_view b, ExpressionCache* cache) {
  if (!IsExplicitSet(a) && !IsExplicitSet(b)) return std::nullopt;
  try {
    for (int point = 0; point < kNumPoints; ++point) {
      const RealSet x = SetReader(point, cache).Read(a);
      const RealSet y = SetReader(point, cache).Read(b);
      if (!x.variable.empty() && !y.variable.empty() && x.variable != y.variable) return false;
      const bool same = std::equal(x.intervals.begin(), x.intervals.end(), y.intervals.begin(),
                                   y.intervals.end(), [](const Interval& p, const Interval& q) {
                                     return SameEnd(p.low, q.low) && SameEnd(p.high, q.high);
                                   });
      if (!same) return false;
    }
    return true;
  } catch (const NotASet&) {
    return std::nullopt;
  }
}

}  // namespace pmkvq
